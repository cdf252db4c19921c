"""Tests of figures.py. What is drawn is read off matplotlib's figures."""

import csv
import os
import time

import keras
import numpy as np
import pytest
from conftest import bars
from running import NAMES, lengths_of

import capsulenet
import utils
from capsnet.data.sources import Dataset
from capsnet.evaluation.figures import (
    TEST_FILES,
    class_lines,
    draw_batch,
    manipulation_path,
    replace_test,
    spread,
    worst_classes,
)
from capsnet.evaluation.figures import test_figures as figures_of
from capsnet.files import write_json


@pytest.fixture(scope="module")
def models():
    """Evaluation models by the channels of their pictures."""
    keras.utils.set_random_seed(0)
    return {
        channels: capsulenet.CapsNet((17, 17, channels), 3)[1]
        for channels in (1, 3)
    }


def mislabelled(model, count, wrong):
    """Pictures with the classes a model gives them, but for some."""
    x, _ = bars(count, model.input.shape[1:], seed=2)
    lengths = lengths_of(model, x)
    y = lengths.argmax(-1)
    y[list(wrong)] = (y[list(wrong)] + 1) % 3
    return Dataset(x, y, x, y, NAMES, "bars"), lengths


def test_figures_of_each_class_are_read_off_the_confusion():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert figures_of(confusion, ["a", "b", "c"]) == {
        "accuracy": 0.875,
        "balanced_accuracy": 0.875,
        "test_error": 12.5,
        "mistakes": 1,
        "pictures": 8,
        "classes": {
            "a": {"pictures": 4, "mistakes": 1, "error": 25.0},
            "b": {"pictures": 4, "mistakes": 0, "error": 0.0},
            "c": {"pictures": 0, "mistakes": 0, "error": None},
        },
        "confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
    }


@pytest.mark.parametrize(
    "channels, wrong",
    [
        (1, (3, 5, 8, 13)),
        (3, range(60)),
        pytest.param(3, (3, 5, 8, 13), marks=pytest.mark.slow),
        pytest.param(1, range(60), marks=pytest.mark.slow),
    ],
)
def test_worst_mistakes_and_50_pictures_are_drawn(
    models, tmp_path, figures, channels, wrong
):
    model = models[channels]
    data, lengths = mislabelled(model, 60, wrong)
    test = capsulenet.test([model], data, str(tmp_path))
    assert (test["mistakes"], test["pictures"]) == (len(wrong), 60)
    real = data.x_test / np.float32(255)
    made = model.predict(real, verbose=0)["decoder"]
    _, mistakes, spread_out = figures  # The first is the confusion.
    # The most confident ones first, each beside its reconstruction.
    order = sorted(wrong, key=lambda i: -lengths[i].max())[:50]
    axes = [axis for axis in mistakes.axes if axis.get_images()]
    assert [axis.get_title().replace("\n", " ") for axis in axes] == [
        f"{i} ({lengths[i].max():.2f}) "
        f"{NAMES[data.y_test[i]]} -> {NAMES[lengths[i].argmax()]}"
        for i in order
    ]
    drawn = [(axis, [real[i], made[i]], 2) for axis, i in zip(axes, order)]
    # Those of the whole test part: 50, in rows of ten.
    shown = [int(number * 1.2) for number in range(50)]
    above, below = spread_out.axes
    drawn += [(above, real[shown], 10), (below, made[shown], 10)]
    for axis, pictures, columns in drawn:
        expected = utils.combine_images(pictures, columns).squeeze()
        found = axis.get_images()[0].get_array().astype(int)
        np.testing.assert_allclose(found, expected, atol=1)


def test_table_has_a_row_for_each_picture(models, tmp_path):
    data, lengths = mislabelled(models[1], 20, (3, 5))
    data.test_names = [f"cat/{i}.png" for i in range(20)]
    mean = capsulenet.test([models[1]] * 2, data, str(tmp_path))
    with open(tmp_path / "test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == data.test_names
    wrong = [row for row in rows if row["true"] != row["class"]]
    assert [row["file"] for row in wrong] == ["cat/3.png", "cat/5.png"]
    assert mean["mistakes"] == 2
    for row, true, length in zip(rows, data.y_test, lengths):
        second, first = np.argsort(length)[-2:]
        named = row["true"], row["class"], row["runner_up"]
        assert named == (NAMES[true], NAMES[first], NAMES[second])
        found = float(row["length"]), float(row["runner_up_length"])
        np.testing.assert_allclose(found, length[[first, second]], atol=1e-5)


@pytest.mark.parametrize("count", (1, 3, 49, 50, 51, 200, 10_000))
def test_shown_pictures_are_spread_over_the_test_set(count):
    shown = spread(count)
    assert len(shown) == min(count, 50) and shown[0] == 0
    steps = np.diff([*shown, count])
    assert steps.min() >= 1 and np.ptp(steps) <= 1
    if count == 200:
        # Of ten classes, one after the other, five of each.
        assert np.bincount(shown // 20).tolist() == [5] * 10


def counts(*mistakes):
    """`figures["classes"]` of classes a, b, c, ... of 20 pictures each."""
    return {
        name: {"pictures": 20, "mistakes": wrong, "error": 5.0 * wrong}
        for name, wrong in zip("abcdefgh", mistakes)
    }


@pytest.mark.parametrize(
    "classes, line",
    [
        (counts(1, 2, 0), "Worst class: b, 10.00 % (2 of 20)"),
        (counts(3, 1, 3), "Worst classes: a, c, 15.00 % each"),
        (counts(*[20] * 8), "Worst classes: a, b, c and 5 more, 100.00 % each"),
        (
            {**counts(1), "z": {"pictures": 0, "mistakes": 0, "error": None}},
            "Worst class: a, 5.00 % (1 of 20)",
        ),
    ],
)
def test_worst_classes_are_named(classes, line):
    assert worst_classes(classes) == line


def test_unequal_classes_count_alike_in_a_line_of_its_own():
    rare = {"pictures": 4, "mistakes": 2, "error": 50.0}
    classes = {**counts(1), "rare": rare}
    # 19 of 20 and 2 of 4 are right.
    assert class_lines(classes) == [
        "Worst class: rare, 50.00 % (2 of 4)",
        "Balanced accuracy, the classes' mean: 72.50 %",
    ]
    assert class_lines(counts(1, 0)) == ["Worst class: a, 5.00 % (1 of 20)"]
    assert class_lines(counts(0, 0)) == []


def test_batch_is_drawn_as_the_network_sees_it(tmp_path, figures):
    images = np.random.default_rng(0).random((40, 5, 5, 1), "float32")
    labels = np.eye(3, dtype="float32")[np.arange(40) % 3]
    labels[1] = 1, 0, 1
    inputs = {"image": images, "label": labels}
    draw_batch((inputs, {"capsnet": labels}), NAMES, str(tmp_path))
    axes = [axis for axis in figures[0].axes if axis.get_images()]
    titles = [axis.get_title() for axis in axes]
    assert titles[:3] == ["bottom $1", "bottom $1, top", "top"]
    assert len(titles) == 30
    for axis, image in zip(axes, images[..., 0]):
        shown = axis.get_images()[0].get_array()
        np.testing.assert_allclose(shown, 255 * image, atol=0.51)


@pytest.mark.parametrize(
    "names, expected",
    (
        ("5 T-shirt größe_1.5 日本", "5 T-shirt größe_1.5 日本"),
        ('a/b\\c:d*e?f"g<h>i|j\nk\0l~m', "a-b-c-d-e-f-g-h-i-j-k-l-m"),
        ("a/b a:b a-b a~b", "a-b~0 a-b~1 a-b~2 a-b~3"),
        ("cat Cat dog", "cat~0 Cat~1 dog"),
        ("1 a/1 a:1 a-1~1", "1 a-1~1 a-1~2 a-1-1"),
        ("x" * 300, "x" * 50),
        (f"{'x' * 60}a {'x' * 60}b", f"{'x' * 50}~0 {'x' * 50}~1"),
    ),
)
def test_each_class_has_a_file_that_every_system_takes(names, expected):
    names = names.split(" ")
    for number, name in enumerate(expected.split(" ")):
        path = manipulation_path("run", names, number)
        assert path == os.path.join("run", f"manipulate-{name}.png")


@pytest.fixture
def tested(tmp_path):
    """A folder with a test of `model.keras`, and a picture of --digit."""
    model = tmp_path / "model.keras"
    model.write_bytes(b"")
    pages = "manipulate-1.png", "explore.html", "mine.png"
    for name in (*TEST_FILES, *pages):
        (tmp_path / name).write_bytes(b"")
    write_json(tmp_path / "test.json", {"weights": [str(model)]})
    return tmp_path


@pytest.mark.parametrize(
    "spoil, kept",
    (
        (lambda folder: None, ["explore.html", "manipulate-1.png"]),
        # It was trained anew, or nobody knows which model was tested.
        (lambda folder: os.utime(folder / "model.keras", (2e9, 2e9)), []),
        (lambda folder: (folder / "test.json").write_text("[]"), []),
        (lambda folder: (folder / "test.json").unlink(), []),
    ),
)
def test_only_pictures_of_the_same_model_outlive_a_test(tested, spoil, kept):
    assert time.time() < 2e9
    spoil(tested)
    replace_test(str(tested), {"weights": [str(tested / "model.keras")]})
    left = [*kept, "mine.png", "model.keras", "test.json"]
    assert sorted(os.listdir(tested)) == left


def test_pictures_of_another_model_go_with_its_test(tested):
    other = tested / "other.keras"
    other.write_bytes(b"")
    replace_test(str(tested), {"weights": [str(other)]})
    left = ["mine.png", "model.keras", "other.keras", "test.json"]
    assert sorted(os.listdir(tested)) == left
