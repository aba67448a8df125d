"""How the lines of a log hold records: text before the JSON, JSON inside strings, spans in an encoding of traces."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from tokenometer.processor.records.count_names import name_of
from tokenometer.processor.records.guess.counts import ROLES
from tokenometer.processor.records.guess.plan import GuessPlan, paths_text
from tokenometer.processor.records.sample import Sample, count_of, held_objects, leaves_of, sample_of
from tokenometer.schemas.mapping_errors import show
from tokenometer.schemas.mapping_model import PATH_KEYS_MAX, Path
from tokenometer.schemas.value import ANYTHING, JSON_IN_MAX, PREFIX_BYTES_MAX, Encoding, Value

# Messages and how they are read -> the lines of their records, as `processor.intake` opens them.
Reader = Callable[[Sequence[bytes], Value], list[bytes]]

_ENCODINGS: dict[Encoding, set[str]] = {  # the keys that a document has in each
    "otlp": {"resourceSpans"},
    "jaeger": {"traceId", "spanId", "operationName", "tags"},
    "zipkin": {"traceId", "id", "localEndpoint", "tags"},
}
_BESIDE = {"jaeger": "process"}  # what else tells it from a record that happens to have these keys


def opened(lines: Sequence[bytes], reader: Reader, plan: GuessPlan) -> tuple[list[bytes], Sample]:
    """The lines of records, and [value] in the plan where they are not plain."""
    value: dict[str, Any] = {}

    def read() -> tuple[list[bytes], Sample]:
        records = reader(lines, Value(**value))
        return records, sample_of(records)

    if prefix := _prefix(lines):
        value["prefix"] = prefix
        plan.doubt("log", f"lines have text before the JSON: {show(prefix)}, where {ANYTHING} is any text.")
    records, sample = read()
    if encoding := _encoding(sample):
        value["encoding"] = encoding
        records, sample = read()
    if paths := _json_in(sample):
        value["json_in"] = paths
        records, sample = read()
        plan.doubt("log", f"{paths_text(paths)} holds JSON in strings, which is opened.")
    plan.value = value
    return records, sample


def _encoding(sample: Sample) -> Encoding | None:
    """If every document has its keys."""
    for name, keys in _ENCODINGS.items():
        if sample.records and all(keys <= record.keys() for record in sample.records):
            if _BESIDE.get(name, "tags") in sample.records[0] or name == "otlp":
                return name
    return None


def _json_in(sample: Sample) -> tuple[Path, ...]:
    """Strings that hold an object in which is a count that we read. At most as many as a mapping may open."""
    found = []
    for path, text in sample.strings.items():
        inner = [
            item_path
            for item in held_objects(text)
            for item_path, value in leaves_of(item)
            if _is_read(item_path, value)
        ]
        if inner and len(path) + max(map(len, inner)) <= PATH_KEYS_MAX and isinstance(orjson.loads(text), dict):
            found.append(path)
    return tuple(found[:JSON_IN_MAX])


def _is_read(path: Path, value: Any) -> bool:
    name = name_of(path)
    return bool(name and name.role in ROLES and count_of(value) is not None)


# --- Text before the JSON ---


def _prefix(lines: Sequence[bytes]) -> str | None:
    """The text that all lines begin with, where it differs `...`; None: there is no such text."""
    lines = [line for line in lines if line.strip()]
    texts = [text for line in lines if line[:1] not in b'{"' and (text := _before_json(line))]
    if not texts or len(texts) < len(lines):
        return None
    head, tail = os.path.commonprefix(texts), os.path.commonprefix([text[::-1] for text in texts])[::-1]
    if len(set(texts)) == 1:  # one line, or the same time in all of them
        first = re.search(r"\d", texts[0])
        last = re.search(r".*\d", texts[0], re.DOTALL)
        head, tail = (texts[0][: first.start()], texts[0][last.end() :]) if first and last else (texts[0], "")
        prefix = f"{head}{ANYTHING}{tail}" if first else head
    else:
        head, tail = re.sub(r"\d+\W*$", "", head) if head[-1:].isdigit() else head, re.sub(r"^\W*\d+", "", tail)
        prefix = f"{head}{ANYTHING}{tail}"
    usable = tail or ANYTHING not in prefix
    return prefix if usable and len(prefix.encode()) <= PREFIX_BYTES_MAX and "\n" not in prefix else None


def _before_json(line: bytes) -> str | None:
    for start in (place for place, byte in enumerate(line[:PREFIX_BYTES_MAX]) if byte == ord("{") and place):
        try:
            if isinstance(orjson.loads(line[start:]), dict):
                return line[:start].decode()
        except ValueError:  # orjson's, and bytes that are no UTF-8
            continue
    return None
