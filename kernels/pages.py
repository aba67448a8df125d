"""Large tables' memory, and taking it from the system before it is needed.

A page is cleared when it is first touched, on a virtual machine often found by its host first: 0.3 GB/s were measured
there, and 6.5 for pages that the machine has had before. A table that is filled at random touches all of its pages with
its first thousands of entries. So what can be foreseen is taken ahead, in a thread that yields to all others.
"""

import ctypes
import functools
import mmap
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from kernels.scheduling import yield_to_others

_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE of Linux 5.14: pages as after a write, and what is in them stays
_STEP_BYTES = 1 << 22  # at a time: whoever maps memory meanwhile waits for one step
_Memory = np.ndarray[Any, Any]


def fresh(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Zeroed. Not from the heap: that may have old pages at hand, and would clear gigabytes of them at once."""
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones would be small
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def take_ahead(memory: _Memory) -> None:
    """Begin to take the pages of `fresh` memory, while others may use it already; over when nobody holds it any more.

    Where the system cannot, they are taken as they are touched.
    """
    if sys.platform == "linux":
        _wanted().put(weakref.ref(memory))


@functools.cache
def _wanted() -> "queue.SimpleQueue[weakref.ref[_Memory]]":
    """One thread for all tables: they are wanted in this order."""
    wanted: queue.SimpleQueue[weakref.ref[_Memory]] = queue.SimpleQueue()
    threading.Thread(target=_take, args=(wanted,), daemon=True, name="pages").start()
    return wanted


def _take(wanted: "queue.SimpleQueue[weakref.ref[_Memory]]") -> None:
    yield_to_others()
    populate = _populate()
    while True:
        known, step = wanted.get(), 0
        while populate(known(), step):
            step += 1


def _populate() -> Callable[[_Memory | None, int], bool]:
    """Takes a step of memory: False where there is none, or none any more."""
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

    def populate(memory: _Memory | None, step: int) -> bool:
        if memory is None:
            return False
        end = memory.ctypes.data + memory.nbytes
        begin = memory.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE + step * _STEP_BYTES
        return begin < end and advise(begin, min(_STEP_BYTES, end - begin), _POPULATE_WRITE) == 0

    return populate
