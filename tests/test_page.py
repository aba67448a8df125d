"""The page as a browser shows it: headless Chromium, driven over its own protocol.

Numbers are those of the API, updates arrive, stale data says so, hostile names are text, and it fits wall and phone.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains

from tests import browser, totals_data
from tests.summaries import Fleet
from tests.totals_data import Feed, Shape, make, nothing
from tokenometer.processor import show
from tokenometer.processor.dashboard import ServeAddress, SiteThread, server
from tokenometer.processor.rollup.entries import Entries
from tokenometer.processor.rollup.summaries import read_summary
from tokenometer.processor.rollup.totals import Totals

pytestmark = pytest.mark.browser
DEADLINE_SECONDS = 30
SIZES = {"wall": (1920, 1080), "laptop": (1280, 720), "tablet": (820, 1180), "phone": (390, 844), "small": (320, 568)}
CATEGORIES = ["Uncached input", "Cached input", "Cache write", "Output", "Reasoning"]
ATTACKS = [
    "<script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "<b>bold</b>&lt;i&gt;<a href='javascript:document.title=1'>x</a>",
    "%{y}{{constructor}}${document.title='taken'}<br>",
    "\u202eright to left\u202c \u2066\u0007\u001b[31m\u200b",
    "قاعدة بيانات",
    "w" * 256,
    "長" * 85,
]


@pytest.fixture(scope="module")
def chrome() -> Iterator[webdriver.Chrome]:
    launched = browser.launch(DEADLINE_SECONDS, short=True)
    if launched is None:
        # A skip must not pass for a proof where proofs are made.
        if os.environ.get("CI"):
            pytest.fail(browser.MISSING)
        pytest.skip(browser.MISSING)
    try:
        yield launched
    finally:
        launched.quit()


class Page:
    """A browser's view of a dashboard."""

    def __init__(self, chrome: webdriver.Chrome) -> None:
        self.chrome = chrome

    def open(self, url: str, size: str = "wall", theme: str = "dark") -> None:
        browser.resize(self.chrome, *SIZES[size], mobile=size in ("phone", "small"))
        self.prefer(theme)
        self.chrome.get(url)

    def prefer(self, theme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def ask(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(f"return {script}", *arguments)

    def field(self, name: str) -> tuple[str, str]:
        """What a number shows, and what it says when pointed at."""
        return tuple(
            self.ask("(n => [n.textContent, n.title])(document.querySelector(`[data-field='${arguments[0]}']`))", name)
        )

    def table(self, selector: str) -> list[list[str]]:
        return self.ask(
            "[...document.querySelectorAll(arguments[0])].map(row => [...row.children].map(cell => cell.textContent))",
            selector,
        )

    @property
    def state(self) -> str:
        return self.ask("document.body.dataset.state")

    @property
    def banner(self) -> str:
        return self.ask("(b => b.hidden ? '' : b.textContent)(document.getElementById('banner'))")

    def until(self, true: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not true():
            assert time.monotonic() < deadline, f"{what}; state {self.state}, banner {self.banner!r}"
            time.sleep(0.05)

    def until_shown(self, totals: dict[str, Any]) -> None:
        """The last panel is drawn in a frame of its own, and the curve in the same one."""
        at = totals["at"]
        self.until(lambda: self.field("at")[1] == at, f"the page does not show {at}")
        self.chrome.execute_async_script("const done = arguments[0]; let n = 0; (function f() "
                                         "{ n++ < 8 ? requestAnimationFrame(f) : done() })()")  # fmt: skip

    def until_drawn(self) -> None:
        drawn = "['by-model', 'by-chip'].every(id => document.getElementById(id).dataset.drawn > 0)"
        self.until(lambda: self.ask(drawn), "the charts are not drawn")


@pytest.fixture
def page(chrome: webdriver.Chrome) -> Iterator[Page]:
    chrome.get_log("browser")
    yield Page(chrome)
    chrome.get("about:blank")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_SECONDS", 0.1)


@contextlib.contextmanager
def served(feed: Feed, port: int = 0, **settings: Any) -> Iterator[SiteThread]:
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=port, **settings))) as site:
        yield site


def complaints(page: Page) -> list[str]:
    """What the browser says of errors and of its policy; not that a server is closed, which a page may notice."""
    found = [entry["message"] for entry in page.chrome.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    return [
        message for message in found if not message.endswith(("net::ERR_CONNECTION_REFUSED", "net::ERR_EMPTY_RESPONSE"))
    ]


# --- Numbers ---


def assert_shows(page: Page, totals: dict[str, Any]) -> None:
    """Every number of the page is the API's, by the rules of the terminal's reports."""
    rate, windows, hour = totals["rate"], totals["windows"], totals["windows"]["last_1h"]
    number, _, unit = show.si(rate["tokens_per_second"]).partition(" ")
    assert (page.field("now")[0], page.field("now-unit")[0]) == (number, unit)
    assert page.field("per-day")[0] == show.si(rate["tokens_per_day"])
    assert page.field("share")[0] == show.percent(rate["share_of_target"])
    for name in ("today", "yesterday", "since_start"):
        tokens = windows[name]["tokens"]["total_tokens"]
        assert page.field(name) == (show.si(tokens), f"{tokens:,} tokens")
    for name in ("1m", "1h", "24h"):
        users, each = windows[f"last_{name}"]["active_users"], windows[f"last_{name}"]["tokens_per_active_user"]
        assert page.field(f"users-{name}")[0] == show.si(users) and page.field(f"each-{name}")[0] == show.si(each)
    assert [row[:2] for row in page.table("#categories tr")] == list(
        map(list, zip(CATEGORIES, categories(hour["tokens"]), strict=True))
    )
    records = totals["records"]
    assert page.field("read") == (show.si(records["read"]), f"{records['read']:,}")
    assert page.field("rejected")[1] == f"{records['rejected']:,}"
    assert {row[0]: row[1] for row in page.table("#rejects tr")} == {
        name: show.si(count) for name, count in totals["rejects"].items() if count
    }
    whole = hour["tokens"]["total_tokens"]
    assert page.table("#top-users tr") == [
        [row["user"], show.si(row["total_tokens"]), show.percent(row["total_tokens"] / whole)]
        for row in totals["top_users"]
    ]
    ranked = sorted(totals["meters"], key=lambda meter: ("stale", "late", "live", "stopped").index(meter["state"]))
    assert [(row[0], row[5]) for row in page.table("#meter-rows tr")] == [
        (meter["meter"] + meter["device"], show.si(meter["total_tokens"])) for meter in ranked
    ]
    matrix = totals["matrix"]
    assert page.table("#matrix thead tr") == [["", *matrix["chips"]]]
    assert (
        page.table("#matrix tbody tr")
        == [
            [model, *(show.si(n) if n else "·" for n in line)]
            for model, line in zip(matrix["models"], matrix["total_tokens"], strict=True)
        ][: len(page.table("#matrix tbody tr"))]
        != []
    )


def categories(tokens: dict[str, int]) -> list[str]:
    cached, written, reasoning = (tokens[f"{name}_tokens"] for name in ("cached_input", "cache_write", "reasoning"))
    parts = (tokens["input_tokens"] - cached - written, cached, written, tokens["output_tokens"] - reasoning, reasoning)
    return [show.si(part) for part in parts]


def test_numbers_are_the_api_s_and_updates_arrive(page):
    feed = Feed(make(Shape(models=5)))
    with served(feed) as site:
        page.open(site.url)
        for k, shape in enumerate(
            (Shape(models=5), Shape(models=7, users=3, tokens_per_second=4321.5), Shape(models=3, meters=5))
        ):
            feed.totals = make(shape, totals_data.AT_MS + 1000 * k)
            page.until_shown(feed.totals)
            assert_shows(page, feed.totals)
        assert page.state == "live" and page.banner == ""
        page.until_drawn()
    assert not complaints(page)


def test_the_real_totals_of_synthetic_meters(page):
    """From live summaries to the screen, with nothing in between but what serves operators."""
    fleet, keeper, view = Fleet(7, totals_data.AT_MS), Entries(), Totals()
    for _ in range(60):
        seen = len(fleet.log)
        fleet.now_ms += 1000
        fleet.work()
        for partition, offset, value in fleet.log[seen:]:
            for entry in keeper.learn(partition, offset, read_summary(value), fleet.now_ms).items():
                view.apply(*entry)
        view.rolling(fleet.now_ms)
    feed = Feed(view.rolling(fleet.now_ms))
    with served(feed) as site:
        page.open(site.url)
        page.until_shown(feed.totals)
        assert_shows(page, feed.totals)


def test_the_curve_is_of_commits_and_not_of_what_a_rollup_catches_up(page):
    """Totals that jump were not counted in that second."""
    feed = Feed()
    whole = feed.totals["windows"]["since_start"]["tokens"]["total_tokens"]
    label = "document.getElementById('curve').getAttribute('aria-label')"
    with served(feed) as site:
        page.open(site.url)
        for second in range(8):
            feed.totals = make(at_ms=totals_data.AT_MS + 1000 * second)
            feed.totals["windows"]["since_start"]["tokens"]["total_tokens"] = whole + second * 10**17
            page.until_shown(feed.totals)
        most = show.si(max(feed._rate()["tokens_per_second"]))
        page.until(
            lambda: page.ask(label) == f"Tokens per second over the last ten minutes, at most {most}", "the curve"
        )
    assert not complaints(page)


def test_before_the_first_summary(page):
    with served(Feed(nothing())) as site:
        page.open(site.url)
        page.until(lambda: page.state == "stale", "an empty rollup looks alive")
        assert "no meter has committed yet" in page.banner and page.field("now")[0] == "–"
    assert not complaints(page)


def test_totals_beyond_doubles_keep_their_last_digit(page):
    feed = Feed()
    feed.totals["windows"]["since_start"]["tokens"]["total_tokens"] = 2**63 + 1
    feed.totals["matrix"]["total_tokens"][0][0] = feed.totals["top_users"][0]["total_tokens"] = 10**17 + 1
    with served(feed) as site:
        page.open(site.url)
        page.until_shown(feed.totals)
        assert page.field("since_start") == (show.si(2**63 + 1), f"{2**63 + 1:,} tokens")
        assert page.ask("document.querySelector('#top-users td').title") == f"{10**17 + 1:,}"
    assert not complaints(page)


def test_numbers_are_written_as_in_reports(page):
    values = [
        0,
        0.5,
        1,
        9.994,
        12.3456,
        99.95,
        100.4,
        999,
        999.4,
        999.5,
        1000,
        1234,
        12_345,
        999_499,
        999_500,
        10**6,
        1.389e9,
        119.8e12,
        7e15,
    ]
    shares = [0, 0.00005, 0.0001, 0.000999, 0.0123, 0.0994, 0.0995, 0.5, 0.9981, 1, 1.0001, 9.99, 10, 123.4]
    with served(Feed()) as site:
        page.open(site.url)
        script = """const [values, shares, done] = arguments;
            import("/static/format.js").then(f => done([values.map(f.si), shares.map(f.percent)]))"""
        numbers, percents = page.chrome.execute_async_script(script, values, shares)
    assert numbers == [show.si(value) for value in values]
    assert percents == [show.percent(share) for share in shares]


# --- True now? ---


def test_stale_totals_say_so_loudly(page):
    feed = Feed(make(stale=True))
    with served(feed) as site:
        page.open(site.url)
        page.until(lambda: page.state == "stale", "not stale")
        assert page.banner.startswith("STALE: no meter has committed for 4")
        assert float(page.ask("getComputedStyle(document.querySelector('main')).opacity")) < 0.7
        assert page.ask("document.title").startswith("STALE")
        feed.totals = make(at_ms=totals_data.AT_MS + 1000)
        page.until(lambda: page.state == "live" and page.banner == "", "it does not recover")


@pytest.mark.parametrize("size", ["wall", "small"])
def test_a_log_that_is_rejected_has_a_banner_that_goes_when_it_is_counted(page, size):
    feed = Feed()
    misfit = {
        "topic": "inference-logs", "judged": 2000, "rejected": 1966, "reason": "missing_field", "field": "user",
        "most": 1900, "keys": ["id", "usage.prompt_tokens", "<b>\u202e"],
    }  # fmt: skip
    feed.totals["misfits"] = [
        misfit,
        misfit | {"topic": "w" * 249, "reason": "invalid_json", "field": None, "keys": []},
    ]
    with served(feed) as site:
        page.open(site.url, size)
        page.until(lambda: page.banner, "no banner")
        assert page.banner == (
            "NOT COUNTED: 98.3 % of inference-logs (missing_field of user; it has id, usage.prompt_tokens, <b>\ufffd), "
            f"98.3 % of {'w' * 249} (invalid_json)"
        )
        assert page.state == "live", "the numbers are true"
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        feed.totals = make(at_ms=totals_data.AT_MS + 1000)
        page.until(lambda: page.state == "live" and page.banner == "", "it does not recover")
    assert not complaints(page)


def test_a_silent_server_is_not_believed(page):
    feed = Feed()
    with served(feed) as site:
        page.open(site.url)
        page.until_shown(feed.totals)
        page.until(lambda: page.state == "disconnected", "silence is believed")
        assert page.banner.startswith("NO UPDATES for ") and "the server sends nothing" in page.banner
        feed.totals = make(at_ms=totals_data.AT_MS + 9000)
        page.until(lambda: page.state == "live", "it does not recover")


def test_it_comes_back_after_a_restart_and_asks_for_history_again(page):
    feed, later = Feed(), Feed(make(Shape(models=3), totals_data.AT_MS + 60_000))
    with served(feed) as site:
        page.open(site.url)
        page.until_shown(feed.totals)
        page.until_drawn()
        port = site.site.port
    page.until(lambda: "connection lost, trying again" in page.banner, "it does not notice")
    assert page.state == "disconnected"
    with served(later, port):
        page.until_shown(later.totals)
        assert page.state == "live" and page.banner == ""
        page.until(lambda: len(page.table("#legend-model li")) == 3, "the old history stays")
        assert later.histories


def test_a_refusal_is_shown_and_a_token_opens(page):
    token = "a-token-for-the-page-0123456789"
    with served(Feed(), token=token) as site:
        page.open(f"{site.url}/?token={token}")
        page.until(lambda: page.state == "live", "the token does not open")
        assert token not in page.ask("location.href") and page.ask("document.cookie") == ""
        page.chrome.refresh()
        page.until(lambda: page.state == "live", "the cookie does not open")
        page.chrome.delete_all_cookies()
        page.chrome.get(site.url)
        assert "a token is needed" in page.ask("document.body.textContent")


# --- Names are other people's ---


def hostile(at_ms: int = totals_data.AT_MS) -> dict[str, Any]:
    totals = make(Shape(models=len(ATTACKS), chips=len(ATTACKS), users=len(ATTACKS), meters=2), at_ms)
    for window in totals["windows"].values():
        for row, name in zip(window.get("by_model", ()), ATTACKS, strict=False):
            row["model"] = name
        for row, name in zip(window.get("by_chip", ()), ATTACKS, strict=False):
            row["chip"] = name
    totals["matrix"] |= {"models": ATTACKS, "chips": ATTACKS}
    for row, name in zip(totals["top_users"], ATTACKS, strict=True):
        row["user"] = name
    totals["meters"][0] |= {"device": ATTACKS[0], "meter": ATTACKS[1]}
    totals["rejects"] = {name: 10 + k for k, name in enumerate(ATTACKS)}
    return totals


@pytest.mark.parametrize("size", SIZES)
def test_hostile_names_are_text_and_keep_the_layout(page, size):
    feed = Feed(hostile())
    with served(feed) as site:
        page.open(site.url, size)
        page.until_shown(feed.totals)
        for chart in ("by-model", "by-chip"):
            page.ask("document.getElementById(arguments[0]).scrollIntoView()", chart)
            page.until(
                lambda chart=chart: page.ask("document.getElementById(arguments[0]).dataset.drawn > 0", chart), chart
            )
        shown = [row[0] for row in page.table("#top-users tr")]
        assert shown[:4] == ATTACKS[:4] and shown[5:] == ATTACKS[5:], "as they are"
        assert shown[4] == "\ufffdright to left\ufffd \ufffd\ufffd\ufffd[31m\ufffd", "what is invisible is visible"
        assert page.ask("[...document.querySelectorAll('main script, main img, main a, main b b, svg a')].length") == 0
        assert "taken" not in page.ask("document.title")
        hover(page)
        assert page.ask("document.querySelectorAll('svg a, svg image, .hoverlayer text').length") == 0
        feed.totals = hostile(totals_data.AT_MS + 1000)  # after seconds of silence a line more says so
        page.until_shown(feed.totals)
        assert fits(page)
    assert not complaints(page)


def hover(page: Page) -> None:
    """What the pointer is at is told in the legend. It moves until then: a chart that is drawn anew has missed it."""
    page.ask("document.getElementById('by-model').scrollIntoView()")
    chart = page.chrome.find_element("id", "by-model")

    def told() -> bool:
        ActionChains(page.chrome).move_to_element(chart).perform()
        return "UTC" in page.ask("document.querySelector('[data-time=by-model]').textContent")

    page.until(told, "no time")


def fits(page: Page) -> bool:
    """No scrolling sideways; on a wall none at all."""
    wide, high = page.ask(
        "[document.documentElement.scrollWidth - innerWidth, document.documentElement.scrollHeight - innerHeight]"
    )
    return wide <= 0 and (high <= 0 or page.ask("innerHeight < 900 || innerWidth < 1200"))


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_screen(page, size):
    with served(Feed(make(Shape(models=64, chips=32, meters=60)))) as site:
        page.open(site.url, size)
        page.until(lambda: page.state == "live", "not live")
        page.until(lambda: page.table("#meter-rows tr"), "no meters")
        assert fits(page)
        assert page.field("more-meters")[0] == "and 10 more" and len(page.table("#meter-rows tr")) == 50


def test_rows_of_the_matrix_come_as_one_scrolls(page):
    feed = Feed(make(Shape(models=64, chips=32)))
    models = feed.totals["matrix"]["models"]
    with served(feed) as site:
        page.open(site.url)
        page.until_shown(feed.totals)
        seen = [row[0] for row in page.table("#matrix tbody tr")]
        assert 0 < len(seen) < 64 and seen == models[: len(seen)]
        page.ask("document.querySelector('.matrix .scroll').scrollTo(0, 1e6)")
        page.until(lambda: page.table("#matrix tbody tr")[-1][0] == models[-1], "the last row does not come")


# --- Themes, spans ---


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_themes_follow_the_system_and_the_person(page, theme):
    other = {"dark": "light", "light": "dark"}[theme]
    with served(Feed()) as site:
        page.open(site.url, theme=theme)
        page.until_drawn()
        follows = colours(page)
        page.ask("document.getElementById('theme').click()")
        chosen = colours(page)
        assert (brightness(follows) < 60 < 180 < brightness(chosen)) == (theme == "dark")
        page.chrome.refresh()
        assert colours(page) == chosen, "remembered"
        page.prefer(other)
        assert colours(page) == chosen, "a person's choice stands"
        page.ask("localStorage.clear()")
        page.prefer(theme)


def colours(page: Page) -> str:
    return page.ask("getComputedStyle(document.documentElement).backgroundColor")


def brightness(colour: str) -> float:
    return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(", "))) / 3


def test_the_span_of_the_history_is_chosen(page):
    feed = Feed(make(Shape(models=20, chips=3)))
    with served(feed) as site:
        page.open(site.url)
        page.until_drawn()
        legend = page.table("#legend-model li > *")
        assert len(legend) == 13 and legend[-1][1] == "others", "12 models, the rest is one"
        assert len(page.table("#legend-chip li")) == 3
        for span, ms in (("6h", 21_600_000), ("24h", 86_400_000)):
            page.ask("document.querySelector(`[data-span='${arguments[0]}']`).click()", span)
            page.until(lambda ms=ms: {(ms, 300_000, "model"), (ms, 300_000, "chip")} <= set(feed.histories), span)
        assert page.ask("document.querySelector('[aria-pressed=true]').textContent") == "24 h"
        points = "document.getElementById('by-model').data[0].x.length"
        page.until(lambda: page.ask(points) >= 287, "a day of steps")
    assert not complaints(page)
