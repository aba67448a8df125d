// Takes messages out of librdkafka's hands: their values go into one buffer, each ended by a newline, and the rest of
// them into columns. Compiled at first use like the kernels (kernels/build.py); linked with nothing, for the two calls
// that it needs of librdkafka come as pointers.
#include <cstdint>
#include <cstring>

// rd_kafka_message_t, part of librdkafka's stable ABI
struct Message {
  int32_t error;
  void* topic;
  int32_t partition;
  const char* value;
  size_t length;
  void* key;
  size_t key_length;
  int64_t offset;
  void* spare;
};
static_assert(sizeof(Message) == 72, "as in direct.py");

using TimeOf = int64_t (*)(const Message*, int*);
using Destroy = void (*)(Message*);

struct Columns {
  int64_t* lengths;  // of values; -1: a tombstone
  int64_t* ends;     // past each value's newline
  int64_t* times;    // ms; 0: none
  int64_t* offsets;
  uint64_t* topics;
  int32_t* partitions;
  int32_t* errors;
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
