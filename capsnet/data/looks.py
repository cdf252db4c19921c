"""Whether pictures look like those that a model was trained on.

Dark on light and light on dark are told apart by what surrounds the objects:
the outermost pixels, as light as in training or not.
"""

import numpy as np

from capsnet.files import split_pairs
from capsnet.messages import counted, listed

# Of models whose records have no figures yet.
KNOWN_BORDERS = {"mnist": (0.0, 0.0), "digits": (0.0, 0.0)}
# A border tells something where it is lighter or darker than grey by so
# much, and differs from picture to picture by no more than that.
CLEARLY, ALIKE = 0.25, 0.2


def invert(x):
    """uint8 pictures with light for dark; what is transparent stays so."""
    return np.concatenate([255 - x[..., :3], x[..., 3:]], axis=-1)


def borders(x):
    """How light the outermost pixels are, from 0 to 1, shape `(n,)`.

    Args:
        x: uint8 pictures of shape `(n, height, width, channels)`.
    """
    x = x[..., :3]
    sides = x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]
    return np.concatenate(sides, axis=1).mean((1, 2)) / 255


def border_figures(x):
    """Mean and standard deviation of `borders`, for a model's record."""
    found = borders(x)
    return [float(found.mean()), float(found.std())]


def unlike(x, record):
    """Which pictures are light around where a model's were dark, or dark.

    Args:
        x: uint8 pictures of shape `(n, height, width, channels)`.
        record: The model's record.

    Returns:
        Booleans of shape `(n,)`.
    """
    name = split_pairs(str(record.get("flags", {}).get("dataset")))[1]
    try:
        mean, deviation = record.get("border") or KNOWN_BORDERS[name]
        is_clear = abs(mean - 0.5) >= CLEARLY and deviation <= ALIKE
    except (KeyError, TypeError, ValueError):  # No figures.
        is_clear = False
    if not is_clear:
        return np.zeros(len(x), bool)
    return (borders(x) > 0.5) != (mean > 0.5)


def note_unlike(names, total, inverted):
    """A note in a list, or none, on pictures that look inverted.

    Args:
        names: What they are called, or how many they are.
        total: Of how many.
        inverted: Whether `--invert` was given.
    """
    count = names if isinstance(names, int) else len(names)
    if not count:
        return []
    which = "" if isinstance(names, int) else f" ({listed(names)})"
    remedy = "leave out --invert" if inverted else "--invert turns them"
    return [
        "Light where the training pictures are dark, or dark where they are "
        f"light: {count} of {counted(total, 'picture')}{which}; {remedy}"
    ]
