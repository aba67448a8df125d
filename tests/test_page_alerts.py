"""Budget alerts on the page: from a usage row to the screen, with the real process and a browser."""

import contextlib

import orjson
import pytest

from tests.test_alerts import NOW_MS, Log, Process, expected, load  # noqa: F401  load is a fixture
from tests.test_page import ATTACKS, SIZES, Page, chrome, complaints, quick, served  # noqa: F401  fixtures
from tests.test_page import page as page  # noqa: PLC0414  a fixture, too
from tests.totals_data import Feed, Shape, make
from tokenometer.processor.rollup.alerted import RecentAlerts

pytestmark = pytest.mark.browser


class AlertFeed(Feed):
    """Totals of a test, and the alerts of a broker."""

    def __init__(self, alerts: RecentAlerts) -> None:
        super().__init__(make(Shape(models=3)))
        self._alerts = alerts

    def source(self):
        source = super().source()
        return type(source)(**{**vars(source), "alerts": lambda: self._alerts.shown(NOW_MS)})


def shown(opened: Page) -> list[list[str]]:
    return opened.ask(
        "[...document.querySelectorAll('#alerts li')].map(li => [...li.children].map(x => x.textContent))"
    )


def test_a_budget_s_alert_comes_to_the_page_and_is_text_at_every_size(page: Page, load):  # noqa: F811
    process, log = Process(load()), Log(1)
    recent = RecentAlerts(process.broker, "token-alerts")
    with contextlib.closing(recent.start()), served(AlertFeed(recent)) as site:
        page.open(site.url)
        page.until(lambda: page.state == "live", "the page to live")
        assert page.ask("document.getElementById('alerts').hidden"), "nothing was announced yet"
        for _ in range(30):
            process.write(log)
        process.drain()
        highest = {}
        for rule, subject, begin, threshold in process.announced():
            highest[rule, subject, begin] = max(threshold, highest.get((rule, subject, begin), 0))
        page.until(lambda: len(shown(page)) == len(highest), "the alerts")
        told = {(name, mark) for mark, name, *_ in shown(page)}
        assert told == {
            (rule if subject is None else f"{rule} · {subject}", f"{threshold} %")
            for (rule, subject, _), threshold in highest.items()
        }
        alert = {**process.alerts()[0], "unit": "USD", "limit": "5", "used": "7.25", "each": "user", "threshold": 100}
        values = [orjson.dumps(alert | {"subject": text}) for text in ATTACKS]
        process.broker.append("token-alerts", values)
        page.until(lambda: len(shown(page)) == len(highest) + len(ATTACKS), "the hostile names")
        assert shown(page)[0][2] == "7.25 of 5 USD (145.0 %)"
        for size in SIZES:
            page.open(site.url, size)
            page.until(lambda: shown(page), "the alerts")
            wide = "[...document.querySelectorAll('#alerts, #alerts *')].filter(x => x.scrollWidth > x.clientWidth + 1 "
            wide += "&& getComputedStyle(x).display !== 'inline').map(x => x.outerHTML)"
            assert page.ask(wide) == [], size
            assert page.ask("document.documentElement.scrollWidth <= innerWidth"), size
        assert page.ask("document.title") != "taken"
    assert not complaints(page)
