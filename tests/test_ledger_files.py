"""From a log to a priced statement without Kafka: rows of files into a ledger, and a provider's export against it."""

import gzip
import json
import pathlib
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import books
from tests.test_ledger import COUNTS, IDENTITY, labelled, messages, take
from tests.test_ledger_usage import run
from tokenometer.processor.ledger import decode, files, provider
from tokenometer.processor.ledger.values import LedgerError

TEAMS = [{"team": "blue"}, {"team": "red"}, {}, {"team": "blue"}]
ROWS = [labelled(labels, COUNTS, (*IDENTITY[:4], f"p.{n}")) for n, labels in enumerate(TEAMS)]
ROWS += [labelled({}, COUNTS, (*IDENTITY[:4], "p.9"), audio_input_tokens=7), books.usage_row(IDENTITY, COUNTS)]


def parquet(name: pathlib.Path, labels: str) -> None:
    """As replay writes it; labels: as a struct, a map, or dictionary-coded names beside them."""
    rows = [orjson.loads(row) for row in ROWS if row is not None]
    for row in rows:
        row["window_start"] = books.START_MS
        row["labels"] = row.get("labels", {})
        if labels == "map":
            row["labels"] = list(row["labels"].items())
    kind = pa.map_(pa.string(), pa.string()) if labels == "map" else pa.struct([("team", pa.string())])
    text = pa.dictionary(pa.int32(), pa.string()) if labels == "dictionary" else pa.string()
    fields: list[Any] = [("window_start", pa.timestamp("ms", "UTC"))]
    fields += [(name, text) for name in ("user", "model", "chip", "part")]
    fields += [("window_ms", pa.int64()), *((name, pa.uint64()) for name in (*books.COUNTERS, "total_tokens"))]
    fields += [("schema", pa.int32()), ("labels", kind), ("audio_input_tokens", pa.uint64())]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(fields)), name)


@pytest.mark.parametrize("form", ["struct", "map", "dictionary", "ndjson", "gz"])
def test_rows_of_a_file_are_those_of_the_topic_and_come_once(database: str, tmp_path: pathlib.Path, form: str) -> None:
    suffix = {"ndjson": ".ndjson", "gz": ".ndjson.gz"}.get(form, ".parquet")
    name = tmp_path / f"usage{suffix}"
    text = b"\n".join(row for row in ROWS if row is not None)
    if suffix == ".parquet":
        parquet(name, form)
    else:
        name.write_bytes(gzip.compress(text) if form == "gz" else text + b"\n")
    with books.opened(database) as store:
        assert files.load(store, str(name)).rows == len(ROWS)
        first = books.contents(store)
        assert files.load(store, str(name)).rows == len(ROWS)
        assert books.contents(store) == first and len(first["open_rows"]) == len(ROWS)
    other = tmp_path / "other.duckdb"
    with books.opened(str(other)) as store:
        take(store, ROWS)
        names = [[row.partition(", ")[2] for row in held["names"]] for held in (books.contents(store), first)]
        assert sorted(names[0]) == sorted(names[1]), "numbers aside, the same"
        assert len(books.contents(store)["open_rows"]) == len(first["open_rows"])


def test_a_file_is_read_in_batches(database: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_BATCH_ROWS", 2)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 100)
    name = tmp_path / "usage.ndjson"
    name.write_bytes(b"\n".join(row for row in ROWS if row is not None))
    with books.opened(database) as store:
        assert files.load(store, str(name)).rows == len(ROWS)
        assert store.database.rows("SELECT sum(requests) FROM usage") == [(len(ROWS),)]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.parquet", None, "none.parquet: cannot be read"),
        ("usage.csv", b"", "expected a name that ends in .parquet, .ndjson"),
        ("usage.parquet", b"PAR1", "usage.parquet: cannot be read"),
        ("usage.ndjson", ROWS[0] + b"\n{}", r"usage\.ndjson, line 2: "),
        ("usage.ndjson", ROWS[0] + b"\n\n", r"usage\.ndjson, line 2: not JSON"),
        ("usage.ndjson.gz", b"no gzip", "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_names_it(tmp_path: pathlib.Path, name: str, content: Any, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with books.opened(str(tmp_path / "ledger.duckdb")) as store, pytest.raises(LedgerError, match=words):
        files.load(store, str(tmp_path / name))


def test_a_parquet_file_of_other_columns_is_told(tmp_path: pathlib.Path) -> None:
    name = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), name)
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        with pytest.raises(decode.Malformed, match="x.parquet, rows 1 to 1: no column "):
            files.load(store, str(name))


PRICES = 'currency = "USD"\n[[price]]\nmodel = "*"\ninput = "2"\noutput = "10"\n'


def test_from_a_log_to_a_priced_statement_in_four_commands(capsys: Any, tmp_path: pathlib.Path) -> None:
    log, rows, ledger = (str(tmp_path / name) for name in ("log.ndjson", "usage.parquet", "ledger.duckdb"))
    (tmp_path / "prices.toml").write_text(PRICES)
    records = [
        {"request_id": f"r-{n}", "timestamp": "2026-11-03T12:00:00Z", "user": "alice", "model": "llama", "chip": "H100",
         "input_tokens": 1_000_000, "output_tokens": 100_000} for n in range(3)
    ]  # fmt: skip
    pathlib.Path(log).write_text("".join(json.dumps(record) + "\n" for record in records))
    code, out, err = run(capsys, "replay", log, "--out", rows)
    assert code == 0, err
    where = ["--database", ledger]
    assert run(capsys, "ledger", "load", rows, *where)[1].endswith("usage.parquet: 1 row, 1 of them new\n")
    code, out, err = run(capsys, "close", *where, "--to", "2026-12-01", "--prices", str(tmp_path / "prices.toml"))
    sums = [
        "Statement 1, lines        9 USD", "Statement 1, adjustments  0 USD", "Statement 1, corrections  0 USD",
        "Statement 1, all of it    9 USD",
    ]  # fmt: skip
    assert code == 0, err
    assert out.splitlines() == [
        "Statement 1: the first usage to 2026-12-01T00:00:00Z", *sums, "Its lines: tokenometer statement 1"
    ]  # fmt: skip
    assert run(capsys, "statement", "1", *where)[1].splitlines()[-4:] == sums
    code, out, err = run(capsys, "close", *where, "--to", "2026-12-02")
    assert code == 1 and "--without-prices" in err and out == ""
    code, out, _ = run(capsys, "statement", "1", *where, "--json")
    assert code == 0 and json.loads(out)["amount"] == "9"
    assert run(capsys, "ledger", "load", rows, *where)[1].endswith("1 row, 0 of them new\n")
    assert run(capsys, "statement", "next", *where, "--json")[1] == "", "the same file again is nothing new"


def test_files_go_beside_topics_only_if_that_is_said(capsys: Any, tmp_path: pathlib.Path) -> None:
    ledger, name = str(tmp_path / "ledger.duckdb"), tmp_path / "usage.ndjson"
    name.write_bytes(ROWS[0] or b"")
    with books.opened(ledger) as store:
        take(store, ROWS[1:2])
    code, _, err = run(capsys, "ledger", "load", str(name), "--database", ledger)
    assert code == 1 and "counted twice" in err
    assert run(capsys, "ledger", "load", str(name), "--database", ledger, "--beside-topics")[0] == 0


# --- A provider's export ---

OPENAI = """start_time,end_time,project_id,num_model_requests,model,input_tokens,output_tokens,input_cached_tokens
1795392000,1795478400,p,2,llama,200,60,80
1795392000,1795478400,q,1,gemma,5,0,0
"""
ANTHROPIC = """usage_date_utc,model_version,api_key,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,\
usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens
2026-11-23,llama,k,80,40,0,80,61
"""
LITELLM = """request_id,startTime,model,prompt_tokens,completion_tokens,total_tokens,spend
a,2026-11-23 00:00:01,llama,100,30,130,0.1
b,2026-11-23T00:00:01.5Z,llama,100,30,130,0.2
"""
CUR = """line_item_usage_start_date,line_item_usage_type,line_item_usage_amount,line_item_unblended_cost
2026-11-23T00:00:00Z,USE1-llama-input-tokens,200.0,0.1
2026-11-23T00:00:00Z,USE1-llama-output-tokens,60,0.1
2026-11-23T00:00:00Z,USE1-llama-search,3,0.1
"""


@pytest.fixture
def ledger(tmp_path: pathlib.Path) -> str:
    name = str(tmp_path / "ledger.duckdb")
    with books.opened(name) as store:
        take(store, [books.usage_row((*IDENTITY[:4], part), COUNTS) for part in ("p.1", "p.2")])
    return name


def reconciled(capsys: Any, ledger: str, text: str, *more: str) -> tuple[int, list[Any], str]:
    file = pathlib.Path(ledger).with_name("export.csv")
    file.write_text(text)
    code, out, err = run(capsys, "reconcile", str(file), "--database", ledger, "--json", *more)
    return code, [json.loads(line) for line in out.splitlines()], err


def test_exports_of_providers_are_compared_by_day_and_model(ledger: str, capsys: Any, tmp_path: pathlib.Path) -> None:
    code, found, _ = reconciled(capsys, ledger, OPENAI)
    assert code == 1
    assert [tuple(row[name] for name in ("model", "counter", "theirs", "ours", "difference")) for row in found] == [
        ("gemma", "requests", 1, 0, -1), ("gemma", "input_tokens", 5, 0, -5),
    ]  # fmt: skip
    code, found, _ = reconciled(capsys, ledger, ANTHROPIC)
    assert code == 1 and [(row["counter"], row["difference"]) for row in found] == [("output_tokens", -1)]
    assert reconciled(capsys, ledger, LITELLM)[:2] == (0, [])
    models = 'models = { "USE1-llama-*" = "llama" }\n'
    layout = tmp_path / "cur.toml"
    layout.write_text(
        'day = "line_item_usage_start_date"\nmodel = "line_item_usage_type"\n' + models + '[kinds]\n'
        'column = "line_item_usage_type"\nquantity = "line_item_usage_amount"\n'
        'of = { "*-input-tokens" = ["input_tokens"], "*-output-tokens" = ["output_tokens"] }\n'
    )  # fmt: skip
    assert reconciled(capsys, ledger, CUR, "--layout", str(layout))[:2] == (1, []), "a kind is not named"
    named = "\n".join(line for line in CUR.splitlines() if "search" not in line)
    assert reconciled(capsys, ledger, named, "--layout", str(layout))[:2] == (0, [])
    assert provider.read(str(tmp_path / "export.csv"), None).layout is provider.LAYOUTS["cur"]
    assert reconciled(capsys, ledger, LITELLM, "--user", "nobody")[0] == 1


def test_a_day_between_that_the_provider_did_not_bill_is_a_difference(ledger: str, capsys: Any) -> None:
    """Its usage in the ledger is on 2026-11-23."""
    around = OPENAI.splitlines()[0] + "\n" + "".join(f"{day},{day + 86400},p,0,llama,0,0,0\n" for day in (
        1795305600, 1795478400))  # fmt: skip
    code, found, _ = reconciled(capsys, ledger, around)
    assert code == 1
    assert [(row["day"], row["counter"], row["theirs"], row["ours"]) for row in found] == [
        ("2026-11-23", "requests", 0, 2), ("2026-11-23", "input_tokens", 0, 200),
        ("2026-11-23", "cached_input_tokens", 0, 80), ("2026-11-23", "output_tokens", 0, 60),
    ]  # fmt: skip
    before = around.splitlines()[0] + "\n" + around.splitlines()[1] + "\n"
    assert reconciled(capsys, ledger, before)[:2] == (0, []), "the export ends before it"


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2026-10-31", "2026-10-31"),
        ("1793489400", "2026-10-31"),
        ("2026-10-31T23:30:00Z", "2026-10-31"),
        ("2026-10-31 23:30:00", "2026-10-31"),
        ("2026-10-31T23:30:00-05:00", "2026-11-01"),
        ("2026-10-31 23:30:00-05:00", "2026-11-01"),
        ("2026-10-31 23:30:00-05", "2026-11-01"),  # PostgreSQL
        ("2026-10-31 23:30:00.123456+0000", "2026-10-31"),
        ("2026-11-01 00:30:00+05:30", "2026-10-31"),
        ("2026-10-31 23:30:00 UTC", "2026-10-31"),  # BigQuery
        ("2026-10-31 23:30:00 -0500", "2026-11-01"),
    ],
)
def test_a_day_is_one_of_utc_however_its_offset_is_spelled(text: str, day: str) -> None:
    assert provider._day(text, "here") == day


@pytest.mark.parametrize("text", ["", "2026-10-32", "2026-10-31 25:00:00-05", "2026-10-31 23:30:00+99:00", "tomorrow"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(provider.ExportUnreadable, match="here: .* is no day"):
        provider._day(text, "here")


def test_our_own_focus_statement_reconciles_with_the_ledger(ledger: str, capsys: Any, tmp_path: pathlib.Path) -> None:
    (tmp_path / "prices.toml").write_text(PRICES)
    where = ["--database", ledger]
    close = ["close", *where, "--to", "2026-11-24", "--anyway", "--prices", str(tmp_path / "prices.toml")]
    assert run(capsys, *close)[0] == 0
    text = run(capsys, "statement", "1", *where, "--format", "focus")[1].replace("1970-01-01T", "2026-11-23T")
    code, found, _ = reconciled(capsys, ledger, text)
    assert (code, found) == (0, [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "its columns are of none of openai, anthropic, litellm, focus, cur"),
        (OPENAI.replace("1795392000,", "yesterday,", 1), "line 2: 'yesterday' is no day"),
        (OPENAI.replace(",200,", ",2.5,"), "line 2: input_tokens is no whole number: 2.5"),
        (OPENAI.replace(",200,", ",many,"), "line 2: input_tokens is no number: 'many'"),
        (OPENAI.replace(",200,", ",NaN,"), "line 2: input_tokens is no number: 'NaN'"),
    ],
)
def test_an_export_that_cannot_be_read_names_its_line(ledger: str, capsys: Any, text: str, words: str) -> None:
    code, _, err = reconciled(capsys, ledger, text)
    assert code == 1 and words in err


@pytest.mark.parametrize("text", ["", "day = 1", 'day = "d"\nmodel = "m"\n[counters]\naudio = ["x"]', "x ="])
def test_a_layout_that_is_none_is_told(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "layout.toml").write_text(text)
    with pytest.raises(provider.ExportUnreadable, match="layout.toml: "):
        provider.layout_of(str(tmp_path / "layout.toml"))


def test_messages_and_files_share_the_reader() -> None:
    assert decode.usage_rows([messages(ROWS)]) is not None


# --- One part, one content ---


def replayed(name: pathlib.Path, counts: Any = (1, 10, 0, 0, 5, 0), labels: Any = None, user: str = "alice") -> str:
    """A file of two rows of the part november.1."""
    identity = (user, "llama", "H100", "november.1")
    rows = [labelled(labels or {}, list(counts), (books.START_MS + n * 60_000, *identity)) for n in range(2)]
    name.write_bytes(b"\n".join(rows))
    return str(name)


@pytest.mark.parametrize(
    "other",
    [
        {"user": "bob"}, {"counts": (1, 20, 0, 0, 5, 0)}, {"counts": (1, 3, 0, 0, 5, 0)}, {"labels": {"team": "blue"}},
        {"counts": (9, 10, 0, 0, 1, 0)},
    ],
    ids=["another log", "more", "less", "another mapping", "some more and some less"],
)  # fmt: skip
def test_a_part_of_other_rows_is_refused_and_nothing_of_its_file_is_taken_in(
    database: str, tmp_path: pathlib.Path, other: Any
) -> None:
    first = replayed(tmp_path / "first.ndjson")
    again = replayed(tmp_path / "again.ndjson", **other)
    with open(again, "ab") as file:  # and a part that is new
        file.write(b"\n" + labelled({}, COUNTS, (*IDENTITY[:4], "november.2")))
    with books.opened(database) as store:
        assert files.load(store, first) == (2, 2)
        before = books.contents(store)
        with pytest.raises(LedgerError, match=r"again.ndjson: the ledger has the part november\.1 already.*--run"):
            files.load(store, again)
    with books.opened(database) as store:
        assert books.contents(store) == before
        assert files.load(store, first) == (2, 0)
        assert books.contents(store) == before


def test_a_load_that_was_cut_short_is_completed(database: str, tmp_path: pathlib.Path) -> None:
    whole = tmp_path / "whole.ndjson"
    replayed(whole)
    cut = tmp_path / "cut.ndjson"
    cut.write_bytes(whole.read_bytes().split(b"\n")[0])
    with books.opened(database) as store:
        assert files.load(store, str(cut)) == (1, 1)
        assert files.load(store, str(whole)) == (2, 1)
        assert store.database.rows("SELECT sum(input_tokens) FROM usage") == [(20,)]


def test_a_part_is_compared_over_all_batches(
    database: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an identity comes twice, and its further counters in one batch only."""
    monkeypatch.setattr(files, "_BATCH_ROWS", 1)
    identity = (*IDENTITY[:4], "november.1")
    rows = [
        labelled({}, [1, 10, 0, 0, 0, 0], identity),
        labelled({}, [2, 20, 0, 0, 0, 0], identity, image_input_tokens=3),
    ]
    (tmp_path / "twice.ndjson").write_bytes(b"\n".join(rows))
    (tmp_path / "once.ndjson").write_bytes(rows[0])
    with books.opened(database) as store:
        assert files.load(store, str(tmp_path / "twice.ndjson")) == (2, 1)
        assert files.load(store, str(tmp_path / "twice.ndjson")) == (2, 0)
        with pytest.raises(LedgerError, match="november.1 already"):
            files.load(store, str(tmp_path / "once.ndjson"))


def test_a_log_is_told_from_rows(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log.ndjson"
    log.write_text('{"timestamp":"2026-11-03T12:00:00Z","user":"a","model":"m","input_tokens":1,"output_tokens":1}\n')
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        with pytest.raises(LedgerError, match="log.ndjson: this is a log, not usage rows: replay it first"):
            files.load(store, str(log))
