"""Which partitions of token-usage are this writer's: a group of Kafka says so, and does nothing else.

The group's member never reads: its partitions are paused. No offset is committed to the broker, because the offsets
that count are the table's.
"""

import contextlib
from collections.abc import Mapping, Sequence

from tokenometer.processor.broker import Broker, BrokerError, Consumer, Offset, Place


class Share:
    """group: None takes all partitions, and joins nothing."""

    def __init__(self, broker: Broker, group: str | None, topic: str) -> None:
        self._broker, self._topic, self._group = broker, topic, group
        self.changed = True
        self._held: set[Place] = set()
        self._consumer: Consumer | None = None

    def partitions(self) -> list[int]:
        """Those that are this writer's now; `changed` says that they are others than before."""
        self.changed = False
        places = self._broker.extents([self._topic]) if self._group is None else self._held
        return sorted(place.partition for place in places)

    def renew(self) -> None:
        """Join anew, with the next `hear`: after an error the client may have given up."""
        with contextlib.suppress(BrokerError):
            self.close()
        self._consumer = None
        self._held.clear()
        self.changed = True

    def hear(self, timeout_seconds: float = 0) -> None:
        """To be called often: a member that is silent is thrown out."""
        if self._group is None:
            return
        if self._consumer is None:
            self._consumer = self._broker.consumer(self._group, [self._topic], self)
        self._consumer.poll(timeout_seconds, 1)
        self._consumer.pause(self._consumer.assignment())

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    # --- Called by the consumer ---

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        self._held |= set(places)
        self.changed = True
        ends = self._broker.extents([self._topic])
        return {place: ends[place].end for place in places}

    def revoked(self, places: Sequence[Place]) -> None:
        self._held -= set(places)
        self.changed = True

    lost = revoked
