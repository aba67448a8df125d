"""Record batches straight to the brokers: no message is an object.

In a transaction of librdkafka's, that one has the producer's id and epoch, sends the consumer's offsets, and ends the
transaction. Here its messages are written, where they are very many. Without transactions all is done here.

    writer      messages of a transaction           idempotent  messages without one
    sender      of both: connections, what waits for an answer, what is sent again
    packer      columns to record batches, pack.cpp         wire        requests and answers as bytes
"""

from tokenometer.processor.broker.kafka.write.idempotent import IdempotentWriter
from tokenometer.processor.broker.kafka.write.packer import Identity
from tokenometer.processor.broker.kafka.write.writer import TransactionWriter

__all__ = ["IdempotentWriter", "Identity", "TransactionWriter"]
