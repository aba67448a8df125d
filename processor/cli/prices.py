"""The command `prices check`: is a price list right, and does it fit a ledger?"""

import contextlib
from dataclasses import dataclass
from typing import Annotated

import typer
from typer import Option

from tokenometer.processor import show
from tokenometer.processor.cli.asking import database
from tokenometer.processor.cli.common import EXIT_FAILURE, needs, say
from tokenometer.processor.cli.help import Group
from tokenometer.processor.cli.options import CommandSettings, register
from tokenometer.processor.ledger import pricecheck, pricefile
from tokenometer.processor.ledger.prices import Prices
from tokenometer.processor.secret import Secret

group = typer.Typer(
    cls=Group,
    help="Check price lists: is one right, and does it fit a ledger?",
    epilog="Examples:\n\ntokenometer prices check prices.toml",
    no_args_is_help=True,
)
_SHOWN = 20


@dataclass(frozen=True)
class PricesCheckCommand(CommandSettings):
    file: Annotated[str, typer.Argument(metavar="FILE", help="A price list; docs/BILLING.md.")]
    against: Annotated[
        Secret | None,
        Option(parser=database, metavar="FILE|postgresql://...", help="A ledger, whose usage is to have a price."),
    ] = None


def check_command(command: PricesCheckCommand) -> None:
    """Check a price list: its form, and entries that may fit the same usage equally well. Against a ledger, also what
    has no price, which patterns fit no model, and which entries are never used. Ends with 1 where usage has no price,
    or two.

    Examples:
        tokenometer prices check prices.toml
        tokenometer prices check prices.toml --against ledger.duckdb
    """
    prices = pricefile.load(command.file)
    entries, costs = show.plural(len(prices.entries), "price"), show.plural(len(prices.costs), "chip cost")
    say(f"{command.file}: {entries} in {prices.currency}, {costs}")
    for one, other in pricecheck.may_tie(prices):
        say(f"lines {one.line} and {other.line} may fit the same usage equally well; where they do, that is an error")
    if command.against is None:
        return
    with needs("ledger"):
        from tokenometer.processor.ledger.opening import open_database

    with (
        contextlib.closing(open_database(command.against.reveal(), writer=False)) as opened,
        opened.snapshot() as moment,
    ):
        found = pricecheck.against(moment, prices)
    _report(prices, found)
    if found.unpriced or found.ties:
        raise typer.Exit(EXIT_FAILURE)


def _report(prices: Prices, found: pricecheck.PriceCheck) -> None:
    for text in sorted(found.ties):
        say(text)
    unpriced = sorted(found.unpriced.items(), key=lambda item: -item[1])
    for (model, labels), tokens in unpriced[:_SHOWN]:
        say(f"no price: {model}{f' ({labels})' if labels else ''}: {tokens:,} tokens")
    if len(unpriced) > _SHOWN:
        say(f"no price: {len(unpriced) - _SHOWN:,} more")
    fallen = pricecheck.fallen_texts(found)
    for text in fallen[:_SHOWN]:
        say(text)
    if len(fallen) > _SHOWN:
        say(f"{len(fallen) - _SHOWN:,} more values of labels have no price of their own")
    for entry in prices.entries:
        if entry.line in found.used:
            continue
        if entry.line in found.fitting:
            why = "a more specific entry has all that it fits"
        elif any(entry.fits_model(model) for model in found.models):
            why = "its customer, labels or times fit no usage of it"
        else:
            why = "it fits no model of the ledger"
        say(f"line {entry.line}: {entry.model} is never used: {why}")
    if not found.models:
        say("The ledger has no usage yet.")
    elif not (unpriced or found.ties):
        say("All usage has one price.")


register(group, "check", check_command)
