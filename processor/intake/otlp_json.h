// OTLP/JSON: resources -> scopes -> spans or log records, each of the latter one line.
//
// The usual order of members is decoded as it is read; another order, or a member that is there twice (the last one
// counts), is read anew from where it began. A span of a wrong shape is a bad record, and its neighbours count;
// anything else that is wrong spoils the message.
#pragma once
#include "spans.h"

namespace tokenometer {

enum Kind : u8 { TRACE_ID, SPAN_ID, PARENT_ID, STRING, TIME, SPAN_KIND, STATUS, ANY, ATTRIBUTES };
struct Field {
  Text json;  // the member's name in OTLP
  Kind kind;
  Text line;  // what the line begins this member with
};
struct Signal {
  Text resources, scopes, records;
  const Field* fields;
  u32 count;
  Row row;
};

#define NAMED(name) PADDED("\"" name "\":")
static const Field SPAN_FIELDS[] = {
    {text("traceId"), TRACE_ID, NAMED("trace_id")},
    {text("spanId"), SPAN_ID, NAMED("span_id")},
    {text("parentSpanId"), PARENT_ID, NAMED("parent_span_id")},
    {text("name"), STRING, NAMED("name")},
    {text("kind"), SPAN_KIND, NAMED("kind")},
    {text("startTimeUnixNano"), TIME, NAMED("start_time")},
    {text("endTimeUnixNano"), TIME, NAMED("end_time")},
    {text("attributes"), ATTRIBUTES, {}},
    {text("status"), STATUS, {}},
};
static const Field LOG_FIELDS[] = {
    {text("timeUnixNano"), TIME, NAMED("time")},
    {text("observedTimeUnixNano"), TIME, NAMED("observed_time")},
    {text("eventName"), STRING, NAMED("event_name")},
    {text("severityText"), STRING, NAMED("severity")},
    {text("body"), ANY, NAMED("body")},
    {text("traceId"), TRACE_ID, NAMED("trace_id")},
    {text("spanId"), SPAN_ID, NAMED("span_id")},
    {text("attributes"), ATTRIBUTES, {}},
};
static const Signal SPANS = {text("resourceSpans"), text("scopeSpans"), text("spans"), SPAN_FIELDS, 9, Row::SPAN};
static const Signal LOGS = {text("resourceLogs"), text("scopeLogs"), text("logRecords"), LOG_FIELDS, 8, Row::LOG};

CONSTANT char* const KIND_NAMES[] = {"UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"};
CONSTANT char* const KIND_TEXTS[] = {"", "internal", "server", "client", "producer", "consumer"};

HD u8* write_name(u8* to, const char* name) {
  const u64 n = strlen(name);
  *to++ = '"';
  memcpy(to, name, n);
  to[n] = '"';
  return to + n + 1;
}

// The content of the string at p, which `json_end` has found valid, as it is written.
HD Text content(const u8* p) { return {p + 1, (u64)(string_end(p + 1, true) - p - 1)}; }

HD bool is_integer(Text t) {
  const u64 sign = t.n && *t.p == '-';
  if (t.n == sign || (t.p[sign] == '0' && t.n > sign + 1)) return false;
  for (u64 i = sign; i < t.n; ++i)
    if (!is_digit(t.p[i])) return false;
  return true;
}

// A line is at most this many times as long as what it is made of: `{},` in a resource gives `"resource.":null,`.
constexpr u64 GROWTH_MAX = 6;

class OtlpJson {
 public:
  explicit OtlpJson(SpanLines& lines) : lines_(lines) {}

  // One message: documents one after the other. False: it cannot be read.
  bool message(const u8* p, const u8* end) {
    end_ = end;
    for (p = skip_space(p); p != end; p = skip_space(p))
      if (!(p = document(p))) return false;
    return true;
  }

 private:
  enum Level { RESOURCE, SCOPE };

  const u8* document(const u8* p) {
    const SpanLines::Place place = lines_.here();
    bool others = false;
    signal_ = nullptr;
    p = members(p, [&](Text key, const u8* value) -> const u8* {
      const Signal* signal = same(key, SPANS.resources) ? &SPANS : same(key, LOGS.resources) ? &LOGS : nullptr;
      if (!signal) {
        others = true;
        return json_end(value);
      }
      if (signal_ && signal_ != signal) return nullptr;
      if (signal_) lines_.back_to(place);
      signal_ = signal;
      return array(value, [&](const u8* item) { return level(item, RESOURCE); });
    });
    return signal_ || !others ? p : nullptr;
  }

  // An array or null
  template <class On>
  const u8* array(const u8* p, On&& on) {
    return is_null(p) ? p + 4 : elements(p, on);
  }

  // A resource's or a scope's object: one member describes what is in the other.
  const u8* level(const u8* start, Level which) {
    const Text head = which == RESOURCE ? text("resource") : text("scope");
    const Text body = which == RESOURCE ? signal_->scopes : signal_->records;
    const SpanLines::Place place = lines_.here();
    head_[which].size = 0;
    bool seen = false, late = false;
    const u8* p = members(start, [&](Text key, const u8* value) -> const u8* {
      if (same(key, head)) {
        late = seen;
        return late ? nullptr : describe(value, which);
      }
      if (!same(key, body)) return json_end(value);
      if (seen) lines_.back_to(place);
      seen = true;
      return contents(value, which);
    });
    return late ? level_in_any_order(start, which, place, head, body) : p;
  }

  COLD const u8* level_in_any_order(const u8* start, Level which, const SpanLines::Place& place, Text head, Text body) {
    lines_.back_to(place);
    const u8 *head_at = nullptr, *body_at = nullptr;
    const u8* p = members(start, [&](Text key, const u8* value) {
      if (same(key, head)) head_at = value;
      if (same(key, body)) body_at = value;
      return json_end(value);
    });
    return p && describe(head_at, which) && contents(body_at, which) ? p : nullptr;
  }

  const u8* contents(const u8* p, Level which) {
    if (which == RESOURCE) return array(p, [&](const u8* item) { return level(item, SCOPE); });
    return array(p, [&](const u8* item) { return record(item); });
  }

  // What every record of a resource or scope says of it
  const u8* describe(const u8* p, Level which) {
    Out& out = head_[which];
    out.size = 0;
    if (is_null(p)) return p + 4;
    const u8* at[3] = {};
    const u8* end = members(p, [&](Text key, const u8* value) {
      if (which == SCOPE && is(key, "name")) at[0] = value;
      if (which == SCOPE && is(key, "version")) at[1] = value;
      if (is(key, "attributes")) at[2] = value;
      return json_end(value);
    });
    if (!end) return nullptr;
    u8* to = out.room(GROWTH_MAX * (u64)(end - p) + 64);
    if (at[0] && !string(at[0], NAMED("scope.name"), to)) return nullptr;
    if (at[1] && !string(at[1], NAMED("scope.version"), to)) return nullptr;
    prefix_ = which == SCOPE ? PADDED("scope.") : PADDED("resource.");
    const bool read = !at[2] || array(at[2], [&](const u8* item) { return attribute(item, to); });
    prefix_ = {};
    out.size = (u64)(to - out.data);
    return read ? end : nullptr;
  }

  // --- Records ---

  const u8* record(const u8* p) {
    const SpanLines::Place place = lines_.here();
    const u64 room = GROWTH_MAX * (u64)(end_ - p) + head_[RESOURCE].size + head_[SCOPE].size + 1024;
    u8* to = lines_.begin_line(room);
    u32 seen = 0;
    bool twice = false;
    ids_ = {};
    const u8* end = members(p, [&](Text key, const u8* value) -> const u8* {
      const u32 which = field_of(key, seen);
      if (which == signal_->count) return json_end(value);
      twice = seen >> which & 1;
      seen |= 1u << which;
      return twice ? nullptr : field(signal_->fields[which], value, to);
    });
    if (twice) {
      to = lines_.begin_line(room);
      end = record_in_any_order(p, to);
    }
    if (!end) {
      lines_.back_to(place);
      end = json_end(p);
      if (end) lines_.bad_line();
      return end;
    }
    to = copy(to, head_[SCOPE]);
    to = copy(to, head_[RESOURCE]);
    lines_.end_line(to, ids_);
    return end;
  }

  static u8* copy(u8* to, const Out& from) { return copy_padded(to, from.data, from.size); }

  // Members mostly come in the order of the table.
  u32 field_of(Text key, u32 seen) const {
    const u32 next = 32 - (seen ? leading_zeros32(seen) : 32);
    if (next < signal_->count && same(key, signal_->fields[next].json)) return next;
    u32 which = 0;
    while (which < signal_->count && !same(key, signal_->fields[which].json)) ++which;
    return which;
  }
  static u32 leading_zeros32(u32 x) { return leading_zeros(x) - 32; }

  COLD const u8* record_in_any_order(const u8* start, u8*& to) {
    const u8* at[16] = {};
    const u8* end = members(start, [&](Text key, const u8* value) {
      const u32 which = field_of(key, 0);
      if (which < signal_->count) at[which] = value;
      return json_end(value);
    });
    ids_ = {};
    for (u32 i = 0; end && i < signal_->count; ++i)
      if (at[i] && !field(signal_->fields[i], at[i], to)) return nullptr;
    return end;
  }

  const u8* field(const Field& field, const u8* p, u8*& to) {
    if (is_null(p)) return p + 4;
    switch (field.kind) {
      case TRACE_ID:
        return string(p, field.line, to, &ids_.trace);
      case SPAN_ID:
        return string(p, field.line, to, &ids_.span);
      case PARENT_ID:
        return string(p, field.line, to, &ids_.parent);
      case STRING:
        return string(p, field.line, to);
      case TIME:
        return time(p, field.line, to);
      case SPAN_KIND:
        return name(p, field.line, text("SPAN_KIND_"), KIND_NAMES, KIND_TEXTS, 6, to);
      case STATUS:
        return status(p, to);
      case ANY:
        to = copy_padded(to, field.line);
        p = any_value(p, to, 1);
        *to++ = ',';
        return p;
      default:
        return elements(p, [&](const u8* item) { return attribute(item, to); });
    }
  }

  // A string that is not empty, or null
  const u8* string(const u8* p, Text name, u8*& to, Text* kept = nullptr) {
    if (is_null(p)) return p + 4;
    const u8* end = *p == '"' ? string_end(p + 1, true) : nullptr;
    if (!end) return nullptr;
    const Text content{p + 1, (u64)(end - p - 1)};
    if (kept) *kept = content;
    if (!content.n) return end + 1;
    to = copy_padded(to, name);
    to = copy_padded(to, p, content.n + 2);
    *to++ = ',';
    return end + 1;
  }

  // A string or number that is none of what is expected: handed on, to be judged where a mapping reads it.
  const u8* as_it_is(const u8* p, Text name, u8*& to) {
    if (*p != '"' && *p != '-' && !is_digit(*p)) return nullptr;
    const u8* end = any_scalar_end(p);
    if (!end) return nullptr;
    to = copy_padded(to, name);
    to = copy_padded(to, p, (u64)(end - p));
    *to++ = ',';
    return end;
  }

  // Nanoseconds as a number or a string of digits; 0 is unknown.
  const u8* time(const u8* p, Text name, u8*& to) {
    u64 ns = 0;
    const bool quoted = *p == '"';
    const u8* end = read_digits(p + quoted, &ns);
    if (!end || (quoted ? *end != '"' : *end == '.' || (*end | 0x20) == 'e')) return as_it_is(p, name, to);
    if (ns) {
      to = copy_padded(to, name);
      to = write_time(to, ns);
      *to++ = ',';
    }
    return end + quoted;
  }

  // A number of an enumeration, or its name with a prefix; the first means nothing was said.
  const u8* name(const u8* p, Text name, Text prefix, const char* const* names, const char* const* texts, u32 count,
                 u8*& to) {
    const u8* end = *p == '"' ? string_end(p + 1, true) : any_scalar_end(p);
    if (!end || (*p != '"' && *p != '-' && !is_digit(*p))) return nullptr;
    const Text all = *p == '"' ? Text{p + 1, (u64)(end - p - 1)} : Text{p, (u64)(end - p)};
    for (u32 i = 0; i < count; ++i) {
      const u64 n = strlen(names[i]);
      const bool is_it = *p != '"' ? all.n == 1 && *all.p == '0' + i
                                   : all.n == prefix.n + n && memcmp(all.p, prefix.p, prefix.n) == 0 &&
                                         memcmp(all.p + prefix.n, names[i], n) == 0;
      if (!is_it) continue;
      if (i) {
        to = copy_padded(to, name);
        to = write_name(to, texts[i]);
        *to++ = ',';
      }
      return end + (*p == '"');
    }
    return as_it_is(p, name, to);
  }

  const u8* status(const u8* p, u8*& to) {
    static const char* const names[] = {"UNSET", "OK", "ERROR"};
    static const char* const texts[] = {"", "ok", "error"};
    const u8 *code = nullptr, *message = nullptr;
    const u8* end = members(p, [&](Text key, const u8* value) {
      if (is(key, "code")) code = value;
      if (is(key, "message")) message = value;
      return json_end(value);
    });
    if (!end) return nullptr;
    if (code && !is_null(code) && !name(code, NAMED("status"), text("STATUS_CODE_"), names, texts, 3, to))
      return nullptr;
    if (message && !string(message, NAMED("status_message"), to)) return nullptr;
    return end;
  }

  // --- Attributes ---

  // `"key":value,` for {"key":...,"value":{...}}
  const u8* attribute(const u8* p, u8*& to) {
    const u8* end = usual_attribute(p, to);
    return LIKELY(end != nullptr) ? end : any_attribute(p, to);
  }

  // As the Collector writes a string or number. Null: doubt.
  HD const u8* usual_attribute(const u8* p, u8*& to) {
    if (!starts(p, "{\"key\":\"")) return nullptr;
    const u8 *key = p + 8, *key_end = string_end(key, false);
    if (!key_end || !starts(key_end, "\",\"value\":{\"")) return nullptr;
    const u8* type = key_end + 12;
    const bool integer = *type == 'i';
    const u8* value = starts(type, "stringValue\":")                 ? type + 13
                      : integer && starts(type, "intValue\":")       ? type + 10
                      : *type == 'b' && starts(type, "boolValue\":") ? type + 11
                      : starts(type, "doubleValue\":")               ? type + 13
                                                                     : nullptr;
    if (!value || *value == '{' || *value == '[') return nullptr;
    const u8* end = scalar_end(value);
    if (!end || end[0] != '}' || end[1] != '}') return nullptr;
    if (!begin_attribute({key, (u64)(key_end - key)}, {key, (u64)(key_end - key)}, to)) return end + 2;
    const u64 quoted = integer && *value == '"' && is_integer({value + 1, (u64)(end - value - 2)});
    to = copy_padded(to, value + quoted, (u64)(end - value) - 2 * quoted);
    *to++ = ',';
    return end + 2;
  }

  // False: the attribute has the name of a fixed member and is left out.
  HD bool begin_attribute(Text raw, Text key, u8*& to) {
    if (!prefix_.n) {
      if (is_fixed_name(key, signal_->row)) return false;
      ids_.usage |= is_usage_name(key);
    } else if (prefix_.n == 6 && (is(key, "name") || is(key, "version"))) {
      return false;
    }
    *to++ = '"';
    if (prefix_.n) to = copy_padded(to, prefix_);
    to = copy_padded(to, raw);
    to[0] = '"', to[1] = ':';
    to += 2;
    return true;
  }

  COLD const u8* any_attribute(const u8* p, u8*& to) {
    const u8 *key = nullptr, *value = nullptr;
    const u8* end = key_and_value(p, &key, &value);
    if (!end) return nullptr;
    std::string kept;
    const Text raw = content(key);
    if (!begin_attribute(raw, plain_key(raw, kept), to)) {
      u8* skipped = to;
      return any_value(value, skipped, 1) ? end : nullptr;
    }
    if (!any_value(value, to, 1)) return nullptr;
    *to++ = ',';
    return end;
  }

  static const u8* key_and_value(const u8* p, const u8** key, const u8** value) {
    const u8* end = members(p, [&](Text name, const u8* at) {
      if (is(name, "key")) *key = at;
      if (is(name, "value")) *value = at;
      return json_end(at);
    });
    static const u8 nothing[SLACK] = "null\n", no_name[SLACK] = "\"\"\n";
    if (!*value) *value = nothing;
    if (!*key || is_null(*key)) *key = no_name;
    return end && **key == '"' ? end : nullptr;
  }

  // The value of {"stringValue":...} and its like; what is in it is valid JSON already, or becomes so here.
  const u8* any_value(const u8* p, u8*& to, u32 depth) {
    static const Text types[] = {text("stringValue"), text("boolValue"),  text("doubleValue"), text("bytesValue"),
                                 text("intValue"),    text("arrayValue"), text("kvlistValue")};
    if (is_null(p)) {
      to = write(to, "null");
      return p + 4;
    }
    if (depth > ANY_VALUE_DEPTH_MAX) return nullptr;
    u32 found = 0;
    const u8* at = nullptr;
    const u8* end = members(p, [&](Text key, const u8* value) {
      for (u32 i = 0; i < 7; ++i) {
        if (!same(key, types[i])) continue;
        const bool none = is_null(value);
        found = none ? found & ~(1u << i) : found | 1u << i;
        if (!none) at = value;
      }
      return json_end(value);
    });
    if (!end || (found & (found - 1))) return nullptr;
    if (!found)
      to = write(to, "null");
    else if (found < 1u << 5)
      typed_scalar(at, found == 1u << 4, to);
    else if (!list(at, found == 1u << 6, to, depth))
      return nullptr;
    return end;
  }

  void typed_scalar(const u8* p, bool integer, u8*& to) {
    const u8* end = json_end(p);
    const u64 quoted = integer && *p == '"' && is_integer({p + 1, (u64)(end - p - 2)});
    to = copy_padded(to, p + quoted, (u64)(end - p) - 2 * quoted);
  }

  // {"values":[...]} as an array, or as an object of keys and values
  bool list(const u8* p, bool keyed, u8*& to, u32 depth) {
    const u8* values = nullptr;
    if (!members(p, [&](Text key, const u8* value) {
          if (is(key, "values")) values = value;
          return json_end(value);
        }))
      return false;
    *to++ = keyed ? '{' : '[';
    const auto item = [&](const u8* at) -> const u8* {
      const u8 *key = nullptr, *value = at, *end = at;
      if (keyed) {
        value = nullptr;
        end = key_and_value(at, &key, &value);
        if (!end) return nullptr;
        to = copy_padded(to, key, content(key).n + 2);
        *to++ = ':';
      }
      const u8* after = any_value(value, to, depth + 1);
      *to++ = ',';
      return !after ? nullptr : keyed ? end : after;
    };
    if (values && !array(values, item)) return false;
    if (to[-1] == ',') --to;
    *to++ = keyed ? '}' : ']';
    return true;
  }

  SpanLines& lines_;
  const Signal* signal_ = nullptr;
  Out head_[2];  // of the resource, of the scope: members, each with its comma
  Text prefix_;  // of attributes' names, where they are of a resource or scope
  SpanIds ids_;  // of the record at hand
  const u8* end_ = nullptr;
};

}  // namespace tokenometer
