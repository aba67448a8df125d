// OTLP/protobuf: the same lines from the wire format. A length that leads out of its message spoils it: for a span it
// is a bad record, for what is around spans the whole message. Unknown fields are skipped. Of a field that is there
// twice the last one counts.
#pragma once
#include "otlp_json.h"

namespace tokenometer {

// Walks the fields of one message.
class Wire {
 public:
  enum Type : u32 { VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 };
  u32 field = 0, type = 0;
  u64 number = 0;  // of VARINT, FIXED64 and FIXED32
  Text bytes;      // of BYTES

  explicit Wire(Text message) : p_(message.p), end_(message.p + message.n) {}

  // The next field; false at the end, and where the message is malformed.
  HD bool next() {
    if (p_ == end_) return false;
    u64 tag = 0;
    if (!varint(&tag) || tag >> 32 || !(field = (u32)tag >> 3)) return fail();
    type = (u32)tag & 7;
    switch (type) {
      case VARINT:
        return varint(&number) || fail();
      case BYTES: {
        u64 n = 0;
        if (!varint(&n) || n > (u64)(end_ - p_)) return fail();
        bytes = {p_, n};
        p_ += n;
        return true;
      }
      case FIXED64:
        return fixed<u64>() || fail();
      case FIXED32:
        return fixed<u32>() || fail();
      default:
        return fail();
    }
  }
  bool malformed() const { return failed_; }

 private:
  HD bool varint(u64* value) {
    if (LIKELY(p_ != end_ && *p_ < 0x80)) {
      *value = *p_++;
      return true;
    }
    u64 read = 0;
    for (u32 shift = 0; shift < 70 && p_ != end_; shift += 7) {
      const u8 c = *p_++;
      read |= (u64)(c & 0x7f) << shift;  // bits past the 64th are dropped, as protobuf does
      if (c < 0x80) {
        *value = read;
        return true;
      }
    }
    return false;
  }
  template <class Number>
  HD bool fixed() {
    if ((u64)(end_ - p_) < sizeof(Number)) return false;
    Number value;
    memcpy(&value, p_, sizeof value);
    number = value;
    p_ += sizeof value;
    return true;
  }
  bool fail() {
    failed_ = true;
    return false;
  }

  const u8 *p_, *end_;
  bool failed_ = false;
};

class OtlpProto {
 public:
  explicit OtlpProto(SpanLines& lines) : lines_(lines), out_(lines.out()) {}

  // One message, followed by 64 bytes that can be read. False: it cannot be read.
  bool message(Text bytes) {
    bool known = !bytes.n;
    Wire wire(bytes);
    while (wire.next())
      if (wire.field == 1 && wire.type == Wire::BYTES) {
        known = true;
        if (!resource(wire.bytes)) return false;
      }
    return known && !wire.malformed();
  }

 private:
  bool resource(Text bytes) {
    Text described;
    if (!last_field(bytes, 1, &described)) return false;
    resource_.size = 0;
    if (!attributes(described, 1, PADDED("resource."), resource_)) return false;
    Wire wire(bytes);
    while (wire.next())
      if (wire.field == 2 && wire.type == Wire::BYTES && !scope(wire.bytes)) return false;
    return true;
  }

  bool scope(Text bytes) {
    Text described, name, version;
    if (!last_field(bytes, 1, &described)) return false;
    if (!last_field(described, 1, &name) || !last_field(described, 2, &version)) return false;
    scope_.size = 0;
    string(scope_, NAMED("scope.name"), name);
    string(scope_, NAMED("scope.version"), version);
    if (!attributes(described, 3, PADDED("scope."), scope_)) return false;
    Wire wire(bytes);
    while (wire.next())
      if (wire.field == 2 && wire.type == Wire::BYTES) record(wire.bytes);
    return true;
  }

  // The last field of that number that has bytes. False: the message is malformed.
  static bool last_field(Text bytes, u32 field, Text* found) {
    Wire wire(bytes);
    while (wire.next())
      if (wire.field == field && wire.type == Wire::BYTES) *found = wire.bytes;
    return !wire.malformed();
  }

  static void string(Out& out, Text name, Text value) {
    if (!value.n) return;
    out.put(name);
    u8* to = out.room(6 * value.n + 3);
    u8* end = write_string(to, value);
    *end++ = ',';
    out.size += (u64)(end - to);
  }

  // --- Records ---

  struct Fixed {
    Text trace, span, parent, name, status, severity, body;
    u64 start = 0, end = 0, kind = 0;
    bool has_body = false;
  };

  void record(Text bytes) {
    const SpanLines::Place place = lines_.here();
    u8* to = lines_.begin_line(resource_.size + scope_.size + 512);
    out_.size = (u64)(to - out_.data);
    ids_ = {};
    if (!is_log(bytes) ? !span(bytes) : !log(bytes)) {
      lines_.back_to(place);
      return lines_.bad_line();
    }
    out_.put({scope_.data, scope_.size});
    out_.put({resource_.data, resource_.size});
    to = out_.room(2);
    lines_.end_line(to, ids_);
  }

  // A log record has a time where a span has its trace's id, its severity where that has its own, and so on.
  static bool is_log(Text bytes) {
    Wire wire(bytes);
    while (wire.next()) {
      if (wire.field == 1) return wire.type == Wire::FIXED64;
      if (wire.field == 2) return wire.type == Wire::VARINT;
      if (wire.field == 6) return wire.type == Wire::BYTES;
      if (wire.field == 11) return wire.type == Wire::FIXED64;
    }
    return false;
  }

  bool span(Text bytes) {
    row_ = Row::SPAN;
    Fixed f;
    attributes_.clear();
    if (bytes.n >> 32) return false;
    Wire wire(bytes);
    while (wire.next()) {
      if (wire.type == Wire::BYTES) {
        if (LIKELY(wire.field == 9))
          attributes_.push_back((u64)(wire.bytes.p - bytes.p) << 32 | wire.bytes.n);
        else if (wire.field == 1)
          f.trace = wire.bytes;
        else if (wire.field == 2)
          f.span = wire.bytes;
        else if (wire.field == 4)
          f.parent = wire.bytes;
        else if (wire.field == 5)
          f.name = wire.bytes;
        else if (wire.field == 15)
          f.status = wire.bytes;
      } else if (wire.type == Wire::FIXED64) {
        if (wire.field == 7) f.start = wire.number;
        if (wire.field == 8) f.end = wire.number;
      } else if (wire.type == Wire::VARINT && wire.field == 6) {
        f.kind = wire.number;
      }
    }
    if (wire.malformed()) return false;
    ids_ = {f.trace, f.span, f.parent, false};
    id(NAMED("trace_id"), f.trace);
    id(NAMED("span_id"), f.span);
    id(NAMED("parent_span_id"), f.parent);
    string(out_, NAMED("name"), f.name);
    enumeration(NAMED("kind"), f.kind, KIND_TEXTS, 6);
    time(NAMED("start_time"), f.start);
    time(NAMED("end_time"), f.end);
    for (const u64 one : attributes_)
      if (!attribute({bytes.p + (one >> 32), (u32)one}, {}, out_)) return false;
    return status(f.status);
  }

  bool log(Text bytes) {
    row_ = Row::LOG;
    Fixed f;
    Wire wire(bytes);
    while (wire.next()) {
      if (wire.type == Wire::BYTES) {
        if (wire.field == 3) f.severity = wire.bytes;
        if (wire.field == 5) f.body = wire.bytes, f.has_body = true;
        if (wire.field == 9) f.trace = wire.bytes;
        if (wire.field == 10) f.span = wire.bytes;
        if (wire.field == 12) f.name = wire.bytes;
      } else if (wire.type == Wire::FIXED64) {
        if (wire.field == 1) f.start = wire.number;
        if (wire.field == 11) f.end = wire.number;
      }
    }
    if (wire.malformed()) return false;
    time(NAMED("time"), f.start);
    time(NAMED("observed_time"), f.end);
    string(out_, NAMED("event_name"), f.name);
    string(out_, NAMED("severity"), f.severity);
    if (f.has_body) {
      out_.put(NAMED("body"));
      if (!any_value(f.body, out_, 1)) return false;
      out_.put((u8)',');
    }
    id(NAMED("trace_id"), f.trace);
    id(NAMED("span_id"), f.span);
    return attributes(bytes, 6, {}, out_);
  }

  void id(Text name, Text bytes) {
    if (!bytes.n) return;
    u8* to = out_.room(name.n + 2 * bytes.n + 3);
    u8* end = copy_padded(to, name);
    *end++ = '"';
    end = write_hex(end, bytes);
    end = write(end, "\",");
    out_.size += (u64)(end - to);
  }

  void time(Text name, u64 ns) {
    if (!ns) return;
    u8* to = out_.room(name.n + 48);
    u8* end = write_time(copy_padded(to, name), ns);
    *end++ = ',';
    out_.size += (u64)(end - to);
  }

  // Numbers of enumerations are 32 bits wide; 0 means nothing was said.
  void enumeration(Text name, u64 wide, const char* const* texts, u32 count) {
    const int value = (int)(u32)wide;
    if (!value) return;
    u8* to = out_.room(name.n + 48);
    u8* end = copy_padded(to, name);
    end = value > 0 && (u32)value < count ? write_name(end, texts[value]) : write_integer(end, value);
    *end++ = ',';
    out_.size += (u64)(end - to);
  }

  bool status(Text bytes) {
    static const char* const texts[] = {"", "ok", "error"};
    Text message;
    u64 code = 0;
    Wire wire(bytes);
    while (wire.next()) {
      if (wire.field == 2 && wire.type == Wire::BYTES) message = wire.bytes;
      if (wire.field == 3 && wire.type == Wire::VARINT) code = wire.number;
    }
    enumeration(NAMED("status"), code, texts, 3);
    string(out_, NAMED("status_message"), message);
    return !wire.malformed();
  }

  // --- Attributes ---

  bool attributes(Text bytes, u32 field, Text prefix, Out& out) {
    Wire wire(bytes);
    while (wire.next())
      if (wire.field == field && wire.type == Wire::BYTES && !attribute(wire.bytes, prefix, out)) return false;
    return !wire.malformed();
  }

  HD bool attribute(Text bytes, Text prefix, Out& out) {
    Text key, value;
    if (!key_and_value(bytes, &key, &value)) return false;
    if (prefix.n ? prefix.n == 6 && (is(key, "name") || is(key, "version")) : is_fixed_name(key, row_)) {
      const u64 size = out.size;
      const bool read = any_value(value, out, 1);
      out.size = size;
      return read;
    }
    if (!prefix.n) ids_.usage |= is_usage_name(key);
    u8* to = out.room(prefix.n + 6 * key.n + 3);
    u8* end = to;
    *end++ = '"';
    if (prefix.n) end = copy_padded(end, prefix);
    end = write_escaped(end, key.p, key.n);
    end = write(end, "\":");
    out.size += (u64)(end - to);
    if (!any_value(value, out, 1)) return false;
    out.put((u8)',');
    return true;
  }

  HD static bool key_and_value(Text bytes, Text* key, Text* value) {
    // As everybody writes it: the key, the value, both short.
    const u8* p = bytes.p;
    if (LIKELY(bytes.n >= 4 && p[0] == 0x0a && p[1] < 0x80 && p[1] + 4ull <= bytes.n)) {
      const u8* q = p + 2 + p[1];
      if (LIKELY(q[0] == 0x12 && q[1] < 0x80 && q + 2 + q[1] == p + bytes.n)) {
        *key = {p + 2, p[1]};
        *value = {q + 2, q[1]};
        return true;
      }
    }
    Wire wire(bytes);
    while (wire.next()) {
      if (wire.type != Wire::BYTES) continue;
      if (wire.field == 1) *key = wire.bytes;
      if (wire.field == 2) *value = wire.bytes;
    }
    return !wire.malformed();
  }

  bool any_value(Text bytes, Out& out, u32 depth) {
    if (depth > ANY_VALUE_DEPTH_MAX) return false;
    const u8* p = bytes.p;
    if (LIKELY(bytes.n >= 2 && p[0] == 0x0a && p[1] < 0x80 && p[1] + 2ull == bytes.n)) {  // a short string
      u8* to = out.room(6 * bytes.n + 2);
      out.size += (u64)(write_string(to, {p + 2, p[1]}) - to);
      return true;
    }
    u32 field = 0;
    u64 number = 0;
    Text value;
    Wire wire(bytes);
    while (wire.next()) {
      static const u8 types[] = {9,           Wire::BYTES, Wire::VARINT, Wire::VARINT, Wire::FIXED64,
                                 Wire::BYTES, Wire::BYTES, Wire::BYTES};
      if (wire.field > 7 || wire.type != types[wire.field]) continue;
      field = wire.field, number = wire.number, value = wire.bytes;
    }
    if (wire.malformed()) return false;
    if (field == 5 || field == 6) return list(value, field == 6, out, depth);
    u8* to = out.room(field == 1 ? 6 * value.n + 2 : field == 7 ? base64_size(value.n) + 2 : 40);
    u8* end = field == 1 ? write_string(to, value) : scalar(field, number, value, to);
    out.size += (u64)(end - to);
    return true;
  }

  static u8* scalar(u32 field, u64 number, Text value, u8* to) {
    if (field == 2) return number ? write(to, "true") : write(to, "false");
    if (field == 3) return write_integer(to, (i64)number);
    if (field == 4) {
      double real;
      memcpy(&real, &number, 8);
      return write_float(to, real);
    }
    if (field != 7) return write(to, "null");
    *to++ = '"';
    to = write_base64(to, value);
    *to++ = '"';
    return to;
  }

  bool list(Text bytes, bool keyed, Out& out, u32 depth) {
    out.put((u8)(keyed ? '{' : '['));
    bool any = false;
    Wire wire(bytes);
    while (wire.next()) {
      if (wire.field != 1 || wire.type != Wire::BYTES) continue;
      if (any) out.put((u8)',');
      any = true;
      Text value = wire.bytes;
      if (keyed) {
        Text key;
        value = {};
        if (!key_and_value(wire.bytes, &key, &value)) return false;
        u8* to = out.room(6 * key.n + 3);
        u8* end = write_string(to, key);
        *end++ = ':';
        out.size += (u64)(end - to);
      }
      if (!any_value(value, out, depth + 1)) return false;
    }
    out.put((u8)(keyed ? '}' : ']'));
    return !wire.malformed();
  }

  SpanLines& lines_;
  Out& out_;
  Out resource_, scope_;
  std::vector<u64> attributes_;  // of the span at hand: where in it, and the length, in one word
  SpanIds ids_;
  Row row_ = Row::SPAN;
};

}  // namespace tokenometer
