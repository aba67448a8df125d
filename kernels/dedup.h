// Request ids: a record is a duplicate if an earlier record of this generation or any of the one before has its id,
// counted or not. So two generations of a log tell all, and they are what a restart reads again.
//
// Two passes over a tile, so that thread order never shows: every record claims its id (the lowest sequence wins the
// slot), then every record that won looks whether it still has it.
//
//   owner   | 24 bits of hash, never zero | 40 bits: SEQUENCE_MASK - sequence |     so the winner is the maximum
//
// Where records come in order, the first to claim a slot is the lowest. Then nobody asks for a sequence, and the 40
// bits are what that record says beside its id; elsewhere this lies in a table of notes.
//
// 64 + 24 bits of keyed hash tell ids apart: among 10^8 remembered ids a new one is mistaken for an old one with
// probability 10^8 / 2^88 = 3e-19, once in a hundred thousand years at a million records a second.
#pragma once
#include "layout.h"
#include "extras.h"

namespace tokenometer {

HD u64 identity_owner(u64 hash_high, u64 rest) { return ((hash_high | 1ull << 63) & ~SEQUENCE_MASK) | rest; }
HD u32 identity_home(u64 low) { return (u32)(low >> 8); }
HD bool same_identity(u64 owner, u64 other) { return owner >> SEQUENCE_BITS == other >> SEQUENCE_BITS; }

struct IdentityClaim {
  u32 slot;
  bool won;  // from every record that came so far
};

// Claims the slot of (low, owner): both halves only ever go from zero to their value, then the owner only upwards, or
// in order nowhere.
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
    if (IN_ORDER) return {slot, false};
    if (seen < owner) raise_to(&table[slot].owner, owner);
    return {slot, seen < owner};
  }
}

// The slot of an identity in another table, or NONE
HD u32 find_identity(const Identity* table, u32 mask, u64 low, u64 owner) {
  if (table == nullptr) return NONE;
  u32 slot = identity_home(low) & mask;
  ROLLED for (;; slot = (slot + 1) & mask) {
    if (table[slot].low == 0) return NONE;
    if (table[slot].low == low && same_identity(table[slot].owner, owner)) return slot;
  }
}
// The tables that may know an identity beside the current one: of the generation before, and the one that ids leave.
HD u32 find_before(const Job& job, u64 low, u64 owner) {
  return find_identity(job.identities_before, job.identities_before_mask, low, owner);
}
HD u32 find_leaving(const Job& job, u64 low, u64 owner) {
  return find_identity(job.identities_leaving, job.identities_mask >> 1, low, owner);
}

// What a record says beside its id: two records that differ are mistaken for equal once in 5 * 10^11 where records come
// in order, else once in 2 * 10^9. Names are hashed with the secret already, and the other values are multiplied in
// pairs with it, so nobody can choose what looks equal. (Counts that are billions of tokens apart are told less
// surely.)
HD u64 fingerprint(const Job& job, const Record& record, const Extra* extra) {
  const u64 *counts = record.counters, *secret = job.secret;
  u64 sum = record.low[USER] + rotate(record.low[MODEL], 17) + rotate(record.low[CHIP], 31);
  if (record.length[PREFILL_CHIP]) sum += rotate(record.low[PREFILL_CHIP], 47);
  sum += (counts[0] << 63) + (counts[1] + secret[0]) * (counts[2] + secret[1]);
  sum += (counts[3] + secret[2]) * (counts[4] + secret[3]) + (counts[5] + secret[4]) * (record.window + secret[5]);
  if (extra) sum += said_beside(job, *extra);
  return sum >> (IN_ORDER ? 64 - SEQUENCE_BITS : 32);
}
// Where records come in order, it takes the place of the hash's rest.
HD void keep_fingerprint(const Job& job, Record& record, const Extra* extra) {
  if (IN_ORDER && LIKELY(record.length[REQUEST_ID]))
    record.high[REQUEST_ID] = (record.high[REQUEST_ID] & ~SEQUENCE_MASK) | fingerprint(job, record, extra);
}
HD u64 said_by(const Job& job, u32 i) {
  const Record& record = job.records[i];
  return IN_ORDER ? record.high[REQUEST_ID] & SEQUENCE_MASK : (u32)fingerprint(job, record, extra_of(job, i));
}
// What the first record of an identity says, by its slot
HD u64 said_first(const Identity* table, const void* notes, u32 slot) {
  return IN_ORDER ? table[slot].owner & SEQUENCE_MASK : ((const u32*)notes)[slot];
}

// First pass over accepted records with a request id
HD void claim_request(const Job& job, u32 i) {
  Record& record = job.records[i];
  record.identity_slot = NONE;
  if (record.verdict != ACCEPTED || record.length[REQUEST_ID] == 0) return;
  const u64 rest = IN_ORDER ? said_by(job, i) : SEQUENCE_MASK - (job.sequence + i);
  const u64 low = record.low[REQUEST_ID], owner = identity_owner(record.high[REQUEST_ID], rest);
  // A duplicate, too, is remembered.
  const IdentityClaim claim = claim_identity(job.identities, job.identities_mask, low, owner);
  record.identity_slot = claim.slot;
  if (job.grows) return;  // what such a record adds is told later (grow.h)
  if (find_before(job, low, owner) != NONE || find_leaving(job, low, owner) != NONE)
    record.identity_slot |= EARLIER;
  else if (claim.won)
    return;
  record.verdict = DUPLICATE;
}

// Second pass: the record whose sequence the slot holds is the first of its identity in this generation; it counts,
// unless the id was known earlier, and notes what it says. In order, the first pass has done all this.
HD void settle_identity(const Job& job, u32 i) {
  Record& record = job.records[i];
  if (IN_ORDER || record.identity_slot == NONE || job.grows) return;
  const u32 slot = record.identity_slot & SLOT_MASK;
  if ((job.identities[slot].owner & SEQUENCE_MASK) == SEQUENCE_MASK - (job.sequence + i))
    ((u32*)job.notes)[slot] = (u32)said_by(job, i);
  else
    record.verdict = DUPLICATE;
}

// Tallies the tile's verdicts.
HD void tally_record(const Job& job, u32 i) {
  if (IN_ORDER) return add(&job.fill[FILL_TALLY + job.records[i].verdict], 1);
  switch (job.records[i].verdict) {  // one call each: count_one wants one address for all active threads
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

// Third pass, over duplicates: does it say what the first record of its identity says, that of the generation before,
// or else of this one? So the answer follows from two generations of the log, as what a duplicate is does.
HD void compare_duplicate(const Job& job, u32 i) {
  const Record& record = job.records[i];
  if (record.verdict != DUPLICATE || job.grows) return;
  u64 said = said_first(job.identities, job.notes, record.identity_slot & SLOT_MASK);
  if (record.identity_slot & EARLIER) {
    const u64 low = record.low[REQUEST_ID], owner = identity_owner(record.high[REQUEST_ID], 0);
    const u32 before = find_before(job, low, owner);
    said = before != NONE ? said_first(job.identities_before, job.notes_before, before)
                          : said_first(job.identities_leaving, job.notes_leaving, find_leaving(job, low, owner));
  }
  if (said == said_by(job, i)) return;
  fetch_add(&job.fill[FILL_CONFLICTS], 1);
  if (job.conflicts) job.conflicts[fetch_add(&job.fill[FILL_CONFLICTING], 1)] = i;
}

// What an identity has said so far, under repeats = "grow"
HD u64* note_of(const void* notes, u32 slot, u32 words) { return (u64*)notes + (u64)slot * words; }

// Moves one slot of a table into a larger one; records may claim there meanwhile, for what moves came before them.
HD void move_identity(const Move& move, u32 slot) {
  if (move.from[slot].low == 0) return;
  const IdentityClaim claim = claim_identity(move.to, move.to_mask, move.from[slot].low, move.from[slot].owner);
  if (!move.grows) {
    if (IN_ORDER)
      move.to[claim.slot].owner = move.from[slot].owner;
    else if (claim.won)
      ((u32*)move.to_notes)[claim.slot] = ((const u32*)move.from_notes)[slot];
    return;
  }
  const u64* left = note_of(move.from_notes, slot, move.grows);
  u64* grown = note_of(move.to_notes, claim.slot, move.grows);
  for (u32 k = 0; k < move.grows; ++k) raise_to(&grown[k], left[k]);
}

}  // namespace tokenometer
