"""Has the group share out its partitions anew where one of them is nobody's.

Kafka gives a static member that starts again what the group last gave it, and shares nothing out anew. With the classic
protocol's cooperative rebalance a partition moves in two steps: its old owner gives it up and joins once more, and then
its new owner gets it. An owner that is killed between the two starts again without knowing that it had anything to give
up. The group is stable then, and the partition is nobody's until a member comes or goes. So a member comes and goes.
"""

import time
from collections.abc import Mapping, Sequence

from tokenometer.processor.broker import Broker, GroupMember, Offset, Place

VISIT_SECONDS = 5.0  # a group shares out within two; whoever waits for this visit looks at nothing meanwhile


class Ownerless:
    """Says which partitions have been nobody's for so long that this meter has to act. It has no clock and no broker.

    Each meter of the group sees the same. The first one by name acts first, and each further one a while after it."""

    def __init__(self, name: str, patience_ms: int) -> None:
        self._name, self._patience_ms = name, patience_ms
        self._since: dict[Place, int] = {}
        self._acted_ms = 0
        self.lasting: list[Place] = []  # what was nobody's for too long at the last look, whosever turn it is

    def look(self, now_ms: int, members: Sequence[GroupMember], places: Sequence[Place]) -> list[Place]:
        """Those of `places` for which it is this meter's turn to act; whoever has acted waits anew."""
        held = {place for member in members for place in member.places}
        free = [place for place in places if place not in held] if held else []  # else it is being shared out
        self._since = {place: self._since.get(place, now_ms) for place in free}
        earlier = sum(member.name is not None and member.name < self._name for member in members)
        self.lasting = sorted(place for place, since in self._since.items() if now_ms - since >= self._patience_ms)
        wait_ms = self._patience_ms * (1 + earlier)
        due = [place for place in self.lasting if now_ms - max(self._since[place], self._acted_ms) >= wait_ms]
        if due:
            self._acted_ms = now_ms
        return due


def visit(broker: Broker, group: str, topics: Sequence[str]) -> None:
    """Join the group without a name, and leave it as soon as something is shared out. Raises BrokerError."""
    visitor = _Visitor(broker, topics)
    consumer = broker.consumer(group, topics, visitor)
    try:
        deadline = time.monotonic() + VISIT_SECONDS
        while not visitor.has_partitions and time.monotonic() < deadline:
            consumer.poll(0.1, 1)
    finally:
        consumer.close()


class _Visitor:
    """Has what is shared out for a moment, and counts nothing of it: who has it next begins at the group's offsets."""

    def __init__(self, broker: Broker, topics: Sequence[str]) -> None:
        self._broker, self._topics = broker, topics
        self.has_partitions = False

    def assigned(self, places: Sequence[Place]) -> Mapping[Place, Offset]:
        self.has_partitions = True
        extents = self._broker.extents(self._topics)
        return {place: extents[place].end for place in places}

    def revoked(self, places: Sequence[Place]) -> None:
        pass

    def lost(self, places: Sequence[Place]) -> None:
        pass
