"""Where the audit's work is done: another thread, other processes, and what Python does with memory there."""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, TypeVar

_READ_AHEAD = 2  # chunks

Task = TypeVar("Task")
Result = TypeVar("Result")


class Pool:
    """Other threads for what is read, and other processes for what is left to the judge. Nothing of it is started
    before there is work for it; without it, work is done here."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._executor: Executor | None = None

    def submit(self, work: Callable[[Task], Result], task: Task) -> "Future[Result] | None":
        if not self._processes:
            return None
        if self._executor is None:
            # Spawned and not forked, because a fork would lose the threads of a broker's client.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._processes, context, initializer=_begin_process)
        return self._executor.submit(work, task)

    def map(self, work: Callable[[Task], Result], chunks: Iterable[Task], are_many: bool) -> Iterator[Result]:
        """In order; in other processes where there are many."""
        if not (self._processes and are_many):
            yield from map(work, chunks)
            return
        waiting: deque[Any] = deque()
        for chunk in chunks:  # read ahead only so far that no process waits
            waiting.append(self.submit(work, chunk))
            if len(waiting) > 2 * self._processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def beside(self, work: Callable[[Task], Result], chunks: Iterable[Task]) -> Generator[Result, None, None]:
        """In order, in one other thread."""
        if not self._processes:
            yield from map(work, chunks)
            return
        with ThreadPoolExecutor(1, "verify") as thread:
            waiting: deque[Any] = deque()
            try:
                for chunk in chunks:
                    waiting.append(thread.submit(work, chunk))
                    if len(waiting) > _READ_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                thread.shutdown(cancel_futures=True)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its processes
    _keep_freed_memory()
    gc.disable()  # a chunk is many small values without any cycle


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Messages are many small values without any cycle. The collector would look at all of them, again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _keep_freed_memory() -> None:
    """Columns of some 100 KiB come and go. glibc would give each back to the system, which clears it before it comes
    again; with these limits it keeps them. Nothing happens where the C library is another one."""
    mmap_threshold, trim_threshold = -3, -1  # of malloc.h
    with contextlib.suppress(AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(mmap_threshold, 64 << 20)
        library.mallopt(trim_threshold, 256 << 20)
