"""Tests of robustness.py: the affNIST-like set against loops over pixels."""

import hashlib
import itertools
import math

import keras
import numpy as np
import pytest
from conftest import bars, real_data
from running import NAMES, lengths_of
from samples import random_pictures

import capsulenet
import utils
from capsnet.data.sources import Dataset, load
from capsnet.evaluation import robustness
from capsnet.evaluation.figures import spread
from capsnet.evaluation.figures import test_figures as figures_of
from capsnet.files import write_json


def blots(count, shape, edge, seed=0):
    """Random pictures with a black margin, or, of edge 0, without one."""
    pictures = random_pictures(count, shape, seed)
    generator = np.random.default_rng(seed)
    pictures[generator.random(pictures.shape) < 0.3] = 0
    height, width = shape[:2]
    inside = np.zeros(shape[:2], bool)
    inside[edge : height - edge, edge : width - edge] = True
    pictures[:, ~inside] = 0
    return pictures


def slow_matrix(draw):
    """From a picture's places to a version's: turned, slanted, scaled."""
    spans = (-20, 20), (-0.2, 0.2), (0.8, 1.2), (0.8, 1.2)
    values = [low + (high - low) * u for u, (low, high) in zip(draw, spans)]
    angle, shear, down, right = values
    angle = math.radians(angle)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    slant = np.array([[1, shear], [0, 1]])  # Of x (right) to y (down).
    forward = np.diag([down, right]) @ slant @ turn
    # In the inverse's steps, as the set has it.
    return np.linalg.inv(np.round(np.linalg.inv(forward) * 2**14) / 2**14)


def slow_place(picture, forward, draw, size):
    """Where the centre of a version comes to lie, down and right."""
    place = []
    centre = np.subtract(picture.shape[:2], 1) / 2
    for axis in range(2):
        reached = []
        for pixel in np.argwhere(picture.any(-1)):
            for corner in itertools.product((-1, 1), repeat=2):
                reached.append((forward @ (pixel + corner - centre))[axis])
        edge = (size[axis] + 1) / 2
        lowest = math.ceil(16 * (-edge - min(reached)))
        highest = math.floor(16 * (edge - max(reached)))
        steps = highest - lowest + 1
        chosen = lowest + math.floor(draw[4 + axis] * steps)
        if steps < 1:
            chosen = (lowest + highest) // 2
        place.append(chosen / 16)
    return np.array(place)


def slow_version(picture, draw, margin, beyond=0):
    """A version, `beyond` pixels wider on each side than the canvas."""
    height, width, channels = picture.shape
    size = height + 2 * margin, width + 2 * margin
    forward = slow_matrix(draw)
    backward, place = (
        np.linalg.inv(forward),
        slow_place(picture, forward, draw, size),
    )
    canvas = np.zeros([side + 2 * beyond for side in size] + [channels])
    rows, columns = np.arange(height), np.arange(width)
    for y, x in np.ndindex(canvas.shape[:2]):
        seen = np.array([y - beyond, x - beyond]) - np.subtract(size, 1) / 2
        down, right = backward @ (seen - place)
        down, right = down + (height - 1) / 2, right + (width - 1) / 2
        by_row = np.maximum(0, 1 - np.abs(rows - down))
        by_column = np.maximum(0, 1 - np.abs(columns - right))
        canvas[y, x] = np.einsum("i,j,ijc", by_row, by_column, picture)
    return canvas


@pytest.mark.parametrize(
    "shape, edge, margin",
    (
        ((12, 12, 1), 2, 6),
        ((9, 14, 3), 3, 6),
        ((13, 12, 1), 4, 0),
        ((10, 10, 1), 0, 0),  # No room: what does not fit is cut off.
    ),
)
def test_versions_are_those_of_loops_from_the_definition(shape, edge, margin):
    pictures = blots(6, shape, edge)
    draws = np.random.default_rng(1).random((6, 6))
    received = robustness.change(pictures, draws, margin)
    assert received.dtype == np.uint8
    for version, picture, draw in zip(received, pictures, draws):
        expected = slow_version(picture, draw, margin)
        assert version.shape == expected.shape
        np.testing.assert_allclose(version, expected, atol=0.501)


def whole_version(picture, draw, margin):
    """A version of which nothing lies outside of the canvas."""
    wide = slow_version(picture, draw, margin, beyond=3)
    inside = wide[3:-3, 3:-3].copy()
    wide[3:-3, 3:-3] = 0
    assert wide.max() < 1e-9 and inside.max() > 100
    return inside


def extremes(count):
    """Draws with each number at one of its ends, or in the middle."""
    generator = np.random.default_rng(2)
    return generator.choice((0, 0.5, 1 - 2**-53), (count, 6))


@pytest.mark.parametrize("edge, margin", ((0, 6), (2, 6), (4, 0)))
def test_nothing_is_cut_off_where_there_is_room(edge, margin):
    pictures = blots(30, (12, 12, 1), edge, seed=3)
    for picture, draw in zip(pictures, extremes(30)):
        inside = whole_version(picture, draw, margin)
        (version,) = robustness.change(picture[None], draw[None], margin)
        np.testing.assert_allclose(version, inside, atol=0.501)


def test_places_are_used_to_the_edges_of_the_canvas():
    """A small square that is only moved: how far, in each direction."""
    picture = np.zeros((400, 12, 12, 1), np.uint8)
    picture[:, 5:7, 5:7] = 200
    draws = np.random.default_rng(0).random((400, 6))
    draws[:, :4] = 0.5
    versions = robustness.change(picture, draws)[..., 0].astype(float)
    lit = versions.any(2), versions.any(1)
    for each in lit:
        assert each[:, 0].any() and each[:, -1].any()
        first, last = each.argmax(1), 23 - each[:, ::-1].argmax(1)
        assert set(last - first) <= {1, 2}
    weights = versions / versions.sum((1, 2), keepdims=True)
    for marginal in (weights.sum(2), weights.sum(1)):
        places = marginal @ np.arange(24.0)
        # Uniform from half a pixel to 22.5: mean 11.5, deviation 6.4.
        assert places.min() < 0.8 and places.max() > 22.2
        assert abs(places.mean() - 11.5) < 1 and abs(places.std() - 6.4) < 0.4
    # Not in whole pixels.
    assert len(np.unique(np.round(places % 1, 3))) > 10


def test_where_there_is_no_room_the_lit_pixels_are_centred():
    full = np.full((1, 9, 9, 1), 255, np.uint8)
    still = np.array([[0.5, 0.5, 0.5, 0.5, 0.0, 0.999]])
    received = robustness.change(full, still, margin=0)
    np.testing.assert_array_equal(received, full)
    black = np.zeros_like(full)
    assert not robustness.change(black, still, margin=0).any()


def test_ranges_are_those_of_the_paper_to_both_ends():
    draws = np.random.default_rng(5).random((2000, 6))
    forward = np.linalg.inv(robustness.matrices(draws))
    for matrix, draw in zip(forward[:50], draws):
        np.testing.assert_allclose(matrix, slow_matrix(draw), atol=1e-9)
    # Scale x slant x turn: what is below the diagonal is the turn's alone.
    angle = np.arctan2(forward[:, 1, 0], forward[:, 1, 1])
    right = np.hypot(forward[:, 1, 0], forward[:, 1, 1])
    down = np.linalg.det(forward) / right
    dot = (forward[:, 0] * forward[:, 1]).sum(-1)
    shear = dot / (right * down)
    for values, low, high in (
        (np.degrees(angle), -20, 20),
        (shear, -0.2, 0.2),
        (down, 0.8, 1.2),
        (right, 0.8, 1.2),
    ):
        span = high - low
        assert low - 1e-3 * span < values.min() < low + 0.01 * span
        assert high - 0.01 * span < values.max() < high + 1e-3 * span
        assert abs(values.mean() - (low + high) / 2) < 0.03 * span


def test_pictures_of_the_set_do_not_depend_on_their_neighbours():
    pictures = blots(40, (10, 10, 1), 2)
    every = np.arange(40 * 8)
    whole = robustness.take(pictures, every, versions=8, seed=3)
    assert whole.shape == (320, 22, 22, 1)
    assert len(np.unique(whole.reshape(320, -1), axis=0)) == 320
    for chosen in ([17], every[::-7], np.arange(300, 320)):
        part = robustness.take(pictures, chosen, versions=8, seed=3)
        np.testing.assert_array_equal(part, whole[chosen])
    other = robustness.take(pictures, every, versions=8, seed=4)
    assert (other != whole).any((1, 2, 3)).all()
    # Version v of picture p is at the place p * versions + v.
    only = robustness.take(pictures, [8 * 5 + 2], versions=8, seed=3)
    draws = np.random.default_rng(3).random((320, 6))[[42]]
    expected = robustness.change(pictures[[5]], draws)
    np.testing.assert_array_equal(only, expected)


def test_checksum_is_that_of_all_pixels_and_the_same_on_every_machine():
    ramp = np.arange(12 * 12 * 60) * 40503 % 2**16
    pictures = (ramp >> 8).astype(np.uint8).reshape(60, 12, 12, 1)
    pictures[:, [0, -1]] = pictures[:, :, [0, -1]] = 0
    whole = robustness.take(pictures, np.arange(60 * 100), versions=100)
    digest = hashlib.sha256(whole.tobytes()).hexdigest()
    assert robustness.checksum(pictures, versions=100) == digest
    assert digest.startswith("9ee4e5538a1b84ce")


def test_rounding_hides_the_last_digits_of_a_machine():
    """A sine that is off by a little makes the same pictures."""
    pictures = blots(200, (12, 12, 1), 1, seed=6)
    draws = np.random.default_rng(7).random((200, 6))
    expected = robustness.change(pictures, draws)
    moved = draws * np.random.default_rng(8).uniform(
        1 - 1e-13, 1 + 1e-13, draws.shape
    )
    assert (moved != draws).any()
    received = robustness.change(pictures, moved)
    np.testing.assert_array_equal(received, expected)


def test_shifted_pictures_are_whole_at_every_place_of_the_canvas():
    pictures = np.repeat(random_pictures(1, (8, 8, 2)), 2000, axis=0)
    found = robustness.shifted(pictures)
    assert found.shape == (2000, 20, 20, 2) and found.dtype == np.uint8
    places = set()
    for version in found:
        rows, columns = np.nonzero(version.any(-1))
        top, left = rows.min(), columns.min()
        places.add((top, left))
        expected = np.zeros((20, 20, 2), np.uint8)
        expected[top : top + 8, left : left + 8] = pictures[0]
        np.testing.assert_array_equal(version, expected)
    assert places == set(itertools.product(range(13), repeat=2))
    np.testing.assert_array_equal(robustness.shifted(pictures), found)
    other = robustness.shifted(pictures, seed=1)
    assert (other != found).any()


def test_training_places_pictures_as_the_test_set_does():
    pictures = random_pictures(3, (28, 28, 1))
    centred, shift = robustness.placing(pictures)
    assert centred.shape == (3, 40, 40, 1)
    np.testing.assert_array_equal(centred[:, 6:34, 6:34], pictures)
    draws = shift.draw(np.random.default_rng(0), 5000, (40, 40))
    assert np.unique(draws).tolist() == list(range(13))


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(0)
    return [
        capsulenet.CapsNet((17, 17, 3), 3, decoder=decoder, primary_scale=16.0)
        for decoder in (True, False)
    ]


def test_affine_test_counts_the_votes_and_draws_what_was_tested(
    models, tmp_path, figures
):
    x, y = bars(60, (17, 17, 3))
    data = Dataset(x, y, x, y, NAMES, "bars")
    write_json(tmp_path / "test.json", {"mistakes": 3})
    eval_models = [model[1] for model in models]
    found = robustness.test_affine(
        eval_models, data, str(tmp_path), {"mistakes": 3}
    )
    changed = robustness.take(x, np.arange(60), versions=1, margin=0)
    assert changed.shape == x.shape and (changed != x).any((1, 2, 3)).all()
    lengths = sum(lengths_of(model, changed) for model in eval_models)
    confusion = np.zeros((3, 3), int)
    for true, predicted in zip(y, lengths.argmax(-1)):
        confusion[true, predicted] += 1
    affine = found.pop("affine")
    assert found == {"mistakes": 3}
    expected = figures_of(confusion, NAMES)
    assert expected.items() <= affine.items() and affine["mistakes"] > 0
    assert affine["sha256"] == hashlib.sha256(changed.tobytes()).hexdigest()
    assert (affine["rotation"], affine["shear"], affine["scale"]) == (
        *(20, 0.2),
        0.2,
    )
    assert b'"affine"' in (tmp_path / "test.json").read_bytes()
    axes = [axis for axis in figures[0].axes if axis.get_images()]
    assert len(axes) == 50 and (tmp_path / "affine.png").exists()
    for axis, i in zip(axes, spread(60)):
        title = f"{NAMES[y[i]]} -> {NAMES[lengths[i].argmax()]}"
        assert axis.get_title().replace("\n", " ") == title
        pair = np.stack([x[i], changed[i]]) / 255
        drawn = axis.get_images()[0].get_array()
        np.testing.assert_array_equal(drawn, utils.combine_images(pair, 2))


@pytest.mark.slow
def test_no_test_digit_of_mnist_is_cut_off():
    """All that shows is within the canvas, whose next pixels are black."""
    images = load(str(real_data("mnist"))).x_test
    chosen = np.arange(0, 320_000, 40)
    versions = robustness.take(images, chosen)
    draws = np.random.default_rng(robustness.SEED).random((320_000, 6))
    for index in range(0, 8000, 400):
        digit, draw = images[chosen[index] // 32], draws[chosen[index]]
        inside = whole_version(digit, draw, margin=6)
        np.testing.assert_allclose(versions[index], inside, atol=0.501)
    # As much light as scaled digits have.
    light = versions.sum((1, 2, 3)) / images[chosen // 32].sum((1, 2, 3))
    scale = 1 / np.linalg.det(robustness.matrices(draws[chosen]))
    np.testing.assert_allclose(light, scale, rtol=0.1)
