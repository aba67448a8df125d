"""Judges from outside of a meter's own loop whether the meter does its work.

Owns: a thread that asks the brokers every few seconds what is true of this meter, and the judgement on it. Of the group
it sees one thing more, a partition that nobody has, and has that shared out.
Promises: it never touches the engine or the meter's clients. What hangs the meter does not hang it, and where it hangs
itself, that is heard too: `Health` counts how long ago it last looked.

    the meter's own word     what it holds, how far it is, what it is trying to overcome     Standing
    the brokers' word        who is in the group, where partitions end                       Outside
                                                                                             ├─ judge ─> Verdict
                                               partitions that nobody has, for too long      └─ sharing.py
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tokenometer.processor.broker import Broker, BrokerError, Extent, GroupMember, Offset, Place
from tokenometer.processor.meter.sharing import Ownerless, visit

log = logging.getLogger("tokenometer.health")
LOOK_SECONDS = 2.5  # how long one look comes after the other
PATIENCE_MS = 10_000  # for what passes by itself: joining a group, a rebalance, a slow commit. With a look: below 15 s
TROUBLE_MS = 5_000  # what a meter has overcome is still told for so long: what comes again and again is one trouble


@dataclass(frozen=True)
class Standing:
    """The meter's own word. held: the next offset to be committed of each partition that it has. refilled: how far it
    has read those whose request ids it reads again. trouble: what it is trying to overcome."""

    held: Mapping[Place, Offset]
    refilled: Mapping[Place, Offset]
    trouble: str | None = None


@dataclass(frozen=True)
class Outside:
    """The brokers' word. committed: of partitions that no other member has, asked for where this meter has none."""

    members: Sequence[GroupMember]
    extents: Mapping[Place, Extent]
    committed: Mapping[Place, Offset | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """reasons: why the meter is not healthy. lags: messages (and transaction marks) after the last committed one, of
    the partitions that it has; if it has none, of those that no other member has. refilling: partitions whose request
    ids it reads again; their messages wait meanwhile. unowned: those that have been nobody's for too long."""

    reasons: Sequence[str]
    lags: Mapping[Place, int]
    refilling: int = 0
    unowned: Sequence[Place] = ()


class HealthJudge:
    """Judges what has been wrong for too long. It has no clock and no broker: looks come in."""

    def __init__(
        self,
        name: str,
        group: str,
        has_message: Callable[[Place, Offset, Offset], bool],
        patience_ms: int = PATIENCE_MS,
    ) -> None:
        """has_message: is there a message in this range of offsets? Transaction marks are none."""
        self._name, self._group, self._has_message, self._patience_ms = name, group, has_message, patience_ms
        self._since: dict[str, int] = {}  # kind of trouble -> when it was first seen
        self._progress: dict[Place, tuple[tuple[Offset, Offset | None], int]] = {}  # and since when
        self._empty: dict[Place, tuple[Offset, Offset]] = {}  # ranges without a message

    def look(
        self, now_ms: int, standing: Standing, outside: Outside | BrokerError, asked_ms: int | None = None
    ) -> Verdict:
        """asked_ms: when the brokers were asked, if that is a while ago: what is wrong now was wrong then."""
        began_ms = now_ms if asked_ms is None else asked_ms
        wrong: dict[str, str] = {}
        if standing.trouble is not None:
            wrong["trouble"] = standing.trouble
        if isinstance(outside, BrokerError):
            wrong["outside"] = f"Kafka does not answer: {outside}"
            return Verdict(self._lasting(now_ms, wrong, began_ms), {}, len(standing.refilled))
        wrong |= self._of_group(standing, outside)
        reasons = self._lasting(now_ms, wrong, began_ms)
        reasons += self._standing_still(now_ms, standing, outside)
        return Verdict(reasons, _lags(standing, outside), len(standing.refilled))

    def _of_group(self, standing: Standing, outside: Outside) -> dict[str, str]:
        members = len(outside.members)
        if all(member.name != self._name for member in outside.members):
            return {"group": f"{self._name} is in no group: {self._group} has {members} other members"}
        partitions = len(outside.extents)
        if not standing.held and members <= partitions:
            return {"idle": f"no partition, though the group {self._group} has {members} members for {partitions}"}
        return {}

    def _lasting(self, now_ms: int, wrong: Mapping[str, str], began_ms: int) -> list[str]:
        self._since = {kind: self._since.get(kind, began_ms) for kind in wrong}
        lasted = {kind: now_ms - since for kind, since in self._since.items()}
        return [
            f"{text}, for {lasted[kind] // 1000} s" for kind, text in wrong.items() if lasted[kind] >= self._patience_ms
        ]

    def _standing_still(self, now_ms: int, standing: Standing, outside: Outside) -> list[str]:
        found = []
        progress = {place: (offset, standing.refilled.get(place)) for place, offset in standing.held.items()}
        before, self._progress = self._progress, {}
        for place, now in progress.items():
            extent = outside.extents.get(place)
            waits = extent is not None and extent.end > now[0]
            same = waits and place in before and before[place][0] == now
            self._progress[place] = (now, before[place][1] if same else now_ms)
            still_ms = now_ms - self._progress[place][1]
            if extent is not None and still_ms >= self._patience_ms and self._is_waiting(place, now[0], extent.end):
                found.append(
                    f"{place.topic}, partition {place.partition}: messages wait at offset {now[0]}, for"
                    f" {still_ms // 1000} s"
                )
        return found

    def _is_waiting(self, place: Place, begin: Offset, end: Offset) -> bool:
        known_begin, known_end = self._empty.get(place, (None, Offset(0)))
        if known_begin == begin and known_end >= end:
            return False
        if self._has_message(place, begin, end):
            return True
        self._empty[place] = begin, end
        return False


def _lags(standing: Standing, outside: Outside) -> dict[Place, int]:
    if standing.held:
        ends = {place: outside.extents[place].end for place in standing.held if place in outside.extents}
        return {place: max(0, end - standing.held[place]) for place, end in ends.items()}
    begins = {place: outside.extents[place].begin if at is None else at for place, at in outside.committed.items()}
    return {place: max(0, outside.extents[place].end - begin) for place, begin in begins.items()}


class HealthWatch:
    """Looks at a meter until it is closed. `told` gets each verdict, in the watch's own thread."""

    def __init__(
        self,
        broker: Broker,
        name: str,
        group: str,
        topics: Iterable[str],
        standing: Callable[[], Standing],
        told: Callable[[Verdict], None],
        now_ms: Callable[[], int],
        commit_interval_ms: int = 1000,
    ) -> None:
        self._broker, self._name, self._group, self._topics = broker, name, group, list(topics)
        self._standing, self._told, self._now_ms = standing, told, now_ms
        patience_ms = PATIENCE_MS + max(0, commit_interval_ms - 1000)  # commits that are wanted seldom come seldom
        self._judge = HealthJudge(name, group, self._has_message, patience_ms)
        self._ownerless = Ownerless(name, PATIENCE_MS)
        self._said: set[str] = set()
        self._end = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def close(self) -> None:
        """Closes without waiting, because the watch may be asking a broker that does not answer."""
        self._end.set()

    def _run(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            asked_ms, standing = self._now_ms(), self._standing()
            try:
                outside = self._look(standing)
                verdict = self._judge.look(self._now_ms(), standing, outside, asked_ms)
                ownerless = self._ownerless.look(asked_ms, outside.members, list(outside.extents))
                verdict = replace(verdict, unowned=self._ownerless.lasting)
            except BrokerError as error:
                verdict = self._judge.look(self._now_ms(), self._standing(), error, asked_ms)
                ownerless = []
            if not self._end.is_set():
                self._told(verdict)
                self._log(verdict.reasons)
                self._share_out(ownerless)

    def _look(self, standing: Standing) -> Outside:
        members, extents = self._broker.members(self._group), self._broker.extents(self._topics)
        if standing.held:
            return Outside(members, extents)
        held = {place for member in members if member.name != self._name for place in member.places}
        committed = self._broker.committed(self._group, self._topics) if extents.keys() - held else {}
        free = {place: position and position.offset for place, position in committed.items() if place not in held}
        return Outside(members, extents, free)

    def _share_out(self, ownerless: Sequence[Place]) -> None:
        if not ownerless:
            return
        names = ", ".join(f"{place.topic}-{place.partition}" for place in ownerless)
        log.warning("nobody in the group %s has %s: a member comes and goes, to have it shared out", self._group, names)
        try:
            visit(self._broker, self._group, self._topics)
        except BrokerError as error:
            log.warning("it could not come, and another one will try: %s", error)

    def _has_message(self, place: Place, begin: Offset, end: Offset) -> bool:
        begin = max(begin, self._broker.extents([place.topic])[place].begin)
        return any(True for _ in self._broker.read(place, begin, end))

    def _log(self, reasons: Sequence[str]) -> None:
        """Once, when it begins and when it ends."""
        kinds = {reason.rpartition(", for ")[0] for reason in reasons}
        for reason in reasons:
            if reason.rpartition(", for ")[0] not in self._said:
                log.warning("not healthy: %s", reason)
        if self._said and not kinds:
            log.info("healthy again")
        self._said = kinds
