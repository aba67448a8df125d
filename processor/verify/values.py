"""What an audit is told, what it answers, and why it may be impossible: the values of `tokenometer verify`."""

import os
from collections import Counter
from dataclasses import astuple, dataclass, field
from typing import NamedTuple

from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.secret import Secret
from tokenometer.schemas.errors import TokenometerError

SCHEMA = 1  # of live summaries: the one version that this audit reads
ROW_SCHEMAS = (1, 2)  # of usage rows; those of version 1 have no labels and no further counters
# Of a row, in this order everywhere. A copy of schemas/usage.py on purpose: the audit shares nothing that it judges.
COUNTS = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens")
COUNTERS = ("requests", *COUNTS)
PARENTS = {  # further counters, each a part of one of the above; a row has only those that are not 0
    "cache_write_1h_tokens": "cache_write_tokens",
    "audio_input_tokens": "input_tokens",
    "image_input_tokens": "input_tokens",
    "audio_cached_input_tokens": "cached_input_tokens",
    "audio_output_tokens": "output_tokens",
}
FURTHER = tuple(PARENTS)
NO_FURTHER = (0, 0, 0, 0, 0)
# These stay on the row of `chip` where there is a prefill_chip.
OUTPUT = ("requests", "output_tokens", "reasoning_tokens", "audio_output_tokens")
REASONS = (
    # Of a whole message
    "too_large",
    "too_deep",
    "bad_compression",
    "bad_encoding",
    "unknown_schema",
    "bad_key",
    "bad_header",
    # Of a record
    "too_long",
    "invalid_json",
    "not_an_object",
    "repeated_field",
    "refused",
    "wrong_type",
    "missing_field",
    "bad_string",
    "bad_count",
    "bad_timestamp",
    "future_timestamp",
    "past_timestamp",
    "unknown_token_type",
    "unknown_convention",
    "inconsistent_counts",
)
CONFLICTING = "conflicting_duplicate"  # of a dead letter that is a duplicate

Counters = tuple[int, int, int, int, int, int]
NO_COUNTERS: Counters = (0, 0, 0, 0, 0, 0)


class RefusedRecord(Exception):
    """The record goes to the dead letters, for the first reason that applies."""

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason, field)
        self.reason = reason
        self.field = field


class VerifyError(TokenometerError):
    """The audit cannot be made, and it says nothing about the stream. The message is for the person who asked."""


class NothingCommitted(VerifyError):
    """The group has no committed offset in the input topics."""


class LogGone(VerifyError):
    """Retention has removed messages that were metered: their totals cannot be recomputed."""


class UnknownSchema(VerifyError):
    """A message has a schema version that this audit does not read."""


class WrongWindow(VerifyError):
    """The stream was metered with windows of another length than the audit was told."""


class StreamMoves(VerifyError):
    """The group commits so often that no moment between two commits was found."""


class UnusableCheckpoint(VerifyError):
    """The file of a checkpoint cannot be read or written, or is none that this version reads."""


class OtherStream(VerifyError):
    """The checkpoint was made of another stream, or the stream is not what it was then."""


class DuckDBMissing(VerifyError):
    """DuckDB, which does the sums, is not installed; it is an extra."""


@dataclass(frozen=True)
class VerifySettings:
    """How the stream was metered, and what the audit may use."""

    usage_topic: str = "token-usage"
    live_topic: str = "token-live"
    rejected_topic: str = "inference-logs-rejected"
    window_ms: int = 60_000
    max_future_skew_ms: int = 3_600_000
    max_past_ms: int | None = None  # None: no bound
    dedup_horizon_ms: int = 600_000
    conflict_letters: bool = True  # duplicates that say something else became dead letters
    differences_max: int = 20  # that the report shows, of each kind
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    memory_bytes: int = 2 << 30  # of the tables, and then of DuckDB; what is beyond it goes to `scratch`
    registry: tuple[tuple[str, str | Secret], ...] | None = None  # settings of the Schema Registry
    scratch: str | None = None  # a folder for about 200 bytes a record; None: the system's temporary one
    settle_seconds: float = 0.25  # for a commit's marks to reach every partition
    since: str | None = None  # a checkpoint's file: only what was committed after it is audited
    checkpoint: str | None = None  # the file to which a clean audit writes one; it may be that of `since`


class Problem(NamedTuple):
    """Something other than a total is wrong."""

    kind: str  # gap, overlap, end, sequence, summary, conservation, tokens, records, row or letter
    where: str
    what: str


@dataclass(frozen=True)
class Difference:
    """A total that is not what the log says; None where one side has no such row."""

    window_start_ms: int
    user: str
    model: str
    chip: str
    expected: Counters | None
    found: Counters | None
    labels: str = ""  # JSON; empty where there are none
    further: tuple[tuple[str, int, int], ...] = ()  # of these counters those that differ: name, expected, found


@dataclass(frozen=True)
class LetterDifference:
    """A record whose dead letter is not what the log says; the verdicts are `reason` or `reason:field`."""

    place: Place
    offset: Offset
    line: int
    what: str  # missing, unexpected, repeated, other verdict or other bytes
    expected: str | None
    found: str | None


class Covered(NamedTuple):
    """A partition of the input: where what is audited of it begins, and how far it was metered."""

    place: Place
    begin: Offset
    committed: Offset
    end: Offset


@dataclass(frozen=True)
class Tally:
    """read = counted + duplicates + rejected + empty + skipped. conflicts: duplicates that say something else."""

    counted: int = 0
    duplicates: int = 0
    rejected: int = 0
    empty: int = 0
    skipped: int = 0
    conflicts: int = 0

    @property
    def read(self) -> int:
        return self.counted + self.duplicates + self.rejected + self.empty + self.skipped


@dataclass(frozen=True)
class Totals:
    """What clean audits have found, added up. rejects: by reason. tokens: sums over all rows."""

    tally: Tally = Tally()
    rejects: dict[str, int] = field(default_factory=dict)
    tokens: Counters = NO_COUNTERS
    parts: int = 0
    usage_messages: int = 0
    letters: int = 0


class Since(NamedTuple):
    """The checkpoint from which an audit went on."""

    file: str
    made_at_ms: int  # when its own audit chose its offsets
    totals: Totals  # of everything before it


@dataclass(frozen=True)
class Report:
    """What the audit found. With `since` all of it is about what was committed after the checkpoint."""

    group: str
    partitions: tuple[Covered, ...]
    parts: int  # of which there is a summary
    tally: Tally  # of the log, by this audit
    rejects: dict[str, int]  # by reason
    expected: Counters  # sums over all rows, from the log
    found: Counters  # and as published
    expected_rows: int  # that were compared; with `since` also those that parts had published before and may go on with
    found_rows: int
    usage_messages: int  # rows as they were published; a later one replaces an earlier one
    letters: int  # dead letters that were found
    differing_rows: int
    differences: tuple[Difference, ...]  # the first ones by window, user, model, chip and labels
    differing_letters: int
    letter_differences: tuple[LetterDifference, ...]  # the first ones by partition, offset and line
    problem_count: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]  # what a reader of problems should know
    seconds: float
    since: Since | None = None
    new_parts: int = 0  # that the checkpoint does not know
    checkpoint: str | None = None  # the file that was written

    @property
    def in_all(self) -> Totals:
        """Of this audit and of those before it."""
        before = self.since.totals if self.since else Totals()
        tally = [one + other for one, other in zip(astuple(before.tally), astuple(self.tally), strict=True)]
        a, b, c, d, e, f = (one + other for one, other in zip(before.tokens, self.found, strict=True))
        return Totals(
            Tally(*tally),
            dict(sorted((Counter(before.rejects) + Counter(self.rejects)).items())),
            (a, b, c, d, e, f),
            before.parts + self.new_parts,
            before.usage_messages + self.usage_messages,
            before.letters + self.letters,
        )

    @property
    def clean(self) -> bool:
        return not (self.differing_rows or self.differing_letters or self.problem_count)
