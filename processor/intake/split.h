// Arrays into their elements: 64 bytes at a time, with a mask of what is inside strings.
//
//     [ {"a": "x, y"}, {"b": [1, 2]} ]
//       ^------------^ ^-----------^     commas count at depth 1 and outside strings only
//
// A bad element is handed on as its bytes: brackets are counted, not matched, but only a `]` closes the array itself.
#pragma once
#include "bytes.h"

namespace tokenometer {

// Bit i: whether an odd number of bits is set in x up to bit i
HD u64 parity_up_to(u64 x) {
  for (u32 shift = 1; shift < 64; shift <<= 1) x ^= x << shift;
  return x;
}

// The bytes that a backslash before them takes along; *carry: whether the first byte of the next block is one.
HD u64 escaped_bytes(u64 backslashes, u64* carry) {
  u64 escaped = *carry;
  backslashes &= ~escaped;
  *carry = 0;
  while (backslashes) {
    const u32 at = trailing_zeros(backslashes);
    if (at == 63) {
      *carry = 1;
      break;
    }
    escaped |= 2ull << at;
    backslashes &= ~(3ull << at);
  }
  return escaped;
}

HD bool is_blank(u8 c) { return is_space(c) || c == '\n'; }

// Calls on(start, end) for each element of the array that opens at text[0], without the white space around it; an array
// that is not closed has a last element up to the end of the text.
struct Split {
  u64 after;  // offset past the array
  bool closed;
};
template <class On>
inline Split split_array(Text text, On&& on) {
  u64 in_string = 0, carry = 0, start = 1;
  i64 depth = 0;
  const auto element = [&](u64 end) {
    u64 from = start, to = end;
    while (from < to && is_blank(text.p[from])) ++from;
    while (to > from && is_blank(text.p[to - 1])) --to;
    on(from, to);
    start = end + 1;
  };
  u8 last[64];
  for (u64 base = 0; base < text.n; base += 64) {
    const u8* block = text.p + base;
    if (text.n - base < 64) {
      memset(last, ' ', 64);
      memcpy(last, block, text.n - base);
      block = last;
    }
    const Block64 bytes = block64(block);
    const u64 escaped = escaped_bytes(equal_to(bytes, '\\'), &carry);
    const u64 strings = parity_up_to(equal_to(bytes, '"') & ~escaped) ^ in_string;
    in_string = (u64)((i64)strings >> 63);
    const u64 free = ~(strings | escaped);
    const u64 opens = equal_to_folded(bytes, '{') & free, closes = equal_to_folded(bytes, '}') & free;
    u64 marks = opens | closes;
    const u64 commas = equal_to(bytes, ',') & free;
    u64 due = depth == 1 ? marks | commas : marks;
    while (due) {
      const u32 at = trailing_zeros(due);
      const u64 bit = 1ull << at, later = ~(bit | (bit - 1));
      if (opens & bit) {
        ++depth;
      } else if (!(closes & bit)) {
        element(base + at);
      } else if (depth > 1) {
        --depth;
      } else if (block[at] == ']') {
        element(base + at);
        return {base + at + 1, true};
      }
      due = (depth == 1 ? marks | commas : marks) & later;
    }
  }
  element(text.n);
  return {text.n, false};
}

}  // namespace tokenometer
