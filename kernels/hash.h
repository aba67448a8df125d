// Keyed hashes. The secret is random for each process, so nobody can choose strings that collide.
#pragma once
#include "portable.h"

namespace tokenometer {

struct Hash {
  u64 low, high;
};

// 128 bits of the n bytes at p, 16 at a time. The length goes in first, so the zeros after the last block are no
// second spelling. `salt` separates scopes. Values differ between targets (portable.h) and never leave a process.
HD Hash hash_text(const u8* p, u32 n, const u64* secret, u64 salt) {
  Block state = block(secret[0] ^ n ^ salt, secret[1] ^ rotate(salt, 32) ^ (u64)n << 32);
  ROLLED for (; n > 16; p += 16, n -= 16) state = stir(state, load_some(p, 16), secret);
  state = finish(stir(state, load_some(p, n), secret), secret);
  return {low_word(state), high_word(state)};
}

// 64 bits that are the same on every target, for what is merged across them.
HD u64 shared_hash(const u8* p, u32 n, u64 seed) {
  u64 hash = seed ^ n;
  ROLLED for (u32 i = 0; i < n; i += 16) {
    const Block data = load_some(p + i, n - i < 16 ? n - i : 16);
    hash = fold(low_word(data) ^ hash, high_word(data) ^ 0x8f1bbcdcbfa53e0bull);
  }
  return fold(hash ^ 0x5a827999a3b1c6d5ull, 0xca62c1d6b7e15163ull);
}

}  // namespace tokenometer
