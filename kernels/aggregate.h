// Counters: each counted record adds to its row, its cell and its user. Integer sums, so the order of threads is moot.
#pragma once
#include "layout.h"
#include "hash.h"
#include "intern.h"

namespace tokenometer {

HD u32 row_home(u64 key, u32 mask) {
  return (u32)(fold(key ^ 0x9e3779b97f4a7c15ull, 0xd6e8feb86659fd93ull) >> 24) & mask;
}
HD u64 row_key(u32 account, u32 cell) { return 1ull << 63 | (u64)account << 32 | cell; }
HD u32 account_of(const Job& job, u32 i) { return job.extras ? job.extras[i].account : job.records[i].user_slot; }

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

// Adds counters [from, to) of a record to the row and cell of one chip. The row's slot
HD u32 add_to_row(const Job& job, const Record& record, u32 account, u32 cell, u32 from, u32 to) {
  const Claim claim = claim_row(job, row_key(account, cell));
  if (claim.fresh) {
    count_one(&job.fill[FILL_ROWS]);
    sketch_user(job, record.user_slot, cell);
  }
  Row& row = job.rows[claim.slot];
  u64 values[COUNTERS];  // a copy, so that a compiler knows that no sum is part of it and adds several at once
  for (u32 k = from; k < to; ++k) values[k] = record.counters[k];
  for (u32 k = from; k < to; ++k)
    if (!SKIPS_ZEROS || values[k]) add(&row.counters[k], values[k]);
  for (u32 k = from; k < to; ++k)
    if (!SKIPS_ZEROS || values[k]) add(&job.cells[cell].counters[k], values[k]);
  if (load(&row.epoch) != job.epoch && exchange(&row.epoch, job.epoch) != job.epoch)
    job.changed[fetch_add(&job.fill[FILL_CHANGED], 1)] = claim.slot;
  return claim.slot;
}

// --- Further counters ---

HD u64 further_key(u32 row, u32 kind) { return 1ull << 63 | (u64)row << 3 | kind; }

HD void add_further(const Job& job, const Extra& extra, u32 row, u32 from, u32 to) {
  for (u32 kind = from; kind < to; ++kind) {
    const u64 value = extra.further[kind], key = further_key(row, kind);
    if (!value) continue;
    u32 slot = row_home(key, job.further_mask);
    ROLLED for (;; slot = (slot + 1) & job.further_mask) {
      u64 seen = load(&job.further[slot].key);
      if (seen == 0) {
        seen = compare_swap(&job.further[slot].key, 0, key);
        if (seen == 0) {
          fetch_add(&job.rows[row].further, 1u << kind);
          fetch_add(&job.fill[FILL_FURTHER], 1);
          break;
        }
      }
      if (seen == key) break;
    }
    add(&job.further[slot].counter, value);
  }
}

HD u64 find_further(const Job& job, u32 row, u32 kind) {
  const u64 key = further_key(row, kind);
  u32 slot = row_home(key, job.further_mask);
  ROLLED while (job.further[slot].key != key) slot = (slot + 1) & job.further_mask;
  return job.further[slot].counter;
}

// --- Records ---

HD void count_record(const Job& job, u32 i) {
  const Record& record = job.records[i];
  if (record.verdict != ACCEPTED) return;
  const u32 account = account_of(job, i);
  if (LIKELY(record.prefill_cell_slot == NONE)) {
    const u32 row = add_to_row(job, record, account, record.cell_slot, REQUESTS, COUNTERS);
    if (job.extras) add_further(job, job.extras[i], row, 0, FURTHER);
  } else {
    const u32 prefill = add_to_row(job, record, account, record.prefill_cell_slot, INPUT, OUTPUT);
    add_to_row(job, record, account, record.cell_slot, REQUESTS, INPUT);
    const u32 row = add_to_row(job, record, account, record.cell_slot, OUTPUT, COUNTERS);
    if (job.extras) {
      add_further(job, job.extras[i], prefill, 0, AUDIO_OUTPUT);
      add_further(job, job.extras[i], row, AUDIO_OUTPUT, FURTHER);
    }
  }
  add(&job.texts[record.user_slot].tokens, record.counters[INPUT] + record.counters[OUTPUT]);
}

// Labels and further counters of a row. The slot of its user
HD u32 export_extra(const Job& job, u32 slot, UsageExtra& out) {
  const Row& row = job.rows[slot];
  for (u32 kind = 0; kind < FURTHER; ++kind)
    out.further[kind] = row.further >> kind & 1 ? find_further(job, slot, kind) : 0;
  for (u32 k = 0; k < LABELS_MAX; ++k) out.labels[k] = 0;
  const u32 account = (u32)(row.key >> 32) & 0x7fffffffu;
  const u64 where = job.texts[account].where;
  const u32 length = (u32)where & ((1u << LENGTH_BITS) - 1);
  if (length <= ACCOUNT) return account;
  const u8* p = job.arena + (where >> OFFSET_SHIFT);
  for (u32 k = 0; k < length - ACCOUNT; ++k) {
    const u8* label = p + 4 + k * LABEL_BYTES;
    out.labels[k] = (u64)get_word(label) << PLACE_BITS | text_place(job.texts[get_word(label + 4)].where);
  }
  return get_word(p);
}

// Changed row first + k on its way out, its strings as places in the arena
HD void export_row(const Job& job, u32 first, u32 k) {
  const u32 slot = job.changed[first + k];
  const Row& row = job.rows[slot];
  const Cell& cell = job.cells[(u32)row.key];
  UsageRow& out = job.usage_rows[k];
  out.window = cell.window;
  u32 user = (u32)(row.key >> 32) & 0x7fffffffu;
  if (job.usage_extras) user = export_extra(job, slot, job.usage_extras[k]);
  out.user = text_place(job.texts[user].where);
  out.model = text_place(job.texts[cell.model].where);
  out.chip = text_place(job.texts[cell.chip].where);
  for (u32 c = 0; c < COUNTERS; ++c) out.counters[c] = row.counters[c];
}

}  // namespace tokenometer
