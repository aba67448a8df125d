// Counters: each counted record adds to its row, its cell and its user. Integer sums, so the order of threads is moot.
#pragma once
#include "layout.h"
#include "hash.h"
#include "intern.h"

namespace tokenometer {

HD u32 row_home(u64 key, u32 mask) {
  return (u32)(fold(key ^ 0x9e3779b97f4a7c15ull, 0xd6e8feb86659fd93ull) >> 24) & mask;
}
HD u64 row_key(u32 user, u32 cell) { return 1ull << 63 | (u64)user << 32 | cell; }

HD Claim claim_row(const Job& job, u64 key) {
  u32 slot = row_home(key, job.rows_mask);
  ROLLED for (;; slot = (slot + 1) & job.rows_mask) {
    u64 seen = load(&job.rows[slot].key);
    if (seen == 0) seen = compare_swap(&job.rows[slot].key, 0, key);
    if (seen == 0) return {slot, true};
    if (seen == key) return {slot, false};
  }
}

// A sketch is a courtesy to operators, so it is the one table that may refuse: room for it is not reserved.
constexpr u32 WINDOW_PROBES_MAX = 64;

// A new row is a user's first in its cell: the only time its window's sketch can grow.
HD void sketch_user(const Job& job, u32 user, u32 cell) {
  const u64 low = job.cells[cell].window + 1;
  u32 slot = (u32)(low * 0x9e3779b97f4a7c15ull >> 40) & job.windows_mask;
  ROLLED for (u32 probe = 0;; ++probe, slot = (slot + 1) & job.windows_mask) {
    u64 seen = load(&job.windows[slot].low);
    if (probe == WINDOW_PROBES_MAX) return count_one(&job.fill[FILL_UNSKETCHED]);
    if (seen == 0) {
      if (load(&job.fill[FILL_WINDOWS]) >= job.windows_limit) return count_one(&job.fill[FILL_UNSKETCHED]);
      seen = compare_swap(&job.windows[slot].low, 0, low);
      if (seen == 0) job.window_order[fetch_add(&job.fill[FILL_WINDOWS], 1)] = slot;
    }
    if (seen == 0 || seen == low) break;
  }
  const u32 place = (u32)(job.texts[user].where >> LENGTH_BITS) & ((1u << (SKETCH_BITS + SKETCH_RANK_BITS)) - 1);
  const u32 index = place >> SKETCH_RANK_BITS, rank = place & ((1u << SKETCH_RANK_BITS) - 1);
  u32* word = &job.registers[(u64)slot * (SKETCH_REGISTERS / 4) + index / 4];
  const u32 shift = index % 4 * 8;
  for (u32 old = load(word); (old >> shift & 0xff) < rank;) {
    const u32 seen = compare_swap(word, old, (old & ~(0xffu << shift)) | rank << shift);
    if (seen == old) break;
    old = seen;
  }
}

// Adds counters [from, to) of a record to the row and cell of one chip.
HD void add_to_row(const Job& job, const Record& record, u32 cell, u32 from, u32 to) {
  const Claim claim = claim_row(job, row_key(record.user_slot, cell));
  if (claim.fresh) {
    count_one(&job.fill[FILL_ROWS]);
    sketch_user(job, record.user_slot, cell);
  }
  Row& row = job.rows[claim.slot];
  for (u32 k = from; k < to; ++k) {
    const u64 value = record.counters[k];
    if (SKIPS_ZEROS && !value) continue;
    add(&row.counters[k], value);
    add(&job.cells[cell].counters[k], value);
  }
  if (load(&row.epoch) != job.epoch && exchange(&row.epoch, job.epoch) != job.epoch)
    job.changed[fetch_add(&job.fill[FILL_CHANGED], 1)] = claim.slot;
}

HD void count_record(const Job& job, u32 i) {
  const Record& record = job.records[i];
  if (record.verdict != ACCEPTED) return;
  if (LIKELY(record.prefill_cell_slot == NONE)) {
    add_to_row(job, record, record.cell_slot, REQUESTS, COUNTERS);
  } else {
    add_to_row(job, record, record.prefill_cell_slot, INPUT, OUTPUT);
    add_to_row(job, record, record.cell_slot, REQUESTS, INPUT);
    add_to_row(job, record, record.cell_slot, OUTPUT, COUNTERS);
  }
  add(&job.texts[record.user_slot].tokens, record.counters[INPUT] + record.counters[OUTPUT]);
}

// Changed row first + k on its way out, its strings as places in the arena
HD void export_row(const Job& job, u32 first, u32 k) {
  const Row& row = job.rows[job.changed[first + k]];
  const Cell& cell = job.cells[(u32)row.key];
  UsageRow& out = job.usage_rows[k];
  out.window = cell.window;
  out.user = text_place(job.texts[(u32)(row.key >> 32) & 0x7fffffffu].where);
  out.model = text_place(job.texts[cell.model].where);
  out.chip = text_place(job.texts[cell.chip].where);
  for (u32 slot = 0; slot < COUNTERS; ++slot) out.counters[slot] = row.counters[slot];
}

}  // namespace tokenometer
