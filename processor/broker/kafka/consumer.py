"""A member of a group.

    consume() -> [Message, ...] -> errors? -> runs of one partition -> Messages -> only where we still read -> caller
                   ^ rebalances happen in here: a Listener is called. What it raises is kept until consume() is over,
                     because a callback that raises makes the client drop the messages at hand, and move on past them

Messages come through the fetcher (fetch/), if it can do that: the client's partitions are paused then, and consume()
has only what is left, which is rebalances and errors. What the fetcher cannot read is resumed in the client.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import confluent_kafka as client
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from tokenometer.processor.broker import BrokerError, Listener, Messages, Offset, Place, Position, Refused
from tokenometer.processor.broker.kafka.errors import PASSING, Access, error_from, error_of, is_fatal
from tokenometer.processor.broker.kafka.fetch import Failure, Fallback, Fetcher, Unable
from tokenometer.processor.broker.kafka.messages import (
    LINGER_SECONDS,
    PLAIN,
    Beside,
    between,
    committed,
    failed,
    gather,
    parts_of,
    places_of,
    positions_of,
    times_of,
)
from tokenometer.processor.broker.kafka.settings import (
    CLASSIC_ONLY,
    CONSUMER_DEFAULTS,
    DEFAULTS,
    FETCH,
    READY_SECONDS,
    Said,
    log,
    make,
    principal_of,
)
from tokenometer.schemas.compiled import BuildError

_BURY_SECONDS = 2  # a dead client that closes at all does at once
_SEEK_SECONDS = 5  # for a partition that was assigned a moment ago and is not fetched from yet
_LINGER_MS = round(LINGER_SECONDS * 1000)
_SLICE_MESSAGES = 2_000  # taken from the client at a time: they stay in the processor's cache until they are lists
_FALLBACK_SECONDS = 0.05  # how long the one waits for messages before the other is asked again


def _keep_forever(consumer: client.Consumer) -> None:
    """A dead client that had partitions. librdkafka 2.16 never ends to close such a one, and takes a whole core for it;
    left alone it takes nothing. Python would close it with its last reference, so there is one more."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(consumer))
    log.warning("a consumer that died with partitions is not closed; it stays until this process ends")


class KafkaConsumer:
    """One member of a group. All methods are called by one thread; only `group_metadata` may be called by another.

    `last_error`: what librdkafka is trying to overcome; None once messages come again.

    After an exception out of `poll` that is not ours (a signal handler's), messages may have been dropped: `seek` every
    partition to where its batches ended, or `close`.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        group: str,
        topics: Sequence[str],
        listener: Listener,
        member: str | None,
        beside: Beside = PLAIN,
        fetch: str = "auto",
    ) -> None:
        """fetch: which way messages come, FETCH of settings.py."""
        defaults = {**DEFAULTS, **CONSUMER_DEFAULTS}
        # librdkafka refuses to mix strategies of both kinds, so that the settings tell which kind this is.
        self._incremental = "cooperative" in settings.get("partition.assignment.strategy", "cooperative-sticky")
        if settings.get("group.protocol", "classic") != "classic":
            self._incremental = True
            defaults = {name: value for name, value in defaults.items() if name not in CLASSIC_ONLY}
        self._access = Access(
            principal_of(settings), topic=f"READ on the topics {', '.join(topics)}", group=f"READ on the group {group}"
        )
        self.last_error: str | None = None
        self._said = Said()
        self._listener, self._beside = listener, beside
        self._topic = topics[0] if len(topics) == 1 else None
        self._next: dict[Place, int] = {}  # what is assigned, and the lowest offset that may come next
        self._left: set[Place] = set()  # revoked or lost during the poll that runs
        self._again: set[Place] = set()  # of these, assigned anew in the same poll
        self._late: set[Place] = set()  # assigned while this member leaves: the listener hears of them in no way
        self._held: list[Messages] = []  # came in a poll that had to raise
        self._exception: BaseException | None = None  # to be raised by the poll that runs
        self._fatal: BrokerError | None = None  # librdkafka has given this client up: every poll says so
        self._closed = False
        self._metadata: Any = None
        self._consumer = make(client.Consumer, {**defaults, **settings, **self._own(group, member)})
        try:
            self._consumer.subscribe(
                list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
            )
        except KafkaException as error:
            raise error_from(f"subscribing to {', '.join(topics)}", error, self._access) from None
        self._fetcher: Fetcher | None = None
        try:
            if fetch != "librdkafka":
                self._fetcher = _fetcher({**DEFAULTS, **settings}, beside, fetch)
        except BaseException:
            self._consumer.close()
            raise
        self._strict = fetch == "own"
        self._paused: set[Place] = set()
        self._fallen: set[Place] = set()  # read by librdkafka, because the fetcher cannot

    def _own(self, group: str, member: str | None) -> dict[str, Any]:
        """The settings that are not a user's to choose."""
        own = {
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "error_cb": self._on_error,
        }
        return own if member is None else {**own, "group.instance.id": member}

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        """A partition may come more than once in the answer, each time further on."""
        # What was held back by a poll that had to raise goes first.
        wait_seconds = 0.0 if self._held else timeout_seconds
        if self._fetcher is not None:
            return self._poll_fetcher(self._fetcher, wait_seconds, most)
        while most > 0:
            size = min(most, _SLICE_MESSAGES)
            batch = self._consume(wait_seconds, size)
            taken = self._take(batch)  # which may thin out what is held
            self._held += taken
            self._raise_kept()
            if len(batch) < size:
                break
            most -= size
            wait_seconds = 0.0
        found, self._held = self._held, []
        return found

    def _poll_fetcher(self, fetcher: Fetcher, timeout_seconds: float, most: int) -> list[Messages]:
        deadline = time.monotonic() + timeout_seconds
        while True:
            size = min(_SLICE_MESSAGES, max(most, 1)) if self._fallen else _SLICE_MESSAGES
            batch = self._consume(0.0, size)
            self._held += self._take(batch)
            if self._fallen:
                most -= len(batch)
            elif len(batch) == size:  # what was fetched before the client was paused: a rebalance may wait after it
                continue
            wait_seconds = 0.0 if self._held or self._exception else max(0.0, deadline - time.monotonic())
            if self._fallen:
                wait_seconds = min(wait_seconds, _FALLBACK_SECONDS)
            if most > 0 and self._exception is None:
                update = fetcher.poll(wait_seconds, most)
                for note in update.notes:
                    self._note(note)
                self._held += self._still_ours(update.messages)
                self._keep_events(update.events, update.error)
            if self._held or self._exception or most <= 0 or time.monotonic() >= deadline:
                break
        self._raise_kept()
        found, self._held = self._held, []
        return found

    def _keep_events(self, events: Sequence[Failure | Fallback], error: BaseException | None) -> None:
        for event in events:
            if isinstance(event, Fallback):
                self._fall_back([place for place in event.places if place in self._next], event.reason)
            elif event.place in self._next:
                doing = f"reading {event.place.topic}-{event.place.partition}"
                text = f": {event.text}" if event.text else ""
                self._keep(error_of(doing + text, KafkaError(event.code), self._access))
        if error is not None:
            self._keep(error)

    def _fall_back(self, places: Sequence[Place], reason: str) -> None:
        if self._strict:
            return self._keep(Refused(f"the fetcher cannot read {reason}: set {FETCH}=auto"))
        if not places or self._fetcher is None:
            return
        log.warning("librdkafka reads %s, because the fetcher cannot read %s", ", ".join(_names(places)), reason)
        self._fetcher.remove(places)
        self._fallen.update(places)
        for place in places:  # what came up to there is held, or handed out
            self._seek(TopicPartition(place.topic, place.partition, self._next[place]))
        self.resume([place for place in places if place not in self._paused])

    def _take(self, batch: list[Message]) -> list[Messages]:
        found: list[Messages] = []
        if batch:
            # An error has no time; few messages have none, so that few batches are looked through.
            if times_of(batch).min() <= 0 and any(map(failed, batch)):
                batch = self._sort_out(batch)
            if self._fetcher is not None:
                batch = self._fallen_only(batch)
            found = gather(batch, times_of(batch), self._topic, self._beside) if batch else []
        return self._still_ours(found)

    def _fallen_only(self, batch: list[Message]) -> list[Message]:
        """Not what the client fetched before it was paused: the fetcher reads that, and looks at its checksums."""
        if not self._fallen:
            return []
        return [each for each in batch if Place(str(each.topic()), each.partition() or 0) in self._fallen]

    def _consume(self, timeout_seconds: float, most: int) -> list[Message]:
        """Returns soon after the first message. consume() alone would wait for `most` of them as long as it may."""
        consume = self._consumer.consume
        linger = min(LINGER_SECONDS, timeout_seconds)
        try:
            batch = consume(most, linger)
            if batch or timeout_seconds <= linger or self._exception is not None:
                return batch
            batch = consume(1, timeout_seconds - linger)
            if batch and most > 1 and not batch[0].error():
                batch += consume(most - 1, linger)
            return batch
        except KafkaException as error:
            raise error_from("reading", error, self._access) from None

    def _sort_out(self, batch: list[Message]) -> list[Message]:
        """The messages among them. Errors that do not pass by themselves are kept for the caller."""
        for message in filter(failed, batch):
            error = message.error()
            assert error is not None
            doing = "reading" if message.topic() is None else f"reading {message.topic()}-{message.partition()}"
            self._judge(error, doing)
        return [message for message in batch if not message.error()]

    def _judge(self, error: KafkaError, doing: str) -> None:
        if is_fatal(error):
            self._die(error)
        elif error.code() in PASSING or error.retriable():
            self._note(f"{doing}: {error.str()}")
        else:
            self._keep(error_of(doing, error, self._access))

    def _still_ours(self, found: list[Messages]) -> list[Messages]:
        """The messages without those that were fetched before a partition was given up or sought.

        If a partition was revoked and assigned again within one poll, nobody can say whether its messages were fetched
        before or after. So they are all dropped and fetched once more.
        """
        if found:
            self.last_error = None
        if self._again:
            doubtful = self._again.intersection(messages.place for messages in found)
            found = [messages for messages in found if messages.place not in doubtful]
            self.seek({place: Offset(self._next[place]) for place in doubtful})
        self._left.clear()
        self._again.clear()
        ours: list[Messages] = []
        for messages in found:
            expected = self._next.get(messages.place)
            rest = None if expected is None else between(messages, expected)
            if rest is not None:
                self._next[rest.place] = rest.next_offset
                ours.append(rest)
        return ours

    def seek(self, positions: Mapping[Place, Offset]) -> None:
        if strangers := [place for place in positions if place not in self._next]:
            raise BrokerError(f"seeking {', '.join(_names(strangers))}: not assigned to this member")
        if self._fetcher is not None:
            self._fetcher.add({place: offset for place, offset in positions.items() if place not in self._fallen})
        for place, offset in positions.items():
            if self._fetcher is None or place in self._fallen:
                self._seek(TopicPartition(place.topic, place.partition, offset))
            self._next[place] = offset
        self._held = [messages for messages in self._held if messages.place not in positions]

    def _seek(self, part: TopicPartition) -> None:
        deadline = time.monotonic() + _SEEK_SECONDS
        while True:
            try:
                return self._consumer.seek(part)
            except KafkaException as error:
                # Assigned, but its fetcher has not started.
                starting = error.args[0].code() in (KafkaError._STATE, KafkaError._PREV_IN_PROGRESS)
                if not starting or time.monotonic() > deadline:
                    raise error_from(f"seeking {part.topic}-{part.partition} to {part.offset}", error) from None
            time.sleep(0.01)

    def pause(self, places: Sequence[Place]) -> None:
        self._paused.update(places)
        if self._fetcher is not None:
            self._fetcher.pause(places, True)
        try:
            self._consumer.pause(parts_of(places))
        except KafkaException as error:
            raise error_from("pausing", error) from None

    def resume(self, places: Sequence[Place]) -> None:
        self._paused.difference_update(places)
        if self._fetcher is not None:
            self._fetcher.pause(places, False)
            places = [place for place in places if place in self._fallen]
        try:
            self._consumer.resume(parts_of(places))
        except KafkaException as error:
            raise error_from("resuming", error) from None

    def assignment(self) -> list[Place]:
        return list(self._next)

    def committed(self, places: Sequence[Place]) -> dict[Place, Position | None]:
        if not places:
            return {}
        try:
            # A read_committed consumer asks for stable offsets, and asks again while a transaction is open.
            parts = committed(self._consumer, parts_of(places), READY_SECONDS)
        except KafkaException as error:
            raise error_from("reading committed offsets", error, self._access) from None
        return positions_of(parts, self._access)

    def known_ends(self) -> dict[Place, Offset]:
        ends = {} if self._fetcher is None else self._fetcher.ends()
        for place in self._next if self._fetcher is None else self._fallen:
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if high >= 0:
                ends[place] = Offset(high)
        return ends

    def group_metadata(self) -> Any:
        """Where the client is about to close it may have none any more: the last one says where this member was, and
        the brokers refuse it if that is over."""
        try:
            self._metadata = self._consumer.consumer_group_metadata()
        except RuntimeError as error:
            if self._metadata is None:
                raise BrokerError(f"this member's place in its group is not known: {error}") from None
        return self._metadata

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._held = []
        held = list(self._next)
        if self._fatal is not None and held:  # librdkafka tells of nothing any more
            self._on_lost(self._consumer, parts_of(held))
        if self._fetcher is not None:
            self._fetcher.close()
        if self._fatal is None:
            if not held:
                self._unsubscribe()
            self._consumer.close()
        elif held:
            _keep_forever(self._consumer)
        else:
            self._bury()
        if self._exception is not self._fatal:
            self._raise_kept()

    def _unsubscribe(self) -> None:
        """Hears out what the group has given a member without partitions, and takes back. Not left to close(): a
        librdkafka that closes waits for ever for the second of two answers, and an assignment that nobody polled is
        followed by its revocation. A member with partitions only closes: were it to unsubscribe, a group that shares
        out eagerly would do so anew, though a static member's partitions are to wait for it."""
        try:
            self._consumer.unsubscribe()
            while self._consumer.consume(_SLICE_MESSAGES, 0.0):
                pass
        except KafkaException as error:
            log.warning("leaving the group: %s", error)

    def _bury(self) -> None:
        """Closes a client that died without partitions, in another thread: nobody promises that it ends."""
        closing = threading.Thread(target=self._consumer.close, name="closing", daemon=True)
        closing.start()
        closing.join(_BURY_SECONDS)
        if closing.is_alive():
            log.warning("a consumer that died does not close; it is left behind until this process ends")

    # What follows is called by librdkafka inside consume() and close(), in their thread. Nothing may be raised.

    def _on_assign(self, _: client.Consumer, parts: list[TopicPartition]) -> None:
        places = places_of(parts)
        if self._closed:  # a client that closes answers nothing: no offset could be asked for
            self._late.update(places)
            places = []
        start: list[TopicPartition] = []
        try:
            offsets = self._listener.assigned(places) if places else {}
            start = [TopicPartition(place.topic, place.partition, offsets[place]) for place in places]
            self._next.update({place: int(offsets[place]) for place in places})
            self._again |= self._left.intersection(places)
        except BaseException as error:
            self._keep(error)
        # Also if that failed: without this call the wrapper would start at the committed offsets by itself.
        self._guard(self._consumer.incremental_assign if self._incremental else self._consumer.assign, start)
        if self._fetcher is not None and start:
            self._guard(self._consumer.pause, start)
            self._fetcher.add({place: Offset(self._next[place]) for place in places_of(start)})

    def _on_revoke(self, _: client.Consumer, parts: list[TopicPartition]) -> None:
        self._leave(parts, self._listener.revoked)

    def _on_lost(self, _: client.Consumer, parts: list[TopicPartition]) -> None:
        self._leave(parts, self._listener.lost)

    def _leave(self, parts: list[TopicPartition], tell: Callable[[Sequence[Place]], None]) -> None:
        places = [place for place in places_of(parts) if place not in self._late]
        if self._fatal is not None and self._closed:  # in another thread; and what there was is given up already
            places = [place for place in places if place in self._next]
        try:
            if places:
                tell(places)
        except BaseException as error:
            self._keep(error)
        for place in places:
            self._next.pop(place, None)
        if self._fetcher is not None:
            self._fetcher.remove(places)
        self._paused.difference_update(places)
        self._fallen.difference_update(places)
        self._left.update(places)
        self._again.difference_update(places)
        self._held = [messages for messages in self._held if messages.place in self._next]
        self._guard(self._unassign, parts)

    def _unassign(self, parts: list[TopicPartition]) -> None:
        if not self._incremental:
            return self._consumer.unassign()
        # What a failed `assigned` has left out is not there to be taken away.
        present = {Place(part.topic, part.partition) for part in self._consumer.assignment()}
        self._consumer.incremental_unassign([part for part in parts if Place(part.topic, part.partition) in present])

    def _on_error(self, error: KafkaError) -> None:
        self._note(error.str())
        if is_fatal(error):
            self._die(error)

    def _die(self, error: KafkaError) -> None:
        """librdkafka does nothing more for this client and says so once. We repeat it until the client is closed."""
        self._fatal = self._fatal or error_of("reading", error, self._access)
        self._keep(self._fatal)

    def _note(self, text: str) -> None:
        self.last_error = text
        if not self._said.again(text):
            log.warning("%s", text)

    def _guard(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._DESTROY:  # closing has gone so far that there is nothing to do
                self._keep(error_from("assigning partitions", error))

    def _keep(self, error: BaseException) -> None:
        """Only the first error counts, because the others follow from it."""
        if self._exception is None:
            self._exception = error

    def _raise_kept(self) -> None:
        if self._exception is not None:
            exception, self._exception = self._exception, self._fatal
            raise exception


def _fetcher(settings: Mapping[str, Any], beside: Beside, fetch: str) -> Fetcher | None:
    """None: messages come through librdkafka. Raises Refused if they must not."""
    try:
        return Fetcher(settings, beside)
    except (Unable, BuildError, OSError) as error:
        if fetch == "own":
            raise Refused(f"the fetcher cannot be used: {error}: set {FETCH}=auto") from None
        log.warning("librdkafka reads all messages, one by one, because the fetcher cannot do this: %s", error)
        return None


def _names(places: Sequence[Place]) -> list[str]:
    return [f"{place.topic}-{place.partition}" for place in places]
