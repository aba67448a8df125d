"""The command `adjust`: credits, corrections and voids, as entries of a ledger."""

import contextlib
from dataclasses import dataclass
from typing import Annotated, Any

from typer import Option

from tokenometer.processor.cli.asking import AskSettings
from tokenometer.processor.cli.common import needs, say, usage_error, write_json
from tokenometer.processor.cli.ledger import now_ms
from tokenometer.processor.ledger import adjust, usage
from tokenometer.processor.ledger.database import COUNTS


@dataclass(frozen=True)
class AdjustCommand(AskSettings):
    key: Annotated[str, Option(help="Of this entry alone: the same key again is the same entry.")] = ""
    reason: Annotated[str, Option(help="For whoever reads the statement.")] = ""
    amount: Annotated[str | None, Option(metavar="AMOUNT", help="A credit is negative: --amount=-12.50")] = None
    currency: Annotated[str | None, Option(metavar="CODE", help="Of the amount; else the statement's.")] = None
    tokens: Annotated[
        list[str] | None, Option(metavar="COUNTER=N", help="Tokens, with a sign: --tokens output_tokens=-100")
    ] = None
    void: Annotated[str | None, Option(metavar="KEY", help="Take back the entry of this key.")] = None
    user: Annotated[str | None, Option(help="Whose it is.")] = None
    model: Annotated[str | None, Option(help="Of what model.")] = None
    chip: Annotated[str | None, Option(help="On what chip.")] = None
    label: Annotated[list[str] | None, Option(metavar="NAME=VALUE", help="May be repeated.")] = None
    at: Annotated[str | None, Option(metavar="TIME", help="When the usage happened.")] = None
    json: Annotated[bool, Option("--json", help="Print the entry as JSON.")] = False

    def body(self) -> dict[str, Any]:
        """As /v1/adjust takes it."""
        plain = ("key", "reason", "amount", "currency", "void", "user", "model", "chip", "at")
        given: dict[str, Any] = {name: getattr(self, name) for name in plain if getattr(self, name) is not None}
        if self.label:
            given["labels"] = dict(_pair(text) for text in self.label)
        if self.tokens:
            given["tokens"] = {name: _number(value) for name, value in map(_pair, self.tokens)}
        return given


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        usage_error(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _number(text: str) -> int:
    digits = text.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20):
        usage_error(f"expected a whole number, got {text!r}")
    return int(text)


def adjust_command(command: AdjustCommand) -> None:
    """Correct what is billed: an amount or tokens with their sign, or the opposite of an earlier entry. The next
    statement of the customer reports it.

    Examples:
        tokenometer adjust --key credit-17 --reason "outage of November 3" --user alice --amount=-12.50
        tokenometer adjust --key void-17 --reason "agreed otherwise" --void credit-17
        tokenometer adjust --key fix-4 --reason "counted twice" --user alice --model gpt-4o --chip H100 --at 2026-11-03 --tokens output_tokens=-1200
    """  # noqa: E501  an example is one line
    for name, value in (("--key", command.key), ("--reason", command.reason)):
        if not value:
            usage_error(f"{name} is missing")
    given = command.body()
    adjust.check(given)  # before anything is opened
    if command.url is not None:
        _show(command, command.fetch("/v1/adjust", body=given))
        return
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_clerk

    with contextlib.closing(open_clerk(command.database_name)) as opened:
        _show(command, adjust.adjust(opened, given, now_ms()))


def _show(command: AdjustCommand, entry: dict[str, Any]) -> None:
    if command.json:
        write_json(entry)
        return
    what = [f"takes back {entry['voids']}"] if "voids" in entry else []
    what += [f"{entry[name]:+,} {name}" for name in COUNTS if name in entry]
    what += [f"{entry['amount']} {entry.get('currency', '')}".rstrip()] if entry["amount"] is not None else []
    what += [f"{name} {entry[name]}" for name in (*usage.DIMENSIONS, "at") if name in entry]
    what += [f"{name} {value}" for name, value in entry.get("labels", {}).items()]
    say(f"{entry['kind'].capitalize()} {entry['key']}: {', '.join(what)}")
    say(f"Reported with: tokenometer statement {entry['statement'] or 'next'} --corrections")
