"""The command `usage`: what was used, by whom, on what."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli.asking import Ask, AskSettings, PriceFile, TimeZone, all_rows, file_text
from tokenometer.processor.cli.common import needs, say, write_csv, write_json
from tokenometer.processor.cli.tables import show_rows
from tokenometer.processor.ledger import export, usage
from tokenometer.schemas.usage import COUNTERS, TOTAL


class TableFormat(StrEnum):
    TABLE, JSON, CSV = "table", "json", "csv"


@dataclass(frozen=True)
class UsageCommand(AskSettings):
    begin: Annotated[
        str, Option("--from", metavar="TIME", help="The first moment: a date, or RFC 3339 with its offset.")
    ] = ""
    end: Annotated[str, Option("--to", metavar="TIME", help="The first moment after the end, in the same form.")] = ""
    user: Annotated[str | None, Option(help="Only this user's usage.")] = None
    model: Annotated[str | None, Option(help="Only this model's usage.")] = None
    chip: Annotated[str | None, Option(help="Only this chip's usage.")] = None
    label: Annotated[
        list[str] | None,
        Option(metavar="NAME=VALUE", help="Only with this label; NAME= is without it. May be repeated."),
    ] = None
    group_by: Annotated[
        str, Option(metavar="user,model,chip,LABEL", help="One row for each combination of these; a label by its name.")
    ] = ""
    window: Annotated[str, Option(help="One row for each hour, day or month, or one total.")] = "total"
    time_zone: TimeZone = "UTC"
    top: Annotated[int | None, Option(metavar="N", help="Only the N rows with the most tokens.")] = None
    limit: Annotated[int, Option(help="How many rows are shown; --out writes all.")] = 100
    after: Annotated[str | None, Option(metavar="NEXT", help="Go on where an earlier answer ended.")] = None
    priced: Annotated[bool, Option("--priced", help="Add revenue and chip costs, by a price list.")] = False
    price_list: PriceFile = None
    further: Annotated[
        bool, Option("--further", help="With audio, image and one-hour counters, also where they are 0.")
    ] = False
    out: Annotated[str | None, Option("--out", metavar="FILE", help="Write all rows: .csv, .ndjson or .parquet.")] = (
        None
    )
    force: Annotated[bool, Option("--force", help="Replace --out.")] = False
    form: Annotated[TableFormat, Option("--format", help="The form of what is printed.")] = TableFormat.TABLE

    def question(self) -> dict[str, Any]:
        """The question as /v1/usage takes it."""
        given = {
            "from": self.begin, "to": self.end, "time_zone": self.time_zone, "window": self.window,
            "group_by": self.group_by, "limit": str(usage.LIMIT_MAX if self.out else self.limit),
            "priced": "true" if self.priced else "false", "further": "true" if self.further else "false",
            "label": list(self.label or ()),
        }  # fmt: skip
        optional = {name: getattr(self, name) for name in ("user", "model", "chip", "top", "after")}
        given |= {name: str(value) for name, value in optional.items() if value is not None}
        return {name: value for name, value in given.items() if value}


def usage_command(command: UsageCommand) -> None:
    """Show what was used: tokens by user, model and chip, and whether later usage may still come.

    Examples:
        tokenometer usage --from 2026-11-01 --to 2026-12-01 --group-by user --top 20
        tokenometer usage --from 2026-11-01 --to 2026-12-01 --window day --format csv
        tokenometer usage --from 2026-11-01 --to 2026-12-01 --group-by team,service_tier --label team=blue
        tokenometer usage --from 2026-11-01 --to 2026-12-01 --group-by user,model --out november.parquet
        tokenometer usage --from 2026-11-01 --to 2026-12-01 --group-by user --priced --prices prices.toml
        tokenometer usage --from 2026-11-30 --to 2026-12-01 --url http://ledger:9465 --token-file ledger.token
    """
    given = command.question()
    usage.parse(given)  # before anything is opened
    if command.out is not None:
        export.check_name(command.out)
    with _asked(command) as ask:
        first = ask(given)
        if command.out is not None:
            columns = export.columns_of(first, _further(ask, given))
            rows = export.write(all_rows(ask, given, first), columns, command.out, command.force)
            say(f"{show.plural(rows, 'row')} written to {command.out}; {_completeness(first)}")
        elif command.form is TableFormat.JSON:
            write_json(first)
        elif command.form is TableFormat.CSV:
            write_csv(export.csv_text(first["rows"], export.columns_of(first)))
        else:
            if first["rows"]:
                _show(first)
            else:
                say("No usage.")
            say(_completeness(first))
            if first["next"]:
                say(f"There are more rows: --after {first['next']}, or --out FILE for all of them.")


@contextlib.contextmanager
def _asked(command: UsageCommand) -> Iterator[Ask]:
    """A function that answers as /v1/usage does, from a database or from a running ledger."""
    if command.url is not None:
        yield lambda given: _fetched(command, given)
        return
    with needs("ledger"):
        from tokenometer.processor.ledger import pricefile
        from tokenometer.processor.ledger.opening import open_database

    price_list = None if command.price_list is None else pricefile.load(command.price_list)
    with contextlib.closing(open_database(command.database_name, writer=False)) as opened:
        with opened.snapshot() as moment:
            yield lambda given: usage.as_json(usage.answer(moment, usage.parse(given), price_list))


def _fetched(command: UsageCommand, given: Mapping[str, Any]) -> dict[str, Any]:
    """With a price list of the asker's, as a body."""
    if command.price_list is None:
        return command.fetch("/v1/usage", given)
    return command.fetch("/v1/usage", body={**given, "prices": file_text(command.price_list)})


def _further(ask: Ask, given: Mapping[str, Any]) -> list[str]:
    """The counters that any row of all pages names: those of the sum of them all."""
    kept = {
        name: value for name, value in given.items() if name not in ("group_by", "window", "top", "after", "priced")
    }
    return export.further_of(ask({**kept, "limit": "1"})["rows"])


def _completeness(answer: Mapping[str, Any]) -> str:
    if answer["complete"] and answer["complete_up_to"] is None:
        return "Complete: the ledger has files, and reads no topic."
    if answer["complete"]:
        return "Complete: every partition's watermark has passed the end."
    if answer["complete_up_to"] is None:
        return "Not known to be complete: not every partition has told how far it is."
    return f"Complete up to {answer['complete_up_to']}; later usage may still come."


def _show(answer: Mapping[str, Any]) -> None:
    names = [*([] if answer["window"] == "total" else ["begin"]), *answer["group_by"]]
    money = ["revenue", "chip_cost"] if "currency" in answer else []
    counts = (*COUNTERS, TOTAL, *export.further_of(answer["rows"]))
    titles = [name.removesuffix("_tokens") if name != TOTAL else name for name in counts]
    titles += [f"{name} {answer['currency']}" for name in money]
    rows = [
        [
            *(row[name] or "" for name in names),
            *(f"{row.get(name, 0):,}" for name in counts),
            *(_money_text(row, name) for name in money),
        ]
        for row in answer["rows"]
    ]
    show_rows(names, titles, rows)


def _money_text(row: Mapping[str, Any], name: str) -> str:
    """Usage without a price is reported as such."""
    without = row["unpriced_tokens" if name == "revenue" else "uncosted_tokens"]
    if not without:
        return row[name] or "0"
    label = "unpriced" if name == "revenue" else "no cost"
    return f"{row[name]} + {without:,} {label}" if row[name] is not None else label
