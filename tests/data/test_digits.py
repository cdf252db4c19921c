"""The digits that are drawn on the spot."""

import time

import numpy as np
import pytest

from capsnet.data import digits as digits_room
from capsnet.data.digits import (
    TEST_FONTS,
    TRAIN_FONTS,
    draw_digits,
    draw_glyph,
)


@pytest.fixture(scope="module")
def digits():
    start = time.process_time()
    parts = draw_digits(0)
    return parts, time.process_time() - start


def test_digits_are_drawn_in_seconds(digits):
    parts, seconds = digits
    assert seconds < 20
    for (x, y), count in zip(parts, (10_000, 2_000), strict=True):
        assert x.shape == (count, 28, 28, 1) and x.dtype == np.uint8
        assert np.bincount(y).tolist() == [count // 10] * 10


def test_digits_depend_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(digits_room, "TRAIN_DIGITS", 50)
    monkeypatch.setattr(digits_room, "TEST_DIGITS", 10)
    first, again, other = draw_digits(0), draw_digits(0), draw_digits(1)
    for ours, theirs in zip(first, again, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert not np.array_equal(first[0][0], other[0][0])


def test_test_digits_come_from_other_font_families():
    def family(font):
        return font.split("-")[0].removesuffix("Mono").removesuffix("Serif")

    train, test = (
        {family(f) for f in fonts} for fonts in (TRAIN_FONTS, TEST_FONTS)
    )
    assert train == set("DejaVuSans DejaVu cmb10 cmr10 cmti10 cmtt10".split())
    assert not train & test


def test_every_font_has_ten_different_digits():
    for font in TRAIN_FONTS + TEST_FONTS:
        glyphs = [draw_glyph(font, digit, 0) for digit in "0123456789"]
        assert all(glyph.height > 40 for glyph in glyphs), font
        assert len({glyph.tobytes() for glyph in glyphs}) == 10, font


def test_every_digit_is_bright_varied_and_inside_the_picture(digits):
    x = digits[0][0][0][..., 0].astype(float) / 255
    assert x.max(axis=(1, 2)).min() > 0.3
    edge = x.copy()
    edge[:, 1:-1, 1:-1] = 0
    assert edge.sum() < 0.01 * x.sum()
    assert len({picture.tobytes() for picture in x}) == 10_000
