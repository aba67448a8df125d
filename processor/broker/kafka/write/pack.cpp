// The writer's C++ half: messages in, record batches out. Compiled at first use like the kernels (kernels/build.py).
// What returns an int returns 0, or 1 where there is no memory; then the packer is of no more use.
#include "pack.h"

#define ENTRY extern "C" __attribute__((visibility("default")))

ENTRY Packer* packer_new(const Encoder* encoder, int64_t producer, int32_t epoch, int32_t transactional, uint64_t limit,
                         int32_t first) {
  const Producer by{producer, static_cast<int16_t>(epoch), transactional != 0};
  return new (std::nothrow) Packer(*encoder, by, static_cast<size_t>(limit), first);
}

ENTRY void packer_free(Packer* packer) { delete packer; }

ENTRY void release(void* memory) { free(memory); }

ENTRY uint32_t hash_of(const uint8_t* data, uint64_t size) { return murmur2(data, static_cast<size_t>(size)); }

ENTRY int packer_grow(Packer* packer, uint64_t partitions) {
  try {
    packer->grow(static_cast<size_t>(partitions));
    return 0;
  } catch (const std::bad_alloc&) { return 1; }
}

ENTRY int packer_add(Packer* packer, const Texts* keys, const Texts* values, uint64_t count, uint64_t now_ms) {
  try {
    packer->add(*keys, *values, static_cast<size_t>(count), now_ms);
    return 0;
  } catch (const std::bad_alloc&) { return 1; }
}

ENTRY int packer_close(Packer* packer, uint64_t now_ms) {
  try {
    packer->close_all(now_ms);
    return 0;
  } catch (const std::bad_alloc&) { return 1; }
}

ENTRY void packer_touched(Packer* packer, uint8_t* flags) { packer->touched(flags); }

ENTRY int packer_take(Packer* packer, Closed* to) { return packer->take(*to); }
