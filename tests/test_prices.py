"""Price lists: which entry is meant, exact amounts, and what is wrong with a list."""

import pathlib
import random
import re
from fractions import Fraction
from typing import Any

import pytest

from tests import books
from tests.test_ledger import IDENTITY, labelled, take
from tests.test_ledger_usage import run
from tokenometer.processor.ledger import pricecheck, pricefile, prices
from tokenometer.processor.ledger.database import COUNTS

LISTS = pathlib.Path(__file__).parents[1] / "docs" / "prices"


def parsed(*entries: str, head: str = 'currency = "USD"') -> prices.Prices:
    return pricefile.parse("\n".join([head, *(f"[[price]]\n{entry}" for entry in entries)]), "p.toml")


def entry(model: str = "m", given: str = "1", **more: str) -> str:
    lines = [f'model = "{model}"', f'input = "{given}"', 'output = "1"', *(f"{k} = {v}" for k, v in more.items())]
    return "\n".join(lines)


def counts(**given: int) -> list[int]:
    return [given.get(name, 0) for name in COUNTS]


def found(lists: prices.Prices, model: str = "m", user: str = "u", at: int = 0, **labels: str) -> str | None:
    """The input's rate of the entry that is meant."""
    chosen = lists.entry(model, user, labels, at)
    return None if chosen is None else prices.text(chosen.rates["input"] * 10**6)


BLUE = '{ label = "team", value = "blue" }'


# --- The examples of ../shared/cases: to the cent ---


def amount(lists: prices.Prices, given: list[int], **labels: str) -> str:
    chosen = lists.entry("m", "u", labels, 0)
    assert chosen is not None
    return prices.text(chosen.amount(given))


def test_a_long_request_costs_more_as_a_whole() -> None:
    lists = parsed(
        entry(given="2", labels='{ context = "0-200000" }'), entry(given="4", labels='{ context = "200001-" }')
    )
    assert amount(lists, counts(input_tokens=250_000), context="200001-") == "1"
    assert amount(lists, counts(input_tokens=200_000), context="0-200000") == "0.4"


def test_one_hour_cache_writes_have_a_price_of_their_own() -> None:
    lists = parsed(entry(given="3", cache_write='"3.75"', cache_write_1h='"6"'))
    two_million = counts(input_tokens=2_000_000, cache_write_tokens=2_000_000, cache_write_1h_tokens=2_000_000)
    assert amount(lists, two_million) == "12"
    assert amount(lists, counts(input_tokens=2_000_000, cache_write_tokens=2_000_000)) == "7.5"
    as_parent = parsed(entry(given="3", cache_write='"3.75"'))
    assert amount(as_parent, two_million) == "7.5"


def test_a_batch_request_costs_half() -> None:
    lists = parsed(entry(given="2.8"), entry(given="1.4", labels='{ service_tier = "batch" }'))
    assert amount(lists, counts(input_tokens=200_000), service_tier="batch") == "0.28"
    assert amount(lists, counts(input_tokens=200_000), service_tier="default") == "0.56"


def test_audio_is_charged_apart_from_text() -> None:
    lists = parsed('model = "m"\ninput = "2.5"\noutput = "10"\naudio_input = "10"\naudio_output = "80"')
    given = counts(input_tokens=127, audio_input_tokens=110, output_tokens=482, audio_output_tokens=482)
    assert amount(lists, given) == "0.0397025"


# --- Amounts ---


def test_every_token_is_charged_once_at_its_own_rate() -> None:
    draw = random.Random(1)
    rates = {name: f"{draw.randrange(1000)}.{draw.randrange(10**12):012d}" for name in prices.RATES}
    lists = parsed('model = "m"\n' + "\n".join(f'{name} = "{rate}"' for name, rate in rates.items()))
    for _ in range(200):
        own = {name: draw.randrange(2**40) for name in prices.RATES}
        given = counts(
            input_tokens=sum(own[n] for n in prices.RATES if n not in ("output", "reasoning", "audio_output")),
            cached_input_tokens=own["cached_input"] + own["audio_cached_input"],
            cache_write_tokens=own["cache_write"] + own["cache_write_1h"], cache_write_1h_tokens=own["cache_write_1h"],
            audio_input_tokens=own["audio_input"] + own["audio_cached_input"], image_input_tokens=own["image_input"],
            audio_cached_input_tokens=own["audio_cached_input"], reasoning_tokens=own["reasoning"],
            audio_output_tokens=own["audio_output"],
            output_tokens=own["output"] + own["reasoning"] + own["audio_output"],
        )  # fmt: skip
        wanted = sum(Fraction(rates[name]) * own[name] for name in own) / 1_000_000
        assert Fraction(amount(lists, given)) == wanted
        assert prices.charged(dict(zip(COUNTS, given, strict=True))) == own


def test_parts_that_overlap_are_charged_once() -> None:
    """An image that was read from the cache is in both counters."""
    lists = parsed('model = "m"\ninput = "9"\noutput = "1"\ncached_input = "1"\nimage_input = "2"')
    both = counts(input_tokens=10**6, cached_input_tokens=10**6, image_input_tokens=10**6)
    assert amount(lists, both) == "1" and amount(lists, [-count for count in both]) == "-1"


def test_no_amount_is_negative_and_all_tokens_are_charged_whatever_the_counters() -> None:
    draw = random.Random(3)
    for _ in range(2000):
        given = dict(zip(COUNTS, (draw.randrange(4) for _ in COUNTS), strict=True))
        tokens = prices.charged(given)
        assert min(tokens.values()) >= 0
        assert sum(tokens.values()) == given["input_tokens"] + given["output_tokens"], given
        assert prices.charged({name: -count for name, count in given.items()}) == {
            rate: -count for rate, count in tokens.items()
        }


@pytest.mark.parametrize("text", ["0", "1", "-1", "0.000000000000000001", "-12.5", "123456789012345678.1"])
def test_amounts_as_texts(text: str) -> None:
    assert prices.text(prices.parse_amount(text)) == text == prices.text(prices.from_text(text))


@pytest.mark.parametrize("text", ["", "1e3", "1.", ".5", "1,5", "--1", "1.0000000000000000001", "NaN", "１"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError):
        prices.parse_amount(text)


# --- Which entry ---


def test_the_most_specific_entry_wins_whatever_the_order() -> None:
    entries = [
        entry("*", "1"), entry("gpt-*", "2"), entry("gpt-4*", "3"), entry("gpt-4o", "4"),
        entry("gpt-*", "5", labels='{ tier = "batch" }'), entry("gpt-*", "6", labels='{ tier = "batch", team = "a" }'),
        entry("*", "7", customer='"alice"'), entry("*", "8", customer='"blue"', labels='{ tier = "flex" }'),
    ]  # fmt: skip
    draw = random.Random(1)
    for _ in range(20):
        draw.shuffle(entries)
        lists = parsed(*entries)
        assert [found(lists, model) for model in ("claude", "gpt-5", "gpt-4", "gpt-4o")] == ["1", "2", "3", "4"]
        assert found(lists, "gpt-4o", tier="batch") == "5" and found(lists, "gpt-4o", tier="batch", team="a") == "6"
        assert found(lists, "gpt-4o", user="alice", tier="batch") == "7"
        assert found(lists, "gpt-4o", team="blue", tier="flex") == "8", "a customer is also a label's value"
        assert found(lists, "gpt-4o", team="blue") == "4"


def test_patterns_mean_what_they_say() -> None:
    lists = parsed(entry("a?c*", "1"), entry("x.y[z]", "2"))
    assert [found(lists, model) for model in ("abc", "abcd", "ac", "x.y[z]", "xay[z]", "ABC", "a\nc")] == [
        "1", "1", None, "2", None, None, "1",
    ]  # fmt: skip


def test_no_price_is_none_and_times_are_half_open() -> None:
    lists = parsed(entry(**{"from": "2026-01-01", "to": "2026-02-01"}), entry("m", "3", **{"from": "2026-02-01"}))
    january, february = 1_767_225_600_000, 1_769_904_000_000
    assert [found(lists, at=at) for at in (january - 1, january, february - 1, february)] == [None, "1", "1", "3"]
    assert lists.bounds(0, february + 1) == [0, january, february]


# --- Ties ---


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (entry(), entry(), "m has a price for the same time already, on line 2"),
        (entry("gpt-*"), entry("gpt?4o"), None),  # one has more letters of its own
        (entry("gpt-*"), entry("*-gpt"), r"\*-gpt and gpt-\* \(line 2\) fit the same models equally well"),
        (entry("a*"), entry("b*"), None),
        (entry(labels='{ a = "1" }'), entry(labels='{ a = "1" }'), "on line 2"),
        (entry(labels='{ a = "1" }'), entry(labels='{ a = "2" }'), None),
        (entry(customer='"x"'), entry(customer='"x"'), "on line 2"),
        (entry(customer=BLUE), entry(customer=BLUE), "on line 2"),
        (entry(customer=BLUE), entry(customer='"blue"'), None),
        (entry(to="2026-01-01"), entry(**{"from": "2026-01-01"}), None),
    ],
)
def test_entries_that_always_tie_are_refused_with_their_lines(first: str, second: str, words: str | None) -> None:
    if words is None:
        parsed(first, second)
        return
    with pytest.raises(prices.PriceError, match=rf"p\.toml, line \d+: .*{words}"):
        parsed(first, second)


def test_a_customer_may_be_the_value_of_one_label() -> None:
    pair = entry(), entry(given="2", customer=BLUE), entry(given="3", customer='{ label = "team", value = "red" }')
    lists = parsed(*pair)
    assert [found(lists, team=team) for team in ("blue", "red", "green")] == ["2", "3", "1"]
    assert found(lists, user="blue", project="blue") == "1", "neither a user nor another label's value"
    assert list(pricecheck.may_tie(lists)) == []
    more = parsed(*pair, entry(given="4", customer='{ label = "project", value = "p" }'))
    assert len(list(pricecheck.may_tie(more))) == 2
    with pytest.raises(prices.PriceError, match="equally well"):
        found(more, team="blue", project="p")


def test_entries_that_tie_on_some_usage_are_told_and_refused_there() -> None:
    pair = entry(labels='{ tier = "batch" }'), entry(labels='{ context = "200001-" }')
    lists = parsed(*pair)
    assert [(a.line, b.line) for a, b in pricecheck.may_tie(lists)] == [(2, 7)]
    assert found(lists, tier="batch") == "1"
    with pytest.raises(prices.PriceError, match="the prices on line 2 and line 7 fit 'm' with labels"):
        found(lists, tier="batch", context="200001-")
    settled = parsed(*pair, entry(given="9", labels='{ tier = "batch", context = "200001-" }'))
    assert list(pricecheck.may_tie(settled)) == [] and found(settled, tier="batch", context="200001-") == "9"


def test_patterns_meet_where_a_text_fits_both() -> None:
    import itertools

    texts = ["".join(each) for length in range(7) for each in itertools.product("ab", repeat=length)]

    def fits(pattern: str, text: str) -> bool:
        return re.fullmatch("".join({"*": ".*", "?": "."}.get(c, c) for c in pattern), text) is not None

    draw = random.Random(2)
    for _ in range(1000):
        a, b = ("".join(draw.choices("ab*?", k=draw.randrange(4))) for _ in range(2))
        assert prices._meet(a, b) == any(fits(a, text) and fits(b, text) for text in texts), (a, b)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('labels = { Team = "a" }', "labels: 'Team' is not a label's name"),
        ('labels = { team = "" }', "labels: label team has not 1 to 256 bytes"),
        ("labels = { team = 7 }", "labels: label team is not a text"),
        ('labels = "a"', "labels: labels is not an object"),
        ('customer = ""', "customer: expected a name"),
        ("customer = 7", "customer: expected a name"),
        ('customer = { label = "team" }', "customer: expected a name, or { label"),
        ('customer = { label = "Team", value = "a" }', "customer: 'Team' is not a label's name"),
        ('customer = { label = "team", value = "" }', "customer: label team has not 1 to 256 bytes"),
        (
            'customer = { label = "team", value = "a" }\nlabels = { team = "b" }',
            "customer: the entry's labels say another team",
        ),
        ('audio = "1"', "no such setting: audio"),
        ('audio_input = "-1"', "audio_input: expected a decimal"),
    ],
)
def test_a_wrong_entry_names_its_line(change: str, words: str) -> None:
    with pytest.raises(prices.PriceError, match=rf"p\.toml, line 6: {words}"):
        parsed('model = "m"\ninput = 1\noutput = 1\n' + change)


# --- Against a ledger ---


def test_a_check_of_a_period_looks_at_no_usage_of_before_and_after_it(database: str) -> None:
    begin = IDENTITY[0]
    with books.opened(database) as store:
        windows = {"before": begin - books.WINDOW_MS, "within": begin, "after": begin + books.WINDOW_MS}
        take(store, [books.usage_row((window, IDENTITY[1], model, *IDENTITY[3:]), [1, 7, 0, 0, 0, 0])
                     for model, window in windows.items()])  # fmt: skip
        bounds: list[tuple[int | None, int | None]] = [(None, None), (begin, None), (begin, begin + 1), (begin, begin)]
        unpriced = [pricecheck.against(store.database, parsed(entry("none")), *each).unpriced for each in bounds]
    assert [{model for model, _ in each} for each in unpriced] == [set(windows), {"within", "after"}, {"within"}, set()]


def test_prices_check_says_what_has_no_price_and_what_is_never_used(
    database: str, capsys: Any, tmp_path: pathlib.Path
) -> None:
    with books.opened(database) as store:
        take(store, [
            labelled({"tier": "batch"}, [1, 100, 0, 0, 50, 0]), labelled({"tier": "flex"}, [1, 7, 0, 0, 0, 0]),
            books.usage_row((*IDENTITY[:2], "gemma", *IDENTITY[3:]), [1, 3, 0, 0, 4, 0]),
            books.usage_row((*IDENTITY[:2], "empty", *IDENTITY[3:]), [1, 0, 0, 0, 0, 0]),
        ])  # fmt: skip
    file = tmp_path / "prices.toml"
    some = [entry("llama*", labels='{ tier = "batch" }'), entry("gpt-*"), entry("llama", customer='"nobody"')]
    file.write_text("\n".join(['currency = "USD"', *(f"[[price]]\n{each}" for each in some)]))
    assert run(capsys, "prices", "check", str(file))[0] == 0
    code, out, _ = run(capsys, "prices", "check", str(file), "--against", database)
    assert code == 1
    assert "no price: gemma: 7 tokens\n" in out and "no price: llama (tier=flex): 7 tokens\n" in out
    assert "empty" not in out
    assert "line 7: gpt-* is never used: it fits no model of the ledger\n" in out
    assert "line 11: llama is never used: its customer, labels or times fit no usage of it\n" in out
    file.write_text(file.read_text() + "\n[[price]]\n" + entry("*"))
    code, out, _ = run(capsys, "prices", "check", str(file), "--against", database)
    assert code == 0 and out.endswith("All usage has one price.\n")
    assert "line 16: has 7 tokens with tier=flex, for which no entry has a price of its own\n" in out
    assert "tier=batch, for" not in out
    code, _, said = run(
        capsys, "close", "--to", "2100-01-01", "--anyway", "--prices", str(file), "--database", database
    )
    assert code == 0 and f"{file}, line 16: has 7 tokens with tier=flex, for which no entry has" in said
    every = [entry("llama"), entry("l*"), entry("*")]
    file.write_text("\n".join(['currency = "USD"', *(f"[[price]]\n{each}" for each in every)]))
    out = run(capsys, "prices", "check", str(file), "--against", database)[1]
    assert "line 6: l* is never used: a more specific entry has all that it fits\n" in out


def test_the_usual_tier_needs_no_price_of_its_own_and_an_empty_ledger_has_no_usage(
    database: str, capsys: Any, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "prices.toml"
    some = [entry("*"), entry("*", labels='{ service_tier = "batch" }')]
    file.write_text("\n".join(['currency = "USD"', *(f"[[price]]\n{each}" for each in some)]))
    with books.opened(database):
        pass
    assert run(capsys, "prices", "check", str(file), "--against", database)[1].endswith("has no usage yet.\n")
    with books.opened(database) as store:
        tiers = ("default", "standard", "flex")
        take(store, [labelled({"service_tier": tier}, [1, 7, 0, 0, 0, 0]) for tier in tiers])
    out = run(capsys, "prices", "check", str(file), "--against", database)[1]
    assert "=flex, for which no entry" in out and "=default" not in out and "=standard" not in out


@pytest.mark.parametrize("file", sorted(LISTS.glob("*.toml")), ids=lambda file: file.stem)
def test_example_lists_are_lists_without_ties(file: pathlib.Path) -> None:
    text = file.read_text()
    lists = pricefile.load(str(file))
    assert lists.entries and list(pricecheck.may_tie(lists)) == []
    assert re.search(r"# Source: .*, 20\d\d-\d\d-\d\d", text), "figures have a source and a date"
