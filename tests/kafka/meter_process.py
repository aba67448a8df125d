"""A meter as a process of its own, for tests that kill it, freeze it and start it again.

    python -m tests.kafka.meter_process '{"bootstrap": "127.0.0.1:9092", "group": "g", "name": "meter-0", ...}'

`MeterProcess` is the parent's end, everything below `main` the child's. The child is the real meter on the real broker.
It prints one JSON line for whatever happens to it, and ends with 0 after SIGTERM, or with 1 and a message on standard
error. It may be told to trip: at a point of one of its commits it sends itself a signal, by default SIGKILL.

    begin ─── produce rows ─── summary, letters ─── send offsets ─── commit
         │         │                           │                │        │ │
         │         mid-produce                 produced         │        │ committed
         before produce                              offsets sent        commit sent

One more point is of no commit: `revoked`, when it has given partitions up and has not said so to the group.
"""

import contextlib
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests import forked
from tokenometer.processor.broker import Column

POINTS = ("before produce", "mid-produce", "produced", "offsets sent", "commit sent", "committed")
REVOKED = "revoked"
FLUSH_SECONDS = 10


@dataclass(frozen=True)
class Trip:
    """At this point of the n-th commit that has rows; `before produce`: of the first one after n - 1 of them."""

    point: str
    commit: int = 1
    signal: str = "SIGKILL"
    delay_ms: float = 2  # from the moment when `commit` is called to the signal of `commit sent`

    def __post_init__(self) -> None:
        assert self.point in (*POINTS, REVOKED), self.point


@dataclass(frozen=True)
class Spec:
    """What runs. `settings`, `engine` and `kafka` go over the defaults of MeterSettings, Engine and librdkafka."""

    bootstrap: str
    group: str
    name: str
    inputs: Mapping[str, str]  # topic -> mapping: a shipped one, or a file's path
    outputs: Sequence[str]  # usage, live, rejected
    settings: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    kafka: Mapping[str, str] = field(default_factory=dict)
    trip: Trip | None = None
    registry: str | None = None  # the URL of a Schema Registry
    watch_ms: int | None = None  # the patience of its watch, if it has one


class Ended(AssertionError):
    """The process has ended, and was not meant to."""


class MeterProcess:
    """The parent's end. `events` grows while the process runs."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.started = time.time()
        self.events: list[dict[str, Any]] = []
        self._may_end = False
        self._news = threading.Condition()
        self._errors = tempfile.TemporaryFile()
        self._process = forked.Popen(
            [sys.executable, "-m", "tests.kafka.meter_process", json.dumps(asdict(spec))],
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.events.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    # What it did

    def of(self, kind: str, since: int = 0) -> list[dict[str, Any]]:
        return [event for event in self.events[since:] if event["event"] == kind]

    @property
    def held(self) -> set[tuple[str, int]]:
        """The partitions that it says it has."""
        held: set[tuple[str, int]] = set()
        for event in self.events:
            places = {tuple(place) for place in event.get("places", ())}
            held = held | places if event["event"] == "assigned" else held - places
        return held

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def check(self) -> None:
        """It has not ended by itself."""
        if self.ended and not self._may_end:
            raise Ended(f"{self}: ended with {self._process.returncode}: {self.tail()}")

    @property
    def errors(self) -> str:
        """Its standard error so far."""
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode(errors="replace")

    def wait_until(self, condition: Callable[[], Any], what: str, seconds: float = 60) -> None:
        """Until the events satisfy the condition; fails at once where the process ends first."""
        deadline = time.monotonic() + seconds
        with self._news:
            while not condition():
                if not self._reader.is_alive():
                    raise Ended(f"{self}: ended while waiting for {what}: {self.tail()}")
                if time.monotonic() > deadline:
                    raise AssertionError(f"{self}: no {what} in {seconds} s: {self.tail()}")
                self._news.wait(0.1)

    def wait_for(self, kind: str, count: int = 1, since: int = 0, seconds: float = 60) -> None:
        self.wait_until(lambda: len(self.of(kind, since)) >= count, f"{count} x {kind}", seconds)

    def wait_for_count(self, since: int = 0, seconds: float = 60) -> None:
        """For a commit that counted something."""
        self.wait_until(lambda: any(event["read"] for event in self.of("commit", since)), "commit of records", seconds)

    def wait_for_end(self, wanted: int, seconds: float = 60) -> None:
        """It must end with this exit code; negative: by this signal."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self}: still runs after {seconds} s: {self.tail()}") from None
        self._reader.join(seconds)
        self._may_end = True
        assert code == wanted, f"{self}: ended with {code}, expected {wanted}: {self.tail()}"

    def wait_until_stopped(self, seconds: float = 60) -> None:
        """Until SIGSTOP has come to it."""
        deadline = time.monotonic() + seconds
        while os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
            if self.ended or time.monotonic() > deadline:
                raise AssertionError(f"{self}: did not stop: {self.tail()}")
            time.sleep(0.01)

    # What is done to it

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._may_end = True
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def stop(self, seconds: float = 60) -> None:
        """In an orderly way."""
        self.wait_for("ready", seconds=seconds)  # before that it knows no SIGTERM
        self.signal(signal.SIGTERM)
        self.wait_for_end(0, seconds)

    def close(self) -> None:
        """Whatever state it is in."""
        self.kill()
        self._errors.close()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()

    def tail(self) -> str:
        return f"\n{self.events[-3:]}\n{self.errors[-3000:]}"

    def __str__(self) -> str:
        return f"{self.spec.name} (process {self._process.pid})"


# --- The child ---


def main() -> int:
    arguments = json.loads(sys.argv[1])
    arguments["trip"] = Trip(**arguments["trip"]) if arguments["trip"] else None
    spec = Spec(**arguments)
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", level=logging.INFO)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    from tokenometer.processor.broker import BrokerError
    from tokenometer.processor.meter.counting import LineTooLarge

    try:
        _run(spec, stop.is_set)
    except (BrokerError, LineTooLarge) as error:  # as the command does it
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _end_with_parent() -> None:
    os.read(0, 1)
    os._exit(3)


def _say(event: str, **values: Any) -> None:
    """In one call of the system, so that the lines of two threads do not mix."""
    os.write(1, json.dumps({"event": event, "at": time.time(), **values}).encode() + b"\n")


def _run(spec: Spec, stopped: Callable[[], bool]) -> None:
    gc.disable()
    from tests import engines
    from tokenometer.kernels.target import HostTarget
    from tokenometer.processor.broker import Offset, Place
    from tokenometer.processor.broker.kafka import KafkaBroker
    from tokenometer.processor.broker.registry import Registry
    from tokenometer.processor.meter.meter import Committed, Meter, MeterSettings
    from tokenometer.schemas import mapping as mappings

    gc.freeze()  # what is imported stays; the command does likewise
    gc.enable()

    class Telling(Meter):
        """Says what happens to it."""

        def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
            answer = super().assigned(places)
            refill = sum(max(0, known.start.offset - known.start.read_from) for known in self._known(places))
            _say("assigned", places=places, refill=refill)
            return answer

        def _known(self, places: Sequence[Place]) -> list[Any]:
            """Not yet known where a recovery has still to take them up."""
            return [known for place in places if (known := self.counting._partitions.get(place))]

        def revoked(self, places: Sequence[Place]) -> None:
            super().revoked(places)
            _say("revoked", places=places)
            if broker.trip is not None and broker.trip.point == REVOKED:
                broker.fall()

        def lost(self, places: Sequence[Place]) -> None:
            super().lost(places)
            _say("lost", places=places)

        def _recover(self, error: Any) -> None:
            _say("recovering", kind=type(error).__name__, why=str(error))
            super()._recover(error)
            _say("recovered")

    def committed(done: Committed) -> None:
        summary = done.snapshot.summary
        _say(
            "commit",
            part=summary.part,
            sequence=summary.sequence,
            read=summary.tally.read,
            tokens=summary.totals.total_tokens,
            rows=done.rows,
            took_ms=done.took_ms,
            opened=dict(done.snapshot.parts_opened),
        )

    class Refilling:
        """Says when request ids are known again in all partitions."""

        def __init__(self, counting: Any) -> None:
            self._counting, self._end_refill = counting, counting._end_refill
            counting._end_refill = self

        def __call__(self, place: Place, partition: Any) -> None:
            before = partition.refilling
            self._end_refill(place, partition)
            if before and not any(known.refilling for known in self._counting._partitions.values()):
                _say("refilled")

    broker = TrippingBroker(KafkaBroker(spec.bootstrap, spec.kafka), spec)
    inputs = {topic: mappings.resolve(mapping) for topic, mapping in spec.inputs.items()}
    more = {**spec.settings, "registry": Registry({"url": spec.registry}) if spec.registry else None}
    settings = MeterSettings(spec.name, spec.group, inputs, *spec.outputs, **more)
    engine = engines.make_engine(HostTarget(), **engines.LARGE | spec.engine)
    run = f"{spec.name}.{time.time_ns()}"
    _say("ready", run=run)
    meter = Telling(broker, engine, settings, run, on_commit=committed)
    Refilling(meter.counting)
    with _watched(meter, broker, spec):
        meter.run(stopped)


@contextlib.contextmanager
def _watched(meter: Any, broker: Any, spec: Spec) -> Iterator[None]:
    if spec.watch_ms is None:
        yield
        return
    from tokenometer.processor.meter import watching

    watching.PATIENCE_MS, watching.LOOK_SECONDS = spec.watch_ms, spec.watch_ms / 4000

    def now_ms() -> int:
        return time.monotonic_ns() // 1_000_000

    watch = watching.HealthWatch(broker, spec.name, spec.group, spec.inputs, meter.standing, lambda _: None, now_ms)
    with contextlib.closing(watch):
        yield


class TrippingBroker:
    """The broker, but its producers trip where the spec says. Commits with rows are counted over all of them.

    Their transactional ids are of this group, for meters of other tests have the same names."""

    def __init__(self, inner: Any, spec: Spec) -> None:
        self._inner, self._group = inner, spec.group
        self.trip = spec.trip
        self.commits = 0  # that had rows, the one at hand included
        self.rows = 0  # of the transaction at hand

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def producer(self, transactional_id: str) -> "TrippingProducer":
        return TrippingProducer(self._inner.producer(f"{self._group}-{transactional_id}"), self)

    def due(self, point: str) -> bool:
        trip = self.trip
        if trip is None or trip.point != point:
            return False
        if point == "before produce":
            return self.commits >= trip.commit - 1
        return self.rows > 0 and self.commits >= trip.commit

    def fall(self) -> None:
        """After SIGSTOP it goes on from here when SIGCONT comes."""
        assert self.trip is not None
        number = signal.Signals[self.trip.signal]
        self.trip = None
        _say("tripping", commits=self.commits)
        os.kill(os.getpid(), number)


class TrippingProducer:
    def __init__(self, inner: Any, broker: TrippingBroker) -> None:
        self._inner, self._broker = inner, broker

    def begin(self) -> None:
        self._inner.begin()
        self._broker.rows = 0
        self._trip("before produce")

    def produce(self, topic: str, values: Sequence[bytes], keys: Any = None, headers: Any = None) -> None:
        self._inner.produce(topic, values, keys, headers)

    def produce_columns(self, topic: str, keys: Column, values: Column) -> None:
        """Usage rows."""
        self._broker.commits += self._broker.rows == 0
        self._broker.rows += len(values)
        if self._broker.due("mid-produce"):
            some = max(1, len(values) // 2)
            self._inner.produce_columns(topic, keys[:some], values[:some])
            self._flush()
            self._broker.fall()
            self._inner.produce_columns(topic, keys[some:], values[some:])
        else:
            self._inner.produce_columns(topic, keys, values)

    def send_offsets(self, positions: Any, group: Any) -> None:
        if self._broker.due("produced"):
            self._flush()
        self._trip("produced")
        self._inner.send_offsets(positions, group)
        self._trip("offsets sent")

    def commit(self) -> None:
        if self._broker.due("commit sent"):
            self._flush()  # so that the end of the transaction is all that is on its way
            assert self._broker.trip is not None
            threading.Timer(self._broker.trip.delay_ms / 1000, self._broker.fall).start()
        self._inner.commit()
        self._trip("committed")

    def abort(self) -> None:
        self._inner.abort()

    def close(self) -> None:
        self._inner.close()

    def _trip(self, point: str) -> None:
        if self._broker.due(point):
            self._broker.fall()

    def _flush(self) -> None:
        """The broker has everything that was handed over."""
        if self._inner._writing:
            self._inner._writer.finish()
        self._inner._producer.flush(FLUSH_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
