"""Meters of topics whose values are no plain lines, on the memory broker: keys, headers, schemas of a registry, large
messages. `verify` audits each stream by itself, and finds it clean.
"""

import gzip
import io
import json
import logging
import struct
from collections.abc import Callable, Sequence
from typing import Any

import fastavro
import orjson
import pytest

from tests import harness, streams
from tests.intake.harness import AVRO
from tests.registry_server import SmallRegistry
from tokenometer.kernels.target import HostTarget
from tokenometer.processor import verify
from tokenometer.processor.broker import BrokerError, Headers, Place, Refused
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.broker.registry import Registry
from tokenometer.processor.meter.meter import Clock, Meter, MeterSettings
from tokenometer.schemas import mapping as mappings

START_MS = 1_795_000_000_000
NATIVE = (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2")
REGISTERED = NATIVE + '\n[value]\nencoding = "avro"\nregistry = true\n'
INPUT = streams.INPUT


def record(number: int, **more: Any) -> dict[str, Any]:
    texts = {"request_id": f"r-{number}", "user": f"u-{number % 3}", "model": "m", "chip": "H100"}
    return texts | {"timestamp": START_MS, "input_tokens": 100 + number, "output_tokens": 10} | more


class Stream:
    """Topics, a meter that is driven step by step, and its audit."""

    def __init__(self, mapping: str, partitions: int = 1, registry: SmallRegistry | None = None, **more: Any) -> None:
        self.broker = MemoryBroker(patience_seconds=0)
        streams.make_topics(self.broker, partitions)
        self.inputs = {INPUT: mappings.parse(mapping, "test.toml"), **more.pop("inputs", {})}
        for topic in self.inputs.keys() - {INPUT}:
            self.broker.create_topic(topic, 1, {})
        self.url = registry.url if registry else None
        self.now_ms = START_MS
        self.engine = more.pop("engine", {})
        self.more = more
        self.meter = self.open()

    def open(self) -> Meter:
        registry = Registry({"url": self.url}) if self.url else None
        settings = MeterSettings("meter-0", streams.GROUP, self.inputs, registry=registry, **self.more)
        clock = Clock(lambda: self.now_ms, lambda: self.now_ms, lambda seconds: None)
        engine = harness.make_engine(HostTarget(), dedup_horizon_ms=streams.HORIZON_MS, **harness.LARGE | self.engine)
        threads: Callable[[Any], Any] = lambda begin: streams.Inline()  # noqa: E731
        meter = Meter(self.broker, engine, settings, f"run.{id(engine)}", clock=clock, threads=threads)
        meter.open()
        return meter

    def put(self, values: Sequence[bytes], keys: Sequence[bytes] | None = None, headers: Any = None) -> None:
        producer = self.broker.producer("producer")
        producer.begin()
        producer.produce(INPUT, values, keys, headers)
        producer.commit()
        producer.close()

    def steps(self, count: int = 20) -> None:
        for _ in range(count):
            self.now_ms += 100
            self.meter.step()

    def committed(self) -> int:
        return sum(position.offset for position in self.broker.committed(streams.GROUP, [INPUT]).values() if position)

    def audit(self, **settings: Any) -> verify.Report:
        self.steps()
        self.meter._commit_now()
        registry = (("url", self.url),) if self.url else None
        wanted = verify.VerifySettings(
            streams.USAGE, streams.LIVE, streams.REJECTED, dedup_horizon_ms=streams.HORIZON_MS, processes=1,
            settle_seconds=0, registry=registry, **settings,
        )  # fmt: skip
        report = verify.verify(self.broker, streams.GROUP, self.inputs, wanted)
        assert report.clean, (report.problems, report.differences, report.letter_differences)
        return report

    def requests(self) -> dict[str, int]:
        """By user."""
        found: dict[str, int] = {}
        for row, counters in streams.outcome(self.broker).rows.items():
            found[row[1]] = found.get(row[1], 0) + counters[0]
        return found

    def letters(self) -> list[tuple[dict[str, str], bytes]]:
        found = streams.read_topic(self.broker, streams.REJECTED, headers=True)
        return [({name: text.decode() for name, text in headers}, value) for _, value, headers in found]


# --- Keys and headers ---


def without(name: str, **members: Any) -> bytes:
    return orjson.dumps({key: value for key, value in record(1, **members).items() if key != name})


def test_a_message_s_key_is_a_field() -> None:
    stream = Stream(NATIVE.replace('path = "user"', "key = true"))
    values = [without("user", request_id=f"r-{number}") for number in range(3)]
    stream.put([*values, without("user", request_id="n")], [b"alice", b"bob", b"alice", b"\xff"])
    report = stream.audit()
    assert stream.requests() == {"alice": 2, "bob": 1}
    assert report.rejects == {"bad_key": 1}


def test_a_header_is_a_field_and_the_last_of_its_name_counts() -> None:
    stream = Stream(NATIVE.replace('path = "user"', 'header = "ce_subject"\naliases = ["user"]'))
    headers: list[Headers] = [
        [("ce_subject", b"alice")],
        [("ce_subject", b"bob"), ("other", b"x"), ("ce_subject", b"carol")],
        [("ce_subject", None)],
        [],
        [("ce_subject", b"\xff")],
    ]
    stream.put([orjson.dumps(record(number, user="in the value")) for number in range(5)], headers=headers)
    report = stream.audit()
    assert stream.requests() == {"alice": 1, "carol": 1, "in the value": 2}
    assert report.rejects == {"bad_header": 1}


def test_cloudevents_in_binary_mode_are_metered() -> None:
    text = (harness.MAPPINGS / "cloudevents.toml").read_text()
    stream = Stream(text)
    data = {key: value for key, value in record(1).items() if key not in ("request_id", "timestamp", "user")}
    event = [("ce_specversion", b"1.0"), ("ce_source", b"gw"), ("ce_subject", b"customer-1")]
    time = ("ce_time", b"2026-11-18T10:00:00Z")
    headers: list[Headers] = [[*event, ("ce_id", b"e1"), time], [*event, ("ce_id", b"e1"), time], [*event, time]]
    structured = {"specversion": "1.0", "id": "e2", "source": "gw", "subject": "customer-2", "data": data}
    stream.put([orjson.dumps(data)] * 3 + [orjson.dumps(structured)], headers=[*headers, []])
    report = stream.audit()
    assert (report.tally.counted, report.tally.duplicates) == (3, 1)  # one has no id, and so no duplicate
    assert stream.requests().keys() == {"customer-1", "customer-2"}


def test_a_topic_without_such_fields_is_read_without_keys_and_headers() -> None:
    stream = Stream(NATIVE, inputs={"keyed": mappings.parse(NATIVE.replace('path = "user"', "key = true"), "k.toml")})
    assert (stream.meter._receiving.keys, stream.meter._receiving.headers) == (["keyed"], [])


# --- A Schema Registry ---

SCHEMA = {"schema": AVRO.decode(), "schemaType": "AVRO"}


def datum(number: int) -> bytes:
    names = [field["name"] for field in json.loads(AVRO)["fields"]]
    full = {"prefill_chip": None, "cached_input_tokens": 0, "cache_write_tokens": 0, "reasoning_tokens": 0}
    whole = full | record(number)
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(json.loads(AVRO)), {name: whole[name] for name in names})
    return stream.getvalue()


def framed(schema_id: int, number: int) -> bytes:
    return b"\0" + struct.pack(">I", schema_id) + datum(number)


def test_schemas_come_from_a_registry_once() -> None:
    with SmallRegistry() as registry:
        known = registry.add("inference-logs-value", SCHEMA)
        guid = bytes.fromhex(registry.guid(known).replace("-", ""))
        stream = Stream(REGISTERED, registry=registry)
        named: list[Headers] = [[("__value_schema_id", b"\x01" + guid)]]
        for first in range(0, 30, 10):
            stream.put([framed(known, number) for number in range(first, first + 10)])
            stream.put([datum(100 + first)], headers=named)
            stream.steps()
        assert registry.asked == [f"/schemas/ids/{known}"], "its answer has the GUID as well"
        assert stream.audit().tally.counted == 33


def test_an_id_that_the_registry_does_not_know_is_a_dead_letter() -> None:
    with SmallRegistry() as registry:
        known = registry.add("s", SCHEMA)
        stream = Stream(REGISTERED, registry=registry)
        stream.put([framed(known, 0), framed(77, 1), framed(known, 2), b"", b"{}", framed(77, 3)])
        report = stream.audit()
        assert (report.tally.counted, report.rejects) == (2, {"unknown_schema": 4})
        assert [value for _, value in stream.letters()] == [framed(77, 1), b"", b"{}", framed(77, 3)]


@pytest.mark.parametrize("answer", [500, 503, 404, 429, 200])  # 404 of something that is no registry; 200 without JSON
def test_a_registry_that_fails_is_waited_for_and_nothing_is_lost(answer: int, caplog: Any) -> None:
    with SmallRegistry() as registry:
        known = registry.add("s", SCHEMA)
        plain = mappings.parse(NATIVE, "plain.toml")
        stream = Stream(REGISTERED, registry=registry, inputs={"plain": plain})
        registry.answer = answer
        with caplog.at_level(logging.WARNING, "tokenometer.meter"):
            stream.put([framed(known, number) for number in range(5)])
            stream.steps(10)
            stream.put([framed(known, number) for number in range(5, 9)])
            stream.broker.append("plain", [orjson.dumps(record(number)) for number in range(100, 103)])
            stream.steps(60)
        trouble = stream.meter.standing().trouble
        assert trouble is not None and registry.url in trouble
        assert [registry.url in line.getMessage() for line in caplog.records] == [True], "it is said once"
        assert stream.committed() == 0
        other = stream.broker.committed(streams.GROUP, ["plain"])[Place("plain", 0)]
        assert other is not None and other.offset == 3, "the other topic goes on"
        registry.answer = None
        stream.steps(80)
        assert stream.meter.standing().trouble is None and stream.committed() > 0
        assert stream.audit().tally.counted == 12


def test_a_registry_that_is_away_from_the_start_is_waited_for() -> None:
    with SmallRegistry() as registry:
        known = registry.add("s", SCHEMA)
        stream = Stream(REGISTERED, registry=registry)
        url, stream.url = stream.url, "http://127.0.0.1:9"
        stream.meter.close()
        stream.meter = stream.open()
        stream.put([framed(known, number) for number in range(5)])
        stream.steps(30)
        assert "127.0.0.1:9" in (stream.meter.standing().trouble or "") and stream.committed() == 0
        stream.meter.close()  # as SIGTERM ends it: nothing is committed of what waits
        assert stream.committed() == 0
        stream.url = url
        stream.meter = stream.open()
        assert stream.audit().tally.counted == 5


def test_what_waits_is_dropped_and_read_again_where_everything_is() -> None:
    """A recovery while the registry is away: after it each message comes once."""
    with SmallRegistry() as registry:
        known = registry.add("s", SCHEMA)
        stream = Stream(REGISTERED, registry=registry)
        registry.answer = 500
        stream.put([framed(known, number) for number in range(9)])
        stream.steps(5)
        stream.meter._recover(BrokerError("a test"))
        stream.steps(10)
        registry.answer = None
        stream.steps(80)
        assert stream.audit().tally.counted == 9


def test_partitions_that_go_while_they_wait_are_read_by_another_meter() -> None:
    with SmallRegistry() as registry:
        known = registry.add("s", SCHEMA)
        stream = Stream(REGISTERED, partitions=2, registry=registry)
        registry.answer = 500
        stream.put([framed(known, number) for number in range(8)])
        stream.steps(10)
        stream.meter.close()
        registry.answer = None
        stream.meter = stream.open()
        assert stream.audit().tally.counted == 8


def test_a_registry_that_refuses_the_credentials_stops_the_meter() -> None:
    with SmallRegistry(user_info="meter:secret-1") as registry:
        known = registry.add("s", SCHEMA)
        stream = Stream(REGISTERED, registry=registry)
        stream.put([framed(known, 0)])
        with pytest.raises(Refused, match="refuses.*basic.auth.user.info"):
            stream.steps()


# --- Dead letters of messages with many bad records ---


def bad(count: int, size: int) -> list[bytes]:
    return [orjson.dumps(record(number, input_tokens="many", pad="x" * size)) for number in range(count)]


@pytest.mark.parametrize(("count", "copies"), [(7, 7), (15, 1)])
def test_a_message_is_copied_into_its_dead_letters_up_to_1_MiB(count: int, copies: int) -> None:
    """15 records of 5 kB: 1.1 MB of copies. The first reject's letter has the message, the others its size and hash."""
    stream = Stream(NATIVE)
    twice = [orjson.dumps(record(0, chip=chip)) for chip in ("H100", "A100")]  # a conflicting duplicate
    value = b"[" + b",".join([*twice, *bad(count, 5000)]) + b"]"
    stream.put([value, value])
    assert stream.audit().tally.rejected == 2 * count
    letters = [(value, headers.get("size")) for headers, value in stream.letters() if headers["reason"] == "wrong_type"]
    assert letters == 2 * ([(value, None)] * copies + [(b"", str(len(value)))] * (count - copies))
    conflicts = [value for headers, value in stream.letters() if headers["reason"] == "conflicting_duplicate"]
    assert conflicts == [value if copies == count else b""] * 2


@pytest.mark.slow
def test_many_bad_records_of_a_large_message_are_small_dead_letters() -> None:
    """20,000 of them in 2 MB: whole copies would be 40 GB. The message goes in pieces, and into several parts."""
    stream = Stream(NATIVE, engine={"batch_bytes": 1 << 16})
    lines = bad(20_000, 0)
    value = b"[" + b",".join(lines) + b"]"
    stream.put([gzip.compress(value, 1), b"[" + b",".join(lines[:2000]) + b"]"])
    assert stream.audit().tally.rejected == 22_000
    letters = stream.letters()
    assert sum(len(value) for _, value in letters) < 1 << 20
    assert [len(value) > 0 for _, value in letters] == [True, *[False] * 19_999, True, *[False] * 1999]


def test_a_message_s_bytes_are_in_a_dead_letter_again_after_a_recovery() -> None:
    stream = Stream(NATIVE)
    stream.put([b"[" + b",".join(bad(30, 5000)) + b"]"])
    stream.meter.step()
    stream.meter._feed(everything=True)
    stream.meter._recover(BrokerError("a test"))
    assert stream.audit().tally.rejected == 30
    assert [len(value) > 0 for _, value in stream.letters()] == [True, *[False] * 29]


# --- Messages that are larger than a batch ---


def test_an_opened_message_that_is_larger_than_a_batch_is_counted_in_pieces() -> None:
    """What a message gives depends on nothing but the message: not on --batch-bytes."""
    stream = Stream(NATIVE, engine={"batch_bytes": 1 << 14})
    lines = [orjson.dumps(record(number, pad="x" * 100)) for number in range(1000)]
    stream.put([gzip.compress(b"\n".join(lines)), b"[" + b",".join(lines[:500]) + b"]"])
    assert sum(map(len, lines)) > 10 << 14
    report = stream.audit()
    assert (report.tally.counted, report.tally.duplicates, report.tally.rejected) == (1000, 500, 0)
