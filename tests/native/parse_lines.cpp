// Each line of stdin alone in a heap buffer of exactly its size, then all in one: parse_lines PLAN PREFIX < LINES
// Built with AddressSanitizer and UndefinedBehaviorSanitizer, a read too far ends it. Prints verdicts, a digit a line.
#include "job.h"
#include <iostream>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string plan_bytes = read_file(argv[1]), prefix = read_file(argv[2]);
  if (plan_bytes.size() != sizeof(Plan)) return 3;
  Plan* plan = (Plan*)malloc(sizeof(Plan));
  memcpy((void*)plan, plan_bytes.data(), sizeof(Plan));
  const std::string lines((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());

  Job job;
  open_job(job, plan);
  job.records = table<Record>(1);
  job.spots = table<u64>(SPOT_WORDS);
  job.doubtful = table<u32>(1);
  job.extras = table<Extra>(1);
  job.identities = table<Identity>(1);  // asked for ahead of need
  job.texts = table<TextEntry>(1);
  std::string alone;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin) + 1;
    u8* buffer = make_buffer(prefix, lines.data() + begin, end - begin);
    u32 line_start[2];
    if (split_lines(buffer + PREFIX_BYTES, (u32)(end - begin), PREFIX_BYTES, line_start) != 1) return 4;
    job.buffer = buffer;
    job.line_start = line_start;
    job.fill[FILL_DOUBTFUL] = 0;
    parse(&job, 0, 0, 1);
    alone += (char)('0' + job.records[0].verdict);
    free(buffer);
    begin = end;
  }

  u8* buffer = make_buffer(prefix, lines.data(), lines.size());
  u32* line_start = (u32*)malloc((alone.size() + 1) * sizeof(u32));
  if (split_lines(buffer + PREFIX_BYTES, (u32)lines.size(), PREFIX_BYTES, line_start) != alone.size()) return 5;
  job.records = table<Record>(alone.size());
  job.spots = table<u64>(alone.size() * SPOT_WORDS);
  job.doubtful = table<u32>(alone.size());
  job.extras = table<Extra>(alone.size());
  job.buffer = buffer;
  job.line_start = line_start;
  job.fill[FILL_DOUBTFUL] = 0;
  parse(&job, 0, 0, (u32)alone.size());
  for (size_t i = 0; i < alone.size(); ++i)
    if ((int)job.records[i].verdict != alone[i] - '0') {
      fprintf(stderr, "line %zu: %c alone, %d among others\n", i, alone[i], (int)job.records[i].verdict);
      return 6;
    }
  puts(alone.c_str());
  return 0;
}
