"""One run of a benchmark of the build in this directory, for bench_builds: MODULE cpu|wall.

With `cpu` a benchmark's clock is the processor time of all threads, and a meter commits each COMMIT_RECORDS records
that it was given, in place of each second: else a busy machine would change how many rows there are for a record. It
reads no further while the commit before is on its way, as a meter does that keeps up with its log.

With `wall` a meter commits each COMMIT_SECONDS, about as long as the slower build's commits take: else the one whose
commits take longer commits less often, has fewer rows to write, and passes for the faster one. What a log ends with it
commits at once: else a run takes as many whole intervals as it has begun, which is an eighth of it more or less.
"""

import dataclasses
import importlib
import io
import json
import os
import sys
import time
import types
from typing import Any

COMMIT_RECORDS = 1_200_000
COMMIT_SECONDS = 2.0
_IDLE_MS = 50  # that a poll without messages counts for, so that the end of a log is committed too
_PAUSE_SECONDS = 0.002


def paced(bench: Any) -> type:
    """The benchmark's meter, by that clock. Both builds have these few names of the meter's inside."""
    meter: Any = bench._TimedMeter
    clock = sys.modules[bench.Meter.__module__].Clock  # type: ignore[attr-defined]

    class Paced(meter):  # type: ignore[misc]
        def __init__(self, broker: Any, engine: Any, settings: Any, run: str, on_commit: Any) -> None:
            (topic,) = settings.inputs
            self._lines_of_message = bench.LINES[topic.removeprefix("bench-")]
            self._given = self._idle_ms = 0

            def told(done: Any) -> None:
                on_commit(dataclasses.replace(done, took_ms=0))  # the benchmark takes it from its own clock

            super().__init__(broker, engine, settings, run, clock=clock(steady_ms=self._steady_ms), on_commit=told)

        def _steady_ms(self) -> int:
            return self._given * 1000 // COMMIT_RECORDS + self._idle_ms

        def _receive(self, messages: Any) -> None:
            self._given += len(messages.offsets) * self._lines_of_message
            super()._receive(messages)

        def step(self) -> None:
            while self._writing() and self._steady_ms() - self._last_commit_ms >= 1000:
                time.sleep(_PAUSE_SECONDS)
            before = self._given
            super().step()
            self._idle_ms += _IDLE_MS * (self._given == before)

        def _writing(self) -> bool:
            commit = self._commit
            return commit is not None and not (commit.done() and commit.result().done())

    return Paced


def seldom(bench: Any, records: int) -> type:
    """The benchmark's meter, with commits each COMMIT_SECONDS and after so many records."""

    class Seldom(bench._TimedMeter):  # type: ignore[misc]
        def __init__(self, broker: Any, engine: Any, settings: Any, run: str, on_commit: Any) -> None:
            (topic,) = settings.inputs
            self._lines_of_message = bench.LINES[topic.removeprefix("bench-")]
            self._given = 0
            settings = dataclasses.replace(settings, commit_interval_ms=int(COMMIT_SECONDS * 1000))
            super().__init__(broker, engine, settings, run, on_commit=on_commit)

        def _receive(self, messages: Any) -> None:
            self._given += len(messages.offsets) * self._lines_of_message
            super()._receive(messages)

        def step(self) -> None:
            super().step()
            if self._given >= records:
                self._feed(everything=True)
                self._last_commit_ms = 0  # so that the next step commits

    return Seldom


def main(module: str, clock: str) -> None:
    sys.path[0] = os.getcwd()  # the build's own benchmarks
    bench = importlib.import_module(f"bench.{module}")
    if clock == "cpu":
        used = time.process_time
        # A benchmark reads the clock by its own name `time`: its measurement is of processor time, no client's timeout.
        bench.time = types.SimpleNamespace(**{**vars(time), "monotonic": used, "perf_counter": used})
    if hasattr(bench, "_TimedMeter"):
        text = sys.stdin.readline()
        sys.stdin = io.StringIO(text)  # for the benchmark
        bench._TimedMeter = paced(bench) if clock == "cpu" else seldom(bench, json.loads(text)["records"])
    bench.main(["--child"])


if __name__ == "__main__":
    main(*sys.argv[1:])
