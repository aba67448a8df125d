// Request ids: a record is a duplicate if its id was seen in this generation by an earlier record, or in the one before.
//
// Two passes over a tile, so that thread order never shows: every record claims its id (the lowest sequence wins the
// slot), then every record looks whether it won.
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
HD bool same_identity(u64 owner, u64 other) { return owner >> SEQUENCE_BITS == other >> SEQUENCE_BITS; }

// Claims the slot of (low, owner): both halves only ever go from zero to their value, then the owner only upwards.
HD u32 claim_identity(Identity* table, u32 mask, u64 low, u64 owner) {
  u32 slot = (u32)(low >> 8) & mask;
  ROLLED for (;; slot = (slot + 1) & mask) {
    u64 seen = load(&table[slot].low);
    if (seen == 0) seen = compare_swap(&table[slot].low, 0, low);
    if (seen != 0 && seen != low) continue;
    seen = load(&table[slot].owner);
    if (seen == 0) {
      seen = compare_swap(&table[slot].owner, 0, owner);
      if (seen == 0) return slot;
    }
    if (!same_identity(seen, owner)) continue;
    if (seen < owner) raise_to(&table[slot].owner, owner);
    return slot;
  }
}

HD bool knows_identity(const Identity* table, u32 mask, u64 low, u64 owner) {
  u32 slot = (u32)(low >> 8) & mask;
  ROLLED for (;; slot = (slot + 1) & mask) {
    if (table[slot].low == 0) return false;
    if (table[slot].low == low && same_identity(table[slot].owner, owner)) return true;
  }
}

// First pass over accepted records with a request id
HD void claim_request(const Job& job, u32 i) {
  job.identity_slot[i] = NONE;
  if (job.verdict[i] != ACCEPTED || job.text_length[(u64)REQUEST_ID * job.stride + i] == 0) return;
  const u64 low = job.hash_low[(u64)REQUEST_ID * job.stride + i];
  const u64 owner = identity_owner(job.hash_high[(u64)REQUEST_ID * job.stride + i], job.sequence + i);
  if (job.identities_before && knows_identity(job.identities_before, job.identities_before_mask, low, owner)) {
    job.verdict[i] = DUPLICATE;
    return;
  }
  job.identity_slot[i] = claim_identity(job.identities, job.identities_mask, low, owner);
}

// Second pass: the record whose sequence the slot holds is the one that counts. Tallies the tile's verdicts.
HD void settle_request(const Job& job, u32 i) {
  const u32 slot = job.identity_slot[i];
  if (slot != NONE && (job.identities[slot].owner & SEQUENCE_MASK) != SEQUENCE_MASK - (job.sequence + i))
    job.verdict[i] = DUPLICATE;
  switch (job.verdict[i]) {
    case EMPTY: count_one(&job.fill[FILL_TALLY + EMPTY]); break;
    case ACCEPTED: count_one(&job.fill[FILL_TALLY + ACCEPTED]); break;
    case REJECTED: count_one(&job.fill[FILL_TALLY + REJECTED]); break;
    case DUPLICATE: count_one(&job.fill[FILL_TALLY + DUPLICATE]); break;
    default: count_one(&job.fill[FILL_TALLY + DOUBTFUL]); break;
  }
}

// Moves one slot of a table into a larger one.
HD void move_identity(const Identity* from, u32 slot, Identity* to, u32 to_mask) {
  if (from[slot].low != 0) claim_identity(to, to_mask, from[slot].low, from[slot].owner);
}

}  // namespace tokenometer
