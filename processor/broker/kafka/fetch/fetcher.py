"""Reads partitions with requests of our own: a thread for each broker that leads some, and one that asks who leads.

    seek, pause ... -> Parts <- claim, answered, delivered <- reader threads -> brokers
    poll            <-   |   <- settle                     <- discovery

All share one lock, which nobody holds while anything is sent, received or walked. After an answer, the next request
goes out before the answer is walked, so that the broker works meanwhile.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenometer.processor.broker import Messages, Offset, Place
from tokenometer.processor.broker.kafka.fetch import wire
from tokenometer.processor.broker.kafka.fetch.connection import Connection, Options, addresses
from tokenometer.processor.broker.kafka.fetch.parts import Claim, Failure, Fallback, Parts
from tokenometer.processor.broker.kafka.fetch.security import Unable
from tokenometer.processor.broker.kafka.fetch.walk import HEADERS, KEYS, Walker
from tokenometer.processor.broker.kafka.messages import LINGER_SECONDS, Beside

_BACKOFF_SECONDS, _BACKOFF_SECONDS_MAX = 0.1, 1.0
_LOOK_SECONDS = 0.05  # how often a thread looks for what may be tried again
_JOIN_SECONDS = 5.0  # a thread that is walking, or connecting, ends a moment after it was told
_LINGER_BYTES = 1 << 20  # with so much at hand nobody waits for more
# How long a broker waits for messages. What is added, sought or resumed meanwhile is asked for afterwards: librdkafka's
# default of 500 ms would delay it by that.
_WAIT_MS = "100"
# Together with what waits (parts.py) these bound the memory; larger ones read no faster.
_ANSWER_BYTES, _PART_BYTES = str(8 << 20), str(1 << 20)


class Update(NamedTuple):
    messages: list[Messages]
    events: list[Failure | Fallback]
    notes: list[str]
    error: BaseException | None  # what stopped a thread


class Fetcher:
    """Messages of the partitions that are added. Every method may be called by any thread."""

    def __init__(self, settings: Mapping[str, Any], beside: Beside) -> None:
        """settings: librdkafka's. Raises Unable, BuildError where there is no compiler, OSError for certificates."""
        self.options = Options.of(settings)
        Walker()  # so that it is built, or known that it cannot be
        self.rack = str(settings.get("client.rack", ""))
        self.sizes = _sizes(settings)
        wanted = dict.fromkeys(beside.keys, KEYS)
        wanted.update({topic: wanted.get(topic, 0) | HEADERS for topic in beside.headers})
        self.parts = Parts(wanted)
        lock = threading.RLock()
        self.changed = threading.Condition(lock)
        self._added = threading.Condition(lock)  # of its own, since what is delivered does not concern the discovery
        self.closed = False
        self._error: BaseException | None = None
        self._bootstrap = list(addresses(str(settings["bootstrap.servers"])))
        self._known: dict[int, tuple[str, int]] = {}
        self._readers: dict[int, _Reader] = {}
        self._discovery = threading.Thread(target=self._discover, name="kafka-discovery", daemon=True)
        self._discovery.start()

    # For the consumer

    def add(self, starts: Mapping[Place, Offset]) -> None:
        """Read these from there; also a seek."""
        with self.changed:
            self.parts.add(starts)
            self.changed.notify_all()
            self._added.notify_all()

    def remove(self, places: Iterable[Place]) -> None:
        with self.changed:
            self.parts.remove(places)

    def pause(self, places: Iterable[Place], paused: bool) -> None:
        with self.changed:
            self.parts.pause(places, paused)
            self.changed.notify_all()

    def ends(self) -> dict[Place, Offset]:
        with self.changed:
            return self.parts.ends()

    def poll(self, timeout_seconds: float, most: int) -> Update:
        """Returns soon after the first messages, up to `most` of them."""
        with self.changed:
            self.changed.wait_for(self._has_news, timeout_seconds)
            ready = self.parts.ready()
            if ready and not self.parts.events:
                linger = min(LINGER_SECONDS, timeout_seconds)
                self.changed.wait_for(lambda: self.parts.ready() >= _LINGER_BYTES, linger)
            events, notes = list(self.parts.events), list(self.parts.notes)
            self.parts.events.clear()
            self.parts.notes.clear()
            messages = self.parts.take(most)
            if messages:
                self.changed.notify_all()
            return Update(messages, events, notes, self._error)

    def _has_news(self) -> bool:
        return bool(self.parts.events or self._error or self.parts.ready())

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            self._added.notify_all()
            readers = list(self._readers.values())
        for reader in readers:
            reader.interrupt()
        for thread in (self._discovery, *readers):
            thread.join(_JOIN_SECONDS)

    # For the threads

    def note(self, text: str) -> None:
        with self.changed:
            self.parts.notes.append(text)

    def unable(self, reason: str) -> None:
        with self.changed:
            self.parts.unable(reason)
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        with self.changed:
            self._error = error
            self.changed.notify_all()

    def rest(self, seconds: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.closed, seconds)

    # Who leads

    def _discover(self) -> None:
        connection: Connection | None = None
        backoff = _BACKOFF_SECONDS
        while topics := self._homeless():
            try:
                connection = connection or self._connect()
                known = wire.read_metadata(connection.ask(wire.METADATA, wire.metadata(sorted(topics))))
                self._settle(known)
                backoff = _BACKOFF_SECONDS
                continue
            except (OSError, wire.Malformed) as error:
                self.note(f"asking who leads: {error}")
            except Unable as error:
                self.unable(str(error))
            except Exception as error:
                self.fail(error)
            if connection is not None:
                connection.close()
                connection = None
            self.rest(backoff)
            backoff = min(2 * backoff, _BACKOFF_SECONDS_MAX)
        if connection is not None:
            connection.close()

    def _homeless(self) -> set[str]:
        """Waits until there are some; empty: it is over."""
        with self.changed:
            while not self.closed:
                if topics := self.parts.homeless(time.monotonic()):
                    return topics
                self._added.wait(_LOOK_SECONDS)
        return set()

    def _connect(self) -> Connection:
        """Any broker that answers."""
        failure: OSError | wire.Malformed | None = None
        for address in dict.fromkeys([*self._known.values(), *self._bootstrap]):
            try:
                return Connection(*address, self.options)
            except (OSError, wire.Malformed) as error:
                failure = type(error)(f"{address[0]}:{address[1]}: {error}")
        raise failure or ConnectionError("bootstrap.servers names nobody")

    def _settle(self, known: wire.Metadata) -> None:
        with self.changed:
            self._known = known.brokers
            self.parts.settle(known, time.monotonic())
            for node, address in known.brokers.items():
                reader = self._readers.get(node)
                if not self.closed and (reader is None or reader.address != address):
                    if reader is not None:
                        reader.interrupt()
                    self._readers[node] = _Reader(self, node, address)
                    self._readers[node].start()
            self.changed.notify_all()

    def current(self, reader: "_Reader") -> bool:
        return not self.closed and self._readers.get(reader.node) is reader


class _Reader(threading.Thread):
    """Reads from one broker."""

    def __init__(self, fetcher: Fetcher, node: int, address: tuple[str, int]) -> None:
        super().__init__(name=f"kafka-fetch-{node}", daemon=True)
        self.node, self.address = node, address
        self._fetcher = fetcher
        self._walker = Walker()
        self._connection: Connection | None = None

    def run(self) -> None:
        failures = 0
        while claims := self._claim(wait=True):
            try:
                self._connection = Connection(*self.address, self._fetcher.options)
                if self._fetcher.current(self):  # else nobody would interrupt it
                    failures = 0
                    self._read(self._connection, claims)
                continue
            except (OSError, wire.Malformed) as error:
                self._lose(f"{self.address[0]}:{self.address[1]}: {error}")
            except Unable as error:
                self._fetcher.unable(str(error))
            except Exception as error:  # broken logic, or no memory: the consumer's thread shall hear of it
                self._fetcher.fail(error)
            finally:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            self._fetcher.rest(min(_BACKOFF_SECONDS * 2**failures, _BACKOFF_SECONDS_MAX))
            failures = min(failures + 1, 10)

    def _lose(self, text: str) -> None:
        with self._fetcher.changed:
            if self._fetcher.current(self):
                self._fetcher.parts.notes.append(text)
                self._fetcher.parts.lose(self.node, time.monotonic())
                self._fetcher.changed.notify_all()

    def interrupt(self) -> None:
        if (connection := self._connection) is not None:
            connection.interrupt()

    def _claim(self, wait: bool) -> list[Claim]:
        """Empty where it is over, or there is nothing to ask for now."""
        with self._fetcher.changed:
            while self._fetcher.current(self):
                claims = self._fetcher.parts.claim(self.node, time.monotonic())
                if claims or not wait:
                    return claims
                self._fetcher.changed.wait(_LOOK_SECONDS)
        return []

    def _read(self, connection: Connection, claims: list[Claim]) -> None:
        """Until there is nothing to ask for."""
        self._send(connection, claims)
        while claims:
            reader = connection.answer(wire.FETCH, self._fetcher.sizes.wait_ms / 1000)
            fetched = wire.read_fetch(reader)
            if fetched.error:
                raise wire.Malformed(f"a fetch failed with error {fetched.error}")
            if fetched.throttle_ms:
                self._fetcher.note(f"{self.address[0]}:{self.address[1]} throttles us by {fetched.throttle_ms} ms")
                self._fetcher.rest(fetched.throttle_ms / 1000)
            with self._fetcher.changed:
                todo = self._fetcher.parts.answered(self.node, claims, fetched, time.monotonic())
            claims = self._claim(wait=False)
            if claims:
                self._send(connection, claims)
            self._walk(todo)
            if not claims:
                claims = self._claim(wait=True)
                if claims:
                    self._send(connection, claims)

    def _send(self, connection: Connection, claims: Sequence[Claim]) -> None:
        wanted = [claim.wanted for claim in claims]
        connection.send(wire.FETCH, wire.fetch(wanted, self._fetcher.sizes, self._fetcher.rack))

    def _walk(self, todo: Sequence[tuple[Claim, wire.Part]]) -> None:
        parts = self._fetcher.parts
        for claim, answer in todo:
            wanted = parts.wanted_beside(claim.part.place)
            walked = self._walker.walk(answer.records, claim.wanted.offset, answer.aborted, wanted)
            with self._fetcher.changed:
                parts.delivered(claim, walked, len(answer.records) > 0, time.monotonic())
                self._fetcher.changed.notify_all()


def _sizes(settings: Mapping[str, Any]) -> wire.Sizes:
    def first(*names: str, default: str) -> int:
        return int(next((settings[name] for name in names if name in settings), default))

    part_bytes = first("fetch.message.max.bytes", "max.partition.fetch.bytes", default=_PART_BYTES)
    return wire.Sizes(
        first("fetch.wait.max.ms", default=_WAIT_MS),
        first("fetch.min.bytes", default="1"),
        max(first("fetch.max.bytes", default=_ANSWER_BYTES), part_bytes),
        part_bytes,
    )
