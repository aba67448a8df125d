"""The topics that commands need: are they there, and which command creates them?"""

import logging
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tokenometer.processor.broker import Broker, TopicMissing
from tokenometer.processor.broker.registry import Registry, RegistryAway
from tokenometer.processor.cli import mapping_names
from tokenometer.processor.cli.common import usage_error
from tokenometer.processor.secret import Secret, reveal
from tokenometer.schemas.mapping import Mapping as RecordMapping
from tokenometer.schemas.mapping import MappingError

if TYPE_CHECKING:  # most commands have topics, and one has a meter
    from tokenometer.processor.meter.meter import MeterSettings

log = logging.getLogger("tokenometer")
INPUT, USAGE, LIVE, REJECTED, TOTALS, ALERTS, ALERTS_STATE = (
    "inference-logs",
    "token-usage",
    "token-live",
    "inference-logs-rejected",
    "token-totals",
    "token-alerts",
    "token-alerts-state",
)


def inputs(texts: list[str] | None, outputs: tuple[str, str, str]) -> dict[str, RecordMapping]:
    """The mapping of each topic, from texts such as TOPIC or TOPIC=MAPPING. Without texts the topic is INPUT. outputs:
    names that are taken."""
    topics: dict[str, RecordMapping] = {}
    for text in texts or [INPUT]:
        topic, _, mapping = text.partition("=")
        if topic in (*topics, *outputs):
            usage_error(f"--input {text}: the topic {topic} has another use already")
        topics[topic] = mapping_names.resolve(mapping or "native")
    return topics


def schemas(inputs_: Mapping[str, RecordMapping]) -> dict[str, bytes]:
    """The contents of the mappings' schema files. Raises MappingError."""
    found = {}
    for topic, mapping in inputs_.items():
        value = mapping.value
        if value.schema is not None:
            try:
                found[topic] = pathlib.Path(value.schema).read_bytes()
            except OSError as error:
                raise MappingError(f"{mapping.source}: value.schema: {value.schema}: {error.strerror}") from None
    return found


def registry(inputs_: Mapping[str, RecordMapping], client: Mapping[str, str | Secret] | None) -> Registry | None:
    """The Schema Registry, where a mapping reads it. One that is away is waited for when its schemas are needed.
    Raises MappingError and Refused."""
    asking = [mapping for mapping in inputs_.values() if mapping.value.registry]
    if not asking:
        return None
    if client is None:
        raise MappingError(
            f"{asking[0].source}: value.registry: where is the Schema Registry? Give --registry "
            f"schema.registry.url=https://HOST:PORT, and what else it needs in --registry-file"
        )
    found = Registry(reveal(client))
    for mapping in asking:
        found.schemas(mapping.value.encoding)
    try:
        found.check()
    except RegistryAway as error:
        log.warning("%s; messages will wait for it", error)
    return found


def check_input(broker: Broker, topic: str, partitions: int, replication: int = 1) -> None:
    """Checks that a topic of request logs is there. With partitions it is created where it is missing."""
    if broker.topics([topic])[topic] is None:
        _create(broker, topic, partitions, replication, {})


def check_topics(broker: Broker, settings: "MeterSettings", partitions: int, replication: int) -> None:
    """Checks that all topics are there, and warns if token-usage is not compacted. With partitions, those that are
    missing are created."""
    topics: dict[str, dict[str, str]] = {topic: {} for topic in settings.inputs} | {
        settings.usage_topic: {"cleanup.policy": "compact"},
        settings.live_topic: {"cleanup.policy": "delete"},
        settings.rejected_topic: {"cleanup.policy": "delete"},
    }
    for topic, state in broker.topics(list(topics)).items():
        wanted = topics[topic]
        if state is None:
            _create(broker, topic, partitions, replication, wanted)
        elif wanted.get("cleanup.policy") == "compact" and "compact" not in state.settings.get("cleanup.policy", ""):
            log.warning(
                "rows of %s will be deleted by retention instead of compacted; mend it: kafka-configs.sh "
                "--bootstrap-server HOST:PORT --alter --topic %s --add-config cleanup.policy=compact", topic, topic,
            )  # fmt: skip


def _create(broker: Broker, topic: str, partitions: int, replication: int, wanted: Mapping[str, str]) -> None:
    """Raises TopicMissing with both ways to create it, where no number of partitions was given."""
    if not partitions:
        command = _command(topic, replication, wanted)
        raise TopicMissing(f"the topic {topic} is not there; use --create-topics 6, or create it: {command}")
    broker.create_topic(topic, partitions, wanted, replication)
    log.info("topic created", extra={"topic": topic, "partitions": partitions, **wanted})


def _command(topic: str, replication: int, settings: Mapping[str, str], partitions: int = 6) -> str:
    configs = "".join(f" --config {key}={value}" for key, value in settings.items())
    return (
        f"kafka-topics.sh --bootstrap-server HOST:PORT --create --topic {topic} --partitions {partitions} "
        f"--replication-factor {replication}{configs}"
    )
