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
// zero padding is no second spelling: names are mostly 5 to 32 bytes long, and two padded blocks without a branch on n
// beat a loop whose end nobody can predict. `salt` separates scopes.
HD Hash hash_text(const u8* p, u32 n, const u64* secret, u64 salt) {
  u64 left = secret[0] ^ n ^ salt, right = secret[1] ^ rotate(salt, 32) ^ (u64)n << 32;
  for (;;) {
    u64 block[4];
    load_block(p, n, block);
    left = fold(block[0] ^ left, block[1] ^ secret[2]);
    right = fold(block[1] ^ right, block[0] ^ secret[3]);
    left = fold(block[2] ^ left, block[3] ^ secret[2]);
    right = fold(block[3] ^ right, block[2] ^ secret[3]);
    if (n <= 32) break;
    p += 32;
    n -= 32;
  }
  return {fold(left ^ secret[4], right ^ secret[5]), fold(right ^ secret[6], rotate(left, 32) ^ secret[7])};
}

}  // namespace tokenometer
