"""Batches on the device: the buffers that they travel in, and the two shapes in which they come.

lines      messages, each ended by a newline: split there
raw        record batches of Kafka, opened: walked there, so that no processor of the host touches a record
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.kernels import layout
from tokenometer.kernels.limits import Limits
from tokenometer.kernels.plan import Plan, sample
from tokenometer.kernels.steps import SAMPLE_BYTES
from tokenometer.kernels.target import Array, KnownLines, Lines, Target
from tokenometer.kernels.values import Batch, Bytes, RawBatches


@dataclass
class DevicePlan:
    plan: Plan
    table: Array
    batches_to_go: int = 0  # until it learns again


class Buffer:
    """A batch's memory and its twin on the device.

    | prefix | messages | padding | their other spelling | padding | referee's text | padding |
    """

    def __init__(self, target: Target, memory: Bytes) -> None:
        space = (len(memory) - layout.PREFIX_BYTES) // 3 - layout.PADDING_BYTES
        assert len(memory) == self.bytes_for(space)
        self.memory, self.device = memory, target.mirror(memory)
        self.space = memory[layout.PREFIX_BYTES : layout.PREFIX_BYTES + space]
        self.respelled = self.device[layout.PREFIX_BYTES + space + layout.PADDING_BYTES :]
        self.referee_at = len(memory) - layout.PADDING_BYTES - space

    @staticmethod
    def bytes_for(space: int) -> int:
        return layout.PREFIX_BYTES + 3 * (space + layout.PADDING_BYTES)


class Tile:
    """What is read from lines: a record each, and beside it what did not find room there, and its doubt."""

    def __init__(self, target: Target, room: int) -> None:
        self._target, self._room = target, room
        self.records = target.zeros(room, layout.RECORD)
        self.spots = target.zeros(room * layout.SPOT_WORDS, np.uint64)
        self.doubtful = target.zeros(room, np.uint32)
        self.extras: Array | None = None  # once a mapping has labels or further counters

    def make_room_for_extras(self) -> None:
        if self.extras is None:
            self.extras = self._target.zeros(self._room, layout.EXTRA)


class Slot:
    """What one batch needs on the device. Two take turns. tile: of its lines that are being counted."""

    def __init__(self, target: Target, limits: Limits, tile: Tile) -> None:
        self.tile = tile
        self.buffer = Buffer(target, target.pinned(Buffer.bytes_for(limits.batch_bytes)))
        self.line_start = target.zeros(limits.batch_bytes + 2, np.uint32)
        self.counted: Any = target.mark()  # when the kernels have done with it
        self._raw: tuple[Bytes, Array] | None = None

    def raw(self, target: Target) -> tuple[Bytes, Array]:
        """A pair such as a buffer's, for record batches, once there are some."""
        if self._raw is None:
            memory = target.pinned(len(self.buffer.space) + layout.PADDING_BYTES)
            self._raw = memory, target.mirror(memory)
        return self._raw


class Loaded:
    """A batch of lines on the device."""

    def __init__(self, target: Target, batch: Batch, plan: DevicePlan, slot: Slot) -> None:
        self.batch, self.plan, self.plan_table = batch, plan.plan, plan.table
        self.known, self.slot = plan, slot
        self.buffer = slot.buffer if batch.memory is slot.buffer.memory else Buffer(target, batch.memory)
        self.referee_at = self.buffer.referee_at
        self.lines_read = 0  # of its first ones, which are in the slot's tile
        self.buffer.memory[: len(self.plan.prefix)] = np.frombuffer(self.plan.prefix, np.uint8)
        self._target = target
        self._lines: Lines | None = None
        self._messages: tuple[Array, Array | None] | None = None
        self._send()

    def _send(self) -> None:
        buffer, end = self.buffer, layout.PREFIX_BYTES + self.batch.length
        buffer.memory[end : end + layout.PADDING_BYTES] = 0x0A
        sent = slice(end + layout.PADDING_BYTES)
        self._target.send_ahead(buffer.memory[sent], buffer.device[sent])
        self._split()

    def _split(self) -> None:
        data, line_start, ends = self.buffer.device, self.slot.line_start, self.batch.message_end
        if self.batch.one_line and self._target.shares_memory:
            assert ends is not None
            line_start[0] = layout.PREFIX_BYTES
            np.add(ends, np.uint32(layout.PREFIX_BYTES), out=line_start[1 : len(ends) + 1])
            self._lines = KnownLines(len(ends))
        else:
            self._lines = self._target.split(data, layout.PREFIX_BYTES, self.batch.length, line_start)

    def count_lines(self) -> int:
        """Waits for them."""
        assert self._lines is not None
        return self._lines.count()

    def messages(self) -> tuple[Array, Array | None]:
        """On the device: past each one's last newline, and their times."""
        if self._messages is None:
            ends, times, send = self.batch.message_end, self.batch.message_time, self._target.send
            assert ends is not None
            self._messages = send(ends + np.uint32(layout.PREFIX_BYTES)), None if times is None else send(times)
        return self._messages

    def sample(self) -> list[bytes]:
        return sample(self.batch.space[: self.batch.length])

    def cut(self, message: int, begin: int, end: int) -> bytes:
        """Of a message, what is between two places of the batch buffer."""
        return bytes(self.buffer.memory.data[begin:end])


class RawLoaded(Loaded):
    """Record batches on the device. What they hold is in `batch` when their lines have been counted.

    broken: the number of the first batch whose records are none; what comes before it is in. None: all are whole.
    """

    def __init__(self, target: Target, raw: RawBatches, batch: Batch, plan: DevicePlan, slot: Slot) -> None:
        self.broken: int | None = None
        self._raw = raw
        self._walk = np.zeros((), layout.WALK)
        super().__init__(target, batch, plan, slot)

    def _send(self) -> None:
        """Returns at once on a GPU, which finds and reads the records while an earlier batch is counted."""
        target, buffer, raw, walk = self._target, self.buffer, self._raw, self._walk
        self._memory, data = self.slot.raw(target)
        size = len(raw.data)
        self._memory[:size] = raw.data
        target.send_ahead(self._memory[: size + layout.PADDING_BYTES], data[: size + layout.PADDING_BYTES])
        prefix = slice(layout.PREFIX_BYTES)
        target.send_ahead(buffer.memory[prefix], buffer.device[prefix])
        records = int(raw.batches["count"].sum())
        with target.ahead:
            self._batches = target.xp.asarray(raw.batches.view(np.uint8))
            self._spans = target.xp.empty((records, 4), np.uint32)
            self._offsets, self._times = target.xp.empty((2, records), np.uint64)
            self._values, self._sizes = target.xp.empty((2, records), np.uint32)
            self._broken = target.xp.zeros(1, np.uint64)
            self._point("data", data)
            for name in ("batches", "spans", "offsets", "times", "values", "sizes", "broken"):
                self._point(name, getattr(self, f"_{name}"))
            walk["batch_count"] = len(raw.batches)
            target.run("find_records", walk, len(raw.batches))
            target.run("read_records", walk, records)

    def _point(self, name: str, array: Array) -> None:
        self._walk[name] = self._target.address(array)

    def count_lines(self) -> int:
        if self._lines is None:
            self._place()
        return super().count_lines()

    def _place(self) -> None:
        """What was read becomes a batch: its columns on the host, its lines on the device."""
        target, walk, batch = self._target, self._walk, self.batch
        begin, end = self._kept()
        with target.ahead:
            values, sizes = self._values[begin:end], self._sizes[begin:end]
            ends = target.xp.cumsum(sizes, dtype=np.uint32)
            batch.message_end = target.fetch_ahead(ends)
            batch.message_time = target.fetch_ahead(self._times[begin:end])
            self._value_begin = target.fetch_ahead(values)
            batch.length = int(batch.message_end[-1]) if end > begin else 0
            lines = self.buffer.device[layout.PREFIX_BYTES :]
            for name, array in (("values", values), ("sizes", sizes), ("ends", ends), ("lines", lines)):
                self._point(name, array)
            walk["count"] = end - begin
            target.run("place_values", walk, -(-(batch.length + layout.PADDING_BYTES) // 8))
            self._ends = ends  # kept: the kernel reads it
        self._split()

    def _kept(self) -> tuple[int, int]:
        """Records from the offset that was asked for to the first broken batch. Sets the batch's offsets."""
        batches = self._raw.batches
        behind = int(self._target.fetch_ahead(self._broken)[0])
        end = len(self._sizes)
        if behind:
            self.broken = len(batches) - behind
            end = int(batches["first"][self.broken])
        offsets = self._target.fetch_ahead(self._offsets[:end]).view(np.int64)
        begin = int(np.searchsorted(offsets, self._raw.begin))
        self.batch.message_offset = offsets[begin:]
        return begin, end

    def sample(self) -> list[bytes]:
        """The host has no lines of such a batch: these come back from the device."""
        size = min(self.batch.length, SAMPLE_BYTES)
        return sample(self._target.fetch_ahead(self.buffer.device[layout.PREFIX_BYTES : layout.PREFIX_BYTES + size]))

    def cut(self, message: int, begin: int, end: int) -> bytes:
        ends = self.batch.message_end
        assert ends is not None
        line = layout.PREFIX_BYTES + (int(ends[message - 1]) if message else 0)
        at = int(self._value_begin[message]) - line
        return bytes(self._memory.data[at + begin : at + end])
