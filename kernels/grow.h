// repeats = "grow": the records of an identity say how much it has used so far. Each token counter counts up to the
// greatest value seen, and a record adds what it is ahead of that; the request counts once.
//
// What an identity has said is known from two generations of the log, as its id is: a note holds what was said in its
// own generation, and both are looked at. So a restart, which reads two generations again, finds the same.
#pragma once
#include "dedup.h"

namespace tokenometer {

HD u64 said_before(const u64* note, u32 k) { return note ? note[k] & ~GROWN_TAKEN : 0; }

struct Notes {
  u64* now;
  const u64* before[2];
};

// Notes counter k, and turns it into what the record adds.
HD bool grow_counter(const Notes& notes, u32 k, u64* counter) {
  const u64 value = *counter, own = said_before(notes.now, k);
  u64 most = own;
  for (const u64* one : notes.before)
    if (said_before(one, k) > most) most = said_before(one, k);
  notes.now[k] = (value > own ? value : own) | (k == 0 ? GROWN_TAKEN : 0);
  *counter = value > most ? value - most : 0;
  return value > most;
}

// Turns a record's counters into what it adds. One that adds nothing is a duplicate.
HD void grow_record(const Job& job, u32 i) {
  Record& record = job.records[i];
  const u64 low = record.low[REQUEST_ID], owner = identity_owner(record.high[REQUEST_ID], 0);
  const u32 before = find_before(job, low, owner), leaving = find_leaving(job, low, owner);
  const u32 words = job.grows;
  const Notes notes = {note_of(job.notes, record.identity_slot & SLOT_MASK, words),
                       {before == NONE ? nullptr : note_of(job.notes_before, before, words),
                        leaving == NONE ? nullptr : note_of(job.notes_leaving, leaving, words)}};
  const bool first = !(notes.now[0] & GROWN_TAKEN) && !notes.before[0] && !notes.before[1];
  bool adds = first;
  for (u32 k = 0; k < TOKENS; ++k) adds |= grow_counter(notes, k, &record.counters[1 + k]);
  if (words > TOKENS)
    for (u32 k = 0; k < FURTHER; ++k) adds |= grow_counter(notes, TOKENS + k, &job.extras[i].further[k]);
  if (!first) record.counters[REQUESTS] = 0;
  if (!adds) record.verdict = DUPLICATE;
}

// The pass after `claim`. Records of one identity are applied in their order: by whoever meets the first of them in
// `grown_order`, or where records come in order, one after the other.
HD void grow_identity(const Job& job, u32 k) {
  if (IN_ORDER) {
    if (job.records[k].identity_slot != NONE) grow_record(job, k);
    return;
  }
  const u32* order = job.grown_order;
  const u32 slot = job.records[order[k]].identity_slot & SLOT_MASK;
  if (job.records[order[k]].identity_slot == NONE) return;
  if (k > 0 && (job.records[order[k - 1]].identity_slot & SLOT_MASK) == slot) return;
  ROLLED for (; k < job.grown_count && (job.records[order[k]].identity_slot & SLOT_MASK) == slot; ++k)
      grow_record(job, order[k]);
}

}  // namespace tokenometer
