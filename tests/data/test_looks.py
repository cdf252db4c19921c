"""Dark on light is told from light on dark, and turned."""

import numpy as np
import pytest
from samples import random_pictures

from capsnet.data import looks

DARK = {"border": [0.02, 0.05]}
LIGHT = {"border": [0.9, 0.1]}


def framed(border, inside, n=3, channels=1):
    """Pictures of one border and one inside, 0 to 255."""
    x = np.full((n, 6, 5, channels), border, np.uint8)
    x[:, 1:-1, 1:-1] = inside
    return x


def test_borders_are_the_outermost_pixels_alone():
    assert looks.borders(framed(51, 255)).tolist() == [0.2] * 3
    x = random_pictures(2, (6, 5, 3))
    for picture, found in zip(x, looks.borders(x)):
        values = [
            picture[row, column].astype(float)
            for row in range(6)
            for column in range(5)
            if row in (0, 5) or column in (0, 4)
        ]
        # The corners belong to two sides.
        values += [picture[r, c].astype(float) for r in (0, 5) for c in (0, 4)]
        assert found == pytest.approx(np.mean(values) / 255)
    mean, deviation = looks.border_figures(x)
    assert mean == pytest.approx(looks.borders(x).mean())
    assert deviation == pytest.approx(looks.borders(x).std())


@pytest.mark.parametrize(
    "record, expected",
    [
        (DARK, [False, True]),
        (LIGHT, [True, False]),
        # MNIST's are known without figures.
        ({"flags": {"dataset": "mnist"}}, [False, True]),
        ({"flags": {"dataset": "pairs:mnist"}}, [False, True]),
        # Photographs are neither, or both.
        ({"border": [0.45, 0.1]}, [False, False]),
        ({"border": [0.2, 0.3]}, [False, False]),
        ({"flags": {"dataset": "/photos"}}, [False, False]),
        ({"border": "dark"}, [False, False]),
        ({}, [False, False]),
    ],
)
def test_pictures_unlike_the_models_own_are_found(record, expected):
    x = np.concatenate([framed(10, 250, 1), framed(250, 10, 1)])
    assert looks.unlike(x, record).tolist() == expected


def test_the_note_names_the_remedy():
    (note,) = looks.note_unlike(1, 3, DARK, False, ["a.png"])
    assert note == (
        "Dark on light, where the training pictures are light on dark: "
        "1 of 3 pictures (a.png); --invert turns all"
    )
    (note,) = looks.note_unlike(2, 2, LIGHT, True)
    assert note == (
        "Light on dark, where the training pictures are dark on light: "
        "2 of 2 pictures; leave out --invert"
    )
    assert looks.note_unlike(0, 3, DARK, False) == []


def test_inverting_leaves_transparency():
    x = random_pictures(3, (6, 5, 4))
    turned = looks.invert(x)
    np.testing.assert_array_equal(turned[..., :3], 255 - x[..., :3])
    np.testing.assert_array_equal(turned[..., 3], x[..., 3])
    np.testing.assert_array_equal(looks.invert(turned), x)
