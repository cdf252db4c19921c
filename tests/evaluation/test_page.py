"""The page of --explore in a real browser, compared with Keras.

Skipped where there is no Chromium with its driver, or no Selenium.
"""

import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from capsnet.data.sources import load
from capsnet.evaluation import explore
from capsnet.models import networks, several
from capsnet.models.saving import load_model
from capsulenet import CapsNet

webdriver = pytest.importorskip("selenium.webdriver")
from pages import (  # noqa: E402
    Page,
    capsules_of,
    data_of,
    drawn_by,
    lively,
    picture_of,
)
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

DRIVER = shutil.which("chromedriver")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage"
# Of what the page computes with weights of 8 bits, and reads of a canvas.
NEAR = 1e-2
HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "Trouser, a long one",
    "<b>",
]


@pytest.fixture(scope="module")
def browser():
    if DRIVER is None:
        pytest.skip("there is no chromedriver")
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), "--window-size=1400,1300"):
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    driver = webdriver.Chrome(options, Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """Writes a page of a model and data; returns it, open."""

    def write(model, data):
        folder = tmp_path_factory.mktemp("page")
        path = explore.write_page(model, data, "m.keras", str(folder))
        assert path == str(folder / "explore.html")
        return Page(browser, folder / "explore.html")

    return write


@pytest.fixture(scope="module")
def small():
    """A small network for pictures of 28x28."""
    keras.utils.set_random_seed(0)
    return lively(networks.Efficient((28, 28, 1), 10)[1])


@pytest.fixture
def page(opened, small):
    page = opened(small, data_of((28, 28, 1), "0123456789", 40))
    yield page
    page.close()


def test_lengths_and_reconstructions_are_the_models(page, small):
    for number in (0, 5, 17):
        page.choose(number)
        (capsules,) = capsules_of(small, picture_of(page))
        lengths = np.linalg.norm(capsules, axis=-1)
        np.testing.assert_allclose(page.lengths(), lengths, atol=1e-3)
        expected = drawn_by(small, capsules, [lengths.argmax()])
        assert expected.std() > 0.1  # Not grey all over.
        np.testing.assert_allclose(page.made()[..., :1], expected, atol=NEAR)
        np.testing.assert_allclose(
            page.values(), capsules[lengths.argmax()], atol=6e-3
        )


def test_committed_model_is_shown_as_it_is(opened):
    model, _ = load_model("result/mnist/v4.keras")
    data = load("digits")
    data.x_test, data.y_test = data.x_test[:40], data.y_test[:40]
    page = opened(model, data)
    assert page.path.stat().st_size < 5e6
    for number in (2, 20):
        page.choose(number)
        (capsules,) = capsules_of(model, picture_of(page))
        lengths = np.linalg.norm(capsules, axis=-1)
        np.testing.assert_allclose(page.lengths(), lengths, atol=1e-3)
        expected = drawn_by(model, capsules, [lengths.argmax()])
        np.testing.assert_allclose(page.made()[..., :1], expected, atol=NEAR)
    page.close()


def test_turned_dimensions_are_the_decoders(page, small):
    (capsules,) = capsules_of(small, picture_of(page))
    number = np.linalg.norm(capsules, axis=-1).argmax()
    before = page.made()
    page.slide("#dimension-3", float(capsules[number, 2] + 0.2))
    # By hand: to the right of where it starts.
    page.drag("#dimension-7", [(0.5, 0.5), (0.6, 0.5), (0.8, 0.5)])
    moved = page.values() - capsules[number]
    assert moved[2] == pytest.approx(0.2, abs=6e-3) and moved[6] > 0.1
    assert np.abs(np.delete(moved, [2, 6])).max() < 6e-3
    assert np.abs(page.made() - before).max() > 0.05
    # What stands there is rounded; the sliders have it all.
    inputs = page.all("#sliders input")
    capsules[number] = [each.get_property("value") for each in inputs]
    expected = drawn_by(small, capsules, [number])
    np.testing.assert_allclose(page.made()[..., :1], expected, atol=NEAR)
    length = np.linalg.norm(capsules[number])
    assert page.lengths()[number] == pytest.approx(length, abs=1e-3)
    page.find("[aria-label='reset dimension 3']").click()
    assert page.values()[2] == pytest.approx(
        capsules[number, 2] - 0.2, abs=0.01
    )
    page.find("#reset").click()
    np.testing.assert_array_equal(page.made(), before)


def test_keys_turn_and_choose(page):
    before = page.values()
    slider = page.find("#dimension-2")
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert page.values()[1] - before[1] == pytest.approx(0.05, abs=0.011)
    slider.send_keys(Keys.DELETE)
    np.testing.assert_allclose(page.values(), before, atol=1e-6)
    slider.send_keys(Keys.TAB, Keys.TAB)
    focused = page.run("return document.activeElement.id")
    assert focused == "dimension-3"
    page.browser.switch_to.active_element.send_keys("7")
    assert page.texts(".slot") == ["7"]
    pressed = page.texts("#bars [aria-pressed='true'] .name")
    assert pressed == ["7"]


def test_strip_is_a_row_of_the_papers_figure(page, small):
    (capsules,) = capsules_of(small, picture_of(page))
    number = np.linalg.norm(capsules, axis=-1).argmax()
    page.drag("#dimension-4", [(0.5, 0.5)])
    page.find("#reset").click()
    wait = WebDriverWait(page.browser, 10)
    title = page.find("#strip-title")
    wait.until(lambda _: title.text.startswith("Dimension 4,"))
    page.run("return new Promise((done) => setTimeout(done, 300))")
    for column in (0, 5, 10):
        turned = capsules.copy()
        turned[number, 3] += 0.05 * (column - 5)
        expected = drawn_by(small, turned, [number])
        shown = page.canvas(f"#strip button:nth-child({column + 1}) canvas")
        np.testing.assert_allclose(shown[..., :1] / 255, expected, atol=NEAR)
    page.all("#strip button")[10].click()
    moved = page.values()[3] - capsules[number, 3]
    assert moved == pytest.approx(0.25, abs=6e-3)


def test_pad_turns_two_dimensions(page):
    before = page.values()
    page.drag("#pad", [(0.5, 0.5), (0.8, 0.3)])
    chosen = [
        int(page.find(f"#pad-{axis}").get_property("value")) for axis in "xy"
    ]
    moved = page.values() - before
    assert chosen[0] != chosen[1] and (moved[chosen] > 0.05).all()
    assert np.abs(np.delete(moved, chosen)).max() < 1e-6
    page.find("#pad").send_keys(Keys.ARROW_LEFT)
    step = page.values() - before - moved
    assert step[chosen[0]] == pytest.approx(-0.05, abs=0.011)


@pytest.mark.parametrize("other", (0, 39))
def test_blend_ends_at_the_other_picture(page, small, other):
    pictures = []
    for number in (3, other):
        page.choose(number)
        pictures.append(picture_of(page)[0])
    made = page.made()
    page.choose(3)
    start, end = capsules_of(small, pictures)
    first, last = (np.linalg.norm(c, axis=-1).argmax() for c in (start, end))
    page.all("#blend-gallery button")[other].click()
    page.slide("#blend", 0.5)
    half = np.zeros_like(start)
    half[first] += start[first] / 2
    half[last] += end[last] / 2
    expected = drawn_by(small, half, range(10))
    np.testing.assert_allclose(page.made()[..., :1], expected, atol=NEAR)
    page.slide("#blend", 1)
    np.testing.assert_allclose(page.made(), made, atol=1 / 255)


@pytest.mark.parametrize("kind", ("mouse", "touch"))
def test_drawing_is_centred_and_read_as_keras_reads_it(page, small, kind):
    # A small L in a corner of the field.
    empty = page.canvas("#field")
    page.drag("#field", [(0.1, 0.1), (0.1, 0.4), (0.25, 0.4)], kind)
    picture = picture_of(page)
    rows, columns = np.nonzero(picture[0, ..., 0] > 20)
    # 20 pixels high, as wide in proportion.
    assert 19 <= np.ptp(rows) + 1 <= 21 and 9 <= np.ptp(columns) + 1 <= 14
    weights = picture[0, ..., 0] / picture.sum()
    for axis in (0, 1):
        mass = weights.sum(1 - axis) @ (np.arange(28) + 0.5)
        assert mass == pytest.approx(14, abs=0.2)
    lengths = np.linalg.norm(capsules_of(small, picture)[0], axis=-1)
    assert lengths.max() > 0.1
    np.testing.assert_allclose(page.lengths(), lengths, atol=2e-3)
    (slot,) = page.texts(".slot")
    assert slot == str(lengths.argmax())
    page.find("#clear").click()
    np.testing.assert_array_equal(page.canvas("#field"), empty)


def test_picture_is_saved(page, tmp_path):
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior",
        {"behavior": "allow", "downloadPath": str(tmp_path)},
    )
    page.find("#save").click()
    path = tmp_path / "capsule.png"
    WebDriverWait(page.browser, 10).until(lambda _: path.exists())
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    expected = page.canvas("#made").repeat(10, 0).repeat(10, 1)
    np.testing.assert_array_equal(pixels, expected)


NETWORKS = {
    "small": lambda **more: networks.Efficient((14, 12, 1), 3, **more),
    "paper": lambda **more: CapsNet((12, 13, 1), 3, init="authors", **more),
}


@pytest.mark.parametrize(
    "network, arguments",
    (
        ("small", {"routing": "dynamic", "routings": 3}),
        ("small", {"routing": "leaky", "routings": 2}),
        ("small", {"routing": "max_min", "routings": 2}),
        ("paper", {"routings": 3, "capsule_bias": 0.1}),
        ("paper", {"routing": "leaky", "routings": 1, "primary_scale": 0.5}),
        ("paper", {"routing": "attention", "capsule_bias": -0.05}),
    ),
)
def test_every_kind_of_small_encoder_reads_alike(opened, network, arguments):
    keras.utils.set_random_seed(1)
    model = lively(NETWORKS[network](**arguments)[1])
    data = data_of(model.input.shape[1:], "abc")
    page = opened(model, data)
    found = page.run(
        "const content = JSON.parse("
        "    document.getElementById('content').textContent);"
        "const encode = Network.encoderOf(content.encoder, content.shape);"
        "const bytes = Network.bytesOf(content.pixels);"
        "const [h, w] = content.shape;"
        "return content.truth.map((_, n) => Array.from("
        "    encode(Canvas.lightOf(bytes.subarray(n * h * w, (n + 1) * h * w)))"
        "));"
    )
    pictures = []
    for number in range(len(found)):
        page.choose(number)
        pictures.append(picture_of(page)[0])
    expected = capsules_of(model, pictures)
    assert np.linalg.norm(expected, axis=-1).max() > 0.1
    np.testing.assert_allclose(
        np.reshape(found, expected.shape), expected, atol=2e-3
    )
    page.close()


def test_colours_and_names_that_look_like_markup(opened):
    keras.utils.set_random_seed(0)
    model = lively(networks.Efficient((17, 19, 3), 3)[1])
    data = data_of((17, 19, 3), HOSTILE)
    page = opened(model, data)
    assert page.texts("#bars .name") == HOSTILE
    assert page.all("img") == [] and page.all("#bars b") == []
    assert "one channel" in page.find("#draw-hint").text
    assert page.all("#field") == []
    shown = page.canvas("#picture")[..., :3]
    number = np.flatnonzero((data.x_test == shown).all((1, 2, 3)))
    (capsules,) = capsules_of(model, data.x_test[number])
    longest = np.linalg.norm(capsules, axis=-1).argmax()
    expected = drawn_by(model, capsules, [longest])
    np.testing.assert_allclose(page.made(), expected, atol=NEAR)
    page.close()


def test_both_digits_of_a_pair_are_drawn_and_turned(opened):
    keras.utils.set_random_seed(0)
    models = networks.Efficient((28, 28, 1), 4)
    model = lively(several.for_labels(models, "pair")[1])
    page = opened(model, data_of((20, 20, 1), "abcd", pairs=True))
    (capsules,) = capsules_of(model, picture_of(page))
    order = np.linalg.norm(capsules, axis=-1).argsort()[::-1][:2]
    assert page.texts(".slot") == ["abcd"[number] for number in order]

    def overlaid():
        first, second = (
            drawn_by(model, capsules, [number])[..., 0] for number in order
        )
        orange, blue = np.array([1, 0.5, 0]), np.array([0, 0.5, 1])
        return first[..., None] * orange + second[..., None] * blue

    np.testing.assert_allclose(page.made(), overlaid(), atol=NEAR)
    for slot in (1, 0):
        page.all(".slot")[slot].click()
        value = float(capsules[order[slot], 4] + 0.25)
        page.slide("#dimension-5", value)
        capsules[order[slot], 4] += 0.25
        np.testing.assert_allclose(page.made(), overlaid(), atol=NEAR)
    page.close()


def test_several_classes_are_drawn_together(opened):
    keras.utils.set_random_seed(0)
    models = networks.Efficient((17, 17, 1), 3)
    model = lively(several.for_labels(models, "several")[1])
    data = data_of((17, 17, 1), "abc")
    data.y_train = data.y_test = np.eye(3, dtype="uint8")[data.y_test]
    page = opened(model, data)
    (capsules,) = capsules_of(model, picture_of(page))
    for bar in page.all("#bars button"):
        bar.click()
    page.wait()
    assert sorted(page.texts(".slot")) == ["a", "b", "c"]
    expected = drawn_by(model, capsules, [0, 1, 2])
    np.testing.assert_allclose(page.made()[..., :1], expected, atol=NEAR)
    page.find("[aria-label='leave out b']").click()
    expected = drawn_by(model, capsules, [0, 2])
    np.testing.assert_allclose(page.made()[..., :1], expected, atol=NEAR)
    page.close()


def test_narrow_and_wide_pages_need_no_sideways_scrolling(page):
    for width in (360, 800, 1400):
        page.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1}
            | {"mobile": False},
        )
        page.wait()
        needed = page.run("return document.documentElement.scrollWidth")
        assert needed <= width
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_that_acts_has_a_name(page):
    """As a screen reader says it."""
    tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})
    acting = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in tree["nodes"]
        if not node["ignored"]
        and node["role"]["value"] in ("button", "slider", "combobox", "image")
    ]
    assert len(acting) > 100
    assert [role for role, name in acting if not name] == []
