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
  open_columns(job, 1);
  std::string alone;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin) + 1;
    u8* buffer = make_buffer(prefix, lines.data() + begin, end - begin);
    u32 line_start[2];
    if (split_lines(buffer + PREFIX, (u32)(end - begin), PREFIX, line_start) != 1) return 4;
    job.buffer = buffer;
    job.line_start = line_start;
    job.fill[FILL_DOUBTFUL] = 0;
    parse(&job, 0, 0, 1);
    alone += (char)('0' + job.verdict[0]);
    free(buffer);
    begin = end;
  }

  u8* buffer = make_buffer(prefix, lines.data(), lines.size());
  u32* line_start = (u32*)malloc((alone.size() + 1) * sizeof(u32));
  if (split_lines(buffer + PREFIX, (u32)lines.size(), PREFIX, line_start) != alone.size()) return 5;
  open_columns(job, (u32)alone.size());
  job.buffer = buffer;
  job.line_start = line_start;
  job.fill[FILL_DOUBTFUL] = 0;
  parse(&job, 0, 0, (u32)alone.size());
  for (size_t i = 0; i < alone.size(); ++i)
    if (job.verdict[i] != alone[i] - '0') {
      fprintf(stderr, "line %zu: %c alone, %u among others\n", i, alone[i], job.verdict[i]);
      return 6;
    }
  puts(alone.c_str());
  return 0;
}
