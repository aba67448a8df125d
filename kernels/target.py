"""The two machines that the engine runs on: memory, copies and launches. Nothing here knows what is being counted."""

import ctypes
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from tokenometer.kernels import build, pages
from tokenometer.kernels.scheduling import yield_to_others
from tokenometer.schemas.errors import TokenometerError

Array = Any  # numpy.ndarray on the host, cupy.ndarray on a GPU


class DeviceError(TokenometerError, RuntimeError):
    """The wanted device cannot be used. The message says why and what to do."""


class Target(Protocol):
    """Device memory and kernels. Launches and `send` are ordered as called; `fetch` waits for what it reads.

    `wait(mark())` waits for all that was launched before the mark.
    """

    @property
    def name(self) -> str: ...
    @property
    def xp(self) -> Any: ...  # the array module: numpy or cupy
    @property
    def shares_memory(self) -> bool: ...  # device memory is host memory
    @property
    def order(self) -> AbstractContextManager[Any]: ...  # what is inside keeps the order of launches
    @property
    def ahead(self) -> AbstractContextManager[Any]: ...  # what is inside goes with the batches, ahead of the launches

    def zeros(self, count: int, dtype: Any) -> Array: ...
    def take_ahead(self, array: Array) -> None: ...  # of `zeros`: its memory will be needed, all of it and soon
    def pinned(self, size: int) -> np.ndarray[Any, Any]: ...
    def mirror(self, pinned: np.ndarray[Any, Any]) -> Array: ...
    def send(self, array: np.ndarray[Any, Any]) -> Array: ...
    def send_ahead(self, array: np.ndarray[Any, Any], to: Array) -> None: ...
    def send_behind(self, array: np.ndarray[Any, Any], to: Array) -> None: ...
    def fetch(self, array: Array) -> np.ndarray[Any, Any]: ...
    def fetch_ahead(self, array: Array) -> np.ndarray[Any, Any]: ...
    def address(self, array: Array) -> int: ...
    def split(self, data: Array, begin: int, length: int, line_start: Array) -> "Lines": ...
    def launch(self, name: str, job: np.ndarray[Any, Any], first: int, count: int) -> None: ...
    def run(self, name: str, what: np.ndarray[Any, Any], count: int) -> None: ...  # over a MOVE or a WALK, in an order
    @property
    def in_order(self) -> bool: ...  # the records of a launch come one after the other
    @property
    def reads_ahead(self) -> bool: ...  # whether another core may read lines while this one counts
    def count_beside(
        self, job: np.ndarray[Any, Any], first: int, count: int, next_job: np.ndarray[Any, Any], lines: int
    ) -> None: ...  # `in_order` of the one, and `parse` of the other's first lines
    def mark(self) -> Any: ...
    def wait(self, mark: Any) -> None: ...
    def memory(self) -> tuple[int, int]: ...


class Lines(Protocol):
    """A split on its way: `count` waits for it."""

    def count(self) -> int: ...


def _words(dtype: Any) -> tuple[np.dtype[Any], int]:
    """A table's element as an array of words: CuPy has no structured dtypes, so neither target uses them."""
    dtype = np.dtype(dtype)
    return (dtype, 1) if dtype.fields is None else (np.dtype(np.uint64), dtype.itemsize // 8)


_OWN_PAGES_BYTES = 1 << 22  # two huge pages
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class HostTarget:
    """The CPU. With threads > 1 the tables are shared by threads and updated with locked instructions, as on a GPU.

    That is how races are tested. It is slower than one thread on two cores, so no command offers it.
    """

    xp: Any = np
    shares_memory = True
    order: AbstractContextManager[Any] = nullcontext()
    ahead = order

    def __init__(self, threads: int = 1, extra_flags: tuple[str, ...] = ()) -> None:
        self.name = "cpu" if threads == 1 else f"cpu x {threads}"
        self._library = build.load_host(threads > 1, extra_flags)
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._job, self._job_address = np.zeros(0, np.uint8), 0
        self._ahead, self._ahead_of = 0, 0  # kernels/ahead.h, and the process whose thread it has

    def zeros(self, count: int, dtype: Any) -> Array:
        """Zeroed memory, aligned to pairs of cache lines; pages are taken as they are touched."""
        word, words = _words(dtype)
        size = count * words * word.itemsize
        block = np.zeros(size + 128, np.uint8) if size < _OWN_PAGES_BYTES else pages.fresh(size + 128)
        start = -block.ctypes.data % 128
        array = block[start : start + size].view(word)
        return array if words == 1 else array.reshape(count, words)

    def take_ahead(self, array: Array) -> None:
        if array.nbytes >= _OWN_PAGES_BYTES:
            pages.take_ahead(array, self._library.touch_pages)

    def pinned(self, size: int) -> np.ndarray[Any, Any]:
        array: np.ndarray[Any, Any] = self.zeros(size, np.uint8)
        return array

    def mirror(self, pinned: np.ndarray[Any, Any]) -> Array:
        return pinned

    def send(self, array: np.ndarray[Any, Any]) -> Array:
        return array

    def send_ahead(self, array: np.ndarray[Any, Any], to: Array) -> None:
        assert np.shares_memory(array, to), "the host reads the batch where it lies"

    def send_behind(self, array: np.ndarray[Any, Any], to: Array) -> None:
        to[:] = array  # onto itself, where both are one: cheaper than asking

    def fetch(self, array: Array) -> np.ndarray[Any, Any]:
        result: np.ndarray[Any, Any] = array
        return result

    fetch_ahead = fetch

    def address(self, array: Array) -> int:
        return int(array.ctypes.data)

    def split(self, data: Array, begin: int, length: int, line_start: Array) -> Lines:
        count = self._library.split_lines(self.address(data) + begin, length, begin, self.address(line_start))
        return KnownLines(count)

    def launch(self, name: str, job: np.ndarray[Any, Any], first: int, count: int) -> None:
        if job is not self._job:  # asking for an address costs as much as a small launch
            self._job, self._job_address = job, job.ctypes.data
        entry, where = getattr(self._library, name), self._job_address
        if self._pool is None or count < self._threads:
            entry(where, first, 0, count)
            return
        cuts = [count * k // self._threads for k in range(self._threads + 1)]
        for done in [self._pool.submit(entry, where, first, *cut) for cut in zip(cuts, cuts[1:], strict=False)]:
            done.result()

    def run(self, name: str, what: np.ndarray[Any, Any], count: int) -> None:
        getattr(self._library, name)(what.ctypes.data, count)

    @property
    def in_order(self) -> bool:
        return self._pool is None

    @property
    def reads_ahead(self) -> bool:
        return self._pool is None and _CORES > 1

    def count_beside(
        self, job: np.ndarray[Any, Any], first: int, count: int, next_job: np.ndarray[Any, Any], lines: int
    ) -> None:
        if self._ahead_of != os.getpid():  # the first time; or a copy of a process, which has no threads
            self._ahead, self._ahead_of = self._open_ahead(), os.getpid()
            weakref.finalize(self, _close_ahead, self._library, self._ahead, self._ahead_of)
        self._library.count_beside(job.ctypes.data, first, count, self._ahead, next_job.ctypes.data, lines)

    def _open_ahead(self) -> int:
        """Its thread has the priority of the one that opens it."""
        try:
            with ThreadPoolExecutor(1, initializer=yield_to_others) as opener:
                ahead: int | None = opener.submit(self._library.open_ahead).result()
        except RuntimeError:  # Python starts none either
            ahead = None
        if ahead is None:
            raise DeviceError(
                "device cpu: the system starts no further thread; raise the limit of processes (ulimit -u, or the "
                "container's pids limit)"
            )
        return ahead

    def mark(self) -> None:
        """Launches return when they are done."""

    def wait(self, mark: None) -> None:
        """Nothing to wait for."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        return facts["MemAvailable"], facts["MemTotal"]


def _close_ahead(library: ctypes.CDLL, ahead: int, process: int) -> None:
    if process == os.getpid():
        library.close_ahead(ahead)


class KnownLines:
    def __init__(self, value: int) -> None:
        self._value = value

    def count(self) -> int:
        return self._value


class CudaTarget:
    """One GPU through CuPy. Batches travel and are split on one stream while the last is counted on another."""

    shares_memory = False
    reads_ahead = False  # batches are read by as many threads as the card has
    _BLOCK = 256

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise DeviceError(
                "device cuda needs CuPy: pip install 'tokenometer[gpu-cuda13]' (or gpu-cuda12 for a CUDA 12 driver)"
            ) from error
        try:
            cupy.cuda.runtime.getDeviceCount()
            properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise DeviceError(f"device cuda: no usable GPU ({error}); use --device cpu") from error
        self.xp = cupy
        self.name = properties["name"].decode()
        self._grid_max = properties["multiProcessorCount"] * 8
        self._module = build.load_device()
        self._compute = cupy.cuda.Stream(non_blocking=True)
        self._travel = cupy.cuda.Stream(non_blocking=True)
        self.order, self.ahead = self._compute, self._travel
        self._job: Array = None  # the Job in device memory

    def zeros(self, count: int, dtype: Any) -> Array:
        word, words = _words(dtype)
        with self._compute:
            return self.xp.zeros(count if words == 1 else (count, words), word)

    def take_ahead(self, array: Array) -> None:
        """Nothing to do: the memory is there since it was allocated."""

    def pinned(self, size: int) -> np.ndarray[Any, Any]:
        memory = self.xp.cuda.alloc_pinned_memory(size)
        array: np.ndarray[Any, Any] = np.frombuffer(memory, np.uint8, size)
        return array

    def mirror(self, pinned: np.ndarray[Any, Any]) -> Array:
        return self.xp.zeros(len(pinned), np.uint8)

    def send(self, array: np.ndarray[Any, Any]) -> Array:
        with self._compute:
            return self.xp.asarray(np.ascontiguousarray(array).reshape(-1).view(np.uint8))

    def send_ahead(self, array: np.ndarray[Any, Any], to: Array) -> None:
        """Copies from pinned memory, while an earlier batch is counted."""
        to.set(array, stream=self._travel)

    def send_behind(self, array: np.ndarray[Any, Any], to: Array) -> None:
        """Copies in the order of launches."""
        to.set(array, stream=self._compute)

    def fetch(self, array: Array) -> np.ndarray[Any, Any]:
        result: np.ndarray[Any, Any] = array.get(stream=self._compute)
        return result

    def fetch_ahead(self, array: Array) -> np.ndarray[Any, Any]:
        result: np.ndarray[Any, Any] = array.get(stream=self._travel)
        return result

    def address(self, array: Array) -> int:
        return int(array.data.ptr)

    def split(self, data: Array, begin: int, length: int, line_start: Array) -> Lines:
        if not length:
            return KnownLines(0)
        blocks = -(-length // 64)
        numbers = np.uint32(length), np.uint32(begin)
        with self._travel:
            counts = self.xp.empty(blocks, np.uint32)
            at = data[begin:]
            self._run("count_lines", blocks, (at, numbers[0], counts))
            before = self.xp.cumsum(counts, dtype=np.uint32)
            self._run("place_lines", blocks, (at, *numbers, before, line_start))
            return _Split(self, before[-1:], self._travel.record(), counts)

    def launch(self, name: str, job: np.ndarray[Any, Any], first: int, count: int) -> None:
        with self._compute:
            if self._job is None:
                self._job = self.xp.zeros(job.nbytes, np.uint8)
            # From pageable memory: the runtime has taken its copy when this returns, so the Job may change at once.
            self._job.set(job.reshape(1).view(np.uint8), stream=self._compute)
            self._run(name, count, (self._job, np.uint32(first), np.uint32(count)))

    def run(self, name: str, what: np.ndarray[Any, Any], count: int) -> None:
        sent = self.xp.asarray(what.reshape(1).view(np.uint8))
        self._run(name, count, (sent, np.uint32(count)))

    @property
    def in_order(self) -> bool:
        return False

    def count_beside(
        self, job: np.ndarray[Any, Any], first: int, count: int, next_job: np.ndarray[Any, Any], lines: int
    ) -> None:
        raise AssertionError("it does not read ahead")

    def mark(self) -> Any:
        return self._compute.record()

    def wait(self, mark: Any) -> None:
        mark.synchronize()

    def memory(self) -> tuple[int, int]:
        free, total = self.xp.cuda.runtime.memGetInfo()
        return free + self.xp.get_default_memory_pool().free_bytes(), total

    def wait_for(self, event: Any) -> None:
        self._compute.wait_event(event)

    def _run(self, name: str, count: int, arguments: tuple[Any, ...]) -> None:
        if count:
            grid = min(-(-count // self._BLOCK), self._grid_max)
            self._module.get_function(name)((grid,), (self._BLOCK,), arguments)


class _Split:
    """A split in flight; keeps its scratch memory until it is done."""

    def __init__(self, target: CudaTarget, lines: Array, event: Any, scratch: Array) -> None:
        self._target, self._lines, self._event, self._scratch = target, lines, event, scratch

    def count(self) -> int:
        self._event.synchronize()
        self._target.wait_for(self._event)
        return int(self._lines.get()[0])


def open_target(device: str) -> Target:
    """`cpu`, `cuda`, or `auto`: a GPU if there is one that CuPy can use."""
    if device == "cpu":
        return HostTarget()
    if device == "cuda":
        return CudaTarget()
    assert device == "auto", device
    if not _has_driver():
        return HostTarget()
    try:
        return CudaTarget()
    except DeviceError:
        return HostTarget()


def _has_driver() -> bool:
    """Whether CUDA's runtime would find NVIDIA's driver, which it loads by this name. To import CuPy only to be told
    that there is none takes a quarter of a short command's time."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
