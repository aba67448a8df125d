// repeats = "grow": the records of an identity say how much it has used so far. Each token counter counts up to the
// greatest value seen, and a record adds what it is ahead of that; the request counts once.
//
// What an identity has said is known from two generations of the log, as its id is: a note holds what was said in its
// own generation, and both are looked at. So a restart, which reads two generations again, finds the same.
#pragma once
#include "dedup.h"

namespace tokenometer {

HD u64 said_before(const Grown* grown, u32 k) { return grown ? grown->seen[k] & ~GROWN_TAKEN : 0; }

// Turns a record's counters into what it adds. One that adds nothing is a duplicate.
HD void grow_record(const Job& job, u32 i) {
  Record& record = job.records[i];
  const u64 low = record.low[REQUEST_ID], owner = identity_owner(record.high[REQUEST_ID], 0);
  const u32 before = find_before(job, low, owner), leaving = find_leaving(job, low, owner);
  const Grown* known[] = {before == NONE ? nullptr : &((const Grown*)job.notes_before)[before],
                          leaving == NONE ? nullptr : &((const Grown*)job.notes_leaving)[leaving]};
  Grown& now = ((Grown*)job.notes)[record.identity_slot & SLOT_MASK];
  const bool first = !(now.seen[0] & GROWN_TAKEN) && !known[0] && !known[1];
  bool adds = first;
  for (u32 k = 0; k + 1 < COUNTERS; ++k) {
    const u64 value = record.counters[k + 1], own = said_before(&now, k);
    u64 most = own;
    for (const Grown* one : known)
      if (said_before(one, k) > most) most = said_before(one, k);
    now.seen[k] = (value > own ? value : own) | (k == 0 ? GROWN_TAKEN : 0);
    record.counters[k + 1] = value > most ? value - most : 0;
    adds |= value > most;
  }
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
