"""Files of results: NDJSON and Parquet say the same, rows obey their schema, a file that has its name is complete."""

import base64
import dataclasses
import gzip
import pathlib
import stat
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.test_schemas import validator
from tokenometer.kernels import layout
from tokenometer.kernels.values import UsageRows
from tokenometer.processor import create
from tokenometer.processor.create import OutputError
from tokenometer.processor.files import output
from tokenometer.processor.files.replay import PlacedLetter
from tokenometer.schemas import mapping
from tokenometer.schemas.usage import FURTHER

COUNTER_MAX = (1 << 64) - 1
NAMES = ["u", "user-000017", 'quote " and \\ slash', "tab\tnewline\nnul\x00", "é€😀", "x" * 256, "\u2028", "</script>"]
READERS: dict[str, Any] = {
    ".ndjson": lambda data: data,
    ".jsonl": lambda data: data,
    ".ndjson.gz": gzip.decompress,
    ".ndjson.zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
}


def usage_rows(
    keys: list[tuple[int, str, str, str]],
    counters: list[list[int]],
    window_ms: int = 60_000,
    labels: list[dict[str, str]] | None = None,
    further: list[list[int]] | None = None,
) -> UsageRows:
    """Rows as the engine exports them: names lie anywhere in an arena, in one that holds other things too. labels and
    further counters: row by row, if any row has such."""
    arena, place_of = bytearray(b"before"), {}
    given = {text for row in labels or [] for text in row.values()}
    for name in sorted(given.union(*(key[1:] for key in keys))):
        text = name.encode()
        place_of[name] = len(arena) << 16 | len(text)
        arena += text + b"\xff\xff"
    table = np.zeros(len(keys), layout.USAGE_ROW)
    for row, (start, *names) in enumerate(keys):
        places = [place_of[name] for name in names]
        table[row] = (start // window_ms, *places, counters[row])
    rows = UsageRows(table, np.frombuffer(bytes(arena), np.uint8), window_ms)
    if labels is None and further is None:
        return rows
    extras = np.zeros(len(keys), layout.USAGE_EXTRA)
    label_names = sorted({name for row in labels or [] for name in row}, reverse=True)  # numbers come as mappings do
    for out, row in zip(extras, labels or [], strict=False):
        for k, name in enumerate(sorted(row)):
            out["labels"][k] = label_names.index(name) << layout.PLACE_BITS | place_of[row[name]]
    if further:
        extras["further"] = further
    return dataclasses.replace(rows, extras=extras, label_names=tuple(label_names))


LABELS = ["team", "service_tier", "api_key", "context", "a", "region", "l" * 63, "z9"]
WITH_LABELS = mapping.parse(
    (pathlib.Path(mapping.__file__).parent / "mappings" / "native.toml").read_text().replace("format = 1", "format = 2")
    + "".join(f'[fields.{name}]\npath = "{name}"\n' for name in FURTHER)
    + "".join(f'[labels.{name}]\npath = "{name[:48]}"\n' for name in LABELS),
    "labels.toml",
)


def labelled_rows(count: int = 500, seed: int = 1) -> UsageRows:
    """A third of them has neither labels nor further counters."""
    draw = np.random.default_rng(seed)
    keys = [(60_000 * int(draw.integers(1 << 31)), *map(str, draw.choice(NAMES, 3))) for _ in range(count)]
    counters = [[int(n) for n in draw.integers(0, 1 << 63, 6, np.uint64)] for _ in range(count)]
    labels = [
        {str(name): str(draw.choice(NAMES)) for name in draw.choice(LABELS, draw.integers(0, 9), replace=False)}
        if draw.random() < 0.7
        else {}
        for _ in range(count)
    ]
    further = [
        [int(n) if draw.random() < 0.3 else 0 for n in draw.integers(0, 1 << 64, 5, np.uint64)] for _ in range(count)
    ]
    return usage_rows(keys, counters, labels=labels, further=further)


def some_rows(count: int = 500, names: list[str] = NAMES, seed: int = 1) -> UsageRows:
    draw = np.random.default_rng(seed)
    keys = [
        (60_000 * int(draw.integers(1 << 31)), *(str(name) for name in draw.choice(names, 3))) for _ in range(count)
    ]
    counters = [[int(n) for n in draw.integers(0, 1 << 63, 6, np.uint64)] for _ in range(count)]
    return usage_rows(keys, counters)


def write(path: pathlib.Path, *parts: UsageRows, mapping: mapping.Mapping | None = None) -> pathlib.Path:
    with output.open_rows(str(path), mapping) as writer:
        for number, rows in enumerate(parts, 1):
            writer.write(rows, f"run-part-{number}")
    return path


def expected(rows: UsageRows, part: str) -> list[dict[str, Any]]:
    """The slow and plain way."""
    texts = zip(rows.texts("user"), rows.texts("model"), rows.texts("chip"), strict=True)
    beside = zip(rows.labels(), rows.further(), strict=True)
    found = []
    for (user, model, chip), (labels, further), row in zip(texts, beside, rows.table, strict=True):
        start = np.datetime64(int(row["window"]) * rows.window_ms, "ms")
        counters = dict(zip(output.COUNTERS, row["counters"].tolist(), strict=True))
        found.append(
            {"window_start": f"{np.datetime_as_string(start, unit='s')}Z", "user": user, "model": model, "chip": chip}
            | ({"labels": labels} if labels else {})
            | {"part": part, "window_ms": rows.window_ms, **counters}
            | {"total_tokens": counters["input_tokens"] + counters["output_tokens"]}
            | {name: count for name, count in zip(FURTHER, further, strict=True) if count}
            | {"schema": 2}
        )
    return found


def read_parquet(path: pathlib.Path) -> list[dict[str, Any]]:
    rows = pq.read_table(path).to_pylist()
    return [row | {"window_start": row["window_start"].strftime("%Y-%m-%dT%H:%M:%SZ")} for row in rows]


def read_ndjson(path: pathlib.Path) -> list[dict[str, Any]]:
    suffix = "".join(path.suffixes)
    return [orjson.loads(line) for line in READERS[suffix](path.read_bytes()).splitlines()]


# Usage rows


@pytest.mark.parametrize("suffix", READERS)
def test_ndjson_has_every_row(tmp_path: pathlib.Path, suffix: str):
    rows, more = some_rows(), some_rows(3, seed=2)
    path = write(tmp_path / f"usage{suffix}", rows, more)
    assert read_ndjson(path) == expected(rows, "run-part-1") + expected(more, "run-part-2")


def test_parquet_has_the_same_rows_as_ndjson(tmp_path: pathlib.Path):
    parts = some_rows(), some_rows(700, seed=2)
    parquet, ndjson = write(tmp_path / "usage.parquet", *parts), write(tmp_path / "usage.ndjson", *parts)
    assert read_parquet(parquet) == read_ndjson(ndjson)
    assert pq.read_schema(parquet).remove_metadata() == output.ROW_SCHEMA
    assert pq.read_schema(parquet).field("window_start").type == pa.timestamp("ms", "UTC")


def test_rows_obey_the_schema(tmp_path: pathlib.Path):
    for rows in (some_rows(), labelled_rows()):
        for row in read_ndjson(write(tmp_path / "usage.ndjson", rows)):
            validator("usage").validate(row)
        (tmp_path / "usage.ndjson").unlink()


def test_labels_and_further_counters_are_in_both_formats(tmp_path: pathlib.Path):
    parts = labelled_rows(), some_rows(3), labelled_rows(700, seed=2)
    wanted = [row for number, rows in enumerate(parts, 1) for row in expected(rows, f"run-part-{number}")]
    assert read_ndjson(write(tmp_path / "usage.ndjson", *parts)) == wanted
    parquet = write(tmp_path / "usage.parquet", *parts, mapping=WITH_LABELS)
    assert pq.read_schema(parquet).remove_metadata() == output.row_schema(WITH_LABELS)
    read = [row | {"labels": dict(row["labels"])} for row in read_parquet(parquet)]
    assert [list(row["labels"]) for row in read] == [sorted(row.get("labels", {})) for row in wanted], "in their order"
    assert read == [{"labels": {}} | dict.fromkeys(FURTHER, 0) | row for row in wanted]


def test_a_parquet_file_has_the_columns_of_its_mapping():
    assert output.row_schema(None) == output.ROW_SCHEMA
    names = output.row_schema(WITH_LABELS).names
    assert [name for name in names if name not in output.ROW_SCHEMA.names] == ["labels", *FURTHER]
    assert names.index("labels") == names.index("chip") + 1 and names[-1] == "schema"


@pytest.mark.parametrize("suffix", [".ndjson", ".parquet"])
def test_slices_join_without_a_seam(tmp_path: pathlib.Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(output, "_SLICE_ROWS", 7)
    monkeypatch.setattr(output, "_GROUP_SLICES", 3)
    rows = some_rows(100)
    path = write(tmp_path / f"usage{suffix}", rows)
    assert (read_parquet if suffix == ".parquet" else read_ndjson)(path) == expected(rows, "run-part-1")


@pytest.mark.parametrize("suffix", [".ndjson", ".parquet"])
@pytest.mark.parametrize(
    ("start", "counters"),
    [
        (0, [0] * 6),
        (253_402_300_740_000, [COUNTER_MAX, COUNTER_MAX, 0, 0, 0, 0]),
        (60_000, [1, 0, 0, 0, COUNTER_MAX, COUNTER_MAX]),
    ],
)
def test_limits(tmp_path: pathlib.Path, suffix: str, start: int, counters: list[int]):
    rows = usage_rows([(start, "u", "m", "c")], [counters])
    path = write(tmp_path / f"usage{suffix}", rows)
    found = (read_parquet if suffix == ".parquet" else read_ndjson)(path)
    assert found == expected(rows, "run-part-1")
    validator("usage").validate(found[0])


@pytest.mark.parametrize("suffix", [".ndjson", ".parquet"])
def test_no_rows_are_an_empty_file_of_the_format(tmp_path: pathlib.Path, suffix: str):
    for number, parts in enumerate(([], [some_rows(0)])):
        path = write(tmp_path / f"usage{number}{suffix}", *parts)
        assert (read_parquet if suffix == ".parquet" else read_ndjson)(path) == []


@pytest.mark.parametrize("name", ["usage", "usage.csv", "usage.parquet.gz", "usage.zst"])
def test_other_formats_are_refused(tmp_path: pathlib.Path, name: str):
    with pytest.raises(OutputError, match=r"expected a name that ends in \.parquet, \.ndjson"):
        write(tmp_path / name, some_rows(1))
    assert list(tmp_path.iterdir()) == []


# Dead letters


def test_a_dead_letter_keeps_every_byte(tmp_path: pathlib.Path):
    values = [
        b"{}",
        b"",
        b'say "\\u0041"\t\x00',
        "é😀".encode(),
        b"\xff\xfe",
        b"half \xc3",
        b"\xed\xa0\x80",
        bytes(range(256)),
    ]
    path = tmp_path / "rejected.ndjson"
    with output.open_letters(str(path)) as writer:
        for number, value in enumerate(values):
            field = "user" if number % 2 else None
            writer.write([PlacedLetter("a log", number + 1, 10 * number, "invalid_json", field, value)])
        writer.write([])
    letters = read_ndjson(path)
    assert [
        base64.b64decode(x["value_base64"]) if "value_base64" in x else x["value"].encode() for x in letters
    ] == values
    assert [x["line"] for x in letters] == list(range(1, len(values) + 1))
    assert letters[1] == {
        "reason": "invalid_json",
        "field": "user",
        "file": "a log",
        "line": 2,
        "offset": 10,
        "value": "",
    }
    assert letters[4]["field"] is None and "value" not in letters[4]


# Files


def test_a_file_takes_its_name_when_it_is_complete(tmp_path: pathlib.Path):
    path = tmp_path / "log.ndjson"
    with create.create(str(path)) as file:
        file.write(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["usage.parquet", "usage.ndjson", "usage.ndjson.zst"])
def test_a_failure_leaves_what_was_there(tmp_path: pathlib.Path, name: str):
    path = tmp_path / name
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), output.open_rows(str(path), force=True) as writer:
        writer.write(some_rows(), "run-part-1")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_replaced_without_force(tmp_path: pathlib.Path):
    path = tmp_path / "log.ndjson"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=r"log\.ndjson: exists; use --force to replace it"), create.create(str(path)):
        pass
    with create.create(str(path), force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_places_that_take_no_file_are_named_at_once(tmp_path: pathlib.Path):
    with pytest.raises(OutputError, match="is a directory"):
        create.check_free(str(tmp_path), force=True)
    with pytest.raises(OutputError, match="there is no directory"):
        create.check_free(str(tmp_path / "none" / "usage.parquet"), force=True)


def test_devices_are_written_directly():
    with create.create("/dev/null") as file:
        file.write(b"gone")
