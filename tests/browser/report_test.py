"""The report's page in a real browser: every section from made-up figures, and the viewer inside it."""

import json
import math
import unittest

from browser import ActionChains, Keys, PageTest, data_of, each_size, run_tool, train

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> {{data}} \u2028"
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAA"
    "ggCB2kUIOwAAAABJRU5ErkJggg=="
)
NAMES = {"mamba": "Pure Mamba", "transformer": "Pure Transformer", "hybrid": "Hybrid"}


def stat(mean):
    return {"mean": mean, "sd": mean / 50, "min": 0.98 * mean, "max": 1.02 * mean, "n": 3}


def backbone(name, i):
    curve = {
        "steps": list(range(1, 101)),
        "epochs": [s / 10 for s in range(1, 101)],
        "loss": [0.2 + 0.02 * i + math.exp(-s / 10) for s in range(1, 101)],
    }
    run = {
        "folder": f"runs/{name}-s0",
        "loss": 0.19,
        "half_loss": 0.095,
        "held_out": 0.2,
        "step_ms": 6.0 * (i + 1),
        "step_p90_ms": 7,
        "wall_s": 100,
        "peak_memory_bytes": 2e9,
        "passes": i != 1,
        "margin": 1.2,
        "sentence": "Digits",
        "device": "a device",
        "marks": [{"name": "recognised", "value": 0.9, "margin": 1.8, "position": 0.9}],
        "shares": [0.1] * 10,
        "curve": curve,
        "failed": None,
    }
    return {
        "name": name,
        "label": NAMES[name],
        "blocks": [name],
        "params": 3_087_492,
        "failed": None,
        "flops": {"forward": 1e9, "step": 7.7e11, "scan_share": 0.2},
        "loss": stat(0.19),
        "half_loss": stat(0.095),
        "held_out": stat(0.2),
        "step_ms": stat(6.0 * (i + 1)),
        "step_p90_ms": stat(7),
        "images_per_s": stat(40_000),
        "wall_s": stat(100),
        "peak_memory_bytes": stat(2e9),
        "driver_memory_bytes": None,
        "frechet": stat(12),
        "recognised": stat(0.9),
        "loss_bins": {"test": [0.5 - 0.03 * b for b in range(10)], "train": [0.4] * 10},
        "curve": curve,
        "runs": [{**run, "seed": 0}, {**run, "seed": 1}],
        "grid": DOT,
        "nearest": {"image": DOT, "median": 7, "median_real": 6.9, "copies": 0, "count": 64, "note": HOSTILE},
        "steps_quality": [
            {
                "solver": solver,
                "steps": n,
                "evaluations": n,
                "frechet": (200 if solver == "euler" else 90) / n,
                "recognised": 1 - 0.9 / n,
                "passes": n > 2,
            }
            for solver in ("euler", "heun")
            for n in (1, 2, 4, 5, 10, 20, 50)
        ],
        "latency": [{"batch": b, "ms": 3 + b / 10, "images_per_s": 1000 * b / (3 + b / 10)} for b in (1, 8, 64, 128)],
    }


def report(viewer):
    rows = [
        {
            "name": name,
            "label": label,
            "params": 3.1e6,
            "half_loss": 0.086,
            "step_ms": 18,
            "memory_gb": 3.8,
            "minutes": 42,
            "samples": "clean",
        }
        for name, label in NAMES.items()
    ]
    candidates = [
        {
            "name": name,
            "label": label,
            "passes": i != 1,
            "loss": 0.19,
            "step_ms": 6.0,
            "peak_memory_bytes": 2e9,
            "standing": ["winner", "eliminated", "slower"][i],
            "reason": HOSTILE,
            "wins": 0.9 * (i == 0),
        }
        for i, (name, label) in enumerate(NAMES.items())
    ]
    sweep = [
        {
            "backbone": name,
            "tokens": n,
            "image": 28,
            "patch": 2,
            "batch": 256,
            "step_ms": n / 10,
            "us_per_image": None if n == 3136 and name == "hybrid" else n * (i + 1),
            "peak_memory_bytes": n * 1e6,
            "latency_ms": n / 50,
            "failed": "out of memory" if n == 3136 and name == "hybrid" else None,
        }
        for i, name in enumerate(NAMES)
        for n in (49, 196, 784, 3136)
    ]
    return {
        "format": 1,
        "title": "Three backbones " + HOSTILE,
        "version": "0.1.0",
        "date": "2026-11-25",
        "preset": "tiny",
        "data": {"name": "digits", "train_images": 60000, "test_images": 10000, "channels": 1, "image": 28},
        "devices": ["a device"],
        "protocol": [["epochs", "50"], ["note", HOSTILE]],
        "seeds": [0, 1],
        "decision": {
            "sentence": "Pure Mamba wins. " + HOSTILE,
            "certainty": "Sure.",
            "winner": "mamba",
            "same": 0.9,
            "nobody": 0,
            "rule": ["The bar.", "The loss."],
            "candidates": candidates,
        },
        "published": {"decision": "Mamba wins.", "rows": rows},
        "disagreements": [{"claim": "18 ms", "published": "42 min", "measured": "1 min", "note": HOSTILE}],
        "judge": {
            "classifier_accuracy": 0.99,
            "count": 1000,
            "rule": "A sentence.",
            "frechet_real": 1,
            "frechet_noise": 400,
            "marks": [{"name": "recognised", "at_least": True, "bar": 0.5, "real": 0.98, "noise": 0.02}],
        },
        "backbones": [backbone(name, i) for i, name in enumerate(NAMES)],
        "plots": [],
        "sweep": {
            "device": "a device",
            "tokens_per_step": 50176,
            "rows": sweep,
            "crossovers": [
                {"faster": "mamba", "slower": "transformer", "of": "step_ms", "ratio": ratio, "tokens": tokens}
                for ratio, tokens in ((1, 812.3), (2, None))
            ],
            "sentences": ["It does not widen."],
        },
        "viewer": viewer,
    }


class ReportTest(PageTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        run = train(cls.folder, "run", "--backbone", "hybrid", "--classes", 10)
        viewer = cls.folder / "viewer.html"
        run_tool("fmsample", "--ckpt", run, "--steps", 4, "--device", "cpu", "--viewer-noises", 2, "--viewer", viewer)
        cls.report = report(data_of(viewer))
        cls.page = cls.make("report", cls.report)

    @classmethod
    def make(cls, name, data):
        page = cls.folder / f"{name}.html"
        source = cls.folder / f"{name}.json"
        source.write_text(json.dumps(data))
        run_tool("report_page_maker", source, page)
        return page

    @each_size
    def test_every_section_is_there_and_text_stays_text(self, size):
        self.browser.open(self.page, size)
        self.assertEqual(
            [title.text for title in self.browser.find_all("h2")],
            [
                "Samples",
                "From noise to digits",
                "Published and measured",
                "Loss",
                "Speed and memory",
                "Quality against steps",
                "More tokens",
                "Is it memory?",
                "The judge",
                "Protocol and runs",
            ],
        )
        self.assertEqual(self.browser.find("h1").text.split(), self.report["title"].split())
        self.assertIn("</script><script>alert(1)</script>", self.browser.find(".decision strong").text)
        self.assertEqual(self.browser.find_all("img[src=x]"), [])
        self.assertEqual(data_of(self.page), self.report)

    @each_size
    def test_tables_are_full(self, size):
        self.browser.open(self.page, size)
        tables = self.browser.script("""
                return [...document.querySelectorAll("table")].map((table) =>
                  [...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)));""")
        self.assertGreater(len(tables), 10)
        for table in tables:
            self.assertEqual({len(row) for row in table}, {len(table[0])}, table)
        text = self.browser.script("return document.querySelector('main').textContent")
        for word in ("[object", "undefined", "NaN", "null", "Infinity"):
            self.assertNotIn(word, text)
        by_head = {table[0][1]: table for table in tables}
        self.assertEqual(by_head["Parameters"][1][1:3], ["3.09 Mpublished 3.1 M", "0.0950 ± 0.0019published 0.086"])
        self.assertEqual(by_head["1\u202f000 samples"][3][2], "\u2265 0.5")
        self.assertEqual(by_head["as fast, from"][1][1:], ["812 tokens", "not in this range"])
        self.assertEqual(len(by_head["Loss"]), 1 + 6)

    @each_size
    def test_charts_are_drawn_to_the_width_they_have(self, size):
        self.browser.open(self.page, size, scheme="dark")
        boxes = self.browser.script("""
            return [...document.querySelectorAll(".chart")].map((chart) => {
              const svg = chart.querySelector("svg"), box = chart.querySelector(".chart-box");
              return {title: chart.querySelector("h3").textContent, fits: svg.width.baseVal.value <= box.clientWidth,
                      curves: svg.querySelectorAll("path.line").length, bars: svg.querySelectorAll("rect").length,
                      bad: /NaN|Infinity|undefined/.test(svg.outerHTML)};
            });""")
        self.assertEqual(
            [box["title"] for box in boxes],
            [
                "Training",
                "By time",
                "A training step",
                "Peak memory",
                "Sampling, latency",
                "Sampling, throughput",
                "Fr\u00e9chet distance",
                "Recognised",
                "A training step",
                "Sampling",
                "Peak memory",
            ],
        )
        for box in boxes:
            self.assertTrue(box["fits"], box)
            self.assertFalse(box["bad"], box)
            self.assertTrue(box["curves"] >= 3 or box["bars"] == 6, box)

    @each_size
    def test_solver_is_chosen(self, size):
        self.browser.open(self.page, size)
        curve = "return [...document.querySelectorAll('.chart path.line')].map((path) => path.getAttribute('d'))"
        before = self.browser.script(curve)
        heun = next(chip for chip in self.browser.find_all(".chip") if chip.text == "heun")
        self.browser.click_at(heun, 0.5)
        self.browser.wait("document.querySelectorAll('.chart path.line').length === " + str(len(before)))
        self.assertNotEqual(before, self.browser.script(curve))

    def test_pointer_over_a_chart_reads_it(self):
        self.browser.open(self.page, "desktop")
        svg = self.browser.find(".chart svg")
        self.browser.script("arguments[0].scrollIntoView({block: 'center'})", svg)
        ActionChains(self.browser.driver).move_to_element(svg).perform()
        self.assertIn("Pure Mamba 0.2", self.browser.find(".chart-tip[data-shown=true]").text)

    @each_size
    def test_viewer_inside_leaves_the_page_its_keys(self, size):
        self.browser.open(self.page, size)
        value = "return document.querySelector('.viewer-step input').value"
        self.browser.press(Keys.ARROW_LEFT)  # out of sight
        self.assertEqual(self.browser.script(value), "4")
        self.browser.script("document.querySelector('.viewer-stage').scrollIntoView({block: 'center'})")
        # What is in sight is told to the page between frames.
        self.browser.script("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        pixels = self.browser.pixels(".viewer-card > canvas")
        self.browser.press(Keys.ARROW_LEFT)
        self.assertEqual(self.browser.script(value), "3")
        self.browser.press("6")
        self.assertNotEqual(pixels, self.browser.pixels(".viewer-card > canvas"))
        before = self.browser.script("return scrollY")
        self.browser.press(Keys.SPACE)  # scrolls, as the focus is not in the viewer
        self.browser.wait(f"scrollY > {before}")
        self.assertEqual(self.browser.script(value), "3")

    def test_report_with_next_to_nothing(self):
        bare = {
            "title": "Nothing yet",
            "backbones": [],
            "viewer": None,
            "sweep": None,
            "decision": None,
            "judge": None,
            "published": None,
        }
        failed = {
            **self.report,
            "viewer": None,
            "backbones": [
                {
                    "name": "mamba",
                    "label": "Pure Mamba",
                    "params": 1,
                    "failed": "no run of it ended",
                    "runs": [],
                    "flops": None,
                    "loss": None,
                    "curve": None,
                    "loss_bins": None,
                    "grid": None,
                    "nearest": None,
                    "steps_quality": [],
                    "latency": [],
                }
            ],
        }
        for name, data in (("bare", bare), ("failed", failed)):
            page = self.make(name, data)
            self.browser.console()
            self.browser.driver.get(page.as_uri())
            self.assertEqual(self.browser.console(), [])
        self.assertIn("no run of it ended", self.browser.find("main").text)


if __name__ == "__main__":
    unittest.main()
