// Takes messages out of librdkafka's hands: their values go into one buffer, each ended by a newline, and the rest of
// them into columns. Keys and headers, where they are asked for, go into buffers of their own before that. Compiled at
// first use like the kernels (kernels/build.py); linked with nothing, for the calls that it needs of librdkafka come as
// pointers.
#include <cstdint>
#include <cstring>

// rd_kafka_message_t, part of librdkafka's stable ABI
struct Message {
  int32_t error;
  void* topic;
  int32_t partition;
  const char* value;
  size_t length;
  const char* key;
  size_t key_length;
  int64_t offset;
  void* spare;
};
static_assert(sizeof(Message) == 72, "as in direct.py");

using TimeOf = int64_t (*)(const Message*, int*);
using Destroy = void (*)(Message*);
using HeadersOf = int (*)(const Message*, void**);                                   // 0: there are some
using HeaderAt = int (*)(const void*, size_t, const char**, const void**, size_t*);  // 0: there is one

struct Columns {
  int64_t* lengths;  // of values; -1: a tombstone
  int64_t* ends;     // past each value's newline
  int64_t* times;    // ms; 0: none
  int64_t* offsets;
  uint64_t* topics;
  int32_t* partitions;
  int32_t* errors;
};

// What comes beside the values.
struct Beside {
  int64_t* key_lengths;  // -1: none
  int64_t* key_ends;
  int64_t* header_ends;
};

enum Wanted : uint8_t { KEY = 1, HEADERS = 2 };

struct Librdkafka {
  HeadersOf headers_of;
  HeaderAt header_at;
};

#define ENTRY extern "C" __attribute__((visibility("default")))

// The most bytes that `gather` will write.
ENTRY uint64_t gathered_bytes(Message* const* messages, uint32_t count) {
  uint64_t size = 0;
  for (uint32_t i = 0; i < count; ++i) size += messages[i]->error ? 0 : messages[i]->length + 1;
  return size;
}

ENTRY void gather(Message** messages, uint32_t count, TimeOf time_of, Destroy destroy, char* out, const Columns* to) {
  int64_t at = 0;
  for (uint32_t i = 0; i < count; ++i) {
    Message* message = messages[i];
    int kind = 0;
    const int64_t time = time_of(message, &kind);
    to->times[i] = time < 0 ? 0 : time;
    to->offsets[i] = message->offset;
    to->topics[i] = reinterpret_cast<uint64_t>(message->topic);
    to->partitions[i] = message->partition;
    to->errors[i] = message->error;
    to->lengths[i] = message->value ? static_cast<int64_t>(message->length) : -1;
    if (!message->error) {
      if (message->length) memcpy(out + at, message->value, message->length);
      at += static_cast<int64_t>(message->length);
      if (!message->length || out[at - 1] != '\n') out[at++] = '\n';
    }
    to->ends[i] = at;
    destroy(message);
  }
}

// --- Keys and headers ---

ENTRY void topics_of(Message* const* messages, uint32_t count, uint64_t* topics) {
  for (uint32_t i = 0; i < count; ++i) topics[i] = reinterpret_cast<uint64_t>(messages[i]->topic);
}

// Calls `use(name, value, length)` for each header; a value without bytes may be none at all.
template <class Use>
static void each_header(const Message* message, const Librdkafka& library, Use use) {
  void* headers = nullptr;
  if (message->error || library.headers_of(message, &headers)) return;
  const char* name;
  const void* value;
  size_t length;
  for (size_t i = 0; !library.header_at(headers, i, &name, &value, &length); ++i) use(name, value, length);
}

// The bytes that `gather_beside` will write of keys and of headers.
ENTRY void beside_bytes(Message* const* messages, uint32_t count, const uint8_t* wanted, const Librdkafka* library,
                        uint64_t* sizes) {
  for (uint32_t i = 0; i < count; ++i) {
    const Message* message = messages[i];
    if (wanted[i] & KEY && !message->error) sizes[0] += message->key_length;
    if (wanted[i] & HEADERS)
      each_header(message, *library, [&](const char* name, const void*, size_t length) {
        sizes[1] += 2 * sizeof(int32_t) + strlen(name) + length;
      });
  }
}

// Before `gather`, which gives the messages back. A header is written as two lengths (a value's is -1: none) of 32
// bits, its name, its value.
ENTRY void gather_beside(Message* const* messages, uint32_t count, const uint8_t* wanted, const Librdkafka* library,
                         char* keys, char* headers, const Beside* to) {
  char *key = keys, *header = headers;
  const auto put = [](char*& at, const void* from, size_t length) {
    if (length) memcpy(at, from, length);
    at += length;
  };
  for (uint32_t i = 0; i < count; ++i) {
    const Message* message = messages[i];
    const bool has_key = wanted[i] & KEY && !message->error && message->key;
    if (has_key) put(key, message->key, message->key_length);
    to->key_lengths[i] = has_key ? static_cast<int64_t>(message->key_length) : -1;
    to->key_ends[i] = key - keys;
    if (wanted[i] & HEADERS)
      each_header(message, *library, [&](const char* name, const void* value, size_t length) {
        const int32_t lengths[2] = {static_cast<int32_t>(strlen(name)), value ? static_cast<int32_t>(length) : -1};
        put(header, lengths, sizeof lengths);
        put(header, name, static_cast<size_t>(lengths[0]));
        put(header, value, value ? length : 0);
      });
    to->header_ends[i] = header - headers;
  }
}
