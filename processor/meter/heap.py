"""Keeps freed memory in the process, so that it is used again without going back to the system.

glibc gives every block of more than 128 KiB back to the system when it is freed, and takes fresh pages for the next,
which the system must clear: for a meter, whose buffers of a megabyte come and go hundreds of times a second, that costs
as much as parsing. With higher thresholds the heap keeps its pages; it grows to the most that was ever in use at once.
"""

import contextlib
import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> None:
    """Holds for this process from now on. Nothing happens where the C library is not glibc."""
    library = ctypes.CDLL(None)
    with contextlib.suppress(AttributeError):
        library.mallopt(_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        library.mallopt(_TOP_PAD, 64 << 20)
