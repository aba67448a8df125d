// What the log says and what was published, row by row; and which rows say the same on both sides.
//
//   Expected   by window, user, model, chip, labels: the sums over the log's records, duplicates included
//   Found      by the same and the part: the last row that was published
//   agree      rows of the log whose parts' rows add up to it: only the others have to be looked at again
#pragma once

#include <map>

#include "plan.h"

namespace verify {

// A sum below this cannot wrap when a chunk of records is added, nor when so many parts are.
constexpr u64 SUM_END = u64{1} << 62;
constexpr u64 FOUND_END = u64{1} << 48;
constexpr u64 PARTS_END = 1 << 13;

struct Where {
  i64 offset, generation;
  u32 line;
};

// What stays on the chip that generates; the rest is booked on the one that read the prompt, if that is another one.
inline bool is_output(u32 number) {
  return number == 0 || number == OUTPUT || number == REASONING || number == NUMBERS - 1;
}

inline void put_key(std::string& key, i64 window, const Text* four) {
  key.clear();
  put(key, static_cast<u64>(window));
  for (u32 i = 0; i < 4; ++i) put(key, four[i]);
}

// A record in the log of a chunk; behind it the numbers that are not 0, the request id and the scope.
struct Logged {
  i64 offset, generation;
  u32 line, row, prefill_row, mask;
};
constexpr u32 NO_ROW = ~u32{0};

class Expected {
 public:
  struct Payload {
    u64 records, numbers[NUMBERS];
    u32 found;  // rows of parts that were taken off, while both sides are compared
    u8 touched, agreed;
  };
  using Rows = Table<Payload>;

  Expected(i64 window_ms, u64 seed) : window_ms_(window_ms), seed_(seed), rows_(seed) {}

  // Records that come now are only logged: later ones may be their duplicates. Their rows are there, without a record.
  bool is_context = false;

  // A record on its way into the table.
  struct Adding {
    Record record;
    Where where;
    std::string key, prefill_key;
    u64 hash, prefill_hash;
    bool has_prefill;
  };

  void begin(Adding& adding) const {
    const Record& record = adding.record;
    i64 window = record.time - record.time % window_ms_;
    Text four[] = {record.texts[USER], record.texts[MODEL], record.texts[CHIP], record.texts[LABELS]};
    put_key(adding.key, window, four);
    adding.hash = rows_.hash(adding.key);
    rows_.fetch_slot(adding.hash);
    adding.has_prefill = record.texts[PREFILL_CHIP].size != ABSENT;
    if (!adding.has_prefill) return;
    four[2] = record.texts[PREFILL_CHIP];
    put_key(adding.prefill_key, window, four);
    adding.prefill_hash = rows_.hash(adding.prefill_key);
    rows_.fetch_slot(adding.prefill_hash);
  }

  void go_on(const Adding& adding) const {
    rows_.fetch_row(adding.hash);
    if (adding.has_prefill) rows_.fetch_row(adding.prefill_hash);
  }

  // What is generated is booked on the chip, and what is read on the chip for that, if it is another one.
  void end(const Adding& adding) {
    const u64* numbers = adding.record.numbers;
    Rows::Row& row = rows_.at(adding.key, adding.hash);
    u32 other = NO_ROW;
    add(row.payload, numbers, [&](u32 i) { return !adding.has_prefill || is_output(i); });
    if (adding.has_prefill) {
      Rows::Row& prefill = rows_.at(adding.prefill_key, adding.prefill_hash);
      add(prefill.payload, numbers, [](u32 i) { return !is_output(i); });
      other = prefill.number;
    }
    log(adding, row.number, other);
  }

  Rows& rows() { return rows_; }
  bool is_full() const { return is_full_; }
  void clear() {
    base_ += static_cast<u32>(rows_.rows().size());
    rows_ = Rows(seed_);
    is_full_ = false;
  }

  // Of the records since `clear_log`.
  std::string logged;
  std::vector<u64> ends, marks;
  u64 count = 0;
  void clear_log() {
    logged.clear();
    ends.clear();
    marks.clear();
    count = 0;
  }

 private:
  template <typename Takes>
  void add(Payload& row, const u64* numbers, Takes takes) {
    if (is_context) return;
    ++row.records;
    for (u32 i = 0; i < NUMBERS; ++i) {
      if (!takes(i)) continue;
      row.numbers[i] += numbers[i];
      is_full_ |= row.numbers[i] >= SUM_END;
    }
  }

  void log(const Adding& adding, u32 row, u32 prefill_row) {
    ++count;
    Text id = adding.record.texts[REQUEST_ID], scope = adding.record.texts[SCOPE];
    if (id.size == ABSENT) return;  // it has no duplicates
    u64 mark = hash_of(id.data, id.size, scope.size ? hash_of(scope.data, scope.size, seed_) : seed_);
    Logged entry{adding.where.offset, adding.where.generation, adding.where.line, base_ + row, prefill_row, 0};
    if (prefill_row != NO_ROW) entry.prefill_row += base_;
    u64 numbers[NUMBERS];
    u32 some = 0;
    for (u32 i = 0; i < NUMBERS; ++i) {
      if (adding.record.numbers[i] == 0) continue;
      numbers[some++] = adding.record.numbers[i];
      entry.mask |= 1u << i;
    }
    logged.append(reinterpret_cast<const char*>(&entry), sizeof entry);
    logged.append(reinterpret_cast<const char*>(numbers), 8 * some);
    put(logged, id);
    put(logged, scope);
    ends.push_back(logged.size());
    marks.push_back(mark);
  }

  i64 window_ms_;
  u64 seed_;
  Rows rows_;
  u32 base_ = 0;
  bool is_full_ = false;
};

struct Published {
  i64 window, offset;
  i32 place;
  Text four[4], part;  // user, model, chip, labels
  u64 numbers[NUMBERS];
  std::string labels;  // room
};

class Found {
 public:
  struct Payload {
    i64 offset;
    u64 numbers[NUMBERS];
    u64 hash;  // of the key without the part
    u32 prefix, part;
    i32 place;
    u8 odd;  // never taken to agree
  };
  using Rows = Table<Payload>;

  explicit Found(u64 seed) : seed_(seed), rows_(seed) {}

  // Of an identity the row of the highest offset counts. Rows of one identity in two partitions have no order: those of
  // the second one are kept apart, every one of them.
  void add(const Published& row) {
    put_key(key_, row.window, row.four);
    u64 hash = rows_.hash(key_);
    u32 prefix = static_cast<u32>(key_.size()), part = number_of(row.part);
    put(key_, u64{part});
    Rows::Row& known = rows_.at(key_, rows_.hash(key_));
    Payload& payload = known.payload;
    bool is_new = payload.prefix == 0;
    if (is_new) {
      payload.prefix = prefix;
      payload.hash = hash;
      payload.part = part;
      payload.place = row.place;
    }
    if (payload.place != row.place) {
      payload.odd = 1;
      strays.push_back({known.number, row.place, row.offset, {}});
      std::memcpy(strays.back().numbers, row.numbers, sizeof row.numbers);
    } else if (is_new || row.offset > payload.offset) {
      payload.offset = row.offset;
      std::memcpy(payload.numbers, row.numbers, sizeof row.numbers);
    }
  }

  struct Stray {
    u32 row;
    i32 place;
    i64 offset;
    u64 numbers[NUMBERS];
  };
  std::vector<Stray> strays;
  std::vector<std::string> parts;
  Rows& rows() { return rows_; }
  void clear() {
    rows_ = Rows(seed_);
    strays.clear();
  }

 private:
  u32 number_of(Text name) {
    std::string text(reinterpret_cast<const char*>(name.data), name.size);
    if (!parts.empty() && parts[last_] == text) return last_;
    auto [at, is_new] = numbers_.emplace(std::move(text), static_cast<u32>(parts.size()));
    if (is_new) parts.push_back(at->first);
    return last_ = at->second;
  }

  u64 seed_;
  Rows rows_;
  std::map<std::string, u32> numbers_;
  u32 last_ = 0;
  std::string key_;
};

// Both tables have the same seed. sums: of each part NUMBERS sums of what agrees, low and high half. Returns how many
// rows of the log agree. Each of them is marked, and so is what was published of it: its `odd` becomes AGREED.
constexpr u8 AGREED = 2;
inline u64 agree(Expected& expected, Found& found, unsigned __int128* sums) {
  std::vector<Expected::Rows::Row*> whose(found.rows().rows().size());
  for (Found::Rows::Row* row : found.rows().rows()) {
    Found::Payload& said = row->payload;
    Expected::Rows::Row* of = expected.rows().find(row->key(), said.prefix, said.hash);
    whose[row->number] = of;
    if (of == nullptr) continue;
    if (++of->payload.found > PARTS_END) of->payload.touched = 1;
    for (u32 i = 0; i < NUMBERS; ++i) {
      of->payload.numbers[i] -= said.numbers[i];
      said.odd |= said.numbers[i] >= FOUND_END;
    }
    of->payload.touched |= said.odd;
  }
  u64 agreed = 0;
  for (Expected::Rows::Row* row : expected.rows().rows()) {
    Expected::Payload& payload = row->payload;
    bool rest = false;
    for (u64 number : payload.numbers) rest |= number != 0;
    payload.agreed = !rest && payload.records != 0 && payload.found != 0 && !payload.touched;
    agreed += payload.agreed;
  }
  for (Found::Rows::Row* row : found.rows().rows()) {
    Expected::Rows::Row* of = whose[row->number];
    if (of == nullptr) continue;
    for (u32 i = 0; i < NUMBERS; ++i) {
      if (of->payload.agreed)
        sums[row->payload.part * NUMBERS + i] += row->payload.numbers[i];
      else
        of->payload.numbers[i] += row->payload.numbers[i];
    }
    if (of->payload.agreed) row->payload.odd = AGREED;
  }
  return agreed;
}

}  // namespace verify
