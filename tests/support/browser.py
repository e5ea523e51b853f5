"""The browser that tests the pages: the distribution's Chromium, without a window.

`make browser` installs it where there is apt. `python tests/support/browser.py` says whether it is
there, as `make check` asks.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

MISSING = "no browser: the pages are NOT tested; `make browser` installs one (Debian, apt)"
# Pictures of the tests need no sandbox, which a container seldom allows.
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars")


def find() -> tuple[str, str] | None:
  """Returns the paths of Chromium and of its driver, or None where one of them is missing."""
  names = ("chromium", "chromium-browser", "google-chrome")
  browser = next(filter(None, map(shutil.which, names)), None)
  driver = shutil.which("chromedriver")
  return (browser, driver) if browser and driver else None


def start(downloads: Path) -> Any:
  """Starts the browser; files that a page saves go to `downloads`."""
  from selenium import webdriver

  binary, driver = find()
  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for option in _OPTIONS:
    options.add_argument(option)
  several = {"profile.default_content_setting_values.automatic_downloads": 1}
  folder = {"download.default_directory": str(downloads)}
  options.add_experimental_option("prefs", folder | several)
  options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
  return webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))


if __name__ == "__main__":
  sys.exit(None if find() else MISSING)
