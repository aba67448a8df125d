// What stands at a place of a line, byte by byte: fixed text, a JSON text, a whole number, a scalar, a time.
//
// Each reader says whether it is surely that, and where it ends. Whatever is not surely valid is refused here, and then
// Python's judge decides; so a reader may be too strict, and never too lax. None looks beyond `end`.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

namespace verify {

using u8 = std::uint8_t;
using i32 = std::int32_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i64 = std::int64_t;

struct Text {
  const u8* data;
  u64 size;
};

inline u64 word_at(const u8* at) {
  u64 word;
  std::memcpy(&word, at, 8);
  return word;
}

inline u64 bytes_at(const u8* at, u64 size) {
  u64 word = 0;
  std::memcpy(&word, at, size);
  return word;
}

// Words of eight bytes, the last of which overlaps the one before.
inline bool same(const u8* some, const u8* others, u64 size) {
  if (size < 8) return std::memcmp(some, others, size) == 0;
  for (u64 at = 0; at + 8 < size; at += 8) {
    if (word_at(some + at) != word_at(others + at)) return false;
  }
  return word_at(some + size - 8) == word_at(others + size - 8);
}

inline bool is_digit(u8 byte) { return byte >= '0' && byte <= '9'; }

// UTF-8 as Unicode defines it: no overlong form, no surrogate, nothing above U+10FFFF.
inline bool is_utf8(const u8* at, const u8* end) {
  while (at < end) {
    u8 first = *at++;
    if (first < 0x80) continue;
    if (first < 0xC2 || first > 0xF4) return false;
    u32 more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
    if (end - at < static_cast<i64>(more)) return false;
    u8 low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    u8 high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (*at < low || *at > high) return false;
    for (u32 i = 1; i < more; ++i) {
      if (at[i] < 0x80 || at[i] > 0xBF) return false;
    }
    at += more;
  }
  return true;
}

// The quote that ends a JSON text without escapes and control characters; null where there is none.
inline const u8* text_end(const u8* at, const u8* end) {
  constexpr u64 ones = 0x0101010101010101, tops = ones << 7;
  const u8* begin = at;
  u64 seen = 0;
  for (; end - at >= 8; at += 8) {
    u64 word = word_at(at), quotes = word ^ ones * '"', slashes = word ^ ones * '\\';
    // The lowest mark is exact; those above it may be borrowed.
    u64 marks = ((quotes - ones) & ~quotes) | ((slashes - ones) & ~slashes) | ((word - ones * 0x20) & ~word);
    marks &= tops;
    if (marks != 0) {
      u32 bits = static_cast<u32>(__builtin_ctzll(marks)) & ~7u;
      seen |= word & ((u64{1} << bits) - 1);
      at += bits / 8;
      if (*at != '"') return nullptr;
      return (seen & tops) != 0 && !is_utf8(begin, at) ? nullptr : at;
    }
    seen |= word;
  }
  for (; at < end && *at != '"'; ++at) {
    if (*at < 0x20 || *at == '\\') return nullptr;
    seen |= *at;
  }
  if (at == end || ((seen & tops) != 0 && !is_utf8(begin, at))) return nullptr;
  return at;
}

// --- Texts with escapes ---

constexpr u32 NO_CHARACTER = 0x110000;

inline u32 hex_at(const u8* at, const u8* end) {
  if (end - at < 4) return NO_CHARACTER;
  u32 found = 0;
  for (u32 i = 0; i < 4; ++i) {
    u8 low = at[i] | 0x20;
    if (!is_digit(at[i]) && (low < 'a' || low > 'f')) return NO_CHARACTER;
    found = found << 4 | (is_digit(at[i]) ? at[i] - '0' : low - 'a' + 10u);
  }
  return found;
}

// What the escape at `at` stands for, and in *after where it ends; NO_CHARACTER where it is none.
inline u32 escaped_character(const u8* at, const u8* end, const u8** after) {
  if (end - at < 2) return NO_CHARACTER;
  *after = at + 2;
  if (at[1] != 'u') {
    constexpr char names[] = "\"\\/bfnrt", characters[] = "\"\\/\b\f\n\r\t";
    const char* name = at[1] == 0 ? nullptr : std::strchr(names, at[1]);
    return name == nullptr ? NO_CHARACTER : static_cast<u8>(characters[name - names]);
  }
  u32 first = hex_at(at + 2, end);
  *after = at + 6;
  if (first < 0xD800 || first > 0xDFFF) return first;
  if (first > 0xDBFF || end - at < 12 || at[6] != '\\' || at[7] != 'u') return NO_CHARACTER;
  u32 second = hex_at(at + 8, end);
  if (second < 0xDC00 || second > 0xDFFF) return NO_CHARACTER;
  *after = at + 12;
  return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
}

inline u32 utf8_size(u32 character) {
  return character < 0x80 ? 1 : character < 0x800 ? 2 : character < 0x10000 ? 3 : 4;
}

// The quote that ends a JSON text, escapes and all; null where there is none. size: of what it says, in UTF-8. plain:
// whether that has nothing that JSON has to escape.
inline const u8* escaped_text_end(const u8* at, const u8* end, u64* size, bool* plain) {
  const u8* run = at;
  *size = 0;
  *plain = true;
  while (at < end && *at != '"') {
    if (*at < 0x20) return nullptr;
    if (*at != '\\') {
      ++at;
      continue;
    }
    if (!is_utf8(run, at)) return nullptr;
    *size += static_cast<u64>(at - run);
    u32 character = escaped_character(at, end, &run);
    if (character == NO_CHARACTER) return nullptr;
    *plain = *plain && character >= 0x20 && character != '"' && character != '\\';
    *size += utf8_size(character);
    at = run;
  }
  if (at == end || !is_utf8(run, at)) return nullptr;
  *size += static_cast<u64>(at - run);
  return at;
}

// What such a text says goes to the end of `out`.
inline void append_said(Text text, std::string& out) {
  const u8 *at = text.data, *end = at + text.size;
  while (at < end) {
    const void* next = std::memchr(at, '\\', static_cast<u64>(end - at));
    const u8* run = next == nullptr ? end : static_cast<const u8*>(next);
    out.append(reinterpret_cast<const char*>(at), static_cast<u64>(run - at));
    if (run == end) return;
    u32 character = escaped_character(run, end, &at);
    u32 more = utf8_size(character) - 1;
    constexpr u32 leads[] = {0, 0xC0, 0xE0, 0xF0};
    out.push_back(static_cast<char>(leads[more] | character >> 6 * more));
    for (u32 i = more; i > 0; --i) out.push_back(static_cast<char>(0x80 | (character >> 6 * (i - 1) & 0x3F)));
  }
}

// Of eight characters the digits at the beginning: how many, and their number.
inline u32 digits_at(const u8* at, u64* value) {
  constexpr u64 ones = 0x0101010101010101;
  u64 word = word_at(at) ^ ones * '0', others = (word | (word + ones * (0x7F - 9))) & ones << 7;
  u32 count = others == 0 ? 8 : static_cast<u32>(__builtin_ctzll(others)) / 8;
  word = count == 0 ? 0 : word << (64 - 8 * count);  // zeros come before them, as the highest digits
  word = (word * 10 + (word >> 8)) & 0x00FF00FF00FF00FF;
  word = (word * 100 + (word >> 16)) & 0x0000FFFF0000FFFF;
  *value = (word * 10000 + (word >> 32)) & 0xFFFFFFFF;
  return count;
}

// A whole number as JSON spells it, without a sign and of at most 16 digits.
inline const u8* integer_end(const u8* at, const u8* end, u64* value) {
  const u8* begin = at;
  u64 found = 0;
  if (end - at > 8) {
    u32 count = digits_at(at, &found);
    if (count == 0 || (*at == '0' && count > 1)) return nullptr;
    at += count;
    if (count < 8) {
      *value = found;
      return at;
    }
  }
  for (; at < end && at - begin < 17 && is_digit(*at); ++at) found = found * 10 + (*at - '0');
  i64 digits = at - begin;
  if (digits == 0 || digits > 16 || (*begin == '0' && digits > 1)) return nullptr;
  *value = found;
  return at;
}

// true, false, null, or a number of at most 16 digits without an exponent.
inline const u8* scalar_end(const u8* at, const u8* end) {
  if (at == end) return nullptr;
  for (const char* name : {"true", "false", "null"}) {
    u64 size = std::strlen(name);
    if (*at == *name)
      return end - at >= static_cast<i64>(size) && same(at, (const u8*)name, size) ? at + size : nullptr;
  }
  at += *at == '-';
  const u8* begin = at;
  while (at < end && at - begin < 17 && is_digit(*at)) ++at;
  if (at == begin || (*begin == '0' && at - begin > 1)) return nullptr;
  if (at < end && *at == '.') {
    const u8* point = at++;
    while (at < end && at - begin < 18 && is_digit(*at)) ++at;
    if (at == point + 1) return nullptr;
  }
  return at - begin <= 17 ? at : nullptr;
}

// --- Times ---

inline bool two_digits(const u8* at, i64* value) {
  if (!is_digit(at[0]) || !is_digit(at[1])) return false;
  *value = (at[0] - '0') * 10 + (at[1] - '0');
  return true;
}

inline i64 days_of(i64 year, i64 month, i64 day) {  // since 1970-01-01
  constexpr i64 before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
  bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  i64 past = year - 1;
  return past * 365 + past / 4 - past / 100 + past / 400 - 719162 + before[month - 1] + (leap && month > 2) + day - 1;
}

inline bool is_day(i64 year, i64 month, i64 day) {
  constexpr i64 days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  if (year < 1 || month < 1 || month > 12 || day < 1) return false;
  bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
  return day <= days[month - 1] + (leap && month == 2);
}

// Minutes ahead of UTC, of `Z` or `+05:30`.
inline bool read_zone(const u8* at, const u8* end, i64* ahead) {
  *ahead = 0;
  if (end - at == 1) return (*at | 0x20) == 'z';
  i64 hours, minutes;
  if (end - at != 6 || (at[0] != '+' && at[0] != '-') || at[3] != ':') return false;
  if (!two_digits(at + 1, &hours) || !two_digits(at + 4, &minutes) || hours > 23 || minutes > 59) return false;
  *ahead = (at[0] == '-' ? -1 : 1) * (hours * 60 + minutes);
  return true;
}

// An RFC 3339 time in milliseconds. Leap seconds, and what only ISO 8601 allows, are not sure.
inline bool read_time(Text text, i64* found) {
  if (text.size < 20) return false;
  const u8 *at = text.data, *end = at + text.size;
  i64 century, year, month, day, hour, minute, second;
  if (!two_digits(at, &century) || !two_digits(at + 2, &year) || !two_digits(at + 5, &month)) return false;
  if (!two_digits(at + 8, &day) || !two_digits(at + 11, &hour) || !two_digits(at + 14, &minute)) return false;
  if (!two_digits(at + 17, &second) || at[4] != '-' || at[7] != '-' || at[13] != ':' || at[16] != ':') return false;
  if (at[10] != 'T' && at[10] != 't' && at[10] != ' ') return false;
  year += century * 100;
  if (!is_day(year, month, day) || hour > 23 || minute > 59 || second > 59) return false;
  at += 19;
  i64 milliseconds = 0;
  if (*at == '.') {
    const u8* point = at++;
    for (i64 worth = 100; at < end && is_digit(*at); ++at, worth /= 10) milliseconds += (*at - '0') * worth;
    if (at - point < 2 || at - point > 10) return false;
  }
  i64 ahead;
  if (!read_zone(at, end, &ahead)) return false;
  *found = ((days_of(year, month, day) * 1440 + hour * 60 + minute - ahead) * 60 + second) * 1000 + milliseconds;
  return true;
}

}  // namespace verify
