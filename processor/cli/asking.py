"""What the commands that ask a ledger share: where it is, its answers over HTTP, and their rows."""

import json
import urllib.error
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from typer import Option

from tokenometer.processor import secret
from tokenometer.processor.cli.client import open_url, service_at
from tokenometer.processor.cli.common import usage_error
from tokenometer.processor.cli.options import CommandSettings, Config, TokenFile, http_url
from tokenometer.processor.secret import Secret
from tokenometer.schemas.errors import TokenometerError

DATABASE = "ledger.duckdb"
_ANSWER_SECONDS = 300
Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


class NoAnswer(TokenometerError):
    """A running ledger refused, or there is none; the message has its own words."""


def database(text: str | Secret) -> Secret:
    """A file's name or a URL of PostgreSQL. A URL that cannot be read is refused here, and nothing of it is repeated:
    a driver's message may quote a piece of the password."""
    if isinstance(text, Secret):
        return text
    if "://" not in text:
        return Secret(text, text)
    try:
        parts = urllib.parse.urlsplit(text)
        readable = parts.netloc.count("@") <= 1 and (parts.port is None or parts.port > 0)
    except ValueError:
        readable = False
    if not readable:
        usage_error(
            "expected postgresql://USER:PASSWORD@HOST:PORT/NAME; write a special character of the password as %XX "
            "(@ is %40, / is %2F, : is %3A)"
        )
    return secret.url(text)


Database = Annotated[
    Secret,
    Option(
        parser=database, metavar="FILE|postgresql://...", help="A DuckDB file, or a PostgreSQL database."
    ),
]  # fmt: skip
DatabaseOrNone = Annotated[
    Secret | None,
    Option(
        parser=database,
        metavar="FILE|postgresql://...",
        help=f"The ledger's database. Without this and --url it is {DATABASE}.",
    ),
]
Url = Annotated[
    str | None,
    Option(
        parser=http_url, metavar="http://HOST:PORT", help="The address of a running ledger, in place of --database."
    ),
]
PriceFile = Annotated[
    str | None, Option("--prices", metavar="FILE", help="A price list, as docs/BILLING.md describes it.")
]
Grace = Annotated[
    int,
    Option(
        min=0,
        max=31_536_000,
        metavar="SECONDS",
        help="A period is complete when every partition's watermark is this much later than its end.",
    ),
]
TimeZone = Annotated[str, Option(metavar="ZONE", help="The zone of dates, days and months: UTC, Europe/Berlin, ...")]


@dataclass(frozen=True)
class AskSettings(CommandSettings):
    """Which ledger is asked: its database, or the process that has it open."""

    config: Config = None
    database: DatabaseOrNone = None
    url: Url = None
    token_file: TokenFile = None

    def __post_init__(self) -> None:
        if self.url is not None and self.database is not None:
            usage_error("give --url or --database, not both")

    @property
    def database_name(self) -> str:
        return self.database.reveal() if self.database else DATABASE

    def fetch(self, path: str, given: Mapping[str, Any] | None = None, body: Any = None) -> dict[str, Any]:
        """A running ledger's answer. Raises NoAnswer with its own words where it refuses."""
        query = f"?{urllib.parse.urlencode(given, doseq=True)}" if given else ""
        data = None if body is None else json.dumps(body).encode()
        try:
            with open_url(f"{self.url}{path}{query}", self.token_file, _ANSWER_SECONDS, data) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise NoAnswer(f"{self.url}: {self._refused(error)}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise NoAnswer(f"{self.url}: no ledger answers there: {reason}") from None

    def _refused(self, error: urllib.error.HTTPError) -> str:
        said = _said(error)
        if error.code == 401:
            way = (
                "give it with --token-file FILE"
                if self.token_file is None
                else "the one of --token-file is not the ledger's"
            )
            return f"{said}; {way}"
        if error.code == 404 and (other := service_at(str(self.url), self.token_file)):
            return f"{said}: {other}; the usual port of a ledger is 9465"
        return said


def file_text(path: str) -> str:
    """Of a price list that a running ledger is to use."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise NoAnswer(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"status {error.code}"


def all_rows(ask: Ask, given: Mapping[str, Any], first: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Page by page, until there is no next one."""
    while True:
        yield first["rows"]
        if not first["next"]:
            return
        first = ask({**given, "after": first["next"]})
