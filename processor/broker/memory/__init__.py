"""A model of Kafka inside this process. The demo uses it, because it needs no server, and the simulation runs on it.

Owns: logs, transactions, groups and their clocks. Everything that Kafka decides is decided here under one lock;
listeners and faults are called without it, so that they may call the broker.
Promises: nothing depends on the wall clock or on chance. All depends on the calls, their order and the given clock.

    broker     MemoryBroker: the protocol's face, and what an administrator does
    consumer, producer, following               the clients
    cluster    the state under its lock: topics, groups, transactional ids
    group, log, room                            what a group, a partition and its memory are; no lock, no clock

What is simpler than in Kafka
- A transaction's markers are written at one instant; Kafka writes them partition by partition.
- A member's session lasts from poll to poll; Kafka has heartbeats beside polls.
- A producer whose transaction took too long gets BrokerError, and Fenced only once there is a newer one; Kafka
  answers the same to both.
- All members of a group read the same topics. Nothing is compacted, replicated or elected.
- Offsets that an open transaction is about to commit: `Consumer.committed` waits for its end, as Kafka's require_stable
  does, but no longer than `patience_seconds`; then it raises BrokerError: try again, or open the transaction's producer
  anew, which aborts it. `Broker.committed`, from outside of the group, then shows the older offsets.
"""

from tokenometer.processor.broker.memory.broker import MemoryBroker
from tokenometer.processor.broker.memory.cluster import Assignor

__all__ = ["Assignor", "MemoryBroker"]
