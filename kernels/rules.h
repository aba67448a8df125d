// What format 2 says beyond one key, one field: values that several fields read, alternatives that may be empty, sums,
// numbers that are strings and the other way, records to be skipped, conventions that a record tells.
//
// While the parser goes through a record it only spots where such values begin. They are read here, after the record's
// end, so a mapping without them pays for one look at its plan. As everywhere: what is not certain is doubt.
#pragma once
#include "layout.h"
#include "scan.h"
#include "hash.h"
#include "times.h"

namespace tokenometer {

// What is known of one record on the way; copied when it leaves the predicted path, so that on it all stays in
// registers. Values go straight to `record`.
struct Reader {
  const Plan* plan;
  const u8* buffer;
  Record* record;
  u32 begin;    // of the record, in the buffer
  const u8* p;  // after the last value; null for doubt
  u64 seen;     // marks: mapped keys, of which none may occur twice, and fields that have a value
  u64 time_ms;
  u32 key;  // of the last value: NONE before the first, END after the record
  u32 choice;
};

// --- Spots: where values begin, counted from 1 at the record's start; 0 where the key did not come. Three share a
// word. The first words are those of the record's hashes, which come last; few mappings need the others, which lie in a
// table of their own, so that a record keeps to three cache lines. ---

constexpr u32 SPOTS_IN_HASHES = 3 * 2 * HASHES;
static_assert(SPOT_WORDS == 2 * HASHES, "as many words beside them");
constexpr u32 SPOT_MASK = (1u << SPOT_BITS) - 1;

HD u64* spots_of(const Job& job, const Record& record) { return job.spots + (&record - job.records) * SPOT_WORDS; }

HD void clear_spots(const Job& job, Record& record) {
  for (u32 i = 0; i < HASHES; ++i) record.low[i] = record.high[i] = 0;
  if (job.plan->spot_count <= SPOTS_IN_HASHES) return;
  u64* spots = spots_of(job, record);
  for (u32 i = 0; i < SPOT_WORDS; ++i) spots[i] = 0;
}
HD u64& spot_word(const Job& job, const Reader& reader, u32 spot) {
  Record& record = *reader.record;
  const u32 word = spot % SPOT_WORDS;
  if (spot >= SPOTS_IN_HASHES) return spots_of(job, record)[word];
  return word < HASHES ? record.low[word] : record.high[word - HASHES];
}
HD u32 spot_shift(u32 spot) {
  return SPOT_BITS * ((spot < SPOTS_IN_HASHES ? spot : spot - SPOTS_IN_HASHES) / SPOT_WORDS);
}
// False where the key has come before.
HD bool keep_spot(const Job& job, const Reader& reader, u32 spot, const u8* p) {
  u64& word = spot_word(job, reader, spot);
  const u32 shift = spot_shift(spot);
  const bool first = !(word >> shift & SPOT_MASK);
  word |= (u64)(p - reader.buffer - reader.begin + 1) << shift;
  return first;
}
// The value's first byte; null where the key did not come.
HD const u8* spot_start(const Job& job, const Reader& reader, u32 spot) {
  const u32 at = (u32)(spot_word(job, reader, spot) >> spot_shift(spot)) & SPOT_MASK;
  return at ? reader.buffer + reader.begin + at - 1 : nullptr;
}
HD const u8* spot_value(const Job& job, const Reader& reader, u32 spot) {  // null also for JSON's null
  const u8* p = spot_start(job, reader, spot);
  return p && !is_null(p) ? p : nullptr;
}
// The first alternative that has a value, or null
HD const u8* first_value(const Job& job, const Reader& reader, const Rule& rule) {
  ROLLED for (u32 i = 0; i < rule.paths; ++i) {
    const u8* p = spot_value(job, reader, rule.spots[i]);
    if (p && !(rule.flags & EMPTY_IS_ABSENT && p[0] == '"' && p[1] == '"')) return p;
  }
  return nullptr;
}

// --- Values ---

HD Extra* extra_of(const Job& job, const Reader& reader) { return &job.extras[reader.record - job.records]; }
HD u64* count_place(Record& record, u32 slot) { return (u64*)((u8*)&record + OFFSET_OF(Record, counters)) + slot; }

HD const u8* read_count(const u8* p, u64* count) {
  p = read_digits(p, count);
  return p && *count < COUNT_MAX ? p : nullptr;
}

HD u32 find_choice(const Plan& plan, const u8* text, u32 length) {
  ROLLED for (u32 i = 0; i < plan.choice_count; ++i) {
    const Choice& choice = plan.choices[i];
    if (choice.length == length && same_bytes(text, (const u8*)choice.text, length)) return i;
  }
  return NONE;
}

HD bool is_long_id(const Plan& plan, u32 slot, u32 length) {
  return plan.long_ids && (slot == REQUEST_ID || slot == SCOPE) && length <= ID_BYTES_MAX;
}

// After the digits of a deferred number, whose grammar is known: does it go on?
HD bool goes_on(const u8* p) { return *p == '.' || (*p | 0x20) == 'e'; }

// A number with a fraction or an exponent that is exactly a whole count: its double is that count.
HD bool read_whole(const u8* p, u64* count) {
  u64 value = 0;
  i32 exponent = 0;
  ROLLED for (; is_digit(*p); ++p) {
    value = value * 10 + (*p - '0');
    if (value >= COUNT_MAX) return false;
  }
  if (*p == '.') {
    ROLLED for (++p; is_digit(*p); ++p, --exponent) {
      if (value >= 100000000000000000ull) return false;
      value = value * 10 + (*p - '0');
    }
  }
  if ((*p | 0x20) == 'e') {
    const bool negative = p[1] == '-';
    i32 stated = 0;
    ROLLED for (p += p[1] == '-' || p[1] == '+' ? 2 : 1; is_digit(*p); ++p) stated = stated * 10 + (*p - '0');
    exponent += negative ? -stated : stated;
  }
  ROLLED for (; exponent > 0; --exponent) {
    if (value >= COUNT_MAX) return false;
    value *= 10;
  }
  ROLLED for (; exponent < 0; ++exponent) {
    if (value % 10) return false;
    value /= 10;
  }
  *count = value;
  return value < COUNT_MAX;
}

HD bool read_deferred_count(const u8* p, u32 flags, u64* count) {
  if (*p == '"') {
    const u8* after = flags & DIGITS ? read_count(p + 1, count) : nullptr;
    return after && *after == '"';
  }
  const u8* after = read_count(p, count);
  if (after && !goes_on(after)) return true;
  return after && flags & WHOLE_NUMBERS && read_whole(p, count);
}

// A count with its addends. False is doubt; *has says whether there is one.
HD bool read_sum(const Job& job, const Reader& reader, const Rule& rule, u64* count, bool* has) {
  const u8* p = first_value(job, reader, rule);
  *has = p || rule.flags & OPTIONAL;
  if (!*has && rule.flags & REQUIRED) return false;
  *count = 0;
  if (p && !read_deferred_count(p, rule.flags, count)) return false;
  if (!p && rule.flags & OPTIONAL) *count = reader.plan->default_count[rule.slot];
  ROLLED for (u32 i = rule.paths; i < rule.paths + rule.plus; ++i) {
    u64 addend;
    p = spot_value(job, reader, rule.spots[i]);
    if (!p) continue;
    if (!read_deferred_count(p, rule.flags, &addend)) return false;
    *count += addend;
  }
  return *count < COUNT_MAX;
}

// A string, or an integer as its text, that an id or a name may be. Its length, or 0 for doubt; *start is set to it.
HD u32 read_deferred_text(const Reader& reader, const Rule& rule, const u8* p, u32* start) {
  const u8* end;
  if (*p == '"') {
    end = string_end(++p, false);
    if (!end) return 0;
  } else {
    u64 number;
    end = rule.flags & NUMBERS ? read_digits(p, &number) : nullptr;
    if (!end || goes_on(end)) return 0;
  }
  const u32 length = (u32)(end - p);
  const bool id = rule.kind == TEXT && length && is_long_id(*reader.plan, rule.slot, length);
  if (length - 1 >= TEXT_BYTES_MAX && !id) return 0;
  *start = (u32)(p - reader.buffer);
  return length;
}

// --- Comparisons ---

// May c follow a string's content, or a number or a literal? None of these is the beginning of another then.
HD bool ends_value(u8 c, bool quoted) { return quoted ? c == '"' : c == ',' || c == '}' || is_space(c); }

enum Answer : u32 { NO = 0, YES = 1, UNSURE = 2 };
constexpr u32 UNSURE_VALUE = NONE - 1;

// Which of these values is the string, integer or boolean at p? NONE, or UNSURE_VALUE for doubt, as an escape is. A
// value's text has no byte that JSON would escape, so bytes that are the same are the same string. Of several the last
// counts: a whole value, or the longest beginning.
HD u32 find_value(const Plan& plan, const u8* p, u32 first, u32 count) {
  const bool quoted = *p == '"';
  p += quoted;
  u32 found = NONE;
  ROLLED for (u32 i = first; i < first + count; ++i) {  // to the end: which one it is cannot be predicted
    const Value& value = plan.values[i];
    const bool ends = (value.quoted == quoted) & (value.begins | ends_value(p[value.length], quoted));
    found = ends & same_bytes(p, (const u8*)value.text, value.length) ? i : found;
  }
  if (found != NONE) return found;
  if (quoted) return string_end(p, false) ? NONE : UNSURE_VALUE;
  if (!is_digit(*p) && *p != '-') return NONE;
  const u8* end = after_digits(p + 1);
  return goes_on(end) || end - p > 18 || (p[0] == '-' && p[1] == '0') ? UNSURE_VALUE : NONE;
}

HD Answer fits(const Job& job, const Reader& reader, const Condition& condition) {
  const u8* p = spot_start(job, reader, condition.spot);
  // An object on the way leaves no spot. A key above the marks is none.
  const bool present = p ? !is_null(p) : (reader.seen & KEY_MARKS) >> condition.key & 1;
  if (!present) return condition.fits_absent ? YES : NO;
  if (condition.test >= PRESENT) return condition.test == PRESENT ? YES : NO;
  if (*p == '{' || *p == '[') return UNSURE;
  const u32 found = find_value(*reader.plan, p, condition.first, condition.count);
  if (found == UNSURE_VALUE) return UNSURE;
  return (found != NONE) == (condition.test == IN) ? YES : NO;
}

// Does an entry of the mapping's `skip` fit? Every condition is looked at, for a value of a wrong type is refused. What
// only an entry of `refuse` fits is doubt.
HD Answer is_skipped(const Job& job, const Reader& reader) {
  const Plan& plan = *reader.plan;
  Answer answer = NO, entry = YES, otherwise = NO;
  ROLLED for (u32 i = 0; i < plan.condition_count; ++i) {
    const Answer one = fits(job, reader, plan.conditions[i]);
    if (one == UNSURE) return UNSURE;
    if (one == NO) entry = NO;
    if (!plan.conditions[i].last) continue;
    if (entry == YES && plan.conditions[i].refuses) otherwise = UNSURE;
    if (entry == YES && !plan.conditions[i].refuses) answer = YES;
    entry = YES;
  }
  return answer == YES ? YES : otherwise;
}

// --- After the record's end ---

HD bool apply_rule(const Job& job, Reader& reader, const Rule& rule) {
  const Plan& plan = *reader.plan;
  if (rule.kind == COUNT || rule.kind == FURTHER_COUNT) {
    bool has;
    u64* counters = rule.kind == COUNT ? reader.record->counters : extra_of(job, reader)->further;
    if (!read_sum(job, reader, rule, &counters[rule.slot], &has)) return false;
    if (has && rule.kind == COUNT) reader.seen |= 1ull << (HAVE_SHIFT + HAVE_COUNTER + rule.slot);
    return true;
  }
  const u8* p = first_value(job, reader, rule);
  if (!p) return true;
  if (rule.kind == TEXT || rule.kind == LABEL) {
    const bool text = rule.kind == TEXT;
    if (text) reader.seen |= 1ull << (HAVE_SHIFT + rule.slot);
    u32* start = text ? reader.record->start : extra_of(job, reader)->start;
    u16* length = text ? reader.record->length : extra_of(job, reader)->length;
    length[rule.slot] = (u16)read_deferred_text(reader, rule, p, &start[rule.slot]);
    if (!length[rule.slot]) return false;
    // An id that has no scope is an alternative to it: what was read is the id once more.
    if (text && rule.slot == SCOPE && start[SCOPE] == start[REQUEST_ID]) length[SCOPE] = 0;
    return true;
  }
  if (rule.kind == TIME) {
    reader.seen |= (u64)HAVE_TIME << HAVE_SHIFT;
    p = *p == '"' ? read_any_text(plan, p + 1, &reader.time_ms) : read_epoch(plan, p, &reader.time_ms);
    return p && !goes_on(p);
  }
  const u8* end = *p == '"' ? string_end(p + 1, false) : nullptr;
  reader.choice = end ? find_choice(plan, p + 1, (u32)(end - p - 1)) : NONE;
  reader.seen |= (u64)HAVE_SELECTOR << HAVE_SHIFT;
  return reader.choice != NONE;
}

// Fills in what the spots say. False is doubt.
HD bool apply_rules(const Job& job, Reader& reader) {
  ROLLED for (u32 i = 0; i < reader.plan->rule_count;
              ++i) if (!apply_rule(job, reader, reader.plan->rules[i])) return false;
  return true;
}

// What the value of a string or boolean says of one part: INCLUSIVE or ADDITIVE, perhaps SILENT, too, BY_TOTAL, or
// UNKNOWN, which is doubt. A value of a type that is not listed is refused; strings are listed first, booleans last.
HD u32 stated_by(const Job& job, const Reader& reader, const Convention& convention) {
  const u8* p = nullptr;
  ROLLED for (u32 i = 0; !p && i < convention.paths; ++i) p = spot_value(job, reader, convention.spots[i]);
  if (!p) return convention.otherwise;
  const bool quoted = *p == '"';
  if ((!quoted && *p != 't' && *p != 'f') || !convention.count) return UNKNOWN;
  const Value* values = reader.plan->values;
  if (values[quoted ? convention.first : convention.first + convention.count - 1].quoted != quoted) return UNKNOWN;
  const u32 found = find_value(*reader.plan, p, convention.first, convention.count);
  if (found == UNSURE_VALUE) return UNKNOWN;
  return found == NONE ? convention.otherwise : values[found].additive;
}

constexpr u32 ASKED_SHIFT = 8;

// Makes the totals inclusive by the first reading that adds up. A reading has a bit for each part that is beside its
// total; they are tried in the order of their numbers. False is doubt.
HD bool settle_conventions(const Job& job, const Reader& reader) {
  const Plan& plan = *reader.plan;
  u64 total = reader.record->window;  // TOTAL, if it was read where it is
  bool has_total = reader.seen >> (HAVE_SHIFT + HAVE_COUNTER + TOTAL) & 1;
  if (plan.total.paths && !read_sum(job, reader, plan.total, &total, &has_total)) return false;
  u32 said = plan.by_total << ASKED_SHIFT;  // parts that the total is asked for, and below them those that are beside
  ROLLED for (u32 rest = plan.by_value; rest; rest &= rest - 1) {
    const u32 stated = stated_by(job, reader, plan.conventions[trailing_zeros(rest)]);
    if (stated == UNKNOWN) return false;
    if (stated & 1) said |= (rest & -rest) << (stated == BY_TOTAL ? ASKED_SHIFT : 0);
    if (stated & SILENT) has_total = false;  // a value counts more than a total
  }
  const u32 open = has_total ? said >> ASKED_SHIFT : 0;
  const u32 additive = (plan.additive & ~open) | (said & ((1u << ASKED_SHIFT) - 1));
  u64* counters = reader.record->counters;
  const u64 cached = counters[CACHED_INPUT], write = counters[CACHE_WRITE], reasoning = counters[REASONING];
  for (u32 more = 0;; more = (more - open) & open) {  // the next subset of `open`; the last is followed by none
    const u32 reading = additive | more;
    const u64 input = counters[INPUT] + (reading & CACHED_PART ? cached : 0) + (reading & WRITE_PART ? write : 0);
    const u64 output = counters[OUTPUT] + (reading & REASONING_PART ? reasoning : 0);
    if ((!has_total || input + output == total) && cached + write <= input && reasoning <= output) {
      counters[INPUT] = input;
      counters[OUTPUT] = output;
      return true;
    }
    if (more == open) return false;
  }
}

}  // namespace tokenometer
