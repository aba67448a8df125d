// Rows of `token-usage`: each message is a row whose key says the same as its value.
#pragma once

#include "sums.h"

namespace verify {

// A shape of rows. Slots of the value come first, then those of the key.
class RowPlan {
 public:
  explicit RowPlan(Program& program) : value_(program), key_(program) {
    window_ = static_cast<u32>(program.next());
    for (u32& slot : texts_) slot = static_cast<u32>(program.next());
    for (i64& slot : numbers_) slot = program.next();
    total_ = static_cast<u32>(program.next());
    same_.resize(static_cast<u64>(program.next()));
    for (auto& [some, other] : same_) {
      some = static_cast<u32>(program.next());
      other = static_cast<u32>(program.next());
    }
    labels_.emplace_back(program);
  }

  u64 slot_count() const { return value_.slots.size() + key_.slots.size(); }

  // Whether it is surely a row. values: room for `slot_count`.
  bool read(Text key, Text value, i64 window_ms, Value* values, Published& row) const {
    if (!value_.match(value, values) || !key_.match(key, values + value_.slots.size())) return false;
    for (auto [some, other] : same_) {
      Text a = values[some].text, b = values[other].text;
      if (a.size != b.size || std::memcmp(a.data, b.data, a.size) != 0) return false;
    }
    // Stricter than RFC 3339.
    Text window = values[window_].text;
    if (window.size != 20 || window.data[10] != 'T' || window.data[19] != 'Z') return false;
    if (!read_time(window, &row.window) || row.window < 0 || row.window % window_ms != 0) return false;
    for (u32 i = 0; i < NUMBERS; ++i) row.numbers[i] = numbers_[i] < 0 ? 0 : values[numbers_[i]].number;
    for (u32 i = FURTHER; i < NUMBERS; ++i) {
      if (numbers_[i] >= 0 && row.numbers[i] == 0) return false;
    }
    if (values[total_].number != row.numbers[INPUT] + row.numbers[OUTPUT]) return false;
    for (u32 i = 0; i < 3; ++i) row.four[i] = values[texts_[i]].text;
    row.four[3] = labels_[0].text(values, row.numbers, row.labels);
    row.part = values[texts_[3]].text;
    return true;
  }

 private:
  Template value_, key_;
  u32 window_, total_;
  u32 texts_[4];          // user, model, chip, part
  i64 numbers_[NUMBERS];  // below 0: the row has none
  std::vector<std::pair<u32, u32>> same_;
  std::vector<Source> labels_;  // one
};

}  // namespace verify
