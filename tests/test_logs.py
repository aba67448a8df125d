"""Logs become batches of whole lines, whatever they are stored in and however they are cut."""

import gzip
import os
import pathlib
import random
import threading
import time

import numpy as np
import pytest
import zstandard

from tokenometer.processor.files import logs
from tokenometer.processor.files.logs import LogError, LogReader, ReadAhead

STORED = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "gzip of two members": lambda data: gzip.compress(data[: len(data) // 3]) + gzip.compress(data[len(data) // 3 :]),
    "zstd": zstandard.compress,
    "zstd of two frames": lambda data: (
        zstandard.compress(data[: len(data) // 3]) + zstandard.compress(data[len(data) // 3 :])
    ),
    "zstd without its size": lambda data: (
        zstandard.ZstdCompressor().compressobj().compress(data) if not data else _stream(data)
    ),
}


def _stream(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return compressor.compress(data) + compressor.flush()


def lines(count: int, seed: int = 1, most: int = 200) -> bytes:
    draw = random.Random(seed)
    return b"".join(draw.randbytes(draw.randrange(most)).replace(b"\n", b"") + b"\n" for _ in range(count))


def write(directory: pathlib.Path, data: bytes, name: str = "log.ndjson") -> str:
    path = directory / name
    path.write_bytes(data)
    return str(path)


def read_all(names: list[str], space_bytes: int = 1 << 16) -> list[tuple[logs.Chunk, bytes]]:
    """Every chunk and its bytes. The space is dirtied in between: nothing may be read from the last batch."""
    reader, space, found = LogReader(names), np.zeros(space_bytes, np.uint8), []
    while chunk := reader.fill(space):
        found.append((chunk, space[: chunk.length].tobytes()))
        space[:] = 0x41
    return found


# Bytes in, the same bytes out


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("space_bytes", [300, 4_096, 1 << 22])
def test_every_byte_is_in_one_chunk(tmp_path: pathlib.Path, stored: str, space_bytes: int):
    data = lines(2_000)
    name = write(tmp_path, STORED[stored](data))
    chunks = read_all([name], space_bytes)
    assert b"".join(text for _, text in chunks) == data
    assert all(text.endswith(b"\n") for _, text in chunks)
    assert [chunk.offset for chunk, _ in chunks] == np.cumsum([0, *(chunk.length for chunk, _ in chunks)])[:-1].tolist()
    assert chunks[-1][0].read_bytes == os.path.getsize(name)
    assert {chunk.file for chunk, _ in chunks} == {name}


@pytest.mark.parametrize("stored", STORED)
def test_a_missing_final_newline_is_added(tmp_path: pathlib.Path, stored: str):
    name = write(tmp_path, STORED[stored](b'{"a":1}\n{"a":2}'))
    assert b"".join(text for _, text in read_all([name])) == b'{"a":1}\n{"a":2}\n'


@pytest.mark.parametrize("stored", STORED)
def test_an_empty_log_has_no_chunk(tmp_path: pathlib.Path, stored: str):
    assert read_all([write(tmp_path, STORED[stored](b""))]) == []


@pytest.mark.parametrize("data", [b"\n", b"\n\n\n", b"a", b"a\n", b"\x1f\n", b"\x28\xb5\n", b"ab\ncd\n\n"])
def test_short_logs(tmp_path: pathlib.Path, data: bytes):
    expected = data if data.endswith(b"\n") else data + b"\n"
    assert b"".join(text for _, text in read_all([write(tmp_path, data)])) == expected


def test_the_suffix_does_not_matter(tmp_path: pathlib.Path):
    data = lines(50)
    names = [write(tmp_path, gzip.compress(data), "log.zst"), write(tmp_path, data, "plain.gz")]
    assert b"".join(text for _, text in read_all(names)) == data * 2


def test_logs_are_read_one_after_the_other(tmp_path: pathlib.Path):
    data = [lines(100, 1), b"", b"no newline at the end", lines(100, 2)]
    names = [write(tmp_path, text, f"{i}.log") for i, text in enumerate(data)]
    chunks = read_all(names, 4_096)
    assert b"".join(text for _, text in chunks) == data[0] + data[2] + b"\n" + data[3]
    assert [chunk.file for chunk, _ in chunks if chunk.offset == 0] == [names[0], names[2], names[3]]
    assert chunks[-1][0].read_bytes == sum(map(len, data)) == logs.size_of(names)


def test_a_pipe_is_read_in_whatever_pieces_it_gives(tmp_path: pathlib.Path):
    fifo, data = str(tmp_path / "fifo"), gzip.compress(lines(500))
    os.mkfifo(fifo)

    def feed() -> None:
        with open(fifo, "wb", buffering=0) as file:
            for start in range(0, len(data), 7_001):
                file.write(data[start : start + 7_001])

    assert logs.size_of([fifo]) is None
    feeder = threading.Thread(target=feed)
    feeder.start()
    assert b"".join(text for _, text in read_all([fifo])) == gzip.decompress(data)
    feeder.join()


def test_read_lines(tmp_path: pathlib.Path):
    assert list(logs.read_lines(write(tmp_path, gzip.compress(b"a\n\nb\r\nc")))) == [b"a", b"", b"b\r", b"c"]


# Messages


@pytest.mark.parametrize("longest", [10, 3_000, 900_000, 1_500_000])
def test_messages_are_whole_lines_of_a_mebibyte_at_most(longest: int):
    draw = random.Random(longest)
    text = b"".join(b"x" * draw.randrange(longest) + b"\n" for _ in range(max(4, 5_000_000 // longest)))
    ends = logs.message_ends(np.frombuffer(text, np.uint8), len(text)).tolist()
    assert ends[-1] == len(text) and ends == sorted(set(ends))
    for start, end in zip([0, *ends], ends, strict=False):
        assert text[end - 1 : end] == b"\n"
        assert end - start <= logs.MESSAGE_BYTES or text[start : end - 1].count(b"\n") == 0
    if longest < 1_000_000:
        assert len(ends) <= len(text) // (logs.MESSAGE_BYTES - longest) + 1, "no more messages than needed"


def test_no_bytes_are_no_messages():
    assert logs.message_ends(np.zeros(4, np.uint8), 0).tolist() == []


# What cannot be read


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress, STORED["gzip of two members"]])
@pytest.mark.parametrize("cut", [5, 100, 0.3, 0.9])
def test_truncated_data_is_an_error_and_not_the_end(tmp_path: pathlib.Path, compress, cut: float):
    data = compress(lines(2_000))
    data = data[:cut] if isinstance(cut, int) else data[: int(len(data) * cut)]
    with pytest.raises(LogError, match=r"cut\.gz: the (gzip|zstd) data ends too early"):
        read_all([write(tmp_path, data, "cut.gz")])


@pytest.mark.parametrize(
    "data",
    [gzip.compress(lines(99)) + b"more lines\n", zstandard.compress(lines(99)) + b"more lines\n", b"\x1f\x8b\x00 bad"],
)
def test_damaged_data_is_an_error(tmp_path: pathlib.Path, data: bytes):
    with pytest.raises(LogError, match="is damaged, by byte"):
        read_all([write(tmp_path, data)])


def test_missing_and_directory_are_named(tmp_path: pathlib.Path):
    for size_or_read in (logs.size_of, read_all):
        with pytest.raises(LogError, match=r"none\.log: no such file or directory"):
            size_or_read([str(tmp_path / "none.log")])
        with pytest.raises(LogError, match=r": is a directory"):
            size_or_read([str(tmp_path)])


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_does_not_fit_is_not_cut(tmp_path: pathlib.Path, end: bytes):
    fits = write(tmp_path, b"short\n" + b"x" * 99 + end, "fits")
    assert b"".join(text for _, text in read_all([fits], 100)) == b"short\n" + b"x" * 99 + b"\n"
    long = write(tmp_path, b"short\n" + b"x" * 100 + end, "long")
    with pytest.raises(
        LogError, match=r"long: a line of more than 100 bytes at byte 6: is this newline-delimited JSON"
    ):
        read_all([long], 100)


# Reading ahead


def test_read_ahead_fills_while_the_caller_works():
    def fill(space: np.ndarray) -> logs.Chunk:
        time.sleep(0.05)
        space[:] = 7
        return logs.Chunk("f", 0, len(space), np.array([len(space)], np.uint32), 0)

    ahead, space = ReadAhead(fill), np.zeros(3, np.uint8)
    ahead.begin(space)
    with pytest.raises(TimeoutError):
        ahead.wait(0.001)
    chunk = ahead.wait()
    assert chunk is not None and chunk.length == 3 and space.tolist() == [7, 7, 7]
    ahead.close()


def test_read_ahead_hands_errors_on(tmp_path: pathlib.Path):
    ahead = ReadAhead(LogReader([str(tmp_path / "none")]).fill)
    ahead.begin(np.zeros(10, np.uint8))
    with pytest.raises(LogError, match="no such file"):
        ahead.wait()
    ahead.close()
