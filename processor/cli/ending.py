"""A process that is told to end ends within 30 s, whatever its clients wait for.

Some calls of a Kafka client wait for up to a minute, and Python runs a signal handler only in the main thread, after
the call that this thread is in. So another thread hears of the signal. When the time is over it ends the process as
kill -9 would. This is safe at any moment: what was not committed is read again by the next process.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

log = logging.getLogger("tokenometer")
END_SECONDS = 25.0  # below the 30 s after which Kubernetes and others kill; an end usually takes two seconds
EXIT_LATE = 1


@contextlib.contextmanager
def ends_in_time(seconds: float = END_SECONDS) -> Iterator[None]:
    """Inside, SIGTERM or SIGINT begins the countdown. Only the main thread may use it, as with every signal handler."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(read, over, seconds), name="ending", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(write)
        watch.join()
        os.close(read)


def _watch(read: int, over: threading.Event, seconds: float) -> None:
    while number := os.read(read, 1):
        if number[0] in (signal.SIGTERM, signal.SIGINT):
            break
    else:
        return
    if not over.wait(seconds):
        log.error(
            "told to end %.0f s ago, and still waiting for Kafka: ending without a last commit; nothing is lost, what "
            "was not committed is read again", seconds,
        )  # fmt: skip
        os._exit(EXIT_LATE)
