"""Faust's consumer as the rollup has it, with a thread that we play. The real one: tests/kafka/test_rollup_kafka.py."""

import asyncio
from types import SimpleNamespace

import faust
import pytest
from aiokafka.errors import IllegalStateError
from faust.types import TP

from tokenometer.processor.broker import BrokerError, OutOfRange
from tokenometer.processor.rollup.delivery import MessagesSkipped, RollupConsumer, Transport

ZERO, ONE, CHANGELOG = TP("token-live", 0), TP("token-live", 1), TP("changelog", 0)


class Thread:
    """The broker's side: what is fetched next, what is committed, where partitions begin."""

    def __init__(self, committed: dict[TP, int | None]) -> None:
        self.committed, self.earliest, self.ends = committed, {ZERO: 3, ONE: 7}, {ZERO: 100, ONE: 100}
        self.fetched: dict[TP, list[int]] = {}
        self.asked: set[TP] = set()
        self.sought: dict[TP, int] = {}

    async def getmany(self, partitions, timeout):
        self.asked = partitions
        await asyncio.sleep(timeout)
        return {tp: [SimpleNamespace(offset=offset) for offset in offsets] for tp, offsets in self.fetched.items()}

    async def seek_to_committed(self):
        assert self.committed, "No partitions are currently assigned"
        return self.committed

    async def highwaters(self, *partitions):
        return {tp: self.ends[tp] for tp in partitions}

    async def earliest_offsets(self, *partitions):
        return {tp: self.earliest[tp] for tp in partitions}

    async def seek_wait(self, offsets):
        self.sought |= offsets


async def nothing(*_):
    return None


def on_a_loop(test):
    """`test` with a consumer whose partitions were assigned."""

    async def run() -> None:
        app = faust.App("delivery", broker="kafka://127.0.0.1:1", loghandlers=[], web_enabled=False)
        app.tables._changelogs = {CHANGELOG.topic: None}
        consumer = RollupConsumer(
            Transport([app.conf.broker[0]], app),
            callback=nothing,
            on_partitions_revoked=nothing,
            on_partitions_assigned=nothing,
        )
        consumer._thread.thread_loop.close()
        consumer._thread = Thread({ZERO: 5, ONE: None, CHANGELOG: None})
        await consumer.on_partitions_assigned({ZERO, ONE, CHANGELOG})
        await test(consumer, consumer._thread)

    return lambda: asyncio.run(run())


async def opened(consumer: RollupConsumer, *partitions: TP) -> set[TP]:
    """As Faust does it, once tables are restored."""
    consumer.resume_partitions(partitions)
    await consumer.perform_seek()
    consumer.resume_flow()
    return consumer._get_active_partitions()


async def fetch(consumer: RollupConsumer, offsets: dict[TP, list[int]]) -> None:
    consumer._thread.fetched = offsets
    await consumer._getmany(consumer._get_active_partitions(), 0.0)


@on_a_loop
async def test_partitions_open_with_the_flow(consumer, thread):
    assert consumer._get_active_partitions() == set()
    consumer.resume_partitions({ZERO, ONE})
    await consumer.perform_seek()
    assert consumer._get_active_partitions() == set()
    consumer.resume_flow()
    assert consumer._get_active_partitions() == {ZERO, ONE}


@on_a_loop
async def test_nothing_opens_without_its_place(consumer, thread):
    consumer.resume_partitions({CHANGELOG})
    consumer.resume_flow()
    consumer.resume_partitions({ZERO})
    with pytest.raises(BrokerError):
        consumer.resume_flow()
    assert consumer._get_active_partitions() == {CHANGELOG}


@on_a_loop
async def test_a_poll_of_an_earlier_time_is_waited_for(consumer, thread):
    """What it takes would be taken from behind the place that was just sought."""
    polling = asyncio.create_task(consumer._getmany({ZERO}, 0.05))
    await asyncio.sleep(0)
    await consumer.perform_seek()
    assert polling.done() and thread.sought == {ONE: 7}


@on_a_loop
async def test_a_topic_that_ends_before_what_is_committed_is_another_one(consumer, thread):
    thread.ends[ZERO] = 5
    await consumer.perform_seek()
    thread.ends[ZERO] = 4
    with pytest.raises(OutOfRange, match="token-live-0 ends at 4, before the committed 5"):
        await consumer.perform_seek()


@on_a_loop
async def test_what_was_to_open_stays_closed_where_a_rebalance_comes_between(consumer, thread):
    consumer.resume_partitions({ZERO, ONE})
    consumer.pause_partitions({ZERO, ONE, CHANGELOG})
    assert await opened(consumer, CHANGELOG) == {CHANGELOG}


@on_a_loop
async def test_a_poll_keeps_its_partitions_whatever_closes_meanwhile(consumer, thread):
    await opened(consumer, ZERO)
    await fetch(consumer, {})
    consumer.pause_partitions({ZERO})
    assert thread.asked == {ZERO}


@on_a_loop
async def test_partitions_without_a_commit_are_sought_too(consumer, thread):
    await consumer.perform_seek()
    assert thread.sought == {ONE: 7}


@on_a_loop
async def test_partitions_that_went_meanwhile_are_what_faust_expects(consumer, thread):
    thread.committed = {}
    with pytest.raises(IllegalStateError):
        await consumer.seek_to_committed()


@on_a_loop
async def test_gaps_of_the_log_are_none_of_the_stream(consumer, thread):
    await opened(consumer, ZERO, ONE, CHANGELOG)
    await fetch(consumer, {ZERO: [5, 6, 9], ONE: [7], CHANGELOG: [2]})
    await fetch(consumer, {ZERO: [12]})
    for tp, offset in [(ZERO, 5), (ONE, 7), (ZERO, 6), (ZERO, 9), (ZERO, 12)]:
        consumer.take(tp, offset)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_message_is_noticed_at_the_next(lost):
    offsets = [5, 6, 9, 12]

    @on_a_loop
    async def run(consumer, thread):
        await opened(consumer, ZERO)
        await fetch(consumer, {ZERO: offsets[:2]})
        await fetch(consumer, {ZERO: offsets[2:]})
        for offset in offsets[:lost]:
            consumer.take(ZERO, offset)
        with pytest.raises(MessagesSkipped, match=f"token-live-0: offset {offsets[lost + 1]}"):
            consumer.take(ZERO, offsets[lost + 1])

    run()


@on_a_loop
async def test_a_partition_that_opens_again_begins_anew(consumer, thread):
    await opened(consumer, ZERO)
    await fetch(consumer, {ZERO: [5, 6]})
    consumer.take(ZERO, 5)
    consumer.pause_partitions({ZERO})
    await opened(consumer, ZERO)
    with pytest.raises(MessagesSkipped):
        consumer.take(ZERO, 6)  # of the time before
    await fetch(consumer, {ZERO: [5, 6]})
    consumer.take(ZERO, 5)
    consumer.take(ZERO, 6)
