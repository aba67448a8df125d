"""Large tables' memory, and taking it from the system before it is needed.

A page is cleared when it is first touched, and on a virtual machine its host often has to find it first. 0.3 GB/s were
measured there, and 6.5 for pages that the machine has had before. A table that is filled at random touches all of its
pages with its first thousands of entries. So foreseen memory is taken ahead, in a thread that yields to all others.

Pages are taken by touching them, not by madvise(MADV_POPULATE_WRITE). That call holds a lock of the whole process's
memory, and numpy, which asks for huge pages for each array of 4 MiB, waited for it most of the time.
"""

import functools
import mmap
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from tokenometer.kernels.scheduling import yield_to_others

Touch = Callable[[int, int], None]  # address and size; lets other threads of Python run
_STEP_BYTES = 1 << 22  # between two looks whether anybody still wants the memory
_Memory = np.ndarray[Any, Any]
_Wanted = queue.SimpleQueue[tuple[weakref.ref[_Memory], Touch]]


def fresh(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Zeroed memory. It is not from the heap, which may have old pages at hand and would clear gigabytes at once."""
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones would be small
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8)


def take_ahead(memory: _Memory, touch: Touch) -> None:
    """Begin to take the pages of `fresh` memory, while others may use it already; over when nobody holds it any more.
    `touch` changes nothing in it."""
    _wanted().put((weakref.ref(memory), touch))


@functools.cache
def _wanted() -> _Wanted:
    """One thread for all tables: they are wanted in this order."""
    wanted: _Wanted = queue.SimpleQueue()
    threading.Thread(target=_take, args=(wanted,), daemon=True, name="pages").start()
    return wanted


def _take(wanted: _Wanted) -> None:
    yield_to_others()
    while True:
        memory, touch = wanted.get()
        begin = 0
        while _take_step(memory(), begin, touch):
            begin += _STEP_BYTES


def _take_step(memory: _Memory | None, begin: int, touch: Touch) -> bool:
    """Takes one step. Returns False where there is nothing to take, or nobody who wants it."""
    if memory is None or begin >= memory.nbytes:
        return False
    touch(memory.ctypes.data + begin, min(_STEP_BYTES, memory.nbytes - begin))
    return True
