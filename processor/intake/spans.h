// A span is one line. Its own fields come first under fixed names, then every attribute under its own name, then those
// of its scope and of its resource with `scope.` and `resource.` before their names.
//
//     {"trace_id":"..","span_id":"..","parent_span_id":"..","name":"..","kind":"client","start_time":"..","end_time":"..",
//      "status":"error","status_message":"..", attributes, "scope.name":"..","scope.version":"..", "scope.*",
//      "resource.*", "parent.has_usage":true,"child.has_usage":true}
//
// A member that is not known is left out, and so is an attribute that has the name of a fixed one. One call that two
// instrumentations report, or an agent's span that repeats the sum of its calls, is told by the last two: the parent in
// the same message carries usage; the tokens of this span are those of spans below it in the same message. A span that
// has a response id is a call of its own: it gives way only to a span of the same id, or to one without an id and with
// the same counts. No span gives way to one that lacks a count that it has: an embedding is no chat.
#pragma once
#include <algorithm>
#include "records.h"

namespace tokenometer {

constexpr u32 ANY_VALUE_DEPTH_MAX = 64;  // of arrays and lists in an attribute's value; attributes have one or two
constexpr u32 ANCESTORS_MAX = 64;        // that a span's counts are looked for in; a trace has about ten levels

enum class Row : u8 { SPAN, LOG };

// Log records have other fields of their own: time, observed_time, event_name, severity and body.
HD bool is_fixed_log_name(Text key) {
  return is(key, "time") || is(key, "observed_time") || is(key, "event_name") || is(key, "severity") ||
         is(key, "body") || is(key, "trace_id") || is(key, "span_id") || is(key, "scope.name") ||
         is(key, "scope.version");
}

HD bool is_fixed_name(Text key, Row row) {
  if (row == Row::LOG) return is_fixed_log_name(key);
  switch (key.n) {
    case 4:
      return is(key, "name") || is(key, "kind");
    case 6:
      return is(key, "status");
    case 7:
      return is(key, "span_id");
    case 8:
      return is(key, "trace_id") || is(key, "end_time");
    case 10:
      return is(key, "start_time") || is(key, "scope.name");
    case 13:
      return is(key, "scope.version");
    case 14:
      return is(key, "parent_span_id") || is(key, "status_message");
    case 15:
      return is(key, "child.has_usage");
    case 16:
      return is(key, "parent.has_usage");
    default:
      return false;
  }
}

HD bool is_usage_name(Text key) {
  return begins(key, "gen_ai.usage.") || begins(key, "llm.token_count.") || begins(key, "llm.usage.");
}

HD bool is_input_name(Text key) {
  return is(key, "gen_ai.usage.input_tokens") || is(key, "gen_ai.usage.prompt_tokens") ||
         is(key, "llm.token_count.prompt");
}

HD bool is_output_name(Text key) {
  return is(key, "gen_ai.usage.output_tokens") || is(key, "gen_ai.usage.completion_tokens") ||
         is(key, "llm.token_count.completion");
}

struct SpanIds {
  Text trace, span, parent;  // they stay where they are until the message ends
  bool usage = false;
};

HD int compare(Text a, Text b) {
  const int order = a.n && b.n ? memcmp(a.p, b.p, a.n < b.n ? a.n : b.n) : 0;
  return order ? order : a.n < b.n ? -1 : a.n > b.n;
}

class SpanLines {
 public:
  SpanLines(Out& out, u64 limit) : out_(out), limit_(limit) {}

  void begin_message() {
    begin_ = out_.size;
    marks_.clear();
    usages_ = 0;
  }

  // Room for one line of up to `more` bytes; throws TooLarge where the message has grown too much.
  u8* begin_line(u64 more) {
    if (out_.size - begin_ > limit_) throw TooLarge();
    u8* p = out_.room(more + 16);
    *p = '{';
    return p + 1;
  }

  // The line ends at p; its last comma, if there is one, gives way.
  void end_line(u8* p, const SpanIds& ids) {
    if (p[-1] == ',') --p;
    *p++ = '}';
    *p++ = '\n';
    out_.size = (u64)(p - out_.data);
    marks_.push_back({ids, out_.size, 0});
    usages_ += ids.usage;
  }

  void bad_line() {
    out_.put(text(BAD_LINE));
    marks_.push_back({{}, out_.size, 0});
  }

  // For decoders that find out late that they must start again.
  struct Place {
    u64 size, lines, usages;
  };
  Place here() const { return {out_.size, marks_.size(), usages_}; }
  void back_to(const Place& place) {
    out_.size = place.size;
    marks_.resize(place.lines);
    usages_ = place.usages;
  }

  void end_message() {
    if (usages_) relate();
    if (out_.size == begin_) out_.put((u8)'\n');
    if (out_.size - begin_ > limit_) throw TooLarge();
  }

  u64 begin() const { return begin_; }
  Out& out() { return out_; }

 private:
  enum : u8 { PARENT = 1, CHILD = 2 };
  struct Mark {
    SpanIds ids;
    u64 end;
    u8 relations;
  };

  void relate() {
    sorted_.clear();
    for (u32 i = 0; i < marks_.size(); ++i)
      if (marks_[i].ids.span.n) sorted_.push_back({key_of(marks_[i].ids.span), i});
    std::sort(sorted_.begin(), sorted_.end(), [this](const Entry& a, const Entry& b) {
      if (LIKELY(a.key != b.key)) return a.key < b.key;
      const int order = compare_ids(a.index, marks_[b.index].ids.trace, marks_[b.index].ids.span);
      return order ? order < 0 : a.index < b.index;
    });
    parents_.clear();
    for (u32 i = 0; i < marks_.size(); ++i) parents_.push_back(parent_of(i));
    calls_.assign(marks_.size(), {});
    bool any = false;
    for (u32 i = 0; i < marks_.size(); ++i) {
      if (parents_[i] == NONE) continue;
      if (marks_[parents_[i]].ids.usage) marks_[i].relations |= PARENT, any = true;
      if (!marks_[i].ids.usage || !call(i).counts) continue;
      u32 above = parents_[i];
      for (u32 level = 0; level < ANCESTORS_MAX && above != NONE && above != i; ++level, above = parents_[above])
        if (repeats(above, i)) marks_[above].relations |= CHILD, any = true;
    }
    if (any) write_relations();
  }

  enum : u8 { INPUT = 1, OUTPUT = 2 };
  static constexpr u64 NO_INTEGER = ~0ull;
  struct Call {
    bool read = false;
    u8 counts = 0;  // which of the two there are
    u64 input = 0, output = 0;
    Text id;  // the provider's, with its escapes
  };

  // Are the tokens of span `above` those of the span below it?
  bool repeats(u32 above, u32 below) {
    if (!marks_[above].ids.usage) return true;
    const Call &one = call(above), &other = call(below);
    if (one.counts & ~other.counts) return false;
    if (!one.id.n) return true;
    if (other.id.n) return same_string(one.id, other.id);
    return one.counts == other.counts && one.input == other.input && one.output == other.output &&
           one.input != NO_INTEGER && one.output != NO_INTEGER;
  }

  static bool same_string(Text a, Text b) {
    std::string one, other;
    return same(plain_key(a, one), plain_key(b, other));
  }

  // What the span's line says of its call: of two members of one name the last. A line that is no JSON says nothing.
  const Call& call(u32 i) {
    Call& found = calls_[i];
    if (found.read) return found;
    Call said;
    const u8* end = members(out_.data + (i ? marks_[i - 1].end : begin_), [&](Text key, const u8* value) {
      const u8* after = json_end(value);
      if (!after) return after;
      if (is_input_name(key)) take(value, after, INPUT, said.counts, said.input);
      if (is_output_name(key)) take(value, after, OUTPUT, said.counts, said.output);
      if (is(key, "gen_ai.response.id")) said.id = *value == '"' ? Text{value + 1, (u64)(after - value - 2)} : Text{};
      return after;
    });
    if (end) found = said;
    found.read = true;
    return found;
  }

  // A count is a number or a string; an integer of up to 18 digits can be compared.
  static void take(const u8* value, const u8* after, u8 which, u8& counts, u64& number) {
    if (*value != '"' && *value != '-' && !is_digit(*value)) return;
    counts |= which;
    const bool quoted = *value == '"';
    std::string kept;
    const Text digits = plain_key({value + quoted, (u64)(after - value) - 2 * quoted}, kept);
    number = digits.n && digits.n <= 18 ? 0 : NO_INTEGER;
    if (!quoted && is(digits, "-0")) return;
    for (u64 i = 0; i < digits.n && number != NO_INTEGER; ++i)
      number = is_digit(digits.p[i]) ? number * 10 + (digits.p[i] - '0') : NO_INTEGER;
  }

  static constexpr u32 NONE = ~0u;
  struct Entry {
    u64 key;
    u32 index;
  };
  // The first eight bytes, which are all that most ids have; ids of one key are compared in full.
  static u64 key_of(Text id) {
    u64 key = 0;
    if (id.n) memcpy(&key, id.p, id.n < 8 ? id.n : 8);
    return key;
  }
  int compare_ids(u32 i, Text trace, Text span) const {
    const int order = compare(marks_[i].ids.span, span);
    return order ? order : compare(marks_[i].ids.trace, trace);
  }
  // The first span of the message that has the id; never the span itself.
  u32 parent_of(u32 i) const {
    const SpanIds& ids = marks_[i].ids;
    if (!ids.parent.n || same(ids.parent, ids.span)) return NONE;
    const u64 key = key_of(ids.parent);
    const auto found = std::lower_bound(sorted_.begin(), sorted_.end(), key, [&](const Entry& a, u64) {
      return a.key != key ? a.key < key : compare_ids(a.index, ids.trace, ids.parent) < 0;
    });
    if (found == sorted_.end() || found->key != key) return NONE;
    return compare_ids(found->index, ids.trace, ids.parent) ? NONE : found->index;
  }

  // From the last line to the first, each moves to where it will be.
  void write_relations() {
    static const Text texts[] = {text(""), text(",\"parent.has_usage\":true"), text(",\"child.has_usage\":true"),
                                 text(",\"parent.has_usage\":true,\"child.has_usage\":true")};
    u64 added = 0;
    for (const Mark& mark : marks_) added += texts[mark.relations].n;
    out_.room(added);
    u64 end = out_.size;
    out_.size += added;
    for (u64 i = marks_.size(); added; --i) {
      const Mark& mark = marks_[i - 1];
      const u64 start = i > 1 ? marks_[i - 2].end : begin_;
      u8* to = out_.data + end + added;
      if (mark.relations) {
        const Text t = texts[mark.relations];
        added -= t.n;
        to = write(to - 2, "}\n") - 2 - t.n;
        memcpy(to, t.p, t.n);
        memmove(out_.data + start + added, out_.data + start, end - 2 - start);
      } else {
        memmove(out_.data + start + added, out_.data + start, end - start);
      }
      end = start;
    }
  }

  Out& out_;
  u64 limit_, begin_ = 0, usages_ = 0;
  std::vector<Mark> marks_;
  std::vector<Entry> sorted_;
  std::vector<u32> parents_;  // of each mark
  std::vector<Call> calls_;   // of each mark, where it was asked for
};

}  // namespace tokenometer
