"""`tokenometer top`: what the screen shows, how it fits, and how it lives through a server's absence."""

import contextlib
import fcntl
import http.server
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from rich.console import Console

from tests.test_cli import assert_error
from tests.test_page import ATTACKS, hostile
from tests.totals_data import AT_MS, Feed, Shape, make, nothing, old
from tokenometer.processor import show
from tokenometer.processor.cli import top as cli_top
from tokenometer.processor.dashboard import ServeAddress, SiteThread, server, top
from tokenometer.processor.dashboard.top_keys import WORDS_MAX, Order, Wanted

TOKEN = "a-token-for-top-0123456789"
SIZES = [(80, 24), (160, 50), (100, 30), (143, 24), (144, 24), (120, 50), (60, 16), (240, 70)]
RATES = tuple(1e9 + 1e8 * (k % 7) for k in range(300))


def shown(
    totals: dict[str, Any], width: int = 80, height: int = 24, wanted: Wanted | None = None, **link: Any
) -> list[str]:
    console = Console(width=width, height=height, force_terminal=False, color_system=None)
    with console.capture() as captured:
        where = top.Link("http://127.0.0.1:8321", **{"rates": RATES} | link)
        console.print(top.view(totals, where, width, height, wanted or Wanted(), wanted is not None))
    return [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_SECONDS", 0.05)
    for name in list(os.environ):
        if name.startswith("TOKENOMETER_"):
            monkeypatch.delenv(name)


# --- The view ---


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(
    "totals",
    [make(), make(Shape(64, 32, 20, 200)), make(stale=True), nothing(), hostile(), make(Shape(1, 1, 1, 1))],
    ids=["usual", "large", "stale", "nothing", "hostile", "one"],
)
def test_it_fits(width, height, totals):
    lines = shown(totals, width, height)
    assert len(lines) <= height and max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("width", [80, 160])
def test_it_shows_the_numbers(width):
    totals = make()
    rate, windows = totals["rate"], totals["windows"]
    text = "\n".join(shown(totals, width, 50))
    for words in (
        f"{show.si(rate['tokens_per_second'])} tokens/s", f"{show.si(rate['tokens_per_day'])} a day",
        f"{show.percent(rate['share_of_target'])} of 120 T", "live", "17:05:13 UTC", "complete to 17:05:10",
        *(show.si(windows[name]["tokens"]["total_tokens"]) for name in ("today", "yesterday", "since_start")),
        *(f"{show.si(windows[f'last_{name}']['active_users'])}" for name in ("1m", "1h", "24h")),
        "uncached 44 %", "cached 34 %", "written 5 %", "output 11 %", "reasoning 6 %",
        f"{show.si(totals['records']['conflicts'])} conflicting",
        *(row["model"] for row in windows["last_1h"]["by_model"]),
        *(row["chip"] for row in windows["last_1h"]["by_chip"]),
        "user-00013", "meter-2 ", "503 ms", "gpt-4o-mini",
    ):  # fmt: skip
        assert words in text, words
    assert "Model x chip" in text
    assert f"{show.si(totals['records']['skipped'])} skipped" in "\n".join(shown(totals, 160, 50))
    totals["records"] |= {"skipped": 0, "conflicts": 0}
    text = "\n".join(shown(totals, width, 50))
    assert "invalid_json 3.60 k" in text and "skipped" not in text and "conflicting" not in text
    assert "Model x chip" not in "\n".join(shown(totals))


def test_what_does_not_fit_is_added_up():
    lines = shown(make(Shape(models=64)))
    hour = make(Shape(models=64))["windows"]["last_1h"]
    [more] = [line for line in lines if line.startswith("60 more")]
    rest = sum(row["total_tokens"] for row in hour["by_model"][4:])
    assert show.si(rest) in more and show.percent(rest / hour["tokens"]["total_tokens"]) in more


def test_a_log_that_is_rejected_says_so_first():
    totals = make()
    one = {"topic": "logs", "judged": 1000, "rejected": 983, "reason": "missing_field", "field": "user", "most": 983,
           "keys": []}  # fmt: skip
    totals["misfits"] = [one | {"topic": "few", "rejected": 600}, one]
    assert "NOT COUNTED: 98.3 % of logs, missing_field of user and 1 more" in shown(totals, 100)[0]


def test_stale_and_lost_say_so_first():
    assert "STALE: no meter has committed for 42 s" in shown(make(stale=True))[0]
    assert "STALE: no meter has committed yet" in shown(nothing())[0]
    lost = shown(make(), silent_ms=12_000, trouble="Connection refused, retrying")[0]
    assert "NO UPDATES for 12 s: Connection refused, retrying" in lost
    assert "NO UPDATES for 6.0 s: the server sends nothing" in shown(make(), silent_ms=6000)[0]


def test_a_log_of_another_day_says_of_which_and_why_the_hour_is_empty():
    totals = old(AT_MS + 7 * 86_400_000, AT_MS)
    for width, height in SIZES[:3]:
        text = "\n".join(shown(totals, width, height))
        assert "complete to 23 Nov 17:05:13" in text
        assert "The newest record is of 23 Nov 17:05:13 UTC" in text
    assert "the last hour has nothing of it." in "\n".join(shown(totals, 100, 30, Wanted()))
    assert "The newest record" not in "\n".join(shown(make()))
    totals["complete_up_to"] = None
    assert "complete to –" in "\n".join(shown(totals))


def test_names_of_chips_have_the_room_that_there_is():
    totals = make(Shape(models=8, chips=6))
    wide = "\n".join(shown(totals, 200, 50))
    heads = next(line for line in wide.splitlines() if line.startswith("Model x chip"))
    assert all(chip in heads for chip in totals["matrix"]["chips"]) and "…" not in heads
    narrow = next(line for line in shown(totals, 120, 50) if line.startswith("Model x chip"))
    assert "H200-SXM-141…" not in narrow and "H200-SXM-141GB" in narrow
    totals["matrix"]["models"][0] = "m" * 90
    assert "m" * 60 in "\n".join(shown(totals, 200, 50))


def test_meters_that_stopped_come_first():
    totals = make(Shape(meters=12))
    totals["meters"][10]["state"] = "stale"
    order = [line[41:].split()[0] for line in shown(totals) if "meter-" in line]
    assert order[:3] == ["meter-10", "meter-0", "meter-1"]


def test_names_cannot_steer_the_terminal():
    totals = make(Shape(models=1, chips=1, users=1, meters=1))
    evil = "\x1b]0;owned\x07\x1b[2J\u202e\nnext[bold red]x[/]"
    for row in (
        totals["top_users"][0],
        totals["windows"]["last_1h"]["by_model"][0],
        totals["windows"]["last_1h"]["by_chip"][0],
    ):
        row[next(key for key in ("user", "model", "chip") if key in row)] = evil
    totals["meters"][0] |= {"meter": evil, "device": evil}
    totals["rejects"], totals["matrix"]["models"], totals["matrix"]["chips"] = {evil: 1}, [evil], [evil]
    text = "\n".join(shown(totals, 200, 50, trouble=show.printable(evil)))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text and "[bold red]x" in text
    assert show.printable(ATTACKS[5]) == ATTACKS[5] and show.printable(ATTACKS[7]) == ATTACKS[7]


@pytest.mark.parametrize(
    ("values", "cells", "wanted"),
    [((), 5, ""), ((0, 0), 5, "▁▁"), ((1, 2, 4, 8), 9, "▁▂▄█"), ((9, 9, 1, 8), 2, "▁█"), ((5,), 0, ""), ((5,), -3, "")],
)
def test_sparks(values, cells, wanted):
    assert top.spark(values, cells) == wanted


# --- Keys ---


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("", Wanted()),
        ("q", Wanted(done=True)),
        ("?", Wanted(help=True)),
        ("??", Wanted()),
        ("s", Wanted(order=Order.REQUESTS)),
        ("ssss", Wanted()),
        ("/gpt", Wanted(words="gpt", typing=True)),
        ("/q?s\r", Wanted(words="q?s")),
        ("/gptx\x7f\n", Wanted(words="gpt")),
        ("/gpt\rs", Wanted(words="gpt", order=Order.REQUESTS)),
        ("\x1b[A", Wanted()),
        ("/" + "x" * 50, Wanted(words="x" * WORDS_MAX, typing=True)),
        ("/a\x00\x07b\r", Wanted(words="ab")),
    ],
)
def test_keys_say_what_is_wanted(keys, wanted):
    assert Wanted().press(keys) == wanted
    assert Wanted(words="old", help=True).press("\x1b") == Wanted()


def test_a_filter_leaves_names_that_have_its_words_and_sums_of_those_alone():
    totals = make(Shape(models=64))
    shown_ = "\n".join(shown(totals, 160, 50, Wanted(words="GPT-4O")))
    assert "gpt-4o-mini" in shown_ and "claude" not in shown_ and "Model x chip" not in shown_ and "H100" not in shown_
    assert "user-00013" not in shown_ and "meter-2" not in shown_
    assert "meter-2" in "\n".join(shown(totals, 160, 50, Wanted(words="meter-2")))


@pytest.mark.parametrize(("order", "head"), [(Order.REQUESTS, "Requests"), (Order.OUTPUT, "Output")])
def test_an_order_shows_what_it_sorts_by(order, head):
    totals = make()
    rows = sorted(totals["windows"]["last_1h"]["by_model"], key=lambda row: -row[order])
    lines = shown(totals, 200, 50, Wanted(order=order))
    [start] = [k for k, line in enumerate(lines) if line.startswith("Model, last hour")]
    assert head in lines[start] and "Tokens" in lines[start], "users have tokens only"
    assert [line.split()[0] for line in lines[start + 2 :][: len(rows)]] == [row["model"] for row in rows]
    assert show.si(rows[0][order]) in lines[start + 2]


def test_names_may_be_the_order():
    lines = shown(make(), 160, 50, Wanted(order=Order.NAME))
    [start] = [k for k, line in enumerate(lines) if line.startswith("Model, last hour")]
    names = [line.split()[0] for line in lines[start + 2 :][:4]]
    assert names == sorted(names)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("wanted", [Wanted(help=True), Wanted(words="x" * 40, typing=True, order=Order.NAME)])
def test_what_is_asked_for_fits(width, height, wanted):
    lines = shown(make(), width, height, wanted)
    assert len(lines) <= height and max(map(len, lines)) <= width
    assert wanted.help == any("show or hide these keys" in line for line in lines)


# --- The command ---


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
def site(feed: Feed) -> Iterator[SiteThread]:
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site:
        yield site


def test_once_prints_one_view(call, site):
    code, out, err = call("top", "--once", "--url", site.url)
    assert (code, err) == (0, "") and "Tokenometer  live" in out and "Model x chip" in out and "\x1b" not in out
    assert all(line == line.rstrip() and len(line) <= 120 for line in out.splitlines())
    assert call("top", "--url", f"{site.url}/")[:2] == (0, out), "so does a pipe"


def test_the_url_may_stand_in_the_environment(call, site, monkeypatch):
    monkeypatch.setenv("TOKENOMETER_TOP_URL", site.url)
    assert call("top", "--once")[0] == 0


def test_a_token_is_asked_for_and_taken(call, feed, monkeypatch):
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0, token=TOKEN))) as site:
        assert_error(call("top", "--once", "--url", site.url), 1, "set TOKENOMETER_TOP_TOKEN")
        assert_error(call("top", "--once", "--url", site.url, "--token", "wrong"), 1, "set TOKENOMETER_TOP_TOKEN")
        assert call("top", "--once", "--url", site.url, "--token", TOKEN)[0] == 0
        monkeypatch.setenv("TOKENOMETER_TOP_TOKEN", TOKEN)
        assert call("top", "--once", "--url", site.url)[0] == 0


def test_nothing_there_names_the_fix(call):
    url = "http://127.0.0.1:1"
    assert_error(call("top", "--url", url), 1, f"{url}: Connection refused; start a rollup (tokenometer rollup)")
    for wrong in ("127.0.0.1:8321", "file:///etc/passwd", "ftp://x"):
        assert_error(call("top", "--url", wrong), 2, "expected http://HOST:PORT")


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b'{"schema": 2}', b""])
def test_something_else_there_is_named(call, answer):
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        result = call("top", "--once", "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
    assert_error(result, 1, "this is not a dashboard of Tokenometer")


def test_early_totals_are_explained(call):
    with contextlib.closing(SiteThread(Feed(None).source(), ServeAddress(port=0))) as site:
        assert_error(call("top", "--once", "--url", site.url), 1, "no totals yet")


def test_help_fits(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call("top", "--help")
    assert (code, err) == (0, "") and "Usage: tokenometer top" in out and max(map(len, out.splitlines())) <= 80


def test_events_are_read():
    lines = [b"retry: 1000\n", b"\n", b":\n", b"\n", b"event: totals\n", b'data: {"a":1}\n', b"\n"]
    assert list(cli_top.events(lines)) == [{"a": 1}]


# --- On a terminal ---


def _own_terminal() -> None:
    """So that Ctrl-C on it is a signal."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """The command on a terminal of 80 x 24, and what it wrote."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        environment = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokenometer.processor.cli", "top", *arguments],
            stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(self.master, 1 << 16):
                self.text += piece.decode(errors="replace")

    def until(self, words: str) -> None:
        wait_until(lambda: words in self.text, lambda: f"{words!r} is not in {self.text[-3000:]!r}")
        self.text = self.text[self.text.index(words) + len(words) :]

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self.master)


def wait_until(true: Callable[[], Any], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, why()
        time.sleep(0.02)


def test_keys_work_on_a_terminal(site):
    with contextlib.closing(Terminal("--url", site.url)) as terminal:
        terminal.until("? for keys")
        terminal.press(b"?")
        terminal.until("show or hide these keys")
        terminal.press(b"?/claude\r")
        terminal.until("/claude")
        terminal.press(b"ss")
        terminal.until("by output")
        terminal.press(b"q")
        assert terminal.process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_the_screen_lives_through_a_restart(feed, key):
    site = SiteThread(feed.source(), ServeAddress(port=0))
    with contextlib.closing(Terminal("--url", site.url)) as terminal:
        terminal.until("\x1b[?1049h")  # the alternate screen
        terminal.until("17:05:13 UTC")
        feed.totals = make(at_ms=AT_MS + 2000)
        terminal.until("17:05:15 UTC")
        site.close()
        terminal.until("NO UPDATES for ")
        terminal.until("retrying")
        later = Feed(make(at_ms=AT_MS + 5000))
        with contextlib.closing(SiteThread(later.source(), ServeAddress(port=site.site.port))):
            terminal.until("17:05:18 UTC")
            terminal.press(key)
            assert terminal.process.wait(30) == 0
            terminal.until("\x1b[?1049l")


def test_no_server_leaves_the_screen_alone():
    with contextlib.closing(Terminal("--url", "http://127.0.0.1:1")) as terminal:
        assert terminal.process.wait(30) == 1
        terminal.until("start a rollup")
        assert "\x1b[?1049h" not in terminal.text


def test_totals_of_the_stream_are_those_of_the_api(site, feed):
    stream = cli_top._Server(site.url, None).stream()
    assert next(stream) == orjson.loads(orjson.dumps(feed.totals))
    stream.close()
