// The same kernels for the CPU: plain loops over the HD functions. Tables are larger than caches, so each loop asks for
// the lines that it needs some records later; asked for a pass earlier they are gone, for a tile fills the caches.
#include "parse.h"
#include "ahead.h"
#include "dedup.h"
#include "grow.h"
#include "intern.h"
#include "aggregate.h"
#include "walk.h"

using namespace tokenometer;

constexpr u32 AHEAD = 16;           // records
constexpr u32 BLOCK_RECORDS = 256;  // 48 KiB of them, so that each pass finds them in the second cache
constexpr u64 PAGE_BYTES = 4096;

#define ENTRY extern "C" __attribute__((visibility("default")))
// Of a lambda: a call of one that only asks for cache lines is thrown away by g++ 12, as if it did nothing.
#ifdef __OPTIMIZE__
#define INLINE __attribute__((always_inline))
#else
#define INLINE
#endif

// Visits records [begin, end), each some records after it was asked for.
template <class Ask, class Visit>
HD void each(u32 begin, u32 end, Ask ask, Visit visit) {
  for (u32 i = begin; i < end && i < begin + AHEAD; ++i) ask(i);
  for (u32 i = begin; i < end; ++i) {
    if (i + AHEAD < end) ask(i + AHEAD);
    visit(i);
  }
}

// Finds lines in data[0, length), a multiple of 64 away from nothing: the buffer is padded. Returns their number.
ENTRY u32 split_lines(const u8* data, u32 length, u32 origin, u32* line_start) {
  u32 line = 0;
  line_start[0] = origin;
  for (u32 at = 0; at < length; at += 64) {
    u64 marks = newlines(data + at);
    if (length - at < 64) marks &= (1ull << (length - at)) - 1;
    for (; marks; marks &= marks - 1) line_start[++line] = origin + at + trailing_zeros(marks) + 1;
  }
  return line;
}

// Entries work on a copy of the Job: nothing else can point into it, so its fields stay in registers across stores.
ENTRY void parse(const Job* shared, u32 first, u32 begin, u32 end) { read_lines(shared, first, begin, end); }
ENTRY void finish(const Job* shared, u32 first, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 i = begin; i < end; ++i) finish_line(job, first, i);
}
ENTRY void look_again(const Job* shared, u32 first, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 i = begin; i < end; ++i) look_at_line_again(job, first, i);
}
ENTRY void accounts(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 i = begin; i < end; ++i) finish_extra_of(job, i);
}
ENTRY void respell(const Job* shared, u32 first, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 k = begin; k < end; ++k) respell_line(job, first, k);
}
ENTRY void read_respelled(const Job* shared, u32 first, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 k = begin; k < end; ++k) read_respelled_line(job, first, k);
}
ENTRY void adopt(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 i = begin; i < end; ++i) adopt_ruling(job, i);
}

// --- The passes over a tile ---

HD void claim_all(const Job& job, u32 begin, u32 end) {
  const auto ask = [&](u32 i) INLINE {
    const u32 home = identity_home(job.records[i].low[REQUEST_ID]);
    prefetch(&job.identities[home & job.identities_mask]);
    if (job.identities_leaving) prefetch(&job.identities_leaving[home & job.identities_mask >> 1]);
    if (job.identities_before) prefetch(&job.identities_before[home & job.identities_before_mask]);
  };
  each(begin, end, ask, [&](u32 i) INLINE { claim_request(job, i); });
}
HD void grow_all(const Job& job, u32 begin, u32 end) {
  const auto ask = [&](u32 i) INLINE {
    if (IN_ORDER) prefetch(note_of(job.notes, job.records[i].identity_slot & job.identities_mask, job.grows));
  };
  each(begin, end, ask, [&](u32 i) INLINE { grow_identity(job, i); });
}
HD void settle_all(const Job& job, u32 begin, u32 end) {
  const auto ask = [&](u32 i) INLINE {
    const Record& soon = job.records[i];
    if (!IN_ORDER) prefetch(&((u32*)job.notes)[soon.identity_slot & job.identities_mask]);
    prefetch(&job.texts[text_home(soon.low[USER]) & job.texts_mask]);
    if (job.extras) prefetch(&job.texts[text_home(job.extras[i].low) & job.texts_mask]);
    prefetch(&job.cells[text_home(cell_low(job, soon, CHIP)) & job.cells_mask]);
  };
  each(begin, end, ask, [&](u32 i) INLINE {
    settle_identity(job, i);
    tally_record(job, i);
    if (job.records[i].verdict == ACCEPTED) intern_record(job, i);
  });
}
HD void count_all(const Job& job, u32 begin, u32 end) {
  const auto ask = [&](u32 i) INLINE {
    prefetch(&job.rows[row_home(row_key(account_of(job, i), job.records[i].cell_slot), job.rows_mask)]);
  };
  each(begin, end, ask, [&](u32 i) INLINE {
    count_record(job, i);
    compare_duplicate(job, i);
  });
}
ENTRY void claim(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  claim_all(job, begin, end);
}
ENTRY void grow(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  grow_all(job, begin, end);
}
ENTRY void recall(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 i = begin; i < end; ++i) settle_identity(job, i);
}
ENTRY void settle(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  settle_all(job, begin, end);
}
ENTRY void count(const Job* shared, u32, u32 begin, u32 end) {
  const Job job = *shared;
  count_all(job, begin, end);
}
HD void passes(const Job& job, u32 begin, u32 end) {
  claim_all(job, begin, end);
  if (job.grows) grow_all(job, begin, end);
  settle_all(job, begin, end);
  count_all(job, begin, end);
}
// Where records come in order, all the passes may follow one another block by block: no record looks at a later one.
ENTRY void in_order(const Job* shared, u32, u32 begin, u32 end) {
  Job job = *shared;
  const bool plain = !job.extras && !job.grows;
  for (u32 at = begin; at < end; at += BLOCK_RECORDS) {
    const u32 last = end - at < BLOCK_RECORDS ? end : at + BLOCK_RECORDS;
    if (plain) {
      job.extras = nullptr;  // said once more where it is used, so that it is known when compiling
      job.grows = 0;
      passes(job, at, last);
    } else {
      passes(job, at, last);
    }
  }
}

// Null: the system starts no further thread.
ENTRY Ahead* open_ahead() {
  try {
    return new Ahead;
  } catch (const std::system_error&) { return nullptr; }
}
ENTRY void close_ahead(Ahead* ahead) { delete ahead; }
// `in_order` of the first `count` lines from `first` on, and `parse` of another batch's first ones, whose records lie
// elsewhere.
ENTRY void count_beside(const Job* shared, u32 first, u32 count, Ahead* ahead, const Job* next, u32 lines) {
  ahead->begin(next, lines);
  in_order(shared, first, 0, count);
  ahead->end();
}

// What the labels of a row are read from, in three steps of which each needs what the one before has brought.
static u64 where_of_account(const Job& job, u32 i) {
  return job.texts[(u32)(job.rows[job.changed[i]].key >> 32) & 0x7fffffffu].where;
}
static void prefetch_extra(const Job& job, u32 i, u32 last) {
  if (i + 3 * AHEAD / 4 < last) {
    const u64 key = job.rows[job.changed[i + 3 * AHEAD / 4]].key;
    prefetch(&job.texts[(u32)(key >> 32) & 0x7fffffffu]);
  }
  if (i + AHEAD / 2 < last) prefetch(&job.arena[where_of_account(job, i + AHEAD / 2) >> OFFSET_SHIFT]);
  if (i + AHEAD / 4 < last) {
    const u64 where = where_of_account(job, i + AHEAD / 4);
    const u32 length = (u32)where & ((1u << LENGTH_BITS) - 1);
    if (length <= ACCOUNT) return;
    const u8* p = job.arena + (where >> OFFSET_SHIFT);
    prefetch(&job.texts[get_word(p)]);
    for (u32 k = 0; k < length - ACCOUNT; ++k) prefetch(&job.texts[get_word(p + 8 + k * LABEL_BYTES)]);
  }
}
ENTRY void export_rows(const Job* shared, u32 first, u32 begin, u32 end) {
  const Job job = *shared;
  for (u32 i = begin; i < end; ++i) {
    if (i + AHEAD < end) prefetch(&job.rows[job.changed[first + i + AHEAD]]);
    if (job.usage_extras) prefetch_extra(job, first + i, first + end);
    export_row(job, first, i);
  }
}
ENTRY void move_identities(const Move* shared, u32 count) {
  const Move move = *shared;
  for (u32 i = 0; i < count; ++i) move_identity(move, i);
}
ENTRY void find_records(const Walk* shared, u32 count) {
  const Walk walk = *shared;
  for (u32 k = 0; k < count; ++k) find_records_of(walk, k);
}
ENTRY void read_records(const Walk* shared, u32 count) {
  const Walk walk = *shared;
  for (u32 i = 0; i < count; ++i) read_record_of(walk, i);
}
ENTRY void place_values(const Walk* shared, u32 count) {
  const Walk walk = *shared;
  for (u32 k = 0; k < count; ++k) place_word_of(walk, k);
}

// Has the system find the memory's pages: an atomic write of what is there, so that others may use them meanwhile.
static void touch_page(u8* p) {
  u8 zero = 0;
  __atomic_compare_exchange_n(p, &zero, (u8)0, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
ENTRY void touch_pages(u8* memory, u64 size) {
  for (u64 at = 0; at < size; at += PAGE_BYTES) touch_page(memory + at);
  touch_page(memory + size - 1);
}

// For tests: the hash by itself.
ENTRY void hash_many(const u8* data, const u32* start, const u32* length, u32 n, const u64* secret, u64* out) {
  for (u32 i = 0; i < n; ++i) {
    const Hash hash = hash_text(data + start[i], length[i], secret, 0);
    out[2 * i] = hash.low;
    out[2 * i + 1] = hash.high;
  }
}
