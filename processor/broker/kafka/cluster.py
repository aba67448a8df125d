"""The cluster: the protocol's `Broker`, and what an administrator's client knows of topics, offsets and groups."""

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import confluent_kafka as client
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from tokenometer.processor.broker import (
    BrokerError,
    Extent,
    Follower,
    GroupMember,
    Listener,
    Messages,
    Offset,
    OutOfRange,
    Place,
    Position,
    Refused,
    TopicMissing,
    TopicState,
)
from tokenometer.processor.broker.kafka.appender import KafkaAppender
from tokenometer.processor.broker.kafka.consumer import KafkaConsumer
from tokenometer.processor.broker.kafka.errors import LEADER_MOVES, Access, error_from
from tokenometer.processor.broker.kafka.following import KafkaFollower, access_of, assigned, read
from tokenometer.processor.broker.kafka.members import Failed, MembersAsker, MembersSilent
from tokenometer.processor.broker.kafka.messages import Beside, committed, parts_of, positions_of
from tokenometer.processor.broker.kafka.producer import KafkaProducer
from tokenometer.processor.broker.kafka.settings import (
    ANSWER_SECONDS,
    DEFAULTS,
    FETCH,
    READY_SECONDS,
    ROWS,
    check,
    classic,
    make,
    principal_of,
)

_AGAIN_SECONDS = 0.05


class KafkaBroker:
    """A cluster. `settings` are librdkafka's and go to every client. Raises BrokerError if nobody answers."""

    def __init__(self, bootstrap: str, settings: Mapping[str, str] = {}) -> None:
        check(settings)
        self._settings: dict[str, Any] = {**settings, "bootstrap.servers": bootstrap}
        self._fetch, self._rows = self._settings.pop(FETCH, "auto"), self._settings.pop(ROWS, "auto")
        self._passing: str | None = None  # what goes wrong while we wait for an answer
        self._admin = make(AdminClient, {**DEFAULTS, **self._settings, "error_cb": self._on_error})
        self._appender = KafkaAppender(self._settings, self._rows)
        self._askers: dict[tuple[str, bool], client.Consumer] = {}
        self._created: dict[str, float] = {}  # topics, and until when some broker may not have heard of them
        self._members = MembersAsker({**DEFAULTS, **classic(self._settings)})
        self._reach(bootstrap)

    def _on_error(self, error: KafkaError) -> None:
        if self._passing is None or error.code() != KafkaError._ALL_BROKERS_DOWN:  # that one does not say why
            self._passing = error.str()

    def _reach(self, bootstrap: str) -> None:
        try:
            self._admin.list_topics(timeout=ANSWER_SECONDS)
        except KafkaException as error:
            self._admin.poll(0)  # the callbacks that are due
            why = self._passing or error.args[0].str()
            raise BrokerError(f"Kafka at {bootstrap} gave no answer in {ANSWER_SECONDS} s: {why}") from None

    def consumer(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        member: str | None = None,
        keys: Collection[str] = (),
        headers: Collection[str] = (),
    ) -> KafkaConsumer:
        return KafkaConsumer(self._settings, group, topics, listener, member, Beside.of(keys, headers), self._fetch)

    def producer(self, transactional_id: str) -> KafkaProducer:
        return KafkaProducer(self._settings, transactional_id, self._rows)

    def append(
        self,
        topic: str,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        times: Sequence[int] | None = None,
    ) -> None:
        self._appender.append(topic, values, keys, times)

    def flush(self) -> None:
        self._appender.flush()

    # Reading without a group

    def read(
        self, place: Place, begin: Offset, end: Offset, keys: bool = False, headers: bool = False
    ) -> Iterator[Messages]:
        if begin >= end:
            return
        self._check_range(place, begin, end)
        consumer, access = assigned(self._settings, {place: begin}), access_of(self._settings, [place])
        try:
            yield from read(consumer, place, end, access, keys, headers)
        except KafkaException as error:
            raise error_from(f"reading {place.topic}-{place.partition}", error, access) from None
        finally:
            consumer.close()

    def follow(self, starts: Mapping[Place, Offset], keys: bool = False) -> Follower:
        return KafkaFollower(self._settings, starts, keys)

    def _check_range(self, place: Place, begin: Offset, end: Offset) -> None:
        """Without this check a reader would wait for what is not there."""
        low = self._offsets([place], OffsetSpec.earliest())[place]  # type: ignore[no-untyped-call]
        high = self._offsets([place], OffsetSpec.latest())[place]  # type: ignore[no-untyped-call]
        if begin < low or end > high:
            raise OutOfRange(f"{place.topic}-{place.partition} holds {low} to {high}; asked for {begin} to {end}")

    # Looking at the cluster

    def extents(self, topics: Sequence[str]) -> dict[Place, Extent]:
        places = self._partitions(topics)
        begins = self._offsets(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call]
        ends = self._offsets(places, OffsetSpec.latest())  # type: ignore[no-untyped-call]
        return {place: Extent(begins[place], ends[place]) for place in places}

    def ends(self, topics: Sequence[str]) -> dict[Place, Offset]:
        places = self._partitions(topics)
        return self._offsets(places, OffsetSpec.latest(), client.IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]

    def _offsets(
        self,
        places: Sequence[Place],
        spec: OffsetSpec,
        # The latest offset is the last stable one.
        isolation: client.IsolationLevel = client.IsolationLevel.READ_COMMITTED,
    ) -> dict[Place, Offset]:
        found: dict[Place, Offset] = {}
        deadline = time.monotonic() + ANSWER_SECONDS
        left = list(places)
        while left:
            asked = {part: spec for part in parts_of(left)}
            answers = self._admin.list_offsets(asked, isolation_level=isolation, request_timeout=ANSWER_SECONDS)
            left = []
            for part, future in answers.items():
                place = Place(part.topic, part.partition)
                if time.monotonic() < deadline and _leader_moves(future):
                    left.append(place)
                    continue
                answer = _answer(f"offsets of {part.topic}", future, self._describing(part.topic))
                found[place] = Offset(answer.offset)
            if left:
                self._hear_of_leaders(left)
        return found

    def _hear_of_leaders(self, places: Sequence[Place]) -> None:
        """librdkafka hands out an error of a leader's epoch, and would ask the same broker again."""
        time.sleep(_AGAIN_SECONDS)
        for topic in {place.topic for place in places}:
            with contextlib.suppress(KafkaException):
                self._admin.list_topics(topic, timeout=ANSWER_SECONDS)

    def _access(self, **needed: str) -> Access:
        return Access(principal_of(self._settings), **needed)

    def _describing(self, topic: str) -> Access:
        return self._access(topic=f"DESCRIBE on the topic {topic}")

    def _partitions(self, topics: Sequence[str]) -> list[Place]:
        counts = {name: len(described.partitions) for name, described in self._described(topics).items() if described}
        missing = [name for name in topics if name not in counts]
        if missing:
            raise TopicMissing(f"no such topic: {', '.join(missing)}")
        return [Place(name, partition) for name in topics for partition in range(counts[name])]

    def committed(self, group: str, topics: Sequence[str]) -> dict[Place, Position | None]:
        parts = parts_of(self._partitions(topics))
        if not parts:
            return {}
        if (group, True) not in self._askers:
            self._check_allowed(group)
        access = self._access(
            group=f"DESCRIBE on the group {group}", topic=f"DESCRIBE on the topics {', '.join(topics)}"
        )
        try:
            return positions_of(committed(self._asking(group, stable=True), parts, READY_SECONDS), access)
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError._TIMED_OUT, KafkaError.UNSTABLE_OFFSET_COMMIT):
                raise error_from(f"committed offsets of {group}", error, access) from None
        try:
            return positions_of(committed(self._asking(group, stable=False), parts, ANSWER_SECONDS), access)
        except KafkaException as error:
            raise error_from(f"committed offsets of {group}", error, access) from None

    def _check_allowed(self, group: str) -> None:
        """Raises Refused where this principal may not ask. Without this the client would wait for a coordinator."""
        try:
            self.members(group)
        except Refused:
            raise
        except BrokerError:
            pass  # what passes by itself is waited for by the client

    def _asking(self, group: str, stable: bool) -> client.Consumer:
        """Asks through a consumer that joins nothing, because librdkafka's admin client crashes while a group's
        coordinator is loading. stable: wait for transactions that are about to commit."""
        known = self._askers.get((group, stable))
        if known is None:
            own = {
                "group.id": group,
                "enable.auto.commit": False,
                "isolation.level": "read_committed" if stable else "read_uncommitted",
            }
            known = make(client.Consumer, {**DEFAULTS, **classic(self._settings), **own})
            self._askers[group, stable] = known
        return known

    def members(self, group: str) -> list[GroupMember]:
        try:
            members = self._members.members(group)
        except Failed as failed:
            if failed.code == KafkaError.GROUP_ID_NOT_FOUND:
                return []
            access = self._access(group=f"DESCRIBE on the group {group}")
            error = KafkaException(KafkaError(failed.code, failed.text))
            raise error_from(f"looking at group {group}", error, access) from None
        except MembersSilent as error:
            raise BrokerError(f"looking at group {group}: {error}") from None
        return [GroupMember(name, [Place(*place) for place in places]) for name, places in members]

    def topics(self, names: Sequence[str]) -> dict[str, TopicState | None]:
        described = self._described(names)
        there = [name for name, found in described.items() if found is not None]
        resources = {name: ConfigResource(ConfigResource.Type.TOPIC, name) for name in there}
        states: dict[str, TopicState | None] = dict.fromkeys(names)
        if not there:
            return states
        settings = self._admin.describe_configs(list(resources.values()), request_timeout=ANSWER_SECONDS)
        for name in there:
            access = self._access(topic=f"DESCRIBE_CONFIGS on the topic {name}")
            try:
                found = _answer(f"settings of {name}", settings[resources[name]], access)
            except TopicMissing:  # deleted a moment ago
                continue
            values = {entry.name: entry.value for entry in found.values() if entry.value is not None}
            states[name] = TopicState(str(described[name].topic_id), len(described[name].partitions), values)
        return states

    def _described(self, names: Sequence[str]) -> dict[str, Any]:
        """What the cluster says of each topic; None where there is none of that name. A topic that was created a moment
        ago may be unknown to the broker that is asked, so it is asked for again."""
        while True:
            found = self._described_once(names)
            now = time.monotonic()
            if not any(topic is None and now < self._created.get(name, now) for name, topic in found.items()):
                return found
            time.sleep(_AGAIN_SECONDS)

    def _described_once(self, names: Sequence[str]) -> dict[str, Any]:
        if not names:
            return {}
        asked = client.TopicCollection(list(names))
        found: dict[str, Any] = {}
        for name, future in self._admin.describe_topics(asked, request_timeout=ANSWER_SECONDS).items():
            try:
                found[name] = _answer(f"looking at {name}", future, self._describing(name))
            except TopicMissing:
                found[name] = None
        self._admin.poll(0)  # log lines and callbacks that are due
        return found

    def create_topic(self, name: str, partitions: int, settings: Mapping[str, str], replication: int = 1) -> None:
        topic = NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(settings))
        future = self._admin.create_topics([topic], request_timeout=ANSWER_SECONDS)[name]
        try:
            future.result(timeout=2 * ANSWER_SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                access = self._access(topic=f"CREATE on the topic {name}", cluster="CREATE on the cluster")
                raise error_from(f"creating {name}", error, access) from None
        self._created[name] = time.monotonic() + ANSWER_SECONDS  # also if another process has just made it
        self._await_leaders(name)

    def _await_leaders(self, name: str) -> None:
        """Waits until the brokers answer for a topic: they learn of it a moment after the controller made it."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                self.extents([name])
                return
            except BrokerError as error:
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"the topic {name} was created, and in {ANSWER_SECONDS} s no broker answered for it: {error}"
                    ) from None
            time.sleep(_AGAIN_SECONDS)

    def close(self) -> None:
        self._appender.close()
        self._members.close()
        for asking in self._askers.values():
            asking.close()
        self._askers.clear()


def _leader_moves(future: "Future[Any]") -> bool:
    try:
        error = future.exception(timeout=2 * ANSWER_SECONDS)
    except TimeoutError:
        return False
    return isinstance(error, KafkaException) and error.args[0].code() in LEADER_MOVES


def _answer(doing: str, future: "Future[Any]", access: Access) -> Any:
    try:
        # librdkafka answers within request_timeout; this is for the case that it does not.
        return future.result(timeout=2 * ANSWER_SECONDS)
    except KafkaException as error:
        raise error_from(doing, error, access) from None
    except TimeoutError:
        raise BrokerError(f"{doing}: no answer in {2 * ANSWER_SECONDS} s") from None
