// What the log says and what was published, row by row; and which rows say the same on both sides.
//
//   Expected   by window, user, model, chip, labels: the sums over the log's records, duplicates included
//   Found      by the same and the part: the last row that was published
//   agree      rows of the log whose parts' rows add up to it: only the others have to be looked at again
#pragma once

#include <map>

#include "records.h"

namespace verify {

// A sum below this cannot wrap when a chunk of records is added, nor when so many parts are.
constexpr u64 SUM_END = u64{1} << 62;
constexpr u64 FOUND_END = u64{1} << 48;
constexpr u64 PARTS_END = 1 << 13;

// A bit of each number that stays on the chip that generates; the rest is booked on the one that read the prompt, if
// that is another one.
constexpr u32 OUTPUTS = 1u | 1u << OUTPUT | 1u << REASONING | 1u << (NUMBERS - 1);
constexpr u32 NO_ROW = ~u32{0};

class Expected {
 public:
  struct Payload {
    u64 records, numbers[NUMBERS];
    u32 found;  // rows of parts that were taken off, while both sides are compared
    u8 touched, agreed;
  };
  using Rows = Table<Payload>;

  // is_context: the records' rows are there, without a record; later ones may be their duplicates. Of each record in
  // the log its row, and that of the other chip.
  void add(const Records& records, bool is_context, u32* rows_of_log) {
    const Records::Add *slot = records.begin(), *row = slot, *add = slot, *end = records.end();
    for (u64 i = 0; add != end; ++i) {
      if (slot != end) {
        rows_.fetch_slot(slot->hash);
        if (slot->prefill_key_size) rows_.fetch_slot(slot->prefill_hash);
        slot = slot->next();
      }
      if (i >= GO_ON && row != end) {
        rows_.fetch_row(row->hash);
        if (row->prefill_key_size) rows_.fetch_row(row->prefill_hash);
        row = row->next();
      }
      if (i < END) continue;
      rows_of_log = add_one(*add, is_context, rows_of_log);
      add = add->next();
    }
  }

  Rows& rows() { return rows_; }
  bool is_full() const { return is_full_; }
  void clear() {
    base_ += static_cast<u32>(rows_.rows().size());
    rows_ = Rows();
    is_full_ = false;
  }

 private:
  static constexpr u64 GO_ON = 6, END = 12;  // so many records later a slot, and then a row, are there

  // What is generated is booked on the chip, and what is read on the chip for that, if it is another one.
  u32* add_one(const Records::Add& add, bool is_context, u32* rows_of_log) {
    const u8* key = add.key();
    Rows::Row& row = rows_.at(key, add.key_size, add.hash);
    u32 other = NO_ROW;
    if (add.prefill_key_size == 0) {
      if (!is_context) book(row.payload, add, ~u32{0});
    } else {
      Rows::Row& prefill = rows_.at(key + add.key_size, add.prefill_key_size, add.prefill_hash);
      other = base_ + prefill.number;
      if (!is_context) {
        book(row.payload, add, OUTPUTS);
        book(prefill.payload, add, ~OUTPUTS);
      }
    }
    if (!add.is_logged) return rows_of_log;
    *rows_of_log++ = base_ + row.number;
    *rows_of_log++ = other;
    return rows_of_log;
  }

  // which: of the numbers.
  void book(Payload& row, const Records::Add& add, u32 which) {
    ++row.records;
    const u64* number = add.numbers();
    for (u32 mask = add.mask; mask != 0; mask &= mask - 1, ++number) {
      u32 i = static_cast<u32>(__builtin_ctz(mask));
      if (!(which >> i & 1)) continue;
      row.numbers[i] += *number;
      is_full_ |= row.numbers[i] >= SUM_END;
    }
  }

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

  explicit Found(u64 seed) : seed_(seed) {}

  // Of an identity the row of the highest offset counts. Rows of one identity in two partitions have no order: those of
  // the second one are kept apart, every one of them.
  void add(const Published& row) {
    u32 part = number_of(row.part);
    u8 *key = key_.room(key_size(row.four) + sizeof part), *end = put_key(key, row.window, row.four);
    u32 prefix = static_cast<u32>(end - key);
    u64 hash = hash_of(key, prefix, seed_), size = prefix + sizeof part;
    std::memcpy(end, &part, sizeof part);
    Rows::Row& known = rows_.at(key, size, hash_of(key, size, seed_));
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
    rows_ = Rows();
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
  Bytes key_;
};

// Keys of both have hashes of one seed. sums: of each part NUMBERS sums of what agrees, low and high half. Returns how
// many rows of the log agree. Each of them is marked, and so is what was published of it: its `odd` becomes AGREED.
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
