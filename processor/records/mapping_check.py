"""What a mapping makes of the first records of a log, judged record by record by the referee.

For the person who writes a mapping: which fields have values, what they look like, and what is refused and why. Request
ids are not compared: whether a record is a duplicate is no matter of the mapping.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenometer.kernels import layout
from tokenometer.kernels.values import Canonical, Rejection, Skipped
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas.mapping import Mapping
from tokenometer.schemas.usage import COUNTERS

EXAMPLES_MAX = 3
_TEXTS = {  # where each stands in a Canonical
    "request_id": layout.REQUEST_ID,
    "scope": layout.SCOPE,
    "user": layout.USER,
    "model": layout.MODEL,
    "chip": layout.CHIP,
    "prefill_chip": layout.PREFILL_CHIP,
}


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
    """Records refused for one reason, and the first of them."""

    line: int
    value: bytes
    records: int = 0


@dataclass
class Check:
    fields: dict[str, Values] = field(default_factory=dict)
    rejects: dict[tuple[str, str | None], Rejects] = field(default_factory=dict)
    counted: int = 0
    skipped: int = 0
    empty: int = 0

    @property
    def rejected(self) -> int:
        return sum(rejects.records for rejects in self.rejects.values())

    @property
    def read(self) -> int:
        return self.counted + self.skipped + self.rejected + self.empty


def check(lines: Iterable[bytes], mapping: Mapping) -> Check:
    """Judge every line as a file's record: without a message time."""
    referee, result = Referee(), Check()
    result.fields = {name: Values(None) for name in ("timestamp", *_TEXTS)}
    result.fields |= {name: Values(0) for name in COUNTERS}
    for number, line in enumerate(lines, 1):
        if not line.strip(b" \t\r"):
            result.empty += 1
            continue
        ruling = referee(line, mapping, None)
        if isinstance(ruling, Rejection):
            key = ruling.reason, ruling.field
            result.rejects.setdefault(key, Rejects(number, line)).records += 1
        elif isinstance(ruling, Skipped):
            result.skipped += 1
        else:
            result.counted += 1
            _look_at(ruling, result.fields)
    if not mapping.field("request_id").scope:
        del result.fields["scope"]
    return result


def _look_at(record: Canonical, fields: dict[str, Values]) -> None:
    fields["timestamp"].add(record.time_ms)
    for name, place in _TEXTS.items():
        if record.texts[place]:
            fields[name].add(record.texts[place].decode())
    for name, count in zip(COUNTERS, record.counters, strict=True):
        if count:
            fields[name].add(count)
