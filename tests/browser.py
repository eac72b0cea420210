"""A headless Chromium of the system, for pages; skips where there is none."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest


@contextlib.contextmanager
def chromium(width: int = 1180, height: int = 800, scale: float = 1.0, dark: bool = False) -> Iterator[Any]:
    """A browser under selenium whose window has so many CSS pixels."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    browser = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a Chromium and its chromedriver, as in Debian's packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            "disable-dev-shm-usage",
            "hide-scrollbars",
            f"user-data-dir={profile}",
        ):
            options.add_argument(f"--{flag}")
        page = webdriver.Chrome(options, webdriver.ChromeService(driver))
        try:
            size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield page
        finally:
            page.quit()
