// Arrays into their elements: 64 bytes at a time, with a mask of what is inside strings.
//
//     [ {"a": "x, y"}, {"b": [1, 2]} ]
//       ^------------^ ^-----------^     commas count at depth 1 and outside strings only
//
// A bad element is handed on as its bytes: brackets are counted, not matched, but only a `]` closes the array itself.
#pragma once
#include "bytes.h"

namespace tokenometer {

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

struct Split {
  u64 after;  // offset past the array
  bool closed;
};

// Scans the array that opens at text[0]. Calls on.block(offset, bytes) for each 64 bytes before anything in them, and
// on.element(end) where an element ends; an array that is not closed has a last element up to the end of the text.
template <class On>
inline Split scan_array(Text text, On& on) {
  u64 in_string = 0, carry = 0;
  i64 depth = 0;
  u8 last[64];
  for (u64 base = 0; base < text.n; base += 64) {
    const u8* block = text.p + base;
    if (text.n - base < 64) {
      memset(last, ' ', 64);
      memcpy(last, block, text.n - base);
      block = last;
    }
    const Block64 bytes = block64(block);
    on.block(base, bytes);
    const u64 escaped = escaped_bytes(equal_to(bytes, '\\'), &carry);
    const u64 strings = parity_up_to(equal_to(bytes, '"') & ~escaped) ^ in_string;
    in_string = (u64)((i64)strings >> 63);
    const u64 free = ~(strings | escaped);
    const u64 opens = equal_to_folded(bytes, '{') & free, closes = equal_to_folded(bytes, '}') & free;
    const u64 marks = opens | closes, commas = equal_to(bytes, ',') & free;
    u64 due = depth == 1 ? marks | commas : marks;
    while (due) {
      const u32 at = trailing_zeros(due);
      const u64 bit = 1ull << at, later = ~(bit | (bit - 1));
      if (opens & bit) {
        ++depth;
      } else if (!(closes & bit)) {
        on.element(base + at);
      } else if (depth > 1) {
        --depth;
      } else if (block[at] == ']') {
        on.element(base + at);
        return {base + at + 1, true};
      }
      due = (depth == 1 ? marks | commas : marks) & later;
    }
  }
  on.element(text.n);
  return {text.n, false};
}

// Calls on(start, end) for each element, without the white space around it; never for nothing.
template <class On>
inline Split split_array(Text text, On&& on) {
  struct Slices {
    const u8* p;
    On& on;
    u64 start;
    HD void block(u64, const Block64&) {}
    HD void element(u64 end) {
      u64 from = start, to = end;
      while (from < to && is_blank(p[from])) ++from;
      while (to > from && is_blank(p[to - 1])) --to;
      if (from < to) on(from, to);
      start = end + 1;
    }
  } slices{text.p, on, 1};
  return scan_array(text, slices);
}

// Writes each element as a line while the array is scanned. `to` has room for the text and 64 bytes more, and moves
// past the lines.
class LineWriter {
 public:
  LineWriter(Text text, u8* to) : text_(text), to_(to) { begin(1); }

  HD void block(u64 base, const Block64& bytes) {
    if (LIKELY(base >= start_))
      store_line(to_ + (base - start_), bytes);
    else if (start_ < base + 64)
      first_bytes();
  }
  HD void element(u64 end) {
    if (LIKELY(end > start_ && end + 1 < text_.n && text_.p[end - 1] > ' ' && text_.p[end + 1] > ' ')) {
      to_ += end - start_;  // what was stored of the next one is in its place
      *to_++ = '\n';
      start_ = end + 1;
    } else {
      trimmed_element(end);
    }
  }
  u8* end() const { return to_; }

 private:
  // With white space around it, or nothing
  COLD void trimmed_element(u64 end) {
    u64 length = end > start_ ? end - start_ : 0;
    while (length && is_blank(text_.p[start_ + length - 1])) --length;
    if (length) {
      to_[length] = '\n';
      to_ += length + 1;
    }
    begin(end + 1);
    if (start_ < ((end >> 6) + 1) << 6) first_bytes();
  }
  HD void begin(u64 at) {
    while (at < text_.n && is_blank(text_.p[at])) ++at;
    start_ = at;
  }
  // Of an element that starts within a block
  HD void first_bytes() {
    if (LIKELY(start_ + 64 <= text_.n))
      store_line(to_, block64(text_.p + start_));
    else if (start_ < text_.n)
      copy_line(to_, text_.p + start_, text_.n - start_);
  }

  Text text_;
  u8* to_;
  u64 start_;
};

}  // namespace tokenometer
