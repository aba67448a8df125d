"""What the lake's tests share: usage rows and summaries in topics, writers, and what a table holds."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import orjson

from tests import books, harness, streams
from tokenometer.processor.broker import Broker, BrokerError
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.lake.table import LakeTable, embedded
from tokenometer.processor.lake.writer import LakeWriter, WriterSettings
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

PARTITIONS = 3
TABLE = "tokens.usage"
KEY = ("window_start", "user", "model", "chip", "labels", "part")


def make_broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic(streams.USAGE, PARTITIONS, {})
    broker.create_topic(streams.LIVE, 2, {})
    broker.create_topic(streams.INPUT, 1, {})
    return broker


def key_of(value: bytes) -> bytes:
    """As a meter writes it: the beginning of the value, where labels are not at its end."""
    row = orjson.loads(value)
    return orjson.dumps({name: row[name] for name in KEY if name in row})


class Stream:
    """What meters have published; each call is a commit of theirs."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.rows: list[tuple[books.Identity, Sequence[int]]] = []  # of all parts
        self._sums: dict[str, dict[books.Identity, Sequence[int]]] = {}
        self._sequences: dict[str, int] = {}

    def publish(self, meter: str, part: str, rows: Sequence[tuple[Any, Sequence[int]]], **changes: Any) -> None:
        """Rows of a part, absolute, and the summary that vouches for them. changes: of the rows."""
        values = [books.usage_row(identity, counters, **changes) for identity, counters in rows]
        if values:
            self.broker.append(streams.USAGE, values, list(map(key_of, values)))
        self.rows += rows
        held = self._sums.setdefault(part, {})
        held.update({identity: counters for identity, counters in rows})
        self.summary(meter, part, [sum(column) for column in zip(*held.values(), strict=True)] or [0] * 6)

    def summary(self, meter: str, part: str, tokens: Sequence[int]) -> None:
        sequence = self._sequences[part] = self._sequences.get(part, 0) + 1
        self.broker.append(streams.LIVE, [books.live_summary(meter, part, sequence, tokens, [0])], [meter.encode()])
        self.broker.flush()

    def truth(self, parts: Sequence[str]) -> harness.Rows:
        return books.truth((identity, counters) for identity, counters in self.rows if identity[4] in parts)


def make_table(folder: pathlib.Path, name: str = TABLE) -> LakeTable:
    return LakeTable(embedded(str(folder)), name)


def make_writer(broker: Broker, folder: pathlib.Path, **settings: Any) -> LakeWriter:
    given = {"writers": None, "group": None, "commit_interval_ms": 0, **settings}
    return LakeWriter(broker, make_table(folder), WriterSettings(streams.USAGE, streams.LIVE, **given))


def write_once(broker: Broker, folder: pathlib.Path, **settings: Any) -> LakeWriter:
    with contextlib.closing(make_writer(broker, folder, **settings)) as writer:
        writer.run(lambda: False, once=True)
    return writer


def drop(writer: LakeWriter) -> None:
    """As a killed process: nothing of it is left but what it wrote."""
    with contextlib.suppress(BrokerError):
        writer.close()


def rows_of(table: LakeTable) -> list[dict[str, Any]]:
    """Every row; each identity is there once, or the test fails."""
    rows = table.load().scan().to_arrow().to_pylist()
    keys = [(*(row[name] for name in KEY if name != "labels"), tuple(row["labels"])) for row in rows]
    assert len(set(keys)) == len(keys), "an identity was appended twice"
    return rows


def sums_of(rows: Sequence[dict[str, Any]]) -> harness.Rows:
    """By window, user, model, chip, and labels where there are some: counters, and further ones where not all are 0."""
    found: harness.Rows = {}
    for row in rows:
        labels = (tuple(sorted(row["labels"])),) if row["labels"] else ()
        key = (round(row["window_start"].timestamp() * 1000), row["user"], row["model"], row["chip"], *labels)
        further = [row[name] for name in FURTHER]
        assert row[TOTAL] == row["input_tokens"] + row["output_tokens"]
        harness.add_rows(found, {key: [row[name] for name in COUNTERS] + (further if any(further) else [])})
    return found
