"""The command `top`: the dashboard's totals in a terminal.

Owns: the connection to the server, on a thread of its own, and the screen. What is shown is dashboard/top.py's.
Promises: the screen goes on when the server goes away, and says so; it comes back with the server.
"""

import contextlib
import http.client
import io
import os
import sys
import termios
import threading
import time
import tty
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from select import select
from typing import Annotated, Any

import orjson
from rich.live import Live
from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli.client import open_url, service_at
from tokenometer.processor.cli.common import ctrl_c, show_view, stdout_console
from tokenometer.processor.cli.options import CommandSettings, TokenFile, http_url
from tokenometer.processor.dashboard import top
from tokenometer.processor.dashboard.top_keys import AS_IT_COMES
from tokenometer.processor.secret import Secret
from tokenometer.schemas.errors import TokenometerError

RETRY_SECONDS = 1.0
_SILENCE_SECONDS = 5.0  # without totals the screen must not look alive
_TIMEOUT_SECONDS = 20.0  # of one read: two heartbeats
_REDRAW_SECONDS = 0.5
_KEYS_BYTES = 256  # of keys pressed, or pasted, since the last look
_LINES_PIPED = 50  # of a view that goes to a file or another program
_DATA = b"data: "


class TopError(TokenometerError):
    """There is nothing to show; the message says what to do."""


@dataclass(frozen=True)
class TopCommand(CommandSettings):
    url: Annotated[
        str, Option(parser=http_url, metavar="URL", help="The address of the dashboard that a rollup serves.")
    ] = "http://127.0.0.1:8321"
    token: Annotated[
        Secret | None,
        Option(
            parser=Secret, metavar="TOKEN", help="The dashboard's token. Better: TOKENOMETER_TOP_TOKEN or --token-file."
        ),
    ] = None  # fmt: skip
    token_file: TokenFile = None
    once: Annotated[bool, Option("--once", help="Print what there is, and exit.")] = False


def top_command(command: TopCommand) -> None:
    """Watch the rolling totals in a terminal: rates, users, models, chips, meters. ? shows the keys, and q or Ctrl-C
    ends it.

    Examples:
        tokenometer top
        tokenometer top --url http://rollup:8321 --token-file dashboard.token
        tokenometer top --once > totals.txt
    """
    server = _Server(command.url, command.token_file or command.token)
    totals = server.totals()
    if command.once or not sys.stdout.isatty():
        console = stdout_console()
        height = console.height if sys.stdout.isatty() else _LINES_PIPED
        show_view(top.view(totals, top.Link(server.url), console.width, height))
        return
    _watch(server, _Feed(totals, server.rates()))


# --- The server ---


@dataclass(frozen=True)
class _Server:
    url: str
    token: Secret | None

    def open(self, path: str) -> Any:
        return open_url(self.url + path, self.token, _TIMEOUT_SECONDS)

    def totals(self) -> dict[str, Any]:
        """Raises TopError with what to do."""
        try:
            with self.open("/api/totals") as answer:
                totals = orjson.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                raise TopError(f"{self.url}: {_explain(error)}{self._instead(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise TopError(
                f"{self.url}: {getattr(reason, 'strerror', None) or reason}; start a rollup (tokenometer rollup) or a "
                "demo, or name another one with --url"
            ) from None
        except orjson.JSONDecodeError:
            totals = None
        if not isinstance(totals, dict) or totals.get("schema") != 1:
            raise TopError(f"{self.url}: this is not a dashboard of Tokenometer; name another one with --url")
        return totals

    def _instead(self, error: urllib.error.HTTPError) -> str:
        other = service_at(self.url, self.token) if error.code == 404 else ""
        return f": {other}; the usual port of a dashboard is 8321" if other else ""

    def rates(self) -> list[float]:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            with self.open("/api/rate") as answer:
                return [rate or 0.0 for rate in orjson.loads(answer.read())["tokens_per_second"]]
        return []

    def stream(self) -> Iterator[dict[str, Any]]:
        with self.open("/api/stream") as answer:
            yield from events(answer)


def events(lines: io.BufferedIOBase | Any) -> Iterator[dict[str, Any]]:
    """The server writes the data of an event in one line."""
    for line in lines:
        if line.startswith(_DATA):
            yield orjson.loads(line[len(_DATA) :])


def _explain(error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return "it asks for a token; set TOKENOMETER_TOP_TOKEN, or give --token-file"
    try:
        return str(orjson.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}; is this a dashboard of Tokenometer?"


class _Feed:
    """The newest totals. Read by the screen, written by a thread."""

    def __init__(self, totals: dict[str, Any], rates: list[float]) -> None:
        self.totals, self.rates = totals, rates
        self.trouble = ""
        self._came = time.monotonic()

    def follow(self, server: _Server) -> None:
        """For ever."""
        while True:
            try:
                for totals in server.stream():
                    self.take(totals, server.rates())
                self.trouble = "the server ended the stream, retrying"
            except urllib.error.HTTPError as error:
                with error:
                    self.trouble = printable_reason(_explain(error))
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.trouble = f"{printable_reason(str(getattr(error, 'reason', error)))}, retrying"
            time.sleep(RETRY_SECONDS)

    def take(self, totals: dict[str, Any], rates: list[float]) -> None:
        """Takes new totals. rates: tokens per second, second by second, by the times of the commits; empty: they could
        not be asked for."""
        self.totals, self.rates = totals, rates or self.rates
        self.trouble, self._came = "", time.monotonic()

    def link(self, url: str) -> top.Link:
        silent = time.monotonic() - self._came
        lost = silent > _SILENCE_SECONDS or (self.trouble and silent > RETRY_SECONDS)
        return top.Link(url, round(silent * 1000) if lost else 0, self.trouble, tuple(self.rates))


def printable_reason(reason: str) -> str:
    return show.printable(reason.partition("] ")[2] or reason)


# --- The screen ---


def _watch(server: _Server, feed: _Feed) -> None:
    threading.Thread(target=feed.follow, args=(server,), name="top", daemon=True).start()
    console = stdout_console()
    with (
        _keys() as pressed,
        Live(console=console, screen=True, auto_refresh=False) as live,
        # A flag, because an interrupt that is raised in a callback of the interpreter is dropped.
        ctrl_c() as interrupted,
    ):
        wanted = AS_IT_COMES
        while not (wanted.done or interrupted()):
            size, keys = console.size, sys.stdin.isatty()
            screen = top.view(feed.totals, feed.link(server.url), size.width, size.height, wanted, keys)
            live.update(screen, refresh=True)
            wanted = wanted.press(pressed())


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """Gives a function that waits for the time of a frame and returns the keys that were pressed."""
    if not sys.stdin.isatty():

        def none() -> str:
            time.sleep(_REDRAW_SECONDS)
            return ""

        yield none
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    tty.setcbreak(number)

    def pressed() -> str:
        ready, _, _ = select([number], [], [], _REDRAW_SECONDS)
        return os.read(number, _KEYS_BYTES).decode(errors="ignore") if ready else ""

    try:
        yield pressed
    finally:
        termios.tcsetattr(number, termios.TCSADRAIN, before)
