"""Augmentation: against SciPy and pixel by pixel, its ranges as measured."""

import math
import time

import numpy as np
import pytest
from samples import random_pictures
from scipy import ndimage

from capsnet.data.augment import Affine, Photo, Shift, max_shift

STRONG = {"rotation": 180, "scale": 0.9, "shear": 0.9, "shift_fraction": 0.5}
STILL = {"rotation": 0, "scale": 0, "shear": 0, "shift_fraction": 0}
# The second half of a `Photo`'s draws, with which it leaves pictures alone.
AS_IT_IS = [1, 0, 0, 0]


def versions_of(augment, images, draws):
    """All pictures, transformed with given draws, in 0 to 255."""
    draws = np.asarray(draws, float)
    return augment.take(augment.pad(images), np.arange(len(images)), draws)


def by_scipy(picture, augment, draws):
    """One picture: where its pixels go, turned round by NumPy's `inv`."""
    angle, shear, down, right, *shift = draws
    angle, shear = math.radians(augment.rotation) * angle, augment.shear * shear
    scale = np.diag(1 + augment.scale * np.array([down, right]))
    slant = np.array([[1, 0], [-shear, 1]])
    turn = np.array(
        [
            [math.cos(angle), -math.sin(angle)],
            [math.sin(angle), math.cos(angle)],
        ]
    )
    matrix = np.linalg.inv(turn @ slant @ scale)
    size = np.array(picture.shape[:2])
    centre = (size - 1) / 2
    moved = centre + augment.shift_fraction * np.array(shift) * size
    planes = [
        ndimage.affine_transform(
            picture[..., channel].astype(float),
            matrix,
            centre - matrix @ moved,
            order=1,
            mode="grid-constant",
        )
        for channel in range(picture.shape[-1])
    ]
    return np.stack(planes, -1)


@pytest.mark.parametrize("ranges", ({}, STRONG))
@pytest.mark.parametrize(
    "shape", ((28, 28, 1), (12, 30, 3), (17, 13, 4), (1, 1, 2))
)
def test_affine_is_the_one_of_scipy(shape, ranges):
    images = random_pictures(20, shape)
    augment = Affine(**ranges)
    draws = augment.draw(np.random.default_rng(1), 20, shape[:2])
    received = versions_of(augment, images, draws)
    assert received.shape == images.shape and received.dtype == np.float32
    for version, picture, row in zip(received, images, draws):
        expected = by_scipy(picture, augment, row)
        np.testing.assert_allclose(version, expected, atol=0.02)


def place_of(version):
    """Where the only bright thing of a picture lies, from the centre."""
    height, width = version.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    weights = version[..., 0] / version.sum()
    down = (weights * rows).sum() - (height - 1) / 2
    return down, (weights * columns).sum() - (width - 1) / 2


def places(offset, **ranges):
    """Where a dot comes to lie that was `offset` from the centre."""
    image = np.zeros((1, 61, 81, 1), np.uint8)
    down, right = 30 + offset[0], 40 + offset[1]
    image[0, down - 1 : down + 2, right - 1 : right + 2] = 200
    augment = Affine(**{**STILL, **ranges})
    images = np.repeat(image, 300, axis=0)
    versions = augment(images, np.random.default_rng(0))
    return np.array([place_of(version) for version in versions]).T


def spans(values, limit, middle=0.0):
    """Whether random values fill `middle - limit` to `middle + limit`."""
    low, high = values.min() - middle, values.max() - middle
    slack = 0.02 * limit
    return (
        -limit - slack < low < -0.9 * limit
        and 0.9 * limit < high < limit + slack
    )


def test_ranges_are_used_to_their_ends_and_no_further():
    down, right = places((0, 20), rotation=40)
    assert spans(np.degrees(np.arctan2(down, right)), 40)
    np.testing.assert_allclose(np.hypot(down, right), 20, rtol=0.02)
    down, right = places((-15, 20), scale=0.3)
    assert spans(down / -15, 0.3, 1.0) and spans(right / 20, 0.3, 1.0)
    # Each axis has its own.
    assert np.abs(np.corrcoef(down, right)[0, 1]) < 0.2
    down, right = places((-15, 0), shear=0.4)
    assert spans(right / 15, 0.4)
    np.testing.assert_allclose(down, -15, atol=0.05)
    down, right = places((0, 0), shift_fraction=0.2)
    assert spans(down / 61, 0.2) and spans(right / 81, 0.2)
    # Not in whole pixels.
    assert np.abs(down - np.round(down)).max() > 0.4


@pytest.mark.parametrize("shape", ((6, 5, 1), (7, 7, 3), (5, 8, 4)))
def test_ranges_of_zero_leave_pictures_as_they_are(shape):
    images = random_pictures(40, shape)
    expected = images.astype(np.float32) / 255
    generator = np.random.default_rng(0)
    for augment in (Shift(0.0), Affine(**STILL)):
        received = augment(images, generator)
        assert received.dtype == np.float32
        np.testing.assert_array_equal(received, expected)
    # Half of the photos are mirrored all the same.
    received = Photo(**STILL, colour=0)(images, generator)
    mirrored = 0
    for version, picture in zip(received, expected):
        if np.abs(version - picture).max() > 1e-5:
            mirrored += 1
            picture = picture[:, ::-1]
        np.testing.assert_allclose(version, picture, atol=1e-5)
    assert 10 <= mirrored <= 30


def test_photo_moves_pictures_like_affine():
    images = random_pictures(30, (9, 12, 3))
    draws = np.random.default_rng(2).uniform(-1, 1, (30, 6))
    expected = versions_of(Affine(**STRONG), images, draws)
    both = np.hstack([draws, np.tile(AS_IT_IS, (30, 1))])
    received = versions_of(Photo(**STRONG), images, both)
    np.testing.assert_allclose(received, expected, atol=0.02)
    # The picture is mirrored, then moved.
    both[:, 6] = -1
    received = versions_of(Photo(**STRONG), images[:, :, ::-1], both)
    np.testing.assert_allclose(received, expected, atol=0.02)


def recoloured_by_loops(picture, brightness, contrast, colour):
    """The first three channels, pixel by pixel."""
    height, width, channels = picture.shape
    seen = min(channels, 3)
    values = picture.astype(float)
    values[..., :seen] *= brightness
    mean = values[..., :seen].mean()
    for row in range(height):
        for column in range(width):
            pixel = values[row, column]
            for channel in range(seen):
                pixel[channel] = mean + contrast * (pixel[channel] - mean)
            if seen == 3:
                red, green, blue = pixel[:3]
                grey = 0.299 * red + 0.587 * green + 0.114 * blue
                for channel in range(3):
                    pixel[channel] = grey + colour * (pixel[channel] - grey)
            for channel in range(channels):
                pixel[channel] = min(max(pixel[channel], 0.0), 255.0)
    return values


@pytest.mark.parametrize("channels", (1, 3, 4))
def test_brightness_contrast_and_colour_pixel_by_pixel(channels):
    images = random_pictures(5, (4, 6, channels))
    changes = np.array(
        [[1, 0, 0], [0, -1, 0], [0, 0, 1], [-0.5, 1, -1], [0.3, -0.2, 0.7]]
    )
    draws = np.hstack([np.zeros((5, 6)), np.ones((5, 1)), changes])
    received = versions_of(Photo(colour=0.5), images, draws)
    for version, picture, change in zip(received, images, changes):
        expected = recoloured_by_loops(picture, *(1 + 0.5 * change))
        np.testing.assert_allclose(version, expected, atol=0.01)


def test_brightness_and_contrast_by_hand():
    image = np.array([40, 80, 120, 240], np.uint8).reshape(1, 2, 2, 1)
    rows = {(0.5, 0, 0): [60, 120, 180, 255], (0, -0.5, 0): [80, 100, 120, 180]}
    for change, expected in rows.items():
        draws = [[0] * 6 + [1, *change]]
        received = versions_of(Photo(colour=1), image, draws)
        np.testing.assert_allclose(received.ravel(), expected, rtol=1e-6)


def test_what_comes_in_from_outside_is_zero_whatever_the_contrast():
    images = np.full((1, 10, 10, 3), 200, np.uint8)
    images[0, :5] = 100
    # To the right and down by half a side, with half of the contrast.
    draws = [[0, 0, 0, 0, 1, 1, 1, 0, -1, 0]]
    (version,) = versions_of(
        Photo(shift_fraction=0.5, colour=0.5), images, draws
    )
    assert not version[:5].any() and not version[:, :5].any()
    np.testing.assert_allclose(version[5:, 5:], 125, rtol=1e-5)


@pytest.mark.parametrize("augment", (Shift(0.4), Affine(), Photo()))
def test_each_picture_has_its_own_version_of_a_generator(augment):
    images = np.repeat(random_pictures(1, (15, 12, 3)), 20, axis=0)
    before = images.copy()
    first, second = (
        augment(images, np.random.default_rng(seed)) for seed in (3, 3)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(images, before)
    assert len(np.unique(first.reshape(20, -1), axis=0)) > 15
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("shape", ((28, 28, 1), (32, 32, 3)))
@pytest.mark.parametrize("augment", (Affine(), Photo()))
def test_100_pictures_take_less_than_30_milliseconds(shape, augment):
    """A step of the small network takes ten times as long; a loop, 100 ms."""
    padded = augment.pad(random_pictures(1000, shape))
    draws = augment.draw(np.random.default_rng(0), 1000, shape[:2])
    seconds = []
    for start in range(0, 1000, 100):
        chosen = np.arange(start, start + 100)
        before = time.process_time()
        augment.take(padded, chosen, draws[chosen])
        seconds.append(time.process_time() - before)
    assert np.median(seconds) < 0.03


def test_max_shift_is_in_whole_pixels():
    assert max_shift((28, 30, 1), 0.1) == (2, 3)
    assert max_shift((28, 28, 1), 0) == (0, 0)


def test_max_shift_is_the_one_of_decimal_arithmetic():
    """0.29 * 100 is 28.999... in binary, and 29 pixels were asked for."""
    for hundredths in range(51):
        for size in range(1, 300):
            down, right = max_shift((size, size), hundredths / 100)
            assert down == right == hundredths * size // 100
