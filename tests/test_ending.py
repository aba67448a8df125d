"""A process that is told to end does, whatever it waits for."""

import signal
import subprocess
import sys

import pytest

from tokenometer.processor.cli import ending

PROGRAM = """
import ctypes, logging, signal, threading
from tokenometer.processor.cli.ending import ends_in_time
logging.basicConfig()
told = threading.Event()
signal.signal(signal.SIGTERM, lambda number, frame: told.set())
with ends_in_time(0.3):
    print("ready", flush=True)
    WAIT
print("ended by itself", flush=True)
"""
# In Python, where handlers run and the wait goes on, and in C, where they do not run.
WAITS = {
    "python": "threading.Event().wait()",
    "c": "libc = ctypes.CDLL(None)\n    while True: libc.poll(None, 0, 60_000)",
    "not for long": "told.wait()",
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_signal_ends_the_process_when_the_time_is_over(wait: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("WAIT", WAITS[wait])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=30)
    if wait == "not for long":
        assert (process.returncode, out) == (0, "ended by itself\n"), errors
    else:
        assert process.returncode == ending.EXIT_LATE and "nothing is lost" in errors


def test_the_time_is_below_what_supervisors_give() -> None:
    assert ending.END_SECONDS < 30


def test_other_signals_and_an_end_without_one_count_nothing_down() -> None:
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with ending.ends_in_time(0.0):
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
