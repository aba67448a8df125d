// Messages to record batches of one producer, format 2 (fetch/batches.h draws it). A Packer belongs to one thread at a
// time.
//
//   add ──> by the key's hash: one open batch for each partition ── full, or `close` ──> closed batches ── take
//
// A batch gets its sequence number when it is closed, so closed batches have to be sent in their order.
#pragma once
#include <deque>

#include "../fetch/batches.h"

// The one-shot functions of liblz4; all null: batches are not compressed.
struct Encoder {
  size_t (*bound)(size_t, const void*);
  size_t (*compress)(void*, size_t, const void*, size_t, const void*);
  unsigned (*failed)(size_t);
};

// LZ4F_preferences_t of lz4frame.h. Kafka's readers demand blocks that do not depend on each other.
struct Lz4Preferences {
  uint32_t block_size = 0, block_independent = 1, content_checksum = 0, frame_type = 0;
  uint64_t content_size = 0;
  uint32_t dictionary = 0, block_checksum = 0;
  int32_t level = 0;
  uint32_t auto_flush = 0, favor_decoding = 0, reserved[3] = {0, 0, 0};
};
static_assert(sizeof(Lz4Preferences) == 56, "as in lz4frame.h");

// As in packer.py. Text i is `lengths[i]` bytes from `starts[i]` on.
struct Texts {
  const uint8_t* data;
  const int64_t* starts;
  const int64_t* lengths;
};

// As in packer.py. `data` is the caller's, to be freed with `release`.
struct Closed {
  uint8_t* data;
  uint64_t size;
  int32_t partition, first_sequence, count;
};

struct Producer {
  int64_t id;
  int16_t epoch;
  bool transactional;
};

// The hash by which a Java client chooses a partition: MurmurHash2 of Austin Appleby, with Kafka's seed.
inline uint32_t murmur2(const uint8_t* data, size_t size) {
  const uint32_t m = 0x5bd1e995;
  uint32_t hash = 0x9747b28cu ^ static_cast<uint32_t>(size);
  for (; size >= 4; data += 4, size -= 4) {
    uint32_t k;
    memcpy(&k, data, 4);  // little-endian, as every machine that we are built for
    k *= m;
    k ^= k >> 24;
    hash = (hash * m) ^ (k * m);
  }
  if (size == 3) hash ^= static_cast<uint32_t>(data[2]) << 16;
  if (size >= 2) hash ^= static_cast<uint32_t>(data[1]) << 8;
  if (size >= 1) hash = (hash ^ data[0]) * m;
  hash = (hash ^ (hash >> 13)) * m;
  return hash ^ (hash >> 15);
}

template <class T>
inline void put_big(uint8_t* at, T value) {
  for (size_t i = sizeof(T); i--; value = static_cast<T>(value >> 7 >> 1)) at[i] = static_cast<uint8_t>(value);
}

inline size_t varint_size(uint64_t value) {
  size_t size = 1;
  for (; value >= 128; value >>= 7) ++size;
  return size;
}
// Of a number that is not negative; zigzag doubles it.
inline uint8_t* put_varint(uint8_t* at, uint64_t value) {
  for (value *= 2; value >= 128; value >>= 7) *at++ = static_cast<uint8_t>(value | 128);
  *at++ = static_cast<uint8_t>(value);
  return at;
}

class Packer {
 public:
  // limit: of an open batch's records, in bytes; a larger message is alone in its batch. first: sequence number of each
  // partition.
  Packer(const Encoder& encoder, const Producer& producer, size_t limit, int32_t first)
      : encoder_(encoder), producer_(producer), limit_(limit), first_(first) {}
  Packer(const Packer&) = delete;
  ~Packer() {
    for (Open& open : open_) free(open.records.data);
    for (Closed& closed : closed_) free(closed.data);
    free(scratch_.data);
  }

  size_t partitions() const { return open_.size(); }
  void grow(size_t partitions) {
    Open fresh;
    fresh.sequence = first_;
    if (partitions > open_.size()) open_.resize(partitions, fresh);
  }

  void add(const Texts& keys, const Texts& values, size_t count, uint64_t now_ms) {
    for (size_t i = 0; i < count; ++i) {
      const uint8_t *key = keys.data + keys.starts[i], *value = values.data + values.starts[i];
      const uint64_t key_size = static_cast<uint64_t>(keys.lengths[i]);
      const uint64_t value_size = static_cast<uint64_t>(values.lengths[i]);
      const size_t partition = (murmur2(key, key_size) & 0x7fffffffu) % open_.size();
      Open& open = open_[partition];
      if (open.count && open.records.size + key_size + value_size + FRAME_MAX > limit_) close(partition, now_ms);
      open.records.reserve(key_size + value_size + FRAME_MAX);
      put(open, key, key_size, value, value_size);
      open.touched = true;
    }
  }

  // Notes for each partition whether it was given messages since this was last asked.
  void touched(uint8_t* flags) {
    for (size_t i = 0; i < open_.size(); ++i) {
      flags[i] = open_[i].touched;
      open_[i].touched = false;
    }
  }

  void close_all(uint64_t now_ms) {
    for (size_t i = 0; i < open_.size(); ++i)
      if (open_[i].count) close(i, now_ms);
  }

  bool take(Closed& to) {
    if (closed_.empty()) return false;
    to = closed_.front();
    closed_.pop_front();
    return true;
  }

 private:
  static constexpr size_t FRAME_MAX = 64;  // around a key and a value: four varints and three bytes

  struct Open {
    Bytes records;
    int32_t count = 0, sequence = 0;  // of the first one
    bool touched = false;
  };

  static void put(Open& open, const uint8_t* key, uint64_t key_size, const uint8_t* value, uint64_t value_size) {
    const uint64_t delta = static_cast<uint64_t>(open.count++);
    const uint64_t size =
        3 + varint_size(2 * delta) + varint_size(2 * key_size) + key_size + varint_size(2 * value_size) + value_size;
    uint8_t* out = put_varint(open.records.data + open.records.size, size);
    *out++ = 0;  // attributes
    *out++ = 0;  // the time is the batch's
    out = put_varint(put_varint(out, delta), key_size);
    memcpy(out, key, key_size);
    out = put_varint(out + key_size, value_size);
    memcpy(out, value, value_size);
    out += value_size;
    *out++ = 0;  // headers
    open.records.size = static_cast<size_t>(out - open.records.data);
  }

  void close(size_t partition, uint64_t now_ms) {
    Open& open = open_[partition];
    const size_t size = open.records.size;
    const uint8_t* records = open.records.data;
    size_t written = size;
    if (encoder_.compress) {
      scratch_.reserve(encoder_.bound(size, &lz4_));
      written = encoder_.compress(scratch_.data, scratch_.room, records, size, &lz4_);
      if (encoder_.failed(written)) throw std::bad_alloc();  // there is room, so that nothing else can be wrong
      records = scratch_.data;
    }
    uint8_t* data = static_cast<uint8_t*>(malloc(HEAD + written));
    if (!data) throw std::bad_alloc();
    memcpy(data + HEAD, records, written);
    put_head(data, HEAD + written, open, now_ms);
    closed_.push_back(Closed{data, HEAD + written, static_cast<int32_t>(partition), open.sequence, open.count});
    open.sequence = static_cast<int32_t>((static_cast<uint32_t>(open.sequence) + static_cast<uint32_t>(open.count)) &
                                         0x7fffffffu);  // after the greatest comes 0
    open.records.size = 0;
    open.count = 0;
  }

  void put_head(uint8_t* head, size_t size, const Open& open, uint64_t now_ms) const {
    put_big<uint64_t>(head, 0);
    put_big<uint32_t>(head + 8, static_cast<uint32_t>(size - BEFORE_LENGTH));
    put_big<uint32_t>(head + 12, ~0u);  // the leader's epoch is the broker's to write
    head[16] = 2;
    const uint16_t transactional = producer_.transactional ? 16 : 0;
    put_big<uint16_t>(head + 21, static_cast<uint16_t>(transactional | (encoder_.compress ? LZ4 : NONE)));
    put_big<uint32_t>(head + 23, static_cast<uint32_t>(open.count - 1));
    put_big<uint64_t>(head + 27, now_ms);
    put_big<uint64_t>(head + 35, now_ms);
    put_big<uint64_t>(head + 43, static_cast<uint64_t>(producer_.id));
    put_big<uint16_t>(head + 51, static_cast<uint16_t>(producer_.epoch));
    put_big<uint32_t>(head + 53, static_cast<uint32_t>(open.sequence));
    put_big<uint32_t>(head + 57, static_cast<uint32_t>(open.count));
    put_big<uint32_t>(head + 17, crc32c(head + CHECKED_FROM, size - CHECKED_FROM));
  }

  const Encoder encoder_;
  const Lz4Preferences lz4_;
  const Producer producer_;
  const size_t limit_;
  const int32_t first_;
  std::vector<Open> open_;
  std::deque<Closed> closed_;
  Bytes scratch_;
};
