"""Faust's consumer, mended: a partition's committed messages come from its position on, in order and without a gap.

Faust 0.15.3 opens a partition before it has sought its position, and clears afterwards what came until then. Some of it
is never seen again. Where no partition is open, it also lets all of them through, drops what came of them, and seeks
only those that have a committed offset. tests/kafka/test_rollup_kafka.py provokes both with a slow broker.

Promises: nothing of a partition comes before its table is restored, its position is sought, and every earlier poll has
ended. After that, no message between two others is lost unnoticed.
"""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import IllegalStateError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from tokenometer.processor.broker import BrokerError, OutOfRange


class MessagesSkipped(Exception):
    """A message came, and the message before it did not."""


class _Thread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        """Faust reads uncommitted messages, unless its own transactions are on."""
        consumer = super()._create_worker_consumer(transport)
        assert consumer._isolation_level == "read_uncommitted", "Faust has another way now"
        consumer._isolation_level = "read_committed"  # the fetcher that `start` makes takes it from here
        return consumer


class RollupConsumer(driver.Consumer):
    """`take` each message, in the order in which they come."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._polling = asyncio.Lock()  # a poll that is left from before a rebalance takes what was just sought
        self._opening: set[TP] = set()
        self._sought = False
        self._fetched: dict[TP, int] = {}  # the last message of a partition since it was opened
        self._before: dict[TP, dict[int, int | None]] = {}  # what was fetched before each message on its way
        self._taken: dict[TP, int] = {}

    def take(self, tp: TP, offset: int) -> None:
        """Raises MessagesSkipped."""
        before = self._before.get(tp, {}).pop(offset, -1)
        if before != self._taken.get(tp):
            raise MessagesSkipped(
                f"{tp.topic}-{tp.partition}: offset {offset} came without the message before it; "
                "start again, which reads both"
            )
        self._taken[tp] = offset

    # --- Faust calls these ---

    def _new_consumer_thread(self) -> _Thread:
        return _Thread(self, loop=self.loop, beacon=self.beacon)

    def _set_active_tps(self, tps: set[TP]) -> set[TP]:
        """Partitions are closed when they are assigned."""
        return super()._set_active_tps(set())

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        closing = set(tps)
        super().pause_partitions(closing)
        self._opening -= closing
        self._buffered_partitions -= closing
        self._sought = False

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Partitions open with the flow, which Faust resumes as soon as it has sought their positions."""
        self._opening.update(tps)

    def resume_flow(self) -> None:
        """Raises BrokerError where a seek takes too long; Faust itself would go on."""
        if not (self._sought or all(map(self._is_changelog_tp, self._opening))):
            raise BrokerError("the broker did not tell in time what is committed")
        for tp in self._opening:
            for known in (self._fetched, self._before, self._taken):
                known.pop(tp, None)
        super().resume_partitions(self._opening)
        self._opening.clear()
        super().resume_flow()

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Partitions of which nothing is committed begin anew, because messages may have been fetched and dropped.
        Raises OutOfRange, and IllegalStateError, after which Faust waits for other partitions."""
        async with self._polling:
            try:
                offsets = await super().seek_to_committed()
                places = {tp: offset for tp, offset in offsets.items() if not self._is_changelog_tp(tp)}
                await self._check(places)
                new = [tp for tp, offset in places.items() if not offset]
                if new:
                    await self._thread.seek_wait(await self._thread.earliest_offsets(*new))
            except AssertionError as error:  # aiokafka's
                raise IllegalStateError("partitions went while their places were sought") from error
        self._sought = True
        return offsets

    async def _check(self, places: Mapping[TP, int]) -> None:
        """Without this check aiokafka would go back to the beginning, and Faust would drop what is below the committed
        offset."""
        for tp, end in (await self._thread.highwaters(*places)).items():
            if (places[tp] or 0) > end:
                raise OutOfRange(
                    f"{tp.topic}-{tp.partition} ends at {end}, before the committed {places[tp]}: was the topic made "
                    "anew? Begin anew as well, with another --app"
                )

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        """Passes a set of its own, because aiokafka takes a set that becomes empty meanwhile for all partitions."""
        async with self._polling:
            records = await super()._getmany(set(active_partitions or ()), timeout)
        for tp, found in records.items():
            if not self._is_changelog_tp(tp):
                on_their_way = self._before.setdefault(tp, {})
                for record in found:
                    on_their_way[record.offset] = self._fetched.get(tp)
                    self._fetched[tp] = record.offset
        return records


class Transport(driver.Transport):
    Consumer = RollupConsumer
