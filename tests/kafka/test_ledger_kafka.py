"""The whole way on a real Kafka: meters and the ledger as processes that are killed at random, a real database, and in
the end the oracle's totals for every window, user, model, chip and set of labels, further counters among them."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator

import orjson
import pytest
from confluent_kafka.admin import AdminClient

from tests import books, forked, harness, streams
from tests.kafka.meter_process import POINTS, Trip
from tests.kafka.stream import PATIENCE_SECONDS, SMALL, Stream, eventually, text_of
from tests.kafka_server import KafkaServer, free_ports
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.ledger import periods, statements
from tokenometer.processor.ledger.parts import DISPUTED, MERGED

pytestmark = pytest.mark.kafka

KILLS = 8
SEED_ENVIRONMENT = "TOKENOMETER_TEST_LEDGER_SEED"


LABELLED_TEXT = (
    (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2").replace('"native"', '"labelled"')
    + """
[fields.audio_input_tokens]
path = "audio"
[labels.team]
path = "team"
[labels.context]
bracket_of = "input_tokens"
edges = [1000, 4000]
"""
)
LABELLED = harness.Mapping.parse(LABELLED_TEXT, "labelled.toml")


def labelled(line: bytes) -> bytes:
    """With a team and tokens of audio, which are the same where the line comes again. Malformed ones stay malformed."""
    if not line.endswith(b"}"):
        return line
    number = zlib.crc32(line)
    team = b'"team":"team-%d",' % (number % 3) if number % 4 else b""
    return line[:-1] + b",%b" % team + b'"audio":%d}' % (number % 5 // 4)


class LedgerProcess:
    """`tokenometer ledger`, as an operator starts it."""

    def __init__(self, stream: Stream, database: str, *more: str) -> None:
        self.port = free_ports()[0]
        self._errors = tempfile.TemporaryFile()
        usage, live, _ = stream.outputs
        settings = {
            "bootstrap": stream.bootstrap, "database": database, "usage-topic": usage, "live-topic": live,
            "listen": f"127.0.0.1:{self.port}", "linger": "0.1", "log-format": "text",
        }  # fmt: skip
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        self.process = forked.Popen(
            [
                sys.executable,
                "-c",
                "from tokenometer.processor.cli.__main__ import main; main()",
                "ledger",
                *arguments,
                *more,
            ],
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )

    @property
    def errors(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode(errors="replace")

    def total(self) -> tuple[int, int] | None:
        """Requests and tokens, as it answers over HTTP; None: it does not answer yet."""
        from urllib.request import urlopen

        assert self.process.poll() is None, self.errors
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/v1/usage?from=2000-01-01&to=2100-01-01", timeout=20) as answer:
                rows = orjson.loads(answer.read())["rows"]
        except OSError:
            return None
        return (rows[0]["requests"], rows[0]["total_tokens"]) if rows else (0, 0)

    def end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(PATIENCE_SECONDS)
        self._errors.close()


@pytest.fixture
def stream(kafka: KafkaServer, admin: AdminClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    with contextlib.closing(Stream(kafka, monkeypatch, 3, True)) as stream:
        yield stream
    admin.delete_topics([stream.input, *stream.outputs])


def test_meters_and_the_ledger_are_killed_and_every_total_is_right(
    stream: Stream, database: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "labelled.toml").write_text(LABELLED_TEXT)
    stream.mapping, stream.log = str(tmp_path / "labelled.toml"), map(labelled, stream.log)
    seed = int(os.environ.get(SEED_ENVIRONMENT, random.randrange(1 << 32)))
    print(f"seed {seed}: set {SEED_ENVIRONMENT} to it to draw the same kills again")
    draw = random.Random(seed)
    ledger = LedgerProcess(stream, database)
    try:
        with stream.flowing():
            for _ in range(KILLS):
                trip = Trip(draw.choice(POINTS), draw.randint(1, 4), delay_ms=draw.uniform(0, 10))
                meter = stream.meter(trip=trip, engine=SMALL)
                time.sleep(draw.uniform(0.2, 3))
                if draw.random() < 0.8:
                    ledger.end(signal.SIGKILL)
                    ledger = LedgerProcess(stream, database)
                meter.wait_for_end(-signal.SIGKILL)
            stream.meter(engine=SMALL).wait_for_count()
        stream.settle()
        stream.stop()
        report = stream.verify()
        assert report.clean, f"seed {seed}: {text_of(report)}"
        oracle, _ = streams.expected(stream.broker, {stream.input: LABELLED})
        wanted = harness.wanted_rows(oracle)
        assert {len(row) for row in wanted.values()} == {6, 11} and {len(key) for key in wanted} == {5}
        sums = sum(row[0] for row in wanted.values()), sum(row[1] + row[4] for row in wanted.values())
        eventually(lambda: ledger.total() == sums, f"the ledger to say {sums}, seed {seed}", PATIENCE_SECONDS)
        ledger.end(signal.SIGTERM)
        assert ledger.process.returncode == 0
    finally:
        ledger.process.kill()
        ledger.process.wait()
    with books.opened(database) as store:
        assert books.totals(store) == wanted, f"seed {seed}"
        before = books.contents(store)["open_rows"]
        assert _read_all(stream, store) == 0, "it had read everything"
        states = [state for (state,) in store.database.rows("SELECT state FROM parts")]
        assert states.count(MERGED) >= len(states) - 1 and DISPUTED not in states, f"seed {seed}: {states}"
        assert books.totals(store) == wanted and len(books.contents(store)["open_rows"]) <= len(before)
        _replay(stream, store, wanted, seed)
        _close(store, wanted)


def _read_all(stream: Stream, store: books.Store) -> int:
    """All that is there, transaction markers included; how many rows came."""
    ledger, deadline = books.make_ledger(stream.broker, store), time.monotonic() + PATIENCE_SECONDS
    ledger.run(lambda: time.monotonic() > deadline, once=True)
    assert time.monotonic() < deadline
    return ledger.progress.rows


def _replay(stream: Stream, store: books.Store, wanted: object, seed: int) -> None:
    """From the beginning, into what is there."""
    before = books.contents(store)
    store.database.rows("UPDATE positions SET next = 0")
    again = books.Store(store.database)
    assert _read_all(stream, again) > 0
    assert books.contents(again) == before and books.totals(again) == wanted, f"seed {seed}"


def _close(store: books.Store, wanted: dict[object, list[int]]) -> None:
    """The statement of all of it is what the oracle says."""
    statement = periods.close(store.database, books.START_MS * 2, 0, 0, anyway=True)
    lines = statements.lines(store.database, statement.id, 100_000).lines
    assert [sum(line.counters[n] for line in lines) for n in range(6)] == [
        sum(row[n] for row in wanted.values()) for n in range(6)
    ]
    assert statements.reconcile(store.database) == []


def test_once_takes_in_what_is_there_and_ends(stream: Stream, database: str) -> None:
    stream.append(stream.lines(500))
    stream.meter()
    stream.settle()
    stream.stop()
    oracle, _ = streams.expected(stream.broker)
    for _ in range(2):
        ledger = LedgerProcess(stream, database, "--once")
        assert ledger.process.wait(PATIENCE_SECONDS) == 0, ledger.errors
        ledger.end(signal.SIGTERM)
    with books.opened(database) as store:
        assert books.totals(store) == {key: list(row) for key, row in oracle.rows.items()}
        assert store.database.rows("SELECT count(*) FROM watermarks WHERE complete IS NOT NULL")[0][0] > 0


def test_a_second_ledger_is_refused(stream: Stream, database: str) -> None:
    """And it says why; the first one goes on."""
    first = LedgerProcess(stream, database)
    try:
        eventually(lambda: first.total() is not None, "the first to serve", PATIENCE_SECONDS)
        second = LedgerProcess(stream, database)
        assert second.process.wait(PATIENCE_SECONDS) == cli.EXIT_FAILURE
        assert "has it open" in second.errors or "another ledger writes to it" in second.errors
        second.end(signal.SIGTERM)
        assert first.total() == (0, 0)
        first.end(signal.SIGTERM)
        assert first.process.returncode == 0
    finally:
        first.process.kill()
        first.process.wait()


def test_the_ledger_waits_for_a_broker_that_is_away(owned: KafkaServer, stream: Stream, database: str) -> None:
    ledger = LedgerProcess(stream, database)
    try:
        stream.append(stream.lines(300))
        stream.meter()
        stream.settle()
        stream.stop()
        eventually(lambda: (ledger.total() or (0, 0))[0] > 0, "usage", PATIENCE_SECONDS)
        owned.kill()
        time.sleep(2)
        owned.start()
        stream.broker = KafkaBroker(stream.bootstrap)
        stream.append(stream.lines(300))
        stream.meter("meter-1")
        stream.settle()
        stream.stop()
        oracle, _ = streams.expected(stream.broker)
        requests = sum(row[0] for row in oracle.rows.values())
        eventually(lambda: (ledger.total() or (0, 0))[0] == requests, "all usage", PATIENCE_SECONDS)
        ledger.end(signal.SIGTERM)
    finally:
        ledger.process.kill()
        ledger.process.wait()
