"""Usage rows as columns and as JSON lines, made by Arrow without a Python step for each row.

A row's JSON has the fields of schemas/usage.schema.json. What identifies a row comes first, so that a message's key is
the beginning of its value.
"""

from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.kernels.values import UsageRows
from tokenometer.schemas.usage import COUNTERS, SCHEMA_VERSION, TOTAL, total_of


def usage_counters(table: Any) -> list[np.ndarray[Any, np.dtype[np.uint64]]]:
    """The counters and the total. No sum can overflow: the engine bounds it (Engine._counters_have_room)."""
    columns = list(np.ascontiguousarray(table["counters"].T))
    return [*columns, total_of(columns)]


def usage_lines(table: Any, rows: UsageRows, part: str) -> Any:
    """JSON lines, one for each row."""
    texts = usage_texts(table, rows, usage_identities(table, rows, part), end="\n")
    ends = np.frombuffer(texts.buffers()[1], np.int32)
    return memoryview(texts.buffers()[2])[: int(ends[len(table)])]


def usage_identities(table: Any, rows: UsageRows, part: str) -> Any:
    """The beginning of each row's JSON, which identifies it: constants and columns, joined by Arrow."""
    windows, window_of = np.unique(table["window"], return_inverse=True)
    times = np.datetime_as_string((windows * np.uint64(rows.window_ms)).astype("datetime64[ms]"), unit="s")
    heads = pa.array([f'{{"window_start":"{time}Z","user":' for time in times.tolist()])
    models, chips = (Names(table[name], rows.arena) for name in ("model", "chip"))
    return pc.binary_join_element_wise(
        heads.take(pa.array(window_of)),
        Names(table["user"], rows.arena).json_column(),
        models.json_column(',"model":', ""),
        chips.json_column(',"chip":', f',"part":{orjson.dumps(part).decode()}'),
        "",
    )


def usage_texts(table: Any, rows: UsageRows, identities: Any, end: str = "") -> Any:
    """Each row's whole JSON."""
    parts = [identities, f',"window_ms":{rows.window_ms}']
    for name, values in zip((*COUNTERS, TOTAL), usage_counters(table), strict=True):
        parts += [f',"{name}":', pc.cast(pa.array(values), pa.string())]
    return pc.binary_join_element_wise(*parts, f',"schema":{SCHEMA_VERSION}}}{end}', "")


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
