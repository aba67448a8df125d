"""Pages are taken ahead: all of them, without a change to what is in them, and only as long as somebody wants them."""

import ctypes
import mmap
import sys
import time

import numpy as np
import pytest

from tokenometer.kernels import build, pages

SIZE = (1 << 24) + 5 * mmap.PAGESIZE + 1  # of several steps, and a bit
TAKEN_SECONDS_MAX = 30  # of which a virtual machine needs a tenth of one
libc = ctypes.CDLL(None)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks Linux which pages it has")


@pytest.fixture(scope="module")
def touch():
    return build.load_host().touch_pages


def resident(memory: np.ndarray) -> np.ndarray:
    """Of each page of a mapping."""
    found = np.zeros(-(-len(memory) // mmap.PAGESIZE), np.uint8)
    at = ctypes.c_void_p(memory.ctypes.data), ctypes.c_size_t(len(memory)), ctypes.c_void_p(found.ctypes.data)
    assert libc.mincore(*at) == 0
    return found & 1 == 1


def wait_until(condition) -> bool:
    deadline = time.monotonic() + TAKEN_SECONDS_MAX
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_fresh_memory_is_zero_and_takes_no_page_before_it_is_touched():
    memory = pages.fresh(SIZE)
    assert not resident(memory).any()
    assert not memory.any()


@pytest.mark.parametrize("begin", [0, 1, mmap.PAGESIZE - 1, 128])
def test_every_page_is_taken_ahead_and_keeps_what_is_in_it(touch, begin):
    whole = pages.fresh(SIZE)
    memory = whole[begin:]
    memory[::99_991] = 7
    pages.take_ahead(memory, touch)
    memory[1::99_991] = 8  # while they are taken
    assert wait_until(lambda: resident(whole).all())
    assert (memory[::99_991] == 7).all() and (memory[1::99_991] == 8).all()
    assert int(memory.sum()) == 7 * len(memory[::99_991]) + 8 * len(memory[1::99_991])


def test_memory_that_nobody_holds_is_not_taken(touch):
    gone, last = [pages.fresh(SIZE) for _ in range(50)], pages.fresh(SIZE)
    for memory in (*gone, last):
        pages.take_ahead(memory, touch)
    del memory
    gone.clear()
    assert wait_until(lambda: resident(last).all()), "the thread goes on"
