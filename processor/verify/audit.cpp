// The quick half of `tokenometer verify`: lines that are surely like one that was judged, and sums by row.
//
// Python (quick.py, usage.py, tally.py) decides what a line means and what is done with those that are left here.
// Nothing here reads or writes anything but memory. A number below 0 is an error: there is no memory.
#include <algorithm>
#include <new>

#include "rows.h"

using namespace verify;

namespace {

struct Line {
  u64 begin, end;
  u32 message, number;
};

struct Sample {
  u64 begin, end;
  u32 message, plan;
  u32 skipped, spare;
};

// Messages of a partition. lengths: below 0 for a tombstone. lines: whether a message is lines as it stands there.
struct Messages {
  const u8* text;
  const i64 *begins, *lengths, *times, *offsets, *generations;
  const u8* lines;
  u64 count;
};

struct Outcome {
  u64 counted, skipped;
  const Line* left;
  u64 left_count;
  const Sample* samples;  // of each plan that took lines the last one
  u64 sample_count;
};

struct Answer {
  i64 time;
  u64 numbers[NUMBERS];
  Text texts[TEXTS];
};

constexpr u64 RECORD_BYTES_MAX = 1 << 20;

struct Judge {
  Bounds bounds;
  std::vector<Plan> plans;
  std::vector<std::vector<u64>> alike;  // of each two plans: how many values, from the first one on, both read alike
  std::vector<u32> order;               // of plans: the one that took the last line comes first
  std::vector<Line> left, lines;
  std::vector<Sample> samples;
  std::vector<u32> sampled;  // of each plan: its place in `samples` and 1
  std::vector<Value> values;
  Record record;
  Outcome outcome;

  void split(const Messages& messages) {
    lines.clear();
    for (u64 i = 0; i < messages.count; ++i) {
      if (!messages.lines[i]) continue;
      u64 begin = static_cast<u64>(messages.begins[i]), end = begin + static_cast<u64>(messages.lengths[i]);
      u32 message = static_cast<u32>(i), number = 0;
      do {  // a newline at the end does not begin another line
        const void* newline = std::memchr(messages.text + begin, '\n', end - begin);
        u64 stop = newline ? static_cast<u64>(static_cast<const u8*>(newline) - messages.text) : end;
        lines.push_back({begin, stop, message, number++});
        begin = stop + 1;
      } while (begin < end);
    }
  }

  // first: the first plan that is asked.
  void take(const Messages& messages, Records& records, u32 first) {
    left.clear();
    samples.clear();
    sampled.assign(plans.size(), 0);
    outcome.counted = outcome.skipped = 0;
    for (const Line& line : lines) {
      Verdict verdict = judge(messages, line, first);
      if (verdict == LEFT) left.push_back(line);
      if (verdict == SKIPPED) ++outcome.skipped;
      if (verdict != COUNTED) continue;
      records.add(record, {messages.offsets[line.message], messages.generations[line.message], line.number});
      ++outcome.counted;
    }
    outcome.left = left.data();
    outcome.left_count = left.size();
    outcome.samples = samples.data();
    outcome.sample_count = samples.size();
  }

  void learn(Program& program) {
    plans.emplace_back(program);
    const Plan& plan = plans.back();
    order.push_back(static_cast<u32>(plans.size()) - 1);
    if (plan.slot_count() > values.size()) values.resize(plan.slot_count());
    alike.emplace_back();
    for (u64 i = 0; i < plans.size(); ++i) alike.back().push_back(plan.alike(plans[i]));
    for (u64 i = 0; i + 1 < plans.size(); ++i) alike[i].push_back(alike.back()[i]);
  }

  // The plan that was learned last.
  void forget() {
    plans.pop_back();
    alike.pop_back();
    for (std::vector<u64>& row : alike) row.pop_back();
    order.erase(std::find(order.begin(), order.end(), static_cast<u32>(plans.size())));
  }

  Verdict judge(const Messages& messages, const Line& line, u32 first) {
    u64 size = line.end - line.begin;
    if (size == 0 || size > RECORD_BYTES_MAX || messages.text[line.begin] != '{') return LEFT;
    Text text{messages.text + line.begin, size};
    u64 known = 0;  // values that the plan before has found
    u32 before = 0;
    for (u64 i = 0; i < order.size(); ++i) {
      u32 plan = order[i];
      if (plan < first) continue;
      known = std::min(known, alike[before][plan]);
      before = plan;
      i64 time = messages.times[line.message];
      Verdict verdict = plans[plan].judge(text, time, bounds, values.data(), &known, record);
      if (verdict == LEFT) continue;
      std::rotate(order.begin(), order.begin() + static_cast<i64>(i), order.begin() + static_cast<i64>(i) + 1);
      if (sampled[plan] == 0) {
        samples.emplace_back();
        sampled[plan] = static_cast<u32>(samples.size());
      }
      samples[sampled[plan] - 1] = {line.begin, line.end, line.message, plan, verdict == SKIPPED, 0};
      return verdict;
    }
    return LEFT;
  }
};

struct Rows {
  i64 window_ms;
  std::vector<RowPlan> plans;
  std::vector<u32> left;
  std::vector<Value> values;
};

// Keys and values of messages, or null.
struct Pairs {
  const u8 *keys, *values;
  const i64 *key_begins, *key_lengths, *value_begins, *value_lengths, *offsets;
  u64 count;
};

// Records as columns: of each of TEXTS its bytes and where each ends, and whether it is absent.
struct Columns {
  const u8* text[TEXTS];
  const i64* begins[TEXTS];
  const i64* lengths[TEXTS];
  const i64* times;
  const i64* numbers;  // NUMBERS of each record
  const i64 *offsets, *generations, *lines;
  u64 count;
};

struct Log {
  const u8* data;
  u64 size;
  const u64 *ends, *marks;
  u64 entries;
};

// Where rows are written. begins and lengths: of user, model, chip and labels in `texts`.
struct Export {
  i64 *windows, *records;
  u64* numbers;
  i64* lengths;
  u8* texts;
  i64 *offsets, *places, *parts;
};

struct LogExport {
  i64 *offsets, *generations, *lines;
  u64* numbers;
  i64* lengths;
  u8* texts;
};

Text text_of(const u8* data, i64 begin, i64 length) {
  return {data + begin, length < 0 ? ABSENT : static_cast<u64>(length)};
}

template <typename Work>
i64 guarded(Work work) {
  try {
    return work();
  } catch (const std::bad_alloc&) { return -1; }
}

// Of a key: its window, and the texts one after another.
u64 write_key(const u8* key, u64 at, const Export& to, u64* written) {
  to.windows[at] = static_cast<i64>(word_at(key));
  key += 8;
  for (u32 i = 0; i < 4; ++i) {
    Text text;
    key = take(key, &text);
    to.lengths[4 * at + i] = text.size == ABSENT ? -1 : static_cast<i64>(text.size);
    if (text.size == ABSENT) continue;
    if (to.texts) std::memcpy(to.texts + *written, text.data, text.size);
    *written += text.size;
  }
  return *written;
}

}  // namespace

#define API extern "C" __attribute__((visibility("default")))

// What native.py has to know alike. Returns how many numbers.
API u64 layout(u64* to) {
  u64* at = to;
  for (u64 size : {sizeof(Messages), sizeof(Outcome), sizeof(Line), sizeof(Sample), sizeof(Answer), sizeof(Pairs),
                   sizeof(Columns), sizeof(Log), sizeof(Export), sizeof(LogExport)}) {
    *at++ = size;
  }
  *at++ = NUMBERS;
  *at++ = TEXTS;
  for (u32 parent : PARENTS) *at++ = parent;
  for (u32 i = 0; i < NUMBERS; ++i) *at++ = OUTPUTS >> i & 1;
  return static_cast<u64>(at - to);
}

// --- Lines of the log ---

API Judge* judge_new(i64 future_skew, i64 past, i64 not_before) {
  Judge* made = new (std::nothrow) Judge;
  if (made) made->bounds = {future_skew, past, not_before};
  return made;
}
API void judge_free(Judge* judge) { delete judge; }

API i64 judge_learn(Judge* judge, const i64* numbers, const u8* literals) {
  return guarded([&] {
    Program program(numbers, literals);
    judge->learn(program);
    return static_cast<i64>(judge->plans.size()) - 1;
  });
}

API void judge_forget(Judge* judge) { judge->forget(); }

// What a plan says of a line. The texts are there until the next call.
API i64 judge_try(Judge* judge, u32 plan, const u8* line, u64 size, i64 time, Answer* answer) {
  return guarded([&]() -> i64 {
    Record& record = judge->record;
    u64 known = 0;
    Value* values = judge->values.data();
    Verdict verdict = judge->plans[plan].judge({line, size}, time, judge->bounds, values, &known, record);
    answer->time = record.time;
    std::copy(record.numbers, record.numbers + NUMBERS, answer->numbers);
    std::copy(record.texts, record.texts + TEXTS, answer->texts);
    return verdict;
  });
}

API i64 judge_read(Judge* judge, Records* records, const Messages* messages, Outcome* outcome) {
  return guarded([&]() -> i64 {
    judge->split(*messages);
    judge->take(*messages, *records, 0);
    *outcome = judge->outcome;
    return 0;
  });
}

// Only the lines that were left, and only by the plan that was learned last.
API i64 judge_read_left(Judge* judge, Records* records, const Messages* messages, Outcome* outcome) {
  return guarded([&]() -> i64 {
    judge->lines.swap(judge->left);
    judge->take(*messages, *records, static_cast<u32>(judge->plans.size()) - 1);
    *outcome = judge->outcome;
    return 0;
  });
}

// --- Records that count ---

API Records* records_new(i64 window_ms, u64 seed) { return new (std::nothrow) Records(window_ms, seed); }
API void records_free(Records* records) { delete records; }
API void records_clear(Records* records) { records->clear(); }
API u64 records_count(Records* records) { return records->count; }

API i64 records_add(Records* records, const Columns* columns) {
  return guarded([&]() -> i64 {
    Record record;
    for (u64 i = 0; i < columns->count; ++i) {
      for (u32 text = 0; text < TEXTS; ++text) {
        record.texts[text] = text_of(columns->text[text], columns->begins[text][i], columns->lengths[text][i]);
      }
      record.time = columns->times[i];
      for (u32 n = 0; n < NUMBERS; ++n) record.numbers[n] = static_cast<u64>(columns->numbers[i * NUMBERS + n]);
      records->add(record, {columns->offsets[i], columns->generations[i], static_cast<u32>(columns->lines[i])});
    }
    return 0;
  });
}

API void records_log(Records* records, Log* log) {
  *log = {records->log.data(), records->log.size(), records->ends.data(), records->marks.data(), records->ends.size()};
}

// Some records of a log as columns. Returns the bytes of their ids and scopes; with a null for those nothing is written
// there.
API u64 log_export(const u8* data, const u64* ends, const i64* entries, u64 count, const LogExport* to) {
  u64 written = 0;
  for (u64 i = 0; i < count; ++i) {
    const Logged entry(data + (entries[i] == 0 ? 0 : ends[entries[i] - 1]));
    to->offsets[i] = static_cast<i64>(entry.offset);
    to->generations[i] = static_cast<i64>(entry.generation);
    to->lines[i] = static_cast<i64>(entry.line);
    std::copy(entry.numbers, entry.numbers + NUMBERS, to->numbers + NUMBERS * i);
    for (u32 n = 0; n < 2; ++n) {
      const Text& text = entry.texts[n];
      to->lengths[2 * i + n] = static_cast<i64>(text.size);
      if (to->texts) std::memcpy(to->texts + written, text.data, text.size);
      written += text.size;
    }
  }
  return written;
}

// --- Sums of the log ---

API Expected* expected_new() { return new (std::nothrow) Expected; }
API void expected_free(Expected* expected) { delete expected; }
API u64 expected_bytes(Expected* expected) { return expected->rows().bytes(); }
API u64 expected_count(Expected* expected) { return expected->rows().rows().size(); }
API i64 expected_is_full(Expected* expected) { return expected->is_full(); }
API void expected_clear(Expected* expected) { expected->clear(); }

// rows: room for two of each record in the log.
API i64 expected_add(Expected* expected, const Records* records, i32 is_context, u32* rows) {
  return guarded([&]() -> i64 {
    expected->add(*records, is_context, rows);
    return 0;
  });
}

API void expected_touch(Expected* expected, const u32* rows, u64 count) {
  for (u64 i = 0; i < count; ++i) expected->rows().rows()[rows[i]]->payload.touched = 1;
}

// rows: which; null for all that do not agree. Returns the bytes of their texts; with a null for those nothing is
// written there. count: room, and how many there were.
API u64 expected_export(Expected* expected, const u32* rows, u64* count, const Export* to) {
  u64 written = 0, done = 0;
  auto write = [&](Expected::Rows::Row* row) {
    to->records[done] = static_cast<i64>(row->payload.records);
    std::copy(row->payload.numbers, row->payload.numbers + NUMBERS, to->numbers + NUMBERS * done);
    write_key(row->key(), done++, *to, &written);
  };
  if (rows) {
    for (u64 i = 0; i < *count; ++i) write(expected->rows().rows()[rows[i]]);
  } else {
    for (Expected::Rows::Row* row : expected->rows().rows()) {
      if (!row->payload.agreed) write(row);
    }
    *count = done;
  }
  return written;
}

// --- Rows that were published ---

API Found* found_new(u64 seed) { return new (std::nothrow) Found(seed); }
API void found_free(Found* found) { delete found; }
API u64 found_bytes(Found* found) { return found->rows().bytes() + sizeof(Found::Stray) * found->strays.size(); }
API u64 found_count(Found* found) { return found->rows().rows().size() + found->strays.size(); }
API void found_clear(Found* found) { found->clear(); }
API u64 found_parts(Found* found) { return found->parts.size(); }
API const char* found_part(Found* found, u64 number, u64* size) {
  *size = found->parts[number].size();
  return found->parts[number].data();
}

API Rows* rows_new(i64 window_ms) { return new (std::nothrow) Rows{window_ms, {}, {}, {}}; }
API void rows_free(Rows* rows) { delete rows; }

API i64 rows_learn(Rows* rows, const i64* numbers, const u8* literals) {
  return guarded([&] {
    Program program(numbers, literals);
    rows->plans.emplace_back(program);
    if (rows->plans.back().slot_count() > rows->values.size()) rows->values.resize(rows->plans.back().slot_count());
    return static_cast<i64>(rows->plans.size()) - 1;
  });
}
API void rows_forget(Rows* rows) { rows->plans.pop_back(); }

API i64 rows_try(Rows* rows, u32 plan, const u8* key, u64 key_size, const u8* value, u64 value_size) {
  return guarded([&]() -> i64 {
    Published row;
    Value* values = rows->values.data();
    return rows->plans[plan].read({key, key_size}, {value, value_size}, rows->window_ms, values, row);
  });
}

// first: the first plan that is asked; if it is above 0, only about what was left before. Returns how many are left.
API i64 rows_read(Rows* rows, Found* found, const Pairs* pairs, i32 place, u32 first, const u32** left) {
  return guarded([&]() -> i64 {
    std::vector<u32> before;
    before.swap(rows->left);
    Published row;
    row.place = place;
    u64 count = first ? before.size() : pairs->count;
    for (u64 n = 0; n < count; ++n) {
      u64 i = first ? before[n] : n;
      bool taken = false;
      Text key = text_of(pairs->keys, pairs->key_begins[i], pairs->key_lengths[i]);
      Text value = text_of(pairs->values, pairs->value_begins[i], pairs->value_lengths[i]);
      if (key.size == ABSENT || value.size == ABSENT) key = value = {pairs->keys, 0};
      for (u64 plan = first; plan < rows->plans.size() && !taken; ++plan) {
        taken = rows->plans[plan].read(key, value, rows->window_ms, rows->values.data(), row);
      }
      row.offset = pairs->offsets[i];
      if (taken) found->add(row);
      if (!taken) rows->left.push_back(static_cast<u32>(i));
    }
    *left = rows->left.data();
    return static_cast<i64>(rows->left.size());
  });
}

// One that was read in another way. texts: user, model, chip, labels, part.
API i64 found_add(Found* found, i64 window, i64 offset, i32 place, const u8* const* texts, const u64* sizes,
                  const u64* numbers) {
  return guarded([&]() -> i64 {
    Published row;
    row.window = window;
    row.offset = offset;
    row.place = place;
    for (u32 i = 0; i < 4; ++i) row.four[i] = {texts[i], sizes[i]};
    row.part = {texts[4], sizes[4]};
    std::copy(numbers, numbers + NUMBERS, row.numbers);
    found->add(row);
    return 0;
  });
}

// As expected_export: all that do not agree, and the strays. some: null, or for each part whether all of its rows are
// wanted, and those of no other.
API u64 found_export(Found* found, const u8* some, u64* count, const Export* to) {
  u64 written = 0, done = 0;
  auto write = [&](Found::Rows::Row* row, i32 place, i64 offset, const u64* numbers) {
    to->places[done] = place;
    to->offsets[done] = offset;
    to->parts[done] = row->payload.part;
    std::copy(numbers, numbers + NUMBERS, to->numbers + NUMBERS * done);
    write_key(row->key(), done++, *to, &written);
  };
  for (Found::Rows::Row* row : found->rows().rows()) {
    if (some ? some[row->payload.part] : row->payload.odd != AGREED)
      write(row, row->payload.place, row->payload.offset, row->payload.numbers);
  }
  for (const Found::Stray& stray : found->strays) {
    Found::Rows::Row* row = found->rows().rows()[stray.row];
    if (!some || some[row->payload.part]) write(row, stray.place, stray.offset, stray.numbers);
  }
  *count = done;
  return written;
}

// sums: of each part NUMBERS sums, low and high half. Returns the rows of the log that agree.
API i64 agree_all(Expected* expected, Found* found, u64* sums) {
  return guarded([&]() -> i64 {
    std::vector<unsigned __int128> wide(found->parts.size() * NUMBERS);
    u64 agreed = agree(*expected, *found, wide.data());
    for (u64 i = 0; i < wide.size(); ++i) {
      sums[2 * i] = static_cast<u64>(wide[i]);
      sums[2 * i + 1] = static_cast<u64>(wide[i] >> 64);
    }
    return static_cast<i64>(agreed);
  });
}
