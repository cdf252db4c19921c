"""Digits drawn on the spot, in fonts that matplotlib brings.

A data set that needs no download, in the size of MNIST's pictures. The test
digits come from font families that training never sees.
"""

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

DIGIT_NAMES = [str(digit) for digit in range(10)]
# Those that have ten plain digits.
TRAIN_FONTS = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-BoldOblique DejaVuSans-Oblique "
    "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-BoldOblique "
    "DejaVuSansMono-Oblique DejaVuSerif DejaVuSerif-Bold "
    "DejaVuSerif-BoldItalic DejaVuSerif-Italic cmb10 cmr10 cmti10 cmtt10"
).split()
TEST_FONTS = (
    "STIXGeneral STIXGeneralBol STIXGeneralBolIta STIXGeneralItalic cmss10"
).split()
TRAIN_DIGITS, TEST_DIGITS = 10_000, 2_000
DIGIT_SIZE = 28
# Digits are drawn this many times larger, then averaged down.
OVERSAMPLING = 3


def draw_digits(seed):
    """The training part, `(x, y)`, and the test part.

    Digits in random fonts, strokes, shapes and places: uint8 pictures of
    shape `(n, 28, 28, 1)`, integers of shape `(n,)`.
    """
    generator = np.random.default_rng(seed)
    return [
        _draw_part(fonts, n, generator)
        for fonts, n in ((TRAIN_FONTS, TRAIN_DIGITS), (TEST_FONTS, TEST_DIGITS))
    ]


def _draw_part(fonts, n, generator):
    y = generator.permutation(np.arange(n) % 10)
    x = np.empty((n, DIGIT_SIZE, DIGIT_SIZE, 1), np.uint8)
    for index, digit in enumerate(y):
        font = fonts[generator.integers(len(fonts))]
        glyph = draw_glyph(font, str(digit), int(generator.integers(4)))
        x[index, ..., 0] = _distort(glyph, generator)
    return x, y


@functools.cache
def draw_glyph(font, character, stroke_width):
    """White on black, cut to what is drawn, with an edge for the filter."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
    # The basic layout is the one that every build of Pillow has.
    face = ImageFont.truetype(
        str(path), 80, layout_engine=ImageFont.Layout.BASIC
    )
    canvas = Image.new("L", (160, 160))
    ImageDraw.Draw(canvas).text(
        (40, 30), character, fill=255, font=face, stroke_width=stroke_width
    )
    return ImageOps.expand(canvas.crop(canvas.getbbox()), 4)


def _distort(glyph, generator):
    """Places a glyph, by a random affine map, on a blurred small picture."""
    side = DIGIT_SIZE * OVERSAMPLING
    angle = np.deg2rad(generator.uniform(-15, 15))
    shear = generator.uniform(-0.2, 0.2)
    height = generator.uniform(16, 21) * OVERSAMPLING / glyph.height
    width = height * generator.uniform(0.85, 1.15)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    inverse = np.linalg.inv(
        rotation @ [[1, shear], [0, 1]] @ np.diag([width, height])
    )
    centre = side / 2 + generator.uniform(-2, 2, 2) * OVERSAMPLING
    offset = np.array([glyph.width, glyph.height]) / 2 - inverse @ centre
    drawn = glyph.transform(
        (side, side),
        Image.Transform.AFFINE,
        (*inverse[0], offset[0], *inverse[1], offset[1]),
        Image.Resampling.BILINEAR,
    )
    blur = ImageFilter.GaussianBlur(generator.uniform(0, 0.6))
    return np.asarray(drawn.reduce(OVERSAMPLING).filter(blur))
