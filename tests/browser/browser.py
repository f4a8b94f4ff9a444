"""A headless Chromium that opens pages from the disk, and the tools that make them."""

import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
SKIPPED = 77  # ctest's exit code for it


def skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


try:
    from selenium import webdriver
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    skip("no Selenium for Python (Debian: python3-selenium)")
CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    skip("no chromium with its chromedriver (Debian: chromium, chromium-driver)")


def run_tool(name, *arguments):
    """Runs a program of the build; returns its standard output."""
    program = pathlib.Path(os.environ["FM_BINARY_DIR"]) / name
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def train(folder, name, *flags):
    """A small run on the built-in digits, folder/name."""
    run = folder / name
    run_tool(
        "fmtrain",
        "--preset",
        "tiny",
        "--data",
        "digits",
        "--device",
        "cpu",
        "--threads",
        1,
        "--d-model",
        16,
        "--heads",
        2,
        "--mlp-hidden",
        32,
        "--d-state",
        4,
        "--patch",
        7,
        "--max-steps",
        30,
        "--batch",
        8,
        "--lr",
        0.02,
        "--warmup-steps",
        0,
        "--sample-every",
        -1,
        "--out",
        run,
        *flags,
    )
    return run


def data_of(page):
    """The JSON that a page carries."""
    text = pathlib.Path(page).read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


class Browser:
    """One Chromium; `open` loads a page at a size of SIZES and waits until its pictures are there."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="fm_chromium_")
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={self.profile}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        try:
            self.driver = webdriver.Chrome(service=Service(DRIVER), options=options)
        except WebDriverException as error:
            self.close()
            skip(f"chromium does not start here: {error.msg}")
        self.driver.set_page_load_timeout(120)
        self.driver.set_script_timeout(60)

    def close(self):
        if hasattr(self, "driver"):
            self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)

    def open(self, page, size, scheme="light"):
        width, height = SIZES[size]
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        self.driver.get(pathlib.Path(page).resolve().as_uri())
        self.wait("document.querySelector('.viewer[data-ready]').dataset.ready === 'true'")

    def script(self, text, *arguments):
        return self.driver.execute_script(text, *arguments)

    def wait(self, condition, seconds=60):
        WebDriverWait(self.driver, seconds, poll_frequency=0.02).until(lambda _: self.script(f"return {condition}"))

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def console(self):
        """What the page has logged, since the last call; an uncaught error is there too."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def click_at(self, element, share):
        """Clicks an element at a share of its width."""
        self.script("arguments[0].scrollIntoView({block: 'center'})", element)
        offset = round((share - 0.5) * element.size["width"])
        ActionChains(self.driver).move_to_element_with_offset(element, offset, 0).click().perform()

    def pixels(self, selector):
        """The grey levels of every canvas that the selector finds, a list each."""
        return self.script(
            """
            return [...document.querySelectorAll(arguments[0])].map((canvas) => {
              const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
              copy.drawImage(canvas, 0, 0);
              const data = copy.getImageData(0, 0, canvas.width, canvas.height).data;
              return Array.from({length: data.length / 4}, (_, i) => data[4 * i]);
            });""",
            selector,
        )

    def width_of_content(self):
        return self.script("return document.documentElement.scrollWidth")

    def layout_shift(self):
        """The sum of layout shifts that no input explains."""
        return self.driver.execute_async_script("""
            const done = arguments[0];
            let sum = 0;
            new PerformanceObserver((list) => {
              for (const entry of list.getEntries()) if (!entry.hadRecentInput) sum += entry.value;
            }).observe({type: "layout-shift", buffered: true});
            setTimeout(() => done(sum), 100);""")

    def requests(self):
        """Addresses of everything that was loaded beside the page itself, pictures inside it apart."""
        return [
            name
            for name in self.script("return performance.getEntriesByType('resource').map((e) => e.name)")
            if not name.startswith("data:")
        ]


class PageTest(unittest.TestCase):
    """Has a folder and a browser."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="fm_browser_"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.browser = Browser()
        cls.addClassCleanup(cls.browser.close)


def each_size(test):
    """Runs a test at every size. A page that logs anything, loads anything or is wider than the screen fails."""

    @functools.wraps(test)
    def run(self):
        for size, (width, _) in SIZES.items():
            with self.subTest(size):
                self.browser.console()
                test(self, size)
                self.assertEqual(self.browser.console(), [])
                self.assertEqual(self.browser.requests(), [])
                self.assertLessEqual(self.browser.width_of_content(), width)

    return run


__all__ = ["ActionChains", "Browser", "By", "Keys", "PageTest", "SIZES", "data_of", "each_size", "run_tool", "train"]
