"""A headless Chromium that opens files, and says what a page asked for and complained about."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import image as mpl_image
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]
_SOFTWARE_GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
_COLOURS = """
const source = document.getElementById("planes"), copy = document.createElement("canvas");
[copy.width, copy.height] = [source.width, source.height];
const pen = copy.getContext("2d", { willReadFrequently: true });
// draws anew in this task: WebGL keeps no picture beyond it
document.querySelector("input[data-axis]").dispatchEvent(new Event("input"));
pen.drawImage(source, 0, 0);
const pixels = new Uint32Array(pen.getImageData(0, 0, copy.width, copy.height).data.buffer);
return new Set(pixels).size;
"""


def programs() -> tuple[str, str] | None:
    """Return where Chromium and its driver are, or None."""
    browser = next(filter(None, map(shutil.which, ("/usr/lib/chromium/chromium", "chromium", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


class Browser:
    """One window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> None:
        """Open a page."""
        self.driver.get("about:blank")
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.driver.get(path.resolve().as_uri())

    def open_report(self, path: Path) -> None:
        """Open a report and wait until it shows a scan or has given up on it."""
        self.open(path)
        self.wait("document.getElementById('loading').hidden || !document.getElementById('no-viewer').hidden")

    def wait(self, condition: str) -> None:
        WebDriverWait(self.driver, 90, 0.05).until(lambda driver: driver.execute_script(f"return {condition}"))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def text(self, id: str) -> str:
        return self.run(f"return document.getElementById('{id}').textContent")

    def where(self) -> list[float]:
        """Return the crosshair in mm, as the page shows it."""
        shown = self.text("at-mm").replace("−", "-").split()
        return [float(value) for value in shown[1::2]]

    def colours(self) -> int:
        """Count the colours of the picture that WebGL draws."""
        return self.run(_COLOURS)

    def picture(self, selector: str) -> np.ndarray:
        """Return what a person sees of an element, ``(rows, columns, 3)`` in [0, 1]."""
        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        return mpl_image.imread(io.BytesIO(element.screenshot_as_png))[..., :3]

    def requests(self) -> list[str]:
        """Return what pages have asked for since the last call; the browser's own and data in the page are left out."""
        entries = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [entry["params"] for entry in entries if entry["method"] == "Network.requestWillBeSent"]
        urls = [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]
        return [url for url in urls if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Return what the console has received since the page was opened, violations of its policy among it."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextlib.contextmanager
def chromium(profile: Path, *, webgl: bool = True) -> Iterator[Browser]:
    """Start a browser with a profile of its own."""
    found = programs()
    assert found is not None
    options = Options()
    options.binary_location = found[0]
    for flag in [*_FLAGS, *(_SOFTWARE_GL if webgl else ["--disable-3d-apis"]), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    os.environ["SE_AVOID_STATS"] = "true"
    driver = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        driver.set_window_size(1200, 1000)
        yield Browser(driver)
    finally:
        driver.quit()
