// Tables, records and codes, drawn once. layout.py holds the same layouts as numpy dtypes; build.py has the compiler
// compare all of them with this file, and a difference is a compile error that names it.
//
//   batch buffer    | defaults 5 KiB | messages, each ended by a newline | 64 newlines |
//                     | doubtful lines in their other spelling | 64 spare | referee's text | 64 spare |
//                     a mapping's default strings are in the buffer, so every string is (start, length) in it
//   records         one for each line of the tile at hand: record i is line first + i of the batch
//   identities      request ids of one partition, 16 bytes each      | low 64 | hash 24 : 40, see dedup.h |
//   notes           beside each identity: what its first record said, where records do not come in order, or
//                   (repeats = "grow") its counters so far
//   extras          beside each record, where the mapping has labels or further counters
//   spots           beside each record, where the mapping defers more values than a record's hashes hold
//   texts           users, models, chips, labels, one dictionary     | low | high | where in the arena | tokens |
//                   and accounts: a user with labels; the arena holds | user | label's number, text | ... |
//   cells           (window, model, chip)                            | low | high | 6 counters | window | model, chip |
//   rows            (account, cell)                                  | account : cell | 6 counters | epoch |
//                   the account is a user without labels, or (user, labels)
//   further         (row, kind), for the few rows that have such     | row : kind | counter |
//   windows         one HyperLogLog of users each                    | window + 1 | 1 | ; registers[2^14] beside it
//   arena           the bytes of all texts, in order of arrival; only grows within a part
//
// Every table starts as zeros, and a slot never goes back to zero before the table is dropped. A slot's number is its
// id, so nothing needs to be published or waited for.
#pragma once
#include "portable.h"

namespace tokenometer {

constexpr u32 LABEL_BYTES = 8;  // of an account, in the arena

// The last three are none yet: what is deferred has to be read; the fields leave doubt, and the mapping may skip the
// record; the line is to be read in its other spelling.
enum Verdict : u32 {
  EMPTY = 0,
  ACCEPTED = 1,
  DOUBTFUL = 2,
  REJECTED = 3,
  DUPLICATE = 4,
  SKIPPED = 5,
  UNFINISHED = 6,
  UNREAD = 7,
  RESPELLED = 8
};

// Strings of a record
enum Text : u32 { REQUEST_ID = 0, USER = 1, MODEL = 2, CHIP = 3, PREFILL_CHIP = 4, SCOPE = 5, TEXTS = 6 };
constexpr u32 HASHES = 5;  // the scope's is mixed into the request id's
// Counters, in the order of a usage row
enum Counter : u32 {
  REQUESTS = 0,
  INPUT = 1,
  CACHED_INPUT = 2,
  CACHE_WRITE = 3,
  OUTPUT = 4,
  REASONING = 5,
  COUNTERS = 6,
  TOTAL = 6  // of a record, to be checked; it waits where the window comes
};
// Further counters, each a part of one of the above; those of the input come first.
enum Further : u32 {
  CACHE_WRITE_1H = 0,
  AUDIO_INPUT = 1,
  IMAGE_INPUT = 2,
  AUDIO_CACHED_INPUT = 3,
  AUDIO_OUTPUT = 4,
  FURTHER = 5
};
// `have` bits: texts at 0..5, the time, the selector, counters after it: no field is REQUESTS, whose bit it would be
constexpr u32 HAVE_TIME = 1u << 6;
constexpr u32 HAVE_SELECTOR = 1u << 7;
constexpr u32 HAVE_COUNTER = 7;
// Marks: a bit for each of the first 50 mapped keys; above them the `have` bit of its field. The parser finds by them
// that a key came twice. A DEFERRED key needs none, because its spot says that it came: the others come first.
constexpr u32 MARKS = 50, HAVE_SHIFT = MARKS;
constexpr u64 KEY_MARKS = (1ull << MARKS) - 1;

constexpr u32 PREFIX_BYTES = 5120;  // of a batch buffer: the mapping's default strings and its brackets' names
constexpr u32 PADDING_BYTES = 64;   // of newlines after the messages, and again after the referee's text

constexpr u32 TEXT_BYTES_MAX = 256;
constexpr u32 ID_BYTES_MAX = 1024;               // of request ids and scopes under format 2
constexpr u64 COUNT_MAX = 1ull << 40;            // counts are below
constexpr u64 TIME_MAX_MS = 253402300800000ull;  // 10000-01-01T00:00:00Z; times are below
constexpr u32 RECORD_BYTES_MAX = 1u << 20;
constexpr u32 NONE = 0xffffffffu;  // no slot, no key
// Of Record::identity_slot: the id is known from an earlier table.
constexpr u32 EARLIER = 1u << 31, SLOT_MASK = EARLIER - 1;
constexpr u32 IDENTITIES_MAX = 1u << 29;  // slots of a table, so that a slot with the mark is never NONE

// --- Plan: a mapping, compiled by plan.py for the parser ---

constexpr u32 KEYS_MAX = 64;  // keys in place: at most 60 mapped, the others learned from the log
constexpr u32 KEY_BYTES_MAX = 48;
constexpr u32 LITERAL_BYTES_MAX = 64;
constexpr u32 BUCKETS = 256;    // of the perfect hash of keys
constexpr u32 STEPS = 2;        // successors predicted for each key
constexpr u32 CHOICES_MAX = 8;  // token types of a selector
constexpr u32 ROOT = 254;       // the object of the top level's keys
constexpr u32 END = 255;        // the step after a record's last value

// A DEFERRED value is not read where it is: the parser keeps the spot where it begins, and rules.h reads it after
// the record's end, for every field and condition that wants it. DEFERRED_OBJECT is an object on the way to others
// whose presence is asked for: only its null is kept.
enum Kind : u32 {
  ORDINARY = 0,
  OBJECT = 1,
  TEXT = 2,
  COUNT = 3,
  TIME = 4,
  SELECTOR = 5,
  LABEL = 6,
  FURTHER_COUNT = 7,
  DEFERRED = 8,
  DEFERRED_OBJECT = 9,
  QUOTED = 16
};
constexpr u32 SPOT_BITS = 21;   // one more than a position in a record has
constexpr u32 SPOTS_MAX = 60;   // deferred values of a record: as many keys as a mapping may name
constexpr u32 SPOT_WORDS = 10;  // words of spots beside those of a record's hashes, three in each
constexpr u32 RULES_MAX = 26;   // six strings, the time, the selector, five counts, eight labels, five further counts
constexpr u32 CONDITIONS_MAX = 128;      // eight entries of eight, of `skip` and of `refuse`
constexpr u32 CONVENTION_PATHS_MAX = 8;  // that one may be read from: more than a mapping may name (5)
constexpr u32 VALUES_MAX = 128;          // that conditions and conventions compare with
// Bits of the parts, in the order in which readings of a total are tried
enum Part : u32 { REASONING_PART = 1, WRITE_PART = 2, CACHED_PART = 4 };
constexpr u32 PARTS = 3;
constexpr u32 LABELS_MAX = 8;
constexpr u32 EDGES_MAX = 16;

// One predicted move from the end of a value to the next value: these bytes are between them. Whatever the parser
// must know of that value's key is here too, so that a right prediction touches nothing else.
struct alignas(128) Step {
  u8 literal[LITERAL_BYTES_MAX];  // such as  ,"user":"
  u64 marks;                      // of the mapped keys passed on the way and of this value's
  u32 length;                     // of the literal
  u32 key;                        // whose value follows, or END
  u32 kind;                       // with QUOTED: the literal ends with the value's opening quote
  u32 slot;                       // Text or Counter
  u32 digits;                     // of a count: digit strings are taken too; of a label: RuleFlag
};
struct Key {
  u64 text[KEY_BYTES_MAX / 8];  // zero padded
  u64 mark;                     // 0 for an ordinary key, and for a deferred one that has no bit
  u32 length;
  u32 object;  // that the key is in
  u32 kind;
  u32 slot;
  u32 digits;
  u32 spare;
};
struct Choice {
  u64 text[KEY_BYTES_MAX / 8];
  u32 length;
  u32 counter;
  u32 requests;  // such an event counts as a request
  u32 spare;
};
// How a field whose values are deferred is read.
enum RuleFlag : u32 {
  DIGITS = 1,         // a count's digit strings
  WHOLE_NUMBERS = 2,  // 12.0 and 1.2e3 are counts
  EMPTY_IS_ABSENT = 4,
  NUMBERS = 8,    // a string may be an integer
  OPTIONAL = 16,  // a count that is absent has its default
  REQUIRED = 32
};
struct Rule {
  u32 kind;
  u32 slot;
  u32 flags;
  u32 paths;                // how many spots are alternatives, the first listed first
  u32 plus;                 // how many after them are addends
  u8 spots[SPOTS_MAX + 4];  // what follows all rules is whole words of eight bytes
};
enum Test : u32 { IN = 0, NOT_IN = 1, PRESENT = 2, ABSENT = 3 };
struct Condition {
  u32 test;
  u32 fits_absent;
  u32 spot;
  u32 key;    // whose value it is
  u32 first;  // of its values
  u32 count;
  u32 last;     // of an entry: all conditions up to it must fit
  u32 refuses;  // what fits the entry
};
// What a string (quoted) or another scalar is compared with, as JSON spells it without escapes.
struct Value {
  u64 text[KEY_BYTES_MAX / 8];
  u32 length;
  u32 quoted;
  u32 additive;  // of a convention: what this value means, a Stated
  u32 begins;    // any string that begins so
};
// SILENT: the record's total is not asked, because a value told
enum Stated : u32 { INCLUSIVE = 0, ADDITIVE = 1, UNKNOWN = 2, BY_TOTAL = 3, SILENT = 4 };
// What a string's values say of a part
struct Convention {
  u32 otherwise;  // Stated: where they say nothing
  u32 first;      // of its values
  u32 count;
  u32 paths;
  u8 spots[CONVENTION_PATHS_MAX];  // the first that has a value says it
};
// A label of the mapping. Where a record has no value: its default, or the name of the range that holds a count.
struct LabelPlan {
  u64 salt;    // of its name
  u32 number;  // of its name, among those of all mappings of an engine
  u32 edge_count;
  u32 counter;  // whose bracket it is
  u32 spare;
  u64 edges[EDGES_MAX];
  u32 start[EDGES_MAX + 1];   // in the prefix: of each range's name; the first is the default without edges
  u32 length[EDGES_MAX + 1];  // 0 = no default
};
// Texts that are times
enum TimeText : u32 { RFC3339 = 1, ISO8601 = 2, DIGIT_TIMES = 4, ZONE = 8 };
enum Epoch : u32 {
  NO_EPOCH = 0,
  SECONDS = 1,
  MILLISECONDS = 2,
  MICROSECONDS = 3,
  NANOSECONDS = 4,
  DECIMAL_SECONDS = 5
};
struct Plan {
  Step next[KEYS_MAX][STEPS];  // after the value of each key
  Step start[STEPS];
  Key keys[KEYS_MAX];
  Choice choices[CHOICES_MAX];
  u8 buckets[BUCKETS];  // key number, 255 = none
  u64 multiplier;
  u64 default_count[COUNTERS];
  u32 default_start[TEXTS];
  u32 default_length[TEXTS];  // 0 = no default
  u32 needed;                 // `have` bits
  u32 defaulted;              // `have` bits of texts and counters with a default other than none and zero
  u32 epoch;
  u32 time_texts;  // TimeText bits
  u32 message_time_fallback;
  u32 input_additive;
  u32 output_additive;
  u32 choice_count;  // 0 = no selector
  // --- From here on what only format 2 says; all zeros where it does not. ---
  u32 has_rules;        // what is deferred has to be read
  u32 has_conventions;  // the parts' conventions differ, or a total is to be checked
  u32 undecided;        // every record is for the referee: the mapping says more than fits in here
  u32 long_ids;         // up to ID_BYTES_MAX
  u32 additive;         // parts that are stated to be beside their total, if the below do not say otherwise
  u32 by_total;         // parts of which the record's total tells
  u32 by_value;         // parts of which a string tells
  u32 identity_with;    // `have` bits of the strings that belong to a request's identity
  i32 zone_minutes;     // of times without a zone
  u32 rule_count;
  u32 condition_count;
  u32 spot_count;
  u32 has_extras;  // labels or further counters
  u32 label_count;
  u32 labels_needed;  // a bit for each
  Rule rules[RULES_MAX];
  Rule total;  // without paths: there is none
  Condition conditions[CONDITIONS_MAX];
  Convention conventions[PARTS];
  Value values[VALUES_MAX];
  LabelPlan labels[LABELS_MAX];
};

// --- The tile ---

// What is read from one line: three cache lines.
struct alignas(64) Record {
  u64 low[HASHES];  // never zero, which means an empty slot
  u64 high[HASHES];
  u64 counters[COUNTERS];
  u64 window;
  u32 start[TEXTS];  // in the buffer
  u32 verdict;
  u32 identity_slot;  // in the current generation, with EARLIER; NONE = no request id
  u32 user_slot;
  u32 cell_slot;
  u32 prefill_cell_slot;  // NONE = no prefill chip
  u16 length[TEXTS];      // 0 = absent
};

// What a record has beside, under a mapping with labels or further counters: two cache lines.
struct alignas(64) Extra {
  u64 low;  // a hash of the user and its labels; 0 = no label has a value
  u64 high;
  u64 further[FURTHER];
  u32 start[LABELS_MAX];
  u16 length[LABELS_MAX];  // 0 = absent
  u32 account;             // text slot: of the account, or without labels of the user
};

// --- Tables ---

struct alignas(16) Identity {
  u64 low;
  u64 owner;  // high 24 bits: hash; low 40: inverted sequence, so that the highest value is the lowest record
};
// Under repeats = "grow" a note is the greatest of each token counter that an identity's records of this generation
// have said, five or with further counters ten words. The first one's highest bit says that there was a record.
// Otherwise a note is a u32: what the identity's first record of this generation says, hashed.
constexpr u32 TOKENS = COUNTERS - 1;
constexpr u64 GROWN_TAKEN = 1ull << 63;
struct alignas(32) TextEntry {
  u64 low;
  u64 high;
  u64 where;   // arena offset 35 bits | sketch index 14, rank 6 | length 9; of an account ACCOUNT + how many labels
  u64 tokens;  // of a user, in this part
};
struct alignas(64) Cell {
  u64 low;  // a hash of window, model and chip
  u64 high;
  u64 counters[COUNTERS];
  u64 window;  // from here on for those who read cells: off the path of a record
  u32 model;   // texts
  u32 chip;
  u64 spare[6];
};
constexpr u32 ACCOUNT = TEXT_BYTES_MAX;  // no text is longer
struct alignas(64) Row {
  u64 key;  // 1 << 63 | account << 32 | cell
  u64 counters[COUNTERS];
  u32 epoch;    // of the last change
  u32 further;  // a bit for each kind that the row has
};
struct alignas(16) FurtherEntry {
  u64 key;  // 1 << 63 | row << 3 | kind
  u64 counter;
};
struct alignas(16) Window {
  u64 low;  // window + 1
  u64 high;
};
constexpr u32 SKETCH_BITS = 14;                       // 16,384 registers: standard error 0.81 %
constexpr u32 SKETCH_RANK_BITS = 6, LENGTH_BITS = 9;  // of TextEntry::where
constexpr u32 OFFSET_SHIFT = SKETCH_BITS + SKETCH_RANK_BITS + LENGTH_BITS;
constexpr u32 SKETCH_REGISTERS = 1u << SKETCH_BITS;
constexpr u32 SEQUENCE_BITS = 40;
constexpr u64 SEQUENCE_MASK = (1ull << SEQUENCE_BITS) - 1;

// How full the tables are; kernels only add.
enum Fill : u32 {
  FILL_TEXTS = 0,
  FILL_ARENA = 1,  // bytes
  FILL_CELLS = 2,
  FILL_ROWS = 3,
  FILL_CHANGED = 4,
  FILL_WINDOWS = 5,
  FILL_UNSKETCHED = 6,  // rows whose window found no room for a sketch
  FILL_DOUBTFUL = 7,
  FILL_RESPELLED = 8,     // bytes that the tile's doubtful lines take in their other spelling
  FILL_TALLY = 9,         // records by verdict, six
  FILL_CONFLICTS = 15,    // duplicates that say something else than the first record of their identity
  FILL_CONFLICTING = 16,  // of these, the records in `conflicts`
  FILL_WATERMARK = 17,    // 1 + highest event time of an accepted record since the host last looked
  FILL_FURTHER = 18,
  FILLS = 24
};

// What the referee says of one doubtful record.
struct Ruling {
  u64 time_ms;
  u64 counters[COUNTERS];
  u32 start[TEXTS];
  u32 length[TEXTS];
  u32 record;
  u32 verdict;
};
struct RulingExtra {
  u64 further[FURTHER];
  u32 start[LABELS_MAX];
  u32 length[LABELS_MAX];
};
// A changed row on its way out.
struct UsageRow {
  u64 window;
  u64 user, model, chip;  // arena offset << 16 | length
  u64 counters[COUNTERS];
};
// What it has beside.
constexpr u32 PLACE_BITS = 51;
struct UsageExtra {
  u64 labels[LABELS_MAX];  // the name's number << 51 | arena offset << 16 | length, by name; 0 after the last one
  u64 further[FURTHER];
};

// Two tables of one generation, on the way from the one to the other
struct Move {
  const Identity* from;
  const void* from_notes;
  Identity* to;
  void* to_notes;
  u32 to_mask;
  u32 grows;  // words of a note, or 0
};

// A record batch whose records are still to be walked: see walk.h.
struct RawBatch {
  u64 base;        // the offset that its records' are added to
  u64 time;        // ms: likewise, or the time of all where `appended`
  u32 begin, end;  // of its records in the data
  u32 first;       // its first record's number among those of all batches
  u32 count;
  u32 last;  // no record's offset is further from the base
  u32 appended;
};
// Where a record is, without its length, and whose it is: NONE where its batch broke off before.
struct RawSpan {
  u32 begin, end;
  u32 batch;
  u32 spare;
};
// Several record batches, what their records hold, and lines made of these. Pointers are to device memory.
struct Walk {
  const u8* data;  // padded
  const RawBatch* batches;
  RawSpan* spans;
  u64* offsets;
  u64* times;       // ms
  u32* values;      // where each begins in the data
  u32* sizes;       // of each value's line, its newline included
  const u32* ends;  // in `lines`, past each newline
  u8* lines;        // whole words, as many as are placed
  u64* broken;      // 0, or how many batches there are from the first broken one on
  u32 batch_count;
  u32 count;  // of lines
};

// Everything a kernel may touch. Pointers are to device memory (or the host's, in the host build).
struct Job {
  const u8* buffer;
  const u32* line_start;  // line i is [line_start[i], line_start[i + 1] - 1), its newline after it
  const Plan* plan;
  const u32* message_end;   // past each message's last newline
  const u64* message_time;  // ms, or null
  Record* records;
  u32* doubtful;  // record numbers, in no order; NONE where the line's other spelling left no doubt
  u8* respelled;  // in the buffer: doubtful lines of the tile in their other spelling, see respell.h
  const Ruling* rulings;
  Extra* extras;  // beside records and rulings; null where the batch's mapping has no need of them
  u64* spots;     // SPOT_WORDS beside each record, see rules.h
  const RulingExtra* ruling_extras;
  // tables
  Identity* identities;
  const Identity* identities_leaving;  // half as large, its ids on their way into `identities`; or null
  const Identity* identities_before;   // the generation before, or null
  void* notes;                         // of each table: a u32, nothing in order, or where repeats grow `grows` words
  const void* notes_leaving;
  const void* notes_before;
  u32* conflicts;          // record numbers, in no order; null: nobody wants them
  const u32* grown_order;  // records by slot, then in their order; null: a pass takes them in their order
  TextEntry* texts;
  Cell* cells;
  Row* rows;
  FurtherEntry* further;
  Window* windows;
  u32* registers;  // [windows][SKETCH_REGISTERS / 4], four registers a word
  u8* arena;
  u32* text_order;  // slots in order of arrival, so that nobody has to search a table for what it holds
  u32* cell_order;
  u32* window_order;
  u32* changed;  // rows changed since the last commit
  UsageRow* usage_rows;
  UsageExtra* usage_extras;  // null as long as no mapping had labels or further counters
  u64* fill;
  u64 secret[8];
  u64 sketch_seed;
  u64 window_ms;
  double windows_per_ms;  // 1 / window_ms
  u64 future_skew_ms;
  u64 past_ms;        // how far a time may be before its message's
  u64 not_before_ms;  // no time may be before
  u64 sequence;       // of the tile's first record, in its partition's current generation
  u32 identities_mask;
  u32 identities_before_mask;
  u32 texts_mask;
  u32 cells_mask;
  u32 rows_mask;
  u32 further_mask;
  u32 windows_mask;
  u32 windows_limit;
  u32 message_count;
  u32 line_is_message;  // every message is one line
  u32 epoch;
  u32 grows;        // repeats = "grow": the words of a note, or 0
  u32 grown_count;  // records in grown_order
  u32 spare;
};

static_assert(SPOTS_MAX == 3 * (2 * HASHES + SPOT_WORDS) && 3 * SPOT_BITS <= 64 && RECORD_BYTES_MAX < 1u << SPOT_BITS,
              "see SPOTS_MAX");
static_assert(sizeof(Record) == 192 && sizeof(Step) == 128, "whole cache lines");
static_assert(OFFSET_OF(Record, window) == OFFSET_OF(Record, counters) + 8 * TOTAL, "see TOTAL");
static_assert(sizeof(Identity) == 16 && sizeof(TextEntry) == 32 && sizeof(Window) == 16, "see the drawing above");
static_assert(sizeof(Extra) == 128 && sizeof(FurtherEntry) == 16, "see the drawing above");
static_assert(sizeof(Cell) == 128 && sizeof(Row) == 64, "one cache line for each record that is counted");

}  // namespace tokenometer
