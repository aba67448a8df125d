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

// Of what is taken, or may be. Of a message that finds no room: what it and those that came with it need.
struct Amount {
  uint64_t messages, value_bytes, key_bytes;
};

// held: messages that found no room behind those that were taken.
struct Taken {
  Amount amount;
  uint64_t errors, held;
};

struct Columns {
  uint8_t *values, *keys;
  int64_t *starts, *lengths, *key_starts, *key_lengths, *times, *offsets;
};

struct Error {
  int32_t code;
  int64_t offset;
};

constexpr uint64_t AT_ONCE = 2000;  // of more, most have left the cache when they are copied
enum Answer : int64_t { NO_MEMORY = -1, DONE, NO_ROOM };

struct Drain {
  Library library;
  void* queue;
  std::vector<Message*> held;
  std::vector<Error> errors;

  // Waits for the first one, and a little for others. Returns whether there may be more.
  bool consume(int wait_ms, int linger_ms, uint64_t most) {
    held.resize(most);
    ssize_t count = library.consume(queue, wait_ms, held.data(), 1);
    if (count == 1 && most > 1) {
      const ssize_t more = library.consume(queue, linger_ms, held.data() + 1, most - 1);
      count += more > 0 ? more : 0;
    }
    held.resize(count > 0 ? static_cast<size_t>(count) : 0);
    return held.size() == most;
  }

  // keys: whether anybody asks for them.
  Amount amount(bool keys) const {
    Amount found{};
    for (const Message* message : held) {
      if (message->error != 0) continue;
      ++found.messages;
      found.value_bytes += message->value == nullptr ? 0 : message->size;
      found.key_bytes += keys && message->key != nullptr ? message->key_size : 0;
    }
    return found;
  }

  void destroy() {
    for (Message* message : held) library.destroy(message);
    held.clear();
  }
};

void copy(const uint8_t* data, size_t size, uint8_t* to, int64_t* start, int64_t* length, uint64_t* written) {
  *start = static_cast<int64_t>(*written);
  *length = data == nullptr ? -1 : static_cast<int64_t>(size);
  if (data == nullptr) return;
  std::memcpy(to + *written, data, size);
  *written += size;
}

// There is room.
void move(Drain& drain, const Columns& to, Amount& done) {
  for (const Message* message : drain.held) {
    if (message->error != 0) {
      drain.errors.push_back({message->error, message->offset});
      continue;
    }
    const uint64_t at = done.messages++;
    int kind;
    const int64_t time = drain.library.timestamp(message, &kind);
    to.times[at] = time > 0 ? time : 0;
    to.offsets[at] = message->offset;
    copy(message->value, message->size, to.values, to.starts + at, to.lengths + at, &done.value_bytes);
    if (!to.keys) continue;
    copy(message->key, message->key_size, to.keys, to.key_starts + at, to.key_lengths + at, &done.key_bytes);
  }
  drain.destroy();
}

}  // namespace

#define ENTRY extern "C" __attribute__((visibility("default")))

ENTRY Drain* drain_new(const Library* library, void* queue) {
  return new (std::nothrow) Drain{*library, queue, {}, {}};
}

ENTRY void drain_free(Drain* drain) {
  drain->destroy();
  delete drain;
}

// Messages go into columns until these are full, or for a little while no more come. keys: null where nobody asks for
// them. NO_ROOM: not even those at hand found any; `taken` says what they need, and they are kept.
ENTRY int64_t drain_take(Drain* drain, int wait_ms, int linger_ms, const Amount* room, const Columns* to,
                         Taken* taken) {
  *taken = Taken{};
  Amount& done = taken->amount;
  drain->errors.clear();
  try {
    bool more = true;
    while (more && (done.messages < room->messages || !drain->held.empty())) {
      if (drain->held.empty()) {
        const uint64_t left = room->messages - done.messages;
        more = drain->consume(done.messages ? 0 : wait_ms, linger_ms, left < AT_ONCE ? left : AT_ONCE);
      }
      const Amount next = drain->amount(to->keys != nullptr);
      if (done.messages + next.messages > room->messages || done.value_bytes + next.value_bytes > room->value_bytes ||
          done.key_bytes + next.key_bytes > room->key_bytes) {
        if (done.messages > 0 || !drain->errors.empty()) break;
        done = next;
        return NO_ROOM;
      }
      move(*drain, *to, done);
    }
  } catch (const std::bad_alloc&) { return NO_MEMORY; }
  taken->errors = drain->errors.size();
  taken->held = drain->held.size();
  return DONE;
}

// Of the errors their codes and offsets. Their texts follow from the codes.
ENTRY void drain_errors(const Drain* drain, int32_t* codes, int64_t* offsets) {
  for (const Error& error : drain->errors) {
    *codes++ = error.code;
    *offsets++ = error.offset;
  }
}
