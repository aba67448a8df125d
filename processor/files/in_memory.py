"""Logs that are in memory already: bytes, and tables of Arrow, pandas and Polars, read as files are.

bytes                                    as a file's: lines, or a JSON array
a table's only column, or `value`:       texts or bytes; each is one value, as of a Kafka message
any other table:                         each row is one value, a JSON object of its columns
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.kernels.values import Bytes
from tokenometer.processor.files.decoded import DecodedReader, SourceValue, object_rows
from tokenometer.processor.files.logs import Chunk, LogError, message_ends
from tokenometer.processor.intake import MESSAGE_BYTES_MAX, Decoder
from tokenometer.schemas.value import PLAIN, Value

BYTES_NAME, TABLE_NAME = "(bytes)", "(table)"
_VALUE = "value"
_SLICE_ROWS = 1 << 14  # of a column, put together at once
_SCAN_BYTES = 1 << 16


class LinesReader:
    """Blocks of lines, one after the other, as `LogReader` reads a file. The last line of a block may lack its newline;
    no block is empty."""

    def __init__(self, name: str, blocks: Iterable[Any]) -> None:
        self._name, self._blocks = name, iter(blocks)
        self._block = np.zeros(0, np.uint8)
        self._at = self._offset = 0

    def fill(self, space: Bytes) -> Chunk | None:
        """The next whole lines, at most as many as fit; None after the last."""
        length = 0
        while self._more():
            taken = self._take(space[length:])
            if taken == 0:
                break
            length += taken
        if length == 0:
            if self._at == len(self._block):
                return None
            raise LogError(
                f"{self._name}: a line of more than {len(space)} bytes at byte {self._offset}: "
                f"is this newline-delimited JSON?"
            )
        offset, self._offset = self._offset, self._offset + length
        return Chunk(self._name, offset, length, message_ends(space, length), self._offset)

    def _more(self) -> bool:
        while self._at == len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return False
            self._block, self._at = np.frombuffer(block, np.uint8), 0
        return True

    def _take(self, space: Bytes) -> int:
        """As many lines of the block as fit, with a newline after its last; 0: not even one."""
        left = self._block[self._at :]
        if len(left) < len(space):  # with room for a newline
            space[: len(left)] = left
            self._at += len(left)
            if left[-1] == 0x0A:
                return len(left)
            space[len(left)] = 0x0A
            return len(left) + 1
        length = _last_line_end(left[: len(space)])
        space[:length] = left[:length]
        self._at += length
        return length

    def close(self) -> None:
        self._block = np.zeros(0, np.uint8)


def _last_line_end(data: Bytes) -> int:
    """Past the last newline; 0 where there is none."""
    end = len(data)
    while end > 0:
        begin = max(0, end - _SCAN_BYTES)
        found = data[begin:end].tobytes().rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def bytes_reader(data: Any, value: Value, make_decoder: Callable[[], Decoder], whole: bool) -> Any:
    """Of bytes, a bytearray, a memoryview or a memory map; plain lines are not copied before they are counted."""
    view = memoryview(data).cast("B")
    is_array = bytes(view[:64]).lstrip().startswith(b"[")
    if value == PLAIN and not whole and not is_array:
        return LinesReader(BYTES_NAME, [view] if len(view) else [])
    one = whole or (is_array and value.encoding == "json")
    if one and len(view) > MESSAGE_BYTES_MAX:
        raise LogError(f"{BYTES_NAME}: one value of more than {MESSAGE_BYTES_MAX} bytes")
    values = iter([SourceValue(1, 0, bytes(view))]) if one else _lines(bytes(view))
    return DecodedReader([(BYTES_NAME, values)], make_decoder())


def _lines(data: bytes) -> Iterator[SourceValue]:
    offset = 0
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else (), 1):
        yield SourceValue(number, offset, line)
        offset += len(line) + 1


def table_reader(table: Any, value: Value, make_decoder: Callable[[], Decoder]) -> Any:
    """Of anything that hands out an Arrow stream: a table or a reader of pyarrow, a frame of Polars or pandas."""
    stream = pa.RecordBatchReader.from_stream(table)
    column = _value_column(stream.schema)
    if column is None:
        rows = object_rows(TABLE_NAME, stream)
        if value == PLAIN:
            return LinesReader(TABLE_NAME, (row.data + b"\n" for row in rows))
        return DecodedReader([(TABLE_NAME, rows)], make_decoder())
    texts = (batch.column(column) for batch in stream)
    if value == PLAIN:
        return LinesReader(TABLE_NAME, _joined(texts))
    return DecodedReader([(TABLE_NAME, _values(texts))], make_decoder())


def _value_column(schema: Any) -> int | None:
    """Where the values are, if the table holds values and not their fields."""
    place = 0 if len(schema) == 1 else schema.get_field_index(_VALUE)
    if place < 0:
        return None
    kind = schema.field(place).type
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    bytes_kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return place if any(is_kind(kind) for is_kind in (*kinds, *bytes_kinds)) else None


def _joined(columns: Iterator[Any]) -> Iterator[Any]:
    """Each column's texts as lines; a missing one is an empty line, as a tombstone is."""
    # Here and not at import: the first scalar of a process imports pandas where it is installed.
    nothing, newline = pa.scalar(b"", pa.large_binary()), pa.scalar(b"\n", pa.large_binary())
    for column in columns:
        for start in range(0, len(column), _SLICE_ROWS):
            texts = column.slice(start, _SLICE_ROWS).cast(pa.large_binary())
            lines = pc.binary_join_element_wise(_unterminated(pc.fill_null(texts, b"")), nothing, newline)
            yield lines.buffers()[2].slice(0, pc.sum(pc.binary_length(lines)).as_py())


def _unterminated(texts: Any) -> Any:
    """A value's own newline ends its last record, as in a Kafka message; it does not begin another one."""
    last = pc.binary_slice(texts, -1, None)
    if not pc.any(pc.equal(last, b"\n")).as_py():
        return texts
    return pa.array([text.removesuffix(b"\n") for text in texts.to_pylist()], pa.large_binary())


def _values(columns: Iterator[Any]) -> Iterator[SourceValue]:
    number = 0
    for column in columns:
        for value in column.cast(pa.large_binary()).to_pylist():
            number += 1
            yield SourceValue(number, 0, value or b"")
