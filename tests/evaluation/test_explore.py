"""Tests of what the page of --explore is told; tests/evaluation/test_page.py
runs it."""

import base64
import json
from html.parser import HTMLParser

import keras
import numpy as np
import pytest
from conftest import bars

from capsnet.data.datasets import Dataset
from capsnet.evaluation import explore, packing
from capsnet.messages import UserError
from capsnet.models import networks
from capsulenet import CapsNet

HOSTILE = ["</script><script>alert(1)//", "<!--<script>", 'a"b\\n&amp;', "日本"]


def decoded(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def data_of(shape, names, count=12):
    x, y = bars(count, shape, n_class=3)
    return Dataset(x, y, x, y, names, "bars")


@pytest.mark.parametrize("shape", ((3, 5, 4), (1, 3, 3)))
def test_packed_weights_are_right_to_half_a_step_of_their_column(shape):
    weights = np.random.default_rng(0).normal(size=shape).astype("float32")
    weights *= [1, 100, 0.01, 0][: shape[-1]]
    packed = packing.packed(weights)
    scales = decoded(packed["scales"], "<f4")
    upper = decoded(packed["upper"], "i1").tolist()
    lower = decoded(packed["lower"], "u1").tolist()
    found = [
        16 * bits + (lower[k // 2] // 16 if k % 2 else lower[k // 2] % 16)
        for k, bits in enumerate(upper)
    ]
    found = np.reshape(found, shape)
    steps = np.abs(weights).max((0, 1)) / 2047
    assert (np.abs(found * scales - weights) <= 0.501 * steps).all()
    # The whole range is used.
    largest = np.abs(found).max((0, 1)).tolist()
    assert largest == [2047, 2047, 2047, 0][: shape[-1]]


def capsules_named(classes, n_class=3):
    """Capsules of two dimensions; those of some classes are long."""
    capsules = np.full((len(classes), n_class, 2), 0.1, "float32")
    for picture, (number, length) in enumerate(classes):
        capsules[picture, number] = length, 0
    return capsules


def test_some_pictures_of_each_class_and_the_surest_mistakes_are_shown(
    monkeypatch,
):
    monkeypatch.setattr(explore, "RIGHT", 6)
    monkeypatch.setattr(explore, "MISTAKES", 2)
    named = [(1, 0.7), (0, 0.9), (1, 0.8), (2, 0.6), (0, 0.95), (0, 0.9)]
    named += [(0, 0.9), (1, 0.9), (1, 0.9), (0, 0.92)]
    labels = [0, 0, 0, 2, 1, 0, 0, 1, 1, 1]
    answers = np.eye(3, dtype=bool)[labels]
    chosen = explore.choose(capsules_named(named), answers, "one")
    # Right ones first, two of each class; then the surest mistake of each.
    assert chosen == [1, 5, 7, 8, 3, 4, 2]


def test_class_without_a_right_answer_shows_a_wrong_one():
    answers = np.eye(3, dtype=bool)[[0, 1, 2]]
    named = [(0, 0.9), (0, 0.9), (2, 0.9)]
    assert explore.choose(capsules_named(named), answers, "one") == [0, 1, 2]


def test_usual_values_are_those_of_the_pictures_of_a_class():
    capsules = np.random.default_rng(0).normal(size=(7, 3, 4))
    labels = [0, 1, 0, 1, 1, 0, 0]  # None of class 2.
    means, spreads = explore.usual(capsules, np.eye(3, dtype=bool)[labels])
    for number in range(3):
        values = [
            capsules[i, number]
            for i in range(7)
            if labels[i] == number or number == 2
        ]
        for d in range(4):
            column = [value[d] for value in values]
            mean = sum(column) / len(column)
            variance = sum((v - mean) ** 2 for v in column) / len(column)
            assert means[number, d] == pytest.approx(mean)
            assert spreads[number, d] == pytest.approx(variance**0.5)


class Scripts(HTMLParser):
    """The tags of a page, and what stands in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, text):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += text


def test_names_cannot_leave_their_block_of_the_page():
    content = {"names": HOSTILE, "about": "$style </SCRIPT>"}
    page = explore.page(content)
    plain = explore.page({})
    parsed, expected = Scripts(page), Scripts(plain)
    assert parsed.tags == expected.tags
    assert json.loads(parsed.scripts[0]) == content
    assert parsed.scripts[1:] == expected.scripts[1:]


def test_page_names_no_address_and_no_other_file():
    page = explore.page({})
    assert "://" not in page and "import" not in page
    links = [
        attributes[name]
        for _, attributes in Scripts(page).tags
        for name in ("src", "href")
        if name in attributes
    ]
    assert links == ["data:,"]
    assert "default-src 'none'" in page


def test_content_is_the_models_and_the_datas(tmp_path):
    keras.utils.set_random_seed(0)
    model = CapsNet((17, 17, 1), 3, routings=1, dim_capsule=5)[1]
    data = data_of((17, 17, 1), ["a\nb", "c", "d"])
    content = explore.content_of(model, data, "m.keras")
    assert (content["names"], content["labels"]) == ([r"a\nb", "c", "d"], "one")
    assert (content["shape"], content["dimensions"]) == ([17, 17, 1], 5)
    for word in ("m.keras", "bars", "17x17x1", "3 classes"):
        assert word in content["about"]
    count = len(content["truth"])
    pixels = decoded(content["pixels"], "u1").reshape(count, 17, 17, 1)
    capsules = decoded(content["capsules"], "<f4").reshape(count, 3, 5)
    digitcaps = keras.Model(model.input, model.get_layer("digitcaps").output)
    expected = digitcaps.predict(pixels / np.float32(255), verbose=0)
    np.testing.assert_allclose(capsules, expected, atol=1e-5)
    for picture, truth in zip(pixels, content["truth"]):
        (number,) = np.flatnonzero((data.x_test == picture).all((1, 2, 3)))
        assert truth == [data.y_test[number]]


def test_large_encoder_or_one_for_colours_stays_out():
    large = CapsNet((28, 28, 1), 10)[1]
    layers, reason = packing.encoder_of(large)
    assert layers is None and "6.8 million weights" in reason
    colour = networks.Efficient((17, 17, 3), 3)[1]
    layers, reason = packing.encoder_of(colour)
    assert layers is None and "one channel" in reason


def test_encoder_with_other_layers_stays_out():
    image = keras.layers.Input((17, 17, 1), name="image")
    pooled = keras.layers.MaxPooling2D()(image)
    model = keras.Model(image, {"capsnet": keras.layers.Flatten()(pooled)})
    assert packing.encoder_layers(model) is None


def test_decoder_of_other_layers_is_refused_by_name():
    decoder = keras.Sequential(
        [
            keras.layers.Input((6,)),
            keras.layers.Dense(4, name="dense1"),
            keras.layers.Dropout(0.5, name="odd_one"),
        ]
    )
    with pytest.raises(UserError, match="odd_one"):
        packing.dense_layers(decoder)
    decoder = keras.Sequential(
        [keras.layers.Input((6,)), keras.layers.Dense(4, "tanh", name="tanh1")]
    )
    with pytest.raises(UserError, match="tanh1"):
        packing.dense_layers(decoder)
