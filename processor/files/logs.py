"""Reading logs: plain and compressed files and standard input become batches of whole lines.

Owns: how bytes get from a log into a batch's memory, and where in the log they were.
Promises: plain bytes are read straight to where they are counted; a batch ends with a newline; every byte of a log is
in exactly one batch, and only a final newline is ever added.

    file ── magic bytes ──> plain:     readinto ─────────────┐
                            gzip, zstd: decompress, readinto ┴─> | tail of the last batch | whole lines | tail |
                                                                                                           └─> next

A file is one message (docs/RECORDS.md), but an engine takes in a message as a whole or not at all. Since the cut of a
file never shows in a total, a batch is handed on as messages of about 1 MiB of whole lines.
"""

import io
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tokenometer.kernels.values import Bytes
from tokenometer.schemas.errors import TokenometerError

STDIN = "-"
MESSAGE_BYTES = 1 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_MAGIC_BYTES = 4


class LogError(TokenometerError):
    """A log cannot be read to its end. The message names it, the place and what was expected."""


@dataclass(frozen=True)
class Chunk:
    """Whole lines of one log, at the beginning of a batch's space."""

    file: str
    offset: int  # of its first byte in the log, after decompression
    length: int
    message_end: np.ndarray[Any, np.dtype[np.uint32]]
    read_bytes: int  # of all logs so far, as they lie on disk
    origins: Any = None  # decoded.Origins, where lines were made of values


def size_of(names: Iterable[str]) -> int | None:
    """How many bytes all logs have; None for a pipe. A missing log is refused here, before the first one is counted."""
    sizes: list[int | None] = []
    for name in names:
        if name == STDIN:
            sizes.append(None)
            continue
        try:
            state = os.stat(name)
        except OSError as error:
            raise LogError(f"{name}: {_lower(error.strerror)}") from None
        if os.path.isdir(name):
            raise LogError(f"{name}: is a directory; expected a file of newline-delimited JSON")
        sizes.append(state.st_size if os.path.isfile(name) else None)
    return None if None in sizes else sum(size for size in sizes if size is not None)


class LogReader:
    """Several logs, one after the other."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = iter(names)
        self._log: _Log | None = None
        self._read_before = 0  # bytes of logs that are done

    def fill(self, space: Bytes) -> Chunk | None:
        """The next whole lines, at most as many as fit; None after the last. A chunk never spans two logs."""
        try:
            while True:
                if self._log is None:
                    name = next(self._names, None)
                    if name is None:
                        return None
                    self._log = _Log(name)
                chunk = self._log.fill(space, self._read_before)
                if chunk is not None:
                    return chunk
                self._read_before += self._log.read_bytes
                self.close()
        except LogError:
            self.close()
            raise

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def read_lines(name: str) -> Iterator[bytes]:
    """The lines of one log, without their newlines. They are for a look at its beginning, not for counting."""
    reader, space = LogReader([name]), np.zeros(1 << 22, np.uint8)
    try:
        while chunk := reader.fill(space):
            yield from space[: chunk.length].tobytes()[:-1].split(b"\n")
    finally:
        reader.close()


class ReadAhead:
    """Fills one batch while another is counted: one thread, at most one batch on its way."""

    def __init__(self, fill: Callable[[Bytes], Chunk | None]) -> None:
        self._fill = fill
        self._wanted: queue.SimpleQueue[Bytes | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._under_way = False
        # A daemon, so that a pipe that never ends cannot keep an interrupted process alive.
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def begin(self, space: Bytes) -> None:
        self._under_way = True
        self._wanted.put(space)

    def wait(self, timeout_seconds: float | None = None) -> Chunk | None:
        """The result of what `begin` began. Raises TimeoutError where it takes longer, and what reading raised."""
        try:
            filled = self._filled.get(timeout=timeout_seconds)
        except queue.Empty:
            raise TimeoutError from None
        self._under_way = False
        if isinstance(filled, BaseException):
            raise filled
        return filled

    def close(self) -> None:
        """Nobody holds what is read after this, so that a caller may close it; but for a read that is under way."""
        self._wanted.put(None)
        if not self._under_way:
            self._thread.join()

    def _run(self) -> None:
        while (space := self._wanted.get()) is not None:
            try:
                self._filled.put(self._fill(space))
            except BaseException as error:  # to be raised where it can be handled
                self._filled.put(error)


# --- One log ---


class _Log:
    def __init__(self, name: str) -> None:
        self.name = "(standard input)" if name == STDIN else name
        self._offset = 0
        self._tail = b""  # the beginning of the next batch: a line that was cut
        try:
            # Unbuffered, and standard input too: a buffer's lock would be held by a thread that waits for a pipe.
            raw = open(0 if name == STDIN else name, "rb", buffering=0, closefd=name != STDIN)
            self._source = _Source(raw)
        except OSError as error:
            raise LogError(f"{self.name}: {_lower(error.strerror)}") from None
        head = self._source.head
        self._compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
        self._stream: Any = self._source
        if self._compression:
            self._stream = pa.CompressedInputStream(pa.PythonFile(self._source, "r"), self._compression)

    @property
    def read_bytes(self) -> int:
        return self._source.read_bytes

    def close(self) -> None:
        self._stream.close()
        self._source.close()

    def fill(self, space: Bytes, read_before: int) -> Chunk | None:
        length, ended = self._read(space)
        if length == 0:
            return None
        if ended and space[length - 1] != 0x0A and length < len(space):
            space[length] = 0x0A
            length += 1
        end = _after_newline(space, 0, length)
        if end == 0:
            raise LogError(
                f"{self.name}: a line of more than {len(space)} bytes at byte {self._offset}: "
                f"is this newline-delimited JSON?"
            )
        self._tail = space[end:length].tobytes()
        offset, self._offset = self._offset, self._offset + end
        return Chunk(self.name, offset, end, message_ends(space, end), read_before + self.read_bytes)

    def _read(self, space: Bytes) -> tuple[int, bool]:
        """Reads as much as there is or fits, after the tail of the last batch. Returns also whether the log ended."""
        length = len(self._tail)
        space[:length] = np.frombuffer(self._tail, np.uint8)
        view = space.data
        try:
            while length < len(space):
                got = self._stream.readinto(view[length:])
                if not got:
                    return length, True
                length += got
        except OSError as error:  # Arrow's errors are OSErrors without a number
            at = self.read_bytes
            if error.errno is not None:
                raise LogError(f"{self.name}: {_lower(error.strerror)} at byte {at}") from None
            what = "ends too early" if "Truncated" in str(error) else "is damaged"
            raise LogError(f"{self.name}: the {self._compression} data {what}, by byte {at}: {error}") from None
        return length, False


class _Source(io.RawIOBase):
    """A file whose first bytes were looked at and are read again; counts what is read."""

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self.head = b""
        while len(self.head) < _MAGIC_BYTES and (more := raw.read(_MAGIC_BYTES - len(self.head))):
            self.head += more
        self._again = self.head
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._again:
            got = min(len(self._again), len(buffer))
            buffer[:got], self._again = self._again[:got], self._again[got:]
        else:
            got = self._raw.readinto(buffer) or 0
        self.read_bytes += got
        return got

    def close(self) -> None:
        self._raw.close()
        super().close()


# --- Cuts ---


def message_ends(space: Bytes, length: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Ends of messages of whole lines, at most MESSAGE_BYTES each; a longer line is a message of its own.

    Only the bytes around each cut are looked at.
    """
    assert length == 0 or space[length - 1] == 0x0A
    ends, start = [], 0
    while length - start > MESSAGE_BYTES:
        end = _after_newline(space, start, start + MESSAGE_BYTES)
        if end == start:  # the first line is longer
            end = start + MESSAGE_BYTES + space[start + MESSAGE_BYTES : length].tobytes().index(b"\n") + 1
        ends.append(end)
        start = end
    return np.array([*ends, length] if start < length else ends, np.uint32)


def _after_newline(space: Bytes, start: int, end: int) -> int:
    """The position after the last newline of `space[start:end]`; `start` where there is none."""
    width = 1 << 12
    while True:
        begin = max(start, end - width)
        found = space[begin:end].tobytes().rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        if begin == start:
            return start
        width *= 8


def _lower(text: str | None) -> str:
    """The system's words, such as `No such file`, for the end of a sentence."""
    return "cannot be read" if not text else text[0].lower() + text[1:]
