"""fmsample --viewer in a real browser: slider, digits, noises, keys, play; on a desk and on a phone."""

import unittest

from browser import Keys, PageTest, data_of, each_size, run_tool, train

STATES = ".viewer-card > canvas"
VELOCITIES = ".viewer-velocity canvas"
NOISE = "[data-of=noise]"
LAST = 4  # steps of the pages here


class ViewerTest(PageTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        runs = [
            train(cls.folder, name, "--backbone", name, "--classes", 10) for name in ("mamba", "transformer", "hybrid")
        ]
        free = train(cls.folder, "free", "--backbone", "hybrid")
        cls.page = cls.folder / "viewer.html"
        printed = run_tool(
            "fmsample",
            "--ckpt",
            *runs,
            free,
            "--steps",
            LAST,
            "--cfg-scale",
            2,
            "--device",
            "cpu",
            "--viewer-noises",
            3,
            "--seed",
            5,
            "--viewer",
            cls.page,
        )
        assert printed == f"{cls.page}\n", printed

    def step(self):
        return int(self.browser.find(".viewer-step input").get_property("value"))

    def go_to(self, step):
        """By the slider, with the pointer."""
        self.browser.click_at(self.browser.find(".viewer-step input"), 0.02 + 0.96 * step / LAST)
        self.assertEqual(self.step(), step)

    def pressed(self, group):
        return [
            button.text or button.get_attribute("aria-label")
            for button in self.browser.find_all(f"{group} button[aria-pressed=true]")
        ]

    def assert_all_differ(self, before, after):
        self.assertEqual(len(before), len(after))
        for i, (one, other) in enumerate(zip(before, after)):
            self.assertNotEqual(one, other, f"canvas {i}")

    @each_size
    def test_starts_with_the_pictures_of_all_backbones(self, size):
        self.browser.open(self.page, size)
        self.assertEqual(
            [name.text for name in self.browser.find_all(".viewer-card h3")], ["Mamba", "Transformer", "Hybrid"]
        )
        self.assertEqual(self.step(), LAST)
        for picture in self.browser.pixels(f"{STATES}, {VELOCITIES}, {NOISE}, .viewer-frames canvas"):
            self.assertGreater(len(set(picture)), 8)
        states = self.browser.pixels(STATES)
        self.assertEqual(len({tuple(picture) for picture in states}), 3)
        self.assertLess(self.browser.layout_shift(), 0.01)

    @each_size
    def test_slider_moves_every_picture(self, size):
        self.browser.open(self.page, size)
        states = self.browser.pixels(STATES)
        self.go_to(1)
        self.assert_all_differ(states, self.browser.pixels(STATES))
        velocities = self.browser.pixels(VELOCITIES)
        self.go_to(0)
        self.assert_all_differ(velocities, self.browser.pixels(VELOCITIES))
        # They all start from the one noise.
        self.assertEqual(self.browser.pixels(STATES), self.browser.pixels(NOISE) * 3)
        self.assertEqual(
            self.browser.find(".viewer-step input").get_attribute("aria-valuetext"), f"step 0 of {LAST}, t = 0.00"
        )
        self.assertIn("0.00", self.browser.find(".viewer-time").text)

    @each_size
    def test_digit_changes_pictures_and_not_the_noise(self, size):
        self.browser.open(self.page, size)
        states, noise = self.browser.pixels(STATES), self.browser.pixels(NOISE)
        self.browser.find("[data-label='3']").click()
        self.assertEqual(self.pressed(".viewer-digits"), ["3"])
        self.assert_all_differ(states, self.browser.pixels(STATES))
        self.assertEqual(noise, self.browser.pixels(NOISE))
        self.browser.find("[data-label='0']").click()
        self.assertEqual(states, self.browser.pixels(STATES))

    @each_size
    def test_noise_changes_everything(self, size):
        self.browser.open(self.page, size)
        everything = f"{STATES}, {VELOCITIES}, {NOISE}"
        before = self.browser.pixels(everything)
        self.browser.find_all(".viewer-noises button")[2].click()
        self.assertEqual(self.pressed(".viewer-noises"), ["Noise 2"])
        self.assert_all_differ(before, self.browser.pixels(everything))
        self.assertIn("seed 5, image 2", self.browser.find(".viewer-panel").text)

    @each_size
    def test_keys(self, size):
        self.browser.open(self.page, size)
        states = self.browser.pixels(STATES)
        self.browser.press(Keys.ARROW_LEFT)
        self.assertEqual(self.step(), LAST - 1)
        self.assert_all_differ(states, self.browser.pixels(STATES))
        self.browser.press(Keys.HOME, Keys.ARROW_LEFT)
        self.assertEqual(self.step(), 0)
        self.browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        self.assertEqual(self.step(), 2)
        states = self.browser.pixels(STATES)
        self.browser.press("7")
        self.assertEqual(self.pressed(".viewer-digits"), ["7"])
        self.assert_all_differ(states, self.browser.pixels(STATES))
        self.browser.press(Keys.ARROW_UP)
        self.assertEqual(self.pressed(".viewer-noises"), ["Noise 2"])
        self.browser.press(Keys.ARROW_DOWN)
        self.assertEqual(self.pressed(".viewer-noises"), ["Noise 0"])
        self.browser.press(Keys.END)
        self.assertEqual(self.step(), LAST)
        # The slider has its own arrows, and one press is one step.
        self.browser.find(".viewer-step input").send_keys(Keys.ARROW_LEFT)
        self.assertEqual(self.step(), LAST - 1)

    @each_size
    def test_play_runs_to_the_end_and_space_stops_it(self, size):
        self.browser.open(self.page, size)
        button = self.browser.find("[data-play]")
        button.click()
        self.assertEqual(button.text, "Pause")
        self.browser.wait(f"document.querySelector('.viewer-step input').value === '{LAST}'")
        self.browser.wait("document.querySelector('[data-play]').textContent === 'Play'")
        self.browser.script("document.activeElement.blur()")
        self.browser.press(Keys.SPACE)
        self.assertEqual(button.text, "Pause")
        self.browser.press(Keys.SPACE)
        self.assertEqual(button.text, "Play")

    @each_size
    def test_film_strip_takes_one_to_its_step(self, size):
        self.browser.open(self.page, size)
        self.browser.click_at(self.browser.find(".viewer-frames"), 0.3)
        self.assertEqual(self.step(), 1)

    @each_size
    def test_sets_of_conditional_and_free_checkpoints(self, size):
        self.browser.open(self.page, size)
        noise = self.browser.pixels(NOISE)
        tabs = self.browser.find_all(".viewer > .chips button")
        self.assertEqual([tab.text for tab in tabs], ["By digit", "By noise"])
        tabs[1].click()
        self.browser.wait("document.querySelector('.viewer').dataset.ready === 'true'")
        self.assertEqual([name.text for name in self.browser.find_all(".viewer-card h3")], ["Hybrid"])
        self.assertEqual(self.browser.find_all("[data-label]"), [])
        self.assertEqual(noise, self.browser.pixels(NOISE))
        self.browser.press("4", Keys.ARROW_LEFT)  # a digit means nothing here
        self.assertEqual(self.step(), LAST - 1)
        tabs[0].click()
        self.browser.wait("document.querySelector('.viewer').dataset.ready === 'true'")
        self.assertEqual(len(self.browser.find_all(".viewer-card")), 3)

    @each_size
    def test_everything_is_named_and_reached_by_the_keyboard(self, size):
        self.browser.open(self.page, size, scheme="dark")
        unnamed = self.browser.script("""
            return [...document.querySelectorAll("button, input, canvas[role=img]")]
              .filter((node) => !node.textContent.trim() && !node.getAttribute("aria-label"))
              .map((node) => node.outerHTML);""")
        self.assertEqual(unnamed, [])
        reached = set()
        for _ in range(len(self.browser.find_all("button, input")) + 2):
            self.browser.press(Keys.TAB)
            reached.add(
                self.browser.script(
                    "return document.activeElement.getAttribute('aria-label') || " "document.activeElement.textContent"
                )
            )
        self.assertLessEqual({"By noise", "0", "9", "Noise 1", "Step", "Play", "One step on"}, reached)

    def test_page_is_small_and_carries_what_it_says(self):
        data = data_of(self.page)
        self.assertEqual([len(one["rows"]) for one in data["sets"]], [30, 3])
        self.assertLess(self.page.stat().st_size, 2_000_000)


if __name__ == "__main__":
    unittest.main()
