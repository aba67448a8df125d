// Decompression of record batches by the libraries of the formats' own authors. Nothing is linked: codecs.py finds the
// libraries and hands their functions over as pointers. Their C interfaces have been stable for many years; what is
// declared here is the part that we use. Where a library is missing, `other` does the same by a call into Python.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

// An array that grows. Memory from malloc, because it is given away to whoever frees it with `free`.
template <class T>
struct Array {
  T* data = nullptr;
  size_t size = 0, room = 0;

  void reserve(size_t more) {
    if (room - size >= more) return;
    size_t wanted = room + room / 2;
    if (wanted < size + more) wanted = size + more;
    void* moved = realloc(data, wanted * sizeof(T));
    if (!moved) throw std::bad_alloc();
    data = static_cast<T*>(moved);
    room = wanted;
  }
  void append(const T* from, size_t count) {
    reserve(count);
    if (count) memcpy(data + size, from, count * sizeof(T));
    size += count;
  }
};

using Bytes = Array<uint8_t>;

enum Codec : uint8_t { NONE, GZIP, SNAPPY, LZ4, ZSTD };

// z_stream of zlib.h
struct ZStream {
  const uint8_t* next_in;
  unsigned avail_in;
  unsigned long total_in;
  uint8_t* next_out;
  unsigned avail_out;
  unsigned long total_out;
  const char* message;
  void *state, *allocate, *free, *opaque;
  int data_type;
  unsigned long adler, reserved;
};
// ZSTD_inBuffer and ZSTD_outBuffer of zstd.h
struct ZstdIn {
  const void* data;
  size_t size, at;
};
struct ZstdOut {
  void* data;
  size_t size, at;
};

// In the order of `_NAMES` in codecs.py. A codec whose functions are null goes to `other`.
struct Libraries {
  int (*inflate_init)(ZStream*, int, const char*, int);
  int (*inflate)(ZStream*, int);
  int (*inflate_end)(ZStream*);
  int (*snappy_length)(const char*, size_t, size_t*);
  int (*snappy_uncompress)(const char*, size_t, char*, size_t*);
  size_t (*lz4_create)(void**, unsigned);
  size_t (*lz4_free)(void*);
  void (*lz4_reset)(void*);
  size_t (*lz4_decompress)(void*, void*, size_t*, const void*, size_t*, const void*);
  unsigned (*lz4_failed)(size_t);
  void* (*zstd_create)();
  size_t (*zstd_free)(void*);
  size_t (*zstd_reset)(void*, int);
  size_t (*zstd_decompress)(void*, ZstdOut*, ZstdIn*);
  unsigned (*zstd_failed)(size_t);
  int (*other)(int codec, const uint8_t* data, size_t size, Bytes* out);  // 0: done
};

enum class Opened { WHOLE, BAD, TOO_LARGE };

// Keeps the libraries' contexts, which cost more to make than to use. One thread at a time.
class Decompressor {
 public:
  explicit Decompressor(const Libraries& libraries, size_t limit) : calls_(libraries), limit_(limit) {}
  Decompressor(const Decompressor&) = delete;
  ~Decompressor() {
    if (lz4_) calls_.lz4_free(lz4_);
    if (zstd_) calls_.zstd_free(zstd_);
    free(out.data);
  }

  // All that `data` holds, into `out`.
  Opened open(Codec codec, const uint8_t* data, size_t size) {
    out.size = 0;
    if (codec == GZIP && calls_.inflate) return gzip(data, size);
    if (codec == SNAPPY && calls_.snappy_uncompress) return snappy(data, size);
    if (codec == LZ4 && calls_.lz4_decompress) return lz4(data, size);
    if (codec == ZSTD && calls_.zstd_decompress) return zstd(data, size);
    if (calls_.other(codec, data, size, &out)) return Opened::BAD;
    return out.size > limit_ ? Opened::TOO_LARGE : Opened::WHOLE;
  }

  Bytes out;

 private:
  // Room for the next step of a stream; false: the limit is reached.
  bool step(size_t size) {
    if (out.size > limit_) return false;
    out.reserve(out.size ? out.size : 4 * size + 4096);
    return true;
  }

  Opened gzip(const uint8_t* data, size_t size) {
    ZStream stream{};
    stream.next_in = data;
    stream.avail_in = static_cast<unsigned>(size);
    const int gzip_or_zlib = 15 + 32;
    if (calls_.inflate_init(&stream, gzip_or_zlib, "1.2.11", sizeof stream)) throw std::bad_alloc();
    Opened found = Opened::BAD;
    for (;;) {
      if (!step(size)) {
        found = Opened::TOO_LARGE;
        break;
      }
      stream.next_out = out.data + out.size;
      stream.avail_out = static_cast<unsigned>(out.room - out.size);
      const int code = calls_.inflate(&stream, 0);
      out.size = static_cast<size_t>(stream.next_out - out.data);
      const int end = 1;
      if (code == end) found = Opened::WHOLE;
      // Without an error there is more to come only where it has filled the buffer.
      if (code || stream.avail_out) break;
    }
    calls_.inflate_end(&stream);
    return found;
  }

  // Plain, or in the frame of snappy-java: a head of 16 bytes, then blocks, each preceded by its size.
  Opened snappy(const uint8_t* data, size_t size) {
    static const uint8_t mark[8] = {0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0};
    if (size < 16 || memcmp(data, mark, sizeof mark)) return snappy_block(data, size);
    for (size_t at = 16; at < size;) {
      if (size - at < 4) return Opened::BAD;
      const size_t length = static_cast<size_t>(data[at]) << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3];
      at += 4;
      if (length > size - at) return Opened::BAD;
      const Opened block = snappy_block(data + at, length);
      if (block != Opened::WHOLE) return block;
      at += length;
    }
    return Opened::WHOLE;
  }

  Opened snappy_block(const uint8_t* data, size_t size) {
    const char* text = reinterpret_cast<const char*>(data);
    size_t length = 0;
    if (calls_.snappy_length(text, size, &length)) return Opened::BAD;
    if (length > limit_ || out.size + length > limit_) return Opened::TOO_LARGE;
    // No block of this format expands to more than 64 bytes for 3 of its own.
    if (length / 22 > size) return Opened::BAD;
    out.reserve(length);
    if (calls_.snappy_uncompress(text, size, reinterpret_cast<char*>(out.data + out.size), &length)) return Opened::BAD;
    out.size += length;
    return Opened::WHOLE;
  }

  Opened lz4(const uint8_t* data, size_t size) {
    const unsigned version = 100;
    if (!lz4_ && calls_.lz4_failed(calls_.lz4_create(&lz4_, version))) throw std::bad_alloc();
    calls_.lz4_reset(lz4_);
    for (size_t at = 0;;) {
      if (!step(size)) return Opened::TOO_LARGE;
      size_t written = out.room - out.size, read = size - at;
      const size_t wanted = calls_.lz4_decompress(lz4_, out.data + out.size, &written, data + at, &read, nullptr);
      if (calls_.lz4_failed(wanted)) return Opened::BAD;
      out.size += written;
      at += read;
      if (!wanted && at == size) return Opened::WHOLE;
      if (!written && !read) return Opened::BAD;  // it ends early
    }
  }

  Opened zstd(const uint8_t* data, size_t size) {
    if (!zstd_ && !(zstd_ = calls_.zstd_create())) throw std::bad_alloc();
    const int session = 1;
    calls_.zstd_reset(zstd_, session);
    ZstdIn in{data, size, 0};
    for (;;) {
      if (!step(size)) return Opened::TOO_LARGE;
      ZstdOut to{out.data + out.size, out.room - out.size, 0};
      const size_t before = in.at, wanted = calls_.zstd_decompress(zstd_, &to, &in);
      if (calls_.zstd_failed(wanted)) return Opened::BAD;
      out.size += to.at;
      if (!wanted && in.at == in.size) return Opened::WHOLE;
      if (!to.at && in.at == before) return Opened::BAD;
    }
  }

  const Libraries calls_;
  const size_t limit_;
  void *lz4_ = nullptr, *zstd_ = nullptr;
};
