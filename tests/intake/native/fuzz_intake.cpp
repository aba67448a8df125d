// Every decoder on messages that went wrong, for AddressSanitizer and UBSan. The first byte of an input names the
// decoder, the rest is the message, which lies in memory of exactly its size, and then among others.
//
// Built with -DLIBFUZZER it is a target of libFuzzer; without, a small fuzzer of its own: SETUP SEED_FILE MUTANTS.
#include "intake.cpp"

#include <cstdio>
#include <fstream>
#include <iterator>

typedef std::vector<u8> Buffer;

static std::vector<Buffer> recipes;
static Buffer avro_parts[3];  // nodes, children, texts

static Buffer read_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return Buffer(std::istreambuf_iterator<char>(file), {});
}

// Parts of a file, each after its length in four bytes
static std::vector<Buffer> parts_of(const Buffer& file) {
  std::vector<Buffer> parts;
  for (u64 at = 0; at + 4 <= file.size();) {
    u32 n;
    memcpy(&n, file.data() + at, 4);
    parts.emplace_back(file.begin() + (i64)at + 4, file.begin() + (i64)(at + 4 + n));
    at += 4 + n;
  }
  return parts;
}

static void set_up(const char* path) {
  std::vector<Buffer> parts = parts_of(read_file(path));
  for (u32 i = 0; i < 3; ++i) avro_parts[i] = parts[i];
  recipes.assign(parts.begin() + 3, parts.end());
}

struct Result {
  Buffer lines;
  u8 failure;
};

// room: of the message's memory; where more than its bytes is there, decoders need no copy to read it. space: the first
// memory for its lines.
static Result decoded(u8 kind, const u8* message, i64 length, u64 room, u64 space) {
  const u64 address = (u64)message;
  const i64 inject_ends[2] = {0, 10};
  i64 end = 0;
  u8 failure = 0;
  u8* lines = space ? (u8*)malloc(space) : nullptr;
  Task task = {&address,    &length, message,  room,  0,     1,       ~0ull, nullptr,
               inject_ends, &end,    &failure, lines, space, nullptr, 0,     0};
  if (kind & 0x80) task.inject = (const u8*)"\"@key\":\"k\",";
  const u32 which = (kind & 0x7f) % (recipes.size() + 3);
  int failed;
  if (which < recipes.size()) {
    failed = decode_lines(&task, recipes[which].data());
  } else {
    const AvroSchema schema = {(const AvroNode*)avro_parts[0].data(), (const AvroChild*)avro_parts[1].data(),
                               avro_parts[2].data()};
    const int first = 0;
    static const u32 frames[] = {0, 5, 10};
    failed = decode_avro(&task, &schema, &first, frames[which - recipes.size()], 1 << 16);
  }
  // What every decoder promises: whole lines, at least one.
  if (failed || task.done != 1 || !task.size || task.lines[task.size - 1] != '\n' || end != (i64)task.size) abort();
  Result result = {Buffer(task.lines, task.lines + task.size), failure};
  if (task.lines != lines) release(task.lines);
  free(lines);
  return result;
}

extern "C" int LLVMFuzzerTestOneInput(const u8* input, size_t size) {
  if (!size) return 0;
  const i64 length = (i64)size - 1;
  u8* message = (u8*)malloc(length ? (u64)length : 1);
  memcpy(message, input + 1, (u64)length);
  const Result alone = decoded(input[0], message, length, 0, (u64)length + 130);
  i64 claimed[2];
  u8 plain;
  const i64 start = 0;
  if (look(message, &start, &length, 1, ~1u, claimed, &plain) == plain) abort();
  free(message);
  // With other messages after it: what they hold changes nothing.
  const char* after = size % 2 ? "\"}]\x0a\x12" : "\xff\x00";
  Buffer among(input + 1, input + size);
  for (u64 i = 0; i < SLACK; ++i) among.push_back((u8)after[i % 2]);
  const Result other = decoded(input[0], among.data(), length, among.size(), 0);
  if (other.lines != alone.lines || other.failure != alone.failure) abort();
  return 0;
}

#if defined(LIBFUZZER)

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  set_up(getenv("INTAKE_SETUP"));
  return 0;
}

#else

static u64 state = 88172645463325252ull;
static u64 random_below(u64 n) {
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return n ? state % n : 0;
}

static void mutate(Buffer& message, const std::vector<Buffer>& seeds) {
  static const char pieces[] = "[]{},:\"\\\n\r 0-1e9.\x0a\x12\x1a\x22\x2a\x7f\x80\xff\xc3";
  const u64 at = random_below(message.size() + 1);
  const auto place = message.begin() + (i64)at;
  switch (random_below(6)) {
    case 0:
      message.insert(place, (u8)pieces[random_below(sizeof pieces - 1)]);
      break;
    case 1:
      message.erase(place, place + (i64)random_below(1 + (message.size() - at < 40 ? message.size() - at : 40)));
      break;
    case 2:
      if (at < message.size()) message[at] = (u8)random_below(256);
      break;
    case 3:
      message.resize(at);
      break;
    case 4:
      if (at < message.size()) message[at] ^= (u8)(1u << random_below(8));
      break;
    default: {
      const Buffer& other = seeds[random_below(seeds.size())];
      const u64 begin = random_below(other.size() + 1), n = random_below(other.size() - begin + 1) % 80;
      message.insert(place, other.begin() + (i64)begin, other.begin() + (i64)(begin + n));
    }
  }
}

int main(int, char** argv) {
  set_up(argv[1]);
  const std::vector<Buffer> seeds = parts_of(read_file(argv[2]));
  const u64 mutants = strtoull(argv[3], nullptr, 10);
  for (u64 i = 0; i < mutants + seeds.size(); ++i) {
    Buffer message = i < seeds.size() ? seeds[i] : seeds[random_below(seeds.size())];
    const u64 changes = i < seeds.size() ? 0 : 1 + random_below(6);
    for (u64 k = 0; k < changes; ++k) mutate(message, seeds);
    if (random_below(4) == 0) message.insert(message.begin(), (u8)random_below(256));
    LLVMFuzzerTestOneInput(message.data(), message.size());
  }
  printf("%llu messages\n", mutants + (u64)seeds.size());
  return 0;
}

#endif
