"""What a meter commits with an offset: the state of its partition's log, as a short JSON text."""

import orjson

from tokenometer.kernels.values import PartitionState
from tokenometer.processor.broker import BrokerError

VERSION = 1


class UnknownMetadata(BrokerError):
    """The metadata of a committed offset is another program's, or a later version's."""


def encode(state: PartitionState, topic_id: str) -> str:
    """A few hundred bytes at most; brokers take 4 KiB. `topic` tells a topic from a later one of the same name."""
    return orjson.dumps(
        {
            "v": VERSION,
            "watermark": state.watermark_ms,
            "log_time": state.log_time_ms,
            "dedup_from": state.dedup_from,
            "topic": topic_id,
        }
    ).decode()


def decode(metadata: str) -> tuple[PartitionState, str | None]:
    """The state, and the topic's id. An empty text is an operator's: Kafka's tools reset offsets without one."""
    if not metadata:
        return PartitionState(), None
    try:
        values = orjson.loads(metadata)
        if values["v"] != VERSION:
            raise UnknownMetadata(f"committed metadata of version {values['v']}, expected {VERSION}: {metadata!r}")
        return PartitionState(values["watermark"], values["log_time"], values["dedup_from"]), values["topic"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise UnknownMetadata(
            f"the group's committed offset has metadata that no meter wrote: {metadata!r}; give the meter a group of "
            f"its own, or delete this group's offsets"
        ) from None
