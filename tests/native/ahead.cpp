// Two threads, one of which reads ahead, built with ThreadSanitizer: ahead PLAN PREFIX LINES ROUNDS
// The lines are counted in as many batches as there are rounds, each read while the one before is counted, and once
// more one after the other. Prints what came out, a digest for each way.
#include "job.h"

static const u32 SLOTS = 1 << 15, WINDOWS = 64, LINES_MAX = 1 << 14;

// A batch's own; two take turns.
struct Own {
  u8* buffer;
  u32 lines;
  u32* line_start = table<u32>(LINES_MAX);
  Record* records = table<Record>(LINES_MAX);
  u64* spots = table<u64>((u64)LINES_MAX * SPOT_WORDS);
  u32* doubtful = table<u32>(LINES_MAX);
  u64* fill = table<u64>(FILLS);
};

static void point_at(Job& job, const Own& own) {
  job.buffer = own.buffer;
  job.line_start = own.line_start;
  job.records = own.records;
  job.spots = own.spots;
  job.doubtful = own.doubtful;
}

static u64 mix(u64 a, u64 b) { return (a ^ b) * 0xd6e8feb86659fd93ull ^ (a >> 29); }

// Of what was counted, of doubtful lines and of the greatest time.
struct Sums {
  u64 doubtful = 0, watermark = 0;
  void note(const u64* fill, const u32* records) {
    for (u64 k = 0; k < fill[FILL_DOUBTFUL]; ++k) doubtful += mix(records[k], 1);
    watermark = mix(watermark, fill[FILL_WATERMARK]);
  }
};

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  const Plan* plan = read_plan(argv[1]);
  const std::string prefix = read_file(argv[2]), log = read_file(argv[3]);
  const u32 rounds = atoi(argv[4]);
  for (const bool beside : {true, false}) {
    Ahead* ahead = open_ahead();
    Own own[2];
    Job job;
    open_job(job, plan);
    open_tables(job, SLOTS, WINDOWS, 1 << 24);
    Sums sums;
    for (u32 round = 0; round <= rounds; ++round) {
      Own &now = own[round % 2], &next = own[1 - round % 2];
      if (round < rounds) {  // the next batch is there
        const size_t begin = log.find('\n', log.size() * round / (rounds + 1)) + 1;
        next.buffer = make_buffer(prefix, log.data() + begin, log.size() - begin, false);
        next.lines = split_lines(next.buffer + PREFIX_BYTES, (u32)(log.size() - begin), PREFIX_BYTES, next.line_start);
        if (next.lines > LINES_MAX) return 4;
      }
      Job next_job = job;
      point_at(next_job, next);
      next_job.fill = next.fill;
      memset((void*)next.fill, 0, FILLS * sizeof(u64));
      point_at(job, now);
      const u32 count = round ? now.lines : 0, lines = round < rounds ? next.lines : 0;
      if (beside) {
        count_beside(&job, 0, count, ahead, &next_job, lines);
      } else {
        in_order(&job, 0, 0, count);
        parse(&next_job, 0, 0, lines);
      }
      sums.note(next.fill, next.doubtful);
      if (round) free(now.buffer);
    }
    close_ahead(ahead);
    u64 digest = mix(sums.doubtful, sums.watermark);
    for (u32 k = 0; k < FILLS; ++k) digest = mix(digest, job.fill[k]);
    for (u64 k = 0; k < job.fill[FILL_CHANGED]; ++k)
      for (u64 counter : job.rows[job.changed[k]].counters) digest = mix(digest, counter);
    printf("%016llx rows %llu counted %llu duplicates %llu doubtful %llu\n", digest, job.fill[FILL_ROWS],
           job.fill[FILL_TALLY + ACCEPTED], job.fill[FILL_TALLY + DUPLICATE], job.fill[FILL_TALLY + DOUBTFUL]);
  }
  return 0;
}
