"""The libraries that decompress record batches, found on this machine and handed to codecs.h as pointers.

zlib, lz4 and zstd are there wherever a Linux distribution is; snappy often is not. They are loaded and not linked, so
that no header files are needed. What is missing is done by pyarrow, which brings its own: correct as well, but a call
into Python for each batch.
"""

import ctypes
import functools
import io
import logging
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow

log = logging.getLogger("tokenometer.kafka")

# In the order of `Libraries` in codecs.h: a library, and its functions.
_NAMES = {
    "libz.so.1": ("inflateInit2_", "inflate", "inflateEnd"),
    "libsnappy.so.1": ("snappy_uncompressed_length", "snappy_uncompress"),
    "liblz4.so.1": (
        "LZ4F_createDecompressionContext",
        "LZ4F_freeDecompressionContext",
        "LZ4F_resetDecompressionContext",
        "LZ4F_decompress",
        "LZ4F_isError",
    ),
    "libzstd.so.1": ("ZSTD_createDCtx", "ZSTD_freeDCtx", "ZSTD_DCtx_reset", "ZSTD_decompressStream", "ZSTD_isError"),
}
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4  # enum Codec in codecs.h
_XERIAL = b"\x82SNAPPY\0"  # what snappy-java's frame begins with
_XERIAL_HEAD_BYTES = 16
_OTHER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


class Libraries(ctypes.Structure):
    """As in codecs.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for names in _NAMES.values() for name in names),
        ("other", ctypes.c_void_p),
    ]


def find(append: Callable[[int, bytes, int], int], missing: frozenset[str] = frozenset()) -> Libraries:
    """append: `append_bytes` of walk.cpp. missing: libraries that are not to be used."""
    found = Libraries()
    for library, names in _NAMES.items():
        functions = None if library in missing else loaded(library)
        for name in names if functions is not None else ():
            setattr(found, name, ctypes.cast(getattr(functions, name), ctypes.c_void_p))

    def other(codec: int, address: int, size: int, out: int) -> int:
        try:
            opened = opened_by_pyarrow(codec, ctypes.string_at(address, size))
        except (OSError, ValueError, zlib.error, pyarrow.ArrowException):
            return 1
        return append(out, opened, len(opened))

    callback = _OTHER(other)
    found.other = ctypes.cast(callback, ctypes.c_void_p)
    found.kept = callback
    return found


@functools.cache
def loaded(library: str) -> Any:
    try:
        return ctypes.CDLL(library)
    except OSError:
        log.info("%s is not on this machine: pyarrow opens what it would", library)
        return None


def opened_by_pyarrow(codec: int, data: bytes) -> bytes:
    """Raises OSError, ValueError or ArrowException."""
    if codec == SNAPPY:
        return _snappy(data)
    name = {GZIP: "gzip", LZ4: "lz4", ZSTD: "zstd"}[codec]
    with pyarrow.input_stream(io.BytesIO(data), compression=name) as stream:
        opened: bytes = stream.read()
    return opened


def _snappy(data: bytes) -> bytes:
    if not data.startswith(_XERIAL):
        return _snappy_block(data)
    blocks, at = [], _XERIAL_HEAD_BYTES
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size > len(data) - at - 4:
            raise ValueError("a block ends early")
        blocks.append(_snappy_block(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return b"".join(blocks)


def _snappy_block(data: bytes) -> bytes:
    """It begins with its size when it is opened, a varint."""
    size = 0
    for index, byte in enumerate(data[:5]):
        size |= (byte & 127) << 7 * index
        if byte < 128:
            break
    if size > 22 * (len(data) + 1):  # no block of this format expands to more
        raise ValueError("a block's size is wrong")
    opened: bytes = pyarrow.decompress(data, size, "snappy", asbytes=True)
    return opened
