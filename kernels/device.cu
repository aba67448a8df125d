// The kernels of the CUDA build: grid-stride loops over the HD functions, nothing else.
#include "parse.h"
#include "dedup.h"
#include "grow.h"
#include "intern.h"
#include "aggregate.h"
#include "walk.h"

using namespace tokenometer;

// Four blocks a multiprocessor leave a thread 64 registers; without the 4, ptxas saves registers and spills in `parse`.
#define KERNEL extern "C" __global__ void __launch_bounds__(256, 4)
// The whole parser and what follows it, for the few records that come here: two blocks leave a thread 128 registers.
#define RARE_KERNEL extern "C" __global__ void __launch_bounds__(256, 2)
#define FOR_EACH(i, n) for (u32 i = blockIdx.x * blockDim.x + threadIdx.x; i < (n); i += gridDim.x * blockDim.x)

// Lines are found in blocks of 64 bytes: count the newlines of each, scan the counts, write where lines start.
KERNEL count_lines(const u8* data, u32 length, u32* counts) {
  const u32 blocks = (length + 63) / 64;
  FOR_EACH(k, blocks) {
    u64 marks = newlines(data + (u64)k * 64);
    if (length - k * 64 < 64) marks &= (1ull << (length - k * 64)) - 1;
    counts[k] = (u32)__popcll(marks);
  }
}
// `before`: how many lines end up to and with each block (an inclusive scan of the counts); line 0 starts at `origin`.
KERNEL place_lines(const u8* data, u32 length, u32 origin, const u32* before, u32* line_start) {
  const u32 blocks = (length + 63) / 64;
  FOR_EACH(k, blocks) {
    u64 marks = newlines(data + (u64)k * 64);
    if (length - k * 64 < 64) marks &= (1ull << (length - k * 64)) - 1;
    u32 line = k ? before[k - 1] : 0;
    if (k == 0) line_start[0] = origin;
    for (; marks; marks &= marks - 1) line_start[++line] = origin + k * 64 + trailing_zeros(marks) + 1;
  }
}

KERNEL parse(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) parse_line(*job, first, i); }
KERNEL finish(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) finish_line(*job, first, i); }
KERNEL look_again(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) look_at_line_again(*job, first, i); }
KERNEL accounts(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) finish_extra_of(*job, i); }
KERNEL respell(const Job* job, u32 first, u32 n) { FOR_EACH(k, n) respell_line(*job, first, k); }
RARE_KERNEL read_respelled(const Job* job, u32 first, u32 n) { FOR_EACH(k, n) read_respelled_line(*job, first, k); }
KERNEL adopt(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) adopt_ruling(*job, i); }
KERNEL claim(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) claim_request(*job, i); }
KERNEL grow(const Job* job, u32 first, u32 n) { FOR_EACH(k, n) grow_identity(*job, k); }
KERNEL recall(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) settle_identity(*job, i); }
KERNEL settle(const Job* job, u32 first, u32 n) {
  FOR_EACH(i, n) {
    settle_identity(*job, i);
    tally_record(*job, i);
    if (job->records[i].verdict == ACCEPTED) intern_record(*job, i);
  }
}
KERNEL count(const Job* job, u32 first, u32 n) {
  FOR_EACH(i, n) {
    count_record(*job, i);
    compare_duplicate(*job, i);
  }
}
KERNEL export_rows(const Job* job, u32 first, u32 n) { FOR_EACH(i, n) export_row(*job, first, i); }
KERNEL move_identities(const Move* move, u32 n) { FOR_EACH(i, n) move_identity(*move, i); }
KERNEL find_records(const Walk* walk, u32 n) { FOR_EACH(k, n) find_records_of(*walk, k); }
KERNEL read_records(const Walk* walk, u32 n) { FOR_EACH(i, n) read_record_of(*walk, i); }
KERNEL place_values(const Walk* walk, u32 n) { FOR_EACH(k, n) place_word_of(*walk, k); }
