// Keyed hashes. The secret is random for each process, so nobody can choose strings that collide.
#pragma once
#include "portable.h"

namespace tokenometer {

struct Hash {
  u64 low, high;
};

HD u64 rotate(u64 x, u32 bits) { return (x << bits) | (x >> (64 - bits)); }
// Both halves of a 128-bit product, folded: every input bit reaches every output bit.
HD u64 fold(u64 a, u64 b) { return (a * b) ^ multiply_high(a, b); }

// Eight bytes at p, of which `left` or fewer count; the others read as zero. Compiles to no branch.
HD u64 load_some(const u8* p, i64 left) {
  const u64 word = load_word(p);
  if (left >= 8) return word;
  return left <= 0 ? 0 : word & (~0ull >> (64 - 8 * left));
}

// 128 bits of the n bytes at p. Two lanes take each 16-byte block under different secrets. The length goes in first, so
// zero padding is no second spelling: names are mostly 5 to 32 bytes long, and two padded blocks without a branch on n
// beat a loop whose end nobody can predict. `salt` separates scopes.
HD Hash hash_text(const u8* p, u32 n, const u64* secret, u64 salt) {
  u64 left = secret[0] ^ n ^ salt, right = secret[1] ^ rotate(salt, 32) ^ (u64)n << 32;
  i64 rest = n;
  ROLLED do {
    const u64 a = load_some(p, rest), b = load_some(p + 8, rest - 8);
    const u64 c = load_some(p + 16, rest - 16), d = load_some(p + 24, rest - 24);
    left = fold(a ^ left, b ^ secret[2]);
    right = fold(b ^ right, a ^ secret[3]);
    left = fold(c ^ left, d ^ secret[2]);
    right = fold(d ^ right, c ^ secret[3]);
    p += 32;
    rest -= 32;
  } while (rest > 0);
  return {fold(left ^ secret[4], right ^ secret[5]), fold(right ^ secret[6], rotate(left, 32) ^ secret[7])};
}

}  // namespace tokenometer
