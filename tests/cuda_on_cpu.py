"""The CUDA build as a target of the engine, on a CPU: device.cu over tests/native/cuda_on_cpu.h.

What a card and its driver do is modelled as far as results depend on it: device memory is apart from that of the host,
batches are split by the device's kernels, and threads run in an order that nobody promises: one that a seed decides.
"""

import ctypes
import functools
import pathlib
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from tokenometer.kernels import build
from tokenometer.kernels.target import Array, HostTarget, KnownLines, Lines

SOURCE = pathlib.Path(__file__).parent / "native/cuda_on_cpu.cpp"
# No frame is checked by longjmp, identical calls of __activemask stay apart, and CUDA's own pragmas are no errors.
FLAGS = ("-O1", "-U_FORTIFY_SOURCE", "-fno-crossjumping", "-Wno-unknown-pragmas", "-Wno-unused-parameter")
BLOCK = 64
GRID_MAX = 3  # blocks; a thread has several records soon, also of a small tile


@functools.cache
def library(extra: tuple[str, ...] = ()) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build.build_shared(SOURCE, (*FLAGS, *extra))))
    loaded.emulate.argtypes = [ctypes.c_void_p, *[ctypes.c_uint32] * 3, ctypes.c_void_p]
    loaded.seed.argtypes = [ctypes.c_uint64]
    loaded.emulate.restype = loaded.seed.restype = loaded.exercised.restype = None
    return loaded


class CudaOnCpuTarget:
    shares_memory = False
    in_order = reads_ahead = False
    xp: Any = np
    order = ahead = nullcontext()

    def __init__(self, seed: int = 1, extra: tuple[str, ...] = ()) -> None:
        self.name = "cuda on cpu"
        self._host = HostTarget()
        self._library = library(extra)
        self._library.seed(seed)

    def exercised(self) -> tuple[int, int, int]:
        """So far in this process: switches at an atomic operation, masks of several lanes, lanes left out of one."""
        counts = np.zeros(3, np.uint64)
        self._library.exercised(ctypes.c_void_p(counts.ctypes.data))
        return int(counts[0]), int(counts[1]), int(counts[2])

    # --- Memory ---

    def zeros(self, count: int, dtype: Any) -> Array:
        return self._host.zeros(count, dtype)

    def take_ahead(self, array: Array) -> None:
        """It is there since it was allocated."""

    def pinned(self, size: int) -> np.ndarray[Any, Any]:
        return self._host.pinned(size)

    def mirror(self, pinned: np.ndarray[Any, Any]) -> Array:
        return self.zeros(len(pinned), np.uint8)

    def send(self, array: np.ndarray[Any, Any]) -> Array:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        sent = self.zeros(len(flat), np.uint8)
        sent[:] = flat
        return sent

    def send_ahead(self, array: np.ndarray[Any, Any], to: Array) -> None:
        assert not np.shares_memory(array, to)
        to[:] = array

    send_behind = send_ahead

    def fetch(self, array: Array) -> np.ndarray[Any, Any]:
        return np.array(array)

    fetch_ahead = fetch

    def address(self, array: Array) -> int:
        return int(array.ctypes.data)

    def memory(self) -> tuple[int, int]:
        return self._host.memory()

    # --- Kernels ---

    def split(self, data: Array, begin: int, length: int, line_start: Array) -> Lines:
        if not length:
            return KnownLines(0)
        blocks = -(-length // 64)
        counts, at = np.zeros(blocks, np.uint32), self.address(data) + begin
        self._run("count_lines", blocks, (at, length, self.address(counts)))
        before = np.cumsum(counts, dtype=np.uint32)
        self._run("place_lines", blocks, (at, length, begin, self.address(before), self.address(line_start)))
        return KnownLines(int(before[-1]))

    def launch(self, name: str, job: np.ndarray[Any, Any], first: int, count: int) -> None:
        self._run(name, count, (self.address(self.send(job)), first, count))

    def run(self, name: str, what: np.ndarray[Any, Any], count: int) -> None:
        self._run(name, count, (self.address(self.send(what)), count))

    def mark(self) -> None:
        """Launches return when they are done."""

    def wait(self, mark: None) -> None:
        """Nothing to wait for."""

    def _run(self, name: str, count: int, arguments: Sequence[int]) -> None:
        if count:
            grid = min(-(-count // BLOCK), GRID_MAX)
            passed = np.array([*arguments, 0, 0, 0][:5], np.uint64)
            kernel = ctypes.cast(getattr(self._library, name), ctypes.c_void_p)
            self._library.emulate(kernel, grid, BLOCK, min(count, grid * BLOCK), self.address(passed))
