"""Meters as processes of their own on a real Kafka, while everything goes wrong that may; afterwards every token is
there once. What the model of Kafka can show, it shows faster and thousands of times: test_simulation.py.

Each test has topics and a group of its own. `Stream.audit` ends it: `tokenometer verify` finds the stream clean, and
the oracle finds the same rows, dead letters and duplicates.
"""

import os
import pathlib
import random
import signal
import sys
import time
import urllib.request
from collections.abc import Callable

import orjson
import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from tests import bad_input, forked, oracle, streams
from tests.kafka.meter_process import POINTS, REVOKED, MeterProcess, Trip
from tests.kafka.stream import CLIENT, HASTY, PATIENCE_SECONDS, SETTINGS, SMALL, Stream, eventually, key_of, text_of
from tests.kafka_server import KafkaServer, free_ports
from tokenometer.processor.broker.kafka import KafkaBroker

pytestmark = pytest.mark.kafka

# --- kill -9 ---


def test_a_meter_that_is_killed_at_each_point_of_a_commit(stream: Stream) -> None:
    with stream.flowing():
        for point in POINTS:
            meter = stream.meter(trip=Trip(point, commit=3))
            meter.wait_for_end(-signal.SIGKILL)
            assert any(event["read"] for event in meter.of("commit")), f"{point}: it was killed before it counted"
        stream.meter().wait_for_count()
    stream.settle()
    found = stream.audit()
    assert found.parts > len(POINTS) and found.tallies["duplicates"] > 0 and found.tallies["rejected"] > 0


def test_audits_from_checkpoint_to_checkpoint_say_what_one_of_everything_says(stream: Stream, tmp_path) -> None:
    """One meter goes on all the time, so its part is open at every checkpoint but the last; others are killed."""
    file, total = str(tmp_path / "audit"), 0
    steady = stream.meter("steady", kafka=HASTY)
    for turn in range(4):
        with stream.flowing(per_second=1500):
            other = stream.meter("other", kafka=HASTY, engine=SMALL)
            other.wait_for_count()
            other.kill()
            steady.wait_for_count(since=len(steady.events))
        stream.settle()
        report = stream.verify(since=file if turn else None, checkpoint=file)
        assert report.clean, text_of(report)
        total += report.tally.read
    stream.stop()
    last, whole = stream.verify(since=file, checkpoint=file), stream.verify()
    assert last.clean and whole.clean, text_of(last) + text_of(whole)
    assert (last.in_all.tally, last.in_all.tokens, last.in_all.letters) == (whole.tally, whole.found, whole.letters)
    assert last.tally.read == 0 and last.in_all.parts == whole.parts and total == whole.tally.read > 1000


def test_twenty_random_kills_in_one_stream(stream: Stream) -> None:
    draw = random.Random(20)
    killed: list[str] = []
    with stream.flowing():
        for _ in range(20):
            trip = Trip(draw.choice(POINTS), draw.randint(1, 4), delay_ms=draw.uniform(0, 10))
            anywhere = draw.random() < 0.4
            meter = stream.meter(trip=None if anywhere else trip, engine=SMALL)
            if anywhere:
                meter.wait_for("ready")
                time.sleep(draw.uniform(0, 1))
                meter.kill()
            else:
                meter.wait_for_end(-signal.SIGKILL)
            killed.append("anywhere" if anywhere else trip.point)
    stream.meter(engine=SMALL)
    stream.settle()
    assert stream.audit().parts >= 5, killed


# --- Several meters ---


@pytest.mark.parametrize("strategy", ["cooperative-sticky", "range"])
def test_meters_come_and_go_under_load(make_stream: Callable[..., Stream], strategy: str) -> None:
    stream = make_stream(partitions=6)
    client = {**HASTY, "partition.assignment.strategy": strategy}

    def shared(*meters: MeterProcess) -> None:
        def fairly() -> bool:
            held = [meter.held for meter in meters]
            return sum(map(len, held)) == 6 and all(len(places) == 6 // len(meters) for places in held)

        eventually(fairly, f"{len(meters)} meters to share", PATIENCE_SECONDS, meters)
        for meter in meters:
            meter.wait_for_count(since=len(meter.events))

    with stream.flowing():
        first, second = (stream.meter(name, kafka=client) for name in ("meter-0", "meter-1"))
        shared(first, second)
        third = stream.meter("meter-2", kafka=client, engine=SMALL)
        shared(first, second, third)
        second.stop()
        shared(first, third)  # when its session is over: a static member may come back
        third.kill()
        shared(first)
        fourth = stream.meter("meter-1", kafka=client)
        shared(first, fourth)
    stream.settle()
    assert stream.audit().parts >= 5


def test_a_partition_that_a_killed_meter_left_to_nobody_finds_an_owner(stream: Stream) -> None:
    """It gave the partition up and did not live to tell the group, which gives it the others when it starts again."""
    with stream.flowing():
        first = stream.meter(trip=Trip(REVOKED), watch_ms=2000)
        eventually(lambda: len(first.held) == 3, "all partitions", PATIENCE_SECONDS, [first])
        second = stream.meter("meter-1", watch_ms=2000)
        first.wait_for_end(-signal.SIGKILL)
        again = stream.meter(watch_ms=2000)
        eventually(lambda: len(again.held | second.held) == 3, "all to be shared", PATIENCE_SECONDS, [again, second])
        for meter in (again, second):
            meter.wait_for_count(since=len(meter.events))
    stream.settle()
    assert f"nobody in the group {stream.group} has {stream.input}-" in again.errors + second.errors
    stream.audit()


def test_a_zombie_commits_nothing(stream: Stream) -> None:
    """It slept, in the middle of a transaction, for longer than its session; another meter has its partitions."""
    with stream.flowing():
        zombie = stream.meter(trip=Trip("produced", commit=4, signal="SIGSTOP"), kafka=HASTY)
        zombie.wait_until_stopped()
        stopped_at = len(zombie.events)
        other = stream.meter("meter-1", kafka=HASTY)
        eventually(lambda: len(other.held) == 3, "the other meter to take over", PATIENCE_SECONDS, [other])
        other.wait_for_count(since=len(other.events))
        zombie.signal(signal.SIGCONT)
        zombie.wait_for("recovering", since=stopped_at)
        zombie.wait_for("assigned", since=stopped_at)
        zombie.wait_for_count(since=stopped_at)
    stream.settle()
    commits = zombie.of("commit")
    before, after = (set(event["part"] for event in commits if (event in zombie.events[:stopped_at]) == early)
                     for early in (True, False))  # fmt: skip
    assert before and after and not before & after, "the part that it slept in goes on after all"
    stream.audit()


@pytest.mark.parametrize("point", ["before produce", "offsets sent", "committed"])
def test_a_zombie_whose_name_was_taken_ends(stream: Stream, point: str) -> None:
    """Somebody started the meter again while the first one slept: the first one ends, the second one goes on."""
    client = {**CLIENT, "session.timeout.ms": "30000", "transaction.timeout.ms": "1500"}
    with stream.flowing():
        zombie = stream.meter(trip=Trip(point, commit=4, signal="SIGSTOP"), kafka=client)
        zombie.wait_until_stopped()
        other = stream.meter(kafka=client)
        other.wait_for_count()
        time.sleep(2)  # longer than its transaction may take: the broker has given it up
        zombie.signal(signal.SIGCONT)
        zombie.wait_for_end(1)
        assert "error: Fenced" in zombie.errors, zombie.errors
        other.wait_for_count(since=len(other.events))
    stream.settle()
    assert not other.ended
    stream.audit()


# --- Trouble with the broker ---


def test_a_broker_that_is_killed_under_load(owned: KafkaServer, stream: Stream) -> None:
    """A meter that runs waits for it; one that starts meanwhile says what is wrong and ends.

    Not shown here: an outage longer than the session (a static member may be fenced by its own attempt to come back,
    whose answer was lost; then the meter ends and is to be started again), and a kill between a commit's decision and
    its markers (Kafka 4.4.0, where it is the only node, calls the transaction complete and never writes them).
    """
    with stream.flowing():
        patient = {**CLIENT, "session.timeout.ms": "45000"}
        meter = stream.meter(kafka=patient, settings={**SETTINGS, "commit_interval_ms": 1500})
        meter.wait_for_count()
        meter.wait_for("commit", since=len(meter.events))
        time.sleep(0.5)
        owned.kill()
        try:
            early = stream.meter("meter-1")
            early.wait_for_end(1)
            assert f"Kafka at {stream.bootstrap} gave no answer in 10 s" in early.errors
        finally:
            owned.start()
        meter.wait_for_count(since=len(meter.events))
    stream.settle()
    stream.audit()


def test_a_transaction_that_took_too_long(stream: Stream) -> None:
    client = {**CLIENT, "session.timeout.ms": "20000", "transaction.timeout.ms": "1000"}
    with stream.flowing():
        meter = stream.meter(trip=Trip("produced", commit=3, signal="SIGSTOP"), kafka=client)
        meter.wait_until_stopped()
        stopped_at = len(meter.events)
        time.sleep(3)  # the broker looks twice a second
        meter.signal(signal.SIGCONT)
        meter.wait_for("recovered", since=stopped_at)
        meter.wait_for_count(since=stopped_at)
    stream.settle()
    found = stream.audit()
    assert found.parts >= 2 and not meter.of("lost")


# --- What the log holds ---


def test_input_of_aborted_transactions_is_not_counted(stream: Stream) -> None:
    lines = stream.lines(900)
    stream.meter()
    producer = stream.broker.producer(f"{stream.group}-input")
    for number, block in enumerate(lines[k : k + 100] for k in range(0, 900, 100)):
        producer.begin()
        producer.produce(stream.input, block, [key_of(line) for line in block])
        if number % 3 == 1:
            producer._producer.flush(10)  # so that it is in the log
            producer.abort()
        else:
            producer.commit()
    producer.close()
    stream.settle()
    assert stream.audit().tallies["read"] == 600


def test_duplicates_that_straddle_a_batch_a_kill_and_a_rebalance(stream: Stream) -> None:
    lines = [line for line in stream.lines(500) if b'"request_id"' in line]
    first = stream.meter(kafka=HASTY)
    for _ in range(2):  # two batches, perhaps two parts
        stream.append(lines)
        stream.settle()
    first.kill()
    first = stream.meter(kafka=HASTY)
    stream.append(lines)
    stream.settle()
    second = stream.meter("meter-1", kafka=HASTY)
    eventually(lambda: first.held and second.held, "both to have partitions", PATIENCE_SECONDS, [first, second])
    stream.append(lines)
    stream.settle()
    found = stream.audit()
    assert found.tallies["counted"] <= len(lines) and found.tallies["duplicates"] >= 3 * found.tallies["counted"]


def test_partitions_are_added(stream: Stream, admin: AdminClient) -> None:
    with stream.flowing():
        meter = stream.meter()
        meter.wait_for_count()
        admin.create_partitions([NewPartitions(stream.input, 5)])[stream.input].result(20)
        meter.wait_until(lambda: len(meter.held) == 5, "partitions that were added", PATIENCE_SECONDS)
        stream.append(stream.lines(500), KafkaBroker(stream.bootstrap))  # the old one does not know of them yet
    stream.settle()
    found = stream.audit()
    assert len(found.ranges) == 5


def test_a_topic_that_is_made_anew_stops_the_meter(stream: Stream, admin: AdminClient) -> None:
    """While it runs: it would go on in the middle of another log. What was committed before is as it should be."""
    stream.append(stream.lines(200))
    first = stream.meter()
    stream.settle()
    first.stop()
    assert stream.verify().clean
    meter = stream.meter()
    meter.wait_until(lambda: len(meter.held) == 3, "partitions")
    _make_anew(stream, admin)
    stream.append(stream.lines(400))
    meter.wait_for_end(1)
    assert "was deleted and made anew" in meter.errors or "was the topic deleted?" in meter.errors
    assert not any(event["read"] for event in meter.of("commit"))


def _make_anew(stream: Stream, admin: AdminClient) -> None:
    admin.delete_topics([stream.input])[stream.input].result(20)
    eventually(lambda: stream.broker.topics([stream.input])[stream.input] is None, "the topic to go", 30)
    stream.broker.create_topic(stream.input, 3, {})


def test_poison_tombstones_and_large_messages(stream: Stream) -> None:
    poison = [case.value for case in bad_input.CASES if case.message_time is None]
    lines = stream.lines(4_000)
    megabyte = b"\n".join(lines)[: 1 << 20].rpartition(b"\n")[0]
    single = b'{"padding":"' + b"x" * (1 << 20) + b'",' + lines[0][1:]  # longer than a record may be
    just = b'{"padding":"' + b"x" * ((1 << 20) - len(lines[1]) - 20) + b'",' + lines[1][1:]
    assert len(megabyte) > 1_000_000 and len(just) < 1 << 20 < len(single)
    stream.meter()
    for value in (None, b"", b"\n\n", megabyte, single, just):
        stream.append([value, *stream.lines(20), *poison, value])
    stream.settle()
    found = stream.audit()
    assert found.tallies["rejected"] > len(poison) and found.tallies["empty"] > 0
    assert any(letter[3] == "too_long" for letter in found.letters)


# --- The command ---


def test_the_command(make_stream: Callable[..., Stream], tmp_path: pathlib.Path) -> None:
    """`tokenometer meter` with a file, the environment and flags, on topics that it creates."""
    stream, port = make_stream(outputs=False), free_ports()[0]
    usage, live, rejected = stream.outputs
    (tmp_path / "meter.toml").write_text(f"""
        bootstrap = "{stream.bootstrap}"
        input = ["{stream.input}=native"]
        name = "{stream.named("meter-0")}"
        device = "cpu"
        memory = "256MiB"
        commit-interval = 5
        usage-topic = "{usage}"
        live-topic = "{live}"
        rejected-topic = "{rejected}"
        [kafka]
        "sasl.password" = "hunter2"
    """)
    stream.append(stream.lines(1_000))
    arguments = ["--config", f"{tmp_path}/meter.toml", "--create-topics", "2", "--listen", f"127.0.0.1:{port}"]
    with (tmp_path / "log").open("wb") as log:
        meter = forked.Popen(
            [sys.executable, "-m", "tokenometer.processor.cli", "meter", *arguments],
            env={**os.environ, "TOKENOMETER_METER_GROUP": stream.group},
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: _records(port) == 1_000, "1000 records in /metrics", PATIENCE_SECONDS)
        wanted = _metrics_of(streams.expected(stream.broker)[0])
        eventually(lambda: not _lags(port), "no lag", PATIENCE_SECONDS)  # a look of before the commit may come after it
        metrics, health = _metrics(port), orjson.loads(_get(port, "/healthz"))
        stream.append(stream.lines(500))
        time.sleep(2)  # they are counted, and the next commit would come later
        meter.send_signal(signal.SIGTERM)
        assert meter.wait(PATIENCE_SECONDS) == 0
    finally:
        meter.kill()
        meter.wait()
    text = (tmp_path / "log").read_text()
    assert "hunter2" not in text and '"sasl.password": "***"' in text and f'"setting.group": "{stream.group}"' in text
    assert health["status"] == "ok" and health["committed"]
    assert {name: metrics[name] for name in wanted} == wanted
    assert stream.broker.topics([usage])[usage].settings["cleanup.policy"] == "compact"
    assert stream.audit().tallies["read"] == 1_500


def _metrics_of(wanted: oracle.Meter) -> dict[str, float]:
    sums = dict(zip(oracle.COUNTS, map(sum, list(zip(*wanted.rows.values(), strict=True))[1:]), strict=True))
    records = {name: getattr(wanted, name) for name in ("counted", "duplicates", "rejected", "empty")}
    return {
        **{f'tokenometer_records_total{{verdict="{name}"}}': float(count) for name, count in records.items()},
        **{
            f'tokenometer_tokens_total{{category="{name.removesuffix("_tokens")}"}}': float(count)
            for name, count in sums.items()
        },
    }


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def _metrics(port: int) -> dict[str, float]:
    lines = [line for line in _get(port, "/metrics").splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def _lags(port: int) -> list[float]:
    """Of the partitions that have one."""
    lags = [value for name, value in _metrics(port).items() if name.startswith("tokenometer_lag_messages")]
    assert lags
    return [lag for lag in lags if lag]


def _records(port: int) -> float:
    try:
        return sum(value for name, value in _metrics(port).items() if name.startswith("tokenometer_records_total"))
    except OSError:
        return 0
