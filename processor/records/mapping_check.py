"""What a mapping makes of the first records of a log, judged record by record by the referee.

It is for the person who writes a mapping: which fields have values, what they look like, what is refused and why, which
records repeat others, and what looks like a mistake in the mapping. The sample is one partition without message times,
as a file is.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from tokenometer.kernels import layout
from tokenometer.kernels.values import Canonical, Rejection, Skipped
from tokenometer.processor.records import plausible
from tokenometer.processor.records.count_names import name_of, norm
from tokenometer.processor.records.referee import Referee
from tokenometer.processor.records.sample import leaves_of
from tokenometer.schemas.mapping import Field, Mapping, Path
from tokenometer.schemas.mapping_errors import show_path
from tokenometer.schemas.mapping_model import NEEDED
from tokenometer.schemas.usage import COUNTERS, FURTHER, Usage

EXAMPLES_MAX = 3
WINDOW_MS = 60_000  # as the engine's default: a duplicate in another window is a conflict
_LOOKED_AT_MAX = 1000  # records whose keys are kept for hints
_NAMES_MAX = 5  # that a hint lists
_TEXTS = {  # where each is in a Canonical
    "request_id": layout.REQUEST_ID,
    "scope": layout.SCOPE,
    "user": layout.USER,
    "model": layout.MODEL,
    "chip": layout.CHIP,
    "prefill_chip": layout.PREFILL_CHIP,
}
_Identity = tuple[bytes, ...]
_Counters = tuple[int, ...]  # of COUNTERS, then of FURTHER


@dataclass
class Values:
    """Of one canonical field."""

    total: int | None  # of counts
    records: int = 0  # that have a value, which for a count is one above 0
    examples: list[str | int] = field(default_factory=list)  # the first distinct ones

    def add(self, value: str | int) -> None:
        self.records += 1
        if isinstance(value, int) and self.total is not None:
            self.total += value
        if len(self.examples) < EXAMPLES_MAX and value not in self.examples:
            self.examples.append(value)


@dataclass
class Rejects:
    """Records that were refused for one reason, and the first of them."""

    line: int
    value: bytes
    records: int = 0


@dataclass
class Check:
    """conflicts: of the duplicates, those that say something else than the record that counted, with the line of the
    first. hints: sentences about what looks like a mistake in the mapping. usage: of the counted records."""

    fields: dict[str, Values] = field(default_factory=dict)
    rejects: dict[tuple[str, str | None], Rejects] = field(default_factory=dict)
    counted: int = 0
    duplicates: int = 0
    conflicts: int = 0
    first_conflict: int | None = None
    skipped: int = 0
    empty: int = 0
    usage: Usage = Usage()
    hints: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        return sum(rejects.records for rejects in self.rejects.values())

    @property
    def read(self) -> int:
        return self.counted + self.duplicates + self.skipped + self.rejected + self.empty


def check(lines: Iterable[bytes], mapping: Mapping, window_ms: int = WINDOW_MS) -> Check:
    """Judge every line as `replay` does by default: without a message time, and with its earliest date."""
    referee, result = Referee(not_before_ms=plausible.NOT_BEFORE_MS), Check()
    seen, hints = _Seen(mapping, window_ms), _Hints(mapping)
    result.fields = {name: Values(None) for name in ("timestamp", *_TEXTS)}
    result.fields |= {name: Values(0) for name in (*COUNTERS, *(field.name for field in mapping.further))}
    result.fields |= {f"labels.{label.name}": Values(None) for label in mapping.labels}
    for number, line in enumerate(lines, 1):
        if not line.strip(b" \t\r"):
            result.empty += 1
            continue
        ruling = referee(line, mapping, None)
        hints.look_at(line, ruling)
        if isinstance(ruling, Rejection):
            key = ruling.reason, ruling.field
            result.rejects.setdefault(key, Rejects(number, line)).records += 1
        elif isinstance(ruling, Skipped):
            result.skipped += 1
        else:
            _count(ruling, number, seen, result, mapping)
    if not mapping.field("request_id").scope:
        del result.fields["scope"]
    result.hints = hints.sentences()
    return result


def _count(record: Canonical, number: int, seen: "_Seen", result: Check, mapping: Mapping) -> None:
    counters, conflict = seen.counters(record)
    if counters is None:
        result.duplicates += 1
        result.conflicts += conflict
        if conflict and result.first_conflict is None:
            result.first_conflict = number
        return
    result.counted += 1
    result.usage = result.usage.plus(counters[: len(COUNTERS)])
    fields = result.fields
    fields["timestamp"].add(record.time_ms)
    for name, place in _TEXTS.items():
        if record.texts[place]:
            fields[name].add(record.texts[place].decode())
    for name, count in zip((*COUNTERS, *FURTHER), counters, strict=True):
        if count:
            fields[name].add(count)
    for label, text in zip(mapping.labels, record.labels, strict=True):
        if text:
            fields[f"labels.{label.name}"].add(text.decode())


# --- Repeats ---


class _Seen:
    """The identities so far, compared as docs/RECORDS.md says."""

    def __init__(self, mapping: Mapping, window_ms: int) -> None:
        self._with = [_TEXTS[name] for name in mapping.field("request_id").with_fields]
        self._grow = mapping.repeats == "grow"
        self._window_ms = window_ms
        self._first: dict[_Identity, tuple[Any, ...]] = {}
        self._greatest: dict[_Identity, _Counters] = {}

    def counters(self, record: Canonical) -> tuple[_Counters | None, bool]:
        """What the record adds (None for a duplicate), and whether it is a conflicting duplicate."""
        texts, counters = record.texts, (*record.counters, *record.further)
        if not texts[layout.REQUEST_ID]:
            return counters, False
        identity = (texts[layout.SCOPE], texts[layout.REQUEST_ID], *(texts[place] for place in self._with))
        if self._grow:
            return self._increment(identity, counters), False
        says = (
            *(texts[_TEXTS[name]] for name in ("user", "model", "chip", "prefill_chip")),
            record.time_ms // self._window_ms,
            record.labels,
            counters,
        )
        first = self._first.setdefault(identity, says)
        return (counters, False) if first is says else (None, first != says)

    def _increment(self, identity: _Identity, counters: _Counters) -> _Counters | None:
        before = self._greatest.get(identity)
        if before is None:
            self._greatest[identity] = counters
            return counters
        greatest = before[0], *map(max, before[1:], counters[1:])  # the request counts once
        self._greatest[identity] = greatest
        added = tuple(now - then for now, then in zip(greatest, before, strict=True))
        return added if any(added) else None


# --- Hints ---


class _Hints:
    """Remembers what the first records have, to say what the mapping may have missed."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self._records = 0
        self._filled: dict[Path, bool] = {}  # path -> does a record have a value there
        self._times = 0
        self._strange: list[tuple[Any, str]] = []  # times that are read as dates out of our time, and their unit

    def look_at(self, line: bytes, ruling: Canonical | Rejection | Skipped) -> None:
        if isinstance(ruling, Skipped) or self._records >= _LOOKED_AT_MAX:
            return
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            return
        if not isinstance(record, dict):
            return
        self._records += 1
        leaves = dict(leaves_of(record))
        for path, value in leaves.items():
            self._filled[path] = self._filled.get(path, False) or value is not None
        self._look_at_time(leaves, ruling)

    def _look_at_time(self, leaves: dict[Path, Any], ruling: Canonical | Rejection | Skipped) -> None:
        paths = self._mapping.field("timestamp").paths
        value = next((leaves[path] for path in paths if leaves.get(path) is not None), None)
        if value is None:
            return
        self._times += 1
        refused = isinstance(ruling, Rejection) and ruling.field == "timestamp"
        strange = isinstance(ruling, Canonical) and not plausible.is_of_our_time(ruling.time_ms)
        if refused or strange:
            number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
            self._strange.append((value, plausible.unit_of(number) or ""))

    def sentences(self) -> list[str]:
        found = [self._unit()] if len(self._strange) * 2 > self._times else []
        return [text for text in (*found, *map(self._missing, self._mapping.fields)) if text]

    def _unit(self) -> str | None:
        units = [unit for _, unit in self._strange if unit]
        formats = self._mapping.field("timestamp").formats
        unit = max(set(units), key=units.count) if units else ""
        if not unit or unit in formats:
            return None
        value = next(value for value, its in self._strange if its == unit)
        is_decimal = any(isinstance(each, float) for each, its in self._strange if its == unit)
        proper = f"{unit}_decimal" if is_decimal else unit
        return (
            f"timestamp: most times would not be in the years 2001 to 2099 ({value} as {' or '.join(formats)}); "
            f'these look like {plausible.NAMES[unit]}: formats = ["{proper}"]'
        )

    def _missing(self, each: Field) -> str | None:
        """Hints for fields that no record has. For a needed field this is always a mistake, for others only if the log
        has such a name."""
        if not self._records or not each.paths or any(self._has(path) for path in each.paths):
            return None
        names = self._names_like(each)
        if not names and each.name not in NEEDED:
            return None
        names = names or [show_path(path) for path, filled in self._filled.items() if filled][:_NAMES_MAX]
        return f"no record has {each.name} ({show_path(each.paths[0])}); the log has {', '.join(names) or 'no names'}"

    def _has(self, path: Path) -> bool:
        return self._filled.get(path, False) or any(each[: len(path)] == path for each in self._filled)

    def _names_like(self, each: Field) -> list[str]:
        filled = [path for path, has in self._filled.items() if has]
        if each.kind == "count":
            named = [path for path in filled if (name := name_of(path)) and name.role == each.name]
            return [show_path(path) for path in named[:_NAMES_MAX]]
        words = {norm(path[-1:]): path for path in reversed(filled)}
        wanted = [each.name, *(norm(path[-1:]) for path in each.paths)]
        close = [name for want in wanted for name in difflib.get_close_matches(want, list(words), n=2, cutoff=0.75)]
        parts = [name for name in words if each.name in name.split("_")]
        return [show_path(words[name]) for name in list(dict.fromkeys((*close, *parts)))[:_NAMES_MAX]]
