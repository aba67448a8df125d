"""Commands of ours as processes side by side, looked after as one.

Owns: the processes, and a file with what each has written.
Promises: whatever way this process ends, those that it started are told to end. One that ends by itself is named, with
its status and its last words. Nothing is started again.
"""

import contextlib
import pathlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

from tokenometer.schemas.errors import TokenometerError

START_SECONDS = 180.0  # until a face answers that it is healthy; a first start compiles the engine
END_SECONDS = 40.0  # a process ends within 30 s of SIGTERM (cli/ending.py)
_LOOK_SECONDS = 0.2
_ANSWER_SECONDS = 5.0
_LAST_LINES = 15
_COMMAND = (sys.executable, "-m", "tokenometer.processor.cli")
# It reads from a pipe that the kernel closes when we end, however we end. A line says that the process has ended.
_WATCHER = ("sh", "-c", 'read -r line || kill "$0"')


class StackFailed(TokenometerError):
    """A process ended by itself, or did not become healthy; the message has its last words."""


@dataclass
class Member:
    """One process. health: the address that answers 200 once it works; None: there is none."""

    name: str
    arguments: Sequence[str]
    health: str | None
    log: pathlib.Path
    process: "subprocess.Popen[bytes]" = field(init=False)

    def start(self) -> None:
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*_COMMAND, *self.arguments], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,  # Ctrl-C goes to us alone, so that they end in order
            )  # fmt: skip
        self._watcher = subprocess.Popen(
            [*_WATCHER, str(self.process.pid)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def healthy(self) -> bool:
        if self.health is None:
            return True
        try:
            with urllib.request.urlopen(self.health, timeout=_ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)
        except (OSError, ValueError):  # it does not answer yet, or answers 503
            return False

    def check(self) -> None:
        """Raises StackFailed if it has ended and was not told to."""
        if (status := self.process.poll()) is not None:
            how = f"ended by itself with status {status}" if status >= 0 else f"was ended by signal {-status}"
            raise StackFailed(self._said(how))

    def silent(self) -> StackFailed:
        return StackFailed(self._said(f"was not healthy within {START_SECONDS:.0f} s"))

    def _said(self, what: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([f"{self.name} {what}; {self.log} ends with:", *lines])

    def tell(self) -> None:
        """That it shall end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Waits until it has ended."""
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._watcher.communicate(b"\n")


class Stack:
    """Members in the order in which they start. They are told to end in the opposite one."""

    def __init__(self) -> None:
        self._members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for member in reversed(self._members):
            member.tell()
        for member in reversed(self._members):
            member.end()

    def start(self, members: Sequence[Member], stopped: Callable[[], bool]) -> None:
        """Returns when all are healthy, or `stopped` says so. Raises StackFailed."""
        for member in members:
            member.start()
            self._members.append(member)
        deadline = time.monotonic() + START_SECONDS
        for member in members:
            while not (stopped() or member.healthy()):
                self._check()
                if time.monotonic() > deadline:
                    raise member.silent()
                time.sleep(_LOOK_SECONDS)

    def watch(self, stopped: Callable[[], bool]) -> None:
        """Returns when `stopped` says so. Raises StackFailed where one ends before."""
        while not stopped():
            self._check()
            time.sleep(_LOOK_SECONDS)

    def _check(self) -> None:
        for member in self._members:
            member.check()
