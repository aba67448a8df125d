// A line with its escapes written out, where the characters may stand in a string as they are: `meta\/llama` becomes
// `meta/llama`, and `\u4e2d` three bytes. The parser takes the bytes of a string that it reads for its value, so an
// escape there is doubt; PHP escapes every slash and Python everything that is not ASCII. Such a line is read once more
// as it is spelled here. It means the same, and what was not valid is not valid either.
#pragma once
#include "portable.h"
#include "scan.h"

namespace tokenometer {

// The character that an escape stands for, from its backslash to its end; 0 where it has to stay as it is.
HD u32 written_out(const u8* p, const u8* end) {
  if (p[1] == '/') return '/';
  if (p[1] != 'u') return 0;
  const u32 unit = hex4(p + 2);
  if (end == p + 12) return 0x10000 + ((unit & 0x3ff) << 10 | (hex4(p + 8) & 0x3ff));
  return unit < 0x20 || unit == '"' || unit == '\\' ? 0 : unit;
}

HD u8* put_utf8(u8* out, u32 character) {
  if (character < 0x80) {
    *out++ = (u8)character;
    return out;
  }
  const u32 more = character < 0x800 ? 1 : character < 0x10000 ? 2 : 3;  // bytes after the first
  *out++ = (u8)((0xff00u >> (more + 1) & 0xff) | character >> 6 * more);
  ROLLED for (u32 k = more; k--;)* out++ = (u8)(0x80 | (character >> 6 * k & 0x3f));
  return out;
}

// Whether no JSON has the character outside of a string: those that producers escape. The others might turn what is no
// JSON into some.
HD bool only_in_strings(u32 c) { return c >= 0x80 || c == '/' || (c >= '<' && c <= '>') || c == '&' || c == '\''; }

// Goes on from p to end, over whole escapes, and says whether a string is open there.
HD bool in_string(const u8* p, const u8* end, bool open) {
  ROLLED for (; p < end; ++p) {
    if (*p == '\\')
      ++p;
    else if (*p == '"')
      open = !open;
  }
  return open;
}

// Writes [p, end) to `out` and a newline after it; that is never longer. Its length, or 0 where nothing is different or
// an escape is none: what follows must not complete it.
HD u32 respell(const u8* p, const u8* end, u8* out) {
  const u8 *const begin = out, *known = p;
  bool open = false, differs = false;  // a string, at `known`
  ROLLED while (p < end) {
    // Eight bytes at a time as long as they stay within the line's own place. A branch and no select: it is foreseen.
    const u64 word = load_word(p), marks = zero_bytes(word ^ (LOW_BITS * '\\'));
    if (LIKELY(!marks && end - p >= 8)) {
      for (u32 k = 0; k < 8; ++k) out[k] = (u8)(word >> 8 * k);
      out += 8;
      p += 8;
      continue;
    }
    if (*p != '\\') {
      *out++ = *p++;
      continue;
    }
    const u8* after = after_escape(p);
    if (!after) return 0;
    const u32 character = written_out(p, after);
    if (character && !only_in_strings(character)) {
      open = in_string(known, p, open);
      known = p;
      if (!open) return 0;
    }
    if (character) {
      out = put_utf8(out, character);
      differs = true;
    } else {
      ROLLED while (p < after)* out++ = *p++;
    }
    p = after;
  }
  *out = '\n';
  return differs ? (u32)(out - begin) : 0;
}

}  // namespace tokenometer
