// Record batches of Kafka on the device: from bytes as a broker sent them to lines and columns.
//
//   find    a thread for each batch: from record to record, as only their lengths tell where they are
//   read    a thread for each record: what it says, and where its value is
//   place   a thread for each eight bytes of lines: the values one after the other, each ended by one newline
//
// Heads were read, checksums compared and codecs undone before; what is wrong with a batch's records is found here.
// Only what comes before the first broken batch is of use.
#pragma once
#include "layout.h"
#include "records.h"

namespace tokenometer {

HD void call_broken(const Walk& walk, u32 batch) { raise_to(walk.broken, walk.batch_count - batch); }

HD void find_records_of(const Walk& walk, u32 k) {
  const RawBatch& batch = walk.batches[k];
  Cursor all{walk.data + batch.begin, walk.data + batch.end};
  RawSpan* const spans = walk.spans + batch.first;
  u32 i = 0;
  ROLLED for (; i < batch.count; ++i) {
    const i64 length = all.record();
    if (!length) break;
    const u32 begin = (u32)(all.at - walk.data);
    spans[i] = {begin, begin + (u32)length, k, 0};
    all.at += length;
  }
  if (i == batch.count && all.at == all.end) return;
  call_broken(walk, k);
  ROLLED for (; i < batch.count; ++i) spans[i] = {0, 0, NONE, 0};
}

// Of a record whose batch is whole so far: -1 where it says none.
HD i64 delta_of(const Walk& walk, const RawSpan& span) {
  Cursor record{walk.data + span.begin, walk.data + span.end};
  skip_to_numbers(record);
  record.number();
  const i64 delta = record.number();
  return record.bad ? -1 : delta;
}

HD void read_record_of(const Walk& walk, u32 i) {
  const RawSpan span = walk.spans[i];
  if (span.batch == NONE) return;
  const RawBatch& batch = walk.batches[span.batch];
  Cursor record{walk.data + span.begin, walk.data + span.end};
  RawFields fields;
  const bool whole = read_fields(record, fields) && fields.delta <= (i64)batch.last;
  if (!whole || (i > batch.first && fields.delta <= delta_of(walk, walk.spans[i - 1]))) {
    call_broken(walk, span.batch);
    return;
  }
  const u32 length = fields.length > 0 ? (u32)fields.length : 0;
  walk.offsets[i] = batch.base + (u64)fields.delta;
  walk.times[i] = time_of(batch.time, batch.appended, fields.time);
  walk.values[i] = (u32)(fields.value - walk.data);
  walk.sizes[i] = length + (length == 0 || fields.value[length - 1] != '\n');
}

// The first line that ends beyond `at`; there is one.
HD u32 line_at(const Walk& walk, u32 at) {
  u32 low = 0, high = walk.count - 1;
  ROLLED while (low < high) {
    const u32 middle = low + (high - low) / 2;
    if (walk.ends[middle] > at)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

// Beyond the last line there are newlines, as a batch's padding has to be.
HD void place_word_of(const Walk& walk, u32 k) {
  const u32 begin = 8 * k, after = walk.count ? walk.ends[walk.count - 1] : 0;
  u64 word = LOW_BITS * '\n';
  if (begin < after) {
    u32 i = line_at(walk, begin), left = walk.ends[i] - begin;
    if (left > 8) {
      word = load_word(walk.data + walk.values[i] + (walk.sizes[i] - left));
    } else {
      ROLLED for (u32 n = 0; n < 8 && begin + n < after; ++n) {
        if (left > 1) {
          word ^= (u64)(walk.data[walk.values[i] + (walk.sizes[i] - left)] ^ '\n') << (8 * n);
          --left;
        } else if (++i < walk.count) {
          left = walk.sizes[i];
        }
      }
    }
  }
  ((u64*)walk.lines)[k] = word;
}

}  // namespace tokenometer
