"""Whether a meter does what it is for: each way in which it may not, how soon it is said, and that nothing else is."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests import streams
from tokenometer.processor.broker import BrokerError, Extent, GroupMember, Offset, Place
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.meter import sharing, watching
from tokenometer.processor.meter.health import Health
from tokenometer.processor.meter.sharing import Ownerless
from tokenometer.processor.meter.watching import (
    LOOK_SECONDS,
    PATIENCE_MS,
    HealthJudge,
    HealthWatch,
    Outside,
    Standing,
    Verdict,
)

A, B = Place("logs", 0), Place("logs", 1)
ME, OTHER = GroupMember("me", [A]), GroupMember("other", [B])
BOTH = {A: Extent(Offset(0), Offset(10)), B: Extent(Offset(0), Offset(10))}
AT_END = Standing({A: Offset(10)}, {})


def after(
    judge: HealthJudge, standing: Standing, outside: Outside | BrokerError, ms: int, step_ms: int = 2500
) -> Verdict:
    """Look at the same for so long."""
    for now_ms in range(0, ms, step_ms):
        judge.look(now_ms, standing, outside)
    return judge.look(ms, standing, outside)


def judge(has_message: Callable[[Place, Offset, Offset], bool] = lambda place, begin, end: True) -> HealthJudge:
    return HealthJudge("me", "group", has_message)


def test_patience_and_a_look_are_below_15_seconds() -> None:
    assert PATIENCE_MS + 1000 * LOOK_SECONDS < 15_000


@pytest.mark.parametrize(
    ("standing", "outside", "reason"),
    [
        (AT_END, Outside([ME, OTHER], BOTH), None),
        (Standing({}, {}), Outside([GroupMember("me", []), OTHER, GroupMember("third", [A])], BOTH), None),  # a spare
        (Standing({}, {}), Outside([GroupMember("me", []), OTHER], BOTH), "no partition, though the group group has 2"),
        (AT_END, Outside([OTHER], BOTH), "me is in no group: group has 1 other members"),
        (AT_END, Outside([], BOTH), "me is in no group"),
        (Standing({A: Offset(4)}, {}), Outside([ME, OTHER], BOTH), "logs, partition 0: messages wait at offset 4"),
        (Standing({A: Offset(10)}, {}, "the client died"), Outside([ME, OTHER], BOTH), "the client died"),
        (AT_END, BrokerError("timed out"), "Kafka does not answer: timed out"),
    ],
)  # fmt: skip
def test_what_lasts_is_said_and_what_passes_is_not(
    standing: Standing, outside: Outside | BrokerError, reason: str | None
) -> None:
    assert not after(judge(), standing, outside, PATIENCE_MS - 2500).reasons
    found = after(judge(), standing, outside, PATIENCE_MS).reasons
    assert len(found) == (reason is not None), found
    assert reason is None or found[0].startswith(reason)


def test_one_good_look_begins_the_count_anew() -> None:
    watching_one = judge()
    after(watching_one, AT_END, Outside([OTHER], BOTH), PATIENCE_MS - 2500)
    watching_one.look(PATIENCE_MS - 1000, AT_END, Outside([ME, OTHER], BOTH))
    assert not watching_one.look(PATIENCE_MS, AT_END, Outside([OTHER], BOTH)).reasons


def test_a_question_that_was_not_answered_began_when_it_was_asked() -> None:
    assert judge().look(PATIENCE_MS, AT_END, BrokerError("no answer"), asked_ms=0).reasons


def test_a_partition_that_advances_or_is_read_again_is_no_trouble() -> None:
    moving, refilling = judge(), judge()
    for step in range(20):
        standing = Standing({A: Offset(step // 2)}, {})
        assert not moving.look(step * 2500, standing, Outside([ME, OTHER], BOTH)).reasons
        standing = Standing({A: Offset(9)}, {A: Offset(step // 2)})
        assert not refilling.look(step * 2500, standing, Outside([ME, OTHER], BOTH)).reasons


def test_transaction_marks_at_the_end_are_no_messages_that_wait() -> None:
    asked: list[tuple[Offset, Offset]] = []

    def has_message(place: Place, begin: Offset, end: Offset) -> bool:
        asked.append((begin, end))
        return False

    one = judge(has_message)
    assert not after(one, Standing({A: Offset(9)}, {}), Outside([ME, OTHER], BOTH), 60_000).reasons
    assert asked == [(9, 10)], "it is asked once"


def test_a_meter_without_partitions_tells_the_lag_of_those_that_nobody_has() -> None:
    outside = Outside([GroupMember("me", [])], BOTH, {A: Offset(3), B: None})
    assert judge().look(0, Standing({}, {}), outside).lags == {A: 7, B: 10}
    assert judge().look(0, Standing({A: Offset(4)}, {}), outside).lags == {A: 6}


# --- Partitions that nobody has ---


def ownerless(name: str, members: list[GroupMember], ms: int) -> list[Place]:
    """What this meter is to act on after it has seen the same for so long."""
    one = Ownerless(name, PATIENCE_MS)
    for now_ms in range(0, ms, 2500):
        one.look(now_ms, members, [A, B])
    return one.look(ms, members, [A, B])


def test_the_first_meter_by_name_acts_for_a_partition_that_nobody_has_and_the_next_one_later() -> None:
    members = [ME, GroupMember("other", [])]
    assert ownerless("me", members, PATIENCE_MS - 1) == []
    assert ownerless("me", members, PATIENCE_MS) == [B]
    assert ownerless("other", members, 2 * PATIENCE_MS - 1) == []
    assert ownerless("other", members, 2 * PATIENCE_MS) == [B]


@pytest.mark.parametrize(
    "members",
    [
        [ME, OTHER],
        [ME, GroupMember(None, [B])],  # that visits
        [GroupMember("me", []), GroupMember("other", [])],  # Kafka says nothing of partitions while it shares out
        [],
    ],
)
def test_nobody_acts_where_all_is_shared_out_or_is_being_shared_out(members: list[GroupMember]) -> None:
    assert ownerless("me", members, 10 * PATIENCE_MS) == []


def test_a_partition_that_has_an_owner_for_a_moment_is_waited_for_anew() -> None:
    one, alone = Ownerless("me", PATIENCE_MS), [ME]
    one.look(0, alone, [A, B])
    one.look(PATIENCE_MS - 1, [ME, OTHER], [A, B])
    assert one.look(PATIENCE_MS, alone, [A, B]) == [] == one.lasting
    assert one.look(2 * PATIENCE_MS, alone, [A, B]) == [B]
    assert one.look(2 * PATIENCE_MS + 1, alone, [A, B]) == [], "who acts waits anew"
    assert one.lasting == [B], "it is nobody's as long as it is"
    assert one.look(3 * PATIENCE_MS, alone, [A, B]) == [B]
    assert one.look(3 * PATIENCE_MS + 1, [ME, OTHER], [A, B]) == [] == one.lasting


def test_every_meter_sees_what_lasts_whosever_turn_it_is() -> None:
    second = Ownerless("other", PATIENCE_MS)
    second.look(0, [ME, GroupMember("other", [])], [A, B])
    assert second.look(PATIENCE_MS, [ME, GroupMember("other", [])], [A, B]) == []
    assert second.lasting == [B]


def test_a_visit_makes_a_group_share_out_and_takes_nothing() -> None:
    broker, told = MemoryBroker(), Told()
    broker.create_topic("logs", 2, {})
    broker.append("logs", [b"{}"])
    member = broker.consumer("group", ["logs"], told, "me")
    member.poll(0, 10)
    done = threading.Event()

    def polls() -> None:
        while not done.is_set():
            member.poll(0.01, 10)

    thread = threading.Thread(target=polls)
    thread.start()
    sharing.visit(broker, "group", ["logs"])
    done.set()
    thread.join()
    member.poll(0, 10)
    assert told.taken and set(member.assignment()) == {A, B}
    assert [each.name for each in broker.members("group")] == ["me"]
    assert set(broker.committed("group", ["logs"]).values()) == {None}
    member.close()


class Told:
    """A listener that begins at the beginning; taken: what it had to give up."""

    def __init__(self) -> None:
        self.taken: list[Place] = []

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        return dict.fromkeys(places, Offset(0))

    def revoked(self, places: Sequence[Place]) -> None:
        self.taken += places

    def lost(self, places: Sequence[Place]) -> None:
        self.taken += places


# --- A real meter, on the model of Kafka ---


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(watching, "PATIENCE_MS", 500)


class Run:
    """A meter, its health and its watch."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.health = Health(lambda: time.monotonic_ns() // 1_000_000, "cpu")
        self.meter = streams.make_meter(broker, "m", commit_interval_ms=50, inline=False)
        self.meter._on_commit = self.health.committed
        settings = self.meter._settings
        self.watch = HealthWatch(
            broker, "m", settings.group, settings.inputs, self.meter.standing, self.health.judged,
            lambda: time.monotonic_ns() // 1_000_000,
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(BrokerError):  # where it is told to end while it tries again
            self.meter.run(self._stop.is_set)

    def until(self, wanted: str) -> str:
        """The state that has this text, as soon as there is one; told together with whether it is healthy."""
        told: list[tuple[bool, dict[str, Any]]] = []

        def is_told() -> bool:
            told[:] = [self.health.status()]
            return wanted in told[0][1]["status"]

        self.wait(is_told, wanted)
        ((healthy, state),) = told
        assert healthy == (wanted == "ok")
        return str(state["status"])

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: {self.health.status()}"
            time.sleep(0.02)

    def close(self) -> None:
        self.watch.close()
        self._stop.set()
        self._thread.join()


@pytest.fixture
def stage(hasty: None) -> Iterator[dict[str, Any]]:
    """`faults`: what happens at an operation of the broker."""
    known: dict[str, Any] = {"faults": lambda name: None}
    known["broker"] = MemoryBroker(faults=lambda name: known["faults"](name))
    streams.make_topics(known["broker"], 1, [streams.INPUT])
    known["run"] = Run(known["broker"])
    yield known
    known["faults"] = lambda name: None
    known["run"].close()


def test_a_commit_that_hangs_is_heard_of_and_its_end_too(
    stage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run, let = stage["run"], threading.Event()
    stage["broker"].append(streams.INPUT, [b"{}"])
    run.until("ok")
    stage["faults"] = lambda name: let.wait(30) if name == "commit.before" else None
    stage["broker"].append(streams.INPUT, [b"{}"] * 3)
    run.until(f"{streams.INPUT}, partition 0: messages wait at offset")
    run.wait(lambda: "not healthy: " in caplog.text, "nothing is said")
    let.set()
    run.until("ok")
    run.wait(lambda: "healthy again" in caplog.text, "nothing is said")  # by the thread that watches


def test_brokers_that_refuse_everything_are_the_reason(stage: dict[str, Any]) -> None:
    stage["run"].until("ok")

    def refuse(name: str) -> None:
        raise BrokerError(f"{name}: all brokers are down")

    stage["faults"] = refuse
    assert "all brokers are down" in stage["run"].until("Kafka does not answer")


def test_the_watch_visits_a_group_whose_partition_is_nobodys_and_a_visit_that_fails_is_told(
    stage: dict[str, Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage["run"].until("ok")
    broker = stage["broker"]
    broker.create_topic("more", 1, {})
    monkeypatch.setattr(broker, "members", lambda group: [GroupMember("m", [Place("more", 0)])])
    visits: list[str] = []
    join = broker.consumer

    def refuses(group: str, topics: Sequence[str], listener: Any, member: str | None = None, **more: Any) -> Any:
        if member is not None:
            return join(group, topics, listener, member, **more)
        visits.append(group)
        raise BrokerError("the group is full")

    monkeypatch.setattr(broker, "consumer", refuses)
    stage["run"].wait(lambda: len(visits) >= 2, "no visit, or no second one")
    assert f"nobody in the group {streams.GROUP} has {streams.INPUT}-0: a member comes and goes" in caplog.text
    assert "it could not come, and another one will try: the group is full" in caplog.text
