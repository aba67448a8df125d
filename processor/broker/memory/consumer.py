"""A member of a group. Everything that the group wants of it happens in `poll`, one step at a time."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from tokenometer.processor.broker import BrokerError, Fenced, Listener, Messages, Offset, Place, Position
from tokenometer.processor.broker.memory.cluster import Cluster
from tokenometer.processor.broker.memory.group import Group, Membership


class MemoryConsumer:
    def __init__(
        self,
        cluster: Cluster,
        group: Group,
        topics: Sequence[str],
        listener: Listener,
        instance: str | None,
        keys: Collection[str],
        headers: Collection[str],
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._topics, self._keys, self._headers = list(topics), set(keys), set(headers)
        self._listener = listener
        self._positions: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._failed: set[Place] = set()  # the listener could not say where to read them from
        self._turn = 0
        self._closed = False
        self._member = cluster.join(group, instance)

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        assert not self._closed
        deadline = time.monotonic() + timeout_seconds
        while True:
            self._cluster.fault("poll")
            self._rebalance()
            with self._cluster.locked():
                messages = self._fetch(most)
                if messages or not self._cluster.wait(deadline):
                    return messages

    def seek(self, positions: Mapping[Place, Offset]) -> None:
        with self._cluster.locked():
            assert positions.keys() <= self._positions.keys()
            self._positions.update(positions)

    def pause(self, places: Sequence[Place]) -> None:
        assert self._positions.keys() >= set(places)
        self._paused.update(places)

    def resume(self, places: Sequence[Place]) -> None:
        self._paused.difference_update(places)

    def assignment(self) -> list[Place]:
        return list(self._positions)

    def committed(self, places: Sequence[Place]) -> dict[Place, Position | None]:
        self._cluster.fault("committed")
        deadline = time.monotonic() + self._cluster.patience_seconds
        with self._cluster.locked():
            while not self._cluster.pending(self._group.name).isdisjoint(places):
                if not self._cluster.wait(deadline):
                    raise BrokerError("a transaction is about to commit offsets: it must end first")
            return {place: self._group.committed.get(place) for place in places}

    def known_ends(self) -> dict[Place, Offset]:
        with self._cluster.locked():
            there = [place for place in self._positions if place.topic in self._cluster.topics]
            return {place: Offset(self._cluster.log(place).last_stable) for place in there}

    def group_metadata(self) -> Membership:
        with self._cluster.locked():
            member = self._member
            return Membership(self._group.name, member.id, member.generation, member.instance)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            with self._cluster.locked():
                current = self._is_current()
            if self._positions:
                self._give_up(list(self._positions), self._listener.revoked if current else self._listener.lost)
        finally:
            with self._cluster.changing():
                # A static member leaves only its session, so that it finds its partitions again.
                if self._is_current() and self._member.instance is None:
                    self._group.remove(self._member)

    def _is_current(self) -> bool:
        return self._group.members.get(self._member.id) is self._member

    def _rebalance(self) -> None:
        """Do everything that this member has to do for its group."""
        while (step := self._next_step()) is not None:
            step()

    def _next_step(self) -> Callable[[], None] | None:
        """One thing that the listener has to hear. It is decided under the lock and told without it."""
        with self._cluster.locked():
            member, group, held = self._member, self._group, list(self._positions)
            if not self._is_current():
                if member.instance is not None and member.instance in group.instances:
                    raise Fenced(f"a newer member has taken {member.instance} of group {group.name}")
                if held:
                    return lambda: self._give_up(held, self._listener.lost)
                member = self._member = self._cluster.join(group, member.instance)
            member.seen_ms = self._cluster.clock()
            places = self._cluster.places(self._topics)
            if places != group.places:
                group.rebalance()
            if group.rebalancing and not member.joined:
                if held and not group.cooperative:
                    return lambda: self._give_up(held, self._listener.revoked)
                group.join(member, held, places)
                self._failed.clear()
                self._cluster.changed.notify_all()
            return self._adopt(held) if member.fresh else None

    def _adopt(self, held: list[Place]) -> Callable[[], None] | None:
        assigned = self._member.assigned
        if gone := [place for place in held if place not in assigned]:
            return lambda: self._give_up(gone, self._listener.revoked, rejoin=True)
        if came := [place for place in assigned if place not in self._positions and place not in self._failed]:
            return lambda: self._take(came)
        self._member.fresh = False
        return None

    def _give_up(self, places: list[Place], tell: Callable[[Sequence[Place]], None], rejoin: bool = False) -> None:
        try:
            tell(places)
        finally:  # whatever the listener made of it, they are gone
            with self._cluster.changing():
                for place in places:
                    del self._positions[place]
                self._paused.difference_update(places)
                if rejoin and self._is_current():
                    self._group.rebalance()

    def _take(self, places: list[Place]) -> None:
        """If the listener fails, it is not asked again in this generation: the partitions are ours, and nobody reads
        them."""
        try:
            positions = self._listener.assigned(places)
        except BaseException:
            self._failed.update(places)
            raise
        assert positions.keys() == set(places)
        with self._cluster.locked():
            self._positions.update(positions)

    def _fetch(self, most: int) -> list[Messages]:
        """Partitions take turns at being the first one, so that a full one starves no other."""
        places = [place for place in self._positions if place not in self._paused]
        if not places:
            return []
        self._turn = (self._turn + 1) % len(places)
        # All are looked at before anything is taken: an error must not swallow messages of other partitions.
        turns = places[self._turn :] + places[: self._turn]
        logs = {place: self._cluster.log_at(place, self._positions[place]) for place in turns}
        found = []
        for place, log in logs.items():
            if most == 0:
                break
            beside = place.topic in self._keys, place.topic in self._headers
            for messages in log.read(place, self._positions[place], log.last_stable, most, *beside):
                found.append(messages)
                most -= len(messages.values)
                self._positions[place] = messages.next_offset
            if most > 0:  # a gap at the end is passed, too
                self._positions[place] = max(self._positions[place], log.last_stable)
        return found
