"""Makes the files of this folder: a ledger of the version that runs, on DuckDB and PostgreSQL, and its answers.

    python -m tests.ledgers.make NAME        NAME.duckdb.gz, NAME.sql (of pg_dump) and NAME.json

It is run once for each version of the tables that is released, by the code of that version, and its files are never
made again: they are what a migration has to take over.
"""

import gzip
import json
import pathlib
import subprocess
import sys
import tempfile
from concurrent.futures import Future
from typing import Any

from tests import books, streams
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.ledger import adjust, periods, pricefile, statements, usage
from tokenometer.processor.ledger.api import Api, ServeSettings, page_json
from tokenometer.processor.ledger.intake import IntakeProgress
from tokenometer.processor.ledger.store import Store

FOLDER = pathlib.Path(__file__).parent
DAY_MS = 86_400_000
USERS = ("alice", "bob", "\u0000", "'; --", "é")
PRICES = """
currency = "USD"
[[price]]
model = "llama"
input = "0.15"
cached_input = "0.075"
output = "0.6"
[[chip_cost]]
chip = "H100"
per_million_tokens = "0.02"
"""


LABELLED = (
    PRICES
    + """
[[price]]
model = "llama"
labels = { tier = "batch" }
input = "0.1"
output = "0.3"
audio_input = "9"
"""
)


def fill(store: Store) -> None:
    """Rows of every state: merged, disputed and open parts, two statements, late usage reported and waiting."""
    broker = MemoryBroker()
    streams.make_topics(broker)
    ledger = books.make_ledger(broker, store)
    _commit(broker, 1, 0, [1, 100, 40, 20, 30, 10])
    _commit(broker, 2, DAY_MS, [2, 2**60 + 1, 0, 0, 7, 7])
    _commit(broker, 3, DAY_MS, [3, 10, 0, 0, 3, 0], said=[0] * 6)  # disputed
    books.drain(ledger)
    periods.close(store.database, books.START_MS + DAY_MS, 0, books.START_MS, anyway=True)
    _commit(broker, 4, 0, [4, 8, 0, 0, 8, 0])  # late, and reported by the second statement
    books.drain(ledger)
    periods.close(store.database, books.START_MS + 2 * DAY_MS, 0, books.START_MS, anyway=True)
    _commit(broker, 5, DAY_MS, [5, 16, 4, 4, 8, 8])  # late, and waits for the next one
    books.drain(ledger)


def fill_money(store: Store) -> None:
    """And what version 2 has: labels, further counters, a priced statement of everybody and one of a customer, late
    usage with an amount, and corrections of each kind."""
    from tests.test_ledger import labelled, take

    lists, day = pricefile.parse(LABELLED, "prices.toml"), books.START_MS + 2 * DAY_MS
    closing = {"anyway": True, "prices": lists, "allow_unpriced": True}
    rows = [
        ((day, "alice", "llama", "H100", "l.1"), {"team": "blue", "tier": "batch"}, 0),
        ((day, "bob", "llama", "H100", "l.1"), {"team": "{}"}, 3),
        ((day, "bob", "gemma", "H100", "l.1"), {}, 0),
    ]
    for counts in ([1, 100, 40, 20, 30, 10], [2, 150, 40, 20, 30, 10]):
        further = [{"audio_input_tokens": audio} if audio else {} for _, _, audio in rows]
        take(store, [labelled(row[1], counts, row[0], **more) for row, more in zip(rows, further, strict=True)])
        end = day + DAY_MS * counts[0]
        blue = periods.Customer("team", "blue")
        periods.close(store.database, end, 0, 7, terms=periods.Terms(blue, "Europe/Berlin", **closing))
        periods.close(store.database, end, 0, 7, terms=periods.Terms(**closing))
        adjust.adjust(store.database, {"key": f"c{counts[0]}", "reason": "r", "user": "bob", "amount": "-0.5"}, 8)
    adjust.adjust(store.database, {"key": "v", "reason": "r", "void": "c1"}, 8)


def money(store: Store) -> dict[str, Any]:
    """What a ledger answers about it."""
    ids = [str(each.id) for each in periods.statements(store.database)]
    pages = {kind: [] for kind in statements.KINDS}  # type: dict[str, list[Any]]
    for kind, held in pages.items():
        for id in (*ids, *(["next"] if kind != "lines" else [])):
            held.append(page_json(store.database, id, kind, 100, None))
    days = {"from": "2026-11-22", "to": "2026-11-28", "group_by": "team,tier", "priced": "true"}
    with store.database.snapshot() as moment:
        found = usage.as_json(usage.answer(moment, usage.parse(days), pricefile.parse(LABELLED, "prices.toml")))
    shown = [_as_told(statements.statement_json(store.database, each)) for each in periods.statements(store.database)]
    return {"pages": pages, "usage": found, "statements": shown}


def _as_told(statement: dict[str, Any]) -> dict[str, Any]:
    """Without what only later programs say."""
    return {name: value for name, value in statement.items() if name != "subtotals"}


def _commit(broker: MemoryBroker, part: int, day: int, counts: list[int], said: list[int] | None = None) -> None:
    """A part of one commit, and what its summary says of it."""
    identities = [(books.START_MS + day, user, "llama", "H100", f"meter.{part}") for user in USERS]
    identities.append((books.START_MS + day, "alice", "gemma", "B200", f"meter.{part}"))
    total = [count * len(identities) for count in counts]
    summary = books.live_summary("meter", f"meter.{part}", 0, said or total, [books.START_MS + part * DAY_MS])
    producer = broker.producer("meter")
    producer.begin()
    rows = [books.usage_row(identity, counts) for identity in identities]
    producer.produce(streams.USAGE, rows, [repr(identity).encode() for identity in identities])
    producer.produce(streams.LIVE, [summary], [b"meter"])
    producer.commit()
    producer.close()


def answers(store: Store) -> dict[str, Any]:
    """What a ledger answers to every question that it knows."""
    lists = pricefile.parse(PRICES, "prices.toml")

    def nothing(job: Any) -> "Future[Any]":
        raise AssertionError("nothing is changed by a question")

    api = Api(store.database, ServeSettings(prices=lists), nothing, IntakeProgress, lambda: 0)
    days = {"from": "2026-11-22", "to": "2026-11-28", "window": "day"}
    ids = [str(each.id) for each in periods.statements(store.database)]
    return {
        "usage": api.usage({**days, "group_by": "user,model,chip"}),
        "priced": api.usage({**days, "group_by": "model", "priced": "true"}),
        "of one": api.usage({**days, "user": "\u0000"}),
        "status": api.status(),
        "statements": {"statements": [_as_told(each) for each in api.statements()["statements"]]},
        "lines": [api.page(each, "lines", {}) for each in ids],
        "adjustments": [api.page(each, "adjustments", {}) for each in (*ids, "next")],
        "differences": [list(map(str, each)) for each in statements.reconcile(store.database)],
        "positions": sorted([*place, stand.topic_id, stand.next] for place, stand in store.positions.items()),
        "parts": sorted(map(list, store.database.rows("SELECT name, state, sequence FROM parts"))),
    }


def main(name: str) -> None:
    from tests.postgres_server import PostgresServer

    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "ledger.duckdb"
        with books.opened(str(file)) as store:
            fill(store)
            fill_money(store)
            told = {**answers(store), "money": money(store)}
        (FOLDER / f"{name}.duckdb.gz").write_bytes(gzip.compress(file.read_bytes(), 9, mtime=0))
    server = PostgresServer()
    try:
        with server.database() as url:
            with books.opened(url) as store:
                fill(store)
                fill_money(store)
                positions = told["positions"]  # topics of another broker have other ids
                again = {**answers(store), "money": money(store)}
                assert {**again, "positions": positions} == told
            # Not COPY, which only psql can read from a file.
            dump = ["pg_dump", "--no-owner", "--inserts", "--rows-per-insert=100", url]
            text = subprocess.run(dump, check=True, capture_output=True, text=True).stdout
            lines = [line for line in text.splitlines() if line and not line.startswith(("--", "\\", "SET "))]
            (FOLDER / f"{name}.sql").write_text("\n".join(lines) + "\n")
    finally:
        server.close()
    shown = json.dumps(told, indent=1, ensure_ascii=True, sort_keys=True)
    (FOLDER / f"{name}.json").write_text(shown + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
