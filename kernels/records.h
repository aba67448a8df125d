// A record of Kafka's record batches, format 2, as the host's walk (broker/kafka/fetch/batches.h) and the device's
// (walk.h) both read it:
//
//   length | attributes i8 | time's delta | offset's delta | key | value | headers, each a name and a value
//
// Its numbers are zigzag varints; a text is its length (-1: none) and its bytes.
#pragma once
#include "portable.h"

namespace tokenometer {

constexpr i64 RAW_RECORD_BYTES_MIN = 7;  // each of its parts takes one byte at least

// Reads a record's parts; once `bad`, all further ones are nothing.
struct Cursor {
  const u8 *at, *end;
  bool bad = false;

  HD i64 number() {
    if (LIKELY(at != end && *at < 128)) return unfolded(*at++);  // most are small
    return long_number();
  }
  static HD i64 unfolded(u64 value) { return (i64)(value >> 1) ^ -(i64)(value & 1); }
  HD i64 long_number() {
    u64 value = 0;
    ROLLED for (u32 shift = 0; shift < 64; shift += 7) {
      if (at == end) break;
      const u8 byte = *at++;
      value |= (u64)(byte & 127) << shift;
      if (!(byte & 128)) return unfolded(value);
    }
    bad = true;
    return 0;
  }
  // -1: none. The bytes are at `at` minus the length afterwards.
  HD i64 text() {
    const i64 length = number();
    if (length == -1) return -1;
    if (length < 0 || length > end - at) {
      bad = true;
      return -1;
    }
    at += length;
    return length;
  }
  // A record's length, which fits what is left; 0: it is broken, or does not.
  HD i64 record() {
    const i64 length = number();
    return bad || length < RAW_RECORD_BYTES_MIN - 1 || length > end - at ? 0 : length;
  }
};

// Before the headers. A length of -1: there is none.
struct RawFields {
  i64 time, delta, key_length, length;
  const u8 *key, *value;
};

HD void skip_to_numbers(Cursor& record) { ++record.at; }

// False: it is broken. The cursor stands at the headers afterwards.
HD bool read_fields(Cursor& record, RawFields& fields) {
  skip_to_numbers(record);
  fields.time = record.number();
  fields.delta = record.number();
  fields.key_length = record.text();
  fields.key = record.at - (fields.key_length > 0 ? fields.key_length : 0);
  fields.length = record.text();
  fields.value = record.at - (fields.length > 0 ? fields.length : 0);
  return !record.bad && fields.delta >= 0;
}

// ms since the epoch. batch_ms: what the record's delta is added to, or the time of all, when they were appended.
HD u64 time_of(u64 batch_ms, bool appended, i64 delta) {
  const i64 time = (i64)(appended ? batch_ms : batch_ms + (u64)delta);
  return time > 0 ? (u64)time : 0;
}

}  // namespace tokenometer
