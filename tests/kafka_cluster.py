"""Three brokers on this machine, each of them a controller too, for tests that take one away."""

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from tests.kafka_server import KafkaServer, free_ports

REPLICATED = {
    "offsets.topic.replication.factor": "3",
    "transaction.state.log.replication.factor": "3",
    "transaction.state.log.min.isr": "2",
    "share.coordinator.state.topic.replication.factor": "3",
    "share.coordinator.state.topic.min.isr": "2",
    "min.insync.replicas": "2",
}


class KafkaCluster:
    """`brokers` may be killed and started by themselves; `close` ends them all."""

    def __init__(self, nodes: int = 3, heap: str = "384m", settings: Mapping[str, str] | None = None) -> None:
        ports = [free_ports() for _ in range(nodes)]
        voters = ",".join(f"{node}@127.0.0.1:{controller}" for node, (_, controller) in enumerate(ports, 1))
        self.brokers: list[KafkaServer] = []
        for node, own in enumerate(ports, 1):
            broker = KafkaServer(
                heap=heap,
                settings={
                    **REPLICATED, **(settings or {}), "node.id": str(node), "controller.quorum.voters": voters,
                },
            )  # fmt: skip
            broker._ports = own  # known before any of them starts
            self.brokers.append(broker)
        self.bootstrap = ",".join(f"127.0.0.1:{client}" for client, _ in ports)

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor(len(self.brokers)) as pool:  # one waits for a quorum
                list(pool.map(KafkaServer.start, self.brokers))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for broker in self.brokers:
            with contextlib.suppress(Exception):
                broker.kill()  # an orderly end would wait for controllers that are gone
            broker.close()
