"""The page of --explore for every kind of model, in a real browser."""

import dataclasses

import keras
import numpy as np
import pytest

from capsnet.models import networks, several
from capsnet.models.fastconv import FastConv2D
from capsulelayers import CapsuleLayer, Length, PrimaryCap
from capsulenet import CapsNet

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

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "Trouser, a long one",
    "<b>",
]


def deep():
    """The models of a network with two layers of capsules above the primary."""
    image = keras.Input((12, 13, 1), name="image")
    features = FastConv2D(8, 5, activation="relu", name="conv1")(image)
    scaled = {"scale": 20.0, "name": "primarycap"}
    primary = PrimaryCap(4, 6, 5, strides=2, **scaled)(features)
    middle = CapsuleLayer(5, 8, name="middle")(primary)
    digitcaps = CapsuleLayer(3, 16, name="digitcaps")(middle)
    outputs = {"capsnet": Length(name="capsnet")(digitcaps)}
    init = {"kernel_initializer": "glorot_uniform"}
    networks.add_decoder(outputs, digitcaps, image.shape[1:], init)
    return networks.attach(keras.Model(image, outputs))


NETWORKS = {
    "small": lambda **more: networks.Efficient((14, 12, 1), 3, **more),
    "paper": lambda **more: CapsNet((12, 13, 1), 3, init="authors", **more),
    "deep": deep,
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
        ("deep", {}),
    ),
)
def test_every_kind_of_small_encoder_reads_alike(
    browser, written, network, arguments
):
    keras.utils.set_random_seed(1)
    model = lively(NETWORKS[network](**arguments)[1])
    data = data_of(model.input.shape[1:], "abc")
    page = Page(browser, written(model, data))
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


def test_black_on_white_is_drawn_where_the_data_are(browser, written):
    keras.utils.set_random_seed(0)
    model = lively(networks.Efficient((28, 28, 1), 3)[1])
    data = data_of((28, 28, 1), "abc")
    light = dataclasses.replace(data, x_test=255 - data.x_test)
    drawn = []
    for each in (data, light):
        page = Page(browser, written(model, each))
        page.drag("#field", [(0.1, 0.1), (0.1, 0.4), (0.25, 0.4)], "mouse")
        drawn.append((picture_of(page), page.canvas("#field")[0, 0, 0]))
        lengths = np.linalg.norm(capsules_of(model, drawn[-1][0])[0], axis=-1)
        np.testing.assert_allclose(page.lengths(), lengths, atol=2e-3)
        page.close()
    np.testing.assert_array_equal(drawn[1][0], 255 - drawn[0][0])
    assert [ground for _, ground in drawn] == [0, 255]


def test_colours_and_names_that_look_like_markup(browser, written):
    keras.utils.set_random_seed(0)
    model = lively(networks.Efficient((17, 19, 3), 3)[1])
    data = data_of((17, 19, 3), HOSTILE)
    page = Page(browser, written(model, data))
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


def test_both_digits_of_a_pair_are_drawn_and_turned(browser, written):
    keras.utils.set_random_seed(0)
    models = networks.Efficient((28, 28, 1), 4)
    model = lively(several.for_labels(models, "pair")[1])
    data = data_of((20, 20, 1), "abcd", pairs=True)
    page = Page(browser, written(model, data))
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


def test_several_classes_are_drawn_together(browser, written):
    keras.utils.set_random_seed(0)
    models = networks.Efficient((17, 17, 1), 3)
    model = lively(several.for_labels(models, "several")[1])
    data = data_of((17, 17, 1), "abc")
    data.y_train = data.y_test = np.eye(3, dtype="uint8")[data.y_test]
    page = Page(browser, written(model, data))
    (capsules,) = capsules_of(model, picture_of(page))
    # What is named is what -t counts: all above 0.5, and if there are none
    # the longest is drawn all the same.
    lengths = np.linalg.norm(capsules, axis=-1)
    above = [name for name, length in zip("abc", lengths) if length > 0.5]
    caption = page.find("#picture-caption").text
    assert caption.endswith(f"read as {' + '.join(above) or 'none'}")
    assert set(above or "abc"[lengths.argmax()]) == set(page.texts(".slot"))
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
