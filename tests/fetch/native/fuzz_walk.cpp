// Mutated record batches for walk.cpp, under sanitizers, and for the kernels of kernels/walk.h, which have to find the
// same in them. Usage: fuzz_walk SEEDS ROUNDS; SEEDS is texts, each after its
// length in 32 bits. Three of four mutants get the checksum that belongs to them, so that what follows is reached.
#include <dlfcn.h>

#include <cstdio>
#include <random>
#include <string>

#define REGION_SPACE_BYTES 1200  // so that some answers fill it, and some leave it

#include "../../../../kernels/walk.h"
#include "walk.cpp"

static void must(bool condition, const char* what) {
  if (condition) return;
  fprintf(stderr, "broken: %s\n", what);
  abort();
}

static int refuse(int, const uint8_t*, size_t, Bytes*) { return 1; }

template <class Function>
static void load(void* library, const char* name, Function& to) {
  to = library ? reinterpret_cast<Function>(dlsym(library, name)) : nullptr;
}

static Libraries libraries() {
  Libraries calls{};
  void* zlib = dlopen("libz.so.1", RTLD_NOW);
  load(zlib, "inflateInit2_", calls.inflate_init);
  load(zlib, "inflate", calls.inflate);
  load(zlib, "inflateEnd", calls.inflate_end);
  void* snappy = dlopen("libsnappy.so.1", RTLD_NOW);
  load(snappy, "snappy_uncompressed_length", calls.snappy_length);
  load(snappy, "snappy_uncompress", calls.snappy_uncompress);
  void* lz4 = dlopen("liblz4.so.1", RTLD_NOW);
  load(lz4, "LZ4F_createDecompressionContext", calls.lz4_create);
  load(lz4, "LZ4F_freeDecompressionContext", calls.lz4_free);
  load(lz4, "LZ4F_resetDecompressionContext", calls.lz4_reset);
  load(lz4, "LZ4F_decompress", calls.lz4_decompress);
  load(lz4, "LZ4F_isError", calls.lz4_failed);
  void* zstd = dlopen("libzstd.so.1", RTLD_NOW);
  load(zstd, "ZSTD_createDCtx", calls.zstd_create);
  load(zstd, "ZSTD_freeDCtx", calls.zstd_free);
  load(zstd, "ZSTD_DCtx_reset", calls.zstd_reset);
  load(zstd, "ZSTD_decompressStream", calls.zstd_decompress);
  load(zstd, "ZSTD_isError", calls.zstd_failed);
  calls.other = refuse;
  return calls;
}

static void mend(std::string& text) {
  uint8_t* data = reinterpret_cast<uint8_t*>(text.data());
  for (size_t at = 0; at < text.size();) {
    const int64_t size = batch_size(data + at, text.size() - at);
    if (size < static_cast<int64_t>(HEAD)) return;
    const uint32_t crc = crc32c(data + at + CHECKED_FROM, static_cast<size_t>(size) - CHECKED_FROM);
    for (int i = 0; i < 4; ++i) data[at + 17 + i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
    at += static_cast<size_t>(size);
  }
}

static std::string mutated(std::string text, std::mt19937& chance) {
  const unsigned changes = chance() % 4;
  for (unsigned i = 0; i < changes && !text.empty(); ++i) {
    const size_t at = chance() % 3 ? chance() % text.size() : chance() % std::min<size_t>(text.size(), 80);
    switch (chance() % 5) {
      case 0:
        text[at] = static_cast<char>(chance());
        break;
      case 1:
        text[at] = static_cast<char>(text[at] ^ 1 << chance() % 8);
        break;
      case 2:
        text.erase(at, chance() % 9);
        break;
      case 3:
        text.insert(at, text.substr(chance() % text.size(), chance() % 9));
        break;
      default:
        text.resize(at);
        break;
    }
  }
  if (chance() % 4) mend(text);
  return text;
}

// What walk.py relies on.
static void check(const Found& found, const Task& task) {
  must(found.walked <= task.size && found.next_offset >= task.from, "where it ended");
  int64_t end = 0, key_end = 0, header_end = 0, offset = task.from - 1;
  for (uint64_t i = 0; i < found.count; ++i) {
    must(found.lengths[i] >= -1 && found.ends[i] - end >= std::max<int64_t>(found.lengths[i], 1), "ends of values");
    end = found.ends[i];
    must(found.values[end - 1] == '\n', "a newline ends each value");
    must(found.offsets[i] > offset, "offsets rise");
    offset = found.offsets[i];
    must(found.times[i] >= 0, "times");
    if (task.wanted & KEYS) {
      must(found.key_ends[i] - key_end == std::max<int64_t>(found.key_lengths[i], 0), "ends of keys");
      key_end = found.key_ends[i];
    }
    if (task.wanted & HEADERS) {
      must(found.header_ends[i] >= header_end, "ends of headers");
      header_end = found.header_ends[i];
    }
  }
  must(end == static_cast<int64_t>(found.value_bytes), "bytes of values");
  must(key_end == static_cast<int64_t>(found.key_bytes), "bytes of keys");
  must(header_end == static_cast<int64_t>(found.header_bytes), "bytes of headers");
}

static unsigned regions = 0;

static void release_values(const Found& found) {
  if (!found.region) return release(found.values);
  ++regions;
  uint8_t* region = found.values - tokenometer::PREFIX_BYTES;
  for (size_t at = 0; at < found.region; ++at) {
    const bool around = at < tokenometer::PREFIX_BYTES || at >= tokenometer::PREFIX_BYTES + REGION_SPACE;
    must(!around || !region[at], "nothing is written around the values");
  }
  give_back(region);
}

static void release_all(const Found& found) {
  release_values(found);
  for (void* memory :
       {static_cast<void*>(found.keys), static_cast<void*>(found.headers), static_cast<void*>(found.batches),
        static_cast<void*>(found.ends), static_cast<void*>(found.lengths), static_cast<void*>(found.times),
        static_cast<void*>(found.offsets), static_cast<void*>(found.key_ends), static_cast<void*>(found.key_lengths),
        static_cast<void*>(found.header_ends)})
    release(memory);
}

// What a device makes of opened batches, as kernels/loaded.py has it done; compared with what the host has read.
static void walk_on_device(const Found& opened, const Found& host, int64_t from) {
  using namespace tokenometer;
  const u32 batches = (u32)opened.batch_count;
  const u32 records = batches ? opened.batches[batches - 1].first + opened.batches[batches - 1].count : 0;
  std::vector<u8> data(opened.values, opened.values + opened.value_bytes);
  data.resize(data.size() + PADDING_BYTES, 0xff);
  std::vector<RawSpan> spans(records);
  std::vector<u64> offsets(records), times(records), broken(1);
  std::vector<u32> values(records), sizes(records), ends;
  Walk walk{data.data(),  opened.batches, spans.data(), offsets.data(), times.data(), values.data(),
            sizes.data(), nullptr,        nullptr,      broken.data(),  batches,      0};
  for (u32 k = batches; k--;) find_records_of(walk, k);  // in any order
  for (u32 i = records; i--;) read_record_of(walk, i);
  u32 first = 0, last = broken[0] ? opened.batches[batches - broken[0]].first : records;
  while (first < last && (int64_t)offsets[first] < from) ++first;
  for (u32 i = first; i < last; ++i) ends.push_back((ends.empty() ? 0 : ends.back()) + sizes[i]);
  walk.values += first, walk.sizes += first, walk.ends = ends.data(), walk.count = last - first;
  const u32 bytes = ends.empty() ? 0 : ends.back(), words = (bytes + PADDING_BYTES + 7) / 8;
  std::vector<u64> lines(words);
  walk.lines = (u8*)lines.data();
  for (u32 k = words; k--;) place_word_of(walk, k);

  if (broken[0]) must(host.status == BAD_BATCH, "a batch is broken on the device alone");
  if (!broken[0] && opened.status != FULL) must(host.status == opened.status, "a batch is broken on the host alone");
  must(opened.status == FULL ? walk.count <= host.count : walk.count == host.count, "how many messages there are");
  for (u32 i = 0; i < walk.count; ++i) {
    must((int64_t)offsets[first + i] == host.offsets[i] && (int64_t)times[first + i] == host.times[i], "columns");
    must(ends[i] == host.ends[i], "where lines end");
  }
  must(!bytes || !memcmp(walk.lines, host.values, bytes), "lines");
  for (u32 at = bytes; at < 8 * words; ++at) must(walk.lines[at] == '\n', "newlines after the last line");
}

static int32_t walked(Walker* walker, const std::string& text, uint32_t wanted, int64_t from, uint64_t room) {
  const std::string copy(text);  // a heap block of its own, whose end the sanitizer watches
  const int64_t producers[] = {1, 2}, offsets[] = {0, 5};
  const uint8_t* data = reinterpret_cast<const uint8_t*>(copy.data());
  const Task task{data, copy.size(), from, producers, offsets, 2, 0, wanted};
  Found found;
  walk(walker, &task, &found);
  check(found, task);
  int32_t epoch = -1;
  const int64_t next = next_offset(data, copy.size(), from, &epoch);
  if (found.status == FINE) must(next == found.next_offset && epoch == found.epoch, "what heads tell");
  Task opening = task;
  opening.room = room, opening.wanted = 0;
  Found opened;
  walk(walker, &opening, &opened);
  must(opened.value_bytes <= room && opened.walked <= task.size, "what fits");
  if (!(wanted & HEADERS)) walk_on_device(opened, found, from);  // which does not look at them
  release_all(found);
  release_all(opened);
  return opened.status == FULL ? FULL : found.status;
}

int main(int, char** arguments) {
  std::vector<std::string> seeds;
  FILE* file = fopen(arguments[1], "rb");
  must(file, "there are no seeds");
  for (uint32_t size; fread(&size, sizeof size, 1, file) == 1;) {
    seeds.emplace_back(size, '\0');
    must(fread(seeds.back().data(), 1, size, file) == size, "a seed ends early");
  }
  fclose(file);
  const Libraries calls = libraries();
  Walker* walker = walker_new(&calls, 1 << 17);
  std::mt19937 chance(1);
  unsigned counts[FULL + 1] = {};
  for (int round = 0, rounds = atoi(arguments[2]); round < rounds; ++round) {
    const std::string& seed = seeds[chance() % seeds.size()];
    const int64_t from = chance() % 3 ? 0 : chance() % 50;
    const uint64_t room = chance() % 3 ? 8 << 20 : 1 + chance() % 4000;
    ++counts[walked(walker, mutated(seed, chance), chance() % 4, from, room)];
  }
  walker_free(walker);
  must(regions, "some answers come in a region");
  for (unsigned count : counts) printf("%u ", count);
  printf("\n");
}
