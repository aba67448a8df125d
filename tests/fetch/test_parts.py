"""What the fetcher asks for next, after every kind of answer: no sockets, no clock."""

import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fetch.batches import Record, batch, changed
from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.broker.kafka.fetch import parts, wire
from tokenometer.processor.broker.kafka.fetch.parts import Claim, Failure, Fallback, Parts
from tokenometer.processor.broker.kafka.fetch.walk import KEYS, Status, Walker

TOPIC, OTHER = uuid.UUID(int=7), uuid.UUID(int=8)
FIRST, SECOND = Place("logs", 0), Place("logs", 1)
NODE, REPLICA = 1, 2
BROKERS = {NODE: ("one", 9092), REPLICA: ("two", 9092)}


def known(
    node: int = NODE, epoch: int = 5, error: int = 0, topic_id: uuid.UUID = TOPIC, partitions: Sequence[int] = (0, 1)
) -> wire.Metadata:
    leaders = {number: wire.Leader(0, node, epoch) for number in partitions}
    return wire.Metadata(BROKERS, {"logs": wire.Topic(error, topic_id, leaders)})


def answer(place: Place = FIRST, records: bytes = b"", error: int = 0, nearer: int = -1, **more: Any) -> wire.Part:
    fields = {"stable": 100, "aborted": (), "diverged": False} | more
    return wire.Part(TOPIC, place.partition, error, nearer=nearer, records=memoryview(records), **fields)


class Reading:
    """One partition's reader, step by step. `now` moves only by hand."""

    def __init__(self, starts: dict[Place, int] | None = None, settled: bool = True) -> None:
        self.parts = Parts({"logs": KEYS})
        self.walker = Walker()
        self.now = 1_000.0
        self.parts.add(starts or {FIRST: 10})
        if settled:
            self.parts.settle(known(), self.now)

    def claim(self, node: int = NODE) -> list[Claim]:
        return self.parts.claim(node, self.now)

    def asked(self, node: int = NODE) -> dict[Place, int]:
        return {claim.wanted.place: claim.wanted.offset for claim in self.claim(node)}

    def answer(self, claims: list[Claim], *answers: wire.Part, node: int = NODE) -> list[tuple[Claim, wire.Part]]:
        return self.parts.answered(node, claims, wire.Fetched(0, 0, list(answers)), self.now)

    def deliver(self, todo: list[tuple[Claim, wire.Part]]) -> None:
        for claim, part in todo:
            walked = self.walker.walk(part.records, claim.wanted.offset, part.aborted)
            self.parts.delivered(claim, walked, len(part.records) > 0, self.now)

    def got(self, *answers: wire.Part, node: int = NODE) -> None:
        self.deliver(self.answer(self.claim(node), *answers, node=node))

    def offsets(self, most: int = 1_000) -> list[int]:
        return [int(offset) for messages in self.parts.take(most) for offset in messages.offsets]


def some(base: int, count: int = 5, epoch: int = 5) -> bytes:
    return batch(base, [Record(b"x" * 10)] * count, epoch=epoch)


def test_what_has_no_leader_is_asked_for_of_nobody() -> None:
    reading = Reading(settled=False)
    assert reading.parts.homeless(reading.now) == {"logs"} and reading.claim() == []
    reading.parts.settle(known(), reading.now)
    assert reading.parts.homeless(reading.now) == set() and reading.asked() == {FIRST: 10}
    assert reading.claim(REPLICA) == []


def test_the_next_request_goes_on_before_the_answer_is_walked() -> None:
    reading = Reading()
    todo = reading.answer(reading.claim(), answer(records=some(10)))
    (claim,) = reading.claim()
    assert (claim.wanted.offset, claim.wanted.read_epoch, claim.wanted.epoch) == (15, 5, 5)
    assert reading.offsets() == []
    reading.deliver(todo)
    assert reading.offsets() == [10, 11, 12, 13, 14] and reading.parts.ends() == {FIRST: 100}


def test_a_seek_forgets_what_waits_and_what_is_on_its_way() -> None:
    reading = Reading()
    reading.got(answer(records=some(10)))
    claims = reading.claim()
    reading.parts.add({FIRST: 50})
    assert reading.offsets() == [] and reading.parts.waiting_bytes == 0
    assert reading.answer(claims, answer(records=some(15))) == []
    (claim,) = reading.claim()
    assert (claim.wanted.offset, claim.wanted.read_epoch) == (50, wire.NO_EPOCH)


def test_a_seek_between_an_answer_and_its_walk_counts() -> None:
    reading = Reading()
    todo = reading.answer(reading.claim(), answer(records=some(10)))
    reading.parts.add({FIRST: 50})
    reading.deliver(todo)
    assert reading.offsets() == [] and reading.asked() == {FIRST: 50}


def test_what_is_given_up_is_forgotten() -> None:
    reading = Reading({FIRST: 10, SECOND: 0})
    reading.got(answer(records=some(10)), answer(SECOND, some(0)))
    todo = reading.answer(reading.claim(), answer(records=some(15)), answer(SECOND, some(5)))
    reading.parts.remove([FIRST])
    reading.deliver(todo)
    assert {messages.place for messages in reading.parts.take(100)} == {SECOND}
    assert reading.parts.waiting_bytes == 0 and reading.asked() == {SECOND: 10}


def test_what_is_paused_is_neither_asked_for_nor_handed_out() -> None:
    reading = Reading({FIRST: 10, SECOND: 0})
    reading.got(answer(records=some(10)), answer(SECOND, some(0)))
    reading.parts.pause([FIRST], True)
    assert reading.asked() == {SECOND: 5}
    assert reading.offsets() == [0, 1, 2, 3, 4] and reading.parts.ready() == 0
    reading.parts.add({FIRST: 12})  # a seek outlasts a pause
    assert FIRST not in reading.asked()
    reading.parts.pause([FIRST], False)
    assert reading.asked()[FIRST] == 12


def test_no_more_than_was_asked_for_is_taken_and_the_rest_waits() -> None:
    reading = Reading({FIRST: 10, SECOND: 0})
    reading.got(answer(records=some(10)), answer(SECOND, some(0)))
    taken: dict[Place, list[int]] = {FIRST: [], SECOND: []}
    for _ in range(4):
        found = reading.parts.take(3)
        assert sum(len(messages.offsets) for messages in found) <= 3
        for messages in found:
            assert [len(value or b"") for value in messages.values] == [10] * len(messages.offsets)
            taken[messages.place] += messages.offsets.tolist()
    assert taken == {FIRST: [10, 11, 12, 13, 14], SECOND: [0, 1, 2, 3, 4]} and reading.parts.waiting_bytes == 0


def test_nothing_is_asked_for_while_enough_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading()
    reading.got(answer(records=some(10)))
    monkeypatch.setattr(parts, "WAITING_BYTES_MAX", reading.parts.waiting_bytes)
    assert reading.claim() == []
    reading.parts.take(1)
    assert reading.asked() == {FIRST: 15}


def test_who_got_something_waits_for_the_others() -> None:
    reading = Reading({FIRST: 10, SECOND: 0})
    for got, first in ((FIRST, SECOND), (SECOND, FIRST), (FIRST, SECOND)):
        offset = reading.asked()[got]
        reading.got(answer(got, some(offset)))
        assert next(iter(reading.asked())) == first


# --- Errors ---


@pytest.mark.parametrize("error", parts._LOOK_AGAIN)
def test_a_leader_that_leads_no_more_is_looked_for(error: int) -> None:
    reading = Reading()
    reading.got(answer(error=error))
    assert reading.claim() == [] and reading.parts.homeless(reading.now) == set() and reading.parts.notes
    reading.now += parts.RETRY_SECONDS
    assert reading.parts.homeless(reading.now) == {"logs"}
    reading.parts.settle(known(REPLICA, epoch=4), reading.now)  # older than what we knew
    reading.now += parts.RETRY_SECONDS
    assert reading.claim(REPLICA) == [] and reading.parts.homeless(reading.now) == {"logs"}
    reading.parts.settle(known(REPLICA, epoch=6), reading.now)
    assert reading.asked(REPLICA) == {FIRST: 10}


@pytest.mark.parametrize("error", parts._TRY_AGAIN)
def test_an_error_that_passes_is_waited_out(error: int) -> None:
    reading = Reading()
    reading.got(answer(error=error))
    assert reading.claim() == [] and not reading.parts.events
    reading.now += parts.RETRY_SECONDS
    assert reading.asked() == {FIRST: 10}


@pytest.mark.parametrize("error", [1, 29, 17])
def test_an_error_that_does_not_pass_is_said_once_and_stops_the_partition(error: int) -> None:
    reading = Reading({FIRST: 10, SECOND: 0})
    reading.got(answer(error=error), answer(SECOND, some(0)))
    assert list(reading.parts.events) == [Failure(FIRST, error)]
    reading.now += 1_000
    assert reading.asked() == {SECOND: 5}
    reading.parts.add({FIRST: 3})
    assert reading.asked()[FIRST] == 3


def test_a_log_that_was_cut_back_is_out_of_range() -> None:
    reading = Reading()
    reading.got(answer(diverged=True))
    (failure,) = reading.parts.events
    assert isinstance(failure, Failure) and failure.code == parts.OUT_OF_RANGE and "cut back" in failure.text


def test_a_topic_that_was_made_anew_is_out_of_range() -> None:
    reading = Reading()
    reading.got(answer(error=100))
    reading.now += 1
    reading.parts.settle(known(topic_id=OTHER), reading.now)
    (failure,) = reading.parts.events
    assert isinstance(failure, Failure) and failure.code == parts.OUT_OF_RANGE and "made anew" in failure.text


@pytest.mark.parametrize("metadata", [known(error=parts.MISSING, partitions=()), known(partitions=(1,))])
def test_a_topic_may_be_missing_for_a_while(metadata: wire.Metadata) -> None:
    reading = Reading(settled=False)
    for _ in range(2):
        reading.parts.settle(metadata, reading.now)
        assert not reading.parts.events
        reading.now += parts.MISSING_SECONDS
    reading.parts.settle(metadata, reading.now + 0.1)
    assert list(reading.parts.events) == [Failure(FIRST, parts.MISSING)]


def test_a_topic_that_may_not_be_read_is_refused() -> None:
    reading = Reading(settled=False)
    reading.parts.settle(known(error=29, partitions=()), reading.now)
    assert list(reading.parts.events) == [Failure(FIRST, 29)]


def test_a_broker_that_is_gone_leads_nothing_any_more() -> None:
    reading = Reading()
    claims = reading.claim()
    reading.parts.lose(NODE, reading.now)
    assert reading.answer(claims, answer(records=some(10))) == [] and reading.claim() == []
    reading.now += 1
    assert reading.parts.homeless(reading.now) == {"logs"}


# --- Broken batches ---


def test_a_broken_batch_is_asked_for_again_and_stops_the_partition_in_the_end() -> None:
    reading = Reading()
    broken = some(10) + changed(some(15), 57, b"\0\0\0\7")
    for attempt in range(1, parts.BROKEN_MAX + 1):
        reading.now += 10
        claims = reading.claim()
        todo = reading.answer(claims, answer(records=broken))
        early = reading.claim()  # as if it were whole
        assert early[0].wanted.offset == 20
        reading.deliver(todo)
        assert reading.answer(early, answer(records=some(20))) == [], "nothing comes after a gap"
        assert reading.offsets() == ([10, 11, 12, 13, 14] if attempt == 1 else [])
        assert bool(reading.parts.events) == (attempt == parts.BROKEN_MAX)
        broken = changed(some(15), 57, b"\0\0\0\7")
        assert reading.claim() == []
    (failure,) = reading.parts.events
    assert isinstance(failure, Failure) and failure.text.startswith("at offset 15 a batch is broken")


def test_a_whole_batch_makes_up_for_broken_ones() -> None:
    reading = Reading()
    for turn in range(3 * parts.BROKEN_MAX):
        reading.now += 10
        offset = reading.asked()[FIRST]
        whole = some(offset)
        reading.got(answer(records=whole if turn % 3 == 2 else whole[:-1]))
    assert not reading.parts.events and reading.offsets() == list(range(10, 10 + 5 * parts.BROKEN_MAX))


@pytest.mark.parametrize("status", parts._UNABLE)
def test_what_cannot_be_read_is_left_to_librdkafka(status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {Status.OLD_FORMAT: changed(some(15), 16, b"\1"), Status.UNKNOWN_CODEC: changed(some(15), 22, b"\5"),
            Status.TOO_LARGE: batch(15, [Record(b"x" * 9_000)], "gzip")}[status]  # fmt: skip
    reading = Reading()
    reading.walker = Walker(limit=1_000)
    reading.got(answer(records=some(10) + data))
    assert reading.offsets() == [10, 11, 12, 13, 14]
    assert list(reading.parts.events) == [Fallback([FIRST], parts._UNABLE[status])]
    reading.now += 1_000
    assert reading.claim() == []


# --- Nearer replicas ---


def test_a_nearer_replica_is_read_for_a_while() -> None:
    reading = Reading()
    reading.got(answer(nearer=REPLICA))
    assert reading.claim() == [] and reading.asked(REPLICA) == {FIRST: 10}
    reading.got(answer(records=some(10)), node=REPLICA)
    reading.now += parts.NEARER_SECONDS
    assert reading.claim(REPLICA) == [] and reading.asked() == {FIRST: 15}


def test_a_replica_that_knows_less_does_not_make_an_offset_out_of_range() -> None:
    reading = Reading()
    reading.got(answer(nearer=REPLICA))
    reading.got(answer(error=parts.OUT_OF_RANGE), node=REPLICA)
    assert not reading.parts.events
    reading.now += 1
    reading.parts.settle(known(), reading.now)
    assert reading.asked() == {FIRST: 10}
    reading.got(answer(error=parts.OUT_OF_RANGE))
    assert list(reading.parts.events) == [Failure(FIRST, parts.OUT_OF_RANGE)]


def test_messages_are_ours() -> None:
    reading = Reading()
    reading.got(answer(records=some(10, 2)))
    (messages,) = reading.parts.take(10)
    assert isinstance(messages, Messages) and messages.place == FIRST and messages.next_offset == 12
    assert list(messages.values) == [b"x" * 10] * 2
