// Request ids: a record is a duplicate if an earlier record of this generation or any of the one before has its id,
// counted or not. So two generations of a log tell all, and they are what a restart reads again.
//
// Two passes over a tile, so that thread order never shows: every record claims its id (the lowest sequence wins the
// slot), then every record that won looks whether it still has it.
//
//   owner   | 24 bits of hash, never zero | 40 bits: SEQUENCE_MASK - sequence |     so the winner is the maximum
//
// 64 + 24 bits of keyed hash tell ids apart: among 10^8 remembered ids a new one is mistaken for an old one with
// probability 10^8 / 2^88 = 3e-19, once in a hundred thousand years at a million records a second.
#pragma once
#include "layout.h"

namespace tokenometer {

HD u64 identity_owner(u64 hash_high, u64 sequence) {
  return ((hash_high | 1ull << 63) & ~SEQUENCE_MASK) | (SEQUENCE_MASK - sequence);
}
HD u32 identity_home(u64 low) { return (u32)(low >> 8); }
HD bool same_identity(u64 owner, u64 other) { return owner >> SEQUENCE_BITS == other >> SEQUENCE_BITS; }

struct IdentityClaim {
  u32 slot;
  bool won;  // from every record that came so far
};

// Claims the slot of (low, owner): both halves only ever go from zero to their value, then the owner only upwards.
HD IdentityClaim claim_identity(Identity* table, u32 mask, u64 low, u64 owner) {
  u32 slot = identity_home(low) & mask;
  ROLLED for (;; slot = (slot + 1) & mask) {
    u64 seen = load(&table[slot].low);
    if (seen == 0) seen = compare_swap(&table[slot].low, 0, low);
    if (seen != 0 && seen != low) continue;
    seen = load(&table[slot].owner);
    if (seen == 0) {
      seen = compare_swap(&table[slot].owner, 0, owner);
      if (seen == 0) return {slot, true};
    }
    if (!same_identity(seen, owner)) continue;
    if (seen < owner) raise_to(&table[slot].owner, owner);
    return {slot, seen < owner};
  }
}

HD bool knows_identity(const Identity* table, u32 mask, u64 low, u64 owner) {
  if (table == nullptr) return false;
  u32 slot = identity_home(low) & mask;
  ROLLED for (;; slot = (slot + 1) & mask) {
    if (table[slot].low == 0) return false;
    if (table[slot].low == low && same_identity(table[slot].owner, owner)) return true;
  }
}

// First pass over accepted records with a request id
HD void claim_request(const Job& job, u32 i) {
  Record& record = job.records[i];
  record.identity_slot = NONE;
  if (record.verdict != ACCEPTED || record.length[REQUEST_ID] == 0) return;
  const u64 low = record.low[REQUEST_ID], owner = identity_owner(record.high[REQUEST_ID], job.sequence + i);
  // A duplicate, too, is remembered.
  const IdentityClaim claim = claim_identity(job.identities, job.identities_mask, low, owner);
  if (!claim.won || knows_identity(job.identities_before, job.identities_before_mask, low, owner) ||
      knows_identity(job.identities_leaving, job.identities_mask >> 1, low, owner))
    record.verdict = DUPLICATE;
  else
    record.identity_slot = claim.slot;
}

// Second pass: the record whose sequence the slot holds is the one that counts. Where records come in order, the first
// to claim it is the lowest, and nobody has to look again. Tallies the tile's verdicts.
HD void settle_request(const Job& job, u32 i) {
  Record& record = job.records[i];
  const u32 slot = record.identity_slot;
  if (!IN_ORDER && slot != NONE && (job.identities[slot].owner & SEQUENCE_MASK) != SEQUENCE_MASK - (job.sequence + i))
    record.verdict = DUPLICATE;
  switch (record.verdict) {  // one call each: count_one wants one address for all active threads
    case EMPTY:
      return count_one(&job.fill[FILL_TALLY + EMPTY]);
    case ACCEPTED:
      return count_one(&job.fill[FILL_TALLY + ACCEPTED]);
    case REJECTED:
      return count_one(&job.fill[FILL_TALLY + REJECTED]);
    case DUPLICATE:
      return count_one(&job.fill[FILL_TALLY + DUPLICATE]);
    case SKIPPED:
      return count_one(&job.fill[FILL_TALLY + SKIPPED]);
    default:
      return count_one(&job.fill[FILL_TALLY + DOUBTFUL]);
  }
}

// Moves one slot of a table into a larger one; records may claim there meanwhile, for the lowest sequence wins anyway.
HD void move_identity(const Identity* from, u32 slot, Identity* to, u32 to_mask) {
  if (from[slot].low != 0) claim_identity(to, to_mask, from[slot].low, from[slot].owner);
}

}  // namespace tokenometer
