"""Which threads go first where a process has more threads to run than cores."""

import contextlib
import os
import sys
import threading

_NICE = 10  # a tenth of the weight of other threads: it runs after them, and never starves


def yield_to_others() -> None:
    """This thread, and those that it begins from now on, leave the cores to the rest of the process. Linux only, where
    each thread has a priority of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
