// The seam: the only file that asks which compiler is reading.
//
// Two readers: NVRTC (a GPU thread runs each HD function) and a host C++ compiler (one loop runs them; with
// TOKENOMETER_THREADS several threads do, on shared tables). Everything above this file is written once.
#pragma once

#if defined(__CUDACC__)

#define HD __device__ __forceinline__
#define COLD HD  // off the usual path: a call of its own on a CPU, so that the usual path keeps its registers
#define CONSTANT __constant__ const
#define LIKELY(condition) (condition)
#define ROLLED _Pragma("unroll 1")  // probe loops: unrolled copies only cost registers
#define OFFSET_OF(type, field) (u64) __INTADDR__(&((type*)0)->field)  // NVRTC has no offsetof

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;  // what atomicAdd takes; `unsigned long` it refuses
typedef int i32;
typedef long long i64;

#else

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifdef __OPTIMIZE__
#define HD inline __attribute__((always_inline))
#else  // in a sanitizer's build each function is compiled once
#define HD inline
#endif
#define COLD inline __attribute__((noinline))
#define CONSTANT static const
#define LIKELY(condition) __builtin_expect(!!(condition), 1)
#define ROLLED
#define OFFSET_OF(type, field) __builtin_offsetof(type, field)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

#endif

static_assert(sizeof(u32) == 4 && sizeof(u64) == 8, "counters and hashes are 64 bits wide on both targets");

namespace tokenometer {

constexpr u64 LOW_BITS = 0x0101010101010101ull;   // the lowest bit of each byte of a word
constexpr u64 HIGH_BITS = 0x8080808080808080ull;  // the highest

#if defined(__CUDACC__)

// --- Atomics: relaxed; kernels are ordered by their launches ---
HD u64 load(const u64* p) {
  u64 value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(p) : "memory");
  return value;
}
HD u32 load(const u32* p) {
  u32 value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}
constexpr bool IN_ORDER = false;  // do the records of a pass come one after the other?
HD u64 compare_swap(u64* p, u64 expected, u64 desired) { return atomicCAS(p, expected, desired); }
HD u32 compare_swap(u32* p, u32 expected, u32 desired) { return atomicCAS(p, expected, desired); }
HD u64 fetch_add(u64* p, u64 value) { return atomicAdd(p, value); }
HD u32 fetch_add(u32* p, u32 value) { return atomicAdd(p, value); }
HD void add(u64* p, u64 value) { atomicAdd(p, value); }  // result unused: a fire-and-forget reduction
HD void raise_to(u64* p, u64 value) { atomicMax(p, value); }
HD u32 exchange(u32* p, u32 value) { return atomicExch(p, value); }
// An atomic add costs more than a branch, so zeros are not added.
constexpr bool SKIPS_ZEROS = true;
// One more, counted once a warp: every active thread must pass the same p.
HD void count_one(u64* p) {
  const u32 active = __activemask();
  if ((threadIdx.x & 31u) == (u32)__ffs((int)active) - 1u) atomicAdd(p, (u64)__popc(active));
}

HD u64 multiply_high(u64 a, u64 b) { return __umul64hi(a, b); }
HD u32 trailing_zeros(u64 x) { return (u32)__ffsll((i64)x) - 1u; }
HD u32 leading_zeros(u64 x) { return (u32)__clzll((i64)x); }

// Eight bytes from any address: a misaligned 8-byte load traps on a GPU, so two aligned ones and a shift.
HD u64 load_word(const u8* p) {
  const u64* aligned = (const u64*)((u64)p & ~7ull);
  const u32 shift = ((u32)(u64)p & 7u) * 8u;
  const u64 low = aligned[0];
  return shift ? (low >> shift) | (aligned[1] << (64u - shift)) : low;
}

#else

#if defined(TOKENOMETER_THREADS)  // several threads on shared tables
constexpr bool IN_ORDER = false;
HD u64 compare_swap(u64* p, u64 expected, u64 desired) {
  __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
HD u32 compare_swap(u32* p, u32 expected, u32 desired) {
  __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
HD u64 fetch_add(u64* p, u64 value) { return __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }
HD u32 fetch_add(u32* p, u32 value) { return __atomic_fetch_add(p, value, __ATOMIC_RELAXED); }
HD u32 exchange(u32* p, u32 value) { return __atomic_exchange_n(p, value, __ATOMIC_RELAXED); }
#else                             // one thread owns the tables: the same meaning without locked instructions
constexpr bool IN_ORDER = true;
HD u64 compare_swap(u64* p, u64 expected, u64 desired) {
  const u64 old = *p;
  if (old == expected) *p = desired;
  return old;
}
HD u32 compare_swap(u32* p, u32 expected, u32 desired) {
  const u32 old = *p;
  if (old == expected) *p = desired;
  return old;
}
HD u64 fetch_add(u64* p, u64 value) {
  const u64 old = *p;
  *p = old + value;
  return old;
}
HD u32 fetch_add(u32* p, u32 value) {
  const u32 old = *p;
  *p = old + value;
  return old;
}
HD u32 exchange(u32* p, u32 value) {
  const u32 old = *p;
  *p = value;
  return old;
}
#endif
HD u64 load(const u64* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
HD u32 load(const u32* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
HD void add(u64* p, u64 value) { fetch_add(p, value); }
HD void raise_to(u64* p, u64 value) {
  for (u64 old = load(p); old < value;) {
    const u64 seen = compare_swap(p, old, value);
    if (seen == old) return;
    old = seen;
  }
}
constexpr bool SKIPS_ZEROS = false;  // a plain add costs less than a branch nobody can predict
HD void count_one(u64* p) { add(p, 1); }

HD u64 multiply_high(u64 a, u64 b) { return (u64)(((unsigned __int128)a * b) >> 64); }
HD u32 trailing_zeros(u64 x) { return (u32)__builtin_ctzll(x); }
HD u32 leading_zeros(u64 x) { return (u32)__builtin_clzll(x); }
HD u64 load_word(const u8* p) {
  u64 word;
  memcpy(&word, p, 8);
  return word;
}
HD void prefetch(const void* p) { __builtin_prefetch(p, 1, 3); }

#endif

// --- Hashing: see hash.h. A Block is 16 bytes. ---

HD u64 rotate(u64 x, u32 bits) { return (x << bits) | (x >> (64 - bits)); }
// Both halves of a 128-bit product, folded: every input bit reaches every output bit.
HD u64 fold(u64 a, u64 b) { return (a * b) ^ multiply_high(a, b); }

#if !defined(__CUDACC__) && defined(__AES__) && defined(__SSE4_1__)

typedef __m128i Block;

HD Block block(u64 low, u64 high) { return _mm_set_epi64x((i64)high, (i64)low); }
HD u64 low_word(Block x) { return (u64)_mm_cvtsi128_si64(x); }
HD u64 high_word(Block x) { return (u64)_mm_extract_epi64(x, 1); }
HD Block aes_round(Block x, const u64* key) { return _mm_aesenc_si128(x, _mm_loadu_si128((const __m128i*)key)); }
// Four rounds: a difference that goes in meets 25 S-boxes or more before another block could cancel it.
HD Block stir(Block state, Block data, const u64* secret) {
  state = aes_round(_mm_xor_si128(state, data), secret + 2);
  state = aes_round(aes_round(state, secret + 4), secret + 6);
  return aes_round(state, secret + 2);
}
HD Block finish(Block state, const u64* secret) { return aes_round(aes_round(state, secret + 4), secret + 6); }

#else  // multiplications: two lanes take each block under different secrets

struct Block {
  u64 low, high;
};

HD Block block(u64 low, u64 high) { return {low, high}; }
HD u64 low_word(Block x) { return x.low; }
HD u64 high_word(Block x) { return x.high; }
HD Block stir(Block state, Block data, const u64* secret) {
  return {fold(data.low ^ state.low, data.high ^ secret[2]), fold(data.high ^ state.high, data.low ^ secret[3])};
}
HD Block finish(Block state, const u64* secret) {
  return {fold(state.low ^ secret[4], state.high ^ secret[5]),
          fold(state.high ^ secret[6], rotate(state.low, 32) ^ secret[7])};
}

#endif

// --- Byte scans. Each may read up to 64 bytes past what it is asked for: buffers are padded (layout.h). ---

// Marks, in the high bit of each byte, the bytes of x that are zero. Only the lowest mark is exact.
HD u64 zero_bytes(u64 x) { return (x - LOW_BITS) & ~x & HIGH_BITS; }

#if !defined(__CUDACC__) && defined(__AVX2__) && \
    defined(__BMI2__)  // 64-byte registers measured no faster: names are short

// Offset of the first byte that ends a run of plain string bytes: a quote, a backslash, a control or a non-ASCII byte.
HD u32 plain_run(const u8* p) {
  const __m256i quote = _mm256_set1_epi8('"'), backslash = _mm256_set1_epi8('\\'), space = _mm256_set1_epi8(0x20);
  for (u32 n = 0;; n += 32) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i*)(p + n));
    const __m256i marks =
        _mm256_or_si256(_mm256_or_si256(_mm256_cmpeq_epi8(bytes, quote), _mm256_cmpeq_epi8(bytes, backslash)),
                        _mm256_cmpgt_epi8(space, bytes));  // signed: below space is control or non-ASCII
    const u32 ends = (u32)_mm256_movemask_epi8(marks);
    if (LIKELY(ends)) return n + trailing_zeros(ends);
  }
}
HD u32 differing_bytes(const u8* p, const u8* q) {
  const __m256i a = _mm256_loadu_si256((const __m256i*)p), b = _mm256_loadu_si256((const __m256i*)q);
  return ~(u32)_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b));
}
// n <= 64
HD bool same_bytes(const u8* p, const u8* literal, u32 n) {
  if (LIKELY(n <= 32)) return _bzhi_u32(differing_bytes(p, literal), n) == 0;
  return differing_bytes(p, literal) == 0 && _bzhi_u32(differing_bytes(p + 32, literal + 32), n - 32) == 0;
}
CONSTANT u8 KEPT[32] = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
// The first n <= 16 bytes at p, zeros after them: no branch depends on n.
HD Block load_some(const u8* p, u32 n) {
  const __m128i kept = _mm_loadu_si128((const __m128i*)(KEPT + 16 - n));
  const __m128i bytes = _mm_and_si128(_mm_loadu_si128((const __m128i*)p), kept);
  return block((u64)_mm_cvtsi128_si64(bytes), (u64)_mm_extract_epi64(bytes, 1));
}
// Bit i is set where p[i] is a newline, i < 64.
HD u64 newlines(const u8* p) {
  const __m256i newline = _mm256_set1_epi8('\n');
  u64 marks = 0;
  for (u32 half = 0; half < 2; ++half) {
    const __m256i bytes = _mm256_loadu_si256((const __m256i*)(p + 32 * half));
    marks |= (u64)(u32)_mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, newline)) << (32 * half);
  }
  return marks;
}

#else  // the GPU, and hosts without AVX2

HD u32 plain_run(const u8* p) {
  for (u32 n = 0;; n += 8) {
    const u64 word = load_word(p + n);
    const u64 ends = zero_bytes(word ^ (LOW_BITS * '"')) | zero_bytes(word ^ (LOW_BITS * '\\')) |
                     ((word - LOW_BITS * 0x20) & HIGH_BITS) | (word & HIGH_BITS);
    if (ends) return n + (trailing_zeros(ends) >> 3);
  }
}
HD bool same_bytes(const u8* p, const u8* literal, u32 n) {
  u32 i = 0;
  ROLLED for (; i + 8 <= n; i += 8) if (load_word(p + i) != load_word(literal + i)) return false;
  return i == n || ((load_word(p + i) ^ load_word(literal + i)) << (64 - 8 * (n - i))) == 0;
}
HD u64 load_some_of_word(const u8* p, u32 n) { return load_word(p) & (n >= 8 ? ~0ull : (1ull << (8 * n)) - 1); }
HD Block load_some(const u8* p, u32 n) {
  return block(load_some_of_word(p, n), load_some_of_word(p + 8, n < 8 ? 0 : n - 8));
}
HD u64 newlines(const u8* p) {
  u64 marks = 0;
  for (u32 i = 0; i < 8; ++i) {
    const u64 x = load_word(p + 8 * i) ^ (LOW_BITS * '\n');
    const u64 nonzero = ((x & ~HIGH_BITS) + ~HIGH_BITS) | x;     // exact in every byte: no carry between bytes
    const u64 zero = (~nonzero & HIGH_BITS) >> 7;                // one bit a byte
    marks |= ((zero * 0x0102040810204080ull) >> 56) << (8 * i);  // gathered into eight bits
  }
  return marks;
}

#endif

}  // namespace tokenometer
