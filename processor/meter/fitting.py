"""Whether logs fit their mappings. A topic most of whose records are rejected was given the wrong mapping, or its
producer changed: nothing of it is billed, and that must be heard.

Owns: the counts of the last while by topic, and the judgement on them.
Promises: no clock and no broker of its own. `committed` is called from one thread; `misfits` may be read from any.
"""

import logging
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenometer.kernels.engine import CONFLICTING
from tokenometer.processor.meter.emission import DeadRecord, Misfit
from tokenometer.processor.records.sample import keys_of
from tokenometer.schemas.mapping import Mapping as RecordMapping
from tokenometer.schemas.mapping_errors import show_path

log = logging.getLogger("tokenometer.meter")
SLOW_INTERVALS = 10  # a slow log is judged by the records of so many intervals
_Fault = tuple[str, str | None]  # reason and field


@dataclass(frozen=True)
class FitSettings:
    """A log does not fit where more than `share` of its records are rejected: of the last `interval_ms`, or, where it
    had fewer than `records` then, of the last so many. Records that are empty or skipped are not judged."""

    share: float = 0.5
    records: int = 1000
    interval_ms: int = 60_000


@dataclass
class _Topic:
    """samples: of each commit its time, the records judged, and the rejects by fault; sums: over all of them."""

    samples: deque[tuple[int, int, Counter[_Fault]]] = field(default_factory=deque)
    judged: int = 0
    faults: Counter[_Fault] = field(default_factory=Counter)
    misfit: Misfit | None = None
    warned_ms: int | None = None

    def add(self, now_ms: int, judged: int, faults: Counter[_Fault]) -> None:
        self.samples.append((now_ms, judged, faults))
        self.judged += judged
        self.faults.update(faults)

    def forget(self, now_ms: int, settings: FitSettings) -> None:
        while self.samples:
            age_ms, judged = now_ms - self.samples[0][0], self.samples[0][1]
            is_slow = self.judged - judged < settings.records and age_ms <= SLOW_INTERVALS * settings.interval_ms
            if age_ms <= settings.interval_ms or is_slow:
                return
            self.judged -= judged
            self.faults -= self.samples.popleft()[2]


class Fitting:
    """What of a meter's topics does not fit, commit by commit."""

    def __init__(self, settings: FitSettings, mappings: Mapping[str, RecordMapping]) -> None:
        self._settings, self._mappings = settings, mappings
        self._topics: dict[str, _Topic] = {}
        self.misfits: Sequence[Misfit] = ()

    def committed(
        self, now_ms: int, held: Collection[str], judged: Mapping[str, int], letters: Iterable[DeadRecord]
    ) -> None:
        """held: topics that this meter has a partition of. judged: by topic, the records of this commit that were
        counted, duplicates or rejected. letters: what became of the last."""
        rejected: dict[str, list[DeadRecord]] = {}
        for letter in letters:
            if letter.rejection != CONFLICTING:  # a duplicate, not a reject
                rejected.setdefault(letter.place.topic, []).append(letter)
        self._topics = {name: topic for name, topic in self._topics.items() if name in held}
        for name in held:
            topic, its = self._topics.setdefault(name, _Topic()), rejected.get(name, [])
            if judged.get(name):
                topic.add(now_ms, judged[name], Counter((each.rejection.reason, each.rejection.field) for each in its))
            topic.forget(now_ms, self._settings)
            topic.misfit = self._judge(name, topic, its)
            self._warn(now_ms, name, topic)
        self.misfits = tuple(topic.misfit for _, topic in sorted(self._topics.items()) if topic.misfit)

    def _judge(self, name: str, topic: _Topic, letters: Sequence[DeadRecord]) -> Misfit | None:
        rejected = topic.faults.total()
        if topic.judged < self._settings.records or rejected <= self._settings.share * topic.judged:
            return None
        fault = min(topic.faults, key=lambda fault: (-topic.faults[fault], fault[0], fault[1] or ""))
        keys = next((keys_of(each.value) for each in letters if _fault(each) == fault), None)
        if keys is None:  # none of this commit
            keys = topic.misfit.keys if topic.misfit and topic.misfit.fault == fault else ()
        return Misfit(name, topic.judged, rejected, *fault, topic.faults[fault], keys)

    def _warn(self, now_ms: int, name: str, topic: _Topic) -> None:
        """Once an interval, as long as it lasts."""
        misfit = topic.misfit
        if misfit is None:
            if topic.warned_ms is not None:
                log.info("%s fits its mapping again", name)
            topic.warned_ms = None
        elif topic.warned_ms is None or now_ms - topic.warned_ms >= self._settings.interval_ms:
            topic.warned_ms = now_ms
            log.warning("%s", sentence(misfit, self._mappings[name]))


def _fault(letter: DeadRecord) -> _Fault:
    return letter.rejection.reason, letter.rejection.field


def sentence(misfit: Misfit, mapping: RecordMapping | None = None) -> str:
    """For logs and /healthz; one line."""
    known = f"its mapping {mapping.name}" if mapping else "its mapping"
    keys = ", ".join(misfit.keys)
    return (
        f"{misfit.topic} does not fit {known}: {misfit.rejected:,} of its last {misfit.judged:,} records were rejected,"
        f" {misfit.most:,} of them for {misfit.reason}{_where(misfit.field, mapping)}; "
        + (f"such a record has the keys {keys}" if keys else "such a record has no keys that can be read")
    )


def _where(name: str | None, mapping: RecordMapping | None) -> str:
    if name is None:
        return ""
    fields = [] if mapping is None else [each for each in mapping.fields if each.name == name and each.paths]
    return f" of {name}" + (f", read from {' or '.join(map(show_path, fields[0].paths))}" if fields else "")
