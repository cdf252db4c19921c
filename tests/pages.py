"""The page of --explore in a browser, as a person sees and uses it; and what
Keras says of the same model."""

import json

import keras
import numpy as np
from conftest import bars
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By

from capsnet.data.datasets import Dataset

# Of weights in 12 bits, read of a canvas in 8.
NEAR = 4e-3


class Page:
    """A page in the browser: what a person sees and does.

    At the end nothing was logged, and nothing asked of any network.
    """

    def __init__(self, browser, path):
        self.browser, self.path = browser, path
        browser.get(path.as_uri())
        self.wait()

    def run(self, script, *values):
        return self.browser.execute_script(script, *values)

    def wait(self):
        """Until what was changed is shown."""
        self.browser.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => done()))"
        )

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector):
        return [each.text for each in self.all(selector)]

    def canvas(self, selector):
        """The pixels of a canvas, `(height, width, 4)`, uint8."""
        pixels, height, width = self.run(
            "const canvas = document.querySelector(arguments[0]);"
            "const { width, height } = canvas;"
            "const copy = new OffscreenCanvas(width, height);"
            "const context = copy.getContext('2d');"
            "context.drawImage(canvas, 0, 0);"
            "const { data } = context.getImageData(0, 0, width, height);"
            "return [Array.from(data), height, width];",
            selector,
        )
        return np.array(pixels, "uint8").reshape(height, width, 4)

    def made(self):
        """The reconstruction, in [0, 1]: `(height, width, 3)`."""
        self.wait()
        return self.canvas("#made")[..., :3] / 255

    def lengths(self):
        self.wait()
        return np.array(self.texts("#bars .number"), float)

    def values(self):
        self.wait()
        texts = self.texts("#sliders output")
        return np.array([text.replace("\u2212", "-") for text in texts], float)

    def choose(self, number):
        self.all("#gallery button")[number].click()
        self.wait()

    def slide(self, selector, value):
        """Moves a slider as a person's hand does, but to a value."""
        self.run(
            "const input = document.querySelector(arguments[0]);"
            "input.value = arguments[1];"
            "input.dispatchEvent(new Event('input', { bubbles: true }));",
            selector,
            value,
        )
        self.wait()

    def drag(self, selector, points, kind="mouse"):
        """Presses, moves and lets go; points are parts of an element's box."""
        element = self.find(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        box = element.rect
        pointer = PointerInput(kind, kind)
        builder = ActionBuilder(self.browser, mouse=pointer, duration=20)
        for number, (right, down) in enumerate(points):
            x = round((right - 0.5) * box["width"])
            y = round((down - 0.5) * box["height"])
            builder.pointer_action.move_to(element, x, y)
            if number == 0:
                builder.pointer_action.pointer_down()
        builder.pointer_action.pointer_up()
        builder.perform()
        self.wait()

    def close(self):
        logged = self.browser.get_log("browser")
        assert logged == [], logged
        entries = self.browser.get_log("performance")
        messages = [
            json.loads(entry["message"])["message"] for entry in entries
        ]
        asked = [
            message["params"]["request"]["url"].split(":")[0]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
        assert asked and set(asked) <= {"file", "data"}


def capsules_of(model, pictures):
    digitcaps = keras.Model(model.input, model.get_layer("digitcaps").output)
    return digitcaps.predict(np.asarray(pictures) / 255, verbose=0)


def drawn_by(model, capsules, classes):
    """What the decoder makes of the capsules of some classes."""
    masked = np.zeros_like(capsules)
    masked[list(classes)] = capsules[list(classes)]
    made = model.get_layer("decoder").predict(masked.reshape(1, -1), verbose=0)
    return made[0]


def picture_of(page):
    return page.canvas("#picture")[None, ..., :1]


def lively(model):
    """The same model with statistics, and capsules of some length."""
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if hasattr(layer, "moving_mean"):
            (count,) = layer.gamma.shape
            draws = generator.uniform(0.3, 1.5, (4, count))
            layer.set_weights([draws[0], draws[1] - 1, draws[2] - 1, draws[3]])
        if layer.name == "digitcaps":
            layer.kernel.assign(4 * layer.kernel)
            if layer.routing == "attention":
                prior = generator.uniform(-0.5, 0.5, layer.prior.shape)
                layer.prior.assign(prior)
        if layer.name == "decoder":
            layer.set_weights([6 * weight for weight in layer.get_weights()])
    return model


def data_of(shape, names, count=12, **more):
    x, y = bars(count, shape, len(names))
    return Dataset(x, y, x, y, list(names), "bars", **more)
