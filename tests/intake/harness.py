"""Both decoders on the same messages: what the meter would read, and what the audit reads."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from tokenometer.processor.broker import Column
from tokenometer.processor.intake import Decoder
from tokenometer.processor.verify.decode import AuditDecoder
from tokenometer.schemas.value import PLAIN, Value

SAMPLES = pathlib.Path(__file__).parent / "samples"
AVRO = (SAMPLES / "framing-confluent-avro.avsc").read_bytes()
Headers = Sequence[tuple[str, bytes | None]]


def column(values: Sequence[bytes | None]) -> Column:
    """As the broker gives them: one buffer, each value ended by a newline, its own if it has one."""
    texts = [value or b"" for value in values]
    lines = [text if text.endswith(b"\n") else text + b"\n" for text in texts]
    ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
    starts = ends - np.array([len(line) for line in lines], np.int64)
    lengths = np.array([-1 if value is None else len(value) for value in values], np.int64)
    return Column(np.frombuffer(b"".join(lines), np.uint8), starts, lengths, ends)


class Result:
    """messages: the lines of each, without newlines. failures: by message."""

    def __init__(self, messages: list[list[bytes]], failures: dict[int, str]) -> None:
        self.messages, self.failures = messages, failures


def meter(
    values: Sequence[bytes | None],
    value: Value = PLAIN,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    **options: Any,
) -> Result:
    decode, messages, failures = Decoder(value, **options), list[list[bytes]](), dict[int, str]()
    while len(messages) < len(values):
        lines = decode(column(values), len(messages), keys, headers)
        assert len(lines.ends) and len(lines.data) == lines.ends[-1]
        data, start = lines.data.tobytes(), 0
        for end in lines.ends.tolist():
            assert end > start and data[end - 1 : end] == b"\n", "a message is at least one line, and whole lines"
            messages.append(data[start : end - 1].split(b"\n"))
            start = end
        failures |= lines.failures
    assert all(messages[index] == [b"?"] for index in failures)
    return Result(messages, failures)


def audit(
    values: Sequence[bytes | None],
    value: Value = PLAIN,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    **options: Any,
) -> Result:
    decode = AuditDecoder(value, **options)
    found = [
        decode(text, keys[index] if keys else None, headers[index] if headers else ())
        for index, text in enumerate(values)
    ]
    failures = {index: one.failure for index, one in enumerate(found) if one.failure is not None}
    return Result([one.lines or [b""] for one in found], failures)


def meaning(line: bytes) -> Any:
    """What a line says, with members that are there twice; None: nothing, for it is no JSON."""
    try:
        plain = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    try:
        return json.loads(line, object_pairs_hook=_Pairs, parse_int=_number, parse_float=float)
    except RecursionError:
        return plain


class _Pairs(list[Any]):
    pass


def _number(text: str) -> int | float:
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 64 else float(text)


def members(line: bytes) -> dict[str, Any]:
    found = orjson.loads(line)
    assert isinstance(found, dict)
    return found


def check(
    values: Sequence[bytes | None],
    value: Value = PLAIN,
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Headers] | None = None,
    **options: Any,
) -> Result:
    """What the meter reads; the audit must read the same."""
    found, expected = meter(values, value, keys, headers, **options), audit(values, value, keys, headers, **options)
    assert found.failures == expected.failures
    for one, other in zip(found.messages, expected.messages, strict=True):
        assert len(one) == len(other), (one, other)
        for line, wanted in zip(one, other, strict=True):
            assert line == wanted or _sorted(meaning(line)) == _sorted(meaning(wanted)), (line, wanted)
    return found


def _sorted(found: Any) -> Any:
    """Members of the top level in any order, but those of one name in theirs."""
    return sorted(found, key=lambda pair: pair[0]) if isinstance(found, _Pairs) else found


def sample(name: str) -> list[bytes]:
    """A sample's messages: each line of a `.jsonl` or of Jaeger's spans, else the whole file."""
    content = (SAMPLES / name).read_bytes()
    return content.splitlines() if name.endswith((".jsonl", ".jaeger_json", ".txt")) else [content]
