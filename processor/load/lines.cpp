// Records as lines of the native mapping, and what a producer makes of lines. A number is rounded where two are
// multiplied, and no products are added: so the bytes are the same on every processor. Compiled at first use like the
// kernels (kernels/build.py).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

// As RECORD in lines.py.
struct Record {
  uint64_t id[2];
  int64_t time_ms, input, cached, writes, output, reasoning;  // counts; -1: the field is absent
  uint32_t user, model, chip;
  uint32_t prefill;        // 1 + the chip; 0: none
  uint32_t place;          // 1 + the place; 0: a short record, which has neither place, latency, status nor stream
  uint32_t latency_cents;  // hundredths of a millisecond
  uint32_t streamed, spare;
};
static_assert(sizeof(Record) == 96, "as RECORD in lines.py");

// Text i is data[ends[i], ends[i + 1]). CHUNK bytes after the last text may be read.
struct Texts {
  const char* data;
  const int64_t* ends;
};
struct Tables {
  Texts models, chips, prefills, places;
  uint32_t user_digits;
};

constexpr size_t CHUNK = 32;

// May write up to CHUNK - 1 bytes past the text: the next text covers them.
char* put(char* out, const Texts& texts, uint32_t index) {
  const char* text = texts.data + texts.ends[index];
  const int64_t length = texts.ends[index + 1] - texts.ends[index];
  for (int64_t at = 0; at < length; at += static_cast<int64_t>(CHUNK)) memcpy(out + at, text + at, CHUNK);
  return out + length;
}
template <size_t N>
char* put(char* out, const char (&text)[N]) {
  memcpy(out, text, N - 1);
  return out + N - 1;
}

char* put_digits(char* out, uint64_t value, uint32_t width) {
  for (uint32_t k = width; k > 0; value /= 10) out[--k] = static_cast<char>('0' + value % 10);
  return out + width;
}
char* put_number(char* out, uint64_t value) {
  uint32_t width = 1;
  for (uint64_t rest = value; rest >= 10; rest /= 10) ++width;
  return put_digits(out, value, width);
}
template <size_t N>
char* put_count(char* out, const char (&name)[N], int64_t value) {
  return value < 0 ? out : put_number(put(out, name), static_cast<uint64_t>(value));
}

char* put_hex(char* out, uint64_t value, uint32_t from_byte, uint32_t bytes) {
  for (uint32_t k = from_byte; k < from_byte + bytes; ++k) {
    const uint32_t byte = value >> (56 - 8 * k) & 0xff;
    *out++ = "0123456789abcdef"[byte >> 4];
    *out++ = "0123456789abcdef"[byte & 15];
  }
  return out;
}
// A random UUID: version 4, variant 1.
char* put_id(char* out, const uint64_t* id) {
  const uint64_t high = (id[0] & ~0xf000ull) | 0x4000, low = (id[1] & ~(3ull << 62)) | 2ull << 62;
  out = put(put_hex(out, high, 0, 4), "-");
  out = put(put_hex(out, high, 4, 2), "-");
  out = put(put_hex(out, high, 6, 2), "-");
  out = put(put_hex(out, low, 0, 2), "-");
  return put_hex(out, low, 2, 6);
}

char* put_user(char* out, uint32_t user, uint32_t digits) { return put_digits(put(out, "user-"), user, digits); }

char* put_record(char* out, const Record& record, const Tables& tables) {
  out = put_id(put(out, "{\"request_id\":\""), record.id);
  out = put_number(put(out, "\",\"timestamp\":"), static_cast<uint64_t>(record.time_ms));
  out = put_user(put(out, ",\"user\":\""), record.user, tables.user_digits);
  out = put(put(out, tables.models, record.model), tables.chips, record.chip);
  if (record.prefill) out = put(out, tables.prefills, record.prefill - 1);
  if (record.place) out = put(out, tables.places, record.place - 1);
  out = put_count(out, ",\"input_tokens\":", record.input);
  out = put_count(out, ",\"cached_input_tokens\":", record.cached);
  out = put_count(out, ",\"cache_write_tokens\":", record.writes);
  out = put_count(out, ",\"output_tokens\":", record.output);
  out = put_count(out, ",\"reasoning_tokens\":", record.reasoning);
  if (!record.place) return put(out, "}\n");
  out = put(put_number(put(out, ",\"latency_ms\":"), record.latency_cents / 100), ".");
  out = put(put_digits(out, record.latency_cents % 100, 2), ",\"status\":200,\"stream\":");
  return record.streamed ? put(out, "true}\n") : put(out, "false}\n");
}

}  // namespace

#define ENTRY extern "C" __attribute__((visibility("default")))

// Line i is out[ends[i], ends[i + 1]), with its newline. The rows of `edited`, ascending, have these texts instead.
ENTRY void format_records(const Record* records, uint32_t count, const Tables* tables, const uint32_t* edited,
                          const Texts* texts, uint32_t edits, char* out, int64_t* ends) {
  char* at = out;
  ends[0] = 0;
  uint32_t edit = 0;
  for (uint32_t i = 0; i < count; ++i) {
    if (edit < edits && edited[edit] == i)
      at = put(put(at, *texts, edit++), "\n");
    else
      at = put_record(at, records[i], *tables);
    ends[i + 1] = at - out;
  }
}

// The users' names, one after the other, all of one length.
ENTRY void format_users(const uint32_t* users, uint32_t count, uint32_t digits, char* out) {
  for (uint32_t i = 0; i < count; ++i) out = put_user(out, users[i], digits);
}

// --- Draw ---

namespace {

// As Zipf in lines.py: the sums of the first ranks, and between which two of them the draws of each cell lie.
struct Law {
  const double* table;
  const int32_t* guide;
  uint32_t ranks, cells;
  double whole;
};

}  // namespace

ENTRY void draw_ranks(const Law* law, const double* share, uint32_t count, int64_t* ranks) {
  for (uint32_t i = 0; i < count; ++i) {
    const int32_t cell = static_cast<int32_t>(share[i] * law->cells);
    const int32_t low = law->guide[cell], high = law->guide[cell + 1];
    ranks[i] = low;
    if (low != high)
      ranks[i] = std::upper_bound(law->table, law->table + law->ranks, share[i] * law->whole) - law->table;
  }
}

// uniform: `count` draws each of whether there is a part, whether a zero is logged, and how large the part is.
ENTRY void draw_parts(const double* uniform, double share, const int64_t* totals, uint32_t count, int64_t* parts) {
  const double *zero = uniform + count, *size = zero + count;
  for (uint32_t i = 0; i < count; ++i) {
    const int64_t part = static_cast<int64_t>(size[i] * static_cast<double>(totals[i]));
    const int64_t none = zero[i] < 0.5 ? 0 : -1;
    parts[i] = uniform[i] < share ? part : none;
  }
}

// --- Lines that wait until their message is full ---

namespace {

using Lines = std::vector<char>;
struct Group {
  Lines bytes;
  uint32_t lines = 0;
};
struct Grouping {
  std::vector<Group> groups;
  uint32_t lines_per_message;
  std::vector<std::pair<uint32_t, Lines>> full;  // with their groups
  std::vector<Lines> spare;                      // empty ones that have room already

  void finish(uint32_t index) {
    Group& group = groups[index];
    full.emplace_back(index, std::move(group.bytes));
    group.lines = 0;
    group.bytes = Lines();
    if (!spare.empty()) {
      group.bytes = std::move(spare.back());
      spare.pop_back();
    }
  }
};

}  // namespace

ENTRY Grouping* grouping_new(uint32_t groups, uint32_t lines_per_message) {
  return new Grouping{std::vector<Group>(groups), lines_per_message, {}, {}};
}
ENTRY void grouping_free(Grouping* grouping) { delete grouping; }

ENTRY void grouping_add(Grouping* grouping, const char* data, const int64_t* ends, const uint32_t* users,
                        uint32_t count) {
  const uint32_t groups = static_cast<uint32_t>(grouping->groups.size());
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t index = users[i] % groups;
    Group& group = grouping->groups[index];
    group.bytes.insert(group.bytes.end(), data + ends[i], data + ends[i + 1]);
    if (++group.lines == grouping->lines_per_message) grouping->finish(index);
  }
}

// What waits is full now.
ENTRY void grouping_close(Grouping* grouping) {
  for (uint32_t index = 0; index < grouping->groups.size(); ++index)
    if (grouping->groups[index].lines) grouping->finish(index);
}

// How many full messages there are, and their bytes.
ENTRY uint64_t grouping_bytes(const Grouping* grouping, uint32_t* count) {
  uint64_t bytes = 0;
  for (const auto& message : grouping->full) bytes += message.second.size();
  *count = static_cast<uint32_t>(grouping->full.size());
  return bytes;
}

// Message i is lines and ends at ends[i], after its last newline.
ENTRY void grouping_take(Grouping* grouping, char* out, int64_t* ends, int64_t* groups) {
  char* at = out;
  for (auto& [index, bytes] : grouping->full) {
    memcpy(at, bytes.data(), bytes.size());
    at += bytes.size();
    *ends++ = at - out;
    *groups++ = index;
    bytes.clear();
    grouping->spare.push_back(std::move(bytes));
  }
  grouping->full.clear();
}
