// Avro's binary encoding, driven by a schema that avro.py has compiled to tables. One datum is one line. Numbers stay
// numbers, a union is its value, bytes are base64, a decimal is a number.
#pragma once
#include "records.h"

namespace tokenometer {

constexpr u32 AVRO_DEPTH_MAX = 64;  // of values in values: a schema may name itself

enum AvroKind : u32 {
  AVRO_NULL,
  AVRO_BOOLEAN,
  AVRO_LONG,
  AVRO_FLOAT,
  AVRO_DOUBLE,
  AVRO_BYTES,
  AVRO_STRING,
  AVRO_FIXED,
  AVRO_ENUM,
  AVRO_ARRAY,
  AVRO_MAP,
  AVRO_UNION,
  AVRO_RECORD,
  AVRO_DECIMAL,
  AVRO_FIXED_DECIMAL
};

struct AvroNode {
  u32 kind, first, count, size, scale;  // its children, the bytes of a fixed one, a decimal's scale
};
struct AvroChild {
  u32 node, text, length;  // of a field: `"name":`; of a symbol: `"SYMBOL"`
};
struct AvroSchema {
  const AvroNode* nodes;  // the first one is the datum
  const AvroChild* children;
  const u8* texts;  // 64 bytes after the last one can be read
};

class Avro {
 public:
  Avro(Out& out, u64 limit) : out_(out), limit_(limit) {}

  // The line of one datum that fills all of p..end, 64 bytes after which can be read. False: it does not. Throws
  // TooLarge.
  bool datum(const AvroSchema& schema, const u8* p, const u8* end) {
    schema_ = &schema;
    p_ = p, end_ = end;
    begin_ = out_.size;
    if (!value(0, 0) || p_ != end_) {
      out_.size = begin_;
      return false;
    }
    out_.put((u8)'\n');
    if (out_.size - begin_ > limit_) throw TooLarge();
    return true;
  }

 private:
  HD bool varint(u64* value) {
    u64 read = 0;
    for (u32 shift = 0; shift < 70; shift += 7) {
      if (p_ == end_) return false;
      const u8 c = *p_++;
      if (shift == 63 && c > 1) return false;
      read |= (u64)(c & 0x7f) << shift;
      if (c < 0x80) {
        *value = read;
        return true;
      }
    }
    return false;
  }
  HD bool integer(i64* value) {
    u64 read = 0;
    if (!varint(&read)) return false;
    *value = (i64)(read >> 1) ^ -(i64)(read & 1);
    return true;
  }
  HD bool bytes(u64 n, Text* found) {
    if (n > (u64)(end_ - p_)) return false;
    *found = {p_, n};
    p_ += n;
    return true;
  }
  HD bool sized(Text* found) {
    i64 n = 0;
    return integer(&n) && n >= 0 && bytes((u64)n, found);
  }

  bool value(u32 index, u32 depth) {
    const AvroNode& node = schema_->nodes[index];
    if (node.kind == AVRO_LONG) return number();
    if (node.kind == AVRO_STRING) return string();
    if (depth > AVRO_DEPTH_MAX) return false;
    if (node.kind == AVRO_UNION) {
      i64 branch = 0;
      if (!integer(&branch) || (u64)branch >= node.count) return false;
      return value(schema_->children[node.first + branch].node, depth + 1);
    }
    if (node.kind == AVRO_RECORD) return record(node, depth);
    if (node.kind == AVRO_ARRAY || node.kind == AVRO_MAP) return blocks(node, depth);
    u8* to = out_.room(64);
    u8* end = scalar(node, to);
    if (!end) return false;
    out_.size += (u64)(end - to);
    return true;
  }

  HD bool number() {
    i64 value = 0;
    if (!integer(&value)) return false;
    u8* to = out_.room(24);
    out_.size += (u64)(write_integer(to, value) - to);
    return true;
  }
  HD bool string() {
    Text text;
    if (!sized(&text)) return false;
    u8* to = out_.room(6 * text.n + 2);
    out_.size += (u64)(write_string(to, text) - to);
    return true;
  }

  bool record(const AvroNode& node, u32 depth) {
    out_.put((u8)'{');
    for (u32 i = 0; i < node.count; ++i) {
      const AvroChild& child = schema_->children[node.first + i];
      u8* to = out_.room(child.length + 1);
      if (i) *to++ = ',';
      copy_padded(to, schema_->texts + child.text, child.length);
      out_.size += child.length + (i != 0);
      if (!value(child.node, depth + 1)) return false;
    }
    out_.put((u8)'}');
    return true;
  }

  bool blocks(const AvroNode& node, u32 depth) {
    const bool keyed = node.kind == AVRO_MAP;
    const u32 item = schema_->children[node.first].node;
    out_.put((u8)(keyed ? '{' : '['));
    bool any = false;
    for (;;) {
      i64 count = 0, size = 0;
      if (!integer(&count)) return false;
      if (!count) break;
      if (count < 0 && (!integer(&size) || count == INT64_MIN)) return false;
      for (u64 left = (u64)(count < 0 ? -count : count); left; --left) {
        if (out_.size - begin_ > limit_) throw TooLarge();
        if (any) out_.put((u8)',');
        any = true;
        if (keyed) {
          if (!string()) return false;
          out_.put((u8)':');
        }
        if (!value(item, depth + 1)) return false;
      }
    }
    out_.put((u8)(keyed ? '}' : ']'));
    return true;
  }

  // What is written in 64 bytes, or makes room for itself. Null: malformed.
  u8* scalar(const AvroNode& node, u8* to) {
    Text text;
    switch (node.kind) {
      case AVRO_NULL:
        return write(to, "null");
      case AVRO_BOOLEAN:
        if (!bytes(1, &text) || *text.p > 1) return nullptr;
        return *text.p ? write(to, "true") : write(to, "false");
      case AVRO_FLOAT:
        return real<float>(to);
      case AVRO_DOUBLE:
        return real<double>(to);
      case AVRO_ENUM:
        return symbol(node);
      case AVRO_DECIMAL:
        return sized(&text) ? decimal(text, node.scale) : nullptr;
      case AVRO_FIXED_DECIMAL:
        return bytes(node.size, &text) ? decimal(text, node.scale) : nullptr;
      case AVRO_BYTES:
        return sized(&text) ? base64(text) : nullptr;
      case AVRO_FIXED:
        return bytes(node.size, &text) ? base64(text) : nullptr;
      default:
        return nullptr;
    }
  }

  template <class Real>
  u8* real(u8* to) {
    Text text;
    Real value;
    if (!bytes(sizeof value, &text)) return nullptr;
    memcpy(&value, text.p, sizeof value);
    return write_float(to, value);
  }
  u8* symbol(const AvroNode& node) {
    i64 which = 0;
    if (!integer(&which) || (u64)which >= node.count) return nullptr;
    const AvroChild& child = schema_->children[node.first + which];
    return copy_padded(out_.room(child.length), schema_->texts + child.text, child.length);
  }
  u8* base64(Text text) {
    u8* to = out_.room(base64_size(text.n) + 2);
    *to++ = '"';
    to = write_base64(to, text);
    *to++ = '"';
    return to;
  }

  // A big-endian two's complement number of up to 16 bytes, with its decimal point
  u8* decimal(Text text, u32 scale) {
    if (!text.n || text.n > 16) return nullptr;
    unsigned __int128 bits = text.p[0] & 0x80 ? ~(unsigned __int128)0 : 0;
    for (u64 i = 0; i < text.n; ++i) bits = bits << 8 | text.p[i];
    const bool negative = text.p[0] & 0x80;
    if (negative) bits = ~bits + 1;
    char digits[40];
    u32 n = 0;
    for (; bits || n <= scale; bits /= 10) digits[n++] = (char)('0' + (u32)(bits % 10));
    u8* to = out_.room(64);
    if (negative) *to++ = '-';
    while (n) {
      if (n == scale) *to++ = '.';
      *to++ = (u8)digits[--n];
    }
    return to;
  }

  Out& out_;
  u64 limit_, begin_ = 0;
  const AvroSchema* schema_ = nullptr;
  const u8 *p_ = nullptr, *end_ = nullptr;
};

}  // namespace tokenometer
