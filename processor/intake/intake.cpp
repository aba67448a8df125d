// Values of messages into lines: the entries that native.py binds. Compiled at first use like the kernels.
#include "avro.h"
#include "otlp_proto.h"
#include "traces.h"

using namespace tokenometer;

#define ENTRY extern "C" __attribute__((visibility("default")))

// What claims a value by its first bytes. As in native.py.
enum Claim : u8 { PLAIN, ARRAY, TEXT, FRAME, MARK, GZIP, ZSTD };
enum Failure : u8 { NONE, TOO_LARGE, BAD_ENCODING, UNKNOWN_SCHEMA };

// Messages `first` to `count` of a column, as far as the lines stay below `stop_bytes`; at least one.
struct Task {
  const u64* addresses;
  const i64* lengths;  // -1: no value
  const u8* memory;    // where most values are: one that has SLACK bytes of it after it need not be copied to be read
  u64 memory_bytes;
  u64 first, count, stop_bytes;
  const u8* inject;  // members for every record of message i: inject_ends[i]..inject_ends[i + 1]; or null
  const i64* inject_ends;
  i64* ends;     // past each message's last line
  u8* failures;  // Failure of each message
  u8* space;     // the caller's memory for the lines
  u64 space_bytes;
  u8* lines;  // the result: in `space`, or where they outgrew it, to be freed with `release`
  u64 size, done;
};

static Claim claim_of(const u8* p, i64 n) {
  switch (*p) {
    case '[':
      return ARRAY;
    case '"':
      return TEXT;
    case 0:
      return n >= 5 ? FRAME : PLAIN;
    case 0xef:
      return n >= 3 && p[1] == 0xbb && p[2] == 0xbf ? MARK : PLAIN;
    case 0x1f:
      return n >= 3 && p[1] == 0x8b && p[2] == 8 ? GZIP : PLAIN;
    case 0x28:
      return n >= 4 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd ? ZSTD : PLAIN;
    default:
      return PLAIN;
  }
}

constexpr u64 LOOK_AHEAD = 32;  // values whose first bytes are asked for meanwhile: each is in a cache line of its own

// One look at the first byte of each value: which messages are claimed by one of `openers`, a bit for each Claim.
// Returns their number. *plain: nothing has a claim on any value, whether it is asked for or not.
ENTRY u64 look(const u8* data, const i64* starts, const i64* lengths, u64 count, u32 openers, i64* claimed, u8* plain) {
  u64 found = 0;
  u32 claims = 0;
  for (u64 i = 0; i < count; ++i) {
    if (i + LOOK_AHEAD < count) __builtin_prefetch(data + starts[i + LOOK_AHEAD]);
    if (lengths[i] <= 0) continue;
    const u8* p = data + starts[i];
    if (LIKELY(*p == '{')) continue;
    const u32 claim = 1u << claim_of(p, lengths[i]);
    claims |= claim;
    claimed[found] = (i64)i;
    found += (claim & openers) != 0;
  }
  *plain = claims <= 1u << PLAIN;
  return found;
}

// The schema's id that each value begins with; -1: none.
ENTRY void frames(const u64* addresses, const i64* lengths, u64 count, i64* ids) {
  for (u64 i = 0; i < count; ++i) {
    const u8* p = (const u8*)addresses[i];
    ids[i] = lengths[i] < 5 || *p ? -1 : (i64)((u32)p[1] << 24 | (u32)p[2] << 16 | (u32)p[3] << 8 | p[4]);
  }
}

// Runs decode(message, i) for each; it answers with a Failure, may throw TooLarge, and may leave some lines when it
// fails.
template <class Decode>
static int run(Task* task, Out& out, Decode&& decode) {
  try {
    u64 i = task->first;
    for (; i < task->count && (i == task->first || out.size < task->stop_bytes); ++i) {
      const u64 begin = out.size;
      Failure failure = NONE;
      try {
        if (task->lengths[i] < 0)
          out.put((u8)'\n');
        else
          failure = decode(Text{(const u8*)task->addresses[i], (u64)task->lengths[i]}, i);
      } catch (const TooLarge&) { failure = TOO_LARGE; }
      if (failure) {
        out.size = begin;
        out.put(text(BAD_LINE));
      }
      task->failures[i] = failure;
      task->ends[i] = (i64)out.size;
    }
    task->done = i;
    task->size = out.size;
    task->lines = out.release();
    return 0;
  } catch (const std::bad_alloc&) { return 1; }
}

static Text padded(const Task* task, Out& scratch, Text value) {
  const u64 at = (u64)value.p - (u64)task->memory;
  const bool has = at <= task->memory_bytes && value.n + SLACK <= task->memory_bytes - at;
  return LIKELY(has) ? value : as_padded(scratch, value);
}

static int spans(Task* task, const Recipe& recipe, Out& out) {
  SpanLines lines(out, recipe.limit);
  OtlpJson json(lines);
  OtlpProto proto(lines);
  Traces traces(recipe, lines);
  Out scratch;
  const auto otlp = [&](Text value) {
    // A protobuf message begins with a newline, the tag of its first field; so may a JSON text.
    if (value.n && (*value.p == '{' || is_space(*value.p))) {
      const u8* p = as_line(scratch, value);
      return json.message(p, p + value.n);
    }
    if (proto.message(padded(task, scratch, value))) return true;
    lines.back_to({lines.begin(), 0, 0});
    if (!value.n || *value.p != '\n') return false;
    const u8* p = as_line(scratch, value);
    return json.message(p, p + value.n);
  };
  return run(task, out, [&](Text value, u64) {
    lines.begin_message();
    if (recipe.mode == OTLP && !otlp(value)) return BAD_ENCODING;
    if (recipe.mode != OTLP) traces.message(value);
    lines.end_message();
    return NONE;
  });
}

// Everything that is read as JSON, and OTLP. Returns 0, or 1: no memory.
ENTRY int decode_lines(Task* task, const u8* packed_recipe) {
  Out out(task->space, task->space_bytes);
  try {
    const Recipe recipe = RecipeReader(packed_recipe).read();
    if (recipe.mode >= ZIPKIN) return spans(task, recipe, out);
    Records records(recipe, out);
    return run(task, out, [&](Text value, u64 i) {
      Text inject;
      if (task->inject)
        inject = {task->inject + task->inject_ends[i], (u64)(task->inject_ends[i + 1] - task->inject_ends[i])};
      records.message(value, inject);
      return NONE;
    });
  } catch (const std::bad_alloc&) { return 1; }
}

// Avro data: schemas[which[i]] is of message i, -1: none is known. Each begins with frame_bytes: none, five
// of a Confluent frame, ten of a single object's. Returns 0, or 1: no memory.
ENTRY int decode_avro(Task* task, const AvroSchema* schemas, const int* which, u32 frame_bytes, u64 limit) {
  Out out(task->space, task->space_bytes), scratch;
  Avro avro(out, limit);
  return run(task, out, [&](Text value, u64 i) {
    if (which[i] < 0) return UNKNOWN_SCHEMA;
    const u8 *p = padded(task, scratch, value).p, *end = p + value.n;
    if (value.n < frame_bytes || (frame_bytes == 5 && p[0]) || (frame_bytes == 10 && (p[0] != 0xc3 || p[1] != 0x01)))
      return BAD_ENCODING;
    return avro.datum(schemas[which[i]], p + frame_bytes, end) ? NONE : BAD_ENCODING;
  });
}

ENTRY void release(u8* lines) { free(lines); }
