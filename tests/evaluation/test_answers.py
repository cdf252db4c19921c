"""The test of several labels: hand-made cases, and what is drawn."""

import keras
import numpy as np
import pytest
from conftest import bars

import capsulenet
import utils
from capsnet.data.datasets import Dataset
from capsnet.evaluation.answers import in_order, label_of, lines, test_figures
from capsnet.models.networks import Network

# No test of pytest's.
figures_of = test_figures
del test_figures
NAMES = ["a", "b", "c", "d"]


def data_of(labels, **more):
    x = np.zeros((len(labels), 5, 5, 1), "uint8")
    return Dataset(x, labels, x, labels, NAMES, "data", **more)


def test_figures_of_pairs_on_hand_made_cases():
    lengths = np.array(
        [
            [0.9, 0.8, 0.1, 0.0],  # Both right.
            [0.8, 0.9, 0.1, 0.0],  # Both right, in the other order.
            [0.9, 0.1, 0.8, 0.0],  # One right.
            [0.1, 0.1, 0.9, 0.8],  # None.
            [0.5, 0.5, 0.5, 0.5],  # A tie: the lower classes, both right.
        ]
    )
    answers = np.tile([True, True, False, False], (5, 1))
    data = data_of(np.arange(5) % 4, pairs=True)
    figures = figures_of(lengths, answers, data)
    assert figures["test_error"] == figures["exact_error"] == 40
    assert figures["error_per_digit"] == pytest.approx(30)
    assert figures["at_least_one_right"] == 80
    assert (figures["mistakes"], figures["pairs"]) == (2, 5)
    assert [
        (each["pictures"], each["mistakes"], each["wrongly_named"])
        for each in figures["classes"].values()
    ] == [(5, 1, 0), (5, 2, 0), (0, 0, 2), (0, 0, 1)]
    # The same tie, and other labels.
    figures = figures_of(lengths[-1:], ~answers[-1:], data)
    assert (figures["exact_error"], figures["error_per_digit"]) == (100, 100)
    first, second = lines({**figures, "error_per_digit": 12.345})
    assert first.startswith("Exact test error") and "100.00 % (1 of 1" in first
    assert "Error per digit: 12.35 %" in second or "12.34 %" in second
    assert "at least one digit right: 0.00 %" in second


def test_figures_of_several_labels_on_hand_made_cases():
    lengths = np.array(
        [
            [0.9, 0.8, 0.1, 0.0],  # Right in both ways.
            [0.9, 0.4, 0.1, 0.0],  # The two longest, but not above 0.5.
            [0.9, 0.8, 0.7, 0.0],  # Too many above 0.5.
            [0.9, 0.1, 0.8, 0.0],  # One wrong.
            [0.5, 0.2, 0.1, 0.0],  # None above 0.5, and there is none.
            [0.6, 0.2, 0.1, 0.0],  # One where there is none.
        ]
    )
    rows = np.array([[1, 1, 0, 0]] * 4 + [[0, 0, 0, 0]] * 2, "uint8")
    figures = figures_of(lengths, rows.astype(bool), data_of(rows))
    assert figures["test_error"] == pytest.approx(100 * 4 / 6)
    assert figures["exact_error_above_half"] == figures["test_error"]
    assert figures["exact_error_top_k"] == pytest.approx(100 / 6)
    # Of 24 answers five are wrong.
    assert figures["error_per_label"] == pytest.approx(100 * 5 / 24)
    assert figures["classes"]["b"] == {
        **{"pictures": 4, "mistakes": 2, "error": 50.0, "wrongly_named": 0}
    }
    first, second = lines(figures)
    assert "above 0.5" in first and "66.67 % (4 of 6)" in first
    assert "k longest" in second and "16.67 %" in second


def test_several_labels_to_draw_are_those_above_half_or_the_longest():
    lengths = np.array([[0.6, 0.7, 0.1], [0.1, 0.5, 0.5]])
    assert label_of(lengths).tolist() == [[1, 1, 0], [0, 1, 0]]


def test_digit_and_reconstruction_have_one_place():
    lengths = np.array([[0.9, 0.8, 0.1, 0.2]])
    for true, expected in (
        ((0, 1), [0, 1]),
        ((1, 0), [1, 0]),
        ((1, 2), [1, 0]),
        ((3, 0), [1, 0]),
        ((0, 3), [0, 1]),
        ((2, 3), [0, 1]),
    ):
        assert in_order(lengths, np.array([true])).tolist() == [expected]


def shown_in(figure):
    """Titles and pictures of a figure."""
    axes = [axis for axis in figure.axes if axis.get_images()]
    titles = [axis.get_title().replace("\n", " ") for axis in axes]
    return titles, [np.asarray(a.get_images()[0].get_array()) for a in axes]


def in_colours(pair, digits, drawn):
    """A pair, its digits and its reconstructions, side by side."""
    parts = [np.repeat(pair, 3, -1)]
    # One in orange, the other in blue.
    for one, other in (digits[..., 0] / 1.0, 255 * drawn[..., 0]):
        parts.append(np.stack([one, (one + other) / 2, other], -1))
    return utils.combine_images(np.array(parts) / 255, 3)


def test_pairs_are_drawn_with_digits_and_reconstructions(tmp_path, figures):
    x, y = bars(8, (12, 12, 1), 4)
    data = Dataset(x, y, x, y, NAMES, "pairs:bars", pairs=True)
    keras.utils.set_random_seed(0)
    network = Network(routings=1, primary_scale=16.0)
    models = capsulenet.build(network, data.input_shape, 4, "pair")
    counts = capsulenet.test([models[1]], data, str(tmp_path))
    assert counts["pairs"] == 80 and counts["mistakes"] > 0
    batches = data.test_batches(80, versions=10)
    lengths = models[1].predict(batches[0][0], verbose=0)["capsnet"]
    mistakes, spread_out = map(shown_in, figures)
    assert len(spread_out[0]) == len(mistakes[0]) == 36
    chosen = [number * 80 // 36 for number in range(36)]
    merged, digits, true = batches.pictures(chosen)
    two = np.argsort(-lengths[chosen], axis=1)[:, :2]
    crossed = (two == true[:, ::-1]).any(axis=1)
    two[crossed] = two[crossed, ::-1]
    for (first, second), named, title in zip(true, two, spread_out[0]):
        letters = [NAMES[number] for number in (first, second, *named)]
        assert title == "{} + {} -> {} + {}".format(*letters)
    label = np.eye(4, dtype="float32")[two]
    inputs = {"image": merged / np.float32(255), "label": label}
    drawn = models[0].predict(inputs, verbose=0)["decoder"]
    for row, picture in enumerate(spread_out[1]):
        expected = in_colours(merged[row], digits[row], drawn[row])
        np.testing.assert_allclose(picture.astype(int), expected, atol=1)
    # All of these are mistakes.
    for title in mistakes[0]:
        left, right = title.split(" -> ")
        assert sorted(left.split(" + ")) != sorted(right.split(" + "))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mistakes.png",
        "real_and_recon.png",
        "test.json",
    ]
