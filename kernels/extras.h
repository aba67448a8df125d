// Labels and further counters: what a record has beside, under a mapping that reads such. Without them job.extras is
// null, and nothing of this is done.
#pragma once
#include "layout.h"
#include "hash.h"

namespace tokenometer {

HD Extra* extra_of(const Job& job, u32 i) { return job.extras ? &job.extras[i] : nullptr; }

HD void clear_extra(Extra& extra) {
  extra.low = 0;
  for (u32 k = 0; k < FURTHER; ++k) extra.further[k] = 0;
  for (u32 k = 0; k < LABELS_MAX; ++k) extra.length[k] = 0;
}

// The value of a label that a record does not give: the range that holds a count, or the default.
HD void stand_in(const LabelPlan& label, const Record& record, Extra& extra, u32 slot) {
  u32 range = 0;
  ROLLED while (range < label.edge_count && record.counters[label.counter] > label.edges[range])++ range;
  extra.start[slot] = label.start[range];
  extra.length[slot] = (u16)label.length[range];
}

// The counters are settled: is every needed label there, and every further counter within what it is a part of? False
// is doubt.
HD bool settle_extra(const Plan& plan, const Record& record, const Extra& extra) {
  const u64* counters = record.counters;
  const u64* further = extra.further;
  if (further[CACHE_WRITE_1H] > counters[CACHE_WRITE] || further[AUDIO_INPUT] > counters[INPUT] ||
      further[IMAGE_INPUT] > counters[INPUT] || further[AUDIO_CACHED_INPUT] > counters[CACHED_INPUT] ||
      further[AUDIO_OUTPUT] > counters[OUTPUT])
    return false;
  ROLLED for (u32 rest = plan.labels_needed; rest;
              rest &= rest - 1) if (!extra.length[trailing_zeros(rest)]) return false;
  return true;
}

// Fills in brackets and defaults, and hashes the user and those labels that have a value. What is hashed can be read in
// one way only: which labels there are, how long each is, and their bytes one after the other, padded to blocks.
HD void finish_extra(const Job& job, const Record& record, Extra& extra) {
  const Plan& plan = *job.plan;
  u64 names = 0, lengths_low = 0, lengths_high = 0;
  ROLLED for (u32 slot = 0; slot < plan.label_count; ++slot) {
    if (!extra.length[slot]) stand_in(plan.labels[slot], record, extra, slot);
    const u32 length = extra.length[slot];
    if (!length) continue;
    names += plan.labels[slot].salt;
    lengths_high = lengths_high << 16 | lengths_low >> 48;
    lengths_low = lengths_low << 16 | length;
  }
  if (!lengths_low) return;
  Block state = block(record.low[USER] ^ names, record.high[USER] ^ rotate(names, 32));
  state = stir(state, block(lengths_low, lengths_high), job.secret);
  ROLLED for (u32 slot = 0; slot < plan.label_count; ++slot) {
    const u8* p = job.buffer + extra.start[slot];
    ROLLED for (u32 left = extra.length[slot]; left; p += 16) {
      const u32 some = left < 16 ? left : 16;
      state = stir(state, load_some(p, some), job.secret);
      left -= some;
    }
  }
  state = finish(state, job.secret);
  extra.low = low_word(state) | 1;
  extra.high = high_word(state) | 1;
}

HD void finish_extra_of(const Job& job, u32 i) {
  if (job.records[i].verdict == ACCEPTED) finish_extra(job, job.records[i], job.extras[i]);
}

// The referee leaves brackets to us.
HD void adopt_extra(const Job& job, const RulingExtra& ruling, const Record& record, Extra& extra) {
  const Plan& plan = *job.plan;
  clear_extra(extra);
  for (u32 k = 0; k < FURTHER; ++k) extra.further[k] = ruling.further[k];
  ROLLED for (u32 slot = 0; slot < plan.label_count; ++slot) {
    extra.start[slot] = ruling.start[slot];
    extra.length[slot] = (u16)ruling.length[slot];
  }
  finish_extra(job, record, extra);
}

// What it says beside the record's own values, for a fingerprint.
HD u64 said_beside(const Job& job, const Extra& extra) {
  u64 sum = rotate(extra.low, 11);
  for (u32 k = 0; k < FURTHER; ++k) sum += extra.further[k] * (rotate(job.secret[k], 23) | 1);
  return sum;
}

}  // namespace tokenometer
