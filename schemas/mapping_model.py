"""What a mapping says, as values: the model of docs/RECORDS.md, section "Mapping files", and its limits.

Everything that only format 2 can say has a default that means what format 1 means. So a reader of a `Mapping` needs no
case for the format.
"""

from dataclasses import dataclass
from typing import Literal

from tokenometer.schemas.usage import COUNTERS, FURTHER, TOKENS
from tokenometer.schemas.value import PLAIN, Value

Path = tuple[str, ...]  # keys from the top level down
Kind = Literal["string", "count", "time"]
Test = Literal["in", "not_in", "present", "absent"]

FIELDS = (
    "request_id",
    "timestamp",
    "user",
    "model",
    "chip",
    "prefill_chip",
    *TOKENS,
)
TOTAL_TOKENS = "total_tokens"  # of format 2: it is checked, and it is in no row
STRINGS = ("request_id", "user", "model", "chip", "prefill_chip")
NEEDED = ("timestamp", "user", "model", "chip", "input_tokens", "output_tokens", "tokens")
PARTS = ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens")  # each may have its own convention

EPOCH_FORMATS = ("epoch_s", "epoch_ms", "epoch_us", "epoch_ns", "epoch_s_decimal")
TEXT_FORMATS = ("rfc3339", "iso8601")  # iso8601 only under format 2

FORMATS = (1, 2)  # of the mapping file itself
STRING_BYTES_MAX = 256
ID_BYTES_MAX = 1024  # of request ids and scopes under format 2: gateways write ids of 400 bytes
COUNT_END = 1 << 40
KEY_BYTES_MAX = 48
PATH_KEYS_MAX = 6
PLACES_MAX = 60  # distinct keys-in-place: the nodes of the tree that all paths form together
SELECTOR_ENTRIES_MAX = 8
SKIP_ENTRIES_MAX = 8
SKIP_AND_MAX = 7  # further conditions of an entry
VALUES_MAX = 16  # that a condition, or the lists of a convention together, compare with
VALUE_BYTES_MAX = 48
PLUS_MAX = 4
CONVENTION_ALIASES_MAX = 4
LABELS_MAX = 8
EDGES_MAX = 16
# A label is shown beside these in rows and their sums, so it may not have their names.
LABEL_NAMES_TAKEN = frozenset(
    (*FIELDS, *COUNTERS, *FURTHER, TOTAL_TOKENS, "scope", "tokens", "label", "labels", "part", "schema", "skip")
    + ("window", "window_start", "window_ms", "begin", "end", "revenue", "unpriced_tokens", "chip_cost")
    + ("uncosted_tokens",)
)


@dataclass(frozen=True)
class Field:
    """How one canonical field is read from a record."""

    name: str
    kind: Kind
    paths: tuple[Path, ...]  # path, then aliases; () for a constant and for an optional field that is not mapped
    required: bool  # absent and null are `missing_field`
    default: str | int | None  # where all paths are absent or null; a constant is stored here too
    digits: bool = False  # a count, or an epoch time, may also be a string of digits
    formats: tuple[str, ...] = ()  # of a time
    message_time_fallback: bool = False
    scope: Path | None = None  # of request_id: the identity is (scope, id)
    scope_of_aliases: bool = False  # an id at the first path has none
    plus: tuple[Path, ...] = ()  # of a count: what is added to it
    whole_numbers: bool = False  # a count may also be written as 12.0 or 1.2e3
    empty_is_absent: bool = False  # of a string (and of a scope): "" is as good as null
    numbers: bool = False  # a string (and a scope) may also be a JSON integer: its decimal text
    zone_minutes: int | None = None  # of iso8601: how far local time is ahead of UTC in a text without a zone
    with_fields: tuple[str, ...] = ()  # of request_id: string fields that identify the request together with it
    bytes_max: int = STRING_BYTES_MAX  # of a string (and of a scope)


@dataclass(frozen=True)
class Selector:
    """Which counter an event of one token type belongs to. The count itself is the field `tokens`."""

    by: Path
    to: tuple[tuple[str, str], ...]  # source value, counter
    requests: str | None  # the source value whose events count as requests; None: every event does


@dataclass(frozen=True)
class Condition:
    """One test of a value. The tuples are what `in` or `not_in` lists, by type: JSON's true is not its 1."""

    path: Path
    test: Test
    strings: tuple[str, ...] = ()
    integers: tuple[int, ...] = ()
    booleans: tuple[bool, ...] = ()
    prefixes: tuple[str, ...] = ()  # every string that begins with one of these
    or_absent: bool = False  # of `in` and `not_in`: an absent value fits too

    @property
    def fits_absent(self) -> bool:
        return self.or_absent or self.test == "absent"

    @property
    def only_presence(self) -> bool:
        """A value of any type will do, so the path may also lead to an object on the way to other fields."""
        return self.test in ("present", "absent")


@dataclass(frozen=True)
class Convention:
    """Says whether a part is inside its total as the source counts it ("inclusive") or beside it ("additive")."""

    additive: bool | None  # as stated; with `by_total` for a record without a total; with `paths` for other values
    by_total: bool = False  # the record's total_tokens tells; with `paths` where their value does not
    paths: tuple[Path, ...] = ()  # the first of these values that is there tells
    values: tuple[tuple[str | bool, bool], ...] = ()  # of a string or boolean: is it additive
    field: str = "input_tokens"  # the canonical field whose `..._are` this is: named where a value is refused
    # As `values`, of every string that begins so; a whole value counts before them, and of two the longer one.
    prefixes: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True)
class Bracket:
    """The ranges of a count: up to the first edge, then up to the next, and above the last."""

    counter: str  # one of the five, as the row has it: inclusive
    edges: tuple[int, ...]  # rising

    @property
    def names(self) -> tuple[str, ...]:
        """In their order, one more than there are edges: "0-32000", "32001-128000", "128001-"."""
        begins = (0, *(edge + 1 for edge in self.edges))
        return tuple(f"{begin}-{end}" for begin, end in zip(begins, (*self.edges, ""), strict=True))

    def index(self, count: int) -> int:
        return sum(count > edge for edge in self.edges)


@dataclass(frozen=True)
class Label:
    """A named string that is a part of a row's identity: either read from the record, or the range of a count."""

    name: str
    field: Field | None  # a string; its name is `labels.NAME`
    bracket: Bracket | None = None


@dataclass(frozen=True)
class Mapping:
    """A checked mapping. `fields` has every canonical field in canonical order, without `total_tokens`.

    With a selector `tokens` takes the place of `input_tokens` and the other four counts are left out.
    """

    name: str
    description: str
    conventions: tuple[Convention, Convention, Convention]  # of PARTS
    fields: tuple[Field, ...]
    selector: Selector | None
    source: str  # the file's path, or a shipped mapping's name
    total: Field | None = None  # total_tokens
    skip: tuple[tuple[Condition, ...], ...] = ()  # of each entry: all its conditions must fit
    repeats: Literal["first", "grow"] = "first"
    format: int = 1
    value: Value = PLAIN  # how a message's value holds records
    further: tuple[Field, ...] = ()  # those of FURTHER that are mapped, in that order
    labels: tuple[Label, ...] = ()  # by name
    refuse: tuple[tuple[Condition, ...], ...] = ()  # as `skip`, of what is not skipped

    def field(self, name: str) -> Field:
        for field in self.fields:
            if field.name == name:
                return field
        raise KeyError(name)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every path that is read, in the order of judgement; a path that is read twice occurs twice."""
        read = [condition.path for entry in (*self.skip, *self.refuse) for condition in entry]
        labels = [label.field for label in self.labels if label.field]
        for field in (*self.fields, *self.further, *([self.total] if self.total else []), *labels):
            read += [*field.paths, *([field.scope] if field.scope else []), *field.plus]
            if field.name == "tokens" and self.selector:
                read.append(self.selector.by)
        read += [path for convention in self.conventions for path in convention.paths]
        return tuple(read)

    @property
    def plain(self) -> bool:
        """Every part has the convention that is stated for its total, as under format 1."""
        cached, write, reasoning = self.conventions
        decided = not any(each.by_total or each.paths for each in (cached, write, reasoning))
        return decided and cached.additive == write.additive

    @property
    def input_additive(self) -> bool:
        """Of a plain mapping."""
        assert self.plain, "each part has a convention of its own"
        return bool(self.conventions[0].additive)

    @property
    def output_additive(self) -> bool:
        """Of a plain mapping."""
        assert self.plain, "each part has a convention of its own"
        return bool(self.conventions[2].additive)
