"""Files whose values are no plain lines, in `replay`: keys, headers, and dead letters of large values."""

import datetime
from decimal import Decimal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tokenometer
from tests import harness
from tokenometer.processor.files import decoded
from tokenometer.processor.files.logs import LogError
from tokenometer.processor.files.replay import Outlets, PlacedLetter, replay
from tokenometer.processor.intake import Decoder
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping import MappingError
from tokenometer.schemas.value import PLAIN

NATIVE = (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2")


@pytest.mark.parametrize("source", ["key = true", 'header = "ce_subject"'])
def test_a_file_has_neither_keys_nor_headers(source) -> None:
    mapping = mappings.parse(NATIVE.replace('path = "user"', source), "mine.toml")
    with pytest.raises(
        MappingError, match="mine.toml: fields.user reads the message's key or a header, and a file has"
    ):
        decoded.decoder_of(mapping)()
    either = mappings.parse(NATIVE.replace('path = "user"', f'{source}\naliases = ["user"]'), "mine.toml")
    assert decoded.decoder_of(either)()


def test_dead_letters_hold_copies_of_a_value_up_to_1_MiB(make_engine, tmp_path) -> None:
    bad = [orjson.dumps({"request_id": f"r-{number}", "pad": "x" * 5000}) for number in range(30)]
    (tmp_path / "array.json").write_bytes(b"[" + b",".join(bad) + b"]")
    mapping, letters = mappings.resolve("native"), list[PlacedLetter]()
    reader = decoded.reader_of([str(tmp_path / "array.json")], mapping.value, lambda: Decoder(mapping.value))
    replay(make_engine(**harness.LARGE), reader.fill, mapping, "test", Outlets(letters=letters.extend))
    assert [letter.record for letter in letters] == list(range(30))
    copies = [letter.value for letter in letters if letter.value is not None]
    assert len(copies) == 6 and set(copies) == {(tmp_path / "array.json").read_bytes()}


def rows_of(tmp_path, text: bytes) -> list[dict[str, str]]:
    (tmp_path / "log.csv").write_bytes(text)
    reader = decoded._file_values(str(tmp_path / "log.csv"), PLAIN, whole=False)
    return [orjson.loads(value.data) for value in reader]


@pytest.mark.parametrize("header", [b"user,in", b'"user","in"', b"\xef\xbb\xbfuser,in", b'\xef\xbb\xbf"user","in"'])
def test_a_csv_file_may_have_quoted_headers_and_a_byte_order_mark(header, tmp_path) -> None:
    assert rows_of(tmp_path, header + b"\r\n007,5\r\n") == [{"user": "007", "in": "5"}]
    assert not decoded.is_plain(str(tmp_path / "log.csv"))


def test_cells_that_are_numbers_are_counts_and_times_and_a_user_keeps_its_zeros(make_engine, tmp_path) -> None:
    """`native` takes no text for a count; a cell has no type."""
    header = b"request_id,timestamp,user,model,chip,input_tokens,cached_input_tokens,output_tokens\n"
    rows = [b"a,1795453500123,007,m,H100,20,5,3\n", b"b,1795453500123,007,m,H100,12.5,,3\n"]
    (tmp_path / "log.csv").write_bytes(header + b"".join(rows))
    names, native = [str(tmp_path / "log.csv")], mappings.resolve("native")
    mapping = decoded.read_as(native, names)
    reader = decoded.reader_of(names, mapping.value, decoded.decoder_of(mapping))
    letters = list[PlacedLetter]()
    summary = replay(make_engine(**harness.LARGE), reader.fill, mapping, "test", Outlets(letters=letters.extend))
    assert (summary.usage[:5], summary.top_users) == ((1, 20, 5, 0, 3), [("007", 23)])
    assert [(letter.reason, letter.field) for letter in letters] == [("bad_count", "input_tokens")]
    (tmp_path / "log.ndjson").write_bytes(b"{}\n")
    assert decoded.read_as(native, [str(tmp_path / "log.ndjson")]) is native


def test_a_column_that_is_there_twice_is_an_error_that_names_it(tmp_path) -> None:
    with pytest.raises(LogError, match="log.csv: the column in is there twice"):
        rows_of(tmp_path, b"user,in,in\nu,1,2\n")


# --- Tables whose columns have other types than JSON ---

USUAL = {"request_id": ["a", "b"], "timestamp": [1795453500123] * 2, "user": ["alice", "bob"], "model": ["m", "m"],
         "chip": ["H100", "H100"], "input_tokens": [10, 20], "output_tokens": [3, 4]}  # fmt: skip


def table(**columns) -> pa.Table:
    return pa.table(USUAL | columns)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(5), pa.binary_view()])
@pytest.mark.parametrize("written", [False, True])
def test_texts_that_are_stored_as_bytes_are_texts(kind, written, tmp_path) -> None:
    log: object = table(user=pa.array([b"alice", "bobü".encode()], kind))
    if written:
        if kind == pa.binary_view():
            pytest.skip("pyarrow writes no such column")
        pq.write_table(log, tmp_path / "log.parquet")
        log = str(tmp_path / "log.parquet")
    usage = tokenometer.meter(log)
    assert sorted(usage.table["user"].to_pylist()) == ["alice", "bobü"] and usage.rejects.num_rows == 0


def test_bytes_that_are_no_text_are_no_name() -> None:
    usage = tokenometer.meter(table(user=pa.array([b"alice", b"\xff\xfe"], pa.binary())))
    assert usage.table["user"].to_pylist() == ["alice"]
    assert usage.rejects.select(["reason", "field"]).to_pylist() == [{"reason": "wrong_type", "field": "user"}]
    assert tokenometer.meter(table(image=pa.array([b"\xff", None], pa.binary()))).rejects.num_rows == 0


def test_decimals_are_numbers_to_the_last_digit() -> None:
    counts = [Decimal("1099511627775"), Decimal("20.5")]
    usage = tokenometer.meter(table(input_tokens=pa.array(counts, pa.decimal128(20, 1))))
    assert usage.rejects.select(["reason", "field"]).to_pylist() == [{"reason": "wrong_type", "field": "input_tokens"}]
    assert usage.table["input_tokens"].to_pylist() == [1099511627775]
    rows = decoded.object_rows("log", table(cost=pa.array([Decimal("0.1"), None], pa.decimal128(30, 25))).to_batches())
    assert [value.data.partition(b'"cost":')[2] for value in rows] == [b"0.1000000000000000000000000}", b"null}"]
    whole = tokenometer.meter(table(input_tokens=pa.array([Decimal(10), Decimal(20)], pa.decimal128(20, 0))))
    assert whole.table["input_tokens"].to_pylist() == [10, 20]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("us", "UTC"), pa.timestamp("ns", "UTC"), pa.timestamp("ms", "Asia/Tokyo")]
)
def test_times_of_a_table_are_times(kind) -> None:
    moments = [datetime.datetime(2026, 11, 23, 12, minute, 59, 123000, datetime.UTC) for minute in (5, 6)]
    usage = tokenometer.meter(table(timestamp=pa.array(moments, kind)))
    assert [row.minute for row in usage.table["window_start"].to_pylist()] == [5, 6]


def test_two_columns_of_one_name_are_an_error_that_names_it(tmp_path) -> None:
    twice = table().append_column("user", pa.array(["x", "y"]))
    with pytest.raises(tokenometer.TokenometerError, match="the column user is there twice"):
        tokenometer.meter(twice)
    pq.write_table(twice, tmp_path / "log.parquet")
    with pytest.raises(tokenometer.TokenometerError, match="log.parquet: the column user is there twice"):
        tokenometer.meter(str(tmp_path / "log.parquet"))
