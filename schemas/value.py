"""How the values of a topic's messages are read: the `[value]` table of a mapping.

The defaults are plain JSON, a record a line, with the openers of `processor/intake`, which need no configuration.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn, Protocol, cast, get_args

Path = tuple[str, ...]
Encoding = Literal["json", "otlp", "zipkin", "jaeger", "cloudevents", "debezium", "avro", "protobuf"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
Frame = Literal["confluent", "single_object", "none"]
FRAMES: tuple[str, ...] = get_args(Frame)

# Members that intake puts into a record. Paths of a mapping's fields name them like any other.
KEY_MEMBER = "@key"  # the message's key
INDEX_MEMBER = "@index"  # an element's number in its document, from 0; where `records` has EACH
HEADER_PREFIX = "@header."  # and a header's name: the header's value
OUTER = "^"  # the object around the record; ["^", "^", "tenant"] is two objects out
EACH = "*"  # in `records`: each element of an array

KEYS_MAX = 6  # of a path, as in a mapping's fields
JSON_IN_MAX = 8
PREFIX_BYTES_MAX = 256
ANYTHING = "..."  # in `prefix`

_DOCUMENTS = ("json", "debezium", "cloudevents")  # encodings whose records may hold JSON in strings
_ALLOWED: dict[str, tuple[str, ...]] = {  # the encodings that a key is for
    "encoding": ENCODINGS,
    "records": ("json",),
    "json_in": (*_DOCUMENTS, "otlp", "zipkin", "jaeger", "avro", "protobuf"),
    "prefix": (*_DOCUMENTS, "zipkin", "jaeger"),
    "whole": (*_DOCUMENTS, "zipkin", "jaeger"),
    "schema": ("avro", "protobuf"),
    "message": ("protobuf",),
    "registry": ("avro", "protobuf"),
    "frame": ("avro",),
}


@dataclass(frozen=True)
class Value:
    """How values are read.

    records: the path of the records in a document, with EACH for the elements of an array; () for the document itself.
    json_in: paths in a record of strings that hold JSON; "" and "-" are null. prefix: text before a document;
    ANYTHING in it is any text. whole: a message is one document, newlines and all; else each line is one. schema: the
    path of an Avro schema (JSON) or of a protobuf descriptor set. message: the full name of a protobuf message in it;
    None: the first one. registry: schemas come from a Schema Registry.
    frame: what comes before an Avro datum; never guessed, because a datum that is
    cut off can look like one without a frame. Protobuf needs no such key: no message begins with the frame's 00.
    outer, key, headers, index: what the mapping's fields ask for, which `[value]` does not say: paths that begin with
    OUTER, the message's key, headers by name, and the numbers of elements. document: the mapping reads documents
    themselves, too: a path of it begins as `records` does. So a document whose records are null or none is a record.
    """

    encoding: Encoding = "json"
    records: Path = ()
    json_in: tuple[Path, ...] = ()
    prefix: str = ""
    whole: bool = False
    schema: str | None = None
    message: str | None = None
    registry: bool = False
    frame: Frame = "confluent"
    outer: tuple[Path, ...] = ()
    key: bool = False
    headers: tuple[str, ...] = ()
    index: bool = False
    document: bool = False


PLAIN = Value()


class Fail(Protocol):
    def __call__(self, where: str, expected: str, found: Any) -> NoReturn:
        """Raises the caller's error about the key `where` of the table; "" means the table itself."""


def value_of(table: Any, fail: Fail) -> Value:
    """The checked `[value]` table; None, an absent one, gives the defaults."""
    if table is None:
        return PLAIN
    if not isinstance(table, dict):
        fail("", "a table", table)
    encoding = table.get("encoding", "json")
    if encoding not in ENCODINGS:
        fail("encoding", f"one of {', '.join(ENCODINGS)}{_hint(encoding, ENCODINGS)}", encoding)
    for key, found in table.items():
        if key not in _ALLOWED:
            fail(key, f"one of the keys {', '.join(_ALLOWED)}{_hint(key, _ALLOWED)}", found)
        if encoding not in _ALLOWED[key]:
            fail(key, f"no such key with encoding = {encoding}; it is for {', '.join(_ALLOWED[key])}", found)
    value = Value(
        encoding=cast(Encoding, encoding),
        records=_records(table, fail),
        json_in=_json_in(table.get("json_in", []), fail),
        prefix=_prefix(table, fail),
        whole=_typed(table, "whole", bool, "true or false", False, fail),
        schema=_text(table, "schema", "the path of a schema file", fail),
        message=_text(table, "message", "the full name of a protobuf message", fail),
        registry=_typed(table, "registry", bool, "true or false", False, fail),
        frame=_frame(table, fail),
    )
    _check_schema(value, fail)
    return value


def _check_schema(value: Value, fail: Fail) -> None:
    if value.encoding not in _ALLOWED["schema"]:
        return
    if value.schema is None and not value.registry:
        fail("schema", f"schema or registry = true: {value.encoding} cannot be read without a schema", None)
    if value.schema is not None and value.registry:
        fail("registry", "no registry = true beside schema: which of them should count?", True)
    if value.frame != "confluent" and value.registry:
        fail("frame", "no frame but confluent beside registry = true", value.frame)
    if value.message is not None and value.registry:
        fail("message", "no message beside registry = true: each value names its own", value.message)


def _hint(word: Any, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1) if isinstance(word, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def _typed(table: dict[str, Any], key: str, kind: type, expected: str, default: Any, fail: Fail) -> Any:
    found = table.get(key, default)
    if key in table and type(found) is not kind:
        fail(key, expected, found)
    return found


def _text(table: dict[str, Any], key: str, expected: str, fail: Fail) -> str | None:
    found = _typed(table, key, str, expected, None, fail)
    if found == "":
        fail(key, expected, found)
    return cast("str | None", found)


def _frame(table: dict[str, Any], fail: Fail) -> Frame:
    frame = table.get("frame", "confluent")
    if frame not in FRAMES:
        fail("frame", f"one of {', '.join(FRAMES)}{_hint(frame, FRAMES)}", frame)
    return cast(Frame, frame)


def _path(found: Any, where: str, expected: str, fail: Fail) -> Path:
    keys = [found] if isinstance(found, str) else found
    if not isinstance(keys, list) or not 1 <= len(keys) <= KEYS_MAX:
        fail(where, expected, found)
    for key in keys:
        if not isinstance(key, str) or not key:
            fail(where, expected, key)
    return tuple(keys)


def _records(table: dict[str, Any], fail: Fail) -> Path:
    if "records" not in table:
        return ()
    expected = f"a list of 1 to {KEYS_MAX} keys, with {EACH} for each element of an array"
    path = _path(table["records"], "records", expected, fail)
    if OUTER in path:
        fail("records", f"{expected}; {OUTER} is for the paths of fields", list(path))
    if path[0] == EACH:
        fail("records", f"{expected}; a message that is an array needs no {EACH}: arrays are opened anyway", list(path))
    return path


def _json_in(found: Any, fail: Fail) -> tuple[Path, ...]:
    expected = f"a list of 1 to {JSON_IN_MAX} paths"
    if found == []:
        return ()
    if not isinstance(found, list) or len(found) > JSON_IN_MAX:
        fail("json_in", expected, found)
    one = f"a path: a string, or a list of 1 to {KEYS_MAX} strings"
    return tuple(_path(path, f"json_in[{index}]", one, fail) for index, path in enumerate(found))


def _prefix(table: dict[str, Any], fail: Fail) -> str:
    expected = f'a string of 1 to {PREFIX_BYTES_MAX} bytes that does not end with {ANYTHING}, such as "[...] "'
    prefix: str = _typed(table, "prefix", str, expected, "", fail)
    if "prefix" not in table:
        return ""
    if not 1 <= len(prefix.encode()) <= PREFIX_BYTES_MAX or prefix.endswith(ANYTHING) or "\n" in prefix:
        fail("prefix", expected, prefix)
    return prefix


def asks_for_headers(value: Value) -> bool:
    """CloudEvents in binary mode and the schema's GUID of a registry's values are in headers."""
    return bool(value.headers) or value.registry or value.encoding == "cloudevents"


def with_fields(value: Value, paths: Iterable[Path]) -> Value:
    """The value's settings, with what these paths of a mapping's fields ask for."""
    paths = tuple(dict.fromkeys(paths))
    headers = tuple(path[0].removeprefix(HEADER_PREFIX) for path in paths if path[0].startswith(HEADER_PREFIX))
    outer = tuple(path for path in paths if path[0] == OUTER)
    index = EACH in value.records and (INDEX_MEMBER,) in paths
    document = bool(value.records) and any(path[0] == value.records[0] for path in paths)
    return replace(value, outer=outer, headers=headers, key=(KEY_MEMBER,) in paths, index=index, document=document)
