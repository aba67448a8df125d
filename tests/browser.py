"""Headless Chromium, as the tests of the page and its bench drive it."""

import shutil

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

# For pages that are open for some seconds: neither the compilers that pay later, nor a process for each page.
SHORT = ("--js-flags=--no-opt --no-maglev", "--renderer-process-limit=1", "--disable-site-isolation-trials")
MISSING = "no chromium or chromedriver (Debian: chromium, chromium-driver)"


def launch(script_seconds: float, short: bool = False) -> webdriver.Chrome | None:
    """None where it is not installed. script_seconds: how long a script may take; short: for pages that are soon left.
    To be ended by `quit`."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        return None
    options = Options()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *SHORT * short):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, Service(driver))
    browser.set_script_timeout(script_seconds)
    return browser


def resize(browser: webdriver.Chrome, width: int, height: int, mobile: bool = False) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
