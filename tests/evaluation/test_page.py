"""The page of --explore in a real browser, compared with Keras.

Skipped where there is no Chromium with its driver, or no Selenium.
"""

import keras
import numpy as np
import pytest
from PIL import Image

from capsnet.data.sources import load
from capsnet.models import networks
from capsnet.models.saving import load_model

pytest.importorskip("selenium")
from pages import (  # noqa: E402
    NEAR,
    Page,
    capsules_of,
    data_of,
    drawn_by,
    lively,
    picture_of,
)
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.


@pytest.fixture(scope="module")
def small():
    """A small network for pictures of 28x28."""
    keras.utils.set_random_seed(0)
    return lively(networks.Efficient((28, 28, 1), 10)[1])


@pytest.fixture(scope="module")
def path(written, small):
    return written(small, data_of((28, 28, 1), "0123456789", 40))


@pytest.fixture
def page(browser, path):
    page = Page(browser, path)
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


def test_committed_model_is_shown_as_it_is(browser, written):
    model, _ = load_model("result/mnist/v4.keras")
    data = load("digits")
    data.x_test, data.y_test = data.x_test[:40], data.y_test[:40]
    page = Page(browser, written(model, data))
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
    slider.send_keys(Keys.TAB)
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


@pytest.mark.parametrize("other", (0, -1))
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
