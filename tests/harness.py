"""Runs logs through the engine as its callers must, and through the oracle, and compares what came out.

The engine's contract, in `Run`: count a batch; where not all of it fits, take the changed rows, open a new part and go
on from the first message that is not in. The truth for a row is the sum over parts of its latest absolute counters.
"""

import os
import pathlib
import tomllib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from typing import Any

from tests import oracle
from tests.engines import LARGE as LARGE
from tests.engines import LIMITS as LIMITS
from tests.engines import MIDDLE as MIDDLE
from tests.engines import TINY as TINY
from tests.engines import make_engine as make_engine
from tests.engines import secret as secret
from tokenometer.kernels.engine import Engine, Loaded, joined
from tokenometer.kernels.values import Progress, Tally, UsageRows
from tokenometer.processor.verify.decode import AuditDecoder
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.value import PLAIN, Value

# A long run: that many times as many seeds, examples and lines in the tests that make up what they try.
TIMES = int(os.environ.get("TOKENOMETER_TEST_TIMES", "1"))
MAPPINGS = pathlib.Path(mappings.__file__).parent / "mappings"
# Those whose values are plain lines; the others are read by tests/test_samples.py and tests/intake.
SHIPPED = tuple(name for name in mappings.shipped() if mappings.resolve(name).value == PLAIN)
DEDUP_HORIZON_MS = 600_000  # the engine's default

Row = tuple[Any, ...]  # window start, user, model, chip; of rows with labels, these as pairs
Rows = dict[Row, list[int]]
Letter = tuple[Hashable, int, int, str, str | None, bytes]  # as oracle.Meter.dead_letters


@dataclass(frozen=True)
class Mapping:
    """A mapping for the engine and the same one for the oracle."""

    engine: mappings.Mapping
    oracle: dict[str, Any]

    @classmethod
    def parse(cls, text: str, source: str = "test.toml") -> "Mapping":
        return cls(mappings.parse(text, source), tomllib.loads(text))


@cache
def shipped(name: str = "native") -> Mapping:
    return Mapping(mappings.resolve(name), tomllib.loads((MAPPINGS / f"{name}.toml").read_text()))


@dataclass(frozen=True)
class Piece:
    """What goes into one batch."""

    values: Sequence[bytes | None]
    times: Sequence[int] | None = None
    partition: Hashable = 0
    mapping: Mapping | None = None  # None: the run's own


@cache
def decode_of(value: Value = PLAIN) -> Callable[[bytes | None], tuple[list[bytes], str | None]]:
    """For the oracle: records of a message's value, by the audit's decoder, which shares nothing with the engine's."""
    decoder = AuditDecoder(value)

    def decode(content: bytes | None) -> tuple[list[bytes], str | None]:
        decoded = decoder(content)
        return decoded.lines or [b""], decoded.failure

    return decode


def rows_of(changes: Iterable[UsageRows]) -> Rows:
    rows: Rows = {}
    count = 0
    for piece in changes:
        keys = zip(piece.window_starts(), *(piece.texts(name) for name in ("user", "model", "chip")), strict=True)
        labels = [(tuple(labels.items()),) if labels else () for labels in piece.labels()]
        further = [list(counters) if any(counters) else [] for counters in piece.further()]
        rows.update(
            (key + more, counters + beside)
            for key, more, counters, beside in zip(keys, labels, piece.table["counters"].tolist(), further, strict=True)
        )
        count += len(piece)
    assert len(rows) == count, "a changed row is listed once"
    return rows


def add_rows(total: Rows, more: Rows) -> None:
    for key, counters in more.items():
        total[key] = [a + b for a, b in zip_longest(total.get(key, [0] * 6), counters, fillvalue=0)]


def wanted_rows(wanted: oracle.Meter) -> Rows:
    """The oracle's, further counters after the six."""
    further = {key: [more[name] for name in oracle.FURTHER] for key, more in wanted.further.items()}
    return {key: counters + further.get(key, []) for key, counters in wanted.rows.items()}


@dataclass
class Run:
    """One engine, fed piece by piece."""

    engine: Engine
    mapping: Mapping
    closed: Rows = field(default_factory=dict)  # sums over closed parts
    open: Rows = field(default_factory=dict)  # of the open part, absolute
    letters: list[Letter] = field(default_factory=list)
    lines: int = 0
    parts: int = 1
    fed: dict[Hashable, int] = field(default_factory=dict)  # messages of each partition
    ahead: Loaded | None = None  # what is fed next, where it was loaded already

    def feed(
        self,
        values: Sequence[bytes | None],
        times: Sequence[int] | None = None,
        partition: Hashable = 0,
        mapping: Mapping | None = None,
        following: Piece | None = None,
    ) -> None:
        """following: the next piece, which is loaded before this one is counted."""
        engine = self.engine
        loaded = self.ahead or self.load_piece(Piece(values, times, partition, mapping))
        self.ahead = None if following is None else self.load_piece(following)
        begin, fresh = 0, False
        while True:
            progress = engine.count(loaded, begin, self.ahead)
            self._keep(progress, values, partition)
            if progress.next_message == len(values):
                break
            assert begin <= progress.next_message < len(values)
            assert progress.next_message > begin or not fresh, "an empty part takes at least one message"
            begin, fresh = progress.next_message, True
            self.close_part()
        self.fed[partition] = self.fed.get(partition, 0) + len(values)
        self.lines += sum(len(oracle.records(value)) for value in values)
        assert engine.tally().read == self.lines, "read = counted + duplicates + rejected + empty"
        assert engine.tally().rejected + engine.tally().conflicts == len(self.letters)

    def load_piece(self, piece: Piece) -> Loaded:
        return self.load(piece.values, piece.times, piece.partition, (piece.mapping or self.mapping).engine)

    def load(
        self,
        values: Sequence[bytes | None],
        times: Sequence[int] | None,
        partition: Hashable,
        mapping: mappings.Mapping,
    ) -> Loaded:
        """Half of the batches whose messages are one line each say so."""
        data, ends = joined(values)
        one_line = len(data) % 2 == 0 and all(b"\n" not in (value or b"")[:-1] for value in values)
        return self.engine.load(self.engine.pack_lines([data], ends, times, partition, one_line=one_line), mapping)

    def _keep(self, progress: Progress, values: Sequence[bytes | None], partition: Hashable) -> None:
        first = self.fed.get(partition, 0)
        for letter in progress.dead_letters:
            assert letter.value == oracle.records(values[letter.message])[letter.line], "bytes untouched"
            reason, name = letter.rejection.reason, letter.rejection.field
            self.letters.append((partition, first + letter.message, letter.line, reason, name, letter.value))

    def take_changes(self) -> Rows:
        changed = rows_of(self.engine.changes())
        self.open.update(changed)
        return changed

    def close_part(self) -> None:
        self.take_changes()
        add_rows(self.closed, self.open)
        self.open.clear()
        self.engine.open_part()
        self.parts += 1

    def rows(self) -> Rows:
        """Sums over parts."""
        self.take_changes()
        total = {key: list(counters) for key, counters in self.closed.items()}
        add_rows(total, self.open)
        return total


def meter(engine: Engine, mapping: Mapping, pieces: Iterable[Piece]) -> Run:
    """Two of three pieces are loaded while the one before is yet to be counted."""
    run, pieces = Run(engine, mapping), list(pieces)
    for number, (piece, following) in enumerate(zip_longest(pieces, pieces[1:])):
        ahead = following if number % 3 else None
        run.feed(piece.values, piece.times, piece.partition, piece.mapping, ahead)
    return run


def expected(mapping: Mapping, pieces: Iterable[Piece], **settings: Any) -> oracle.Meter:
    """What the oracle makes of it. With message times, identities expire as in an engine of the same settings."""
    pieces = list(pieces)
    if any(piece.times is not None for piece in pieces):
        settings = {"dedup_horizon_ms": DEDUP_HORIZON_MS, **settings}
    wanted = oracle.Meter(**settings)
    for piece in pieces:
        times = piece.times if piece.times is not None else [None] * len(piece.values)
        for value, time in zip(piece.values, times, strict=True):
            wanted.feed((piece.mapping or mapping).oracle, value, time, piece.partition)
    return wanted


def tally_of(wanted: oracle.Meter) -> Tally:
    return Tally(wanted.counted, wanted.duplicates, wanted.rejected, wanted.empty, wanted.skipped, wanted.conflicts)


def assert_same(run: Run, wanted: oracle.Meter) -> None:
    """Verdicts, dead letters and every row."""
    assert run.letters == wanted.dead_letters
    assert run.engine.tally() == tally_of(wanted)
    assert run.rows() == wanted_rows(wanted)


def check(engine: Engine, mapping: Mapping, pieces: Iterable[Piece], **settings: Any) -> Run:
    """Feed both, compare, and hand back the engine's run."""
    pieces = list(pieces)
    run = meter(engine, mapping, pieces)
    assert_same(run, expected(mapping, pieces, **settings))
    return run


def cut(items: Sequence[Any], cuts: Iterable[int]) -> list[Sequence[Any]]:
    """The items in runs that end at the cuts."""
    ends = [*sorted({at for at in cuts if 0 < at < len(items)}), len(items)]
    return [items[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def batches(values: Sequence[bytes | None], batch_bytes: int = LIMITS["batch_bytes"]) -> list[list[bytes | None]]:
    """The values in as few batches as hold them."""
    found: list[list[bytes | None]] = []
    room = 0
    for value in values:
        size = len(value or b"") + 1
        if size > room:
            found.append([])
            room = batch_bytes
        found[-1].append(value)
        room -= size
    return found


def cut_pieces(values: list[bytes], times: list[int], cuts: list[int]) -> list[Piece]:
    return [Piece(part, at) for part, at in zip(cut(values, cuts), cut(times, cuts), strict=True)]


def check_restart(
    make_engine: Callable[..., Engine], mapping: Mapping, values: list[bytes], times: list[int], where: int
) -> None:
    """An engine that goes on from another's state, and remembers what that state tells of, counts as one engine."""
    where = min(where, len(values))
    first, second = make_engine(tile_records=3), make_engine(tile_records=3, secret_seed=2)
    before = meter(first, mapping, [Piece(values[:where], times[:where])] if where else [])
    state = first.partition_state(0)
    known = where if state.dedup_from is None else state.dedup_from
    if known < where:
        second.remember(second.load(second.pack(values[known:where], times[known:where]), mapping.engine))
    second.resume(0, state)
    after = meter(second, mapping, [Piece(values[where:], times[where:])] if where < len(values) else [])
    wanted = expected(mapping, [Piece(values, times)])
    rows = before.rows()
    add_rows(rows, after.rows())
    assert rows == wanted_rows(wanted)
    tallies = [vars(engine.tally()) for engine in (first, second)]
    assert {name: sum(tally[name] for tally in tallies) for name in tallies[0]} == vars(tally_of(wanted))
