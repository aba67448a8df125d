"""Does the dashboard's page keep its frames? 64 models on 32 chips, all numbers new every second, a day of history.

Headless Chromium shows the page at 1920 x 1080, with software rendering, beside the server and on its cores. A frame is
late if it comes more than a quarter of a frame after its time; the page itself counts them (requestAnimationFrame).
"""

import contextlib
import dataclasses
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from selenium import webdriver

from bench import common
from tests import browser
from tests.totals_data import TARGET, Feed, Shape, make
from tokenometer.processor.dashboard import ServeAddress, SiteThread

SHAPE = Shape(models=64, chips=32, meters=20)
VERSIONS = 12
FRAMES_PER_SECOND = 60
SIZES = {"small": 5, "large": 120}  # seconds
SETTLE_SECONDS = 5
_COUNT = """
const [ms, done] = arguments, gaps = [], begun = performance.now();
let last = null;
requestAnimationFrame(function frame(now) {
  if (last !== null) gaps.push(now - last);
  last = now;
  if (performance.now() - begun < ms) requestAnimationFrame(frame); else done(gaps);
});
"""


def main() -> None:
    arguments = common.parser(__doc__).parse_args()
    facts, seconds = common.facts("bench.bench_page", sys.argv[1:]), SIZES[arguments.size]
    feed, done = Feed(), threading.Event()
    news = threading.Thread(target=_tell, args=(feed, done))
    news.start()
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site, _chromium(seconds) as chrome:
        try:
            cases = [_frames(chrome, site.url, span, seconds) for span in ("1h", "24h")]
            version = chrome.capabilities["browserVersion"]
        finally:
            done.set()
            news.join()
    shape = dataclasses.asdict(SHAPE)
    common.save(arguments.json, {"kind": "page", **facts, "browser": version, "shape": shape, "cases": cases})


def _tell(feed: Feed, done: threading.Event) -> None:
    versions = [
        make(dataclasses.replace(SHAPE, tokens_per_second=TARGET / 86_400 * (1 + 0.003 * k))) for k in range(VERSIONS)
    ]
    for totals in itertools.cycle(versions):
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        feed.totals = totals | {"at": now}
        if done.wait(1):
            return


@contextlib.contextmanager
def _chromium(seconds: int) -> Iterator[webdriver.Chrome]:
    launched = browser.launch(seconds + 60)
    if launched is None:
        sys.exit(browser.MISSING)
    browser.resize(launched, 1920, 1080)
    try:
        yield launched
    finally:
        launched.quit()


def _frames(chrome: webdriver.Chrome, url: str, span: str, seconds: int) -> dict[str, Any]:
    chrome.get(url)
    chrome.execute_script("document.querySelector(`[data-span='${arguments[0]}']`).click()", span)
    time.sleep(SETTLE_SECONDS)
    before = chrome.execute_script("return document.querySelector(\"[data-field='at']\").title")
    gaps = sorted(chrome.execute_async_script(_COUNT, seconds * 1000))
    after = chrome.execute_script("return document.querySelector(\"[data-field='at']\").title")
    assert after > before, "the page showed nothing new"
    frame = 1000 / FRAMES_PER_SECOND
    found = {
        "span": span,
        "seconds": seconds,
        "frames_per_second": len(gaps) * 1000 / sum(gaps),
        "late": sum(gap > frame * 1.25 for gap in gaps),
        "frames": len(gaps),
        "longest_ms": gaps[-1],
    }
    print(json.dumps(found), file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    main()
