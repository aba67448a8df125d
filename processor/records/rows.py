"""Usage rows as columns and as JSON lines, as Arrow sees them: no Python step for each row.

A row's JSON has the fields of schemas/usage.schema.json. What identifies it comes first, so that a message's key is the
beginning of its value.
"""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.kernels.layout import PLACE_BITS
from tokenometer.kernels.values import PLACE_MASK, UsageRows
from tokenometer.schemas.usage import COUNTERS, FURTHER, ROW_SCHEMA_VERSION, TOTAL, total_of


def usage_counters(table: Any) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
    """The counters and the total. No sum can overflow: the engine bounds it (Engine._counters_have_room)."""
    columns = list(np.ascontiguousarray(table["counters"].T))
    return [*columns, total_of(columns)]


def usage_lines(rows: UsageRows, part: str) -> Any:
    """JSON lines, one for each row."""
    texts = usage_texts(rows, usage_identities(rows, part), end="\n")
    ends = np.frombuffer(texts.buffers()[1], np.int32)
    return memoryview(texts.buffers()[2])[: int(ends[len(rows)])]


def usage_identities(rows: UsageRows, part: str) -> Any:
    """The beginning of each row's JSON, which identifies it: constants and columns, joined by Arrow."""
    table = rows.table
    windows, window_of = np.unique(table["window"], return_inverse=True)
    times = np.datetime_as_string((windows * np.uint64(rows.window_ms)).astype("datetime64[ms]"), unit="s")
    heads = pa.array([f'{{"window_start":"{time}Z","user":' for time in times.tolist()])
    models, chips = (Names(table[name], rows.arena) for name in ("model", "chip"))
    return pc.binary_join_element_wise(
        heads.take(pa.array(window_of)),
        Names(table["user"], rows.arena).json_column(),
        models.json_column(',"model":', ""),
        chips.json_column(',"chip":', ""),
        *_label_texts(rows),
        f',"part":{orjson.dumps(part).decode()}',
        "",
    )


def usage_texts(rows: UsageRows, identities: Any, end: str = "") -> Any:
    """Each row's whole JSON."""
    parts = [identities, f',"window_ms":{rows.window_ms}']
    for name, values in zip((*COUNTERS, TOTAL), usage_counters(rows.table), strict=True):
        parts += [f',"{name}":', pc.cast(pa.array(values), pa.string())]
    parts += _further_texts(rows)
    return pc.binary_join_element_wise(*parts, f',"schema":{ROW_SCHEMA_VERSION}}}{end}', "")


def _further_texts(rows: UsageRows) -> list[Any]:
    """Of each further counter that a row has: its name and its value, empty where it is 0."""
    if rows.extras is None:
        return []
    found = []
    for name, values in zip(FURTHER, np.ascontiguousarray(rows.extras["further"].T), strict=True):
        if values.any():
            texts = pc.binary_join_element_wise(f',"{name}":', pc.cast(pa.array(values), pa.string()), "")
            found.append(pc.if_else(pa.array(values > 0), texts, ""))
    return found


# --- Labels ---


def _label_columns(rows: UsageRows) -> list[tuple[Any, Any, Any]]:
    """Of each place of a label, as far as rows have labels: which rows have it, the names' numbers, the values."""
    if rows.extras is None:
        return []
    columns = np.ascontiguousarray(rows.extras["labels"].T)
    return [
        (column > 0, (column >> np.uint64(PLACE_BITS)).astype(np.int64), Names(column & PLACE_MASK, rows.arena))
        for column in columns
        if column.any()
    ]


def _label_texts(rows: UsageRows) -> list[Any]:
    """The pieces of `,"labels":{...}`, empty for a row without labels."""
    found: list[Any] = []
    names = [f'"{name}":' for name in rows.label_names]
    for there, numbers, values in _label_columns(rows):
        before = "," if found else ',"labels":{'
        names_here = pa.array([before + name for name in names]).take(pa.array(numbers))
        texts = pc.binary_join_element_wise(names_here, values.json_column(), "")
        found.append(pc.if_else(pa.array(there), texts, ""))
    if found:
        assert rows.extras is not None
        found.append(pc.if_else(pa.array(rows.extras["labels"][:, 0] > 0), "}", ""))
    return found


def label_maps(rows: UsageRows) -> Any:
    """Each row's labels as a map of Arrow, empty for a row without."""
    columns = _label_columns(rows)
    counts = np.zeros(len(rows), np.int32)
    for there, _, _ in columns:
        counts += there
    offsets = np.concatenate((np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)))
    keys = pa.array([], pa.string())
    values = keys
    if columns:
        # Column by column, and then in the order of rows.
        rows_of = np.concatenate([np.flatnonzero(there) for there, _, _ in columns])
        order = pa.array(np.argsort(rows_of, kind="stable"))
        numbers = np.concatenate([numbers[there] for there, numbers, _ in columns])
        keys = pa.array(rows.label_names).take(pa.array(numbers)).take(order)
        texts = [text.column().filter(pa.array(there)) for there, _, text in columns]
        values = pa.concat_arrays(texts).take(order)
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values)


class Names:
    """A column of names, places in an arena; each distinct one is looked at once."""

    def __init__(self, places: Any, arena: Any) -> None:
        encoded = pa.array(np.ascontiguousarray(places)).dictionary_encode()
        distinct, self._index = encoded.dictionary.to_numpy(), encoded.indices
        lengths = (distinct & np.uint64(0xFFFF)).astype(np.int64)
        ends = np.cumsum(lengths)
        # Byte i of all names together is at i - (where its name begins here) + (where it begins in the arena).
        shift = (distinct >> np.uint64(16)).astype(np.int64) - (ends - lengths)
        self._bytes = arena[np.arange(int(ends[-1])) + np.repeat(shift, lengths)] if len(ends) else arena[:0]
        self._ends = np.concatenate((np.zeros(1, np.int32), ends.astype(np.int32)))

    def _distinct(self) -> Any:
        data = np.ascontiguousarray(self._bytes)
        return pa.StringArray.from_buffers(len(self._ends) - 1, pa.py_buffer(self._ends), pa.py_buffer(data))

    def column(self) -> Any:
        return self._distinct().take(self._index)

    def json_column(self, before: str = "", after: str = "") -> Any:
        """Each name as a JSON string, with constants around it."""
        names = self._distinct()
        if _needs_escapes(self._bytes):
            names, quote = pa.array([orjson.dumps(name).decode() for name in names.to_pylist()], pa.string()), ""
        else:
            quote = '"'
        texts = pc.binary_join_element_wise(before + quote, names, quote + after, "")
        return texts.take(self._index)


def _needs_escapes(data: Any) -> bool:
    return bool(((data < 0x20) | (data == 0x22) | (data == 0x5C)).any())
