// What decoders write with: a buffer that grows, masks of 64 bytes, and the texts of numbers, times and ids.
// Inputs are attacker-controlled: nothing here trusts a length that it was not given as the end of a buffer.
#pragma once
#include <charconv>
#include <cstdlib>
#include <new>
#include <string>
#include <vector>
#include "../../kernels/scan.h"

namespace tokenometer {

constexpr u64 SLACK = 64;  // bytes that may be written past what was asked for, and read past a padded input

struct Text {
  const u8* p = nullptr;
  u64 n = 0;
};
HD bool same(Text a, Text b) { return a.n == b.n && (!a.n || memcmp(a.p, b.p, a.n) == 0); }
// A literal's text, without its final zero
template <u64 N>
HD Text text(const char (&literal)[N]) {
  return {(const u8*)literal, N - 1};
}
// The same, and 32 bytes after it can be read
#define PADDED(literal) Text{(const u8*)(literal "                                "), sizeof(literal) - 1}
// Do n bytes equal a literal's? Constant lengths, compared as one or two words without a call.
template <u64 N>
HD bool starts(const u8* p, const char (&literal)[N]) {
  constexpr u64 n = N - 1;
  const u8* q = (const u8*)literal;
  if constexpr (n >= 8 && n <= 16) {
    return ((load_word(p) ^ load_word(q)) | (load_word(p + n - 8) ^ load_word(q + n - 8))) == 0;
  } else if constexpr (n >= 4 && n < 8) {
    u32 a, b, c, d;
    memcpy(&a, p, 4), memcpy(&b, q, 4), memcpy(&c, p + n - 4, 4), memcpy(&d, q + n - 4, 4);
    return ((a ^ b) | (c ^ d)) == 0;
  } else {
    return memcmp(p, literal, n) == 0;
  }
}
template <u64 N>
HD bool is(Text a, const char (&literal)[N]) {
  return a.n == N - 1 && starts(a.p, literal);
}
template <u64 N>
HD bool begins(Text a, const char (&literal)[N]) {
  return a.n >= N - 1 && starts(a.p, literal);
}

// Memory that grows as lines are written: at first the caller's, which stays the caller's. Throws std::bad_alloc.
class Out {
 public:
  u8* data = nullptr;
  u64 size = 0;

  Out() = default;
  Out(u8* space, u64 bytes) : data(space), space_(space), capacity_(bytes) {}
  Out(const Out&) = delete;
  Out& operator=(const Out&) = delete;
  ~Out() {
    if (data != space_) free(data);
  }

  // Where to write up to `more` bytes; `size` is the caller's to move.
  HD u8* room(u64 more) {
    if (!LIKELY(capacity_ - size >= more + SLACK)) grow(more);
    return data + size;
  }
  HD void put(Text t) {
    u8* p = room(t.n);
    if (t.n) memcpy(p, t.p, t.n);
    size += t.n;
  }
  HD void put(u8 c) { *room(1) = c, ++size; }
  u8* release() {
    u8* p = data;
    data = space_ = nullptr;
    size = capacity_ = 0;
    return p;
  }

 private:
  COLD void grow(u64 more) {
    if (more >= 1ull << 40) throw std::bad_alloc();
    const u64 wanted = capacity_ * 2 > size + more + SLACK ? capacity_ * 2 : size + more + SLACK;
    const bool own = data != space_;
    u8* moved = (u8*)realloc(own ? data : nullptr, wanted);
    if (!moved) throw std::bad_alloc();
    if (!own && size) memcpy(moved, data, size);
    data = moved;
    capacity_ = wanted;
  }
  u8* space_ = nullptr;
  u64 capacity_ = 0;
};

// --- 32 and 64 bytes at a time ---

#if defined(__AVX512BW__)
struct Block64 {
  __m512i bytes;
};
HD Block64 block64(const u8* p) { return {_mm512_loadu_si512(p)}; }
HD u64 equal_to(Block64 x, u8 c) { return _mm512_cmpeq_epi8_mask(x.bytes, _mm512_set1_epi8((char)c)); }
// Bit i: is byte i, with bit 5 set, equal to c? Finds [ and { at once, and ] and }.
HD u64 equal_to_folded(Block64 x, u8 c) {
  const __m512i folded = _mm512_or_si512(x.bytes, _mm512_set1_epi8(0x20));
  return _mm512_cmpeq_epi8_mask(folded, _mm512_set1_epi8((char)c));
}
// Stores the block; newlines as carriage returns.
HD void store_line(u8* to, Block64 x) {
  const __mmask64 newlines = _mm512_cmpeq_epi8_mask(x.bytes, _mm512_set1_epi8('\n'));
  _mm512_storeu_si512(to, _mm512_mask_blend_epi8(newlines, x.bytes, _mm512_set1_epi8('\r')));
}
#elif defined(__AVX2__)
struct Block64 {
  __m256i low, high;
};
HD u64 marks64(__m256i low, __m256i high) {
  return (u64)(u32)_mm256_movemask_epi8(high) << 32 | (u32)_mm256_movemask_epi8(low);
}
HD Block64 block64(const u8* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
HD u64 equal_to(Block64 x, u8 c) {
  const __m256i wanted = _mm256_set1_epi8((char)c);
  return marks64(_mm256_cmpeq_epi8(x.low, wanted), _mm256_cmpeq_epi8(x.high, wanted));
}
HD u64 equal_to_folded(Block64 x, u8 c) {
  const __m256i bit = _mm256_set1_epi8(0x20);
  return equal_to({_mm256_or_si256(x.low, bit), _mm256_or_si256(x.high, bit)}, c);
}
HD void store_line(u8* to, Block64 x) {
  const __m256i newline = _mm256_set1_epi8('\n'), other = _mm256_set1_epi8('\r');
  const __m256i low = _mm256_blendv_epi8(x.low, other, _mm256_cmpeq_epi8(x.low, newline));
  const __m256i high = _mm256_blendv_epi8(x.high, other, _mm256_cmpeq_epi8(x.high, newline));
  _mm256_storeu_si256((__m256i*)to, low);
  _mm256_storeu_si256((__m256i*)(to + 32), high);
}
#else
struct Block64 {
  const u8* p;
};
HD void store_line(u8* to, Block64 x) {
  for (u32 i = 0; i < 64; ++i) to[i] = x.p[i] == '\n' ? (u8)'\r' : x.p[i];
}
HD Block64 block64(const u8* p) { return {p}; }
HD u64 equal_to(Block64 x, u8 c) {
  u64 marks = 0;
  for (u32 i = 0; i < 64; ++i) marks |= (u64)(x.p[i] == c) << i;
  return marks;
}
HD u64 equal_to_folded(Block64 x, u8 c) {
  u64 marks = 0;
  for (u32 i = 0; i < 64; ++i) marks |= (u64)((x.p[i] | 0x20) == c) << i;
  return marks;
}
#endif

// Bit i: whether an odd number of bits is set in x up to bit i
HD u64 parity_up_to(u64 x) {
#if defined(__PCLMUL__)  // a product without carries, by all ones
  return (u64)_mm_cvtsi128_si64(_mm_clmulepi64_si128(_mm_cvtsi64_si128((i64)x), _mm_set1_epi8(-1), 0));
#else
  for (u32 shift = 1; shift < 64; shift <<= 1) x ^= x << shift;
  return x;
#endif
}

// Copies n bytes, in steps of 32: reads and writes up to 31 bytes past them.
HD u8* copy_padded(u8* to, const u8* from, u64 n) {
  for (u64 i = 0; i < n; i += 32) memcpy(to + i, from + i, 32);
  return to + n;
}
HD u8* copy_padded(u8* to, Text t) { return copy_padded(to, t.p, t.n); }
template <u64 N>
HD u8* write(u8* to, const char (&literal)[N]) {
  memcpy(to, literal, N - 1);
  return to + (N - 1);
}

// Copies n bytes; a newline becomes a carriage return: white space between values, and refused in a string as before.
inline u8* copy_line(u8* to, const u8* from, u64 n) {
  if (n) memcpy(to, from, n);
  for (u8 *p = to, *end = to + n; (p = (u8*)memchr(p, '\n', (u64)(end - p))) != nullptr; ++p) *p = '\r';
  return to + n;
}

HD bool needs_escape(u8 c) { return c < 0x20 || c == '"' || c == '\\'; }

COLD u8* write_escape(u8* to, u8 c) {
  switch (c) {
    case '"':
      return write(to, "\\\"");
    case '\\':
      return write(to, "\\\\");
    case '\n':
      return write(to, "\\n");
    case '\r':
      return write(to, "\\r");
    case '\t':
      return write(to, "\\t");
    default:
      to = write(to, "\\u00");
      *to++ = "0123456789abcdef"[c >> 4];
      *to++ = "0123456789abcdef"[c & 15];
      return to;
  }
}

// The content of a JSON string: up to six times n bytes. Bytes from 0x80 up are copied: who reads the line judges them.
// Reads up to 31 bytes past the n.
HD u8* write_escaped(u8* to, const u8* from, u64 n) {
#if defined(__AVX2__)
  const __m256i quote = _mm256_set1_epi8('"'), backslash = _mm256_set1_epi8('\\'), control = _mm256_set1_epi8(0x1f);
  while (n) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i*)from);
    const __m256i marks =
        _mm256_or_si256(_mm256_or_si256(_mm256_cmpeq_epi8(bytes, quote), _mm256_cmpeq_epi8(bytes, backslash)),
                        _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, control), control));
    _mm256_storeu_si256((__m256i*)to, bytes);
    const u32 ends = (u32)_mm256_movemask_epi8(marks);
    const u64 plain = ends ? trailing_zeros(ends) : 32;
    if (plain >= n) return to + n;
    to += plain, from += plain, n -= plain;
    if (ends) to = write_escape(to, *from), ++from, --n;
  }
#else
  for (u64 i = 0; i < n; ++i) {
    if (needs_escape(from[i]))
      to = write_escape(to, from[i]);
    else
      *to++ = from[i];
  }
#endif
  return to;
}
HD u8* write_string(u8* to, Text t) {
  *to++ = '"';
  to = write_escaped(to, t.p, t.n);
  *to++ = '"';
  return to;
}

inline u8* write_hex(u8* to, Text t) {
  for (u64 i = 0; i < t.n; ++i) {
    *to++ = "0123456789abcdef"[t.p[i] >> 4];
    *to++ = "0123456789abcdef"[t.p[i] & 15];
  }
  return to;
}

CONSTANT char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
HD u64 base64_size(u64 n) { return (n + 2) / 3 * 4; }
inline u8* write_base64(u8* to, Text t) {
  u64 i = 0;
  for (; i + 3 <= t.n; i += 3) {
    const u32 bits = (u32)t.p[i] << 16 | (u32)t.p[i + 1] << 8 | t.p[i + 2];
    for (u32 k = 0; k < 4; ++k) *to++ = (u8)BASE64[bits >> (18 - 6 * k) & 63];
  }
  if (i == t.n) return to;
  const u32 bits = (u32)t.p[i] << 16 | (i + 1 < t.n ? (u32)t.p[i + 1] << 8 : 0);
  *to++ = (u8)BASE64[bits >> 18];
  *to++ = (u8)BASE64[bits >> 12 & 63];
  *to++ = i + 1 < t.n ? (u8)BASE64[bits >> 6 & 63] : (u8)'=';
  *to++ = '=';
  return to;
}

// Standard base64, padded, nothing else. False: it is not that.
inline bool read_base64(Text t, std::string& out) {
  out.clear();
  if (t.n % 4) return false;
  for (u64 i = 0; i < t.n; i += 4) {
    u32 bits = 0, count = 0;
    for (u32 k = 0; k < 4; ++k) {
      const u8 c = t.p[i + k];
      const char* found = c && c != '=' ? strchr(BASE64, c) : nullptr;
      if (!found && !(c == '=' && i + 4 == t.n && k >= 2)) return false;
      if (found && count != k) return false;
      bits = bits << 6 | (found ? (u32)(found - BASE64) : 0);
      count += found != nullptr;
    }
    out.push_back((char)(bits >> 16));
    if (count > 2) out.push_back((char)(bits >> 8));
    if (count > 3) out.push_back((char)bits);
  }
  return true;
}

// --- Numbers and times. Each writes at most 40 bytes. ---

template <class Integer>
HD u8* write_integer(u8* to, Integer value) {
  return (u8*)std::to_chars((char*)to, (char*)to + 24, value).ptr;
}

// A whole number below 2^63 as an integer, as OTLP's own JSON has it; a larger one in a form that is none; what JSON
// has no number for as a string.
template <class Float>
inline u8* write_float(u8* to, Float value) {
  if (value != value) return write(to, "\"NaN\"");
  const double wide = value;
  if (wide - wide != 0) return wide > 0 ? write(to, "\"Infinity\"") : write(to, "\"-Infinity\"");
  const bool small = wide > -0x1p63 && wide < 0x1p63;
  if (small && wide == (double)(i64)wide) return write_integer(to, (i64)wide);
  if (!small) return (u8*)std::to_chars((char*)to, (char*)to + 40, value, std::chars_format::scientific).ptr;
  return (u8*)std::to_chars((char*)to, (char*)to + 40, value).ptr;
}

HD u8* write_digits(u8* to, u32 value, u32 count) {
  for (u32 i = count; i--; value /= 10) to[i] = (u8)('0' + value % 10);
  return to + count;
}

// Nanoseconds since the epoch as an RFC 3339 text in quotes.
inline u8* write_time(u8* to, u64 ns) {
  const u64 seconds = ns / 1000000000, days = seconds / 86400;
  const u32 second_of_day = (u32)(seconds % 86400);
  // Civil date: years begin in March, so that the leap day is the last of a year.
  const u32 shifted = (u32)days + 719468, era = shifted / 146097, day_of_era = shifted % 146097;
  const u32 year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const u32 day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const u32 month_index = (5 * day_of_year + 2) / 153;
  const u32 day = day_of_year - (153 * month_index + 2) / 5 + 1;
  const u32 month = month_index < 10 ? month_index + 3 : month_index - 9;
  const u32 year = year_of_era + era * 400 + (month <= 2);
  *to++ = '"';
  to = write_digits(to, year, 4), *to++ = '-';
  to = write_digits(to, month, 2), *to++ = '-';
  to = write_digits(to, day, 2), *to++ = 'T';
  to = write_digits(to, second_of_day / 3600, 2), *to++ = ':';
  to = write_digits(to, second_of_day / 60 % 60, 2), *to++ = ':';
  to = write_digits(to, second_of_day % 60, 2), *to++ = '.';
  to = write_digits(to, (u32)(ns % 1000000000), 9);
  return write(to, "Z\"");
}

}  // namespace tokenometer
