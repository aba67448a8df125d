"""From messages to intakes: each topic's decoder, and messages that wait for a schema.

Owns: the decoders; messages whose Schema Registry does not answer.
Promises: a partition's messages come out in their order, or not at all: while one waits, those after it wait too, and
so no offset moves past it. Other partitions go on.

    messages ── take ──> intake                         the registry answers, or none is asked
                └─────> waiting ── again ──> intake     when it answers again
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping

from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.broker.registry import Registry, RegistryAway
from tokenometer.processor.intake import Decoder
from tokenometer.processor.meter.counting import Intake
from tokenometer.schemas.mapping import Mapping as RecordMapping
from tokenometer.schemas.value import asks_for_headers

log = logging.getLogger("tokenometer.meter")
_RETRY_MS = (100, 5000)  # first and longest wait; a question may take seconds by itself


class Receiving:
    """schemas: topic -> its mapping's schema file, read. steady_ms: a clock that never goes back."""

    def __init__(
        self,
        inputs: Mapping[str, RecordMapping],
        schemas: Mapping[str, bytes],
        registry: Registry | None,
        steady_ms: Callable[[], int],
    ) -> None:
        values = {topic: mapping.value for topic, mapping in inputs.items()}
        self.keys = [topic for topic, value in values.items() if value.key]
        self.headers = [topic for topic, value in values.items() if asks_for_headers(value)]
        self._decoders = {
            topic: Decoder(value, _source(registry, value.encoding) if value.registry else None, schemas.get(topic))
            for topic, value in values.items()
        }
        self._steady_ms = steady_ms
        self._waiting: dict[Place, deque[Messages]] = {}
        self._retry_at, self._wait_ms = 0, _RETRY_MS[0]
        self.trouble: str | None = None  # while messages wait. From any thread

    def take(self, messages: Messages) -> Intake | None:
        """None: they wait. Then nothing more should be polled of their partition."""
        waiting = self._waiting.get(messages.place)
        if waiting is not None:
            waiting.append(messages)
            return None
        try:
            return self._intake(messages)
        except RegistryAway as error:
            self._waiting[messages.place] = deque([messages])
            self._retry_at = self._steady_ms() + self._wait_ms
            if self.trouble is None:
                log.warning("%s; messages wait for it from offset %d of %s, partition %d, on", error,
                            int(messages.offsets[0]), *messages.place)  # fmt: skip
            self.trouble = str(error)
            return None

    def _intake(self, messages: Messages) -> Intake:
        return Intake.of(messages, self._decoders[messages.place.topic])

    def again(self) -> tuple[list[Intake], list[Place]]:
        """What waited and can be read now, if it is time to try; and the partitions of which nothing waits any more."""
        found: list[Intake] = []
        free: list[Place] = []
        if not self._waiting or self._steady_ms() < self._retry_at:
            return found, free
        try:
            for place, waiting in list(self._waiting.items()):
                while waiting:
                    found.append(self._intake(waiting[0]))
                    waiting.popleft()
                del self._waiting[place]
                free.append(place)
            log.info("the Schema Registry answers again")
            self.trouble, self._wait_ms = None, _RETRY_MS[0]
        except RegistryAway as error:
            self._wait_ms = min(2 * self._wait_ms, _RETRY_MS[1])
            self.trouble, self._retry_at = str(error), self._steady_ms() + self._wait_ms
        return found, free

    def forget(self, places: Iterable[Place] | None = None) -> list[Place]:
        """Drop what waits of these partitions, or of all. Answers of which something waited."""
        gone = [place for place in (list(self._waiting) if places is None else places) if place in self._waiting]
        for place in gone:
            del self._waiting[place]
        if not self._waiting:
            self.trouble, self._wait_ms = None, _RETRY_MS[0]
        return gone


def _source(registry: Registry | None, encoding: str) -> Callable[[int | str], str | bytes]:
    assert registry is not None, "a mapping with registry = true needs one: the caller's to check"
    return registry.schemas(encoding)
