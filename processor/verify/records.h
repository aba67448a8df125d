// Records that count, on their way into the tables: one thread gathers them, another one adds them.
//
//   adds   Add, its numbers, its key, its prefill chip's key │ ...
//   log    offset, generation, line, mask, numbers, request id, scope │ ...     of each that may have duplicates
#pragma once

#include "plan.h"

namespace verify {

struct Where {
  i64 offset, generation;
  u32 line;
};

constexpr u64 NUMBER_BYTES = 10;  // at most, of one as `put_number` spells it: seven bits in a byte

inline u8* put_number(u8* at, u64 number) {
  for (; number >= 0x80; number >>= 7) *at++ = static_cast<u8>(number | 0x80);
  *at++ = static_cast<u8>(number);
  return at;
}

inline const u8* take_number(const u8* at, u64* number) {
  *number = 0;
  for (u32 shift = 0;; shift += 7) {
    *number |= static_cast<u64>(*at & 0x7F) << shift;
    if ((*at++ & 0x80) == 0) return at;
  }
}

class Records {
 public:
  // mask: which numbers are not 0; only those follow.
  struct Add {
    u64 hash, prefill_hash;
    u32 key_size, prefill_key_size;  // 0: there is no other chip
    u32 mask, is_logged;
    u32 size, spare;  // of all of it

    const u64* numbers() const { return reinterpret_cast<const u64*>(this + 1); }
    const u8* key() const { return reinterpret_cast<const u8*>(numbers() + __builtin_popcount(mask)); }
    const Add* next() const { return reinterpret_cast<const Add*>(reinterpret_cast<const u8*>(this) + size); }
  };

  Records(i64 window_ms, u64 seed) : window_ms_(window_ms), seed_(seed) {}

  void add(const Record& record, Where where) {
    u32 mask = 0, some = 0;
    u64 numbers[NUMBERS];
    for (u32 i = 0; i < NUMBERS; ++i) {
      numbers[some] = record.numbers[i];
      mask |= (record.numbers[i] != 0) << i;
      some += record.numbers[i] != 0;
    }
    bool is_logged = record.texts[REQUEST_ID].size != ABSENT;
    put_add(record, numbers, some, mask, is_logged);
    if (is_logged) put_log(record, where, numbers, some, mask);
    ++count;
  }

  const Add* begin() const { return reinterpret_cast<const Add*>(adds_.data()); }
  const Add* end() const { return reinterpret_cast<const Add*>(adds_.data() + adds_.size()); }

  Bytes log;
  std::vector<u64> ends, marks;  // of the log's entries
  u64 count = 0;
  void clear() {
    adds_.clear();
    log.clear();
    ends.clear();
    marks.clear();
    count = 0;
  }

 private:
  void put_add(const Record& record, const u64* numbers, u32 some, u32 mask, bool is_logged) {
    Text four[] = {record.texts[USER], record.texts[MODEL], record.texts[CHIP], record.texts[LABELS]};
    Text prefill_chip = record.texts[PREFILL_CHIP];
    i64 window = record.time - record.time % window_ms_;
    u64 size = sizeof(Add) + 8 * some + key_size(four);
    u8* begin = adds_.room(2 * size + prefill_chip.size * (prefill_chip.size != ABSENT) + 8);
    Add add{0, 0, 0, 0, mask, is_logged, 0, 0};
    u8 *key = begin + sizeof add, *at;
    std::memcpy(key, numbers, 8 * some);
    key += 8 * some;
    at = put_key(key, window, four);
    add.key_size = static_cast<u32>(at - key);
    add.hash = hash_of(key, add.key_size, seed_);
    if (prefill_chip.size != ABSENT) {
      four[2] = prefill_chip;
      u8* other = at;
      at = put_key(other, window, four);
      add.prefill_key_size = static_cast<u32>(at - other);
      add.prefill_hash = hash_of(other, add.prefill_key_size, seed_);
    }
    at = begin + ((static_cast<u64>(at - begin) + 7) & ~u64{7});
    add.size = static_cast<u32>(at - begin);
    std::memcpy(begin, &add, sizeof add);
    adds_.end(at);
  }

  void put_log(const Record& record, Where where, const u64* numbers, u32 some, u32 mask) {
    Text id = record.texts[REQUEST_ID], scope = record.texts[SCOPE];
    u8* at = log.room((6 + NUMBERS) * NUMBER_BYTES + id.size + scope.size);
    at = put_number(at, static_cast<u64>(where.offset));
    at = put_number(at, static_cast<u64>(where.generation));
    at = put_number(at, where.line);
    at = put_number(at, mask);
    for (u32 i = 0; i < some; ++i) at = put_number(at, numbers[i]);
    at = put_bytes(put_number(at, id.size), id);
    at = put_bytes(put_number(at, scope.size), scope);
    log.end(at);
    ends.push_back(log.size());
    marks.push_back(hash_of(id.data, id.size, scope.size ? hash_of(scope.data, scope.size, seed_) : seed_));
  }

  i64 window_ms_;
  u64 seed_;
  Bytes adds_;
};

// The entry of a log that begins at `at`.
struct Logged {
  u64 offset, generation, line, mask, numbers[NUMBERS];
  Text texts[2];  // request id, scope

  explicit Logged(const u8* at) {
    for (u64* number : {&offset, &generation, &line, &mask}) at = take_number(at, number);
    for (u32 i = 0; i < NUMBERS; ++i) {
      numbers[i] = 0;
      if (mask >> i & 1) at = take_number(at, &numbers[i]);
    }
    for (Text& text : texts) {
      at = take_number(at, &text.size);
      text.data = at;
      at += text.size;
    }
  }
};

}  // namespace verify
