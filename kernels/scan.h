// JSON's lexical level: where does a string, a number, a value end? Accepts only what RFC 8259 and UTF-8 surely allow;
// a null result means doubt (or invalid: the referee knows). Every scan stops at a newline, which no JSON token
// contains.
#pragma once
#include "portable.h"

namespace tokenometer {

HD bool is_space(u8 c) { return c == ' ' || c == '\t' || c == '\r'; }
HD bool is_digit(u8 c) { return (u8)(c - '0') <= 9; }
HD const u8* skip_space(const u8* p) {
  ROLLED while (is_space(*p))++ p;
  return p;
}

// Past one UTF-8 sequence of two to four bytes. Overlong forms, surrogates and code points past U+10FFFF are invalid.
HD const u8* after_utf8(const u8* p) {
  const u32 a = p[0], b = p[1];
  if ((b & 0xc0) != 0x80) return nullptr;
  if (a < 0xc2) return nullptr;
  if (a < 0xe0) return p + 2;
  if ((p[2] & 0xc0) != 0x80) return nullptr;
  const u32 high = (a & 0x0f) << 2 | (b & 0x3f) >> 4;  // the code point's bits from 10 up, for three bytes
  if (a < 0xf0) return high < 2 || (a == 0xed && b >= 0xa0) ? nullptr : p + 3;
  if ((p[3] & 0xc0) != 0x80) return nullptr;
  if (a == 0xf0) return b >= 0x90 ? p + 4 : nullptr;
  if (a < 0xf4) return p + 4;
  return a == 0xf4 && b < 0x90 ? p + 4 : nullptr;
}

// The value of four hexadecimal digits, or NOT_HEX
constexpr u32 NOT_HEX = 0x10000;
HD u32 hex4(const u8* p) {
  u32 value = 0;
  ROLLED for (u32 i = 0; i < 4; ++i) {
    const u32 c = p[i], letter = (c | 0x20) - 'a';
    if (!is_digit((u8)c) && letter > 5) return NOT_HEX;
    value = value << 4 | (is_digit((u8)c) ? c - '0' : letter + 10);
  }
  return value;
}

// Past one escape sequence; a surrogate must be a high one followed by an escaped low one.
HD const u8* after_escape(const u8* p) {
  switch (p[1]) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
      return p + 2;
    case 'u':
      break;
    default:
      return nullptr;
  }
  const u32 unit = hex4(p + 2);
  if (unit == NOT_HEX || (unit >= 0xdc00 && unit < 0xe000)) return nullptr;
  if (unit < 0xd800 || unit >= 0xe000) return p + 6;
  if (p[6] != '\\' || p[7] != 'u') return nullptr;
  const u32 low = hex4(p + 8);
  return low != NOT_HEX && low >= 0xdc00 && low < 0xe000 ? p + 12 : nullptr;
}

// The closing quote of a string whose content starts at p. With escapes = false an escape is doubt: the string is one
// we read, and its bytes shall be its value.
HD const u8* string_end(const u8* p, bool escapes) {
  ROLLED for (;;) {
    p += plain_run(p);
    const u8 c = *p;
    if (LIKELY(c == '"')) return p;
    if (c >= 0x80)
      p = after_utf8(p);
    else if (c == '\\' && escapes)
      p = after_escape(p);
    else
      return nullptr;
    if (!p) return nullptr;
  }
}

// How many of the eight bytes are digits before the first that is none.
HD u32 digit_run(u64 word) {
  const u64 others = ((word + LOW_BITS * 0x46) | (word - LOW_BITS * 0x30) | word) & HIGH_BITS;  // lowest mark is exact
  return others ? trailing_zeros(others) >> 3 : 8;
}

HD const u8* after_digits(const u8* p) {
  ROLLED for (;;) {
    const u32 count = digit_run(load_word(p));
    p += count;
    if (LIKELY(count < 8)) return p;
  }
}

// Past a number that is a finite double for certain: up to 200 digits, exponents of up to two.
HD const u8* number_end(const u8* p) {
  if (*p == '-') ++p;
  const u8* start = p;
  p = after_digits(p);
  if (p == start || (*start == '0' && p - start > 1)) return nullptr;
  if (*p == '.') {
    const u8* fraction = p + 1;
    p = after_digits(fraction);
    if (p == fraction) return nullptr;
  }
  if (p - start > 200) return nullptr;
  if ((*p | 0x20) == 'e') {
    ++p;
    if (*p == '+' || *p == '-') ++p;
    const u8* exponent = p;
    p = after_digits(p);
    if (p == exponent || p - exponent > 2) return nullptr;
  }
  return p;
}

HD bool is_null(const u8* p) { return p[0] == 'n' && p[1] == 'u' && p[2] == 'l' && p[3] == 'l'; }

// Past a string, number or literal
HD const u8* scalar_end(const u8* p) {
  const u8 c = *p;
  if (c == '"') {
    p = string_end(p + 1, true);
    return p ? p + 1 : nullptr;
  }
  if (c == '-' || is_digit(c)) return number_end(p);
  if (is_null(p) || (c == 't' && p[1] == 'r' && p[2] == 'u' && p[3] == 'e')) return p + 4;
  return c == 'f' && p[1] == 'a' && p[2] == 'l' && p[3] == 's' && p[4] == 'e' ? p + 5 : nullptr;
}

// Past the object or array that opens at p, up to 63 levels deep; deeper is doubt.
HD const u8* container_end(const u8* p) {
  u64 objects = 0;  // a bit a level, the innermost lowest: is it an object?
  u32 depth = 0;
  bool value = true;  // a value is due at p, else what may follow one
  ROLLED for (;;) {
    if (value && (*p == '{' || *p == '[')) {
      if (++depth == 64) return nullptr;
      objects = objects << 1 | (*p == '{');
      p = skip_space(p + 1);
      value = *p != (objects & 1 ? '}' : ']');
      if (!value) continue;
    } else if (value) {
      p = scalar_end(p);
      if (!p) return nullptr;
      p = skip_space(p);
      value = false;
      continue;
    } else if (*p == (objects & 1 ? '}' : ']')) {
      objects >>= 1;
      ++p;
      if (--depth == 0) return p;
      p = skip_space(p);
      continue;
    } else if (*p == ',') {
      p = skip_space(p + 1);
      value = true;
    } else {
      return nullptr;
    }
    // A member is due: in an object its key comes first.
    if (objects & 1) {
      if (*p != '"') return nullptr;
      p = string_end(p + 1, true);
      if (!p) return nullptr;
      p = skip_space(p + 1);
      if (*p != ':') return nullptr;
      p = skip_space(p + 1);
    }
  }
}

HD const u8* value_end(const u8* p) { return *p == '{' || *p == '[' ? container_end(p) : scalar_end(p); }

// Eight digits or fewer at once: the value of the `count` digits that word starts with, count in 1..8.
HD u32 digits_value(u64 word, u32 count) {
  word = (word << (64 - 8 * count)) & 0x0f0f0f0f0f0f0f0full;
  word = (word * 10 + (word >> 8)) & 0x00ff00ff00ff00ffull;
  word = (word * 100 + (word >> 16)) & 0x0000ffff0000ffffull;
  return (u32)((word * 10000 + (word >> 32)) & 0xffffffffull);
}

// Reads digits into *value and returns past them; null for none, a leading zero or more than 19.
HD const u8* read_digits(const u8* p, u64* value) {
  const u64 word = load_word(p);
  u32 count = digit_run(word);
  if ((count == 0) | ((count > 1) & (*p == '0'))) return nullptr;
  if (LIKELY(count < 8)) {
    *value = digits_value(word, count);
    return p + count;
  }
  // Up to 16 are the last eight and what is before them.
  const u32 more = digit_run(load_word(p + 8));
  const u64 high = more ? digits_value(word, more) : 0;
  u64 total = high * 100000000 + digits_value(load_word(p + more), 8);
  p += 8 + more;
  for (count += more; more == 8 && is_digit(*p); ++p, ++count) {
    if (count == 19) return nullptr;
    total = total * 10 + (*p - '0');
  }
  *value = total;
  return p;
}

}  // namespace tokenometer
