// Zipkin's v2 spans and Jaeger's, as lines like those of OTLP. Tags keep their types: Zipkin has strings only. A span
// that cannot be read is a bad record; its neighbours count.
#pragma once
#include "otlp_json.h"

namespace tokenometer {

class Traces {
 public:
  Traces(const Recipe& recipe, SpanLines& lines) : recipe_(recipe), lines_(lines) {}

  void message(Text value) {
    const u8* copy = as_line(line_, value);
    end_ = copy + value.n;
    each_document(value, recipe_.whole, [&](Text doc) {
      const u8* p = after_prefix(doc, recipe_.prefix);
      each_element(
          {p, doc.n - (u64)(p - doc.p)},
          [&](Text element) {
            const u8* at = copy + (element.p - value.p);
            record(at, at + element.n);
          },
          [&] { lines_.bad_line(); });
    });
  }

 private:
  void record(const u8* p, const u8* end) {
    const SpanLines::Place place = lines_.here();
    u8* to = lines_.begin_line(GROWTH_MAX * (u64)(end_ - p) + 1024);
    ids_ = {};
    integer_ = false;
    const bool read = recipe_.mode == ZIPKIN ? zipkin(p, end, to) : jaeger(p, end, to);
    if (read) return lines_.end_line(to, ids_);
    lines_.back_to(place);
    lines_.bad_line();
  }

  // The values of the members of these names, the last one of each. False: p..end is no object.
  template <u64 N>
  static bool find(const u8* p, const u8* end, const Text (&names)[N], const u8* (&at)[N]) {
    const u8* after = members(p, [&](Text key, const u8* value) {
      for (u64 i = 0; i < N; ++i)
        if (same(key, names[i])) at[i] = is_null(value) ? nullptr : value;
      return json_end(value);
    });
    return after && (!end || after == end);
  }

  bool zipkin(const u8* p, const u8* end, u8*& to) {
    static const Text names[] = {text("traceId"),   text("id"),       text("parentId"),      text("name"), text("kind"),
                                 text("timestamp"), text("duration"), text("localEndpoint"), text("tags")};
    const u8* at[9] = {};
    if (!find(p, end, names, at)) return false;
    if (!string(at[0], NAMED("trace_id"), to, &ids_.trace) || !string(at[1], NAMED("span_id"), to, &ids_.span) ||
        !string(at[2], NAMED("parent_span_id"), to, &ids_.parent) || !string(at[3], NAMED("name"), to))
      return false;
    u8* kind = to;
    if (!string(at[4], NAMED("kind"), to)) return false;
    for (; kind < to; ++kind)
      if (*kind >= 'A' && *kind <= 'Z') *kind |= 0x20;
    times(at[5], at[6], to);
    if (at[8] && !members(at[8], [&](Text key, const u8* value) { return tag(key, value, json_end(value), {}, to); }))
      return false;
    return service(at[7], to);
  }

  bool jaeger(const u8* p, const u8* end, u8*& to) {
    static const Text names[] = {text("traceId"),       text("traceID"),    text("spanId"),    text("spanID"),
                                 text("operationName"), text("references"), text("startTime"), text("duration"),
                                 text("tags"),          text("process")};
    const u8* at[10] = {};
    if (!find(p, end, names, at)) return false;
    const u8* parent = nullptr;
    if (!id(at[0] ? at[0] : at[1], NAMED("trace_id"), to, &ids_.trace) ||
        !id(at[2] ? at[2] : at[3], NAMED("span_id"), to, &ids_.span) || !child_of(at[5], &parent) ||
        !id(parent, NAMED("parent_span_id"), to, &ids_.parent) || !string(at[4], NAMED("name"), to))
      return false;
    if (at[6] && *at[6] == '"')
      raw(at[6], NAMED("start_time"), to);
    else
      times(at[6], at[7], to);
    if (!tags(at[8], {}, to)) return false;
    static const Text process[] = {text("serviceName"), text("tags")};
    const u8* of_process[2] = {};
    if (!at[9]) return true;
    return find(at[9], nullptr, process, of_process) && tags(of_process[1], PADDED("resource."), to) &&
           string(of_process[0], NAMED("resource.service.name"), to);
  }

  // The first reference to the span that caused this one
  static bool child_of(const u8* p, const u8** parent) {
    if (!p) return true;
    return elements(p, [&](const u8* item) -> const u8* {
      static const Text names[] = {text("refType"), text("spanId"), text("spanID")};
      const u8* at[3] = {};
      if (!find(item, nullptr, names, at)) return nullptr;
      if (!*parent && (!at[0] || *at[0] == '0' || starts(at[0], "\"CHILD_OF\""))) *parent = at[1] ? at[1] : at[2];
      return json_end(item);
    });
  }

  bool tags(const u8* p, Text prefix, u8*& to) {
    if (!p) return true;
    return elements(p, [&](const u8* item) -> const u8* {
      static const Text names[] = {text("key"),      text("vType"),   text("vStr"), text("vBool"), text("vInt64"),
                                   text("vFloat64"), text("vBinary"), text("type"), text("value")};
      const u8* at[9] = {};
      if (!find(item, nullptr, names, at) || !at[0] || *at[0] != '"') return nullptr;
      const Text raw = content(at[0]);
      const u8* value = tag_value(at);
      integer_ = is_number(at);
      return tag(plain_key(raw, key_), value, json_end(item), prefix, to);
    });
  }

  // Where the value of a Jaeger tag is; a field that is left out is empty, false or zero.
  static const u8* tag_value(const u8* const (&at)[9]) {
    static const char* const types[] = {"STRING", "BOOL", "INT64", "FLOAT64", "BINARY"};
    static const u8 nothing[5][SLACK] = {"\"\"\n", "false\n", "0\n", "0\n", "\"\"\n"};
    if (at[8]) return at[8];
    for (u32 i = 0; i < 5; ++i) {
      const bool is_it = !at[1]          ? i == 0
                         : *at[1] == '"' ? same(content(at[1]), {(const u8*)types[i], strlen(types[i])})
                                         : *at[1] == '0' + i;
      if (is_it) return at[2 + i] ? at[2 + i] : nothing[i];
    }
    return nothing[0];
  }

  // Does the tag say that its value is an integer? JSON has it as a string.
  static bool is_number(const u8* const (&at)[9]) {
    if (at[8]) return at[7] && starts(at[7], "\"int64\"");
    return at[1] && (*at[1] == '2' || starts(at[1], "\"INT64\""));
  }

  // Writes one tag. Returns `after`.
  const u8* tag(Text key, const u8* value, const u8* after, Text prefix, u8*& to) {
    const u8* end = after ? json_end(value) : nullptr;
    if (!end) return nullptr;
    if (!prefix.n) {
      if (is_fixed_name(key, Row::SPAN)) return after;
      ids_.usage |= is_usage_name(key);
    }
    *to++ = '"';
    to = copy_padded(to, prefix);
    to = write_escaped(to, key.p, key.n);
    to = write(to, "\":");
    const u64 quoted = integer_ && *value == '"' && is_integer({value + 1, (u64)(end - value - 2)});
    to = copy_padded(to, value + quoted, (u64)(end - value) - 2 * quoted);
    *to++ = ',';
    return after;
  }

  bool string(const u8* p, Text name, u8*& to, Text* kept = nullptr) {
    if (!p) return true;
    if (*p != '"') return false;
    const Text text = content(p);
    if (kept) *kept = text;
    if (text.n) raw(p, name, to);
    return true;
  }

  static void raw(const u8* p, Text name, u8*& to) {
    to = copy_padded(to, name);
    to = copy_padded(to, p, (u64)(json_end(p) - p));
    *to++ = ',';
  }

  // Jaeger's JSON has ids as base64 or as hexadecimal digits.
  bool id(const u8* p, Text name, u8*& to, Text* kept) {
    if (!p || *p != '"') return !p;
    const Text written = content(p);
    std::string bytes;
    const bool base64 = (written.n == 12 || written.n == 24) && written.p[written.n - 1] == '=';
    if (!base64 || !read_base64(written, bytes)) return string(p, name, to, kept);
    *kept = written;
    to = copy_padded(to, name);
    *to++ = '"';
    to = write_hex(to, tokenometer::text(bytes));
    to = write(to, "\",");
    return true;
  }

  // Start in microseconds since the epoch, and how many it took
  static void times(const u8* start, const u8* duration, u8*& to) {
    u64 us = 0, took = 0;
    if (!start) return;
    if (!microseconds(start, &us)) return raw(start, NAMED("start_time"), to);
    to = write_time(copy_padded(to, NAMED("start_time")), us * 1000);
    *to++ = ',';
    if (!duration || !microseconds(duration, &took)) return;
    to = write_time(copy_padded(to, NAMED("end_time")), (us + took) * 1000);
    *to++ = ',';
  }
  static bool microseconds(const u8* p, u64* value) {
    const u8* end = read_digits(p, value);
    return end && end == json_end(p) && *value < 1ull << 52;
  }

  bool service(const u8* p, u8*& to) {
    static const Text names[] = {text("serviceName")};
    const u8* at[1] = {};
    return !p || (find(p, nullptr, names, at) && string(at[0], NAMED("resource.service.name"), to));
  }

  const Recipe& recipe_;
  SpanLines& lines_;
  Out line_;
  SpanIds ids_;
  std::string key_;
  bool integer_ = false;  // of the tag at hand
  const u8* end_ = nullptr;
};

}  // namespace tokenometer
