"""A rules file: TOML to `rules.Rules`, or one error that names the file and the rule. The format is docs/ALERTS.md's.

No float is ever made of a number in the file.
"""

import base64
import pathlib
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import urlsplit

from tokenometer.processor import secret
from tokenometer.processor.alerts.rules import (
    MEASURES,
    PERCENT_MAX,
    PERIODS,
    RULES_MAX,
    THRESHOLDS,
    THRESHOLDS_MAX,
    WEBHOOKS_MAX,
    Rule,
    Rules,
    RulesError,
    Webhook,
)
from tokenometer.processor.ledger import labels, pricefile, times
from tokenometer.processor.ledger.prices import PriceError, Prices, parse_amount
from tokenometer.processor.ledger.values import NAME_BYTES_MAX, LedgerError
from tokenometer.processor.secret import Secret
from tokenometer.schemas.usage import TOTAL

_TOP = ("time_zone", "prices", "rule", "webhook")
_RULE = (
    "name", "user", "model", "labels", "each", "tokens", "count", "money", "per", "time_zone", "thresholds",
)  # fmt: skip
_WEBHOOK = ("name", "url", "secret_file", "rules")
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}", re.ASCII)
_TOKENS_END = 1 << 63
_SECRET_MIN = 24  # bytes; the HMAC's key


def load(path: str) -> Rules:
    """Files that it names are looked for beside it. Raises RulesError."""
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RulesError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse(text, path)


def parse(text: str, source: str) -> Rules:
    try:
        top = tomllib.loads(text, parse_float=Decimal)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{source}: not TOML: {error}") from None
    return _File(source, top).rules()


class _File:
    def __init__(self, source: str, top: dict[str, Any]) -> None:
        self._source, self._top, self._at = source, top, ""
        self._prices: Prices | None = None

    def rules(self) -> Rules:
        self._known(self._top, _TOP)
        rules = [self._rule(table) for table in self._tables("rule", RULES_MAX)]
        if not rules:
            self._fail("it has no [[rule]]")
        names = frozenset(rule.name for rule in rules)
        return Rules(rules, [self._webhook(table, names) for table in self._tables("webhook", WEBHOOKS_MAX)])

    def _tables(self, kind: str, most: int) -> Iterator[dict[str, Any]]:
        """Each with its name, under which what is wrong in it is told."""
        tables = self._top.get(kind, [])
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            self._fail(f"{kind}: expected tables, each under [[{kind}]]")
        if len(tables) > most:
            self._fail(f"at most {most} of [[{kind}]], not {len(tables)}")
        seen = set[str]()
        for number, table in enumerate(tables, 1):
            name = table.get("name")
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                self._fail(f"{kind} {number}: name: expected 1 to 64 letters, digits, points, hyphens and underscores")
            self._at = f"{kind} {name}: "
            if name in seen:
                self._fail("there are two of this name")
            seen.add(name)
            self._known(table, _RULE if kind == "rule" else _WEBHOOK)
            yield table
        self._at = ""

    def _known(self, table: Mapping[str, Any], names: tuple[str, ...]) -> None:
        for name in table:
            if name not in names:
                self._fail(f"no such setting: {name}; expected {', '.join(names)}")

    # --- Rules ---

    def _rule(self, table: dict[str, Any]) -> Rule:
        limit, measure, prices = self._limit(table)
        given, each, per = table.get("labels", {}), table.get("each"), table.get("per", "day")
        if wrong := labels.fault(given):
            self._fail(wrong)
        if each is not None and each not in ("user", "model") and not (isinstance(each, str) and labels.is_name(each)):
            self._fail(f"each: expected user, model or the name of a label, not {each!r}")
        if each is not None and (each == "user" and "user" in table or each in given):
            self._fail(f"each = {each!r}: the rule names one {each} already")
        if per not in PERIODS:
            self._fail(f"per: expected {', '.join(PERIODS)}, not {per!r}")
        zone_name = table.get("time_zone", self._top.get("time_zone", "UTC"))
        try:
            zone = times.zone(str(zone_name))
        except LedgerError as error:
            self._fail(f"time_zone: {error}")
        return Rule(
            table["name"], limit, measure, prices, self._text(table, "user"), self._text(table, "model"),
            dict(given), each, per, zone, "UTC" if zone is UTC else str(zone_name), self._thresholds(table),
        )  # fmt: skip

    def _limit(self, table: Mapping[str, Any]) -> tuple[int, str, Prices | None]:
        if ("tokens" in table) == ("money" in table):
            self._fail("expected a limit: tokens or money, one of the two")
        if "money" in table:
            if "count" in table:
                self._fail("count belongs to tokens, not to money")
            return self._money(table["money"]), "money", self._price_list()
        tokens, measure = table["tokens"], table.get("count", TOTAL)
        if type(tokens) is not int or not 0 < tokens < _TOKENS_END:
            self._fail("tokens: expected a whole number from 1 to 2^63 - 1")
        if measure not in MEASURES:
            self._fail(f"count: expected {', '.join(MEASURES)}, not {measure!r}")
        return tokens, measure, None

    def _money(self, given: Any) -> int:
        try:
            amount = parse_amount(str(given)) if type(given) in (str, int, Decimal) else 0
        except ValueError:
            amount = 0
        if amount <= 0:
            self._fail('money: expected a decimal above 0, such as "250.00"')
        return amount

    def _price_list(self) -> Prices:
        if self._prices is None:
            path = self._top.get("prices")
            if not isinstance(path, str):
                self._fail('money needs a price list: add prices = "prices.toml" at the top of the file')
            try:
                self._prices = pricefile.load(self._beside(path))
            except PriceError as error:
                self._fail(f"prices: {error}")
        return self._prices

    def _thresholds(self, table: Mapping[str, Any]) -> tuple[int, ...]:
        given = table.get("thresholds", THRESHOLDS)
        if not isinstance(given, list | tuple) or not 0 < len(given) <= THRESHOLDS_MAX:
            self._fail(f"thresholds: expected 1 to {THRESHOLDS_MAX} numbers, such as [50, 80, 100]")
        if not all(type(each) is int and 0 < each <= PERCENT_MAX for each in given):
            self._fail(f"thresholds: expected whole percents from 1 to {PERCENT_MAX:,}")
        if len(set(given)) < len(given):
            self._fail("thresholds: one is given twice")
        return tuple(sorted(given))

    # --- Webhooks ---

    def _webhook(self, table: dict[str, Any], names: frozenset[str]) -> Webhook:
        url, chosen = table.get("url"), table.get("rules")
        if not isinstance(url, str) or not _is_url(url):
            self._fail("url: expected http://HOST/PATH or https://HOST/PATH, without a name or password")
        if chosen is not None:
            if not isinstance(chosen, list) or not chosen or not all(isinstance(each, str) for each in chosen):
                self._fail("rules: expected a list of names of rules")
            if unknown := sorted(set(chosen) - names):
                self._fail(f"rules: there is no rule {unknown[0]}")
        return Webhook(
            table["name"], secret.url(url), self._secret(table.get("secret_file")),
            None if chosen is None else frozenset(chosen),
        )  # fmt: skip

    def _secret(self, path: Any) -> Secret:
        if not isinstance(path, str):
            self._fail("secret_file: expected the name of a file with the secret that signs")
        try:
            found = pathlib.Path(self._beside(path)).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            self._fail(f"secret_file: {path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8'}")
        if len(found.removeprefix("whsec_")) < _SECRET_MIN:
            self._fail(f"secret_file: expected {_SECRET_MIN} characters or more; make one: openssl rand -hex 32")
        if found.startswith("whsec_"):
            try:
                base64.b64decode(found.removeprefix("whsec_"), validate=True)
            except ValueError:
                self._fail("secret_file: what follows whsec_ is not base64")
        return Secret(found)

    # --- Both ---

    def _text(self, table: Mapping[str, Any], key: str) -> str | None:
        value = table.get(key)
        if value is not None and not (isinstance(value, str) and 0 < len(value.encode()) <= NAME_BYTES_MAX):
            self._fail(f"{key}: expected a name of 1 to {NAME_BYTES_MAX} bytes")
        return value

    def _beside(self, path: str) -> str:
        return str(pathlib.Path(self._source).parent / path)

    def _fail(self, what: str) -> NoReturn:
        raise RulesError(f"{self._source}: {self._at}{what}")


def _is_url(text: str) -> bool:
    if secret.has_user(text) or not text.isascii() or any(character <= " " for character in text):
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
