"""Compiles Avro schemas to the tables that avro.h reads by."""

import json
from typing import Any

import numpy as np
import orjson

from tokenometer.processor.intake.native import AvroTables

_KINDS = {
    **{"null": 0, "boolean": 1, "int": 2, "long": 2, "float": 3, "double": 4, "bytes": 5, "string": 6},
    **{"fixed": 7, "enum": 8, "array": 9, "map": 10, "union": 11, "record": 12},
}
_DECIMAL, _FIXED_DECIMAL = 13, 14
_DECIMAL_BYTES_MAX = 16
_SCALE_MAX = 38  # what 16 bytes can hold
_NODES_MAX = 100_000


class AvroSchemaError(ValueError):
    """A schema cannot be used. The message says what is wrong with it."""


def compile_schema(text: str | bytes) -> AvroTables:
    """Raises SchemaError."""
    try:
        schema = json.loads(text)
        compiler = _Compiler()
        compiler.node(schema, "")
    except RecursionError:
        raise AvroSchemaError("the Avro schema is nested too deeply") from None
    except AvroSchemaError:
        raise
    except ValueError as error:
        raise AvroSchemaError(f"the Avro schema is not JSON: {error}") from None
    return compiler.tables()


class _Compiler:
    def __init__(self) -> None:
        self._nodes: list[list[int]] = []
        self._children: list[list[int]] = []
        self._texts = bytearray()
        self._names: dict[str, int] = {}

    def tables(self) -> AvroTables:
        return AvroTables(
            np.array(self._nodes, np.uint32).reshape(-1, 5),
            np.array(self._children, np.uint32).reshape(-1, 3),
            np.frombuffer(bytes(self._texts) + bytes(64), np.uint8),
        )

    def node(self, schema: Any, namespace: str) -> int:
        if isinstance(schema, str):
            return self._named(schema, namespace)
        if isinstance(schema, list):
            return self._union(schema, namespace)
        if not isinstance(schema, dict) or "type" not in schema:
            raise AvroSchemaError(f"expected a type, found {str(schema)[:80]}")
        kind = schema["type"]
        if not isinstance(kind, str) or kind not in _KINDS or kind == "union":
            return self.node(kind, namespace)
        if schema.get("logicalType") == "decimal" and kind in ("bytes", "fixed"):
            return self._decimal(schema, namespace)
        match kind:
            case "record":
                return self._record(schema, namespace)
            case "enum":
                symbols = [(0, orjson.dumps(symbol)) for symbol in _list(schema, "symbols")]
                return self._add(_KINDS[kind], symbols, name=_full_name(schema, namespace))
            case "fixed":
                return self._add(_KINDS[kind], size=_size(schema), name=_full_name(schema, namespace))
            case "array" | "map":
                index = self._add(_KINDS[kind])
                self._adopt(index, [(self.node(schema.get("items" if kind == "array" else "values"), namespace), b"")])
                return index
            case _:
                return self._add(_KINDS[kind])

    def _named(self, name: str, namespace: str) -> int:
        if name in _KINDS and name not in ("fixed", "enum", "array", "map", "union", "record"):
            return self._add(_KINDS[name])
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        for known in (full, name):
            if known in self._names:
                return self._names[known]
        raise AvroSchemaError(f"unknown type {name}")

    def _union(self, branches: list[Any], namespace: str) -> int:
        index = self._add(_KINDS["union"])
        self._adopt(index, [(self.node(branch, namespace), b"") for branch in branches])
        return index

    def _record(self, schema: dict[str, Any], namespace: str) -> int:
        name = _full_name(schema, namespace)
        inner = name.rpartition(".")[0]
        index = self._add(_KINDS["record"], name=name)
        fields = []
        for field in _list(schema, "fields"):
            if not isinstance(field, dict) or not isinstance(field.get("name"), str):
                raise AvroSchemaError(f"expected a field with a name in {name}, found {str(field)[:80]}")
            fields.append((self.node(field.get("type"), inner), orjson.dumps(field["name"]) + b":"))
        self._adopt(index, fields)
        return index

    def _decimal(self, schema: dict[str, Any], namespace: str) -> int:
        scale = schema.get("scale", 0)
        if type(scale) is not int or not 0 <= scale <= _SCALE_MAX:
            raise AvroSchemaError(f"expected a decimal's scale of 0 to {_SCALE_MAX}, found {scale}")
        if schema["type"] == "bytes":
            return self._add(_DECIMAL, scale=scale)
        if not 1 <= (size := _size(schema)) <= _DECIMAL_BYTES_MAX:
            raise AvroSchemaError(f"expected a decimal of 1 to {_DECIMAL_BYTES_MAX} bytes, found {size}")
        return self._add(_FIXED_DECIMAL, size=size, scale=scale, name=_full_name(schema, namespace))

    def _add(
        self, kind: int, children: list[tuple[int, bytes]] | None = None, size: int = 0, scale: int = 0, name: str = ""
    ) -> int:
        index = len(self._nodes)
        if index == _NODES_MAX:
            raise AvroSchemaError(f"the Avro schema has more than {_NODES_MAX} types")
        self._nodes.append([kind, 0, 0, size, scale])
        if name:
            self._names[name] = index
        if children:
            self._adopt(index, children)
        return index

    def _adopt(self, index: int, children: list[tuple[int, bytes]]) -> None:
        self._nodes[index][1:3] = [len(self._children), len(children)]
        for node, text in children:
            self._children.append([node, len(self._texts), len(text)])
            self._texts += text


def _full_name(schema: dict[str, Any], namespace: str) -> str:
    name, namespace = schema.get("name"), schema.get("namespace", namespace)
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise AvroSchemaError(f"expected a name of the {schema['type']}, found {str(name)[:80]}")
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _list(schema: dict[str, Any], key: str) -> list[Any]:
    found = schema.get(key)
    if not isinstance(found, list):
        raise AvroSchemaError(f"expected a list of {key}, found {str(found)[:80]}")
    return found


def _size(schema: dict[str, Any]) -> int:
    size = schema.get("size")
    if type(size) is not int or not 0 <= size < 1 << 31:
        raise AvroSchemaError(f"expected a size of fewer than 2^31 bytes, found {str(size)[:80]}")
    return size
