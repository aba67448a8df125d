"""The whole way in one process: a synthetic log goes into a topic, a meter counts it, and its summaries come out live.

Owns: three parties on one broker (a producer, a meter, an onlooker), each as it would be on machines of its own.
Promises: what is shown was read from `token-live`, committed; nothing is handed around the broker.
"""

import contextlib
import itertools
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from kernels.engine import Engine
from processor import produce, synth
from processor.broker import Broker, Offset, Place
from processor.meter import Meter, MeterSettings
from processor.output import COUNTERS
from processor.referee import Referee
from processor.replay import Usage, add

_LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class Demo:
    """What runs."""

    meter: MeterSettings
    run: str
    profile: synth.Profile
    lines_per_message: int


@dataclass
class View:
    """What an onlooker of token-live knows. Cells are absolute within a part; the last word counts."""

    seconds: float = 0.0
    produced: int = 0
    commits: int = 0
    records: dict[str, int] = field(default_factory=dict)
    by_model: dict[str, Usage] = field(default_factory=dict)
    by_chip: dict[str, Usage] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    tokens_per_second: float = 0.0
    device: str = ""


def play(broker: Broker, demo: Demo, engine: Engine, show: Callable[[View], None], stopped: Callable[[], bool]) -> View:
    """Run until the whole log is metered and committed. Raises what the meter or the producer raised."""
    done, view = threading.Event(), View()
    meter = Meter(broker, engine, demo.meter, demo.run)
    producer = _Worker(lambda: _produce(broker, demo, view, done.is_set))
    metering = _Worker(lambda: meter.run(done.is_set))
    onlooker = _Onlooker(broker, demo.meter.live_topic, view)
    began = time.monotonic()
    try:
        while not (producer.ended() and _all_committed(broker, demo)) and not metering.ended() and not stopped():
            time.sleep(_LOOK_SECONDS)
            show(onlooker.look(time.monotonic() - began))
    finally:
        done.set()
        metering.join()
        producer.join()
    return onlooker.look(time.monotonic() - began)


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


def _produce(broker: Broker, demo: Demo, view: View, stopped: Callable[[], bool]) -> None:
    def progress(sent: produce.Sent) -> None:
        view.produced = sent.records
        if stopped():
            raise _Stopped

    lines = itertools.chain.from_iterable(chunk.splitlines() for chunk in synth.generate(demo.profile))
    topic, mapping = next(iter(demo.meter.inputs.items()))
    pacing = produce.Pacing(None, lambda: 0, time.sleep)
    with contextlib.suppress(_Stopped):
        produce.send(broker, topic, lines, mapping, Referee(), pacing, demo.lines_per_message, progress)


def _all_committed(broker: Broker, demo: Demo) -> bool:
    """Nothing but transaction marks lies behind the committed offsets; the input has none."""
    topics = list(demo.meter.inputs)
    committed, extents = broker.committed(demo.meter.group, topics), broker.extents(topics)
    positions = {place: position.offset if position else extents[place].begin for place, position in committed.items()}
    return all(positions.get(place, extent.begin) >= extent.end for place, extent in extents.items())


class _Onlooker:
    """Reads token-live as any operator's program may. Counters are absolute within a part: the last word counts."""

    def __init__(self, broker: Broker, topic: str, view: View) -> None:
        self._broker, self._topic, self.view = broker, topic, view
        self._next: dict[Place, Offset] = {}
        self._parts: dict[str, dict[str, Any]] = {}  # the last summary of each
        self._cells: dict[tuple[str, str, str, str], tuple[int, ...]] = {}  # part, window, model, chip -> counters
        self._tokens: deque[tuple[float, int]] = deque(maxlen=1 + round(3 / _LOOK_SECONDS))

    def look(self, seconds: float) -> View:
        for place, extent in self._broker.extents([self._topic]).items():
            begin = self._next.get(place, extent.begin)
            for messages in self._broker.read(place, begin, extent.end):
                for value in messages.values:
                    self._learn(orjson.loads(value or b"{}"))
            self._next[place] = extent.end
        self._sum(seconds)
        return self.view

    def _learn(self, summary: dict[str, Any]) -> None:
        part = summary["part"]
        self._parts[part] = summary
        for cell in summary["cells"]:
            key = part, cell["window_start"], cell["model"], cell["chip"]
            self._cells[key] = tuple(cell[name] for name in COUNTERS)
        self.view.commits += 1
        self.view.device = summary["device"]

    def _sum(self, seconds: float) -> None:
        view = self.view
        by_model: dict[str, list[Usage]] = defaultdict(list)
        by_chip: dict[str, list[Usage]] = defaultdict(list)
        for (_, _, model, chip), counters in self._cells.items():
            by_model[model].append(Usage(*counters))
            by_chip[chip].append(Usage(*counters))
        view.seconds = seconds
        view.by_model = {name: add(usages) for name, usages in by_model.items()}
        view.by_chip = {name: add(usages) for name, usages in by_chip.items()}
        view.usage = add(view.by_model.values()) if by_model else Usage()
        for name in ("read", "counted", "duplicates", "rejected", "empty"):
            view.records[name] = sum(summary["records"][name] for summary in self._parts.values())
        self._tokens.append((seconds, view.usage.total_tokens))
        (then, before), (now, tokens) = self._tokens[0], self._tokens[-1]
        view.tokens_per_second = (tokens - before) / (now - then) if now > then else 0.0
