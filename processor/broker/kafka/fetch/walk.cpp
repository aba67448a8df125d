// The fetcher's C++ half: record batches in, columns out. Compiled at first use like the kernels (kernels/build.py).
// A Walker belongs to one thread at a time; nothing else is kept from call to call.
#include "batches.h"

#define ENTRY extern "C" __attribute__((visibility("default")))

// Null: there is no memory. limit: of a batch's bytes when it is opened.
ENTRY Walker* walker_new(const Libraries* libraries, uint64_t limit) {
  return new (std::nothrow) Walker(*libraries, static_cast<size_t>(limit));
}

ENTRY void walker_free(Walker* walker) { delete walker; }

ENTRY void release(void* memory) { free(memory); }

ENTRY void give_back(uint8_t* region) { Regions::give_back(region); }

// For codecs.py's `other`. 0: done.
ENTRY int append_bytes(Bytes* out, const uint8_t* data, uint64_t size) {
  try {
    out->append(data, static_cast<size_t>(size));
    return 0;
  } catch (const std::bad_alloc&) { return 1; }
}

ENTRY uint32_t checksum(const uint8_t* data, uint64_t size) { return crc32c(data, static_cast<size_t>(size)); }

// Where a walk over this will end if nothing is wrong with it, and the epoch of the last batch (unchanged: there is
// none): told by the heads alone.
ENTRY int64_t next_offset(const uint8_t* data, uint64_t size, int64_t from, int32_t* epoch) {
  int64_t next = from;
  for (uint64_t at = 0; at < size;) {
    const int64_t length = batch_size(data + at, static_cast<size_t>(size - at));
    if (length < static_cast<int64_t>(HEAD)) break;
    const Batch batch(data + at, static_cast<size_t>(length));
    if (batch.format() != 2 || batch.last() < 0 || batch.base() < 0) break;
    if (batch.base() < INT64_MAX - 1 - batch.last()) next = std::max(next, batch.base() + batch.last() + 1);
    *epoch = batch.epoch();
    at += static_cast<uint64_t>(length);
  }
  return next;
}

// What was read up to a broken batch is in `found` as well.
ENTRY void walk(Walker* walker, const Task* task, Found* found) {
  Columns to;
  *found = Found{};
  try {
    if (!task->room) walker->begin(to);
    found->status = walker->walk(*task, to, *found);
    walker->end(to, *found);
  } catch (const std::bad_alloc&) {
    walker->forget(to.values);
    found->status = NO_MEMORY;
  }
  found->count = to.ends.size;
  found->values = to.values.data;
  found->value_bytes = to.values.size;
  found->keys = to.keys.data;
  found->key_bytes = to.keys.size;
  found->batches = to.batches.data;
  found->batch_count = to.batches.size;
  found->headers = to.headers.data;
  found->header_bytes = to.headers.size;
  found->lines_within = to.lines_within;
  int64_t** columns[] = {&found->ends,     &found->lengths,     &found->times,      &found->offsets,
                         &found->key_ends, &found->key_lengths, &found->header_ends};
  for (size_t i = 0; i < 7; ++i) *columns[i] = to.numbers[i]->data;
}
