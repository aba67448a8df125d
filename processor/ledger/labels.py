"""Labels: named texts of a row. Their rules, and a column of them as codes of few distinct sets. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.processor.ledger.values import LABEL_NAME, LABELS_MAX, NAME_BYTES_MAX, CodedLabels, LabelSet, are_names
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

DIMENSIONS = ("user", "model", "chip")
RESERVED = frozenset((*DIMENSIONS, "part", "window_start", "window_ms", "labels", "schema", TOTAL, *COUNTERS, *FURTHER))
_CODES_END = 1 << 62


def is_name(text: str) -> bool:
    return bool(LABEL_NAME.fullmatch(text)) and text not in RESERVED


def fault(labels: Any) -> str | None:
    """What is wrong with labels of a row, if anything. A null is an absent value."""
    if not isinstance(labels, dict):
        return "labels is not an object"
    held = {name: value for name, value in labels.items() if value is not None}
    if len(held) > LABELS_MAX:
        return f"a row has at most {LABELS_MAX} labels, not {len(held)}"
    for name, value in held.items():
        if not is_name(name):
            return f"{name[:64]!r} is not a label's name"
        if not isinstance(value, str):
            return f"label {name} is not a text"
        if not 0 < len(value.encode()) <= NAME_BYTES_MAX:
            return f"label {name} has not 1 to {NAME_BYTES_MAX} bytes"
    return None


def emptiness(labels: Mapping[str, Any]) -> str | None:
    """A row without labels does not have the object."""
    return None if any(value is not None for value in labels.values()) else "labels is empty"


def is_column(kind: Any) -> bool:
    """Can a column of this type, from a file, be one of labels?"""
    return pa.types.is_struct(kind) and all(_is_text(field.type) for field in kind)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def names_of(texts: Any) -> list[bytes]:
    """Raises ArrowInvalid where one is not UTF-8: Arrow's readers of JSON and of Parquet do not look."""
    texts.validate(full=True)
    found: list[bytes] = texts.cast(pa.binary()).to_pylist()
    return found


def has_empty(column: Any) -> bool:
    """Has a row of a column of structs an object in which nothing is?"""
    held = column.is_valid()
    for field in column.type:
        held = pc.and_not(held, pc.struct_field(column, field.name).is_valid())
    return bool(pc.any(held).as_py())


def set_of(labels: Mapping[str, str]) -> LabelSet:
    """The labels in the order of their names."""
    return tuple(sorted((name.encode(), value.encode()) for name, value in labels.items()))


def coded(column: Any) -> CodedLabels:
    """Of a column of structs of texts; null is absent. No Python step for each row, nor for each set."""
    names, values, held = list[bytes](), list[list[bytes]](), []
    codes, so_far = np.zeros(len(column), np.int64), 1
    for name in sorted(field.name for field in column.type):
        text = pc.struct_field(column, name).dictionary_encode()
        if not (size := len(text.dictionary)):  # null in all rows: nobody has it
            continue
        if so_far * (size + 1) >= _CODES_END:
            distinct, codes = np.unique(codes, return_inverse=True)
            so_far = len(distinct)
        of_rows = pc.fill_null(text.indices, -1).to_numpy()
        codes = codes * (size + 1) + of_rows + 1
        so_far *= size + 1
        names.append(name.encode())
        values.append(names_of(text.dictionary))
        held.append(of_rows)
    encoded = pa.array(codes).dictionary_encode()
    indices = encoded.indices.to_numpy()
    first = np.full(len(encoded.dictionary), -1, np.int64)  # a row of each set
    first[indices[::-1]] = np.arange(len(column))[::-1]
    of_sets = np.array([of_rows[first] for of_rows in held], np.int32).reshape(len(names), len(first))
    return CodedLabels(indices, names, values, of_sets)


def checked(labels: CodedLabels) -> bool:
    """Whether these sets are as the contract says."""
    if not all(is_name(name.decode()) for name in labels.names):
        return False
    return all(map(are_names, labels.values)) and bool((labels.sizes() <= LABELS_MAX).all())
