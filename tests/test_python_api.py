"""The Python interface: the same numbers as `replay`, whatever a log comes in, and Arrow out."""

import datetime as dt
import gzip
import json
import mmap
import pathlib
import subprocess
import sys
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenometer
from tests import forked
from tokenometer.processor.files import metering, output
from tokenometer.processor.files.in_memory import LinesReader

SAMPLES = pathlib.Path(__file__).parent / "intake" / "samples"
LINES = [
    b'{"request_id":"r-%d","timestamp":1795900000000,"user":"user-%d","model":"m-%d","chip":"H100","input_tokens":%d,'
    b'"output_tokens":7}' % (n, n % 7, n % 3, n)
    for n in range(1, 500)
]
BAD = b'{"request_id":"r-x","timestamp":1795900000000,"user":"user-1","model":"m","input_tokens":-1}'
LOG = b"\n".join([*LINES, BAD, LINES[0]]) + b"\n"
TOTAL = sum(range(1, 500)) + 499 * 7


def is_right(usage: Any) -> bool:
    assert usage.usage.total_tokens == TOTAL and usage.usage.requests == 499
    assert (usage.tally.counted, usage.tally.rejected, usage.tally.duplicates) == (499, 1, 1)
    assert pa.compute.sum(usage.table["total_tokens"]).as_py() == TOTAL
    assert usage.rejects["value"].to_pylist() == [BAD] and usage.rejects["line"].to_pylist() == [500]
    return True


def test_a_path_and_several_and_compressed_ones(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log.ndjson"
    log.write_bytes(LOG)
    (tmp_path / "log.gz").write_bytes(gzip.compress(LOG))
    assert is_right(tokenometer.meter(log)) and is_right(tokenometer.meter(str(log)))
    assert is_right(tokenometer.meter([tmp_path / "log.gz"]))
    assert tokenometer.meter([log, log]).tally.duplicates == 501


def test_bytes_in_any_form(tmp_path: pathlib.Path) -> None:
    assert is_right(tokenometer.meter(LOG)) and is_right(tokenometer.meter(bytearray(LOG[:-1])))
    assert is_right(tokenometer.meter(memoryview(LOG)))
    (tmp_path / "log").write_bytes(LOG)
    with (tmp_path / "log").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert is_right(tokenometer.meter(mapped))
    array = b"[" + b",".join(LINES) + b"]"
    assert tokenometer.meter(array).usage.total_tokens == TOTAL
    assert tokenometer.meter(array, whole=True).usage.total_tokens == TOTAL
    assert len(tokenometer.meter(b"")) == 0


VALUES = [*LINES, BAD, LINES[0]]
RECORDS = [json.loads(line) for line in LINES]


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_binary(), pa.large_string(), pa.string_view()])
def test_a_column_of_values(kind: Any) -> None:
    texts = pa.array(VALUES, pa.binary()).cast(pa.string()).cast(kind)
    assert is_right(tokenometer.meter(pa.table({"anything": texts})))
    other = pa.array(range(len(VALUES)))
    assert is_right(tokenometer.meter(pa.table({"offset": other, "value": texts})))


def test_a_value_may_hold_lines_end_with_a_newline_or_be_missing() -> None:
    values = [LINES[0] + b"\n" + LINES[1], LINES[2] + b"\n", None, LINES[3]]
    tally = tokenometer.meter(pa.table({"value": pa.array(values, pa.binary())})).tally
    assert (tally.counted, tally.empty) == (4, 1)


def test_rows_of_fields_from_arrow_pandas_and_polars() -> None:
    table = pa.Table.from_pylist(RECORDS)
    import pandas
    import polars

    frames = [table, table.to_reader(), pandas.DataFrame(RECORDS), polars.DataFrame(RECORDS)]
    for frame in frames:
        usage = tokenometer.meter(frame)
        assert usage.usage.total_tokens == TOTAL and usage.tally.rejected == 0


def test_usage_goes_to_arrow_pandas_polars_and_duckdb() -> None:
    import duckdb

    usage = tokenometer.meter(LOG)
    assert pa.table(usage).equals(usage.table) and sum(map(len, usage.batches())) == len(usage)
    assert usage.to_pandas()["total_tokens"].sum() == TOTAL
    assert usage.to_polars()["total_tokens"].sum() == TOTAL
    assert duckdb.sql("SELECT sum(total_tokens) FROM usage").fetchall() == [(TOTAL,)]


def test_encoded_values_come_as_bytes_and_as_a_column() -> None:
    value = (SAMPLES / "otel.otlp_proto").read_bytes()
    for source, whole in ((value, True), (pa.table({"value": pa.array([value, value], pa.binary())}), False)):
        usage = tokenometer.meter(source, mapping="otlp", whole=whole)
        assert (usage.usage.requests, usage.usage.input_tokens, usage.usage.output_tokens) == (3, 4020, 600)


def test_a_context_lets_go_of_the_rows_and_keeps_the_sums() -> None:
    with tokenometer.meter(LOG) as usage:
        assert len(usage) == 21
    assert len(usage) == 0 and len(usage.rejects) == 0 and usage.usage.total_tokens == TOTAL
    assert repr(usage) == "<Usage of 128,243 tokens: 0 rows; 499 counted, 1 duplicates, 1 rejected>"


def test_rows_beyond_memory_go_to_a_file_and_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tokenometer.meter(LOG, run="r")
    monkeypatch.setattr(metering, "_SPOOL_BYTES", 100)
    usage = tokenometer.meter(LOG, run="r")
    assert usage.table.equals(expected.table) and usage.rejects.equals(expected.rejects)


def test_a_full_disk_is_named_with_its_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    class Full:
        def write_batch(self, batch: Any) -> None:
            raise OSError(28, "No space left on device")

    [rows] = tokenometer.meter(LOG).table.combine_chunks().to_batches()
    monkeypatch.setattr(metering, "_SPOOL_BYTES", rows.nbytes)
    monkeypatch.setattr(metering.pa.ipc, "new_file", lambda file, schema: Full())
    with metering._Spool(output.ROW_SCHEMA) as spool:
        spool.write(rows)
        with pytest.raises(tokenometer.TokenometerError, match="No space left on device.*TMPDIR"):
            spool.write(rows)


def test_the_numbers_are_those_of_the_command(tmp_path: pathlib.Path) -> None:
    log, out = tmp_path / "log.ndjson", tmp_path / "rows.parquet"
    log.write_bytes(LOG)
    command = [sys.executable, "-m", "tokenometer.processor.cli", "replay", log, "--out", out, "--run", "r"]
    forked.run(command, check=True, capture_output=True)
    assert pa.parquet.read_table(out).equals(tokenometer.meter(log, run="r").table)


def test_a_mapping_is_a_name_a_file_or_a_text(tmp_path: pathlib.Path) -> None:
    native = tokenometer.mapping("native")
    assert native.name == "native"
    text = (pathlib.Path(metering.mappings.__file__).parent / "mappings" / "native.toml").read_text()
    (tmp_path / "native.toml").write_text(text)
    for one in (native, tmp_path / "native.toml", text):
        assert is_right(tokenometer.meter(LOG, mapping=one))
    with pytest.raises(tokenometer.TokenometerError, match="expected a .toml file or the name"):
        tokenometer.mapping("nativ")


def test_wrong_arguments_are_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(tokenometer.TokenometerError, match="no such file"):
        tokenometer.meter(tmp_path / "missing.ndjson")
    for source in (7, [7], {"a": 1}, None):
        with pytest.raises(TypeError, match="expected a path, a list of paths, bytes, or a table"):
            tokenometer.meter(source)
    for window in (0, 86_401):
        with pytest.raises(ValueError, match="expected 1 to 86,400 seconds"):
            tokenometer.meter(LOG, window=window)


def test_times_before_the_bound_are_rejects() -> None:
    usage = tokenometer.meter(LOG, not_before=dt.date(2027, 1, 1))
    assert usage.tally.counted == 0 and set(usage.rejects["reason"].to_pylist()) >= {"past_timestamp"}


def test_an_import_loads_no_engine() -> None:
    code = "import sys, tokenometer; assert 'numpy' not in sys.modules; assert 'meter' in dir(tokenometer)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'metre'"):
        tokenometer.metre  # noqa: B018


@given(
    blocks=st.lists(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"x")), min_size=1), max_size=8),
    space=st.integers(min_value=22, max_value=200),
)
@settings(max_examples=200)
def test_lines_come_out_as_they_went_in_whatever_the_cut(blocks: list[list[bytes]], space: int) -> None:
    datas = [b"\n".join(lines) for lines in blocks]
    datas = [data for data in datas if data]
    reader, room, got = LinesReader("x", datas), metering.in_memory.np.zeros(space, "u1"), b""
    while chunk := reader.fill(room):
        assert chunk.offset == len(got) and room[chunk.length - 1] == 0x0A
        got += room[: chunk.length].tobytes()
    assert got == b"".join(data if data.endswith(b"\n") else data + b"\n" for data in datas)
