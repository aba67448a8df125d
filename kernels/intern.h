// Strings to numbers: a slot's number is its id, so nothing has to be published or waited for.
//
// 128-bit insert without spinning: the low half goes from zero to x by one compare-and-swap, the high half from zero to
// y by another; both are final. A thread that finds a foreign half moves on to the next slot. Whoever fills the high
// half is the unique inserter.
#pragma once
#include "layout.h"

namespace tokenometer {

struct Claim {
  u32 slot;
  bool fresh;
};

// Never loops forever: engine.py reserves room before each segment, so an empty slot exists.
template <class Entry>
HD Claim claim_entry(Entry* table, u32 mask, u64 home, u64 low, u64 high) {
  u32 slot = (u32)home & mask;
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

HD u64 text_home(u64 hash_low) { return hash_low >> 8; }

HD u32 intern_text(const Job& job, u32 column, u32 i) {
  const u64 at = (u64)column * job.stride + i;
  const u64 low = job.hash_low[at];
  const Claim claim = claim_entry(job.texts, job.texts_mask, text_home(low), low, job.hash_high[at]);
  if (claim.fresh) {
    const u32 length = job.text_length[at];
    const u64 offset = fetch_add(&job.fill[FILL_ARENA], length);
    ROLLED for (u32 k = 0; k < length; ++k) job.arena[offset + k] = job.buffer[job.text_start[at] + k];
    job.texts[claim.slot].where = offset << 16 | length;
    job.text_order[fetch_add(&job.fill[FILL_TEXTS], 1)] = claim.slot;
  }
  return claim.slot;
}

HD u32 intern_cell(const Job& job, u64 window, u32 model, u32 chip) {
  const u64 high = 1ull << 63 | (u64)model << 32 | chip;
  const u64 home = ((window + 1) * 0x9e3779b97f4a7c15ull ^ high) * 0xd6e8feb86659fd93ull >> 32;
  const Claim claim = claim_entry(job.cells, job.cells_mask, home, window + 1, high);
  if (claim.fresh) job.cell_order[fetch_add(&job.fill[FILL_CELLS], 1)] = claim.slot;
  return claim.slot;
}

HD void intern_record(const Job& job, u32 i) {
  if (job.verdict[i] != ACCEPTED) return;
  const u64 window = job.window[i];
  const u32 model = intern_text(job, MODEL, i);
  job.user_slot[i] = intern_text(job, USER, i);
  job.cell_slot[i] = intern_cell(job, window, model, intern_text(job, CHIP, i));
  const bool prefill = job.text_length[(u64)PREFILL_CHIP * job.stride + i] != 0;
  job.prefill_cell_slot[i] = prefill ? intern_cell(job, window, model, intern_text(job, PREFILL_CHIP, i)) : NONE;
}

}  // namespace tokenometer
