"""One moment of a stream, in which what was published belongs to the offsets that were committed."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenometer.processor.broker import Broker, Extent, Offset, Place
from tokenometer.processor.verify.values import Covered, LogGone, NothingCommitted, StreamMoves, VerifySettings

_ATTEMPTS = 100


@dataclass(frozen=True)
class Cut:
    """log, published: what is audited. context: where reading begins, for partitions that were audited before; messages
    before the extent in `log` are no part of this audit, but later ones may be their duplicates."""

    committed: dict[Place, Offset]
    log: dict[Place, Extent]
    published: dict[Place, Extent]
    context: dict[Place, Offset] = field(default_factory=dict)

    def covered(self) -> Iterator[Covered]:
        """The committed partitions of the log."""
        for place, offset in sorted(self.committed.items()):
            yield Covered(place, self.log[place].begin, offset, self.log[place].end)

    def published_in(self, topic: str) -> list[tuple[Place, Extent]]:
        return [(place, extent) for place, extent in sorted(self.published.items()) if place.topic == topic]

    @property
    def messages(self) -> int:
        """At most."""
        log = sum(max(0, offset - self.context.get(place, begin)) for place, begin, offset, _ in self.covered())
        return log + sum(extent.end - extent.begin for extent in self.published.values())


def find(broker: Broker, group: str, topics: list[str], settings: VerifySettings) -> Cut:
    """Finds a moment between two commits. A commit's markers reach the partitions one after another, so it waits
    before it looks."""
    published = [settings.usage_topic, settings.live_topic, settings.rejected_topic]
    for _ in range(_ATTEMPTS):
        committed = committed_of(broker, group, topics)
        if not committed:
            raise NothingCommitted(
                f"group {group} has committed no offset of {', '.join(topics)}; give the --group and the --input of "
                "its meters, or start one"
            )
        time.sleep(settings.settle_seconds)
        extents = broker.extents(published)
        if committed_of(broker, group, topics) == committed:
            cut = Cut(committed, broker.extents(topics), extents)
            _check_ends(cut)
            return cut
    raise StreamMoves(f"group {group} commits without a pause of {settings.settle_seconds} s: verify when it rests")


def _check_ends(cut: Cut) -> None:
    for place, _, committed, end in cut.covered():
        if committed > end:
            name = f"{place.topic}/{place.partition}"
            raise LogGone(f"{name} ends at offset {end}, but {committed} is committed: was the topic made anew?")


def committed_of(broker: Broker, group: str, topics: list[str]) -> dict[Place, Offset]:
    positions = broker.committed(group, topics)
    return {place: position.offset for place, position in positions.items() if position is not None}
