"""The Python interface to the audit: a cluster and a group in, a report out."""

from collections.abc import Mapping

from tokenometer.processor.verify import verify
from tokenometer.processor.verify.values import Report, VerifySettings
from tokenometer.schemas import mapping as mappings


def verify_stream(
    bootstrap: str,
    inputs: Mapping[str, str] = {"inference-logs": "native"},  # noqa: B006  never written to
    *,
    group: str = "tokenometer",
    settings: VerifySettings | None = None,
    client: Mapping[str, str] = {},  # noqa: B006
) -> Report:
    """Audit a metered stream: recompute every total from the log, without the engine, and compare with the rows.

    bootstrap: Kafka's addresses. inputs: topic -> mapping, a shipped one's name or a file. group: whose commits are
    audited. settings: how the stream was metered (`tokenometer.processor.verify.values.VerifySettings`). client:
    settings of librdkafka, such as security.protocol.

    With `checkpoint` in its settings a clean audit leaves a file, and with `since` the next one goes on from there.

    Returns a report: `clean` is False if one token differs; `differences` and `problems` say where.
    Raises BrokerError, MappingError and VerifyError, all TokenometerErrors.
    """
    from tokenometer.processor.broker.kafka import KafkaBroker  # a large library, and only for this

    broker = KafkaBroker(bootstrap, client)
    try:
        return verify(broker, group, {topic: mappings.resolve(name) for topic, name in inputs.items()}, settings)
    finally:
        broker.close()
