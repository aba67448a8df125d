"""The whole way in one process: a synthetic log goes into a topic, a meter counts it, its summaries come out live.

Owns: three parties on one broker (a producer, a meter, an onlooker), each as it would be on machines of its own.
Promises: what is shown was committed and read from `token-live`; nothing is handed around the broker.
"""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from tokenometer.kernels.engine import Engine
from tokenometer.processor.broker import Broker
from tokenometer.processor.load import blocks, produce, synth
from tokenometer.processor.load.lines import Block
from tokenometer.processor.load.profile import Profile
from tokenometer.processor.meter.meter import Meter, MeterSettings
from tokenometer.processor.rollup.watch import Watch
from tokenometer.schemas.usage import COUNTERS, Usage

_LOOK_SECONDS = 0.25
_SEE_SECONDS = 30.0  # for the onlooker to see what was committed last


@dataclass(frozen=True)
class Demo:
    """What runs. speed: how many times as fast as its clock the log goes; None: as fast as it can."""

    meter: MeterSettings
    run: str
    profile: Profile
    lines_per_message: int
    speed: float | None


@dataclass
class View:
    """What there is to see. totals: as in schemas/totals.schema.json; None before the first. seconds: since the log
    began, and in the end until all of it was committed."""

    expected: int
    seconds: float = 0.0
    produced: int = 0
    totals: dict[str, Any] | None = None

    @property
    def read(self) -> int:
        records: int = self.totals["records"]["read"] if self.totals else 0
        return records

    @property
    def tokens(self) -> Usage:
        """Since start."""
        assert self.totals is not None
        tokens = self.totals["windows"]["since_start"]["tokens"]
        return Usage(*(tokens[name] for name in COUNTERS))


def play(
    broker: Broker, demo: Demo, engine: Engine, watch: Watch, show: Callable[[View], None], stopped: Callable[[], bool]
) -> View:
    """Run until the whole log is metered, committed and seen. Raises what the meter or the producer raised."""
    done, view = threading.Event(), View(demo.profile.records)
    log = synth.blocks(demo.profile)
    first = next(log)  # before the clock runs: what makes it may have to be compiled
    meter = Meter(broker, engine, demo.meter, demo.run)
    producer = _Worker(lambda: _produce(broker, demo, itertools.chain([first], log), view, done))
    metering = _Worker(lambda: meter.run(done.is_set))
    began = time.monotonic()

    def look() -> None:
        time.sleep(_LOOK_SECONDS)
        view.totals = orjson.loads(watch.latest) if watch.latest else None
        show(view)

    try:
        while not (producer.ended() and _all_committed(broker, demo)) and not metering.ended() and not stopped():
            view.seconds = time.monotonic() - began
            look()
    finally:
        done.set()
        metering.join()
        producer.join()
    deadline = time.monotonic() + _SEE_SECONDS
    while view.read < view.produced and time.monotonic() < deadline and not stopped():
        look()
    return view


class _Worker:
    """A thread whose failure comes out where it is joined."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised again by `join`
            self._failure = error

    def ended(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()
        if self._failure:
            raise self._failure


class _Stopped(Exception):
    pass


def _produce(broker: Broker, demo: Demo, log: Iterator[Block], view: View, done: threading.Event) -> None:
    def progress(sent: produce.Sent) -> None:
        view.produced = sent.records
        if done.is_set():
            raise _Stopped

    def sleep(seconds: float) -> None:
        if done.wait(seconds):
            raise _Stopped

    topic = next(iter(demo.meter.inputs))
    pacing = produce.Pacing(demo.speed, lambda: time.monotonic_ns() // 1_000_000, sleep)
    with contextlib.suppress(_Stopped):
        blocks.send_blocks(broker, topic, log, pacing, demo.lines_per_message, progress)


def _all_committed(broker: Broker, demo: Demo) -> bool:
    """Whether the committed offsets have reached the ends of all partitions. The input has no transaction markers."""
    topics = list(demo.meter.inputs)
    committed, extents = broker.committed(demo.meter.group, topics), broker.extents(topics)
    positions = {place: position.offset if position else extents[place].begin for place, position in committed.items()}
    return all(positions.get(place, extent.begin) >= extent.end for place, extent in extents.items())
