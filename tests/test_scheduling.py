"""A thread that yields, and those that it begins, have a lower priority; nobody else has."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tokenometer.kernels.scheduling import yield_to_others

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only there threads have priorities of their own")


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def in_a_thread(action) -> int:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(action).result()


def test_a_thread_that_yields_begins_threads_that_yield():
    before = priority()
    with ThreadPoolExecutor(1, initializer=yield_to_others) as thread:
        assert thread.submit(priority).result() > before
        assert thread.submit(in_a_thread, priority).result() > before
    assert priority() == before == in_a_thread(priority)
