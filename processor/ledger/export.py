"""Answers as files: CSV, JSON lines, Parquet. What is a number there is the exact one; money is a decimal."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.files import output
from tokenometer.processor.ledger.usage import DIMENSIONS
from tokenometer.processor.ledger.values import BadRequest, LedgerError
from tokenometer.schemas.usage import COUNTERS, TOTAL

_COUNTS = (*COUNTERS, TOTAL, "unpriced_tokens", "uncosted_tokens")
_MONEY = ("revenue", "chip_cost")
_MONEY_TYPE = pa.decimal128(38, 18)  # a price has twelve digits behind the point, and is for a million
# What a spreadsheet takes for the beginning of a formula, in the wide forms of East Asian keyboards too.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], header: bool = True) -> str:
    """RFC 4180. A name that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(name, row[name]) for name in columns] for row in rows)
    return text.getvalue()


def _cell(column: str, value: Any) -> Any:
    if column in DIMENSIONS and _is_formula(value):
        return f"'{value}"
    return "" if value is None else value


def _is_formula(value: str) -> bool:
    """Also behind white space and invisible characters, which a spreadsheet may drop."""
    seen = next((place for place, c in enumerate(value) if c.isprintable() and not c.isspace()), len(value))
    return value[seen:].startswith(_FORMULA) or value.startswith(("\t", "\r", "\n"))


def columns_of(query: Mapping[str, Any]) -> list[str]:
    """Of the rows of an answer (usage.as_json)."""
    money = ("revenue", "unpriced_tokens", "chip_cost", "uncosted_tokens") if "currency" in query else ()
    return ["begin", "end", *query["group_by"], *COUNTERS, TOTAL, *money]


def write(pages: Iterable[Sequence[Mapping[str, Any]]], columns: Sequence[str], name: str, force: bool) -> int:
    """To a file whose suffix names the format; it is there as a whole or not at all. How many rows."""
    count = 0
    if name.endswith((".csv", ".csv.gz", ".csv.zst")):
        with output.create(name, force) as file:
            for number, rows in enumerate(pages):
                file.write(csv_text(rows, columns, header=number == 0).encode())
                count += len(rows)
    elif name.endswith((".ndjson", ".jsonl", ".ndjson.gz", ".ndjson.zst")):
        with output.create(name, force) as file:
            for rows in pages:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                count += len(rows)
    elif name.endswith(".parquet"):
        schema = _schema(columns)
        with output.create(name, force) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in pages:
                writer.write_table(_table(rows, schema))
                count += len(rows)
    else:
        raise BadRequest(f"{name}: expected a name that ends in .csv, .ndjson, .jsonl or .parquet")
    return count


def _schema(columns: Sequence[str]) -> Any:
    def kind(name: str) -> Any:
        return pa.uint64() if name in _COUNTS else _MONEY_TYPE if name in _MONEY else pa.string()

    return pa.schema([(name, kind(name)) for name in columns])


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    def value(name: str, given: Any) -> Any:
        return Decimal(given) if name in _MONEY and given is not None else given

    try:
        plain = [{name: value(name, row[name]) for name in schema.names} for row in rows]
        return pa.Table.from_pylist(plain, schema)
    except (OverflowError, pa.ArrowInvalid) as error:
        raise LedgerError(f"a sum does not fit into a column of Parquet; write CSV or JSON: {error}") from None
