"""What the ledger's tests share: usage rows as messages, a ledger on a broker, and the truth in plain dictionaries."""

import contextlib
import datetime
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import orjson

from tests import harness, streams
from tokenometer.processor.broker import Broker
from tokenometer.processor.ledger import labelsets
from tokenometer.processor.ledger.database import COUNTS
from tokenometer.processor.ledger.intake import IntakeSettings, Ledger
from tokenometer.processor.ledger.opening import open_database
from tokenometer.processor.ledger.store import Store
from tokenometer.schemas.usage import COUNTERS

WINDOW_MS = 60_000
START_MS = 1_795_392_000_000  # 2026-11-23T00:00:00Z
Identity = tuple[int, str, str, str, str]  # window, user, model, chip, part


def instant(ms: int) -> str:
    return f"{datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"


def usage_row(identity: Identity, counters: Sequence[int], **changes: Any) -> bytes:
    window, user, model, chip, part = identity
    return orjson.dumps(
        {
            "window_start": instant(window),
            "user": user,
            "model": model,
            "chip": chip,
            "part": part,
            "window_ms": WINDOW_MS,
            **dict(zip(COUNTERS, counters, strict=True)),
            "total_tokens": counters[1] + counters[4],
            "schema": 1,
            **changes,
        }
    )


def live_summary(
    meter: str, part: str, sequence: int, tokens: Sequence[int], watermarks: Sequence[int | None] = (), **changes: Any
) -> bytes:
    """What the ledger reads of one."""
    partitions = [
        {"topic": streams.INPUT, "partition": number, "from": 0, "next": 0, "watermark": mark, "log_time": mark}
        for number, mark in enumerate(watermarks)
    ]
    summary = {"schema": 1, "meter": meter, "part": part, "sequence": sequence, "window_ms": WINDOW_MS}
    return orjson.dumps(
        summary | {"tokens": dict(zip(COUNTERS, tokens, strict=True)), "partitions": partitions} | changes
    )


def counters(draw: random.Random, most: int = 1000) -> list[int]:
    given, out = draw.randrange(most), draw.randrange(most)
    cached = draw.randint(0, given)
    return [draw.randrange(10), given, cached, draw.randint(0, given - cached), out, draw.randint(0, out)]


def add(a: Sequence[int], b: Sequence[int]) -> list[int]:
    return [x + y for x, y in zip(a, b, strict=True)]


def history(seed: int, count: int, parts: int = 3) -> list[tuple[Identity, list[int]]]:
    """Rows in the order of their commits: counters of an identity grow from row to row."""
    draw, held = random.Random(seed), dict[Identity, list[int]]()
    rows = []
    for number in range(count):
        identity = (
            START_MS + WINDOW_MS * draw.randrange(5), f"user-{draw.randrange(5)}", f"model-{draw.randrange(2)}",
            f"chip-{draw.randrange(2)}", f"meter.{number * parts // count}",
        )  # fmt: skip
        held[identity] = add(held.get(identity, [0] * 6), counters(draw))
        rows.append((identity, held[identity]))
    return rows


def truth(rows: Iterable[tuple[Identity, Sequence[int]]]) -> harness.Rows:
    """Sums over parts of each identity's highest counters."""
    latest: dict[Identity, list[int]] = {}
    for identity, given in rows:
        latest[identity] = [max(a, b) for a, b in zip(latest.get(identity, [0] * 6), given, strict=True)]
    total: harness.Rows = {}
    for identity, given in latest.items():
        harness.add_rows(total, {identity[:4]: given})
    return total


@contextlib.contextmanager
def opened(database: str) -> Iterator[Store]:
    store = Store(open_database(database, writer=True))
    try:
        yield store
    finally:
        store.close()


def make_ledger(broker: Broker, store: Store, **settings: Any) -> Ledger:
    ledger = Ledger(broker, store, IntakeSettings(streams.USAGE, streams.LIVE, **{"linger_ms": 0, **settings}))
    ledger.open()
    return ledger


def drain(ledger: Ledger) -> int:
    """Until nothing comes any more, twice: a horizon is reached one step behind."""
    taken = quiet = 0
    while quiet < 3:
        count = ledger.step(0.0)
        taken += count
        quiet = 0 if count else quiet + 1
    return taken


def totals(store: Store) -> harness.Rows:
    """Everything in the ledger, as the oracle's rows: by window, user, model, chip and, where it has some, labels;
    further counters after the six, where they are not 0."""
    rows = store.database.rows(
        f"SELECT window_start, u.name, m.name, c.name, labels_id, {', '.join(f'sum({name})' for name in COUNTS)} "
        "FROM usage JOIN names u ON u.id = user_id JOIN names m ON m.id = model_id JOIN names c ON c.id = chip_id "
        "GROUP BY window_start, u.name, m.name, c.name, labels_id"
    )
    sets, found = labelsets.sets(store.database, [int(row[4]) for row in rows]), {}
    for window, user, model, chip, set_id, *values in rows:
        labels = (tuple(sets[int(set_id)].items()),) if sets[int(set_id)] else ()
        counts = [int(value) for value in values]
        key = (int(window), *(bytes(name).decode() for name in (user, model, chip)), *labels)
        found[key] = counts if any(counts[len(COUNTERS) :]) else counts[: len(COUNTERS)]
    return found


def contents(store: Store) -> dict[str, list[Any]]:
    """Every table but the offsets, to see whether anything has changed."""
    tables = ("watermarks", "names", "parts", "open_rows", "merged_rows", "statements", "statement_lines", "late")
    return {table: sorted(map(repr, store.database.rows(f"SELECT * FROM {table}"))) for table in tables}
