// Mutated record batches for walk.cpp, under sanitizers. Usage: fuzz_walk SEEDS ROUNDS; SEEDS is texts, each after its
// length in 32 bits. Three of four mutants get the checksum that belongs to them, so that what follows is reached.
#include <dlfcn.h>

#include <cstdio>
#include <random>
#include <string>

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

static int32_t walked(Walker* walker, const std::string& text, uint32_t wanted, int64_t from) {
  const std::string copy(text);  // a heap block of its own, whose end the sanitizer watches
  const int64_t producers[] = {1, 2}, offsets[] = {0, 5};
  const uint8_t* data = reinterpret_cast<const uint8_t*>(copy.data());
  const Task task{data, copy.size(), from, producers, offsets, 2, wanted};
  Found found;
  walk(walker, &task, &found);
  check(found, task);
  int32_t epoch = -1;
  const int64_t next = next_offset(data, copy.size(), from, &epoch);
  if (found.status == FINE) must(next == found.next_offset && epoch == found.epoch, "what heads tell");
  for (void* memory :
       {static_cast<void*>(found.values), static_cast<void*>(found.keys), static_cast<void*>(found.headers),
        static_cast<void*>(found.ends), static_cast<void*>(found.lengths), static_cast<void*>(found.times),
        static_cast<void*>(found.offsets), static_cast<void*>(found.key_ends), static_cast<void*>(found.key_lengths),
        static_cast<void*>(found.header_ends)})
    release(memory);
  return found.status;
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
  Walker* walker = walker_new(&calls, 1 << 20);
  std::mt19937 chance(1);
  unsigned counts[NO_MEMORY + 1] = {};
  for (int round = 0, rounds = atoi(arguments[2]); round < rounds; ++round) {
    const std::string& seed = seeds[chance() % seeds.size()];
    ++counts[walked(walker, mutated(seed, chance), chance() % 4, chance() % 3 ? 0 : chance() % 50)];
  }
  walker_free(walker);
  for (unsigned count : counts) printf("%u ", count);
  printf("\n");
}
