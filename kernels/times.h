// Times: text or number to milliseconds since the epoch. Each reader returns past the value, or null for doubt.
#pragma once
#include "layout.h"
#include "scan.h"

namespace tokenometer {

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

// "YYYY-MM-DDTHH:MM:SS[.f]Z" or with an offset, in its commonest spelling; p is after the opening quote. With `iso` a
// space, a comma, offsets such as +0800 and +08, and no zone where the mapping names one (`zone`) are taken too.
HD const u8* read_calendar(const u8* p, bool iso, bool zone, i32 zone_minutes, u64* time_ms) {
  ROLLED for (u32 i = 0; i < 19; ++i) if (*(p + i) < 0x20 || *(p + i) == '"') return nullptr;  // stay inside the line
  const u32 century = two_digits(p), years = two_digits(p + 2), month = two_digits(p + 5), day = two_digits(p + 8);
  const u32 hour = two_digits(p + 11), minute = two_digits(p + 14), second = two_digits(p + 17);
  if (p[4] != '-' || p[7] != '-' || p[13] != ':' || p[16] != ':') return nullptr;
  if (p[10] != 'T' && !(iso && p[10] == ' ')) return nullptr;
  if (century > 99 || years > 99 || hour > 23 || minute > 59 || second > 59) return nullptr;
  const u32 year = century * 100 + years;
  if (year < 1970 || !date_exists(year, month, day)) return nullptr;
  p += 19;
  u32 millisecond = 0;
  if (*p == '.' || (iso && *p == ',')) {
    u32 n = 0;
    for (++p; is_digit(*p); ++p, ++n)
      if (n < 3) millisecond = millisecond * 10 + (*p - '0');
    if (n == 0 || n > 9) return nullptr;
    for (; n < 3; ++n) millisecond *= 10;
  }
  i64 offset_minutes = zone_minutes;
  if (*p == 'Z') {
    offset_minutes = 0;
    ++p;
  } else if (*p == '+' || *p == '-') {
    const u32 hours = two_digits(p + 1);
    if (hours > 23 || (!iso && p[3] != ':')) return nullptr;
    const bool colon = p[3] == ':', only_hours = iso && p[3] == '"';
    const u32 minutes = only_hours ? 0 : two_digits(p + (colon ? 4 : 3));
    if (minutes > 59) return nullptr;
    offset_minutes = (i64)(hours * 60 + minutes) * (*p == '+' ? 1 : -1);
    p += only_hours ? 3 : colon ? 6 : 5;
  } else if (!zone) {
    return nullptr;
  }
  if (*p != '"') return nullptr;
  const i64 seconds = (i64)days_since_epoch(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
  const i64 utc = seconds - offset_minutes * 60;
  if (utc < 0) return nullptr;
  *time_ms = (u64)utc * 1000 + millisecond;
  return p + 1;
}
HD const u8* read_rfc3339(const u8* p, u64* time_ms) { return read_calendar(p, false, false, 0, time_ms); }

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

HD const u8* read_epoch(const Plan& plan, const u8* p, u64* time_ms) {
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

// Whatever text the mapping takes; p is after the opening quote. A string that is all digits is an epoch time.
HD const u8* read_any_text(const Plan& plan, const u8* p, u64* time_ms) {
  if (plan.time_texts & DIGIT_TIMES) {
    const u8* after = read_epoch(plan, p, time_ms);
    if (after && *after == '"') return after + 1;
  }
  if (!(plan.time_texts & (RFC3339 | ISO8601))) return nullptr;
  return read_calendar(p, plan.time_texts & ISO8601, plan.time_texts & ZONE, plan.zone_minutes, time_ms);
}

// One that is read where it is: of format 1.
HD const u8* read_time(const Plan& plan, const u8* p, u64* time_ms) {
  if (*p == '"') return plan.time_texts ? read_rfc3339(p + 1, time_ms) : nullptr;
  return read_epoch(plan, p, time_ms);
}

}  // namespace tokenometer
