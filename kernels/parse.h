// One line in, one verdict out: ACCEPTED with its columns filled, EMPTY, or DOUBTFUL. Accepts only what orjson and the
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

HD u32 find_key(const Plan& plan, const u8* text, u32 length, u32 parent) {
  if (length > KEY_BYTES_MAX) return NONE;
  u64 hash = ((u64)length << 8 | parent) * plan.multiplier;
  ROLLED for (u32 i = 0; i < length; i += 8) {
    const u64 word = load_word(text + i);
    const u64 kept = length - i < 8 ? word & ((1ull << (8 * (length - i))) - 1) : word;
    hash = (rotate(hash, 29) ^ kept) * plan.multiplier;
  }
  const u32 k = plan.buckets[hash >> 56];
  if (k >= KEYS_MAX) return NONE;
  const Key& key = plan.keys[k];
  return key.length == length && key.parent == parent && same_bytes(text, (const u8*)key.text, length) ? k : NONE;
}

// The message that holds the byte at `position`: the first whose end is past it.
HD u32 find_message(const Job& job, u32 line, u32 position) {
  if (job.line_is_message) return line;
  u32 low = 0, high = job.message_count - 1;
  ROLLED while (low < high) {
    const u32 middle = (low + high) / 2;
    if (job.message_end[middle] > position) high = middle;
    else low = middle + 1;
  }
  return low;
}

// --- Values. Each reader returns past the value, or null for doubt. ---

HD const u8* read_count(const u8* p, bool digits, u64* count) {
  const bool quoted = *p == '"';
  if (quoted && !digits) return nullptr;
  p = read_digits(p + quoted, count);
  if (!p || *count >= COUNT_MAX) return nullptr;
  if (quoted) return *p == '"' ? p + 1 : nullptr;
  return p;
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
  ROLLED for (u32 i = 0; i < 19; ++i)
    if (*(p + i) < 0x20 || *(p + i) == '"') return nullptr;  // stay inside the line
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

// What is known of one record on the way. Values go straight to their columns.
struct Reader {
  const Job& job;
  const Plan& plan;
  u32 record;       // in the tile
  u64 marks = 0;    // mapped keys seen: one may not stand twice
  u32 have = 0;     // fields that have a value
  u32 choice = 0;
  u64 time_ms = 0;

  HD Reader(const Job& j, u32 i) : job(j), plan(*j.plan), record(i) {}
  HD bool mark(u64 bits) {
    const bool first = !(marks & bits);
    marks |= bits;
    return first;
  }
  HD bool claim(u32 bit) {  // a field has one value: of two aliases the referee takes the first listed
    const bool first = !(have & bit);
    have |= bit;
    return first;
  }
  HD u64& counter(u32 slot) const { return job.counters[(u64)slot * job.stride + record]; }
  HD void set_text(u32 slot, u32 start, u32 length) const {
    job.text_start[(u64)slot * job.stride + record] = start;
    job.text_length[(u64)slot * job.stride + record] = length;
  }
};

// Reads the value of mapped key `key` at p; `quoted`: p is behind the opening quote of a string.
HD const u8* read_value(Reader& reader, const Key& key, const u8* p, bool quoted) {
  if (!quoted && is_null(p)) return p + 4;  // as if absent
  if (key.kind == COUNT)
    return reader.claim(1u << (HAVE_COUNTER + key.slot)) ? read_count(p, key.digits, &reader.counter(key.slot)) : nullptr;
  if (key.kind == TIME) return reader.claim(HAVE_TIME) ? read_time(reader.plan, p - quoted, &reader.time_ms) : nullptr;
  if (!quoted && *p++ != '"') return nullptr;
  const u8* end = string_end(p, false);
  if (!end) return nullptr;
  const u32 length = (u32)(end - p);
  if (key.kind == SELECTOR) {
    reader.choice = find_choice(reader.plan, p, length);
    return reader.choice != NONE && reader.claim(HAVE_SELECTOR) ? end + 1 : nullptr;
  }
  if (length == 0 || length > TEXT_BYTES_MAX || !reader.claim(1u << key.slot)) return nullptr;
  reader.set_text(key.slot, (u32)(p - reader.job.buffer), length);
  return end + 1;
}

HD void hash_texts(const Job& job, u32 record) {
  const u64 stride = job.stride;
  u64 salt = 0;
  ROLLED for (u32 slot = 0; slot < TEXTS; ++slot) {
    // The scope comes second but salts the first: take it before.
    const u32 column = slot == 0 ? (u32)SCOPE : slot == 1 ? (u32)REQUEST_ID : slot;
    const u32 length = job.text_length[column * stride + record];
    if (!length) continue;
    const u8* text = job.buffer + job.text_start[column * stride + record];
    const Hash hash = hash_text(text, length, job.secret, column == REQUEST_ID ? salt : 0);
    if (column == SCOPE) {
      salt = hash.low;
      continue;
    }
    job.hash_low[column * stride + record] = hash.low | 1;  // zero means an empty slot
    job.hash_high[column * stride + record] = hash.high | 1;
  }
}

// time_ms / window_ms without a division, which is a called routine on a GPU. Times are exact doubles; the product is
// off by less than one.
HD u64 window_of(const Job& job, u64 time_ms) {
  u64 window = (u64)((double)time_ms * job.windows_per_ms);
  if (window * job.window_ms > time_ms) --window;
  else if ((window + 1) * job.window_ms <= time_ms) ++window;
  return window;
}

// Parts within totals, the time in range: writes the window. False is doubt.
HD bool settle_record(const Reader& reader, u32 line, u32 position) {
  const Job& job = reader.job;
  const Plan& plan = reader.plan;
  u64 input = reader.counter(INPUT), cached = reader.counter(CACHED_INPUT), written = reader.counter(CACHE_WRITE);
  u64 output = reader.counter(OUTPUT), reasoning = reader.counter(REASONING);
  if (plan.input_additive) input += cached + written;
  if (plan.output_additive) output += reasoning;
  if (cached + written > input || reasoning > output) return false;
  reader.counter(INPUT) = input;
  reader.counter(OUTPUT) = output;
  u64 time_ms = reader.time_ms;
  if (job.message_time) {
    const u64 message_time = job.message_time[find_message(job, line, position)];
    if (!(reader.have & HAVE_TIME)) time_ms = message_time;
    if (time_ms > message_time + job.future_skew_ms) return false;
  }
  if (time_ms >= TIME_MAX_MS) return false;
  job.window[reader.record] = window_of(job, time_ms);
  return true;
}

// All values are read: are all needed ones there? Fills in defaults, hashes, counters.
HD bool finish_record(Reader& reader, u32 line, u32 position) {
  const Job& job = reader.job;
  const Plan& plan = reader.plan;
  u32 have = reader.have;
  if (plan.message_time_fallback && job.message_time) have |= HAVE_TIME;
  if ((have & plan.needed) != plan.needed) return false;
  ROLLED for (u32 slot = 0; slot < TEXTS; ++slot)
    if (!(have >> slot & 1)) reader.set_text(slot, plan.default_start[slot], plan.default_length[slot]);
  ROLLED for (u32 slot = INPUT; slot < COUNTERS; ++slot)
    if (!(have >> (HAVE_COUNTER + slot) & 1)) reader.counter(slot) = plan.default_count[slot];
  reader.counter(REQUESTS) = 1;
  if (plan.choice_count) {
    const Choice& choice = plan.choices[reader.choice];
    const u64 tokens = reader.counter(INPUT);  // where a plan with a selector puts the event's count
    reader.counter(INPUT) = 0;
    reader.counter(choice.counter) = tokens;
    reader.counter(REQUESTS) = choice.requests;
  }
  if (!settle_record(reader, line, position)) return false;
  hash_texts(job, reader.record);
  return true;
}

HD const Step* predicted(const Step* steps, const u8* p) {
  ROLLED for (u32 i = 0; i < STEPS; ++i)
    if (steps[i].length && same_bytes(p, steps[i].literal, steps[i].length)) return &steps[i];
  return nullptr;
}

// Where the parser stands between two values.
enum Place : u32 { AFTER_OPEN = 0, AFTER_VALUE = 1 };

// From p to the next key: closes finished objects, reads `,` and `"key":`. Returns past the colon and the space behind
// it; *key is NONE for an unknown key and END behind the record's last brace.
HD const u8* next_key(const Plan& plan, const u8* p, Place place, u32* object, u32* key) {
  p = skip_space(p);
  if (*p == '}') {
    ROLLED do {
      p = skip_space(p + 1);
      if (*object == ROOT) {
        *key = END;
        return p;
      }
      *object = plan.keys[*object].parent;
    } while (*p == '}');
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

HD bool parse_object(Reader& reader, const u8* p, const u8* end, u32 line) {
  const Plan& plan = reader.plan;
  const Step* steps = plan.start;
  const u32 position = (u32)(p - reader.job.buffer);
  u32 object = ROOT;
  Place place = AFTER_OPEN;
  bool opened = false;  // the record's own brace, once read key by key
  ROLLED for (;;) {
    const Step* step = steps ? predicted(steps, p) : nullptr;
    u32 key;
    bool quoted = false;
    if (LIKELY(step != nullptr)) {
      p += step->length;
      if (!reader.mark(step->marks)) return false;
      key = step->key;
      quoted = step->quoted;
      if (key != END) object = plan.keys[key].parent;
    } else {
      if (steps == plan.start && !opened) {
        p = skip_space(p);
        if (*p++ != '{') return false;
      }
      p = next_key(plan, p, place, &object, &key);
      if (!p || (key < KEYS_MAX && !reader.mark(plan.keys[key].mark))) return false;
    }
    if (key == END) return p == end && finish_record(reader, line, position);
    opened = true;
    place = AFTER_VALUE;
    const Key* known = key < KEYS_MAX ? &plan.keys[key] : nullptr;
    steps = known ? known->next : nullptr;
    if (known && known->kind == OBJECT && *p == '{') {
      object = key;
      place = AFTER_OPEN;
      steps = nullptr;
      ++p;
      continue;
    }
    if (!known || known->kind == ORDINARY) {
      p = quoted ? string_end(p, true) : value_end(p);
      if (p) p += quoted;
    } else if (known->kind == OBJECT) {
      p = is_null(p) ? p + 4 : nullptr;
    } else {
      p = read_value(reader, *known, p, quoted);
    }
    if (!p) return false;
  }
}

HD void parse_line(const Job& job, u32 first, u32 i) {
  const u32 line = first + i;
  const u8* start = job.buffer + job.line_start[line];
  const u8* end = job.buffer + job.line_start[line + 1] - 1;
  u8 verdict = DOUBTFUL;
  Reader reader(job, i);
  if (end - start <= (i64)RECORD_BYTES_MAX && parse_object(reader, start, end, line)) verdict = ACCEPTED;
  else if (skip_space(start) == end) verdict = EMPTY;
  job.verdict[i] = verdict;
  if (verdict == DOUBTFUL) job.doubtful[fetch_add(&job.fill[FILL_DOUBTFUL], 1)] = i;
}

// The referee's ruling on a doubtful record, into the columns; its strings stand behind the batch's messages.
HD void adopt_ruling(const Job& job, u32 k) {
  const Ruling& ruling = job.rulings[k];
  const u32 record = ruling.record;
  job.verdict[record] = (u8)ruling.verdict;
  if (ruling.verdict != ACCEPTED) return;
  for (u32 slot = 0; slot < TEXTS; ++slot) {
    job.text_start[(u64)slot * job.stride + record] = ruling.start[slot];
    job.text_length[(u64)slot * job.stride + record] = ruling.length[slot];
  }
  for (u32 slot = 0; slot < COUNTERS; ++slot) job.counters[(u64)slot * job.stride + record] = ruling.counters[slot];
  job.window[record] = window_of(job, ruling.time_ms);
  hash_texts(job, record);
}

}  // namespace tokenometer
