// One line in, one verdict out: ACCEPTED with its Record filled, EMPTY, or DOUBTFUL. Accepts only what orjson and the
// field rules (docs/RECORDS.md) surely accept; every doubt is the referee's.
//
// Logs repeat themselves, so between two values the parser first tries the bytes it expects there (Step::literal, one
// compare for comma, key, colon and opening quote), and reads key by key only where they differ:
//
//   {"user":"u1","usage":{"prompt_tokens":12,"total":14},"chip":"H100"}
//   ~~~~~~~~~  ~~~~~~~~~~~~~~~~~~~~~~~~~~  ~~~~~~~~~   ~~~~~~~~~~    ~     five steps, five compares
#pragma once
#include "layout.h"
#include "scan.h"
#include "respell.h"
#include "hash.h"
#include "times.h"
#include "rules.h"
#include "finish.h"

namespace tokenometer {

HD u32 find_key(const Plan& plan, const u8* text, u32 length, u32 object) {
  if (length > KEY_BYTES_MAX) return NONE;
  u64 hash = ((u64)length << 8 | object) * plan.multiplier;
  ROLLED for (u32 i = 0; i < length; i += 8) {
    const u64 word = load_word(text + i);
    const u64 kept = length - i < 8 ? word & ((1ull << (8 * (length - i))) - 1) : word;
    hash = (rotate(hash, 29) ^ kept) * plan.multiplier;
  }
  const u32 k = plan.buckets[hash >> 56];
  if (k >= KEYS_MAX) return NONE;
  const Key& key = plan.keys[k];
  return key.length == length && key.object == object && same_bytes(text, (const u8*)key.text, length) ? k : NONE;
}

// --- The record ---

// Reads a mapped key's string; p is after its opening quote.
HD const u8* read_text(Reader& reader, u32 kind, u32 slot, const u8* p) {
  const u8* end = string_end(p, false);
  if (!end) return nullptr;
  const u32 length = (u32)(end - p);
  if (kind == SELECTOR) {
    reader.choice = find_choice(*reader.plan, p, length);
    return reader.choice != NONE ? end + 1 : nullptr;
  }
  if (length - 1 >= TEXT_BYTES_MAX && !(length && is_long_id(*reader.plan, slot, length))) return nullptr;
  reader.record->start[slot] = (u32)(p - reader.buffer);
  reader.record->length[slot] = (u16)length;
  return end + 1;
}

// Reads a label's string; p is after its opening quote. There is no `have` bit: its length says that it has a value.
HD const u8* read_label(const Job& job, const Reader& reader, u32 slot, u32 flags, const u8* p) {
  const u8* end = string_end(p, false);
  if (!end) return nullptr;
  const u32 length = (u32)(end - p);
  if (length - 1 >= TEXT_BYTES_MAX && !(length == 0 && flags & EMPTY_IS_ABSENT)) return nullptr;
  Extra& extra = *extra_of(job, reader);
  extra.start[slot] = (u32)(p - reader.buffer);
  extra.length[slot] = (u16)length;
  return end + 1;
}

// A null is as good as absent: its field has no value yet.
HD const u8* read_null(Reader& reader, u64 marks, const u8* p) {
  if (!is_null(p)) return nullptr;
  reader.seen &= ~(marks & ~KEY_MARKS);
  return p + 4;
}

// Reads any value; with QUOTED in `kind` p is after the opening quote of a string. Its marks are in `seen`.
// `digits` is loaded only where a count is quoted.
HD const u8* read_value(const Job& job, Reader& reader, u64 marks, u32 kind, u32 slot, const u32& digits, const u8* p) {
  const u8* after;
  // The commonest kinds need no more than three compares.
  if (LIKELY(kind == (TEXT | QUOTED))) return read_text(reader, TEXT, slot, p);
  if (LIKELY(kind == COUNT)) {
    after = read_count(p, count_place(*reader.record, slot));
    if (LIKELY(after != nullptr)) return after;
  }
  if (kind == ORDINARY) return value_end(p);
  switch (kind) {
    case SELECTOR | QUOTED:
      return read_text(reader, SELECTOR, slot, p);
    case COUNT:  // not in digits alone
      if (*p != '"') return read_null(reader, marks, p);
      ++p;
      [[fallthrough]];
    case COUNT | QUOTED:
      after = digits ? read_count(p, count_place(*reader.record, slot)) : nullptr;
      return after && *after == '"' ? after + 1 : nullptr;
    case ORDINARY | QUOTED:
      after = string_end(p, true);
      return after ? after + 1 : nullptr;
    case TIME | QUOTED:
      return reader.plan->time_texts ? read_rfc3339(p, &reader.time_ms) : nullptr;
    case TIME:
      after = read_time(*reader.plan, p, &reader.time_ms);
      return LIKELY(after != nullptr) ? after : read_null(reader, marks, p);
    case LABEL | QUOTED:
      return read_label(job, reader, slot, digits, p);
    case LABEL:
      return *p == '"' ? read_label(job, reader, slot, digits, p + 1) : read_null(reader, marks, p);
    case FURTHER_COUNT:
      after = read_count(p, &extra_of(job, reader)->further[slot]);
      if (LIKELY(after != nullptr)) return after;
      if (*p != '"') return read_null(reader, marks, p);
      ++p;
      [[fallthrough]];
    case FURTHER_COUNT | QUOTED:
      after = digits ? read_count(p, &extra_of(job, reader)->further[slot]) : nullptr;
      return after && *after == '"' ? after + 1 : nullptr;
    case DEFERRED | QUOTED:
      after = keep_spot(job, reader, slot, p - 1) ? string_end(p, true) : nullptr;
      return after ? after + 1 : nullptr;
    case DEFERRED:
      return keep_spot(job, reader, slot, p) ? value_end(p) : nullptr;
    case DEFERRED_OBJECT:
      keep_spot(job, reader, slot, p);
      return is_null(p) ? p + 4 : nullptr;
    case OBJECT | QUOTED:
    case DEFERRED_OBJECT | QUOTED:
      return nullptr;
    default:
      if (kind != OBJECT && *p == '"') return read_text(reader, kind, slot, p + 1);
      return read_null(reader, marks, p);
  }
}

// The step whose literal is at p, or null
HD const Step* predicted(const Step* steps, const u8* p) {
  if (LIKELY(same_bytes(p, steps[0].literal, steps[0].length))) return &steps[0];
  return same_bytes(p, steps[1].literal, steps[1].length) ? &steps[1] : nullptr;
}

// Where the parser is between two values.
enum Place : u32 { BEFORE_RECORD = 0, AFTER_OPEN = 1, AFTER_VALUE = 2 };

// From p to the next key: closes finished objects, reads `,` and `"key":`. Returns past the colon and the space after
// it; *key is NONE for an unknown key and END after the record's last brace.
HD const u8* next_key(const Plan& plan, const u8* p, Place place, u32* object, u32* key) {
  p = skip_space(p);
  if (place == BEFORE_RECORD) {
    if (*p != '{') return nullptr;
    p = skip_space(p + 1);
  }
  if (*p == '}') {
    ROLLED do {
      p = skip_space(p + 1);
      if (*object == ROOT) {
        *key = END;
        return p;
      }
      *object = plan.keys[*object].object;
    }
    while (*p == '}');
    place = AFTER_VALUE;
  }
  if (place == AFTER_VALUE) {
    if (*p != ',') return nullptr;
    p = skip_space(p + 1);
  }
  if (*p != '"') return nullptr;
  const u8* end = string_end(p + 1, false);  // an escape could spell a key that we need
  if (!end) return nullptr;
  *key = find_key(plan, p + 1, (u32)(end - p - 1), *object);
  p = skip_space(end + 1);
  return *p == ':' ? skip_space(p + 1) : nullptr;
}

// The one other key of the same field that came, or NONE if several did: one of them may have been null. Of two, the
// one that the mapping lists first has the lower number.
HD u32 only_rival(const Plan& plan, u64 seen, u64 mark) {
  u32 rival = NONE;
  ROLLED for (u64 rest = seen & KEY_MARKS; rest; rest &= rest - 1) {
    const u32 key = trailing_zeros(rest);
    if (!(plan.keys[key].mark & mark & ~KEY_MARKS)) continue;
    if (rival != NONE) return NONE;
    rival = key;
  }
  return rival;
}

// Key by key, from after the last known value to after the next one. This is where objects are looked up.
// Without FIELDS only spots are kept, and a field may have any value.
template <bool FIELDS>
COLD Reader read_unpredicted(const Job& job, Reader reader) {
  const Plan& plan = *reader.plan;
  const u8* p = reader.p;
  Place place = reader.key == NONE ? BEFORE_RECORD : AFTER_VALUE;
  u32 object = reader.key == NONE ? ROOT : plan.keys[reader.key].object;
  u32 key = NONE;
  reader.p = nullptr;
  ROLLED for (;;) {
    p = next_key(plan, p, place, &object, &key);
    if (!p) return reader;
    if (key == END) break;
    place = AFTER_VALUE;
    if (key == NONE) {
      p = value_end(p);
      if (!p) return reader;
      continue;
    }
    const Key& known = plan.keys[key];
    const u64 again = reader.seen & known.mark;
    if (again & KEY_MARKS) return reader;  // twice
    bool looked_at = !again;
    if (FIELDS && again && !is_null(p)) {  // another alternative of its field has a value
      const u32 rival = only_rival(plan, reader.seen, known.mark);
      if (rival == NONE) return reader;
      looked_at = key < rival;
    }
    reader.seen |= known.mark;
    if ((known.kind == OBJECT || known.kind == DEFERRED_OBJECT) && *p == '{') {
      object = key;
      place = AFTER_OPEN;
      ++p;
      continue;
    }
    const u32 kind = FIELDS || known.kind == OBJECT || known.kind >= DEFERRED ? known.kind : (u32)ORDINARY;
    p = !FIELDS || looked_at ? read_value(job, reader, known.mark, kind, known.slot, known.digits, p) : value_end(p);
    break;
  }
  reader.key = key;
  reader.p = p;
  return reader;
}

HD u32 parse_object(const Job& job, Record& record, const u8* p, const u8* end, u32 line) {
  const Plan& plan = *job.plan;
  if (plan.has_rules) {
    if (plan.undecided) return DOUBTFUL;
    clear_spots(job, record);
  }
  Reader reader = {&plan, job.buffer, &record, (u32)(p - job.buffer), p, 0, 0, NONE, 0};
  const Step* steps = plan.start;
  ROLLED for (;;) {
    const Step* step = predicted(steps, reader.p);
    if (LIKELY(step && !(reader.seen & step->marks))) {
      reader.p += step->length;
      reader.seen |= step->marks;
      reader.key = step->key;
      if (reader.key == END) break;
      reader.p = read_value(job, reader, step->marks, step->kind, step->slot, step->digits, reader.p);
    } else {
      reader = read_unpredicted<true>(job, reader);
      if (reader.key == END) break;
    }
    if (!reader.p) return DOUBTFUL;
    steps = plan.next[reader.key];
  }
  if (reader.p != end) return DOUBTFUL;
  return plan.has_rules ? leave_unfinished(reader) : finish_record<false>(job, reader, line);
}

// --- What the parser leaves is judged in steps of their own. One thread on a CPU takes them at once, while the record
// is in its cache; on a GPU they are kernels of their own, so that the parser keeps its registers. ---

constexpr bool FINISHES_APART = !IN_ORDER;

// A record whose fields leave doubt may still be one that the mapping skips: a failure without its usage, say.
COLD u32 look_again(const Job& job, Record& record, u32 begin, u32 end) {
  clear_spots(job, record);
  Reader reader = {job.plan, job.buffer, &record, begin, job.buffer + begin, 0, 0, NONE, 0};
  ROLLED do reader = read_unpredicted<false>(job, reader);
  while (reader.p && reader.key != END);
  const bool whole = reader.p == job.buffer + end;
  return whole && is_skipped(job, reader) == YES ? SKIPPED : DOUBTFUL;
}
COLD u32 finish_deferred(const Job& job, u32 i, u32 begin, u32 line) {
  Reader reader = take_up(job, i, begin);
  const Answer skipped = is_skipped(job, reader);
  if (skipped != NO) return skipped == YES ? SKIPPED : DOUBTFUL;
  return apply_rules(job, reader) ? finish_record<true>(job, reader, line) : (u32)DOUBTFUL;
}

HD void give_verdict(const Job& job, u32 i, u32 verdict) {
  job.records[i].verdict = verdict;
  if (verdict == DOUBTFUL) job.doubtful[fetch_add(&job.fill[FILL_DOUBTFUL], 1)] = i;
}

HD void finish_line(const Job& job, u32 first, u32 i) {
  const u32 line = first + i;
  if (job.records[i].verdict != UNFINISHED) return;
  give_verdict(job, i, finish_deferred(job, i, job.line_start[line], line));
}
HD void look_at_line_again(const Job& job, u32 first, u32 i) {
  Record& record = job.records[i];
  const u32* start = &job.line_start[first + i];
  if (record.verdict == UNREAD) give_verdict(job, i, look_again(job, record, start[0], start[1] - 1));
}

// APART: what the parser leaves is for other steps.
template <bool APART>
HD u32 read_line(const Job& job, u32 i, u32 line, const u8* start, const u8* end) {
  Record& record = job.records[i];
  for (u32 text = 0; text < TEXTS; ++text) record.length[text] = 0;
  record.counters[REQUESTS] = 1;
  for (u32 counter = INPUT; counter < COUNTERS; ++counter) record.counters[counter] = 0;
  if (Extra* extra = extra_of(job, i)) clear_extra(*extra);
  u32 verdict = DOUBTFUL;
  if (end - start <= (i64)RECORD_BYTES_MAX) verdict = parse_object(job, record, start, end, line);
  if (verdict == DOUBTFUL && skip_space(start) == end) verdict = EMPTY;
  if (verdict == DOUBTFUL && job.plan->condition_count && end - start <= (i64)RECORD_BYTES_MAX) verdict = UNREAD;
  const u32 begin = (u32)(start - job.buffer);
  if (!APART && verdict == UNFINISHED) verdict = finish_deferred(job, i, begin, line);
  if (!APART && verdict == UNREAD) verdict = look_again(job, record, begin, (u32)(end - job.buffer));
  return verdict;
}
HD void parse_line(const Job& job, u32 first, u32 i) {
  const u32 *start = &job.line_start[first + i], end = start[1] - 1;
  give_verdict(job, i, read_line<FINISHES_APART>(job, i, first + i, job.buffer + start[0], job.buffer + end));
}

// --- Doubtful lines with escapes: first all of them are spelled anew, one after the other, so that few pages are
// touched; then they are read, because a scan reads beyond its line. A record's place and length wait in fields that
// are filled later. ---

HD void respell_line(const Job& job, u32 first, u32 k) {
  const u32 i = job.doubtful[k], begin = job.line_start[first + i], end = job.line_start[first + i + 1] - 1;
  if (end - begin > RECORD_BYTES_MAX) return;
  const u32 at = (u32)fetch_add(&job.fill[FILL_RESPELLED], end - begin + 1);
  const u32 length = respell(job.buffer + begin, job.buffer + end, job.respelled + at);
  if (!length) return;
  Record& record = job.records[i];
  record.verdict = RESPELLED;
  record.cell_slot = at;
  record.user_slot = length;
}
HD void read_respelled_line(const Job& job, u32 first, u32 k) {
  const u32 i = job.doubtful[k];
  Record& record = job.records[i];
  if (record.verdict != RESPELLED) return;
  const u8* start = job.respelled + record.cell_slot;
  const u32 verdict = read_line<false>(job, i, first + i, start, start + record.user_slot);
  if (!IN_ORDER && job.extras && verdict == ACCEPTED) finish_extra(job, record, job.extras[i]);
  record.verdict = verdict;
  if (verdict != DOUBTFUL) job.doubtful[k] = NONE;
}

}  // namespace tokenometer
