"""README's first hour, as it is written there: from the stack to the dashboard, an alert, the bill and the audit."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from tests.kafka.stream import eventually
from tests.kafka_server import KafkaServer
from tokenometer.processor.cli.live import write_examples

pytestmark = pytest.mark.kafka

ROOT = pathlib.Path(__file__).parents[2]
START_SECONDS = 240
RATE = 500
LEDGER = "http://127.0.0.1:9465"  # in README; here another port where this one is taken


def blocks() -> list[str]:
    """The commands of README's section, block by block."""
    section = re.search(r"^## The first hour\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert section is not None
    return re.findall(r"^```sh\n(.*?)^```$", section[1], re.DOTALL | re.MULTILINE)


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder to work in, with `tokenometer` on the path as after `. .venv/bin/activate`."""
    command = tmp_path / ".venv/bin/tokenometer"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tokenometer.processor.cli "$@"\n')
    command.chmod(0o755)
    (command.parent / "activate").write_text(f'PATH="{command.parent}:$PATH"\n')
    for name in [name for name in os.environ if name.startswith("TOKENOMETER_")]:
        monkeypatch.delenv(name)
    return tmp_path


class Live:
    """What `make live` runs, beside the session's Kafka."""

    def __init__(self, home: pathlib.Path, bootstrap: str) -> None:
        makefile = (ROOT / "Makefile").read_text()
        recipe = re.search(r'^live:.*\n\t.*"\$\(BIN\)/tokenometer (.*?) \$\(LIVE_ARGS\)"', makefile, re.MULTILINE)
        assert recipe is not None
        self._out = home / "said"
        # A budget of this load has its first alert after 90 seconds, and one of a tenth of it after nine; it is kept.
        (home / "live").mkdir()
        write_examples(home / "live", RATE // 10)
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [str(home / ".venv/bin/tokenometer"), *recipe[1].format(bootstrap).split(), "--rate", str(RATE),
                 "--prefix", f"hour-{os.getpid()}"],
                cwd=home, stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._out.read_text()

    def up(self) -> bool:
        assert self.process.poll() is None, self.said
        return "Ctrl-C ends all" in self.said

    def address(self, name: str) -> str:
        found = re.search(rf"^{name} +(http://[0-9.]+:\d+)/(\S*)", self.said, re.MULTILINE)
        assert found is not None, self.said
        return found[1]


@pytest.fixture
def live(home: pathlib.Path, kafka: KafkaServer) -> Iterator[Live]:
    made = Live(home, kafka.bootstrap)
    yield made
    made.process.send_signal(signal.SIGTERM)
    made.process.wait(60)


def sh(block: str, home: pathlib.Path, live: Live, not_yet: str | None = None) -> str:
    """What the block says. not_yet: an error that passes, in place of which it is nothing."""
    environment = {**os.environ, "TOKENOMETER_TOP_URL": live.address("Dashboard")}
    block = block.replace(LEDGER, live.address("Ledger"))
    run = subprocess.run(["sh", "-euc", block], cwd=home, env=environment, capture_output=True, text=True, timeout=300)
    if not_yet and not_yet in run.stderr:
        return ""
    assert run.returncode == 0, f"{block}\n{run.stdout}{run.stderr}"
    return run.stdout


def is_gone(pid: int) -> bool:
    return not pathlib.Path(f"/proc/{pid}").exists()


def test_from_the_stack_to_the_dashboard_an_alert_the_bill_and_the_audit(home: pathlib.Path, live: Live) -> None:
    start, watch, bill = blocks()
    assert start.split() == ["make", "live"]
    eventually(live.up, "all members to be healthy", START_SECONDS)
    [page] = re.findall(r"^Dashboard +(\S+)$", live.said, re.MULTILINE)
    with urllib.request.urlopen(page, timeout=60) as answer:
        assert b"<title>" in answer.read()

    eventually(lambda: "gpt-4o-mini" in sh(watch, home, live, "no totals yet"), "totals of the load", 120)
    ledger = f"tokenometer usage --url {LEDGER} --token-file live/token --from 2026-01-01 --to 2100-01-01 --format csv"
    eventually(lambda: "\n" in sh(f". .venv/bin/activate\n{ledger}", home, live).strip(), "rows in the ledger", 120)
    billed = sh(bill, home, live)
    assert (home / "live/usage.csv").read_text().startswith("begin,end,user,model,")

    def ask(path: str) -> Any:
        token = (home / "live/token").read_text()
        request = urllib.request.Request(live.address("Dashboard") + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return orjson.loads(answer.read())

    def reached() -> set[str]:
        return {alert["rule"] for alert in ask("/v1/alerts")["alerts"]}

    eventually(lambda: "one-model" in reached(), "the budget's alert on the page", 240)
    assert ask("/api/about")["prices"] and ask("/api/cost?model=gpt-4o-mini")["revenue"] is not None
    users = ask("/api/users?model=gpt-4o-mini")
    assert users["source"] == "ledger" and users["rows"][0]["revenue"] is not None and users["currency"] == "USD"
    assert "gpt-4o-mini" in billed and "Statement 1: " in billed and "0 lines that differ" in billed

    [audit] = re.findall(r"^  (tokenometer verify .*)$", live.said, re.MULTILINE)
    assert "accounted for exactly" in sh(f". .venv/bin/activate\n{audit}", home, live)

    members = list(map(int, subprocess.run(
        ["pgrep", "-P", str(live.process.pid), "-f", "processor.cli"], capture_output=True, text=True, check=True,
    ).stdout.split()))  # fmt: skip
    assert len(members) == 6
    live.process.send_signal(signal.SIGINT)
    assert live.process.wait(60) == 0, live.said
    assert all(map(is_gone, members))
