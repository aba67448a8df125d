// From a record's values to its verdict: defaults, totals, the time's bounds, hashes.
#pragma once
#include "layout.h"
#include "rules.h"
#include "hash.h"
#include "extras.h"
#include "dedup.h"

namespace tokenometer {

// The message that holds the line: the first whose end is past it.
HD u32 find_message(const Job& job, u32 line) {
  if (job.line_is_message) return line;
  const u32 position = job.line_start[line];
  u32 low = 0, high = job.message_count - 1;
  ROLLED while (low < high) {
    const u32 middle = (low + high) / 2;
    if (job.message_end[middle] > position)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

HD void hash_into(const Job& job, Record& record, u32 text, u64 salt) {
  const Hash hash = hash_text(job.buffer + record.start[text], record.length[text], job.secret, salt);
  record.low[text] = hash.low | 1;
  record.high[text] = hash.high | 1;
}
// The strings that identify a request beside its id and scope; their hashes are there. One that is absent is told apart
// from every string, for a hash is never zero.
constexpr u64 WITH_SALT = 0x9e3779b97f4a7c15ull;
HD u64 salt_with(const Plan& plan, const Record& record, u64 salt) {
  ROLLED for (u32 rest = plan.identity_with; rest; rest &= rest - 1) {
    const u32 text = trailing_zeros(rest);
    const bool there = record.length[text] != 0;
    salt = fold(rotate(salt, 7) ^ (there ? record.low[text] : 0), (there ? record.high[text] : 0) ^ WITH_SALT);
  }
  return salt;
}
HD void hash_texts(const Job& job, Record& record) {
  u64 salt = 0;
  if (record.length[SCOPE]) salt = hash_text(job.buffer + record.start[SCOPE], record.length[SCOPE], job.secret, 0).low;
  hash_into(job, record, USER, 0);
  hash_into(job, record, MODEL, 0);
  hash_into(job, record, CHIP, 0);
  if (record.length[PREFILL_CHIP]) hash_into(job, record, PREFILL_CHIP, 0);
  if (job.plan->identity_with) salt = salt_with(*job.plan, record, salt);
  if (LIKELY(record.length[REQUEST_ID])) hash_into(job, record, REQUEST_ID, salt);
}

// time_ms / window_ms without a division, which is a called routine on a GPU. Times are exact doubles; the product is
// off by less than one.
HD u64 window_of(const Job& job, u64 time_ms) {
  u64 window = (u64)((double)time_ms * job.windows_per_ms);
  if (window * job.window_ms > time_ms)
    --window;
  else if ((window + 1) * job.window_ms <= time_ms)
    ++window;
  return window;
}

HD void raise_watermark(const Job& job, u64 time_ms) {
  u64* watermark = &job.fill[FILL_WATERMARK];
  if (time_ms >= load(watermark)) raise_to(watermark, time_ms + 1);
}

// Totals inclusive, parts within them, the time in range. False is doubt. RULED: the plan has rules.
template <bool RULED>
HD bool settle_record(const Job& job, const Reader& reader, u32 line) {
  const Plan& plan = *reader.plan;
  u64* counters = reader.record->counters;
  if (!RULED || !plan.has_conventions) {
    const u64 parts = counters[CACHED_INPUT] + counters[CACHE_WRITE];
    if (plan.input_additive) counters[INPUT] += parts;
    if (plan.output_additive) counters[OUTPUT] += counters[REASONING];
    if (parts > counters[INPUT] || counters[REASONING] > counters[OUTPUT]) return false;
  } else if (!settle_conventions(job, reader)) {
    return false;
  }
  if (plan.has_extras && !settle_extra(plan, *reader.record, *extra_of(job, reader))) return false;
  u64 time_ms = reader.time_ms;
  if (job.message_time) {
    const u64 message_time = job.message_time[find_message(job, line)];
    if (!(reader.seen & (u64)HAVE_TIME << HAVE_SHIFT)) time_ms = message_time;
    if (time_ms > message_time + job.future_skew_ms || time_ms + job.past_ms < message_time) return false;
  }
  if (time_ms >= TIME_MAX_MS || time_ms < job.not_before_ms) return false;
  reader.record->window = window_of(job, time_ms);
  raise_watermark(job, time_ms);
  return true;
}

// All values are read: are all needed ones there? Fills in defaults and hashes. The verdict
template <bool RULED>
HD u32 finish_record(const Job& job, const Reader& reader, u32 line) {
  const Plan& plan = *reader.plan;
  Record& record = *reader.record;
  const u32 have = (u32)(reader.seen >> HAVE_SHIFT);
  const u32 fallback = plan.message_time_fallback && job.message_time ? HAVE_TIME : 0;
  if (((have | fallback) & plan.needed) != plan.needed) return DOUBTFUL;
  ROLLED for (u32 rest = plan.defaulted & ~have; rest; rest &= rest - 1) {
    const u32 bit = trailing_zeros(rest);
    if (bit < TEXTS) {
      record.start[bit] = plan.default_start[bit];
      record.length[bit] = (u16)plan.default_length[bit];
    } else {
      record.counters[bit - HAVE_COUNTER] = plan.default_count[bit - HAVE_COUNTER];
    }
  }
  if (plan.choice_count) {
    const Choice& choice = plan.choices[reader.choice];
    const u64 tokens = record.counters[INPUT];  // where a plan with a selector puts the event's count
    record.counters[INPUT] = 0;
    record.counters[choice.counter] = tokens;
    record.counters[REQUESTS] = choice.requests;
  }
  if (!settle_record<RULED>(job, reader, line)) return DOUBTFUL;
  hash_texts(job, record);
  Extra* extra = plan.has_extras ? extra_of(job, reader) : nullptr;
  if (IN_ORDER && extra) finish_extra(job, record, *extra);  // elsewhere it is a pass of its own
  keep_fingerprint(job, record, extra);
  return ACCEPTED;
}

// --- A record with deferred values is finished in a step of its own. What the parser knows waits in fields that are
// filled later. ---

HD u32 leave_unfinished(const Reader& reader) {
  if (reader.time_ms >= TIME_MAX_MS) return DOUBTFUL;
  Record& record = *reader.record;
  record.identity_slot = (u32)reader.seen;
  record.user_slot = (u32)(reader.seen >> 32);
  record.cell_slot = (u32)reader.time_ms;
  record.prefill_cell_slot = (u32)(reader.time_ms >> 32) | reader.choice << 16;  // 48 bits hold a time
  return UNFINISHED;
}

HD Reader take_up(const Job& job, u32 i, u32 begin) {
  Record& record = job.records[i];
  const u64 seen = record.identity_slot | (u64)record.user_slot << 32;
  const u64 time_ms = record.cell_slot | (u64)(record.prefill_cell_slot & 0xffff) << 32;
  const u32 choice = record.prefill_cell_slot >> 16;
  return {job.plan, job.buffer, &record, begin, job.buffer, seen, time_ms, END, choice};
}

// The referee's ruling on a doubtful record; its strings are after the batch's messages.
HD void adopt_ruling(const Job& job, u32 k) {
  const Ruling& ruling = job.rulings[k];
  Record& record = job.records[ruling.record];
  record.verdict = ruling.verdict;
  if (ruling.verdict != ACCEPTED) return;
  for (u32 text = 0; text < TEXTS; ++text) {
    record.start[text] = ruling.start[text];
    record.length[text] = (u16)ruling.length[text];
  }
  for (u32 counter = 0; counter < COUNTERS; ++counter) record.counters[counter] = ruling.counters[counter];
  record.window = window_of(job, ruling.time_ms);
  raise_watermark(job, ruling.time_ms);
  hash_texts(job, record);
  Extra* extra = extra_of(job, ruling.record);
  if (extra) adopt_extra(job, job.ruling_extras[k], record, *extra);
  keep_fingerprint(job, record, extra);
}

}  // namespace tokenometer
