"""Record batches straight from the brokers: whole batches come in, columns go out, and no message is an object.

librdkafka keeps the group and the transactions; its partitions are assigned and paused. Here they are read.

    fetcher      the threads: one for each broker, one that asks who leads
    parts        where each partition is read from, and how far; no I/O
    connection   one connection                     security    TLS and SASL
    wire         requests and answers as bytes      walk        record batches as columns, walk.cpp
    codecs       the libraries that decompress
"""

from tokenometer.processor.broker.kafka.fetch.fetcher import Fetcher, Update
from tokenometer.processor.broker.kafka.fetch.parts import Failure, Fallback
from tokenometer.processor.broker.kafka.fetch.security import Unable

__all__ = ["Failure", "Fallback", "Fetcher", "Unable", "Update"]
