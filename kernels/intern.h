// Strings to numbers: a slot's number is its id, so nothing has to be published or waited for.
//
// 128-bit insert without spinning: the low half goes from zero to x by one compare-and-swap, the high half from zero to
// y by another; both are final. A thread that finds a foreign half moves on to the next slot. Whoever fills the high
// half is the unique inserter.
#pragma once
#include "layout.h"
#include "hash.h"
#include "extras.h"

namespace tokenometer {

struct Claim {
  u32 slot;
  bool fresh;
};

// Never loops forever: engine.py reserves room before each segment, so an empty slot exists.
template <class Entry>
HD Claim claim_entry(Entry* table, u32 mask, u32 home, u64 low, u64 high) {
  u32 slot = home & mask;
  ROLLED for (;; slot = (slot + 1) & mask) {
    u64 seen = load(&table[slot].low);
    if (seen == 0) seen = compare_swap(&table[slot].low, 0, low);
    if (seen != 0 && seen != low) continue;
    seen = load(&table[slot].high);
    if (seen == 0) seen = compare_swap(&table[slot].high, 0, high);
    if (seen == 0) return {slot, true};
    if (seen == high) return {slot, false};
  }
}

HD u32 text_home(u64 low) { return (u32)(low >> 8); }

// A string's place in a HyperLogLog: the register its hash's first bits name, and how many zeros the rest starts with,
// plus one. The seed is shared by all meters, so that their sketches can be merged.
HD u64 sketch_place(const u8* text, u32 length, u64 seed) {
  const u64 hash = shared_hash(text, length, seed);
  const u32 rank = leading_zeros(hash << SKETCH_BITS | 1ull << (SKETCH_BITS - 1)) + 1;
  return (hash >> (64 - SKETCH_BITS)) << SKETCH_RANK_BITS | rank;
}

// Where a string's bytes are, for the host: arena offset << 16 | length
HD u64 text_place(u64 where) { return where >> OFFSET_SHIFT << 16 | (where & ((1u << LENGTH_BITS) - 1)); }

HD u32 intern_bytes(const Job& job, u64 low, u64 high, const u8* bytes, u32 length) {
  const Claim claim = claim_entry(job.texts, job.texts_mask, text_home(low), low, high);
  if (claim.fresh) {
    const u64 offset = fetch_add(&job.fill[FILL_ARENA], length);
    ROLLED for (u32 k = 0; k < length; ++k) job.arena[offset + k] = bytes[k];
    const u64 sketch = sketch_place(bytes, length, job.sketch_seed);
    job.texts[claim.slot].where = offset << OFFSET_SHIFT | sketch << LENGTH_BITS | length;
    job.text_order[fetch_add(&job.fill[FILL_TEXTS], 1)] = claim.slot;
  }
  return claim.slot;
}
HD u32 intern_text(const Job& job, const Record& record, u32 text) {
  return intern_bytes(job, record.low[text], record.high[text], job.buffer + record.start[text], record.length[text]);
}

// --- Accounts: the arena holds the user's slot, and for each label the number of its name and its text's slot ---

HD void put_word(u8* p, u32 word) {  // byte by byte: places are not aligned
  for (u32 k = 0; k < 4; ++k) p[k] = (u8)(word >> 8 * k);
}
HD u32 get_word(const u8* p) {
  u32 word = 0;
  for (u32 k = 0; k < 4; ++k) word |= (u32)p[k] << 8 * k;
  return word;
}

HD u64 write_account(const Job& job, u32 user, const Extra& extra) {
  const Plan& plan = *job.plan;
  u32 count = 0;
  ROLLED for (u32 slot = 0; slot < plan.label_count; ++slot) count += extra.length[slot] != 0;
  const u64 offset = fetch_add(&job.fill[FILL_ARENA], 4 + count * LABEL_BYTES);
  u8* p = job.arena + offset;
  put_word(p, user);
  p += 4;
  ROLLED for (u32 slot = 0; slot < plan.label_count; ++slot) {
    const u32 length = extra.length[slot];
    if (!length) continue;
    const u8* bytes = job.buffer + extra.start[slot];
    const Hash hash = hash_text(bytes, length, job.secret, 0);
    put_word(p, plan.labels[slot].number);
    put_word(p + 4, intern_bytes(job, hash.low | 1, hash.high | 1, bytes, length));
    p += LABEL_BYTES;
  }
  return offset << OFFSET_SHIFT | (ACCOUNT + count);
}

// An account is found by the hash of the user and the labels, so that only its first record has to look labels up.
HD u32 intern_account(const Job& job, u32 user, const Extra& extra) {
  if (!extra.low) return user;
  const Claim claim = claim_entry(job.texts, job.texts_mask, text_home(extra.low), extra.low, extra.high);
  if (claim.fresh) {
    job.texts[claim.slot].where = write_account(job, user, extra);
    job.text_order[fetch_add(&job.fill[FILL_TEXTS], 1)] = claim.slot;
  }
  return claim.slot;
}

// --- Cells ---

HD u64 cell_low(const Job& job, const Record& record, u32 chip) {
  return fold(record.low[MODEL] ^ record.window, record.low[chip] ^ job.secret[0]) | 1;
}

// A cell is found by the hashes of its names, so that only its first record has to look the names up.
HD u32 intern_cell(const Job& job, const Record& record, u32 chip) {
  const u64 low = cell_low(job, record, chip);
  const u64 high = fold(record.high[MODEL] ^ job.secret[1], record.high[chip] ^ rotate(record.window, 32)) | 1;
  const Claim claim = claim_entry(job.cells, job.cells_mask, text_home(low), low, high);
  if (claim.fresh) {
    Cell& cell = job.cells[claim.slot];
    cell.window = record.window;
    cell.model = intern_text(job, record, MODEL);
    cell.chip = intern_text(job, record, chip);
    job.cell_order[fetch_add(&job.fill[FILL_CELLS], 1)] = claim.slot;
  }
  return claim.slot;
}

// Of a record that counts
HD void intern_record(const Job& job, u32 i) {
  Record& record = job.records[i];
  record.user_slot = intern_text(job, record, USER);
  if (Extra* extra = extra_of(job, i)) extra->account = intern_account(job, record.user_slot, *extra);
  record.cell_slot = intern_cell(job, record, CHIP);
  record.prefill_cell_slot = record.length[PREFILL_CHIP] ? intern_cell(job, record, PREFILL_CHIP) : NONE;
}

}  // namespace tokenometer
