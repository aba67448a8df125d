"""Writes answers as files: CSV, JSON lines, Parquet. Numbers are exact, and money is a decimal."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tokenometer.processor.create import create
from tokenometer.processor.ledger.values import BadArgument, LedgerError
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

_COUNTS = (*COUNTERS, TOTAL, *FURTHER, "unpriced_tokens", "uncosted_tokens", "price_line")
# Decimals: of ours, and of FOCUS.
_MONEY = (
    "revenue", "chip_cost", "amount", "BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "ListUnitPrice",
    "ContractedUnitPrice", "PricingQuantity", "ConsumedQuantity",
)  # fmt: skip
_CSV, _PARQUET = (".csv", ".csv.gz", ".csv.zst"), ".parquet"
_NDJSON = (".ndjson", ".jsonl", ".ndjson.gz", ".ndjson.zst")
_MONEY_TYPE = pa.decimal128(38, 18)  # a price has twelve digits after the point, and is for a million
# What a spreadsheet takes for the beginning of a formula, in the wide forms of East Asian keyboards too.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], header: bool = True) -> str:
    """RFC 4180. A name that a spreadsheet would take for a formula begins with an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(columns)
    writer.writerows([_cell(name, value(name, row)) for name in columns] for row in rows)
    return text.getvalue()


def value(column: str, row: Mapping[str, Any]) -> Any:
    """The value of a column. A further counter that a row does not name is 0."""
    return row.get(column, 0) if column in FURTHER else row.get(column)


def _cell(column: str, value: Any) -> Any:
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and column not in _MONEY and _is_formula(value):
        return f"'{value}"
    return "" if value is None else value


def _is_formula(value: str) -> bool:
    """Whether it begins a formula, also after white space and invisible characters, which a spreadsheet may drop."""
    seen = next((place for place, c in enumerate(value) if c.isprintable() and not c.isspace()), len(value))
    return value[seen:].startswith(_FORMULA) or value.startswith(("\t", "\r", "\n"))


def columns_of(query: Mapping[str, Any], further: Sequence[str] | None = None) -> list[str]:
    """Of the rows of an answer (usage.as_json). further: those counters that have a column; None: that a row names."""
    money = ("revenue", "unpriced_tokens", "chip_cost", "uncosted_tokens") if "currency" in query else ()
    named = further_of(query["rows"]) if further is None else further
    return ["begin", "end", *query["group_by"], *COUNTERS, TOTAL, *named, *money]


def further_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    named = {name for row in rows for name in row.keys() & set(FURTHER)}
    return [name for name in FURTHER if name in named]


def check_name(name: str) -> None:
    """Raises BadArgument where the suffix names no format."""
    if not name.endswith((*_CSV, *_NDJSON, _PARQUET)):
        raise BadArgument(f"{name}: expected a name that ends in .csv, .ndjson, .jsonl or .parquet")


def write(pages: Iterable[Sequence[Mapping[str, Any]]], columns: Sequence[str], name: str, force: bool) -> int:
    """To a file whose suffix names the format; it is there as a whole or not at all. How many rows."""
    check_name(name)
    count = 0
    if name.endswith(_CSV):
        with create(name, force) as file:
            for number, rows in enumerate(pages):
                file.write(csv_text(rows, columns, header=number == 0).encode())
                count += len(rows)
    elif name.endswith(_NDJSON):
        with create(name, force) as file:
            for rows in pages:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                count += len(rows)
    else:
        schema = _schema(columns)
        with create(name, force) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in pages:
                writer.write_table(_table(rows, schema))
                count += len(rows)
    return count


def _schema(columns: Sequence[str]) -> Any:
    def kind(name: str) -> Any:
        return pa.uint64() if name in _COUNTS else _MONEY_TYPE if name in _MONEY else pa.string()

    return pa.schema([(name, kind(name)) for name in columns])


def _table(rows: Sequence[Mapping[str, Any]], schema: Any) -> Any:
    def plain_of(name: str, given: Any) -> Any:
        if isinstance(given, dict):
            return json.dumps(given, ensure_ascii=False)
        return Decimal(given) if name in _MONEY and given is not None else given

    try:
        plain = [{name: plain_of(name, value(name, row)) for name in schema.names} for row in rows]
        return pa.Table.from_pylist(plain, schema)
    except (OverflowError, pa.ArrowInvalid) as error:
        raise LedgerError(f"a sum does not fit into a column of Parquet; write CSV or JSON: {error}") from None
