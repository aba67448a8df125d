"""Record batches straight to the brokers, inside a transaction of librdkafka's: no message is an object.

librdkafka has the producer's id and epoch, sends the consumer's offsets, and ends the transaction. Here its messages
are written, where they are very many.

    writer      connections, what waits for an answer, what is sent again
    packer      columns to record batches, pack.cpp         wire        requests and answers as bytes
"""

from tokenometer.processor.broker.kafka.write.packer import Identity
from tokenometer.processor.broker.kafka.write.writer import TransactionWriter

__all__ = ["Identity", "TransactionWriter"]
