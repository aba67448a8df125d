"""What the page says of meters that die and of meters that are stopped: real processes, a real Kafka, a real Chromium.

The page itself notes all that it shows, so that nothing passes between two looks of the test.
"""

import pathlib
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from selenium import webdriver

from tests import forked
from tests.kafka.service import Service
from tests.kafka.stream import PATIENCE_SECONDS, Stream, eventually
from tests.kafka_server import free_ports
from tests.test_page import Page, chrome  # noqa: F401 - a fixture

pytestmark = [pytest.mark.kafka, pytest.mark.browser]

NOTE = """
window.noted = [];
const note = () => {
  const rows = [...document.querySelectorAll("#meter-rows tr")].map((row) => ({
    meter: row.children[0].firstChild.textContent, state: row.children[1].textContent,
    faded: getComputedStyle(row.children[5]).opacity < 0.7 }));
  const said = { at: Date.now(), rows, pulse: document.querySelector("[data-field=pulse]").textContent,
    banner: document.getElementById("banner").hidden ? "" : document.getElementById("banner").textContent };
  if (JSON.stringify(said.rows) + said.pulse !== window.last) noted.push(said);
  window.last = JSON.stringify(said.rows) + said.pulse;
};
const all = { subtree: true, childList: true, characterData: true, attributes: true };
new MutationObserver(note).observe(document.body, all);
""".strip()


class Rollup:
    def __init__(self, stream: Stream, log: pathlib.Path) -> None:
        self.port, self._log = free_ports()[0], log
        with log.open("wb") as out:
            self.process = forked.Popen(
                [
                    sys.executable, "-m", "tokenometer.processor.cli", "rollup", "--bootstrap", stream.bootstrap,
                    "--app", f"{stream.group}-rollup", "--live-topic", stream.outputs[1], "--create-topics",
                    "--totals-topic", f"{stream.outputs[1]}-totals", "--listen", f"127.0.0.1:{self.port}",
                ],
                stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def rollup(stream: Stream, tmp_path: pathlib.Path) -> Iterator[Rollup]:
    made = Rollup(stream, tmp_path / "rollup.log")
    yield made
    made.process.kill()
    made.process.wait()


def states(page: Page) -> dict[str, str]:
    rows = "[...document.querySelectorAll('#meter-rows tr')]"
    return dict(page.ask(f"{rows}.map((row) => [row.children[0].firstChild.textContent, row.children[1].textContent])"))


def noted(page: Page, meter: str) -> list[tuple[str, bool, str]]:
    """State, whether its last values are faded, and what the header said with it, in order."""
    return [
        (row["state"], row["faded"], said["pulse"])
        for said in page.ask("noted")
        for row in said["rows"]
        if row["meter"] == meter
    ]


def seconds(state: str) -> float:
    """Of `◐ late 2.6 s`."""
    found = re.search(r"([0-9.]+) (ms|s|min)$", state)
    assert found is not None, state
    return float(found[1]) * {"ms": 0.001, "s": 1, "min": 60}[found[2]]


def test_a_killed_meter_is_late_and_then_stopped_and_one_that_is_told_to_stop_says_so(
    chrome: webdriver.Chrome,  # noqa: F811
    stream: Stream,
    start: Callable[..., Service],
    rollup: Rollup,
) -> None:
    page = Page(chrome)
    first, second = stream.named("meter-0"), stream.named("meter-1")
    victim, other = start(stream), start(stream, "--name", second)
    with stream.flowing():
        address = f"http://127.0.0.1:{rollup.port}"

        def opened() -> bool:
            assert rollup.process.poll() is None, rollup.log
            page.open(address)
            return bool(page.ask("document.body.dataset.state !== undefined"))

        def is_open() -> bool:
            try:
                return opened()
            except Exception as error:  # the rollup does not serve yet
                if "ERR_CONNECTION" not in str(error):
                    raise
                return False

        eventually(is_open, "the page", PATIENCE_SECONDS)
        both = {first: "● live", second: "● live"}
        eventually(lambda: states(page) == both and page.field("pulse")[0] == "live", "two meters", PATIENCE_SECONDS)
        page.chrome.execute_script(NOTE)

        # Not within a commit: its open transaction would hold back the other one's summaries, for 30 s.
        commits = victim.log.count("took_ms")
        eventually(lambda: victim.log.count("took_ms") > commits, "a commit", 30)
        victim.process.kill()
        eventually(lambda: states(page)[first].startswith("▲ stopped"), "the dead one", PATIENCE_SECONDS)
        told = noted(page, first)
        late = [each for each in told if each[0].startswith("◐ late")]
        stale = [each for each in told if each[0].startswith("▲ stopped")]
        assert late and stale and told.index(late[0]) < told.index(stale[0]), told
        assert all(faded for _, faded, _ in late[1:] + stale), "its last values fade"
        assert all(2 <= seconds(state) < 12 for state, *_ in late), late
        assert all(seconds(state) >= 12 for state, *_ in stale), stale
        eventually(lambda: re.search(f"{first} stopped [0-9]+ s", page.field("pulse")[0]), "the header", 10)
        assert any(f"{first} late" in pulse for *_, pulse in late)
        assert page.banner == "" and states(page)[second] == "● live", "the other one goes on"
        print(f"late first at {late[0][0]}, stopped first at {stale[0][0]}")

        again = start(stream)
        eventually(lambda: states(page)[first] == "● live", "it to come back", PATIENCE_SECONDS)
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(PATIENCE_SECONDS) == 0, other.log
        eventually(lambda: states(page)[second] == "■ stopped", "the planned stop", PATIENCE_SECONDS)
        time.sleep(3)  # for what would be said wrongly
        assert not any("▲" in state or f"{second} stopped" in pulse for state, _, pulse in noted(page, second))
        eventually(lambda: page.field("pulse")[0] == "live", "a header that names nobody", PATIENCE_SECONDS)
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(PATIENCE_SECONDS) == 0, again.log
        eventually(lambda: page.banner.startswith("STOPPED: every meter was told to stop"), "the banner", 30)
