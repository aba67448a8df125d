// Four threads on shared tables, built with ThreadSanitizer: races PLAN PREFIX LINES ROUNDS THREADS
// PHASES are the kernels that a tile goes through, in their order.
// Prints one digest a round; it must not depend on the number of threads.
#include "job.h"
#include <thread>

static const u32 SLOTS = 1 << 14, WINDOWS = 64;

typedef void (*Entry)(const Job*, u32, u32, u32);

static void launch(Entry entry, const Job& job, u32 n, u32 threads) {
  std::vector<std::thread> pool;
  for (u32 k = 0; k < threads; ++k)
    pool.emplace_back(entry, &job, 0, (u32)((u64)n * k / threads), (u32)((u64)n * (k + 1) / threads));
  for (std::thread& thread : pool) thread.join();
}

static const Entry phases[] = {PHASES};

static void count_all(Job& job, u32 lines, u32 threads) {
  for (Entry phase : phases) {
    launch(phase, job, lines, threads);
    const u32 doubtful = (u32)job.fill[FILL_DOUBTFUL];
    job.fill[FILL_DOUBTFUL] = job.fill[FILL_RESPELLED] = 0;  // nobody asks the referee here
    launch(respell, job, doubtful, threads);
    launch(read_respelled, job, doubtful, threads);
  }
  launch(export_rows, job, (u32)job.fill[FILL_CHANGED], threads);
}

static u64 mix(u64 a, u64 b) { return (a ^ b) * 0xd6e8feb86659fd93ull ^ (a >> 29); }

static u64 text_digest(const Job& job, u64 where) {
  u64 digest = where & 0xffff;
  for (u64 i = 0; i < (where & 0xffff); ++i) digest = mix(digest, job.arena[(where >> 16) + i]);
  return digest;
}

// Rows and fill, whatever slots and order the threads gave them.
static u64 digest(const Job& job) {
  u64 sum = 0;
  for (u32 k = 0; k < job.fill[FILL_CHANGED]; ++k) {
    const UsageRow& row = job.usage_rows[k];
    u64 one = row.window;
    for (u64 where : {row.user, row.model, row.chip}) one = mix(one, text_digest(job, where));
    for (u64 counter : row.counters) one = mix(one, counter);
    sum += one;
  }
  for (u32 slot = 0; slot < FILLS; ++slot) sum = mix(sum, job.fill[slot]);
  u64 registers = 0;
  for (u64 k = 0; k < (u64)WINDOWS * SKETCH_REGISTERS / 4; ++k)
    for (u32 byte = 0; byte < 4; ++byte)
      registers += (u64)(job.registers[k] >> 8 * byte & 0xff) * (k % 4096 * 4 + byte + 1);
  return mix(sum, registers);
}

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const Plan* plan = read_plan(argv[1]);
  const std::string prefix = read_file(argv[2]), log = read_file(argv[3]);
  const u32 rounds = atoi(argv[4]), threads = atoi(argv[5]);
  u8* buffer = make_buffer(prefix, log.data(), log.size(), true);
  u32* line_start = table<u32>(log.size() + 2);
  const u32 lines = split_lines(buffer + PREFIX_BYTES, (u32)log.size(), PREFIX_BYTES, line_start);

  Job job;
  open_job(job, plan);
  job.records = table<Record>(lines);
  job.spots = table<u64>((size_t)lines * SPOT_WORDS);
  job.doubtful = table<u32>(lines);
  job.buffer = buffer;
  job.respelled = respelled_in(buffer, log.size());
  job.line_start = line_start;
  open_tables(job, SLOTS, WINDOWS, log.size() + PREFIX_BYTES + PADDING_BYTES);
  job.usage_rows = table<UsageRow>(SLOTS);
  Identity* larger = table<Identity>(SLOTS * 4);
  u32 *notes = table<u32>(SLOTS), *larger_notes = table<u32>(SLOTS * 4);
  job.notes = notes;
  job.conflicts = table<u32>(lines);

  for (u32 round = 0; round < rounds; ++round) {
    for (u32 i = 0; i < 8; ++i) job.secret[i] = mix(job.secret[i], round + 1);
    memset((void*)job.identities, 0, SLOTS * sizeof(Identity));
    memset((void*)larger, 0, 4 * SLOTS * sizeof(Identity));
    memset((void*)notes, 0, SLOTS * sizeof(u32));
    memset((void*)larger_notes, 0, 4 * SLOTS * sizeof(u32));
    memset((void*)job.texts, 0, SLOTS * sizeof(TextEntry));
    memset((void*)job.cells, 0, SLOTS * sizeof(Cell));
    memset((void*)job.rows, 0, SLOTS * sizeof(Row));
    memset((void*)job.windows, 0, WINDOWS * sizeof(Window));
    memset((void*)job.registers, 0, WINDOWS * SKETCH_REGISTERS);
    memset((void*)job.fill, 0, FILLS * sizeof(u64));
    count_all(job, lines, threads);
    const Move move = {job.identities, notes, larger, larger_notes, 4 * SLOTS - 1, 0};
    move_identities(&move, SLOTS);
    // The whole log once more: every id is taken, in the same generation or (odd rounds) in the one before.
    job.identities_before = round % 2 ? larger : nullptr;
    job.notes_before = larger_notes;
    job.identities_before_mask = 4 * SLOTS - 1;
    job.sequence = lines;
    count_all(job, lines, threads);
    printf("%016llx rows %llu counted %llu duplicates %llu\n", digest(job), job.fill[FILL_ROWS],
           job.fill[FILL_TALLY + ACCEPTED], job.fill[FILL_TALLY + DUPLICATE]);
    job.identities_before = nullptr;
    job.sequence = 0;
  }
  return 0;
}
