"""How long a meter that was killed takes to count again: three meters, killed again and again, on a real Kafka.

    python -m tests.kafka.restarts --protocol classic --kills 100

Each meter is killed (SIGKILL) a random while after it came to commit, and started again at once under its name, while
the log goes on. What is measured: from the start of the meter (`ready`: Python and its libraries are loaded, which the
machine's other load delays) to its partitions and its first commit. The figures in docs/OPERATIONS.md are from here.
Ends with the audit of all that was counted.
"""

import argparse
import json
import random
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

from tests.kafka.meter_process import MeterProcess
from tests.kafka.stream import Stream
from tests.kafka_server import KafkaServer

METERS, PARTITIONS = 3, 6
SETTINGS = {"commit_interval_ms": 1000, "idle_interval_ms": 10_000}
PATIENCE_SECONDS = 120
RUN_SECONDS = (0.2, 6.0)  # from a first commit to the kill: shorter and longer than a rebalance takes


def measure(stream: Stream, kafka: Mapping[str, str], kills: int, seed: int) -> list[dict[str, float]]:
    """Of each start its seconds from the process to ready, and from there to partitions and to a commit with some."""
    found: list[dict[str, float]] = []
    failures: list[BaseException] = []

    def live(name: str, rng: random.Random) -> None:
        try:
            while len(found) < kills and not failures:
                meter = stream.meter(name, settings=SETTINGS, kafka=dict(kafka))
                meter.wait_until(partial(_first_commit, meter), "commit with partitions", PATIENCE_SECONDS)
                found.append(_times(meter))
                time.sleep(rng.uniform(*RUN_SECONDS))
                meter.kill()
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=live, args=(f"meter-{number}", random.Random(seed + number)))
        for number in range(METERS)
    ]
    with stream.flowing():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures
    return found[METERS:]  # the first ones form the group


def _first_commit(meter: MeterProcess) -> dict[str, Any] | None:
    taken = next((event["at"] for event in meter.events if event["event"] == "assigned" and event["places"]), None)
    after = (event for event in meter.events if event["event"] == "commit" and taken and event["at"] >= taken)
    return next(after, None)


def _times(meter: MeterProcess) -> dict[str, float]:
    commit = _first_commit(meter)
    assert commit is not None
    at = {event["event"]: event["at"] for event in reversed(meter.events)}
    return {
        "ready": at["ready"] - meter.started,
        "assigned": at["assigned"] - at["ready"],
        "commit": commit["at"] - at["ready"],
    }


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds from a meter's start to its first commit, after kill -9")
    parser.add_argument("--protocol", choices=("classic", "consumer"), default="classic")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broker", action="append", default=[], metavar="KEY=VALUE", help="a setting of the broker")
    parser.add_argument("--kafka", action="append", default=[], metavar="KEY=VALUE", help="a setting of librdkafka")
    arguments = parser.parse_args()
    kafka = {"group.protocol": arguments.protocol} | dict(text.split("=", 1) for text in arguments.kafka)
    broker = dict(text.split("=", 1) for text in arguments.broker)
    with KafkaServer(settings=broker) as server, pytest.MonkeyPatch.context() as patch:
        stream = Stream(server, patch, PARTITIONS, outputs=True)
        found = measure(stream, kafka, arguments.kills, arguments.seed)
        for name in ("ready", "assigned", "commit"):
            values = [times[name] for times in found]
            shares = {f"p{round(share * 100)}": round(quantile(values, share), 2) for share in (0.5, 0.9, 0.99)}
            print(json.dumps({"to": name, "starts": len(values)} | shares | {"most": round(max(values), 2)}))
        for number in range(METERS):
            stream.meter(f"meter-{number}", settings=SETTINGS, kafka=kafka)
        stream.settle()
        print(json.dumps({"audit": "clean", "records": stream.audit().tallies["read"]}))
        stream.close()


if __name__ == "__main__":
    main()
