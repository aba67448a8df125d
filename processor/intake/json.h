// JSON as decoders read it. Texts are lines: a newline ends them, 64 bytes after it can be read, and every scan stops
// at it. The strict half accepts what orjson accepts, for whatever is copied into another text must be one whole value.
// The lenient half only finds where values end, so that bad values go on as their own lines and are judged there.
#pragma once
#include "bytes.h"

namespace tokenometer {

constexpr u32 JSON_DEPTH_MAX = 1024;  // orjson's own limit

// --- Strict ---

// Past a number of any length that is a finite double
COLD const u8* any_number_end(const u8* start) {
  const u8* p = start + (*start == '-');
  const u8* digits = p;
  p = after_digits(p);
  if (p == digits || (*digits == '0' && p - digits > 1)) return nullptr;
  i64 magnitude = *digits == '0' ? 0 : p - digits;  // the number is below 10^magnitude
  if (*p == '.') {
    const u8* fraction = ++p;
    p = after_digits(p);
    if (p == fraction) return nullptr;
    if (*digits == '0')
      for (const u8* zero = fraction; zero < p && *zero == '0'; ++zero) --magnitude;
  }
  if ((*p | 0x20) == 'e') {
    ++p;
    const bool negative = *p == '-';
    if (*p == '+' || *p == '-') ++p;
    const u8* exponent = p;
    p = after_digits(p);
    if (p == exponent) return nullptr;
    i64 shift = 0;
    for (; exponent < p; ++exponent)
      if (shift < 1ll << 40) shift = shift * 10 + (*exponent - '0');
    magnitude += negative ? -shift : shift;
  }
  double value = 0;
  const auto read = std::from_chars((const char*)start, (const char*)p, value);
  // Out of range is too large or too small; too small is zero, and allowed.
  return read.ec == std::errc::result_out_of_range && magnitude > 0 ? nullptr : p;
}

COLD const u8* any_scalar_end(const u8* p) {
  const u8* end = scalar_end(p);
  return end || (*p != '-' && !is_digit(*p)) ? end : any_number_end(p);
}

// Past any value, as far as orjson goes
COLD const u8* any_value_end(const u8* p) {
  u64 objects[JSON_DEPTH_MAX / 64 + 1] = {};
  u32 depth = 0;
  for (;;) {
    // A value is due.
    if (*p == '{' || *p == '[') {
      if (++depth > JSON_DEPTH_MAX) return nullptr;
      const bool object = *p == '{';
      u64& word = objects[depth / 64];
      word = object ? word | 1ull << depth % 64 : word & ~(1ull << depth % 64);
      p = skip_space(p + 1);
      if (*p != (object ? '}' : ']')) goto member;
    } else {
      p = any_scalar_end(p);
      if (!p) return nullptr;
      if (!depth) return p;
      p = skip_space(p);
    }
    // What may follow a value
    for (;;) {
      const bool object = objects[depth / 64] >> depth % 64 & 1;
      if (*p == ',') {
        p = skip_space(p + 1);
        break;
      }
      if (*p != (object ? '}' : ']')) return nullptr;
      ++p;
      if (--depth == 0) return p;
      p = skip_space(p);
    }
  member:
    if (objects[depth / 64] >> depth % 64 & 1) {
      if (*p != '"') return nullptr;
      p = string_end(p + 1, true);
      if (!p) return nullptr;
      p = skip_space(p + 1);
      if (*p != ':') return nullptr;
      p = skip_space(p + 1);
    }
  }
}

HD const u8* json_end(const u8* p) {
  const u8* end = value_end(p);
  return LIKELY(end != nullptr) ? end : any_value_end(p);
}

// Is the line that starts at p one value and white space?
inline bool is_json(const u8* p) {
  const u8* end = json_end(skip_space(p));
  return end && *skip_space(end) == '\n';
}

// One UTF-8 sequence of a code point
inline void put_utf8(std::string& out, u32 code) {
  if (code < 0x80) {
    out.push_back((char)code);
  } else if (code < 0x800) {
    out.push_back((char)(0xc0 | code >> 6)), out.push_back((char)(0x80 | (code & 63)));
  } else if (code < 0x10000) {
    out.push_back((char)(0xe0 | code >> 12)), out.push_back((char)(0x80 | (code >> 6 & 63)));
    out.push_back((char)(0x80 | (code & 63)));
  } else {
    out.push_back((char)(0xf0 | code >> 18)), out.push_back((char)(0x80 | (code >> 12 & 63)));
    out.push_back((char)(0x80 | (code >> 6 & 63))), out.push_back((char)(0x80 | (code & 63)));
  }
}

// What a string says whose content `string_end` has found valid
COLD void unescape(Text content, std::string& out) {
  out.clear();
  for (const u8 *p = content.p, *end = content.p + content.n; p < end;) {
    if (*p != '\\') {
      out.push_back((char)*p++);
      continue;
    }
    switch (p[1]) {
      case 'b':
        out.push_back('\b');
        break;
      case 'f':
        out.push_back('\f');
        break;
      case 'n':
        out.push_back('\n');
        break;
      case 'r':
        out.push_back('\r');
        break;
      case 't':
        out.push_back('\t');
        break;
      case 'u': {
        u32 code = hex4(p + 2);
        p += 6;
        if (code >= 0xd800 && code < 0xdc00) {
          code = 0x10000 + ((code - 0xd800) << 10) + (hex4(p + 2) - 0xdc00);
          p += 6;
        }
        put_utf8(out, code);
        continue;
      }
      default:
        out.push_back((char)p[1]);
    }
    p += 2;
  }
}

// What a key says, which matters where keys are compared. `kept` holds it if the key has escapes.
HD Text plain_key(Text raw, std::string& kept) {
  if (LIKELY(!memchr(raw.p, '\\', raw.n))) return raw;
  unescape(raw, kept);
  const u64 n = kept.size();
  kept.append(SLACK, '\0');  // who writes it reads past it
  return {(const u8*)kept.data(), n};
}

// Calls on(key, value) for each member of the object at p; `on` returns the end of the value. Past the object; null:
// not an object, or `on` said null.
template <class On>
HD const u8* members(const u8* p, On&& on) {
  if (*p != '{') return nullptr;
  p = skip_space(p + 1);
  if (*p == '}') return p + 1;
  std::string kept;
  for (;;) {
    if (*p != '"') return nullptr;
    const u8 *key = p + 1, *end = string_end(key, true);
    if (!end) return nullptr;
    p = skip_space(end + 1);
    if (*p != ':') return nullptr;
    p = on(plain_key({key, (u64)(end - key)}, kept), skip_space(p + 1));
    if (!p) return nullptr;
    p = skip_space(p);
    if (*p != ',') return *p == '}' ? p + 1 : nullptr;
    p = skip_space(p + 1);
  }
}

// The same for the elements of an array: on(value).
template <class On>
HD const u8* elements(const u8* p, On&& on) {
  if (*p != '[') return nullptr;
  p = skip_space(p + 1);
  if (*p == ']') return p + 1;
  for (;;) {
    p = on(p);
    if (!p) return nullptr;
    p = skip_space(p);
    if (*p != ',') return *p == ']' ? p + 1 : nullptr;
    p = skip_space(p + 1);
  }
}

// --- Lenient ---

// Past the closing quote of a string whose content starts at p; null: the line ends first. A backslash takes the next
// byte with it.
HD const u8* after_string(const u8* p) {
  for (;;) {
    p += plain_run(p);
    if (*p == '"') return p + 1;
    if (*p == '\n' || (*p == '\\' && p[1] == '\n')) return nullptr;
    p += *p == '\\' ? 2 : 1;
  }
}

// Past whatever is at p: a string, brackets and what is in them (of whichever kind), or all up to a comma, a
// closing bracket or white space. Null: the line ends first.
inline const u8* after_value(const u8* p) {
  if (*p == '"') return after_string(p + 1);
  if ((*p | 0x20) != '{') {
    const u8* start = p;
    while (*p != ',' && (*p | 0x20) != '}' && !is_space(*p) && *p != '\n' && *p != '"') ++p;
    return p == start ? nullptr : p;
  }
  for (u64 depth = 0;;) {
    const u8 c = *p;
    if (c == '\n') return nullptr;
    if (c == '"') {
      p = after_string(p + 1);
      if (!p) return nullptr;
      continue;
    }
    ++p;
    if (c == '\\') {
      if (*p == '\n') return nullptr;
      ++p;
    }
    if ((c | 0x20) == '{') ++depth;
    if ((c | 0x20) == '}' && --depth == 0) return p;
  }
}

// The value of a member of the object at p, the last one of that name; null: there is none, as far as can be read.
inline const u8* member(const u8* p, Text name) {
  if (*p != '{') return nullptr;
  const u8* found = nullptr;
  std::string kept;
  p = skip_space(p + 1);
  while (*p == '"') {
    const u8 *key = p + 1, *after = after_string(key);
    if (!after) break;
    Text raw{key, (u64)(after - 1 - key)};
    if (memchr(raw.p, '\\', raw.n)) {
      if (string_end(key, true) != after - 1) break;
      unescape(raw, kept);
      raw = {(const u8*)kept.data(), kept.size()};
    }
    p = skip_space(after);
    if (*p != ':') break;
    p = skip_space(p + 1);
    if (same(raw, name)) found = p;
    p = after_value(p);
    if (!p) break;
    p = skip_space(p);
    if (*p != ',') break;
    p = skip_space(p + 1);
  }
  return found;
}

}  // namespace tokenometer
