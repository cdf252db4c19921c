"""Pictures that are turned, slanted, scaled and moved, as section 5.2 has them.

affNIST itself is not made anew. The *affNIST-like* set has several versions of
each test digit, on a canvas that is `MARGIN` pixels wider to each side. Each
is turned about its centre, slanted (a share of x added to y), scaled on each
axis, and moved to one of all the places where nothing of it is cut off.

The set is the same on every machine: what is drawn is rounded so far that
another machine's last digit of a sine does not show, and the pixels are
computed in an order that leaves no choice to a machine.
"""

import hashlib
import os

import numpy as np

import utils
from capsnet.data.augment import Shift, transform
from capsnet.evaluation.figures import count_answers, spread, test_figures
from capsnet.files import AFFINE, TEST_FILES, whole_file, write_json
from capsnet.messages import shorten

# At most: degrees; pixels down for each to the right; part of each axis.
ROTATION, SHEAR, SCALE = 20.0, 0.2, 0.2
VERSIONS = 32  # Of each digit, as in affNIST.
MARGIN = 6  # Pixels on each side.
SEED = 0
BLOCK = 250  # Pictures that are changed at once.
# Steps of a matrix's numbers, and of a place in pixels: 32-bit arithmetic is
# exact with both.
MATRIX_STEP, PLACE_STEP = 2.0**-14, 2.0**-4


def take(images, chosen, versions=VERSIONS, margin=MARGIN, seed=SEED):
    """Some pictures of the affNIST-like set of `images`.

    Args:
        images: uint8 array of shape `(n, height, width, channels)`.
        chosen: Integer array of shape `(m,)`, which pictures of the set, whose
            picture `i` is a version of `images[i // versions]`.
        versions: Positive integer, versions of each of `images`.
        margin: Integer, pixels that the canvas is wider on each side.
        seed: Integer from which the whole set is drawn.

    Returns:
        uint8 array of shape `(m, height + 2 * margin, width + 2 * margin,
        channels)`.
    """
    chosen = np.asarray(chosen)
    draws = np.random.default_rng(seed).random((len(images) * versions, 6))
    height, width, channels = images.shape[1:]
    size = height + 2 * margin, width + 2 * margin
    changed = np.empty((len(chosen), *size, channels), np.uint8)
    for start in range(0, len(chosen), BLOCK):
        block = chosen[start : start + BLOCK]
        part = change(images[block // versions], draws[block], margin)
        changed[start : start + BLOCK] = part
    return changed


def change(images, draws, margin=MARGIN):
    """Each picture in one other version.

    Where a version has no room on the canvas, its lit pixels are centred, and
    as much is cut off on one side as on the other. What comes in from outside
    of a picture is black.

    Args:
        images, margin: As in `take`.
        draws: Array of shape `(n, 6)` in [0, 1): rotation, shear, scale down
            and right, place down and right, each from its least to its most.

    Returns:
        uint8 array, as from `take`.
    """
    maps = matrices(draws)
    size = np.add(images.shape[1:3], 2 * margin)
    first, last = reach(images, np.linalg.inv(maps))
    # The first place outside is a pixel away from the last one inside.
    limit = (size + 1) / 2
    low = np.ceil((-limit - first) / PLACE_STEP)
    high = np.floor((limit - last) / PLACE_STEP)
    middle = np.floor((low + high) / 2)
    low, high = np.minimum(low, middle), np.maximum(high, middle)
    place = low + np.floor(draws[:, 4:] * (high - low + 1))
    edges = margin + 1, margin + 2  # As `transform` takes them.
    planes = np.moveaxis(images, -1, 0)
    padded = np.pad(planes, ((0, 0), (0, 0), edges, edges))
    shifts = PLACE_STEP * place / size
    moved = transform(padded, np.arange(len(images)), maps, shifts)
    return np.moveaxis(np.rint(moved), 0, -1).astype(np.uint8)


def matrices(draws):
    """From a version's places to the picture's own, rows before columns.

    Returns:
        Array of shape `(n, 2, 2)`, its numbers in steps of `MATRIX_STEP`.
    """
    angle, shear, down, right = 2 * draws[:, :4].T - 1
    angle, shear = np.deg2rad(ROTATION) * angle, SHEAR * shear
    cos, sin = np.cos(angle), np.sin(angle)
    down, right = 1 / (1 + SCALE * down), 1 / (1 + SCALE * right)
    rows = [down * cos, right * (sin - shear * cos)]
    columns = [-down * sin, right * (cos + shear * sin)]
    maps = np.stack([rows, columns]).transpose(2, 0, 1)
    return MATRIX_STEP * np.rint(maps / MATRIX_STEP)


def reach(images, forward):
    """How far the lit pixels of versions reach, from the canvas's centre.

    Args:
        images: As in `take`; of a black one all pixels count as lit.
        forward: Array of shape `(n, 2, 2)`, from a picture's places to the
            version's.

    Returns:
        Two arrays of shape `(n, 2)`: within these ends, down and right, lies
        all that is not black.
    """
    lit = images.any(-1)
    lit |= ~lit.any((1, 2), keepdims=True)
    down, right = (np.arange(side) - (side - 1) / 2 for side in lit.shape[1:])
    first, last = np.empty((2, len(images), 2))
    for axis in range(2):
        row = forward[:, axis]
        by_down, by_right = row.T[..., None, None]
        places = by_down * down[:, None] + by_right * right
        # Bilinear: a pixel shows as far as its neighbours.
        beyond = np.abs(row).sum(-1)
        first[:, axis] = np.where(lit, places, np.inf).min((1, 2)) - beyond
        last[:, axis] = np.where(lit, places, -np.inf).max((1, 2)) + beyond
    return first, last


def checksum(images, versions=VERSIONS, margin=MARGIN, seed=SEED):
    """Hexadecimal SHA-256 of the whole set's pixels, of any memory order.

    Args: As in `take`.
    """
    digest = hashlib.sha256()
    every = np.arange(len(images) * versions)
    for start in range(0, len(every), 20 * BLOCK):
        block = every[start : start + 20 * BLOCK]
        digest.update(take(images, block, versions, margin, seed).tobytes())
    return digest.hexdigest()


def placing(images, margin=MARGIN):
    """Pictures in the middle of the canvas, and what places them at random.

    Args:
        images, margin: As in `take`.

    Returns:
        uint8 array of shape `(n, height + 2 * margin, width + 2 * margin,
        channels)`, and a `Shift`, of up to `margin` whole pixels: nothing is
        cut off.
    """
    edges = margin, margin
    centred = np.pad(images, ((0, 0), edges, edges, (0, 0)))
    return centred, Shift(margin / max(centred.shape[1:3]))


def shifted(images, margin=MARGIN, seed=SEED):
    """Each picture once, at a random whole-pixel place of the canvas.

    Args:
        images, margin: As in `take`.
        seed: Integer.

    Returns:
        uint8 array as `placing`'s.
    """
    centred, shift = placing(images, margin)
    size, generator = centred.shape[1:3], np.random.default_rng(seed)
    draws = shift.draw(generator, len(images), size)
    return shift.take(shift.pad(centred), np.arange(len(images)), draws)


def test_affine(eval_models, data, save_dir, figures):
    """Tests models on versions of their own test pictures, of the same size.

    Writes `test.json` anew, and `affine.png`: pictures that were tested,
    each to the right of the one that it was made of.

    Args:
        eval_models, data, save_dir: As in `capsulenet.test`.
        figures: What that returned.

    Returns:
        `figures` with another entry, `affine`: what `figures.test_figures`
        says, and the ranges, the seed and the pictures' checksum.
    """
    images, labels = data.x_test, data.y_test
    changed = take(images, np.arange(len(images)), versions=1, margin=0)
    lengths, confusion = count_answers(
        eval_models, changed, labels, len(data.class_names)
    )
    predicted = lengths.argmax(-1)
    affine = {
        **{"rotation": ROTATION, "shear": SHEAR, "scale": SCALE, "seed": SEED},
        "sha256": hashlib.sha256(changed.tobytes()).hexdigest(),
        **test_figures(confusion, data.class_names),
    }
    figures = {**figures, "affine": affine}
    write_json(os.path.join(save_dir, TEST_FILES[0]), figures)
    names = [shorten(name, 18) for name in data.class_names]
    shown = spread(len(images))
    titles = [f"{names[labels[i]]} -> {names[predicted[i]]}" for i in shown]
    with whole_file(os.path.join(save_dir, AFFINE)) as path:
        parts = images[shown] / 255, changed[shown] / 255
        caption = "test picture and its changed version: true -> predicted"
        utils.draw_pairs(*parts, titles, path, caption)
    return figures
