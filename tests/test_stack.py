"""Processes side by side: whatever way their keeper ends, they end; one that ends by itself is named."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from tests.test_dashboard import wait_until
from tokenometer.processor.demo import stack
from tokenometer.processor.demo.stack import Member, Stack, StackFailed

WAITS = (
    "import pathlib, signal, sys, time\n"
    "def end(*_):\n"
    "    with open(sys.argv[1], 'a') as file: print(sys.argv[2], file=file)\n"
    "    sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, end); print('it waits', flush=True); time.sleep(600)"
)


@pytest.fixture(autouse=True)
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members run a program of the test's own."""
    monkeypatch.setattr(stack, "_COMMAND", (sys.executable, "-c"))


def waiting(folder: pathlib.Path, name: str) -> Member:
    return Member(name, [WAITS, str(folder / "ends"), name], None, folder / f"{name}.log")


def never() -> bool:
    return False


def waits(member: Member) -> bool:
    return "it waits" in member.log.read_text()


def test_members_end_with_their_keeper(tmp_path: pathlib.Path) -> None:
    with Stack() as kept:
        first, last = waiting(tmp_path, "first"), waiting(tmp_path, "last")
        kept.start([first, last], never)
        wait_until(lambda: waits(first) and waits(last), 60)
        kept.watch(lambda: True)
    assert (first.process.returncode, last.process.returncode) == (0, 0)
    assert sorted((tmp_path / "ends").read_text().split()) == ["first", "last"]


@pytest.mark.parametrize(("number", "how"), [(0, "ended by itself with status 7"), (9, "was ended by signal 9")])
def test_a_member_that_ends_is_named_with_its_last_words(tmp_path: pathlib.Path, number: int, how: str) -> None:
    program = f"import os, sys; print('no room', flush=True); os.kill(os.getpid(), {number}); sys.exit(7)"
    other, ending = waiting(tmp_path, "other"), Member("the-meter", [program], None, tmp_path / "the-meter.log")
    with pytest.raises(StackFailed, match=f"(?s)the-meter {how}; .*the-meter.log ends with:\nno room"), Stack() as kept:
        kept.start([other, ending], never)
        kept.watch(never)
    assert other.process.returncode is not None


def test_one_that_never_becomes_healthy_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "START_SECONDS", 0.5)
    member = waiting(tmp_path, "deaf")
    member.health = "http://127.0.0.1:1/healthz"
    with pytest.raises(StackFailed, match="deaf was not healthy within 0 s"), Stack() as kept:
        kept.start([member], never)


def test_a_keeper_that_is_killed_takes_its_members_with_it(tmp_path: pathlib.Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from tokenometer.processor.demo import stack\n"
        "stack._COMMAND = (sys.executable, '-c')\n"
        "member = stack.Member('one', [sys.argv[1], sys.argv[2], 'one'], None, pathlib.Path(sys.argv[3]))\n"
        "stack.Stack().start([member], lambda: False); print(member.process.pid, flush=True); sys.stdin.read()"
    )
    log = tmp_path / "one.log"
    keeper = subprocess.Popen(
        [sys.executable, "-c", program, WAITS, str(tmp_path / "ends"), str(log)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert keeper.stdout is not None and keeper.stdin is not None
    pid = int(keeper.stdout.readline())
    try:
        wait_until(lambda: "it waits" in log.read_text(), 60)
        keeper.send_signal(signal.SIGKILL)
        wait_until(lambda: (tmp_path / "ends").exists(), 60)
    finally:
        keeper.kill()
        keeper.communicate()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
