// Lines of JSON records: documents out of a message, elements out of arrays, records out of what is around them.
//
//     message -> documents (its lines; or all of it) -> prefix off -> elements of an array -> record -> one line
//
// A record that nothing is to be done to is copied. What cannot be read as asked is handed on as it is, and is judged
// as a record like any other.
#pragma once
#include "json.h"
#include "split.h"

namespace tokenometer {

struct TooLarge {};  // thrown: the lines of one message grew beyond the limit

constexpr char BAD_LINE[] = "?\n";  // a record that nobody can read: no JSON, so it is rejected

// How a mapping's values are to be read. Packed by native.py: numbers are u32, a text is its length and its bytes, a
// list is its length and its items.
enum Mode : u32 { JSON, DEBEZIUM, CLOUDEVENTS, ZIPKIN, JAEGER, OTLP };
typedef std::vector<std::string> Path;

struct Outer {
  u32 level;                // 1: the object around the record
  std::string key, quoted;  // itself, and as JSON
};

struct Recipe {
  u32 mode = JSON, whole = 0;
  u32 index = 0;     // elements get their number in the document: "@index":0
  u32 document = 0;  // a document whose records are null or none is a record
  u64 limit = 0;     // bytes of one message's lines
  Path prefix;       // literal pieces; anything may be between two of them
  Path records;      // keys, and "*" for each element
  std::vector<Outer> outer;
  std::vector<Path> json_in;
};

class RecipeReader {
 public:
  explicit RecipeReader(const u8* p) : p_(p) {}
  Recipe read() {
    Recipe recipe;
    recipe.mode = number();
    recipe.whole = number();
    recipe.index = number();
    recipe.document = number();
    recipe.limit = number();
    recipe.prefix = path();
    recipe.records = path();
    for (u32 n = number(); n; --n) {
      const u32 level = number();
      const std::string key = string();
      recipe.outer.push_back({level, key, string()});
    }
    for (u32 n = number(); n; --n) recipe.json_in.push_back(path());
    return recipe;
  }

 private:
  u32 number() {
    u32 value;
    memcpy(&value, p_, 4);
    p_ += 4;
    return value;
  }
  std::string string() {
    const u32 n = number();
    std::string value((const char*)p_, n);
    p_ += n;
    return value;
  }
  Path path() {
    Path found;
    for (u32 n = number(); n; --n) found.push_back(string());
    return found;
  }
  const u8* p_;
};

inline Text text(const std::string& s) { return {(const u8*)s.data(), s.size()}; }

// A line of its own: newlines turned, and what a scan needs after it.
inline const u8* as_line(Out& scratch, Text bytes) {
  scratch.size = 0;
  u8* p = scratch.room(bytes.n + 1);
  u8* end = copy_line(p, bytes.p, bytes.n);
  memset(end, '\n', 1 + SLACK);
  scratch.size = bytes.n + 1;
  return p;
}

// The bytes themselves, with what a scan needs after them.
inline Text as_padded(Out& scratch, Text bytes) {
  scratch.size = 0;
  u8* p = scratch.room(bytes.n);
  if (bytes.n) memcpy(p, bytes.p, bytes.n);
  memset(p + bytes.n, 0, SLACK);
  return {p, bytes.n};
}

// Past the prefix of a document, or its start where the prefix is not there.
inline const u8* after_prefix(Text doc, const Path& pieces) {
  const u8 *p = doc.p, *end = doc.p + doc.n;
  for (u64 i = 0; i < pieces.size(); ++i) {
    const Text piece = text(pieces[i]);
    const u8* found = i || !piece.n ? (const u8*)memmem(p, (u64)(end - p), piece.p, piece.n) : p;
    if (!found || (u64)(end - found) < piece.n || memcmp(found, piece.p, piece.n) != 0) return doc.p;
    p = found + piece.n;
  }
  return p;
}

// Calls element(text) for each record candidate of a document: itself, or each element of an array. An array that is
// not closed has one more, which is bad; what follows an array is a document again.
template <class Element, class Bad>
void each_element(Text doc, Element&& element, Bad&& bad) {
  for (;;) {
    while (doc.n && is_blank(*doc.p)) ++doc.p, --doc.n;
    while (doc.n && is_blank(doc.p[doc.n - 1])) --doc.n;
    if (!doc.n) return;
    if (*doc.p != '[') return element(doc);
    const Split split = split_array(doc, [&](u64 from, u64 to) { element(Text{doc.p + from, to - from}); });
    if (!split.closed) bad();
    doc.p += split.after, doc.n -= split.after;
  }
}

// Documents of a message: lines, or all of it.
template <class On>
void each_document(Text value, bool whole, On&& on) {
  if (whole) return on(value);
  for (u64 at = 0; at < value.n;) {
    const u8* newline = (const u8*)memchr(value.p + at, '\n', value.n - at);
    const u64 end = newline ? (u64)(newline - value.p) : value.n;
    on(Text{value.p + at, end - at});
    at = end + 1;
  }
}

class Records {
 public:
  Records(const Recipe& recipe, Out& out) : recipe_(recipe), out_(out) {
    plain_ = recipe.mode == JSON && recipe.records.empty() && recipe.json_in.empty();
    untouched_ = plain_ && recipe.prefix.empty() && !recipe.whole;
  }

  // The lines of one message. inject: members, each with its comma, that every record gets first. Throws TooLarge.
  void message(Text value, Text inject) {
    begin_ = out_.size;
    inject_ = inject;
    if (untouched_ && !inject.n && (!value.n || *value.p != '[')) {
      out_.put(value);
      if (!value.n || out_.data[out_.size - 1] != '\n') out_.put((u8)'\n');
      return;
    }
    if (untouched_ && !inject.n) value = arrays(value);
    each_document(value, recipe_.whole, [&](Text doc) {
      const u8* p = after_prefix(doc, recipe_.prefix);
      each_element({p, doc.n - (u64)(p - doc.p)}, [&](Text element) { record(element); }, [&] { bad(); });
    });
    if (out_.size == begin_) out_.put((u8)'\n');
  }

 private:
  void bad() { out_.put(tokenometer::text(BAD_LINE)); }

  // Arrays of records that are copied. Returns what follows them.
  Text arrays(Text value) {
    while (value.n && *value.p == '[') {
      LineWriter writer(value, out_.room(value.n + 64));
      const Split split = scan_array(value, writer);
      out_.size = (u64)(writer.end() - out_.data);
      if (!split.closed) bad();
      value.p += split.after, value.n -= split.after;
      while (value.n && is_blank(*value.p)) ++value.p, --value.n;
    }
    return value;
  }

  void record(Text bytes) {
    if (plain_ && !inject_.n) {
      u8* p = copy_line(out_.room(bytes.n + 1), bytes.p, bytes.n);
      *p = '\n';
      out_.size += bytes.n + 1;
      return;
    }
    const u8* p = as_line(line_, bytes);
    end_ = p + bytes.n;
    parents_.clear();
    outer_.clear();
    document_ = {p, bytes.n};
    index_ = 0;
    if (recipe_.mode == DEBEZIUM)
      debezium(p);
    else if (recipe_.mode == CLOUDEVENTS)
      cloudevent(p);
    else
      walk(p, end_, 0);
  }

  // Down the path of the records from path[k] on; p..end is what is there. Where a member is missing the document is
  // the record, or in an array its element. Some mappings ask for the document also where a member is null or the first
  // array on the way is empty.
  void walk(const u8* p, const u8* end, u64 k, bool in_array = false) {
    const Path& path = recipe_.records;
    const bool is_document = recipe_.document && k && !in_array;  // if there is nothing here
    if (is_document && is_null(p)) return whole_document();
    if (k == path.size()) {
      if (k && path.back() != "*") write_outer();
      return emit(p, end, in_array);
    }
    if (k && is_null(p)) return;
    if (path[k] != "*") {
      const u8* value = member(p, tokenometer::text(path[k]));
      if (!value && !in_array) return whole_document();
      if (!value) {
        outer_.clear();
        return emit(p, end, true);
      }
      parents_.push_back(p);
      const u8* after = after_value(value);
      walk(value, after ? after : end_, k + 1, in_array);
      parents_.pop_back();
      return;
    }
    if (k + 1 == path.size()) write_outer();
    if (*p != '[') return walk(p, end, k + 1, in_array);
    bool any = false;
    const Split split = split_array({p, (u64)(end - p)}, [&](u64 from, u64 to) {
      any = true;
      walk(p + from, p + to, k + 1, true);
    });
    if (!split.closed) return bad();
    if (is_document && !any) whole_document();
  }

  void whole_document() {
    outer_.clear();
    emit(document_.p, document_.p + document_.n);
  }

  // A change event of a database: the row after the change. No row, no record.
  void debezium(const u8* p) {
    const u8 *event = p, *payload = member(p, tokenometer::text("payload"));
    if (payload && is_null(payload)) return;
    if (payload && *payload == '{') {
      parents_.push_back(p);
      event = payload;
    }
    const u8* event_end = event == p ? end_ : after_value(event);
    const u8* row = member(event, tokenometer::text("after"));
    if (row && is_null(row)) return;
    if (!row && member(event, tokenometer::text("op")) && member(event, tokenometer::text("source"))) return;
    if (!row || *row != '{') return emit(event, event_end ? event_end : end_);
    parents_.push_back(event);
    write_outer();
    const u8* after = after_value(row);
    emit(row, after ? after : end_);
  }

  // An event in structured mode: what `data_base64` holds becomes `data`, if it is JSON.
  void cloudevent(const u8* p) {
    const u8* encoded = member(p, tokenometer::text("data_base64"));
    if (encoded && *encoded == '"' && !member(p, tokenometer::text("data"))) {
      const u8* close = string_end(encoded + 1, true);
      if (close) {
        unescape({encoded + 1, (u64)(close - encoded - 1)}, held_);
        std::string decoded;
        if (read_base64(tokenometer::text(held_), decoded) && is_json(as_line(inner_, tokenometer::text(decoded))))
          outer_ = "\"data\":" + std::string((const char*)inner_.data, decoded.size()) + ",";
      }
    }
    emit(p, end_);
  }

  // The members that a record gets from the objects around it: "^":{"tenant":"x","^":{"region":"y"}},
  void write_outer() {
    if (recipe_.outer.empty()) return;
    outer_.clear();
    u32 levels = 0;
    for (const Outer& outer : recipe_.outer) levels = outer.level > levels ? outer.level : levels;
    u32 open = 0;
    for (u32 level = 1; level <= levels && level <= parents_.size(); ++level, ++open) {
      outer_ += "\"^\":{";
      for (const Outer& outer : recipe_.outer) {
        if (outer.level != level) continue;
        const u8* value = member(parents_[parents_.size() - level], tokenometer::text(outer.key));
        const u8* end = value ? json_end(value) : nullptr;
        if (!end) continue;
        outer_ += outer.quoted + ":" + std::string((const char*)value, (u64)(end - value)) + ",";
      }
    }
    for (; open; --open) {
      if (outer_.back() == ',') outer_.pop_back();
      outer_ += "},";
    }
  }

  void emit(const u8* p, const u8* end, bool in_array = false) {
    Text record{p, (u64)(end - p)};
    const std::string index =
        in_array && recipe_.index && *p == '{' ? "\"@index\":" + std::to_string(index_++) + "," : "";
    if (*p == '{')
      for (const Path& path : recipe_.json_in) record = opened(record, path);
    const u64 added = *record.p == '{' && record.n ? inject_.n + index.size() + outer_.size() : 0;
    u8* to = out_.room(record.n + added + 2);
    if (added) {
      *to++ = '{';
      if (inject_.n) memcpy(to, inject_.p, inject_.n);
      to += inject_.n;
      memcpy(to, index.data(), index.size());
      to += index.size();
      memcpy(to, outer_.data(), outer_.size());
      to += outer_.size();
      ++record.p, --record.n;
      const u8* first = record.p;
      while (first < record.p + record.n && is_space(*first)) ++first;
      if (first < record.p + record.n && *first == '}') --to;  // no member follows the last comma
    }
    memcpy(to, record.p, record.n);
    to += record.n;
    *to++ = '\n';
    out_.size = (u64)(to - out_.data);
    if (out_.size - begin_ > recipe_.limit) throw TooLarge();
  }

  // The record with the string at this path replaced by the JSON that it holds; as it is where it holds none. An empty
  // string and Envoy's "-" are no JSON either, but they are what producers write for nothing: null.
  Text opened(Text record, const Path& path) {
    const u8* p = as_line(probe_, record);
    const u8* at = p;
    for (const std::string& key : path)
      if (!(at = member(at, tokenometer::text(key)))) return record;
    const u8* close = *at == '"' ? string_end(at + 1, true) : nullptr;
    if (!close) return record;
    const bool empty = close == at + 1 || (close == at + 2 && at[1] == '-');
    if (empty)
      held_ = "null";
    else
      unescape({at + 1, (u64)(close - at - 1)}, held_);
    const u8* inner = as_line(inner_, tokenometer::text(held_));
    const u8* start = skip_space(inner);
    if (!empty && ((*start != '{' && *start != '[') || !is_json(inner))) return record;
    which_ = 1 - which_;
    Out& made = spare_[which_];
    made.size = 0;
    made.put(Text{p, (u64)(at - p)});
    made.put(Text{inner, held_.size()});
    made.put(Text{close + 1, record.n - (u64)(close + 1 - p)});
    return {made.data, made.size};
  }

  const Recipe& recipe_;
  Out& out_;
  bool plain_;      // a record is copied
  bool untouched_;  // a message that is no array is
  u64 begin_ = 0;
  Text inject_;
  Out line_, inner_, probe_, spare_[2];  // the record itself is in line_ or spare_[which_]
  const u8* end_ = nullptr;              // of the line in line_
  u32 which_ = 0;
  std::vector<const u8*> parents_;  // the objects on the way to the record
  Text document_{};                 // that they are in
  u64 index_ = 0;                   // of its next element
  std::string outer_, held_;
};

}  // namespace tokenometer
