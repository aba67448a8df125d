// Kafka's record batches, format 2: from bytes to columns.
//
//   0 base offset i64 | 8 length i32, of what follows | 12 leader's epoch i32 | 16 format i8 | 17 CRC-32C u32, of what
//   follows | 21 attributes i16 | 23 last offset's delta i32 | 27 base time i64 | 35 largest time i64 | 43 producer i64
//   51 its epoch i16 | 53 sequence i32 | 57 records i32 | 61 records, compressed together
//
// All but the records (kernels/records.h) is big-endian.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "../../../../kernels/layout.h"
#include "../../../../kernels/records.h"
#include "codecs.h"
#include "regions.h"

using tokenometer::Cursor;
using tokenometer::RawBatch;
using tokenometer::RawFields;

constexpr size_t HEAD = 61, BEFORE_LENGTH = 12, CHECKED_FROM = 21;

template <class T>
inline T big(const uint8_t* at) {
  typename std::make_unsigned<T>::type value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value = static_cast<decltype(value)>(value << 8 | at[i]);
  return static_cast<T>(value);
}

// --- CRC-32C ---

#if defined(__SSE4_2__) && defined(__x86_64__)
inline uint32_t crc_byte(uint32_t crc, uint8_t byte) { return __builtin_ia32_crc32qi(crc, byte); }
inline uint32_t crc_word(uint32_t crc, uint64_t word) {
  return static_cast<uint32_t>(__builtin_ia32_crc32di(crc, word));
}
#else
struct CrcTable {
  uint32_t entries[256];
  CrcTable() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82F63B78u : 0);
      entries[i] = crc;
    }
  }
};
inline uint32_t crc_byte(uint32_t crc, uint8_t byte) {
  static const CrcTable table;
  return crc >> 8 ^ table.entries[(crc ^ byte) & 255];
}
inline uint32_t crc_word(uint32_t crc, uint64_t word) {
  uint8_t bytes[8];
  memcpy(bytes, &word, sizeof bytes);
  for (uint8_t byte : bytes) crc = crc_byte(crc, byte);
  return crc;
}
#endif

inline uint32_t crc32c(const uint8_t* data, size_t size) {
  uint32_t crc = ~0u;
  size_t at = 0;
  for (; size - at >= 8; at += 8) {
    uint64_t word;
    memcpy(&word, data + at, 8);
    crc = crc_word(crc, word);
  }
  for (; at < size; ++at) crc = crc_byte(crc, data[at]);
  return ~crc;
}

// --- What comes in and what goes out ---

enum Status : int32_t {
  FINE,
  BAD_CRC,
  BAD_BATCH,
  BAD_COMPRESSION,
  TOO_LARGE,
  OLD_FORMAT,
  UNKNOWN_CODEC,
  NO_MEMORY,
  FULL  // no fault: the next batch does not fit the room
};
enum Wanted : uint8_t { KEYS = 1, HEADERS = 2 };

// As in walk.py. One partition's part of an answer.
struct Task {
  const uint8_t* data;
  uint64_t size;
  int64_t from;  // messages of lower offsets are left out: they share a batch with what was asked for
  const int64_t* aborted_producers;
  const int64_t* aborted_offsets;  // of each aborted transaction's first message, rising
  uint64_t aborted;
  uint64_t room;  // not 0: batches are opened and not walked, as many as fit so many bytes
  uint32_t wanted;
};

// As in walk.py. What the pointers point to is the caller's, to be freed with `release`.
struct Found {
  uint8_t *values, *keys, *headers;
  uint64_t value_bytes, key_bytes, header_bytes, count;
  RawBatch* batches;  // whose records are in `values`, where they are only opened
  uint64_t batch_count;
  int64_t *ends, *lengths, *times, *offsets, *key_ends, *key_lengths, *header_ends;
  int64_t next_offset;    // past all whole batches, those included that hold nothing for us
  uint64_t walked;        // bytes of whole batches
  int32_t epoch;          // of the leader that wrote the last of them; -1: there is none
  int32_t status;         // of the batch where the walk ended
  uint64_t region;        // bytes of the region in which `values` are, to be given back with `give_back`; 0: none
  uint64_t lines_within;  // not 0: a value may have a newline before its end
};

struct Columns {
  Bytes values, keys, headers;
  Array<RawBatch> batches;
  Array<int64_t> ends, lengths, times, offsets, key_ends, key_lengths, header_ends;
  bool lines_within = false;

  Array<int64_t>* numbers[7] = {&ends, &lengths, &times, &offsets, &key_ends, &key_lengths, &header_ends};
  Bytes* texts[3] = {&values, &keys, &headers};

  // Forgets a batch that turned out to be broken.
  struct Mark {
    size_t numbers[7], texts[3];
  };
  Mark mark() const {
    Mark made;
    for (size_t i = 0; i < 7; ++i) made.numbers[i] = numbers[i]->size;
    for (size_t i = 0; i < 3; ++i) made.texts[i] = texts[i]->size;
    return made;
  }
  void back_to(const Mark& mark) {
    for (size_t i = 0; i < 7; ++i) numbers[i]->size = mark.numbers[i];
    for (size_t i = 0; i < 3; ++i) texts[i]->size = mark.texts[i];
  }
};

struct Batch {
  const uint8_t* head;
  size_t size;  // with the head
  explicit Batch(const uint8_t* at, size_t length) : head(at), size(length) {}
  int64_t base() const { return big<int64_t>(head); }
  int32_t epoch() const { return big<int32_t>(head + 12); }
  int8_t format() const { return static_cast<int8_t>(head[16]); }
  int32_t last() const { return big<int32_t>(head + 23); }
  uint64_t time() const { return big<uint64_t>(head + (time_of_append() ? 35 : 27)); }
  int64_t producer() const { return big<int64_t>(head + 43); }
  int32_t count() const { return big<int32_t>(head + 57); }
  uint8_t codec() const { return head[22] & 7; }
  bool time_of_append() const { return head[22] & 8; }
  bool transactional() const { return head[22] & 16; }
  bool control() const { return head[22] & 32; }
  bool intact() const { return big<uint32_t>(head + 17) == crc32c(head + CHECKED_FROM, size - CHECKED_FROM); }
};

// The batch's size with its head, where it is there as a whole; 0: the answer was cut here, as answers may be.
inline int64_t batch_size(const uint8_t* data, size_t size) {
  if (size < BEFORE_LENGTH) return 0;
  const int64_t length = big<int32_t>(data + 8);
  if (length < 0) return -1;
  const size_t whole = static_cast<size_t>(length) + BEFORE_LENGTH;
  if (whole > size) return 0;
  return whole < 17 ? -1 : static_cast<int64_t>(whole);
}

class Walker {
 public:
  Walker(const Libraries& libraries, size_t limit) : opener_(libraries, limit) {}
  Walker(const Walker&) = delete;
  ~Walker() {
    if (region_) Regions::give_back(region_);
  }

  // Where the values go, unless they are more than it has room for.
  void begin(Columns& to) {
    if (!region_ && !(region_ = Regions::take())) return;
    to.values.data = region_ + tokenometer::PREFIX_BYTES;
    to.values.room = REGION_SPACE;
  }
  // Gives the region away, with the values in it; or copies these out.
  void end(Columns& to, Found& found) {
    if (!in_region(to.values)) return;
    if (to.values.size < REGION_LEAST) return leave_region(to.values, 0);
    found.region = REGION_BYTES;
    region_ = nullptr;
  }
  void forget(Bytes& values) const {
    if (in_region(values)) values = Bytes();
  }

  Status walk(const Task& task, Columns& to, Found& found) {
    found.next_offset = task.from;
    found.epoch = -1;
    aborting_.clear();
    uint64_t abort = 0;
    int64_t after = 0;  // the last batch
    while (found.walked < task.size) {
      const uint8_t* at = task.data + found.walked;
      const int64_t size = batch_size(at, task.size - found.walked);
      if (!size) return FINE;
      if (size < 0) return BAD_BATCH;
      const Batch batch(at, static_cast<size_t>(size));
      if (batch.format() < 2) return OLD_FORMAT;
      if (batch.size < HEAD || batch.format() > 2) return BAD_BATCH;
      if (!batch.intact()) return BAD_CRC;
      const int64_t base = batch.base();
      if (base < after || batch.last() < 0 || base > INT64_MAX - 1 - batch.last()) return BAD_BATCH;
      for (; abort < task.aborted && task.aborted_offsets[abort] <= base + batch.last(); ++abort)
        aborting_.push_back(task.aborted_producers[abort]);
      const Columns::Mark before = to.mark();
      const Status status = base + batch.last() < task.from ? FINE : use(batch, task, to);
      if (status != FINE) {
        to.back_to(before);
        return status;
      }
      found.walked += batch.size;
      found.epoch = batch.epoch();
      after = base + batch.last() + 1;
      found.next_offset = std::max(found.next_offset, after);
    }
    return FINE;
  }

 private:
  bool in_region(const Bytes& values) const { return region_ && values.data == region_ + tokenometer::PREFIX_BYTES; }
  static void leave_region(Bytes& values, size_t more) {
    Bytes copy;
    copy.reserve(values.size + more);
    copy.append(values.data, values.size);
    values = copy;
  }

  Status use(const Batch& batch, const Task& task, Columns& to) {
    if (batch.control()) return end_transaction(batch);
    const bool aborted = std::find(aborting_.begin(), aborting_.end(), batch.producer()) != aborting_.end();
    if (batch.transactional() && aborted) return FINE;
    const uint8_t* records = batch.head + HEAD;
    size_t size = batch.size - HEAD;
    if (batch.codec() > ZSTD) return UNKNOWN_CODEC;
    if (batch.codec() && batch.count()) {
      const Opened opened = opener_.open(static_cast<Codec>(batch.codec()), records, size);
      if (opened != Opened::WHOLE) return opened == Opened::BAD ? BAD_COMPRESSION : TOO_LARGE;
      records = opener_.out.data;
      size = opener_.out.size;
    }
    const uint64_t count = static_cast<uint64_t>(std::max(batch.count(), 0));
    if (batch.count() < 0 || count > size / tokenometer::RAW_RECORD_BYTES_MIN) return BAD_BATCH;
    if (task.room && count) return keep(batch, records, size, task.room, to);
    return take(batch, Cursor{records, records + size}, task, to);
  }

  // For a walk elsewhere (kernels/walk.h): the records as they are, and what their batch's head says of them.
  static Status keep(const Batch& batch, const uint8_t* records, size_t size, uint64_t room, Columns& to) {
    const size_t begin = to.values.size;
    if (size > room - begin) return FULL;
    const RawBatch* before = to.batches.size ? &to.batches.data[to.batches.size - 1] : nullptr;
    const uint32_t first = before ? before->first + before->count : 0;
    const RawBatch kept = {static_cast<uint64_t>(batch.base()),
                           batch.time(),
                           static_cast<uint32_t>(begin),
                           static_cast<uint32_t>(begin + size),
                           first,
                           static_cast<uint32_t>(batch.count()),
                           static_cast<uint32_t>(batch.last()),
                           batch.time_of_append()};
    to.batches.append(&kept, 1);
    to.values.append(records, size);
    return FINE;
  }

  // A marker: its key is a format and a kind, 0 for an abort.
  Status end_transaction(const Batch& batch) {
    if (batch.codec() || batch.count() < 1) return batch.count() ? BAD_BATCH : FINE;
    Cursor cursor{batch.head + HEAD, batch.head + batch.size};
    cursor.number();
    if (cursor.at < cursor.end) ++cursor.at;
    cursor.number();
    cursor.number();
    const int64_t length = cursor.text();
    if (cursor.bad || length < 4) return BAD_BATCH;
    if (big<int16_t>(cursor.at - length + 2) == 0)
      aborting_.erase(std::remove(aborting_.begin(), aborting_.end(), batch.producer()), aborting_.end());
    return FINE;
  }

  Status take(const Batch& batch, Cursor all, const Task& task, Columns& to) {
    const int64_t count = batch.count(), size = all.end - all.at;
    // A record is longer than its value and a newline, and than its key or its headers in our form, so that there is
    // room for all of them.
    if (in_region(to.values) && to.values.room - to.values.size < static_cast<size_t>(size))
      leave_region(to.values, static_cast<size_t>(size));
    to.values.reserve(static_cast<size_t>(size));
    const size_t columns = task.wanted ? 7 : 4;
    for (size_t i = 0; i < columns; ++i) to.numbers[i]->reserve(static_cast<size_t>(count));
    int64_t before = -1;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t length = all.record();
      if (!length) return BAD_BATCH;
      const int64_t delta = record(batch, Cursor{all.at, all.at + length}, task, to);
      if (delta <= before || delta > batch.last()) return BAD_BATCH;
      before = delta;
      all.at += length;
    }
    return all.at == all.end ? FINE : BAD_BATCH;
  }

  // The offset's delta; -1: the record is broken.
  int64_t record(const Batch& batch, Cursor cursor, const Task& task, Columns& to) {
    RawFields fields;
    if (!tokenometer::read_fields(cursor, fields) || fields.delta > batch.last()) return -1;
    const int64_t delta = fields.delta, length = fields.length;
    if (batch.base() + delta < task.from) return delta;
    if (task.wanted && !beside(cursor, task.wanted, fields.key, fields.key_length, to)) return -1;
    uint8_t* out = to.values.data + to.values.size;
    if (length > 0) {
      const size_t size = static_cast<size_t>(length);
      if (!to.lines_within) to.lines_within = memchr(fields.value, '\n', size - 1);
      memcpy(out, fields.value, size);
      out += size;
    }
    if (length <= 0 || out[-1] != '\n') *out++ = '\n';
    to.values.size = static_cast<size_t>(out - to.values.data);
    const size_t index = to.ends.size++;
    to.ends.data[index] = static_cast<int64_t>(to.values.size);
    to.lengths.data[index] = length;
    to.times.data[index] =
        static_cast<int64_t>(tokenometer::time_of(batch.time(), batch.time_of_append(), fields.time));
    to.offsets.data[index] = batch.base() + delta;
    to.lengths.size = to.times.size = to.offsets.size = to.ends.size;
    return delta;
  }

  // Keys and headers. A header is written as two lengths (a value's is -1: none) of 32 bits, its name, its value.
  static bool beside(Cursor cursor, uint32_t wanted, const uint8_t* key, int64_t key_length, Columns& to) {
    if (wanted & KEYS) {
      to.keys.append(key, static_cast<size_t>(std::max<int64_t>(key_length, 0)));
      to.key_lengths.data[to.key_lengths.size++] = key_length;
      to.key_ends.data[to.key_ends.size++] = static_cast<int64_t>(to.keys.size);
    }
    if (!(wanted & HEADERS)) return true;
    const int64_t count = cursor.number();
    if (count < 0 || count > cursor.end - cursor.at) return false;
    for (int64_t i = 0; i < count && !cursor.bad; ++i) {
      const int64_t name_length = cursor.text();
      const uint8_t* name = cursor.at - std::max<int64_t>(name_length, 0);
      const int64_t length = cursor.text();
      if (cursor.bad || name_length < 0 || name_length > INT32_MAX || length > INT32_MAX) return false;
      const int32_t lengths[2] = {static_cast<int32_t>(name_length), static_cast<int32_t>(length)};
      to.headers.append(reinterpret_cast<const uint8_t*>(lengths), sizeof lengths);
      to.headers.append(name, static_cast<size_t>(name_length));
      to.headers.append(cursor.at - std::max<int64_t>(length, 0), static_cast<size_t>(std::max<int64_t>(length, 0)));
    }
    to.header_ends.data[to.header_ends.size++] = static_cast<int64_t>(to.headers.size);
    return !cursor.bad;
  }

  Decompressor opener_;
  uint8_t* region_ = nullptr;
  std::vector<int64_t> aborting_;  // producers whose aborted transaction is open where the walk is
};
