// Templates and plans: what one line said, proved of the lines that differ from it in values only.
//
//   {"user":"ada","input_tokens":17,"status":200}     a line, and its template:
//   {"user":"   ","input_tokens":  ,"status":   }     fixed texts, and a text, a number and a scalar between them
//
// A plan says what a record is made of: which values are added up, which are its texts, what must be within which
// bounds. Python makes it (quick.py) as a list of numbers, and offsets into a text of literals.
#pragma once

#include <string>
#include <vector>

#include "table.h"

namespace verify {

constexpr u32 NUMBERS = 11;  // requests, five counters, five further ones; the order of values.py
constexpr u32 COUNTS = 5;
constexpr u32 TEXTS = 7;
enum : u32 { REQUEST_ID, SCOPE, USER, MODEL, CHIP, PREFILL_CHIP, LABELS };
enum : u32 { INPUT = 1, CACHED, WRITTEN, OUTPUT, REASONING, FURTHER };
constexpr u32 PARENTS[COUNTS] = {WRITTEN, INPUT, INPUT, CACHED, OUTPUT};  // of the further counters
constexpr u64 COUNT_END = u64{1} << 40;
constexpr i64 TIME_END = 253402300800000;  // 10000-01-01
constexpr i64 SURELY_INT64 = i64{1} << 62;

// The numbers that Python wrote, one after another.
class Program {
 public:
  Program(const i64* numbers, const u8* literals) : at_(numbers), literals_(literals) {}
  i64 next() { return *at_++; }
  std::string literal() {
    i64 begin = next(), size = next();
    return std::string(reinterpret_cast<const char*>(literals_) + begin, static_cast<u64>(size));
  }

 private:
  const i64* at_;
  const u8* literals_;
};

// A NAME may have escapes, if what it says needs none; ANY_TEXT is a text that nobody reads.
enum Kind : u32 { TEXT, INTEGER, SCALAR, NAME, ANY_TEXT };

struct Value {
  Text text;
  u64 number;    // of an INTEGER
  bool escaped;  // of a NAME: the text is not what it says
};

// least, most: the bytes of what a value says that is read as a text.
struct Slot {
  Kind kind;
  u64 least, most;

  bool operator==(const Slot& other) const { return kind == other.kind && least == other.least && most == other.most; }
};

struct Template {
  std::vector<Slot> slots;
  std::vector<std::string> fixed;  // one more than there are slots

  explicit Template(Program& program) {
    slots.resize(static_cast<u64>(program.next()));
    for (Slot& slot : slots) {
      slot.kind = static_cast<Kind>(program.next());
      slot.least = static_cast<u64>(program.next());
      slot.most = static_cast<u64>(program.next());
    }
    for (u64 i = 0; i <= slots.size(); ++i) fixed.push_back(program.literal());
  }

  // Whether a line is this template with values of the right kinds, all of it. values: room for one of each slot.
  // known: how many of them are there already, found by a template that begins alike; in the end how many are there.
  bool match(Text line, Value* values, u64* known) const {
    const u8 *at = line.data, *end = at + line.size;
    if (*known) at = values[*known - 1].text.data + values[*known - 1].text.size;
    for (u64& i = *known; i < slots.size(); ++i) {
      const std::string& text = fixed[i];
      if (static_cast<u64>(end - at) < text.size() || !same(at, bytes_of(text), text.size())) return false;
      at += text.size();
      u64 size = 0;
      const u8* after = value_end(slots[i], at, end, values[i], &size);
      if (after == nullptr || size < slots[i].least || size > slots[i].most) return false;
      values[i].text = {at, static_cast<u64>(after - at)};
      at = after;
    }
    return static_cast<u64>(end - at) == fixed.back().size() && same(at, bytes_of(fixed.back()), fixed.back().size());
  }

  bool match(Text line, Value* values) const {
    u64 known = 0;
    return match(line, values, &known);
  }

  // Of how many values, from the first one on, both say the same.
  u64 alike(const Template& other) const {
    u64 count = 0;
    while (count < slots.size() && count < other.slots.size() && slots[count] == other.slots[count] &&
           fixed[count] == other.fixed[count]) {
      ++count;
    }
    return count;
  }

  static const u8* bytes_of(const std::string& text) { return reinterpret_cast<const u8*>(text.data()); }

 private:
  // size: of what the value says.
  static const u8* value_end(const Slot& slot, const u8* at, const u8* end, Value& value, u64* size) {
    const u8* after = nullptr;
    value.escaped = false;
    switch (slot.kind) {
      case INTEGER:
        after = integer_end(at, end, &value.number);
        break;
      case SCALAR:
        after = scalar_end(at, end);
        break;
      case TEXT:
      case NAME:
      case ANY_TEXT:
        after = text_end(at, end);
        if (after == nullptr && slot.kind != TEXT) return escaped_end(slot, at, end, value, size);
    }
    if (after != nullptr) *size = static_cast<u64>(after - at);
    return after;
  }

  __attribute__((noinline, cold)) static const u8* escaped_end(const Slot& slot, const u8* at, const u8* end,
                                                               Value& value, u64* size) {
    bool plain;
    const u8* after = escaped_text_end(at, end, size, &plain);
    value.escaped = true;
    return slot.kind == NAME && !plain ? nullptr : after;
  }
};

// --- What is made of values ---

struct Sum {
  bool is_there;
  u64 constant;
  std::vector<u32> slots;

  explicit Sum(Program& program) : is_there(program.next() != 0), constant(static_cast<u64>(program.next())) {
    slots.resize(static_cast<u64>(program.next()));
    for (u32& slot : slots) slot = static_cast<u32>(program.next());
  }

  // Whether each count and their sum are within bounds.
  bool add_up(const Value* values, u64* sum) const {
    u64 found = constant;
    for (u32 slot : slots) {
      if (values[slot].number >= COUNT_END) return false;
      found += values[slot].number;
    }
    *sum = found;
    return found < COUNT_END;
  }
};

// A part of a text: a literal, a value, or the name of the range in which a counter is.
struct Piece {
  enum : i64 { LITERAL, SLOT, BRACKET } kind;
  std::string literal;
  u32 slot = 0, counter = 0;
  std::vector<u64> edges;
  std::vector<std::string> names;  // one more than there are edges

  explicit Piece(Program& program) {
    i64 number = program.next();
    kind = number == LITERAL ? LITERAL : number == SLOT ? SLOT : BRACKET;
    if (kind == LITERAL) literal = program.literal();
    if (kind == SLOT) slot = static_cast<u32>(program.next());
    if (kind != BRACKET) return;
    counter = static_cast<u32>(program.next());
    edges.resize(static_cast<u64>(program.next()));
    for (u64& edge : edges) edge = static_cast<u64>(program.next());
    for (u64 i = 0; i <= edges.size(); ++i) names.push_back(program.literal());
  }

  // As the line has it: an escaped value is not what it says.
  Text text(const Value* values, const u64* numbers) const {
    if (kind == SLOT) return values[slot].text;
    if (kind == LITERAL) return {Template::bytes_of(literal), literal.size()};
    u64 range = 0;
    while (range < edges.size() && edges[range] < numbers[counter]) ++range;
    return {Template::bytes_of(names[range]), names[range].size()};
  }
};

// A text of pieces.
struct Source {
  bool is_there;
  std::vector<Piece> pieces;

  explicit Source(Program& program) {
    i64 count = program.next();
    is_there = count >= 0;
    for (i64 i = 0; i < count; ++i) pieces.emplace_back(program);
  }

  // joined: room for a text of several pieces.
  Text text(const Value* values, const u64* numbers, std::string& joined) const {
    if (!is_there) return {nullptr, ABSENT};
    if (pieces.size() == 1 && !is_escaped(pieces[0], values)) return pieces[0].text(values, numbers);
    joined.clear();
    for (const Piece& piece : pieces) {
      Text text = piece.text(values, numbers);
      if (is_escaped(piece, values))
        append_said(text, joined);
      else
        joined.append(reinterpret_cast<const char*>(text.data), text.size);
    }
    return {Template::bytes_of(joined), joined.size()};
  }

 private:
  static bool is_escaped(const Piece& piece, const Value* values) {
    return piece.kind == Piece::SLOT && values[piece.slot].escaped;
  }
};

struct Bounds {
  i64 future_skew, past, not_before;  // past below 0: no bound
};

struct Record {
  i64 time;
  u64 numbers[NUMBERS];
  Text texts[TEXTS];
  std::string joined[TEXTS];
};

enum Verdict : u8 { LEFT, COUNTED, SKIPPED };

class Plan {
 public:
  explicit Plan(Program& program) : template_(program), skipped_(program.next() != 0) {
    if (skipped_) return;
    time_ = static_cast<Time>(program.next());
    time_slot_ = static_cast<u32>(program.next());
    multiply_ = program.next();
    divide_ = program.next();
    requests_ = static_cast<u64>(program.next());
    for (u32 i = 0; i < 2 * COUNTS + 1; ++i) sums_.emplace_back(program);
    combinations_.resize(static_cast<u64>(program.next()));
    for (Beside& beside : combinations_) {
      beside.cached = program.next() != 0;
      beside.written = program.next() != 0;
      beside.reasoning = program.next() != 0;
    }
    for (u32 i = 0; i < TEXTS; ++i) sources_.emplace_back(program);
  }

  u64 slot_count() const { return template_.slots.size(); }

  u64 alike(const Plan& other) const { return template_.alike(other.template_); }

  // LEFT: it is not surely this plan's, or not surely within all bounds. values: room for `slot_count`; known: as in
  // `match`.
  Verdict judge(Text line, i64 message_time, const Bounds& bounds, Value* values, u64* known, Record& record) const {
    if (!template_.match(line, values, known)) return LEFT;
    if (skipped_) return SKIPPED;
    if (!read_time_of(values, message_time, bounds, &record.time) || !read_numbers(values, record.numbers)) return LEFT;
    for (u32 i = 0; i < TEXTS; ++i) { record.texts[i] = sources_[i].text(values, record.numbers, record.joined[i]); }
    return COUNTED;
  }

 private:
  enum class Time : i64 { MESSAGE, CALENDAR, EPOCH };
  struct Beside {
    bool cached, written, reasoning;
  };

  bool read_time_of(const Value* values, i64 message_time, const Bounds& bounds, i64* time) const {
    i64 found = message_time;
    if (time_ == Time::CALENDAR && !read_time(values[time_slot_].text, &found)) return false;
    if (time_ == Time::EPOCH) {
      found = static_cast<i64>(values[time_slot_].number);  // below 10^16
      if (found >= SURELY_INT64 / multiply_) return false;
      found = found * multiply_ / divide_;
    }
    *time = found;
    if (found < 0 || found < bounds.not_before || found >= TIME_END) return false;
    if (found - message_time > bounds.future_skew) return false;
    return bounds.past < 0 || message_time - found <= bounds.past;
  }

  bool read_numbers(const Value* values, u64* numbers) const {
    numbers[0] = requests_;
    u64 total = 0;
    for (u32 i = 0; i < 2 * COUNTS; ++i) {
      if (!sums_[i].add_up(values, &numbers[1 + i])) return false;
    }
    if (!sums_.back().add_up(values, &total) || !put_inside(numbers, total)) return false;
    for (u32 i = 0; i < COUNTS; ++i) {
      if (numbers[FURTHER + i] > numbers[PARENTS[i]]) return false;
    }
    return true;
  }

  // Parts go inside their totals, as the first combination says that fits.
  bool put_inside(u64* numbers, u64 total) const {
    u64 cached = numbers[CACHED], written = numbers[WRITTEN], reasoning = numbers[REASONING];
    for (const Beside& beside : combinations_) {
      u64 input = numbers[INPUT] + (beside.cached ? cached : 0) + (beside.written ? written : 0);
      u64 output = numbers[OUTPUT] + (beside.reasoning ? reasoning : 0);
      if (cached + written > input || reasoning > output) continue;
      if (sums_.back().is_there && total != input + output) continue;
      numbers[INPUT] = input;
      numbers[OUTPUT] = output;
      return true;
    }
    return false;
  }

  Template template_;
  bool skipped_;
  Time time_ = Time::MESSAGE;
  u32 time_slot_ = 0;
  i64 multiply_ = 1, divide_ = 1;
  u64 requests_ = 0;
  std::vector<Sum> sums_;  // counters, further ones, the total
  std::vector<Beside> combinations_;
  std::vector<Source> sources_;
};

}  // namespace verify
