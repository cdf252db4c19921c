"""A browser for the page of --explore, and pages for it."""

import shutil
from pathlib import Path

import pytest

from capsnet.evaluation import explore

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage "
    "--window-size=1400,1300"
).split()


@pytest.fixture(scope="session")
def browser():
    """Chromium; its tests are skipped where it, or Selenium, is missing."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("there is no chromedriver")
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(driver)
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Writes a page of a model and data; returns its path."""

    def write(model, data):
        folder = tmp_path_factory.mktemp("page")
        path = explore.write_page(model, data, "m.keras", str(folder))
        assert path == str(folder / "explore.html")
        return Path(path)

    return write
