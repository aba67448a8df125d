"""Rules files: what they say, and one clear error for each way to be wrong."""

import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from tokenometer.processor.alerts import rulefile
from tokenometer.processor.alerts.rules import RULES_MAX, THRESHOLDS_MAX, WEBHOOKS_MAX, Rules, RulesError
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.ledger.prices import UNIT

PRICES = 'currency = "EUR"\n[[price]]\nmodel = "*"\ninput = "1"\noutput = "2"\n'
RULE = '[[rule]]\nname = "r"\ntokens = 10\n'
HOOK = '[[webhook]]\nname = "h"\nurl = "https://hooks.example/in"\nsecret_file = "secret"\n'


@pytest.fixture
def load(tmp_path: pathlib.Path) -> Callable[[str], Rules]:
    def load(text: str) -> Rules:
        (tmp_path / "prices.toml").write_text(PRICES)
        (tmp_path / "secret").write_text("a secret that is long enough\n")
        (tmp_path / "short").write_text("too short")
        (tmp_path / "odd").write_text("whsec_not base64, of whatever length")
        (tmp_path / "rules.toml").write_text(text)
        return rulefile.load(str(tmp_path / "rules.toml"))

    return load


def test_defaults_and_everything_that_can_be_said(load):
    [plain] = load(RULE).rules
    assert (plain.unit, plain.limit, plain.per, plain.zone_name) == ("total_tokens", 10, "day", "UTC")
    assert (plain.each, plain.thresholds, plain.levels) == (None, (50, 80, 100), [5, 8, 10])
    rules = load(
        'time_zone = "Asia/Shanghai"\nprices = "prices.toml"\n[[rule]]\nname = "money"\nmoney = 2.5\nper = "month"\n'
        'each = "team"\nuser = "u"\nmodel = "m*"\nlabels = { tier = "x" }\nthresholds = [120, 30]\n'
        '[[rule]]\nname = "out"\ntokens = 7\ncount = "output_tokens"\ntime_zone = "Europe/Berlin"\n'
        + HOOK + 'rules = ["out"]\n'
    )  # fmt: skip
    money, out = rules.rules
    assert (money.unit, money.limit, money.shown(money.limit)) == ("EUR", 5 * UNIT // 2, "2.5")
    assert (money.zone_name, out.zone_name, money.thresholds) == ("Asia/Shanghai", "Europe/Berlin", (30, 120))
    assert out.levels == [4, 6, 7], "a threshold is reached at the first whole token"
    [hook] = rules.webhooks
    assert hook.rules == {"out"} and hook.secret.reveal() == "a secret that is long enough"


def with_rule(*lines: str) -> str:
    return '[[rule]]\nname = "r"\n' + "".join(f"{line}\n" for line in lines)


def hooks_of(count: int) -> str:
    return "".join(HOOK.replace('"h"', f'"h{n}"') for n in range(count))


WRONG = [
    ("x = 1", "no such setting: x; expected time_zone"),
    ("", "it has no [[rule]]"),
    ("= 1", "not TOML"),
    ("rule = 1", "rule: expected tables"),
    ("[[rule]]\ntokens = 1", "rule 1: name: expected 1 to 64"),
    ('[[rule]]\nname = "a b"\ntokens = 1', "rule 1: name"),
    ('[[rule]]\nname = "' + "a" * 65 + '"\ntokens = 1', "rule 1: name"),
    (RULE + RULE, "rule r: there are two of this name"),
    (with_rule("token = 1"), "rule r: no such setting: token"),
    (with_rule(), "rule r: expected a limit: tokens or money"),
    (with_rule("tokens = 1", 'money = "1"'), "rule r: expected a limit"),
    (with_rule("tokens = 0"), "rule r: tokens: expected a whole number from 1"),
    (with_rule("tokens = 1.5"), "rule r: tokens"),
    (with_rule("tokens = true"), "rule r: tokens"),
    (with_rule(f"tokens = {2**63}"), "rule r: tokens"),
    (with_rule("tokens = 1", 'count = "tokens"'), "rule r: count: expected total_tokens, requests"),
    (with_rule('money = "1"'), 'rule r: money needs a price list: add prices = "prices.toml"'),
    ('prices = "gone.toml"\n' + with_rule('money = "1"'), "gone.toml: cannot be read"),
    ('prices = "rules.toml"\n' + with_rule('money = "1"'), "rule r: prices: "),
    ('prices = "prices.toml"\n' + with_rule('money = "-1"'), "rule r: money: expected a decimal above 0"),
    ('prices = "prices.toml"\n' + with_rule("money = 0"), "rule r: money"),
    ('prices = "prices.toml"\n' + with_rule('money = "1e9"'), "rule r: money"),
    ('prices = "prices.toml"\n' + with_rule('money = "0.0000000000000000001"'), "rule r: money"),
    ('prices = "prices.toml"\n' + with_rule("money = 1", 'count = "requests"'), "rule r: count belongs to tokens"),
    (with_rule("tokens = 1", 'per = "week"'), "rule r: per: expected hour, day, month"),
    (with_rule("tokens = 1", 'time_zone = "Mars"'), "rule r: time_zone: Mars: no such time zone"),
    ("time_zone = 3\n" + RULE, "rule r: time_zone: 3"),
    (with_rule("tokens = 1", "thresholds = []"), f"rule r: thresholds: expected 1 to {THRESHOLDS_MAX}"),
    (with_rule("tokens = 1", f"thresholds = {list(range(1, THRESHOLDS_MAX + 2))}"), "rule r: thresholds"),
    (with_rule("tokens = 1", "thresholds = [0]"), "rule r: thresholds: expected whole percents from 1"),
    (with_rule("tokens = 1", "thresholds = [10001]"), "rule r: thresholds: expected whole percents"),
    (with_rule("tokens = 1", "thresholds = [0.5]"), "rule r: thresholds: expected whole percents"),
    (with_rule("tokens = 1", "thresholds = [50, 50]"), "rule r: thresholds: one is given twice"),
    (with_rule("tokens = 1", 'user = ""'), "rule r: user: expected a name"),
    (with_rule("tokens = 1", f'model = "{"m" * 257}"'), "rule r: model: expected a name"),
    (with_rule("tokens = 1", 'each = "chip"'), "rule r: each: expected user, model or the name of a label"),
    (with_rule("tokens = 1", "each = 1"), "rule r: each"),
    (with_rule("tokens = 1", 'each = "user"', 'user = "u"'), "rule r: each = 'user': the rule names one user already"),
    (with_rule("tokens = 1", 'each = "t"', 'labels = { t = "u" }'), "rule r: each = 't'"),
    (with_rule("tokens = 1", 'labels = "t"'), "rule r: labels is not an object"),
    (with_rule("tokens = 1", 'labels = { Bad = "u" }'), "rule r: 'Bad' is not a label's name"),
    ("".join(RULE.replace('"r"', f'"r{n}"') for n in range(RULES_MAX + 1)), f"at most {RULES_MAX} of [[rule]]"),
    (RULE + '[[webhook]]\nname = "h"\n', "webhook h: url: expected http"),
    (RULE + HOOK.replace("https://", "ftp://"), "webhook h: url"),
    (RULE + HOOK.replace("https://", "https://me:pw@"), "webhook h: url"),
    (RULE + HOOK.replace("https://hooks.example/", "https://:1/"), "webhook h: url"),
    (RULE + HOOK.replace("/in", "/i n"), "webhook h: url"),
    (RULE + HOOK.replace('secret_file = "secret"', ""), "webhook h: secret_file: expected the name of a file"),
    (RULE + HOOK.replace('"secret"', '"gone"'), "webhook h: secret_file: gone: cannot be read"),
    (RULE + HOOK.replace('"secret"', '"short"'), "webhook h: secret_file: expected 24 characters or more"),
    (RULE + HOOK.replace('"secret"', '"odd"'), "webhook h: secret_file: what follows whsec_ is not base64"),
    (RULE + HOOK + 'rules = ["q"]', "webhook h: rules: there is no rule q"),
    (RULE + HOOK + "rules = []", "webhook h: rules: expected a list of names"),
    (RULE + HOOK + HOOK, "webhook h: there are two of this name"),
    (RULE + hooks_of(WEBHOOKS_MAX + 1), f"at most {WEBHOOKS_MAX} of [[webhook]]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_what_is_wrong_is_one_error_with_the_file_and_the_rule(load, text: str, message: str):
    with pytest.raises(RulesError) as raised:
        load(text)
    said = str(raised.value)
    assert message in said and "rules.toml: " in said and "\n" not in said
    assert "a secret" not in said and "too short" not in said and "me:pw" not in said


def test_limits_are_taken(load):
    rules = "".join(
        f'[[rule]]\nname = "r{n}"\ntokens = {2**63 - 1}\nthresholds = {list(range(1, THRESHOLDS_MAX)) + [10_000]}\n'
        for n in range(RULES_MAX)
    )
    found = load(rules + hooks_of(WEBHOOKS_MAX))
    assert (len(found.rules), len(found.webhooks)) == (RULES_MAX, WEBHOOKS_MAX)


def test_a_file_that_is_not_there_is_an_error(tmp_path: pathlib.Path):
    with pytest.raises(RulesError, match="gone.toml: cannot be read"):
        rulefile.load(str(tmp_path / "gone.toml"))


def test_the_command_checks_a_file_without_a_broker(load, tmp_path: pathlib.Path, capsys: Any):
    load(RULE + HOOK)
    assert cli.run(["alerts", str(tmp_path / "rules.toml"), "--check"]) == 0
    assert "1 rule, 1 webhook" in capsys.readouterr().out
    assert cli.run(["alerts", str(tmp_path / "gone.toml"), "--check"]) == 1
    assert "tokenometer: error: " in capsys.readouterr().err
