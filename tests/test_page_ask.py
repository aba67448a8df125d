"""What a person may ask of the page, in headless Chromium: filters, ranges, users, exports, money; meters' states.

One server and one browser serve the module, and every test opens the page anew, by itself or with `opened`.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

from tests import books, browser, totals_data
from tests.test_ledger import take
from tests.test_ledger_usage import serving
from tests.test_page import Page, chrome, complaints, served  # noqa: F401 - a fixture
from tests.totals_data import Feed, Shape, make
from tokenometer.processor.dashboard import Ledger, Question, SiteThread, server
from tokenometer.processor.ledger import pricefile
from tokenometer.processor.ledger.list_money import ListMoney

pytestmark = pytest.mark.browser
AT_MS = totals_data.AT_MS + 30_000  # the minute is half over
SIZES = [(1440, 900), (2560, 1440), (1280, 720), (390, 844)]
LIST = """
currency = "USD"
[[price]]
model = "gpt-*"
input = "0.5"
output = "1.5"
[[chip_cost]]
chip = "H100-SXM5-80GB"
per_million_tokens = "0.2"
"""
ALERT = {
    "schema": 1, "id": "1", "rule": "everything", "threshold": 80, "each": None, "subject": None,
    "unit": "total_tokens", "limit": 5_000_000_000_000, "used": 4_312_345_678_901, "per": "hour",
    "begin": "2026-11-23T17:00:00+00:00",
    "end": "2026-11-23T18:00:00+00:00", "at": "2026-11-23T17:05:00.123Z",
}  # fmt: skip
MONEY_ALERT = ALERT | {
    "rule": "team-day", "threshold": 100, "each": "team", "subject": "blue", "unit": "USD", "limit": "250",
    "per": "day", "used": "261.0135",
}  # fmt: skip
# Elements whose content is wider than their box, and panels whose content is higher. What scrolls is meant to.
CUT = """
[...document.querySelectorAll("header, header *, .ask, .ask *, #banner, section, section *")].filter((node) =>
  node.offsetParent && node.clientWidth && !node.matches(".scroll, .legend, canvas")
  && !node.closest("svg, .js-plotly-plot")
  && (node.scrollWidth > node.clientWidth + 1 && getComputedStyle(node).display !== "inline"
    || node.matches("section") && node.scrollHeight > node.clientHeight + 2)
).map((node) => [node.tagName, node.className, node.textContent.trim().slice(0, 40), node.scrollWidth])
""".strip()

# Cells of which one part is in sight and another is not, where a list ends or under the sum that stays at its end.
CUT_CELLS = """
[...document.querySelectorAll(".matrix .scroll, #money .scroll, .top .scroll")].flatMap((list) => {
  const box = list.getBoundingClientRect(), foot = list.querySelector("tfoot")?.getBoundingClientRect();
  const [right, bottom] = [box.left + list.clientWidth, foot?.height ? foot.top : box.top + list.clientHeight];
  return [...list.querySelectorAll("thead th, tbody th, tbody td")].filter((cell) => {
    const { left, right: end, top, bottom: low } = cell.getBoundingClientRect();
    const seen = Math.min(end, right) - Math.max(left, box.left) > 2 && Math.min(low, bottom) - top > 2;
    return seen && end - left > 0 && (end > right + 2 || low > bottom + 2);
  }).map((cell) => [list.ariaLabel, cell.textContent]);
})
""".strip()
# Of a list: what it hides sideways and downwards, its rows in sight, and whether the page reaches its end.
LIST_ROOM = """
(list => { const box = list.getBoundingClientRect();
  const rows = [...list.querySelectorAll("tbody tr")].filter((row) =>
    row.textContent && row.getBoundingClientRect().bottom <= box.top + list.clientHeight + 2);
  return [list.scrollWidth - list.clientWidth, list.scrollHeight - list.clientHeight, rows.length,
    box.bottom + scrollY <= document.documentElement.scrollHeight];
})(document.querySelector(arguments[0]))
""".strip()

FOCUSED = """
(node => node.dataset.pick ? `data-pick ${node.dataset.pick}`
  : node.dataset.span ? "span" : node.id || node.name || node.tagName)(document.activeElement)
""".strip()


@pytest.fixture(scope="module")
def feed() -> Feed:
    prices = pricefile.parse(LIST, "prices.toml")
    return Feed(make(at_ms=AT_MS), money=ListMoney(prices, prices))


@pytest.fixture(scope="module")
def site(feed: Feed) -> Iterator[SiteThread]:
    before, server.TICK_SECONDS = server.TICK_SECONDS, 0.1
    with served(feed) as site:
        yield site
    server.TICK_SECONDS = before


@pytest.fixture
def page(chrome: webdriver.Chrome, feed: Feed, site: SiteThread) -> Iterator[Page]:  # noqa: F811
    feed.totals = make(at_ms=AT_MS)
    feed.asked.clear()
    feed.alerts = []
    chrome.get_log("browser")
    page = Page(chrome)
    yield page
    assert not complaints(page)


@pytest.fixture
def opened(page: Page, site: SiteThread) -> None:
    open_at(page, site, "")


def open_at(page: Page, site: SiteThread, query: str, size: tuple[int, int] = (1440, 900)) -> None:
    browser.resize(page.chrome, *size, mobile=size[0] < 500)
    page.prefer("dark")
    page.chrome.get(f"{site.url}/{query}")
    page.until(lambda: page.state == "live", "not live")
    page.until(lambda: page.table("#meter-rows tr"), "no meters")


def click(page: Page, selector: str) -> None:
    page.until(lambda: page.ask("document.querySelector(arguments[0])", selector), selector)
    page.ask("document.querySelector(arguments[0]).click()", selector)


def address(page: Page) -> str:
    return page.ask("location.search")


@pytest.mark.usefixtures("opened")
def test_a_click_on_a_model_a_chip_and_a_meter_filters_all_that_is_known_of_it(page, feed, site):
    before = page.field("now")[0]
    click(page, "#legend-model button[value='gpt-oss-120b']")
    page.until(lambda: page.field("now")[0] != before, "the rate is not the model's")
    part = feed._view(Question(3_600_000, 60_000, "total", None, "gpt-oss-120b", None, None))
    assert page.field("today")[1] == f"{part['windows']['today']['tokens']['total_tokens']:,} tokens"
    assert page.field("since_start")[0] == "–", "what is not known of a model is not shown as if it were"
    page.until(lambda: [row[0] for row in page.table("#matrix tbody tr")] == ["gpt-oss-120b"], "the matrix")
    page.until(lambda: any(asked.model == "gpt-oss-120b" for asked in feed.asked), "the charts")
    assert "not filtered" in page.ask("getComputedStyle(document.querySelector('.flow h2'), '::after').content")
    click(page, "#matrix thead button[value='TPU-v6e']")
    page.until(lambda: page.table("#matrix thead tr") == [["", "TPU-v6e"]], "the chip")
    assert address(page) == "?model=gpt-oss-120b&chip=TPU-v6e"
    for name in ("model", "chip"):
        click(page, f"[data-clear={name}]")
    page.until(lambda: page.field("now")[0] == before and address(page) == "", "the filter does not go")
    click(page, "#meter-rows button[value='meter-1']")
    meter = feed.totals["meters"][1]
    page.until(lambda: page.field("read")[1] == f"{meter['records']['read']:,}", "the meter's records")
    chosen = ["meter-1" + meter["device"]]
    page.until(lambda: [row[0] for row in page.table("#meter-rows tr")] == chosen, "the other meters do not go")
    page.chrome.back()
    page.until(lambda: address(page) == "" and len(page.table("#meter-rows tr")) == 3, "Back undoes a filter")


def test_a_view_that_is_sent_is_the_view_that_opens(page, feed, site):
    open_at(
        page, site, "?from=2026-11-23T10:00Z&to=2026-11-23T12:00Z&model=TPU&chip=x%26y&yesterday=0&token=no&other=1"
    )
    page.until(lambda: any(asked.model == "TPU" and asked.chip == "x&y" for asked in feed.asked), "the filters")
    asked = next(asked for asked in feed.asked if asked.chip == "x&y" and asked.by == "model")
    assert (asked.span_ms, asked.until_ms) == (7_200_000, 1_795_435_200_000)
    assert address(page) == "?from=2026-11-23T10%3A00Z&to=2026-11-23T12%3A00Z&model=TPU&chip=x%26y&yesterday=0"
    click(page, "[data-span='48h']")
    page.until(lambda: any(asked.span_ms == 172_800_000 for asked in feed.asked), "48 hours")
    assert address(page).startswith("?range=48h")
    open_at(page, site, "?range=9y&from=2026-11-23T10:00Z&to=2020-01-01T00:00Z")
    assert address(page) == "", "what nobody knows is left out"


@pytest.mark.usefixtures("opened")
def test_yesterday_is_behind_today_and_the_unfinished_minute_is_veiled(page, feed):
    lines = "document.getElementById('by-model').data?.map((trace) => trace.name) ?? []"
    page.until(lambda: "yesterday" in page.ask(lines), "no yesterday")
    # The time of yesterday's line is that of today's chart.
    first = "document.getElementById('by-model').data.map((trace) => trace.x[0])"
    page.until(lambda: len(set(page.ask(first))) == 1, "another time of day")
    assert {asked.until_ms for asked in feed.asked if asked.by == "total" and asked.span_ms > 900_000} != {None}
    assert page.ask("document.getElementById('by-model').layout.shapes.length") == 2
    click(page, "#yesterday")
    page.until(lambda: "yesterday" not in page.ask(lines) and address(page) == "?yesterday=0", "it does not go")


@pytest.mark.parametrize(
    ("behind", "last", "veiled"),
    [((0, 0, 0), 0, 2), ((20, 20, 20), 21, 2), ((20, 18, 19), 21, 2), ((50, 18, 18), 19, 2)],
)
def test_a_chart_ends_where_counting_is_and_not_in_a_cliff(page, feed, site, behind, last, veiled):
    """Minutes of event time that each meter is behind; the newest record is half a minute into its minute."""
    feed.totals = make(at_ms=AT_MS + 1000)
    minute_ms = AT_MS // 60_000 * 60_000
    for meter, minutes in zip(feed.totals["meters"], behind, strict=True):
        meter["partitions"][0]["watermark"] = totals_data.instant(minute_ms - minutes * 60_000 + 30_000)
    feed.totals["complete_up_to"] = totals_data.instant(minute_ms - max(behind) * 60_000 + 30_000)
    open_at(page, site, "")
    ends = "document.getElementById('by-model').data?.[0]?.x.at(-1)"
    page.until(lambda: page.ask(ends) == minute_ms - last * 60_000, "the chart's end")
    layout = "document.getElementById('by-model').layout"
    assert page.ask(f"{layout}.xaxis.range[1]") == minute_ms, "the time that was asked for"
    assert page.ask(f"{layout}.shapes.length") == veiled


def test_an_old_log_gives_a_page_that_says_why_it_is_empty(page):
    """The log's newest record is a week older than now."""
    now_ms = AT_MS + 7 * 86_400_000
    feed = Feed(totals_data.old(now_ms, AT_MS))
    with served(feed) as site:  # one that has answered nothing yet: a server keeps its answers for a while
        open_at(page, site, "")
        told = "(note => note.hidden ? '' : note.textContent)(document.getElementById('old'))"
        said = "The newest record is of 23 Nov 17:05:43 UTC; this view has nothing of it."
        page.until(lambda: page.ask(told) == said, "no word")
        assert {row[2] for row in page.table("#top-users tr")} == {"–"}, "the share of nothing"
        assert "Committed in the last hour" in page.field("users-told")[0] and page.field("users-1h")[0] == "0"
        assert {row[2] for row in page.table("#categories tr")} == {"–"}
        axis = "document.getElementById(arguments[0]).layout?.xaxis"
        for chart in ("by-model", "by-chip"):
            page.until(lambda chart=chart: (page.ask(f"{axis}?.range", chart) or [0, 0])[1] == now_ms, "no range")
            assert 3_600_000 <= now_ms - page.ask(f"{axis}.range", chart)[0] < 3_660_000
        feed.totals = make(at_ms=now_ms + 1000)
        page.until(lambda: page.ask(told) == "", "it does not go")


class Mute(Feed):
    """Has totals, and answers no question about a history."""

    def _history(self, asked: Question) -> dict[str, Any]:
        return {}


def test_a_chart_without_an_answer_names_no_day(page):
    with served(Mute(make(at_ms=AT_MS))) as site:
        open_at(page, site, "")
        layout = "document.getElementById('by-model').layout"
        page.until(lambda: page.ask(layout), "no chart")
        assert page.ask(f"{layout}.xaxis.showticklabels") is False


@pytest.mark.usefixtures("opened")
def test_what_the_pointer_is_at_is_told_in_the_legend_and_not_in_a_label_that_is_cut(page):
    page.until_drawn()
    ActionChains(page.chrome).move_to_element(page.chrome.find_element("id", "by-model")).perform()
    page.until(lambda: "UTC" in page.ask("document.querySelector('[data-time=by-model]').textContent"), "no time")
    assert all("%" not in row[2] for row in page.table("#legend-model li button"))
    assert page.ask("document.querySelectorAll('.hoverlayer .hovertext').length") == 0


@pytest.mark.usefixtures("opened")
def test_a_user_is_searched_and_the_answer_says_where_it_comes_from(page, feed, site):
    user = feed.totals["top_users"][0]
    page.chrome.find_element("css selector", "#search input").send_keys(user["user"], Keys.ENTER)
    told = "document.querySelector('#user .told').textContent"
    page.until(lambda: f"At least {user['total_tokens']:,} tokens" in page.ask(told), "no answer")
    assert "No ledger is named" in page.ask(told) and address(page) == f"?user={user['user']}"
    open_at(page, site, "?user=nobody%3Cb%3E")
    page.until(lambda: "Not among the largest users" in page.ask(told), "an unknown user")
    assert page.ask("document.querySelector('#user h2').textContent") == "User nobody<b>"


def test_any_user_is_found_in_a_ledger_that_is_named(page, tmp_path):
    hour = int(time.time()) // 3600 * 3_600_000
    rows = [
        books.usage_row((hour - ago * 3_600_000, "small", model, "h100", "p"), [1, tokens, 0, 0, 0, 0])
        for ago, model, tokens in ((0, "m1", 10), (3, "m1", 100), (20, "m2", 7_000))
    ]
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        take(store, rows)
        with serving(store) as url, served(Feed(make(at_ms=AT_MS), ledger=Ledger(url))) as site:
            open_at(page, site, "?user=small")
            told = "document.querySelector('#user .told').textContent"
            page.until(lambda: "7,110 tokens in the last 24 h, by the ledger" in page.ask(told), "no answer")
            assert page.table("#user tbody tr") == [["m2", "0", "0", "7.00 k"], ["m1", "10", "110", "110"]]
            assert page.ask("document.querySelector('[data-link=ledger]').href") == f"{url}/v1/openapi.json"


@pytest.mark.usefixtures("opened")
def test_a_late_meter_fades_a_dead_one_is_named_and_one_that_was_told_to_stop_is_no_fault(page, feed):
    feed.totals = make(at_ms=AT_MS + 1000)
    for meter, (state, age_ms) in zip(
        feed.totals["meters"], (("late", 2600), ("stale", 14_000), ("stopped", 60_000)), strict=True
    ):
        meter.update(state=state, age_ms=age_ms)
    page.until(lambda: page.field("pulse")[0] == "meter-1 stopped 14 s, meter-0 late 2.6 s", "the header")
    page.until(
        lambda: [row[1] for row in page.table("#meter-rows tr")] == ["▲ stopped 14 s", "◐ late 2.6 s", "■ stopped"],
        "rows",
    )
    opacity = "[...document.querySelectorAll('#meter-rows tr')].map((row) => getComputedStyle(row.children[2]).opacity)"
    assert all(float(each) < 0.7 for each in page.ask(opacity)), "the last values fade"
    assert page.state == "live" and page.banner == ""
    feed.totals = make(at_ms=AT_MS + 2000)
    for meter in feed.totals["meters"]:
        meter["state"] = "stopped"
    feed.totals["stale"] = True
    page.until(lambda: page.banner.startswith("STOPPED: every meter was told to stop"), "the banner")


def test_a_time_that_is_chosen_is_that_of_categories_matrix_money_and_users(page, feed, site):
    open_at(page, site, "?range=6h")
    hour = sum(map(sum, feed.totals["matrix"]["total_tokens"]))
    titles = "[...document.querySelectorAll('#matrix td')].map((cell) => Number(cell.tokens))"
    page.until(lambda: sum(page.ask(titles)) > 5 * hour, "the matrix is of the last hour")
    for panel in (".split", ".matrix", "#money"):
        assert "last 6 hours" in page.ask("document.querySelector(arguments[0]).querySelector('h2').textContent", panel)
    page.until(lambda: page.table("#money tfoot tr"), "no money")
    whole = feed._cost(Question(6 * 3_600_000, 300_000, "total", None, None, None, None))
    page.until(
        lambda: page.ask("document.querySelector('#money tfoot td').title") == f"{whole['total_tokens']:,}", "sum"
    )
    assert page.table("#top-users tr") == [] and "start the rollup with --ledger" in page.field("users-told")[0]
    click(page, "[data-span='1h']")
    page.until(lambda: len(page.table("#top-users tr")) == 20 and page.field("users-told")[0] == "", "the lists")
    page.until(lambda: sum(page.ask(titles)) == hour, "the last hour")


@pytest.mark.usefixtures("opened")
def test_a_meter_s_own_usage_is_shown_of_the_last_quarter_of_an_hour(page, feed, site):
    everybody = page.field("now")[1]
    open_at(page, site, "?meter=meter-1")
    page.until(lambda: page.field("now")[1] not in (everybody, "–"), "the rate of all meters")
    meter = feed.totals["meters"][1]
    assert page.field("since_start")[1] == f"{meter['total_tokens']:,} tokens" and page.field("today")[0] == "–"
    page.until(lambda: len(page.table("#top-users tr")) == 10, "the meter's own list")
    assert page.ask("document.querySelector('.models h2').dataset.unfiltered") == "meter"
    assert "choose 15 m" in page.ask("document.querySelector('.models h2').title")
    click(page, "[data-span='15m']")
    page.until(lambda: page.ask("document.querySelector('.models h2').dataset.unfiltered") == "", "it is filtered")
    page.until(lambda: any(asked.meter and asked.by == "model" for asked in feed.asked), "the chart")
    assert page.ask("document.querySelector('.users h2').dataset.unfiltered") == "meter"


def test_who_used_a_model_at_two_o_clock_and_what_it_cost_is_the_ledger_s(page, tmp_path):
    hour = AT_MS // 3_600_000 * 3_600_000 - 3 * 3_600_000
    rows = [
        books.usage_row((hour + at * 60_000, user, model, "h100", "p"), [1, tokens, 0, 0, 0, 0])
        for at, user, model, tokens in (
            (0, "big", "gpt-x", 4_000_000), (30, "small", "gpt-x", 1_000_000), (9, "other", "m", 9_000_000),
            (61, "late", "gpt-x", 7_000_000),
        )
    ]  # fmt: skip
    time_of = f"from={totals_data.instant(hour)[:16]}Z&to={totals_data.instant(hour + 3_600_000)[:16]}Z"
    with books.opened(str(tmp_path / "ledger.duckdb")) as store:
        take(store, rows)
        with serving(store) as url, served(Feed(make(at_ms=AT_MS), ledger=Ledger(url, prices=LIST))) as site:
            open_at(page, site, f"?{time_of}&model=gpt-x")
            shown = [["big", "4.00 M", "2.00"], ["small", "1.00 M", "0.50"]]
            page.until(lambda: page.table("#top-users tr") == shown, "the users")
            assert page.field("users-third")[0] == "USD" and "by the ledger" in page.field("users-when")[0]
            click(page, "#top-users button[value='big']")
            told = "document.querySelector('#user .told').textContent"
            page.until(lambda: "by the ledger" in page.ask(told), "the user")


@pytest.mark.usefixtures("opened")
def test_what_is_shown_is_exported_with_all_its_digits(page, feed):
    page.until_drawn()
    page.ask("""(() => { window.saved = [];
        URL.createObjectURL = (blob) => (blob.text().then((text) => saved.push(text)), "#");
        HTMLAnchorElement.prototype.click = function () { saved.name = this.download }; })()""")
    users = feed.totals["top_users"]
    users[0]["user"] = '=SUM(1),"x"'
    for name in ("users", "matrix", "meters", "model", "money"):
        click(page, f"[data-export={name}]")
    page.until(lambda: page.ask("saved.length") == 5, "five files")
    files = [text.split("\r\n") for text in page.ask("saved")]
    assert files[0][0] == "user,total_tokens" and files[0][2] == f"{users[1]['user']},{users[1]['total_tokens']}"
    matrix = feed.totals["matrix"]
    assert files[1][1] == ",".join(map(str, [matrix["models"][0], *matrix["total_tokens"][0]]))
    assert files[2][0].startswith("meter,device,state") and len(files[2]) == 5
    assert files[3][0] == "from,to,model,total_tokens" and len(files[3]) > 400
    assert files[4][0].startswith("kind,name,total_tokens,revenue_USD,cost_USD")


@pytest.mark.usefixtures("opened")
def test_money_is_that_of_the_price_list_and_says_what_has_no_price(page, feed):
    page.until(lambda: page.table("#money [data-kind=model] tr"), "no money")
    expected = feed._cost(Question(3_600_000, 60_000, "total", None, None, None, None))
    shown = {row[0]: row for row in page.table("#money tr") if len(row) == 5}
    rows = "[...document.querySelectorAll('#money tbody tr, #money tfoot tr')]"
    titles = dict(page.ask(f"{rows}.map((row) => [row.children[0].textContent, row.children[2].title])"))
    priced = next(row for row in expected["by_model"] if row["model"] == "gpt-oss-120b")
    assert titles["gpt-oss-120b"] == f"{priced['revenue']} USD" and titles["All"] == f"{expected['revenue']} USD"
    assert shown["qwen3-235b-a22b"][2] == "–" and shown["H200-SXM-141GB"][3] == "–"
    assert "tokens have no price" in page.ask("document.querySelector('#money .more').textContent")


SHOWN = {
    "a user and a model": "?range=6h&model=gpt-oss-120b&user=user-00013",
    "a meter": "?model=gpt-oss-120b&chip=TPU-v6e&meter=meter-1",
    "a time": "?from=2026-11-22T22:00Z&to=2026-11-23T16:00Z&chip=H100-SXM5-80GB",
    "everything": "",
}


def nothing_is_cut(page: Page) -> None:
    """A chart is drawn anew some frames after its panel has got another size."""
    with contextlib.suppress(AssertionError):
        page.until(lambda: page.ask(CUT) == [], "something is cut")
    assert page.ask(CUT) == []


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("shown", SHOWN)
def test_nothing_is_cut(page, feed, site, size, shown):
    feed.totals = make(Shape(models=8, chips=6, meters=3), AT_MS)
    feed.alerts = [ALERT, MONEY_ALERT, *({**ALERT, "subject": f"user-{n:05d}", "each": "user"} for n in range(20))]
    open_at(page, site, SHOWN[shown], size)
    page.until(lambda: not page.ask("document.getElementById('alerts').hidden"), "no alerts")
    for chart in ("by-model", "by-chip"):
        page.ask("document.getElementById(arguments[0]).scrollIntoView()", chart)
        page.until(
            lambda chart=chart: page.ask("document.getElementById(arguments[0]).dataset.drawn > 0", chart), chart
        )
    page.until(lambda: page.table("#money [data-kind=model] tr"), "no money")
    if size[0] in (1280, 1440):
        assert page.ask("matrix.offsetWidth <= matrix.parentElement.clientWidth"), "six chips are in sight"
    for _ in range(2):
        nothing_is_cut(page)
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        click(page, "#alerts > button")  # all of them
    assert page.table("#alerts li")[1][:3] == ["100 %", "team-day · blue", "261.01 of 250 USD (104.4 %)"]


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_all_models_and_chips_are_in_sight_or_the_page_scrolls_to_them(page, feed, site, size):
    feed.alerts = [ALERT, MONEY_ALERT] * 4
    open_at(page, site, "", size)
    page.until(lambda: page.table("#money [data-kind=chip] tr") and page.table("#alerts li"), "no money")
    for panel, rows in ((".matrix", 8), ("#money", 8 + 1 + 6)):
        page.until(lambda panel=panel, rows=rows: page.ask(LIST_ROOM, f"{panel} .scroll") == [0, 0, rows, True], panel)
    assert page.ask(CUT_CELLS) == []
    assert page.ask("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    "size", [(390, 844), (768, 1024), (1280, 800), (1440, 900), (1920, 1080), (2560, 1440)],
    ids=lambda size: f"{size[0]}x{size[1]}",
)  # fmt: skip
@pytest.mark.parametrize("shape", [Shape(), Shape(models=64, chips=32)], ids=["usual", "large"])
def test_a_list_has_eight_rows_at_least_and_cuts_none_inside_a_cell(page, feed, site, size, shape):
    feed.totals = make(shape, AT_MS)
    feed.alerts = [ALERT, MONEY_ALERT] * 4
    open_at(page, site, "", size)
    page.until(lambda: page.table("#money [data-kind=chip] tr") and page.table("#alerts li"), "no money")
    page.until(lambda: len(page.table("#matrix tbody tr")) >= 8, "rows")
    for panel in (".matrix", "#money", ".top"):
        assert page.ask(LIST_ROOM, f"{panel} .scroll")[2] >= 8, panel
    nothing = "something is cut"
    page.until(lambda: page.ask(CUT_CELLS) == [], nothing)
    page.ask("document.querySelector('.matrix .scroll').scrollBy(137, 0)")
    page.until(lambda: page.ask(CUT_CELLS) == [], f"{nothing} after a scroll sideways")


@pytest.mark.usefixtures("opened")
def test_all_can_be_done_by_keyboard(page, site, feed):
    page.until(lambda: page.table("#legend-model li"), "no legend")
    keys = ActionChains(page.chrome)
    names, steps = [], 0
    while "data-pick model" not in names and steps < 40:
        keys.send_keys(Keys.TAB).perform()
        names.append(page.ask(FOCUSED))
        steps += 1
    assert {"span", "yesterday", "user", "theme"} <= set(names) and names[-1] == "data-pick model", names
    keys.send_keys(Keys.ENTER).perform()
    page.until(lambda: address(page).startswith("?model="), "Enter does not filter")
    assert page.ask("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("shown", ["everything", "a meter"])
def test_axe_finds_nothing_serious(page, feed, site, theme, shown):
    feed.alerts = [ALERT, MONEY_ALERT] * 9
    open_at(page, site, SHOWN[shown])
    page.prefer(theme)
    page.until(lambda: page.table("#alerts li"), "no alerts")
    page.until_drawn()
    opacity = "getComputedStyle(document.querySelector('main')).opacity"
    page.until(lambda: page.ask(opacity) == "1", "it is still being faded in, with less contrast")
    found = [each for each in Axe().run(page.chrome)["violations"] if each["impact"] in ("serious", "critical")]
    assert not found, [
        (each["id"], [(node["html"][:120], node["any"][0]["message"]) for node in each["nodes"]][:4]) for each in found
    ]
    with contextlib.suppress(Exception):
        page.chrome.get_log("browser")
