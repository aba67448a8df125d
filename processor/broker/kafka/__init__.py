"""A real Kafka, through librdkafka: the only room that imports its client.

Owns: librdkafka's clients, their settings, the meaning of their errors here, and the few places where librdkafka says
less than the protocol promises.
Promises: no client writes to standard error (all goes to the log `tokenometer.kafka`); no call waits for ever.

    cluster    KafkaBroker, the protocol's Broker, which makes the others
    consumer   a member of a group                     following   readers in no group
    fetch/     whole record batches for the consumer, by requests of our own
    write/     the same for columns on their way out
    producer   writing in transactions                 appender    writing without them
    direct     librdkafka's call to produce many at once
    messages   the client's messages as ours           errors      what errors mean
    settings   which settings are ours, which have defaults
"""

from tokenometer.processor.broker.kafka.cluster import KafkaBroker
from tokenometer.processor.broker.kafka.consumer import KafkaConsumer
from tokenometer.processor.broker.kafka.settings import CONSUMER_DEFAULTS

__all__ = ["CONSUMER_DEFAULTS", "KafkaBroker", "KafkaConsumer"]
