// Messages of one partition, out of librdkafka's queue for it and into columns, without an object for each.
// A Drain belongs to one thread at a time. A number below 0: there is no memory.
#include <sys/types.h>

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

// rd_kafka_message_t, part of librdkafka's stable ABI.
struct Message {
  int32_t error;
  void* topic;
  int32_t partition;
  const uint8_t* value;
  size_t size;
  const uint8_t* key;
  size_t key_size;
  int64_t offset;
  void* spare;
};
static_assert(sizeof(Message) == 72, "as in rdkafka.h");

// Functions of librdkafka.
struct Library {
  ssize_t (*consume)(void* queue, int wait_ms, Message** messages, size_t most);
  int64_t (*timestamp)(const Message*, int* kind);
  void (*destroy)(Message*);
};

// What was taken: `errors` of it are no messages.
struct Taken {
  uint64_t messages, value_bytes, key_bytes, errors;
};

struct Columns {
  uint8_t *values, *keys;
  int64_t *starts, *lengths, *key_starts, *key_lengths, *times, *offsets;
};

struct Drain {
  Library library;
  void* queue;
  std::vector<Message*> held;
};

void copy(const uint8_t* data, size_t size, uint8_t* to, int64_t* start, int64_t* length, uint64_t* written) {
  *start = static_cast<int64_t>(*written);
  *length = data == nullptr ? -1 : static_cast<int64_t>(size);
  if (data == nullptr) return;
  std::memcpy(to + *written, data, size);
  *written += size;
}

}  // namespace

#define ENTRY extern "C" __attribute__((visibility("default")))

ENTRY Drain* drain_new(const Library* library, void* queue) { return new (std::nothrow) Drain{*library, queue, {}}; }

ENTRY void drain_clear(Drain* drain) {
  for (Message* message : drain->held) drain->library.destroy(message);
  drain->held.clear();
}

ENTRY void drain_free(Drain* drain) {
  drain_clear(drain);
  delete drain;
}

// Waits for the first one, and a little for others.
ENTRY int64_t drain_take(Drain* drain, int wait_ms, int linger_ms, uint64_t most, Taken* taken) {
  drain_clear(drain);
  *taken = Taken{};
  try {
    drain->held.resize(most);
  } catch (const std::bad_alloc&) { return -1; }
  ssize_t count = drain->library.consume(drain->queue, wait_ms, drain->held.data(), 1);
  if (count == 1 && most > 1) {
    const ssize_t more = drain->library.consume(drain->queue, linger_ms, drain->held.data() + 1, most - 1);
    count += more > 0 ? more : 0;
  }
  drain->held.resize(count > 0 ? static_cast<size_t>(count) : 0);
  for (const Message* message : drain->held) {
    if (message->error != 0) {
      ++taken->errors;
      continue;
    }
    ++taken->messages;
    taken->value_bytes += message->value == nullptr ? 0 : message->size;
    taken->key_bytes += message->key == nullptr ? 0 : message->key_size;
  }
  return 0;
}

// keys: null where nobody asks for them.
ENTRY void drain_fill(const Drain* drain, const Columns* to) {
  uint64_t at = 0, values = 0, keys = 0;
  for (const Message* message : drain->held) {
    if (message->error != 0) continue;
    int kind;
    const int64_t time = drain->library.timestamp(message, &kind);
    to->times[at] = time > 0 ? time : 0;
    to->offsets[at] = message->offset;
    copy(message->value, message->size, to->values, to->starts + at, to->lengths + at, &values);
    if (to->keys) copy(message->key, message->key_size, to->keys, to->key_starts + at, to->key_lengths + at, &keys);
    ++at;
  }
}

// Of the errors their codes and offsets. Their texts follow from the codes.
ENTRY void drain_errors(const Drain* drain, int32_t* codes, int64_t* offsets) {
  for (const Message* message : drain->held) {
    if (message->error == 0) continue;
    *codes++ = message->error;
    *offsets++ = message->offset;
  }
}
