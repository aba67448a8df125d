"""The picture of the dashboard in README.md: headless Chromium looks at a real demo.

    python -m tests.picture

The numbers on it are what the demo counted when it was taken. `make picture` runs this.
"""

import os
import pathlib
import subprocess
import sys
import time

from selenium.webdriver.support.ui import WebDriverWait

from tests import browser

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "dashboard.png"
BYTES_MAX = 300_000  # a README is read over slow lines, too
WIDTH, HEIGHT = 1280, 1000
RECORDS, SECONDS = 1_000_000, 60
AT_SECONDS = 45  # of the demo: the charts have most of an hour of its log
COMMAND = (
    *(sys.executable, "-m", "tokenometer.processor.cli", "demo", "--pace", "--listen", "127.0.0.1:0"),
    *("--count", str(RECORDS), "--seconds", str(SECONDS)),
)
_SHOWN = (
    "return document.querySelector(\"[data-field='at']\").title && document.querySelector('canvas, .js-plotly-plot')"
)


def main() -> None:
    chrome = browser.launch(30)
    if chrome is None:
        sys.exit(browser.MISSING)
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True, env=environment) as demo:
        try:
            assert demo.stdout is not None
            address = demo.stdout.readline().split()[1]
            browser.resize(chrome, WIDTH, HEIGHT)
            chrome.get(address)
            WebDriverWait(chrome, 60).until(lambda page: page.execute_script(_SHOWN))
            time.sleep(AT_SECONDS)
            PICTURE.write_bytes(chrome.get_screenshot_as_png())
            demo.stdout.read()  # the audit's report
        finally:
            chrome.quit()
            if sys.exc_info()[0] is not None:
                demo.terminate()
    size = PICTURE.stat().st_size
    if demo.returncode or size > BYTES_MAX:
        sys.exit(f"the demo ended with {demo.returncode}; {PICTURE}: {size} bytes, at most {BYTES_MAX} are wanted")
    print(f"{PICTURE}: {size} bytes")


if __name__ == "__main__":
    main()
