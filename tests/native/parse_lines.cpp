// Each line of stdin alone in a heap buffer of exactly its size, then all in one: parse_lines PLAN PREFIX < LINES
// Built with AddressSanitizer and UndefinedBehaviorSanitizer, a read too far ends it. Prints verdicts, a digit a line:
// what the lines are as they stand, and then with their escapes written out.
#include "job.h"
#include <iostream>

// The buffer has room for other spellings. Adds the verdicts on `count` lines, as they stand and respelled.
static void judge(Job& job, u8* buffer, u32* line_start, size_t length, u32 count, std::string* verdicts) {
  job.buffer = buffer;
  job.respelled = respelled_in(buffer, length);
  job.line_start = line_start;
  job.fill[FILL_DOUBTFUL] = job.fill[FILL_RESPELLED] = 0;
  parse(&job, 0, 0, count);
  for (u32 i = 0; i < count; ++i) verdicts[0] += (char)('0' + job.records[i].verdict);
  const u32 doubtful = (u32)job.fill[FILL_DOUBTFUL];
  respell(&job, 0, 0, doubtful);
  read_respelled(&job, 0, 0, doubtful);
  for (u32 i = 0; i < count; ++i) verdicts[1] += (char)('0' + job.records[i].verdict);
}

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const Plan* plan = read_plan(argv[1]);
  const std::string prefix = read_file(argv[2]);
  const std::string lines((std::istreambuf_iterator<char>(std::cin)), std::istreambuf_iterator<char>());

  Job job;
  open_job(job, plan);
  job.records = table<Record>(1);
  job.spots = table<u64>(SPOT_WORDS);
  job.doubtful = table<u32>(1);
  job.extras = table<Extra>(1);
  job.identities = table<Identity>(1);  // asked for ahead of need
  job.texts = table<TextEntry>(1);
  std::string alone[2], together[2];
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = lines.find('\n', begin) + 1;
    u8* buffer = make_buffer(prefix, lines.data() + begin, end - begin, false);
    u32 line_start[2];
    if (split_lines(buffer + PREFIX_BYTES, (u32)(end - begin), PREFIX_BYTES, line_start) != 1) return 4;
    job.buffer = buffer;
    job.line_start = line_start;
    job.fill[FILL_DOUBTFUL] = 0;
    parse(&job, 0, 0, 1);
    const u32 exactly = job.records[0].verdict;
    free(buffer);
    buffer = make_buffer(prefix, lines.data() + begin, end - begin, true);
    judge(job, buffer, line_start, end - begin, 1, alone);
    if (alone[0].back() != (char)('0' + exactly)) return 7;
    free(buffer);
    begin = end;
  }

  const size_t count = alone[0].size();
  u8* buffer = make_buffer(prefix, lines.data(), lines.size(), true);
  u32* line_start = (u32*)malloc((count + 1) * sizeof(u32));
  if (split_lines(buffer + PREFIX_BYTES, (u32)lines.size(), PREFIX_BYTES, line_start) != count) return 5;
  job.records = table<Record>(count);
  job.spots = table<u64>(count * SPOT_WORDS);
  job.doubtful = table<u32>(count);
  job.extras = table<Extra>(count);
  judge(job, buffer, line_start, lines.size(), (u32)count, together);
  for (u32 way = 0; way < 2; ++way)
    for (size_t i = 0; i < count; ++i)
      if (together[way][i] != alone[way][i]) {
        fprintf(stderr, "line %zu: %c alone, %c among others\n", i, alone[way][i], together[way][i]);
        return 6;
      }
  puts(alone[0].c_str());
  puts(alone[1].c_str());
  return 0;
}
