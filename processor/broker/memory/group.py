"""A group: its members, its generations, and who has which partition. It knows no clock, no lock and no log."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tokenometer.processor.broker import Fenced, Lost, Place, Position


class Membership(NamedTuple):
    """What a producer sends along with offsets."""

    group: str
    member: str
    generation: int
    instance: str | None


@dataclass(slots=True, eq=False)
class Member:
    id: str
    instance: str | None
    seen_ms: int
    generation: int = 0
    joined: bool = False  # the rebalance that is going on
    owned: list[Place] = field(default_factory=list)  # as it said when it joined
    assigned: list[Place] = field(default_factory=list)  # as the group decided
    fresh: bool = False  # `assigned` is not yet what the consumer has


@dataclass(slots=True, eq=False)
class Group:
    """Rebalances while one member after the other polls:

        stable ── a member comes or goes, partitions are added ──> rebalancing ── all members joined ──> stable,
                                                                                                       generation + 1

    eager        a member gives up everything, then joins.
    cooperative  a member joins with what it has. What shall move is taken away in the new generation, and what was
                 taken away is given out in the one after.
    """

    name: str
    topics: list[str]
    cooperative: bool
    generation: int = 0
    rebalancing: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    instances: dict[str, str] = field(default_factory=dict)  # instance id -> id of the member that has it
    places: list[Place] = field(default_factory=list)  # as of the generation
    committed: dict[Place, Position] = field(default_factory=dict)

    def check(self, membership: Membership) -> None:
        """May this member commit offsets?"""
        if self.instances.get(membership.instance or "", membership.member) != membership.member:
            raise Fenced(f"a newer member has taken {membership.instance} of group {self.name}")
        member = self.members.get(membership.member)
        if member is None or membership.generation != self.generation or member.generation != self.generation:
            raise Lost(f"{membership.member} of generation {membership.generation} is not in the current generation")

    def add(self, member: Member) -> None:
        older = self.members.pop(self.instances.get(member.instance, ""), None) if member.instance else None
        self.members[member.id] = member
        if member.instance is not None:
            self.instances[member.instance] = member.id
        if older is None or self.rebalancing or set(older.owned) - set(older.assigned):
            self.rebalance()
            return
        # A static member came back: it goes on in its generation, and the others notice nothing.
        member.generation, member.assigned, member.fresh = older.generation, older.assigned, True

    def remove(self, member: Member) -> None:
        del self.members[member.id]
        if member.instance is not None:
            del self.instances[member.instance]
        self.rebalance()
        self._complete()

    def rebalance(self) -> None:
        if not self.rebalancing:
            self.rebalancing = True
            for member in self.members.values():
                member.joined = False

    def join(self, member: Member, owned: Iterable[Place], places: list[Place]) -> None:
        member.joined, member.fresh, member.owned = True, False, list(owned)
        self.places = places
        self._complete()

    def _complete(self) -> None:
        members = list(self.members.values())
        if not members or not all(member.joined for member in members):
            return
        self.generation += 1
        self.rebalancing = False
        target = self._sticky(members) if self.cooperative else _in_turn(members, self.places)
        taken = {place: member for member in members for place in member.owned}
        for member in members:
            member.generation, member.fresh = self.generation, True
            member.assigned = [place for place in target[member.id] if taken.get(place, member) is member]

    def _sticky(self, members: list[Member]) -> dict[str, list[Place]]:
        """Each member gets as many partitions as in any balance, with as few moves as that allows."""
        here = set(self.places)
        least, more = divmod(len(self.places), len(members))
        target = {}
        for member in sorted(members, key=lambda member: -len(member.owned)):
            kept = [place for place in member.owned if place in here]
            quota = least + (more > 0)
            target[member.id] = kept[:quota]
            more -= len(target[member.id]) > least
        given = {place for places in target.values() for place in places}
        for place in (place for place in self.places if place not in given):
            min(target.values(), key=len).append(place)
        return target


def _in_turn(members: list[Member], places: list[Place]) -> dict[str, list[Place]]:
    return {member.id: places[index :: len(members)] for index, member in enumerate(members)}
