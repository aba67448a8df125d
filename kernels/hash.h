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

// 128 bits of the n bytes at p. Two lanes take each 16-byte block under different secrets. The length goes in first, so
// the zeros behind the last block are no second spelling. `salt` separates scopes.
HD Hash hash_text(const u8* p, u32 n, const u64* secret, u64 salt) {
  u64 left = secret[0] ^ n ^ salt, right = secret[1] ^ rotate(salt, 32) ^ (u64)n << 32;
  ROLLED for (; n > 16; p += 16, n -= 16) {
    const u64 a = load_word(p), b = load_word(p + 8);
    left = fold(a ^ left, b ^ secret[2]);
    right = fold(b ^ right, a ^ secret[3]);
  }
  u64 last[2];
  load_some(p, n, last);
  left = fold(last[0] ^ left, last[1] ^ secret[2]);
  right = fold(last[1] ^ right, last[0] ^ secret[3]);
  return {fold(left ^ secret[4], right ^ secret[5]), fold(right ^ secret[6], rotate(left, 32) ^ secret[7])};
}

}  // namespace tokenometer
