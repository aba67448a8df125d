"""Seeded schedules: the real meter on the model of Kafka, while everything goes wrong that may.

    SIM_SEED=123 pytest tests/test_simulation.py     that schedule again, and no other
    SIM_COUNT=5000 pytest tests/test_simulation.py   more of them

One thread and one clock, so that a seed is a schedule. It appends input, steps meters, kills them at any call of the
broker, stops them there while others go on, takes their names, lets their sessions and transactions run out. Then the
trouble ends: what lives must read everything, and what was committed must be exactly what the oracle finds.
"""

import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

import orjson
import pytest

from tests import bad_input, harness, streams
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker import BrokerError, Fenced, Offset, OutOfRange, Place, Producer, TopicMissing
from tokenometer.processor.broker.memory import Assignor, MemoryBroker
from tokenometer.processor.meter.meter import Clock, Meter, MeterSettings

START_MS = 1_795_000_000_000
SESSION_MS, TRANSACTION_MS = 10_000, 6_000
SCHEDULES_DEFAULT = 400
SCHEDULES = int(os.environ.get("SIM_COUNT", SCHEDULES_DEFAULT))
SEEDS = [int(os.environ["SIM_SEED"])] if "SIM_SEED" in os.environ else range(SCHEDULES)
BLOCK = 50  # schedules of one test
ROUNDS_MAX, STEPS_PER_ROUND = 60, 10  # within which meters without trouble are done
CALLS_MAX = 20_000  # of the broker, in one schedule
METERS_MAX = 4
GATEWAY = "gateway-logs"
NAMES = ("meter-0", "meter-1", "meter-2")
ROOMY = {
    "rows": 1 << 12,
    "cells": 1 << 10,
    "texts": 1 << 11,
    "windows": 16,
    "arena_bytes": 1 << 17,
    "batch_bytes": 1 << 14,
    "tile_records": 64,
}
MESSAGE_BYTES_MAX = harness.TINY["batch_bytes"] - 50
POISON = [
    *[case.value for case in bad_input.CASES if len(case.value or b"") < 300 and case.message_time is None],
    *(None, b"", b"\n", b" \n\n", b"\x00\xff\n{", b'{"a":\n', b"[]"),
]
OPERATIONS = "init begin produce send_offsets commit.before commit.after poll committed extents topics".split()

SEEN: Counter[str] = Counter()  # what the schedules of this run met


class Crash(BaseException):
    """kill -9: whoever meets this is never called again."""


class Worker(Executor):
    """One thread's tasks. A prompt one does each at once; another one when somebody waits for it, or `advance` says."""

    def __init__(self, prompt: bool) -> None:
        self._prompt = prompt
        self._tasks: deque[_Task] = deque()

    def submit(self, fn: Any, /, *arguments: Any, **named: Any) -> Future:
        task = _Task(self, partial(fn, *arguments, **named))
        self._tasks.append(task)
        if self._prompt:
            self.advance(1)
        return task

    def advance(self, most: int) -> None:
        while most > 0 and self._tasks:
            most -= 1
            self._tasks.popleft().run()


class _Task(Future):
    def __init__(self, worker: Worker, action: Callable[[], Any]) -> None:
        super().__init__()
        self._worker, self._action = worker, action

    def run(self) -> None:
        try:
            self.set_result(self._action())
        except Exception as error:
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        while not self.done():
            self._worker.advance(1)
        return super().result()


class Watched(Meter):
    def revoked(self, places: Sequence[Place]) -> None:
        SEEN["partitions revoked"] += 1
        super().revoked(places)

    def lost(self, places: Sequence[Place]) -> None:
        SEEN["partitions lost"] += 1
        super().lost(places)


@dataclass(eq=False)
class Process:
    """A meter and its threads."""

    name: str
    run: str
    workers: list[Worker] = field(default_factory=list)
    meter: Meter = None  # type: ignore[assignment]
    dead: bool = False
    produced: int = 0  # calls since the last `begin`


@dataclass
class Log:
    """Draws the input: records, their copies, and what is no record."""

    draw: Random
    inputs: dict[str, str]
    lines_max: int
    disorder_ms: int
    poison: float
    few_ids: bool  # so that the same ones come again and again
    recent: dict[bytes, deque[str]] = field(default_factory=lambda: defaultdict(lambda: deque(maxlen=40)))
    sent: list[tuple[str, bytes | None, bytes]] = field(default_factory=list)
    ids: int = 0

    def messages(self, now_ms: int) -> tuple[str, list[bytes | None], list[bytes], list[int]]:
        """A topic, and for it values, keys and times."""
        draw, topic = self.draw, self.draw.choice(list(self.inputs))
        again = [(value, key) for sent_to, value, key in self.sent[-60:] if sent_to == topic]
        if again and draw.random() < 0.25:
            chosen = draw.choices(again, k=draw.randint(1, 8))
        else:
            keys = [b"%d" % draw.randrange(8) for _ in range(draw.randint(1, 10))]
            chosen = [(self._value(topic, key, now_ms), key) for key in keys]
        self.sent += [(topic, value, key) for value, key in chosen]
        times = [now_ms - draw.randint(0, self.disorder_ms) for _ in chosen]
        return topic, [value for value, _ in chosen], [key for _, key in chosen], times

    def _value(self, topic: str, key: bytes, now_ms: int) -> bytes | None:
        if self.draw.random() < self.poison:
            return self.draw.choice(POISON)
        lines = [self._record(self.inputs[topic], key, now_ms) for _ in range(self.draw.randint(1, self.lines_max))]
        while len(value := b"\n".join(lines)) > MESSAGE_BYTES_MAX:
            lines.pop()
        return value + self.draw.choice([b"", b"\n"])

    def _record(self, mapping: str, key: bytes, now_ms: int) -> bytes:
        draw = self.draw
        late_ms = draw.choice([0, 10, 1000, 70_000, 86_400_000, -7_200_000]) if draw.random() < 0.1 else 0
        counts = draw.randrange(1000), draw.randrange(1000)
        fields: dict[str, Any] = {
            "timestamp": now_ms - late_ms - draw.randrange(2000),
            "user": f"user-{draw.randrange(6)}",
            "chip": draw.choice(["H100", "H200"]),
        }
        if draw.random() < 0.9:
            fields["request_id"] = self._request_id(key)
        model = draw.choice(["llama", "qwen"])
        if mapping == "native":
            fields |= {"model": model, "input_tokens": counts[0], "output_tokens": counts[1]}
        else:
            usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1]}
            fields |= {"response": {"model": model, "usage": usage}}
        return orjson.dumps(fields)

    def _request_id(self, key: bytes) -> str:
        if self.few_ids:
            return f"request-{key.decode()}-{self.draw.randrange(3)}"
        known = self.recent[key]
        if known and self.draw.random() < 0.25:
            return self.draw.choice(known)
        self.ids += 1
        known.append(f"request-{self.ids}")
        return known[-1]


class Schedule:
    """One seed: a broker, meters, their input, and what happens to them. `story` tells it."""

    def __init__(self, seed: int) -> None:
        draw = self.draw = Random(seed)
        self.now_ms = START_MS + draw.randrange(600_000)
        self.story: list[str] = []
        self.processes: list[Process] = []
        self.stack: list[Process | None] = []  # who is inside a call; None: the world, while that one is stopped
        self.writers: dict[str, Producer] = {}
        self.started = self.calls = 0
        self.calm = False
        self.unreachable_until_ms = 0
        # How it is set up
        self.inputs = {streams.INPUT: "native"} | ({GATEWAY: "openai-chat"} if draw.random() < 0.3 else {})
        assignor: Assignor = draw.choice(["eager", "cooperative"])
        self.horizon_ms = draw.choice([1000, 5000, 60_000, 600_000])
        self.limits = draw.choice([harness.TINY, ROOMY])
        self.settings = {
            "commit_interval_ms": draw.choice([0, 0, 300, 1000, 5000]),
            "idle_interval_ms": draw.choice([500, 10_000]),
            "flush_ms": draw.choice([0, 0, 100, 1000]),
            "flush_bytes": draw.choice([1, 400, 2000, 1 << 20]),
            "part_age_ms": draw.choice([0, 2000, 20_000, 600_000]),
        }
        self.prompt = draw.choice([0.0, 0.5, 1.0])  # how many meters have prompt workers
        self.rates = {kind: draw.choice([0, 0, 0.01, 0.03, 0.1]) for kind in ("error", "crash", "stop")}
        self.audits = draw.choice([0, 0.1, 0.3])  # how many commits are followed by one
        weights = {action: weight * draw.choice([0.3, 1, 1, 3]) for action, weight in self.actions().items()}
        self.choices, self.weights = list(weights), list(weights.values())
        self.log = Log(
            draw,
            self.inputs,
            lines_max=draw.randint(1, 5),
            disorder_ms=draw.choice([0, 50, 3000]),
            poison=draw.choice([0, 0.05, 0.3]),
            few_ids=draw.random() < 0.3,
        )
        self.broker = MemoryBroker(
            assignor=assignor,
            clock=lambda: self.now_ms,
            faults=self.fault,
            session_timeout_ms=SESSION_MS,
            transaction_timeout_ms=TRANSACTION_MS,
            patience_seconds=0,
        )
        streams.make_topics(self.broker, draw.randint(1, 4), list(self.inputs))
        self.tell(f"{assignor}, horizon {self.horizon_ms} ms, inputs {self.inputs}, {self.settings}, {self.rates}")

    def actions(self) -> dict[Callable[[], None], float]:
        return {
            self.append: 10,
            self.write_in_transaction: 4,
            self.step_one: 25,
            self.step_all: 6,
            self.start_another: 1,
            self.restart: 4,
            self.take_over: 0.7,
            self.kill: 1,
            self.close: 0.7,
            self.wait: 6,
            self.outlast_transactions: 0.5,
            self.outlast_sessions: 0.7,
            self.eclipse: 0.4,
            self.add_partitions: 0.3,
            self.cut_off: 0.4,
            self.audit: 0.5,
        }

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now_ms - START_MS:>8} ms  {'    ' * len(self.stack)}{text}")

    def run(self) -> None:
        self.start(NAMES[0])
        for _ in range(self.draw.randint(20, 70)):
            self.act()
        self.converge()

    def act(self) -> None:
        self.draw.choices(self.choices, self.weights)[0]()

    # --- Input ---

    def append(self) -> None:
        topic, values, keys, times = self.log.messages(self.now_ms)
        self.tell(f"append {len(values)} messages to {topic}")
        self.broker.append(topic, values, keys, times)

    def write_in_transaction(self) -> None:
        """A producer of input that goes on with its transaction, begins one or ends it."""
        name = self.draw.choice(["app-0", "app-1"])
        try:
            if name not in self.writers:
                self.writers[name] = self.broker.producer(name)
                self.writers[name].begin()
            topic, values, keys, _ = self.log.messages(self.now_ms)
            self.tell(f"{name} writes {len(values)} messages to {topic} in a transaction")
            self.writers[name].produce(topic, [value or b"" for value in values], keys)
            if self.draw.random() < 0.7:
                self.end_transaction(name, committed=self.draw.random() < 0.5)
        except BrokerError:
            self.tell(f"the transaction of {name} has run out")
            SEEN["input's transaction ran out"] += 1
            del self.writers[name]

    def end_transaction(self, name: str, committed: bool) -> None:
        self.tell(f"{name} {'commits' if committed else 'aborts'}")
        SEEN["input committed" if committed else "input aborted"] += 1
        writer = self.writers[name]
        writer.commit() if committed else writer.abort()
        del self.writers[name]

    # --- Meters ---

    def start(self, name: str) -> Process:
        self.started += 1
        process = Process(name, f"{name}.{self.started}")
        prompt = self.draw.random() < self.prompt

        def worker(_: Callable[[], None]) -> Executor:
            process.workers.append(Worker(prompt))
            return process.workers[-1]

        mapped = {topic: harness.shipped(mapping).engine for topic, mapping in self.inputs.items()}
        engine = harness.make_engine(HostTarget(), dedup_horizon_ms=self.horizon_ms, **self.limits)
        process.meter = Watched(
            self.broker,
            engine,
            MeterSettings(name, streams.GROUP, mapped, **self.settings),  # type: ignore[arg-type]
            process.run,
            clock=Clock(lambda: self.now_ms, lambda: self.now_ms, self.sleep),
            threads=worker,
        )
        self.processes.append(process)
        self.tell(f"start {process.run}{'' if prompt else ', slow threads'}")
        self.call(process, process.meter.open)
        return process

    def call(self, process: Process, action: Callable[[], None]) -> None:
        self.stack.append(process)
        try:
            action()
        except Crash:
            pass
        except Fenced as error:
            self.tell(f"{process.run} stops: {error}")
            SEEN["meter fenced"] += 1
            if not process.dead and self.draw.random() < 0.5:
                self.leave(process, error)
            self.bury(process)
        except (OutOfRange, TopicMissing):
            raise
        except BrokerError as error:
            assert action == process.meter.open, "otherwise a meter mends this by itself"
            self.tell(f"{process.run} did not start: {error}")
            self.bury(process)
        finally:
            self.stack.pop()
            if process.dead:
                self.bury(process)

    def leave(self, process: Process, error: Exception) -> None:
        """What `Meter.run` does where a step raises."""
        process.meter._failure = BrokerError(f"stopped by {error}")
        try:
            process.meter.close()
        except Crash:
            pass

    def bury(self, process: Process) -> None:
        process.dead = True
        if process in self.processes:
            self.processes.remove(process)
            SEEN.update({f"part opened: {reason}": n for reason, n in process.meter.counting.parts_opened.items()})

    def idle(self) -> list[Process]:
        """Those that are not stopped in the middle of a call."""
        return [process for process in self.processes if process not in self.stack]

    def step(self, process: Process) -> None:
        def action() -> None:
            process.meter.step()
            for worker in process.workers:
                worker.advance(self.draw.choice([0, 0, 1, 3]))

        self.call(process, action)

    def step_one(self) -> None:
        if idle := self.idle():
            process = self.draw.choice(idle)
            self.tell(f"step {process.run}")
            self.step(process)

    def step_all(self) -> None:
        if not self.calm:
            self.tell("step all")
        for process in self.idle():
            if process in self.processes:
                self.step(process)

    def start_another(self) -> None:
        names = [name for name in NAMES if all(process.name != name for process in self.processes)]
        if names and len(self.processes) < METERS_MAX:
            self.start(self.draw.choice(names))

    def restart(self) -> None:
        """What a supervisor does."""
        if not self.processes:
            self.start(self.draw.choice(NAMES))

    def take_over(self) -> None:
        """A second process of a name, while the first one goes on: it must stop."""
        if self.processes and len(self.processes) < METERS_MAX:
            SEEN["name taken"] += 1
            self.start(self.draw.choice(self.processes).name)

    def kill(self) -> None:
        if idle := self.idle():
            process = self.draw.choice(idle)
            self.tell(f"kill {process.run}")
            self.bury(process)
            if self.draw.random() < 0.7 and len(self.processes) < METERS_MAX:
                self.start(process.name)

    def close(self) -> None:
        if idle := self.idle():
            process = self.draw.choice(idle)
            self.tell(f"close {process.run}")
            SEEN["meter closed"] += 1
            self.call(process, process.meter.close)
            self.bury(process)

    # --- The world ---

    def wait(self) -> None:
        self.now_ms += self.draw.choice([1, 100, 300, 1000, 2000])

    def outlast_transactions(self) -> None:
        self.tell("a long time for transactions")
        self.now_ms += TRANSACTION_MS

    def outlast_sessions(self) -> None:
        self.tell("a long time for sessions")
        self.now_ms += SESSION_MS

    def eclipse(self) -> None:
        """All stand still; another one does their work for a while, and dies. They wake up and are alone again."""
        if not (idle := self.idle()) or len(self.processes) >= METERS_MAX:
            return
        self.tell("an eclipse")
        SEEN["eclipse"] += 1
        self.step(idle[0])
        self.now_ms += SESSION_MS
        moon = self.start(self.draw.choice(["moon", idle[0].name]))
        for _ in range(self.draw.randint(1, 6)):
            self.append()
            if moon in self.idle():
                self.step(moon)
        if self.draw.random() < 0.7 and moon in self.idle():
            self.bury(moon)
            self.now_ms += SESSION_MS
        self.tell("the eclipse is over")
        if idle[0] in self.processes:
            self.step(idle[0])

    def add_partitions(self) -> None:
        topic = self.draw.choice(list(self.inputs))
        now = self.broker.topics([topic])[topic]
        if now is not None and now.partitions < 5:
            self.tell(f"{topic} gets its partition {now.partitions}")
            SEEN["partition added"] += 1
            self.broker.add_partitions(topic, now.partitions + 1)

    def cut_off(self) -> None:
        self.unreachable_until_ms = self.now_ms + self.draw.choice([200, 2000, 15_000])
        self.tell(f"the broker is out of the meters' reach for {self.unreachable_until_ms - self.now_ms} ms")
        SEEN["unreachable"] += 1

    def sleep(self, seconds: float) -> None:
        """A meter waits; others may go on."""
        self.now_ms += round(1000 * seconds)
        if not self.calm and len(self.stack) < 5 and self.draw.random() < 0.3:
            with self.elsewhere():
                self.step_one()

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        self.stack.append(None)
        try:
            yield
        finally:
            self.stack.pop()

    def fault(self, operation: str) -> None:
        """Called by the broker before each operation (and after a commit)."""
        process = self.stack[-1] if self.stack else None
        self.calls += 1
        assert self.calls < CALLS_MAX, "no end to it"
        if process is None:
            return
        if process.dead:
            raise Crash
        process.produced = 0 if operation == "begin" else process.produced + (operation == "produce")
        where = f"{operation} {process.produced}" if operation == "produce" else operation
        if self.calm:
            return
        if operation == "commit.after" and self.draw.random() < self.audits:
            self.audit()
        if self.now_ms < self.unreachable_until_ms:
            raise BrokerError("out of reach")
        likely = 0.2 if operation == "poll" else 1
        for kind, rate in self.rates.items():
            if self.draw.random() < rate * likely:
                self.tell(f"{kind} of {process.run} at {where}")
                SEEN[f"{kind} at {where}"] += 1
                self.strike(kind, process)

    def strike(self, kind: str, process: Process) -> None:
        if kind == "error":
            raise BrokerError("it cannot just now")
        if kind == "crash":
            process.dead = True
            raise Crash
        if len(self.stack) < 5:
            with self.elsewhere():
                for _ in range(self.draw.randint(1, 6)):
                    self.act()
            self.tell(f"{process.run} goes on")

    # --- What must hold ---

    def audit(self) -> None:
        """At any time: what is committed is exactly what lies before the committed offsets."""
        transactions = self.broker._cluster.transactionals.items()
        if any(state.transaction is not None for name, state in transactions if name not in self.writers):
            return  # it hides what others have committed behind it
        SEEN["audit on the way"] += 1
        with self.elsewhere():
            upto = self.broker.committed(streams.GROUP, list(self.inputs))
            streams.assert_exact(self.broker, self.inputs, self.horizon_ms, upto)

    def converge(self) -> None:
        """The trouble ends. Of each name only the last process is left, and a supervisor starts what stops."""
        self.tell("the trouble ends")
        self.calm = True
        for name in list(self.writers):
            try:
                self.end_transaction(name, committed=True)
            except BrokerError:  # it has run out
                del self.writers[name]
        last = {process.name: process for process in self.processes}
        for process in list(self.processes):
            if last[process.name] is not process:
                self.bury(process)
        self.append()
        restarts_before = self.started
        for _ in range(ROUNDS_MAX):
            self.now_ms += 1000
            self.restart()
            for _ in range(STEPS_PER_ROUND):
                self.step_all()
            assert self.started - restarts_before <= METERS_MAX, "a meter stops without need"
            if self.is_read():
                break
        else:
            raise AssertionError("not all was read")
        if self.draw.random() < 0.5:
            for process in list(self.processes):
                self.call(process, process.meter.close)
        self.now_ms += TRANSACTION_MS  # what a dead meter left open hides what others wrote behind it
        streams.assert_exact(self.broker, self.inputs, self.horizon_ms)
        for process in list(self.processes):
            self.bury(process)

    def is_read(self) -> bool:
        with self.elsewhere():
            committed = self.broker.committed(streams.GROUP, list(self.inputs))
            for place, extent in self.broker.extents(list(self.inputs)).items():
                position = committed[place]
                if position is None or any(self.broker.read(place, max(position.offset, extent.begin), extent.end)):
                    return False
        return True


class Told(logging.Handler):
    """Puts what meters log into the story."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule

    def emit(self, record: logging.LogRecord) -> None:
        self._schedule.tell(f"  {record.getMessage()}")


def simulate(seed: int) -> None:
    schedule = Schedule(seed)
    SEEN["schedules"] += 1
    logger, told = logging.getLogger("tokenometer.meter"), Told(schedule)
    logger.addHandler(told)
    try:
        schedule.run()
    except Exception as error:
        story = "\n".join(schedule.story)
        raise AssertionError(f"{story}\n\nSIM_SEED={seed}: {type(error).__name__}: {error}") from error
    finally:
        logger.removeHandler(told)


@pytest.mark.parametrize(
    "seeds",
    [pytest.param(SEEDS[k : k + BLOCK], marks=[pytest.mark.slow] * (k > 0)) for k in range(0, len(SEEDS), BLOCK)],
    ids=str,
)
def test_what_is_committed_is_exact(seeds) -> None:
    for seed in seeds:
        simulate(seed)


def test_the_schedules_met_all_kinds_of_trouble() -> None:
    """So that the simulation does not fall asleep. Runs behind the schedules, in the same process."""
    if SEEN["schedules"] < SCHEDULES_DEFAULT:
        pytest.skip("needs many schedules")
    operations = ["produce 1", "produce 2", *(name for name in OPERATIONS if name != "produce")]
    wanted = [f"{kind} at {operation}" for kind in ("error", "crash", "stop") for operation in operations]
    wanted += [f"part opened: {reason}" for reason in ("start", "full", "rebalance", "failure")]
    wanted += ["partitions revoked", "partitions lost", "meter fenced", "meter closed", "name taken", "unreachable"]
    wanted += ["input aborted", "input committed", "input's transaction ran out", "partition added", "audit on the way"]
    wanted += ["eclipse"]
    assert {name for name in wanted if SEEN[name] == 0} == set()


# --- What a meter must not go on from ---


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker(patience_seconds=0)
    streams.make_topics(broker)
    return broker


def append_records(broker: MemoryBroker, count: int, first: int = 0) -> None:
    record = {"user": "u", "model": "m", "chip": "c", "input_tokens": 1, "output_tokens": 2, "timestamp": START_MS}
    values = [orjson.dumps(record | {"request_id": f"{first + k}"}) for k in range(count)]
    broker.append(streams.INPUT, values, times=streams.times_of(START_MS, count))


def opened(broker: MemoryBroker, run: str = "") -> Meter:
    engine = harness.make_engine(HostTarget(), **ROOMY)
    meter = streams.make_meter(broker, run=run, engine=engine, commit_interval_ms=0, idle_interval_ms=0, flush_ms=0)
    meter.open()
    return meter


def steps(meter: Meter, count: int = 5) -> None:
    for _ in range(count):
        meter.step()


def requests(broker: MemoryBroker) -> int:
    return sum(row[0] for row in streams.outcome(broker).rows.values())


def test_a_meter_stops_when_its_topic_is_deleted(broker) -> None:
    append_records(broker, 10)
    meter = opened(broker)
    steps(meter)
    broker.delete_topic(streams.INPUT)
    with pytest.raises(TopicMissing):
        steps(meter)
    assert requests(broker) == 10


@pytest.mark.parametrize("messages", [5, 10, 30])
def test_a_meter_stops_when_its_topic_was_made_anew(broker, messages) -> None:
    append_records(broker, 10)
    meter = opened(broker)
    steps(meter)
    broker.delete_topic(streams.INPUT)
    broker.create_topic(streams.INPUT, 1, {})
    append_records(broker, messages, first=100)
    with pytest.raises((OutOfRange, TopicMissing)):
        steps(meter)
    meter.close()
    assert requests(broker) == 10


def test_a_meter_stops_when_retention_overtakes_it(broker) -> None:
    append_records(broker, 10)
    meter = opened(broker)
    steps(meter)
    append_records(broker, 10, first=10)
    broker.delete_before(Place(streams.INPUT, 0), Offset(15))
    with pytest.raises(OutOfRange):
        steps(meter)
    meter.close()
    assert requests(broker) == 10


def test_a_meter_does_not_start_behind_what_retention_deleted(broker) -> None:
    append_records(broker, 10)
    steps(opened(broker))
    append_records(broker, 10, first=10)
    broker.delete_before(Place(streams.INPUT, 0), Offset(15))
    with pytest.raises(OutOfRange, match="retention deleted offsets 10 to 14"):
        steps(opened(broker, "again"))
    assert requests(broker) == 10


def test_retention_may_pass_what_only_refills_request_ids(broker) -> None:
    append_records(broker, 10)
    steps(opened(broker))
    broker.delete_before(Place(streams.INPUT, 0), Offset(6))
    append_records(broker, 10)  # all of them again: 6 to 9 are still known
    steps(opened(broker, "again"))
    assert requests(broker) == 10 + 6
