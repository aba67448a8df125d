"""The whole way on a real Kafka: meters and `tokenometer alerts` as processes that are killed at random. In the end
token-alerts has each threshold that the rows reach once, and a webhook has heard of each."""

import contextlib
import datetime
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from urllib.request import urlopen

import orjson
import pytest

from tests import forked, streams
from tests.kafka.meter_process import POINTS, Trip
from tests.kafka.stream import PATIENCE_SECONDS, SMALL, Stream, endless, eventually
from tests.kafka_server import free_ports
from tests.test_alerts import Alert, expected
from tests.test_webhooks import Receiver
from tokenometer.processor.alerts import rulefile

pytestmark = pytest.mark.kafka

KILLS = 4
AFTER_MS = 1_800_000  # the log begins so long after its month: it may be ahead of the clock by less than an hour
SEED_ENVIRONMENT = "TOKENOMETER_TEST_ALERTS_SEED"
RULES = """
prices = "prices.toml"
[[rule]]
name = "all"
tokens = 40_000
per = "month"
thresholds = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
[[rule]]
name = "each-user"
each = "user"
tokens = 5_000
per = "month"
[[rule]]
name = "each-model"
each = "model"
money = "0.05"
per = "month"
[[webhook]]
name = "pager"
url = "URL"
secret_file = "secret"
"""
PRICES = 'currency = "USD"\n[[price]]\nmodel = "*"\ninput = "1.25"\noutput = "10"\ncached_input = "0.125"\n'


class AlertsProcess:
    """`tokenometer alerts`, as an operator starts it."""

    def __init__(self, stream: Stream, rules: pathlib.Path) -> None:
        self.port = free_ports()[0]
        self._errors = tempfile.TemporaryFile()
        usage = stream.outputs[0]
        settings = {
            "bootstrap": stream.bootstrap, "usage-topic": usage, "alerts-topic": f"{usage}-alerts",
            "state-topic": f"{usage}-state", "listen": f"127.0.0.1:{self.port}", "state-interval": "1",
            "log-format": "text",
        }  # fmt: skip
        arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
        self.process = forked.Popen(
            [sys.executable, "-m", "tokenometer.processor.cli", "alerts", str(rules), "--create-topics", *arguments],
            stdout=subprocess.DEVNULL, stderr=self._errors,
        )  # fmt: skip

    @property
    def errors(self) -> str:
        return os.pread(self._errors.fileno(), 1 << 24, 0).decode(errors="replace")

    def status(self) -> dict[str, object] | None:
        assert self.process.poll() is None, self.errors
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=20) as answer:
                return orjson.loads(answer.read())
        except OSError:
            return None

    def metrics(self) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            return answer.read().decode()

    def end(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(PATIENCE_SECONDS)
        self._errors.close()


def announced(stream: Stream) -> list[Alert]:
    topic = f"{stream.outputs[0]}-alerts"
    if stream.broker.topics([topic])[topic] is None:
        return []
    found = [orjson.loads(value) for _, value, _ in streams.read_topic(stream.broker, topic)]
    assert len({each["id"] for each in found}) == len(found), "no id is there twice"
    return [(each["rule"], each["subject"], each["begin"], each["threshold"]) for each in found]


def test_kills_of_meters_and_of_the_process_neither_lose_nor_repeat_an_alert(
    stream: Stream, tmp_path: pathlib.Path
) -> None:
    seed = int(os.environ.get(SEED_ENVIRONMENT, random.randrange(1 << 32)))
    print(f"seed {seed}: set {SEED_ENVIRONMENT} to it to draw the same kills again")
    draw = random.Random(seed)
    month = datetime.datetime.now(datetime.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    stream.log = endless(int(month.timestamp() * 1000) + AFTER_MS)
    with contextlib.closing(Receiver()) as receiver:
        receiver.answer = lambda alert: draw.choice([200, 200, 204, 500, 302])
        (tmp_path / "prices.toml").write_text(PRICES)
        (tmp_path / "secret").write_text("0123456789abcdef0123456789abcdef")
        path = tmp_path / "rules.toml"
        path.write_text(RULES.replace("URL", receiver.url))
        process = AlertsProcess(stream, path)
        try:
            eventually(lambda: (process.status() or {}).get("status") == "ok", "the process", PATIENCE_SECONDS)
            with stream.flowing(300):
                for _ in range(KILLS):
                    trip = Trip(draw.choice(POINTS), draw.randint(1, 4), delay_ms=draw.uniform(0, 10))
                    meter = stream.meter(trip=trip, engine=SMALL)
                    time.sleep(draw.uniform(0.2, 3))
                    process.end(signal.SIGKILL)
                    process = AlertsProcess(stream, path)
                    meter.wait_for_end(-signal.SIGKILL)
                stream.meter(engine=SMALL).wait_for_count()
            stream.settle()
            stream.stop()
            # Late records are of months that were over when the first process began: those are not announced.
            text = month.strftime("%Y-%m-%dT%H:%M:%SZ")
            wanted = {alert for alert in expected(rulefile.load(str(path)).rules, rows(stream)) if alert[2] == text}
            assert {rule for rule, *_ in wanted} == {"all", "each-user", "each-model"} and len(wanted) > 100
            eventually(lambda: set(announced(stream)) >= wanted, f"all alerts, seed {seed}", PATIENCE_SECONDS)
            found = announced(stream)
            assert set(found) == wanted and len(found) == len(wanted), f"seed {seed}"
            receiver.answer = lambda alert: 200
            heard = lambda: {orjson.loads(body)["id"] for *_, body in receiver.requests}  # noqa: E731
            eventually(
                lambda: len(heard()) == len(wanted), f"all of them at the webhook, seed {seed}", PATIENCE_SECONDS
            )
            assert 'tokenometer_alerts_webhook_waiting{webhook="pager"}' in process.metrics()
            process.end(signal.SIGTERM)
            assert process.process.returncode == 0
        finally:
            process.end(signal.SIGKILL)


def rows(stream: Stream) -> list[bytes]:
    return [value for _, value, _ in streams.read_topic(stream.broker, stream.outputs[0])]
