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
#include "hash.h"

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

// The message that holds the byte at `position`: the first whose end is past it.
HD u32 find_message(const Job& job, u32 line, u32 position) {
  if (job.line_is_message) return line;
  u32 low = 0, high = job.message_count - 1;
  ROLLED while (low < high) {
    const u32 middle = (low + high) / 2;
    if (job.message_end[middle] > position)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// --- Values. Each reader returns past the value, or null for doubt. ---

HD const u8* read_count(const u8* p, u64* count) {
  p = read_digits(p, count);
  return p && *count < COUNT_MAX ? p : nullptr;
}

HD u64 days_since_epoch(u32 year, u32 month, u32 day) {  // Gregorian; the year starts in March here
  const u32 y = month > 2 ? year : year - 1, m = month > 2 ? month - 3 : month + 9;
  return (u64)y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719468;
}
HD bool date_exists(u32 year, u32 month, u32 day) {
  const bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  const u32 last = month == 2 ? (leap ? 29 : 28) : 30 + ((month + month / 8) & 1);
  return month >= 1 && month <= 12 && day >= 1 && day <= last;
}
// Two digits' value, or 100 and more
HD u32 two_digits(const u8* p) { return is_digit(p[0]) && is_digit(p[1]) ? (p[0] - '0') * 10u + (p[1] - '0') : 100u; }

// "YYYY-MM-DDTHH:MM:SS[.f]Z" or with an offset, in its commonest spelling; p is behind the opening quote.
HD const u8* read_rfc3339(const u8* p, u64* time_ms) {
  ROLLED for (u32 i = 0; i < 19; ++i) if (*(p + i) < 0x20 || *(p + i) == '"') return nullptr;  // stay inside the line
  const u32 century = two_digits(p), years = two_digits(p + 2), month = two_digits(p + 5), day = two_digits(p + 8);
  const u32 hour = two_digits(p + 11), minute = two_digits(p + 14), second = two_digits(p + 17);
  if (p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':') return nullptr;
  if (century > 99 || years > 99 || hour > 23 || minute > 59 || second > 59) return nullptr;
  const u32 year = century * 100 + years;
  if (year < 1970 || !date_exists(year, month, day)) return nullptr;
  p += 19;
  u32 millisecond = 0;
  if (*p == '.') {
    u32 n = 0;
    for (++p; is_digit(*p); ++p, ++n)
      if (n < 3) millisecond = millisecond * 10 + (*p - '0');
    if (n == 0 || n > 9) return nullptr;
    for (; n < 3; ++n) millisecond *= 10;
  }
  i64 offset_minutes = 0;
  if (*p == 'Z') {
    ++p;
  } else if (*p == '+' || *p == '-') {
    const u32 hours = two_digits(p + 1);
    if (hours > 23 || p[3] != ':') return nullptr;
    const u32 minutes = two_digits(p + 4);
    if (minutes > 59) return nullptr;
    offset_minutes = (i64)(hours * 60 + minutes) * (*p == '+' ? 1 : -1);
    p += 6;
  } else {
    return nullptr;
  }
  if (*p != '"') return nullptr;
  const i64 seconds = (i64)days_since_epoch(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
  const i64 utc = seconds - offset_minutes * 60;
  if (utc < 0) return nullptr;
  *time_ms = (u64)utc * 1000 + millisecond;
  return p + 1;
}

// Seconds with a fraction, as round(x * 1000) of the double. The decimal text decides it too, unless it lies within
// 10 us of a tie: a double below 1e10 s is exact to 1 us, its product to 2 us.
HD const u8* read_decimal_seconds(const u8* p, u64* time_ms) {
  u64 seconds;
  p = read_digits(p, &seconds);
  if (!p || seconds >= 10000000000ull) return nullptr;
  u32 micros = 0;
  if (*p == '.') {
    u32 n = 0;
    for (++p; is_digit(*p); ++p, ++n)
      if (n < 6) micros = micros * 10 + (*p - '0');
    if (n == 0 || n > 20) return nullptr;
    for (; n < 6; ++n) micros *= 10;
  }
  const u32 rest = micros % 1000;
  if (rest >= 490 && rest <= 510) return nullptr;
  *time_ms = seconds * 1000 + micros / 1000 + (rest > 500);
  return p;
}

HD const u8* read_time(const Plan& plan, const u8* p, u64* time_ms) {
  if (*p == '"') return plan.rfc3339 ? read_rfc3339(p + 1, time_ms) : nullptr;
  if (plan.epoch == DECIMAL_SECONDS) return read_decimal_seconds(p, time_ms);
  u64 value;
  p = read_digits(p, &value);
  if (!p) return nullptr;
  switch (plan.epoch) {
    case SECONDS:
      if (value >= TIME_MAX_MS / 1000) return nullptr;
      value *= 1000;
      break;
    case MILLISECONDS:
      break;
    case MICROSECONDS:
      value /= 1000;
      break;
    case NANOSECONDS:
      value /= 1000000;
      break;
    default:
      return nullptr;
  }
  *time_ms = value;
  return p;
}

HD u32 find_choice(const Plan& plan, const u8* text, u32 length) {
  ROLLED for (u32 i = 0; i < plan.choice_count; ++i) {
    const Choice& choice = plan.choices[i];
    if (choice.length == length && same_bytes(text, (const u8*)choice.text, length)) return i;
  }
  return NONE;
}

// --- The record ---

// What is known of one record on the way; copied when it leaves the predicted path, so that on it all stays in
// registers. Values go straight to `record`.
struct Reader {
  const Plan* plan;
  const u8* buffer;
  Record* record;
  const u8* p;  // behind the last value; null for doubt
  u64 seen;     // marks: mapped keys, of which none may stand twice, and fields that have a value
  u64 time_ms;
  u32 key;  // of the last value: NONE before the first, END behind the record
  u32 choice;
};

// Reads a mapped key's string; p is behind its opening quote.
HD const u8* read_text(Reader& reader, u32 kind, u32 slot, const u8* p) {
  const u8* end = string_end(p, false);
  if (!end) return nullptr;
  const u32 length = (u32)(end - p);
  if (kind == SELECTOR) {
    reader.choice = find_choice(*reader.plan, p, length);
    return reader.choice != NONE ? end + 1 : nullptr;
  }
  if (length - 1 >= TEXT_BYTES_MAX) return nullptr;
  reader.record->start[slot] = (u32)(p - reader.buffer);
  reader.record->length[slot] = (u16)length;
  return end + 1;
}

// A null is as good as absent: its field has no value yet.
HD const u8* read_null(Reader& reader, u64 marks, const u8* p) {
  if (!is_null(p)) return nullptr;
  reader.seen &= ~(marks & ~KEY_MARKS);
  return p + 4;
}

// Reads any value; with QUOTED in `kind` p is behind the opening quote of a string. Its marks are in `seen`.
// `digits` is loaded only where a count is quoted.
HD const u8* read_value(Reader& reader, u64 marks, u32 kind, u32 slot, const u32& digits, const u8* p) {
  const u8* after;
  switch (kind) {
    case TEXT | QUOTED:
    case SELECTOR | QUOTED:
      return read_text(reader, kind & ~QUOTED, slot, p);
    case COUNT:
      after = read_count(p, &reader.record->counters[slot]);
      if (LIKELY(after != nullptr)) return after;
      if (*p != '"') return read_null(reader, marks, p);
      ++p;
      [[fallthrough]];
    case COUNT | QUOTED:
      after = digits ? read_count(p, &reader.record->counters[slot]) : nullptr;
      return after && *after == '"' ? after + 1 : nullptr;
    case ORDINARY | QUOTED:
      after = string_end(p, true);
      return after ? after + 1 : nullptr;
    case ORDINARY:
      return value_end(p);
    case TIME | QUOTED:
      return reader.plan->rfc3339 ? read_rfc3339(p, &reader.time_ms) : nullptr;
    case TIME:
      after = read_time(*reader.plan, p, &reader.time_ms);
      return LIKELY(after != nullptr) ? after : read_null(reader, marks, p);
    case OBJECT | QUOTED:
      return nullptr;
    default:
      if (kind != OBJECT && *p == '"') return read_text(reader, kind, slot, p + 1);
      return read_null(reader, marks, p);
  }
}

HD void hash_into(const Job& job, Record& record, u32 text, u64 salt) {
  const Hash hash = hash_text(job.buffer + record.start[text], record.length[text], job.secret, salt);
  record.low[text] = hash.low | 1;
  record.high[text] = hash.high | 1;
}
HD void hash_texts(const Job& job, Record& record) {
  u64 salt = 0;
  if (record.length[SCOPE]) salt = hash_text(job.buffer + record.start[SCOPE], record.length[SCOPE], job.secret, 0).low;
  if (LIKELY(record.length[REQUEST_ID])) hash_into(job, record, REQUEST_ID, salt);
  hash_into(job, record, USER, 0);
  hash_into(job, record, MODEL, 0);
  hash_into(job, record, CHIP, 0);
  if (record.length[PREFILL_CHIP]) hash_into(job, record, PREFILL_CHIP, 0);
}

// time_ms / window_ms without a division, which is a called routine on a GPU. Times are exact doubles; the product is
// off by less than one.
HD u64 window_of(const Job& job, u64 time_ms) {
  u64 window = (u64)((double)time_ms * job.windows_per_ms);
  if (window * job.window_ms > time_ms)
    --window;
  else if ((window + 1) * job.window_ms <= time_ms)
    ++window;
  return window;
}

HD void raise_watermark(const Job& job, u64 time_ms) {
  u64* watermark = &job.fill[FILL_WATERMARK];
  if (time_ms >= load(watermark)) raise_to(watermark, time_ms + 1);
}

// Totals inclusive, parts within them, the time in range. False is doubt.
HD bool settle_record(const Job& job, const Reader& reader, u32 line, u32 position) {
  const Plan& plan = *reader.plan;
  u64* counters = reader.record->counters;
  const u64 parts = counters[CACHED_INPUT] + counters[CACHE_WRITE];
  if (plan.input_additive) counters[INPUT] += parts;
  if (plan.output_additive) counters[OUTPUT] += counters[REASONING];
  if (parts > counters[INPUT] || counters[REASONING] > counters[OUTPUT]) return false;
  u64 time_ms = reader.time_ms;
  if (job.message_time) {
    const u64 message_time = job.message_time[find_message(job, line, position)];
    if (!(reader.seen & (u64)HAVE_TIME << HAVE_SHIFT)) time_ms = message_time;
    if (time_ms > message_time + job.future_skew_ms) return false;
  }
  if (time_ms >= TIME_MAX_MS) return false;
  reader.record->window = window_of(job, time_ms);
  raise_watermark(job, time_ms);
  return true;
}

// All values are read: are all needed ones there? Fills in defaults and hashes.
HD bool finish_record(const Job& job, const Reader& reader, u32 line, u32 position) {
  const Plan& plan = *reader.plan;
  Record& record = *reader.record;
  const u32 have = (u32)(reader.seen >> HAVE_SHIFT);
  const u32 fallback = plan.message_time_fallback && job.message_time ? HAVE_TIME : 0;
  if (((have | fallback) & plan.needed) != plan.needed) return false;
  ROLLED for (u32 rest = plan.defaulted & ~have; rest; rest &= rest - 1) {
    const u32 bit = trailing_zeros(rest);
    if (bit < TEXTS) {
      record.start[bit] = plan.default_start[bit];
      record.length[bit] = (u16)plan.default_length[bit];
    } else {
      record.counters[bit - HAVE_COUNTER] = plan.default_count[bit - HAVE_COUNTER];
    }
  }
  if (plan.choice_count) {
    const Choice& choice = plan.choices[reader.choice];
    const u64 tokens = record.counters[INPUT];  // where a plan with a selector puts the event's count
    record.counters[INPUT] = 0;
    record.counters[choice.counter] = tokens;
    record.counters[REQUESTS] = choice.requests;
  }
  if (!settle_record(job, reader, line, position)) return false;
  hash_texts(job, record);
  return true;
}

// The step whose literal stands at p, or null
HD const Step* predicted(const Step* steps, const u8* p) {
  if (LIKELY(same_bytes(p, steps[0].literal, steps[0].length))) return &steps[0];
  return same_bytes(p, steps[1].literal, steps[1].length) ? &steps[1] : nullptr;
}

// Where the parser stands between two values.
enum Place : u32 { BEFORE_RECORD = 0, AFTER_OPEN = 1, AFTER_VALUE = 2 };

// From p to the next key: closes finished objects, reads `,` and `"key":`. Returns past the colon and the space behind
// it; *key is NONE for an unknown key and END behind the record's last brace.
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

// Key by key, from behind the last known value to behind the next one. This is where objects are looked up.
COLD Reader read_unpredicted(Reader reader) {
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
    // A key that stands twice is doubt. So are two aliases with a value: the referee takes the first listed.
    if (again && ((again & KEY_MARKS) || !is_null(p))) return reader;
    reader.seen |= known.mark;
    if (known.kind == OBJECT && *p == '{') {
      object = key;
      place = AFTER_OPEN;
      ++p;
      continue;
    }
    p = again ? p + 4 : read_value(reader, known.mark, known.kind, known.slot, known.digits, p);
    break;
  }
  reader.key = key;
  reader.p = p;
  return reader;
}

HD bool parse_object(const Job& job, Record& record, const u8* p, const u8* end, u32 line) {
  const Plan& plan = *job.plan;
  const u32 position = (u32)(p - job.buffer);
  Reader reader = {&plan, job.buffer, &record, p, 0, 0, NONE, 0};
  const Step* steps = plan.start;
  ROLLED for (;;) {
    const Step* step = predicted(steps, reader.p);
    if (LIKELY(step && !(reader.seen & step->marks))) {
      reader.p += step->length;
      reader.seen |= step->marks;
      reader.key = step->key;
      if (reader.key == END) break;
      reader.p = read_value(reader, step->marks, step->kind, step->slot, step->digits, reader.p);
    } else {
      reader = read_unpredicted(reader);
      if (reader.key == END) break;
    }
    if (!reader.p) return false;
    steps = plan.next[reader.key];
  }
  return reader.p == end && finish_record(job, reader, line, position);
}

HD void parse_line(const Job& job, u32 first, u32 i) {
  const u32 line = first + i;
  const u8* start = job.buffer + job.line_start[line];
  const u8* end = job.buffer + job.line_start[line + 1] - 1;
  Record& record = job.records[i];
  for (u32 text = 0; text < TEXTS; ++text) record.length[text] = 0;
  record.counters[REQUESTS] = 1;
  for (u32 counter = INPUT; counter < COUNTERS; ++counter) record.counters[counter] = 0;
  u32 verdict = DOUBTFUL;
  if (end - start <= (i64)RECORD_BYTES_MAX && parse_object(job, record, start, end, line))
    verdict = ACCEPTED;
  else if (skip_space(start) == end)
    verdict = EMPTY;
  record.verdict = verdict;
  if (verdict == DOUBTFUL) job.doubtful[fetch_add(&job.fill[FILL_DOUBTFUL], 1)] = i;
}

// The referee's ruling on a doubtful record; its strings stand behind the batch's messages.
HD void adopt_ruling(const Job& job, u32 k) {
  const Ruling& ruling = job.rulings[k];
  Record& record = job.records[ruling.record];
  record.verdict = ruling.verdict;
  if (ruling.verdict != ACCEPTED) return;
  for (u32 text = 0; text < TEXTS; ++text) {
    record.start[text] = ruling.start[text];
    record.length[text] = (u16)ruling.length[text];
  }
  for (u32 counter = 0; counter < COUNTERS; ++counter) record.counters[counter] = ruling.counters[counter];
  record.window = window_of(job, ruling.time_ms);
  raise_watermark(job, ruling.time_ms);
  hash_texts(job, record);
}

}  // namespace tokenometer
