"""How long from the append of a record to the alert of the budget that it exceeds, beside a steady load?

The load, the meter and the broker are those of bench_soak.py. `tokenometer alerts` reads the meter's rows with four
budgets of all users, models and money, none of which is exceeded. Every quarter of a second one record of a user that
nobody has seen is appended, and exceeds a fifth budget at once.

latency     from that record's append to the moment when a reader of token-alerts has its alert
rows        that were judged a second, and the processor time that the process took for each
"""

import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from bench import bench_soak, common
from tests.kafka_server import KafkaServer, free_ports
from tokenometer.processor.broker.kafka import KafkaBroker

USAGE, ALERTS, STATE = "soak-usage", "soak-alerts", "soak-alerts-state"
PROBE_SECONDS = 0.25
_WAIT_SECONDS = 60
PRICES = 'currency = "USD"\n[[price]]\nmodel = "*"\ninput = "1.25"\noutput = "10"\ncached_input = "0.125"\n'
RULES = """
prices = "prices.toml"
[[rule]]
name = "probe"
model = "probe"
each = "user"
tokens = 1
thresholds = [100]
[[rule]]
name = "all"
tokens = 1_000_000_000_000_000
per = "month"
[[rule]]
name = "users"
each = "user"
tokens = 1_000_000_000_000
[[rule]]
name = "models"
each = "model"
tokens = 1_000_000_000_000_000
per = "hour"
[[rule]]
name = "money"
each = "user"
money = "1000000"
per = "month"
"""


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rate", type=float, default=700_000.0, help="records a second")
    arguments = parser.parse_args()
    facts = common.facts("bench.bench_alerts", sys.argv[1:])
    seconds = 10.0 if arguments.size == "small" else arguments.seconds
    rate = 20_000.0 if arguments.size == "small" else arguments.rate
    with KafkaServer(heap="512m", settings=bench_soak.SERVER) as kafka, tempfile.TemporaryDirectory() as folder:
        found = _run(kafka.bootstrap, pathlib.Path(folder), seconds, rate)
    common.save(arguments.json, {"kind": "alerts", **facts, "seconds": seconds, "rate": rate, **found})
    print(json.dumps(found, indent=1))


def _run(bootstrap: str, folder: pathlib.Path, seconds: float, rate: float) -> dict[str, Any]:
    broker = KafkaBroker(bootstrap)
    broker.create_topic(USAGE, bench_soak.PARTITIONS, {"cleanup.policy": "compact"})
    for topic in (bench_soak.TOPIC, "soak-live", "soak-rejected"):
        broker.create_topic(topic, bench_soak.PARTITIONS, bench_soak.CUT)
    shared = {"bootstrap": bootstrap, "seconds": seconds, "rate": rate, "horizon": 120.0}
    meter = bench_soak._start({"role": "meter", **shared})
    assert meter.stdout is not None
    meter.stdout.readline()
    process, port = _alerts(bootstrap, folder)
    load = bench_soak._start({"role": "produce", **shared})
    _wait(lambda: _rows(port) > 0, process)  # from now on there is a load
    probes = Probes(bootstrap)
    sent = bench_soak._answer(load)
    probes.end()
    rows, before = _rows(port), _children_seconds()
    process.terminate()
    process.wait(_WAIT_SECONDS)
    used = _children_seconds() - before  # of this child, which has ended meanwhile
    counted = bench_soak._answer(meter)
    broker.close()
    return {
        "sent": sent,
        "latency_ms": bench_soak._percentiles(np.array(probes.latencies)),
        "probes": len(probes.latencies),
        "rows": rows,
        "rows_per_second": rows / seconds,
        "cpu_seconds": used,
        "cpu_us_per_row": used / max(1, rows) * 1e6,
        "commit_ms": counted["commit_ms"],
    }


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _alerts(bootstrap: str, folder: pathlib.Path) -> tuple[subprocess.Popen[bytes], int]:
    (folder / "prices.toml").write_text(PRICES)
    (folder / "rules.toml").write_text(RULES)
    port = free_ports()[0]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "tokenometer.processor.cli", "alerts", str(folder / "rules.toml"),
            "--bootstrap", bootstrap, "--usage-topic", USAGE, "--alerts-topic", ALERTS, "--state-topic", STATE,
            "--create-topics", "--listen", f"127.0.0.1:{port}", "--log-level", "warning",
        ]
    )  # fmt: skip
    _wait(lambda: _rows(port, none=-1) >= 0, process)
    return process, port


def _wait(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, "tokenometer alerts does not go on"
        time.sleep(0.2)


def _rows(port: int, none: int = 0) -> int:
    """That the process has judged; `none` where it does not answer."""
    from urllib.request import urlopen

    try:
        with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return int(orjson.loads(answer.read())["rows"])
    except OSError:
        return none


class Probes:
    """Records of users that nobody has seen, and their alerts."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._sent: dict[str, float] = {}
        self.latencies: list[float] = []
        self._done = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._read)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        broker = KafkaBroker(self._bootstrap)
        while not self._done.wait(PROBE_SECONDS):
            user, now = f"probe-{len(self._sent):06}", time.time()
            record = {
                "request_id": user, "timestamp": round(now * 1000), "user": user, "model": "probe", "chip": "H100",
                "input_tokens": 1, "output_tokens": 1,
            }  # fmt: skip
            self._sent[user] = now
            broker.append(bench_soak.TOPIC, [orjson.dumps(record)], [user.encode()])
            broker.flush()
        broker.close()

    def _read(self) -> None:
        broker = KafkaBroker(self._bootstrap)
        while broker.topics([ALERTS])[ALERTS] is None:
            time.sleep(0.1)
        follower = broker.follow({place: extent.begin for place, extent in broker.extents([ALERTS]).items()})
        deadline = float("inf")
        while len(self.latencies) < len(self._sent) or not self._done.is_set():
            for messages in follower.poll(0.05, 1000):
                now = time.time()
                users = [orjson.loads(value)["subject"] for value in messages.values if value is not None]
                self.latencies += [(now - self._sent[user]) * 1000 for user in users]
            if self._done.is_set():
                deadline = min(deadline, time.monotonic() + _WAIT_SECONDS)
                assert time.monotonic() < deadline, f"{len(self._sent) - len(self.latencies)} alerts did not come"
        follower.close()
        broker.close()

    def end(self) -> None:
        """Until all alerts are there."""
        self._done.set()
        for thread in self._threads:
            thread.join()


if __name__ == "__main__":
    main()
