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


def border_of(record):
    """Mean and deviation of the borders that a model was trained on.

    `None` where there are no figures, or where they tell nothing.
    """
    name = split_pairs(str(record.get("flags", {}).get("dataset")))[1]
    try:
        mean, deviation = record.get("border") or KNOWN_BORDERS[name]
        is_clear = abs(mean - 0.5) >= CLEARLY and deviation <= ALIKE
    except (KeyError, TypeError, ValueError):
        return None
    return (mean, deviation) if is_clear else None


def unlike(x, record):
    """Which pictures are light around where a model's were dark, or dark.

    Args:
        x: uint8 pictures of shape `(n, height, width, channels)`.
        record: The model's record.

    Returns:
        Booleans of shape `(n,)`.
    """
    border = border_of(record)
    if border is None:
        return np.zeros(len(x), bool)
    return (borders(x) > 0.5) != (border[0] > 0.5)


def note_unlike(count, total, record, inverted, names=()):
    """A note in a list, or none, on pictures that look inverted.

    Args:
        count, total: How many are `unlike`, and of how many.
        record: The model's record.
        inverted: Whether `--invert` was given.
        names: What they are called.
    """
    if not count:
        return []
    looks = ["dark on light", "light on dark"]
    if border_of(record)[0] > 0.5:
        looks.reverse()
    which = f" ({listed(names)})" if names else ""
    remedy = "leave out --invert" if inverted else "--invert turns all"
    return [
        f"{looks[0].capitalize()}, where the training pictures are {looks[1]}: "
        f"{count} of {counted(total, 'picture')}{which}; {remedy}"
    ]
