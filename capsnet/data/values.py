"""Arrays of pictures: their axes and their values, as people have them."""

import math

import numpy as np

from capsnet.data.labels import check_labels, same_kind
from capsnet.data.parts import ALL
from capsnet.data.pictures import PICTURE_MODES
from capsnet.messages import UserError, cross

# Resizing leaves the scale by at most this part of it.
OVERSHOOT = 0.2
# Brightest values, of 255. Below the first all is black to the eye: the
# values have fewer bits, or were scaled twice.
NEARLY_BLACK, DARK = 32, 128
# Kinds of types that tell apart values up to 1 and values up to 255.
CLEAR = "fi fu bi bu bf".split()
CHUNK = 2**20  # Values that become uint8 at a time.


def key_of(part, role="x"):
    """What the array of a part is called."""
    return role if part == ALL else f"{role}_{part}"


def check_parts(name, parts):
    """Parts `(x, y)` as uint8 pictures and labels, and notes.

    Returns:
        Pictures of shape `(n, height, width, channels)` and labels of shape
        `(n,)`, or `(n, n_class)` where a picture may have several: uint8 rows
        of zeros and ones.
    """
    pictures, labels = {}, {}
    for part, (x, y) in parts.items():
        pictures[part] = x = as_pictures(name, part, x, len(y) if y.ndim else 0)
        labels[part] = check_labels(name, key_of(part, "y"), len(x), y)
    shapes = list({x.shape[1:]: None for x in pictures.values()})
    if len(shapes) > 1:
        raise UserError(
            "expected training and test pictures of one shape, received "
            f"{' and '.join(map(str, shapes))} in {name!r}: store them in one "
            "shape"
        )
    labels = same_kind(name, labels)
    pictures, notes = to_uint8(name, pictures)
    for part, x in pictures.items():
        given = parts[part][0].shape
        if given[:3] != x.shape[:3]:
            read = f"read as {len(x)} of {cross(x.shape[1:])}"
            notes.append(f"{key_of(part)} of shape {given}, {read}")
    return {part: (pictures[part], labels[part]) for part in parts}, notes


def as_pictures(name, part, x, count):
    """An array of pictures as `(n, height, width, channels)`.

    Squares that lie in rows, and channels that come first as in PyTorch, are
    unmistakable; so are pictures that lie along the last axis.

    Args:
        name, part: Data set and part, for the error.
        x: Array.
        count: How many labels there are.
    """
    side = math.isqrt(x.shape[1]) if x.ndim == 2 else 0
    if side > 1 and side * side == x.shape[1]:
        x = x.reshape(-1, side, side)
    if x.ndim == 3:
        x = x[..., None]
    received = x.shape
    if x.ndim == 4 and x.shape[3] not in PICTURE_MODES:
        if x.shape[1] in PICTURE_MODES and len(x) == count:
            x = np.moveaxis(x, 1, -1)
        elif x.shape[2] in PICTURE_MODES and x.shape[3] == count:
            x = np.moveaxis(x, -1, 0)
    if x.ndim == 4 and x.shape[3] in PICTURE_MODES and 0 not in x.shape:
        return x
    raise UserError(
        f"expected {key_of(part)} of shape (n, height, width) or (n, height, "
        f"width, channels), with 1, 3 or 4 channels and nothing empty, "
        f"received {received} in {name!r}: order the axes with np.transpose "
        "(np.reshape would scramble the pictures)"
    )


def to_uint8(name, pictures):
    """Pictures by part, from 0 to 255, and notes on how they were scaled.

    Raises:
        UserError: If the scale is not clear, or nothing would be seen.
    """
    spans = {part: (x.min(), x.max()) for part, x in pictures.items()}
    scales, notes = {}, []
    for part, x in pictures.items():
        scales[part] = _scale(name, part, x, *map(float, spans[part]))
    _check_one_scale(name, pictures, spans, scales)
    tops = {p: float(spans[p][1]) * 255 / scales[p] for p in pictures}
    if brightest := max(tops.values()):
        # A black part beside others has any scale.
        brightest = min(filter(None, tops.values()))
    if brightest < NEARLY_BLACK:
        values = " and ".join(
            f"{key_of(part)} from {float(low):g} to {float(top):g}"
            for part, (low, top) in spans.items()
        )
        raise UserError(
            "expected pictures with values from 0 to 255 (or from 0 to 1), "
            f"received {values} in {name!r}, which are nearly black: scale "
            "them, so that black is 0 and white is 255"
        )
    if brightest < DARK:
        notes.append(
            f"Dark pictures: the brightest value is {brightest:.0f} of 255"
        )
    scaled = {}
    for part, x in pictures.items():
        low, top = map(float, spans[part])
        if low < 0 or top > scales[part]:
            notes.append(
                f"{key_of(part)} has values from {low:g} to {top:g}, cut to 0 "
                f"to {scales[part]}"
            )
        scaled[part] = _scaled(x, scales[part])
    return scaled, notes


def _scale(name, part, x, low, top):
    """What is white: 1 or 255."""
    for scale in (1, 255):
        slack = OVERSHOOT * scale if x.dtype.kind == "f" else 0
        # Not-a-number is nowhere.
        if -slack <= low and top <= scale + slack:
            return scale
    advice = "scale them, so that black is 0 and white is 255"
    if top > 4095:
        advice += " (16 bits: divide by 257)"
    if not math.isfinite(low + top):
        advice = "replace what is no number"
    raise UserError(
        "expected pictures with values from 0 to 255 (or from 0 to 1), "
        f"received {key_of(part)} from {low:g} to {top:g} in {name!r}: {advice}"
    )


def _check_one_scale(name, pictures, spans, scales):
    """Raises UserError where one part may be 255 times as bright.

    A black part has any scale. Parts up to 1 and up to 255 are only clear
    where the types tell them apart: fractions or booleans, and integers.
    """
    kinds = {}
    for part, (_, top) in spans.items():
        if top:
            kinds.setdefault(scales[part], set()).add(pictures[part].dtype.kind)
    clear = [
        a + b in CLEAR for a in kinds.get(1, ()) for b in kinds.get(255, ())
    ]
    if not all(clear):
        tops = " and ".join(
            f"{key_of(part)} up to {float(top):g}"
            for part, (_, top) in spans.items()
        )
        raise UserError(
            "expected one scale, from 0 to 255 or from 0 to 1, received "
            f"{tops} in {name!r}: store all as uint8"
        )


def _scaled(x, scale):
    """The pictures as uint8, some at a time: floats take four times as much."""
    if x.dtype == np.uint8 and scale == 255:
        return x
    scaled, factor = np.empty(x.shape, np.uint8), 255 // scale
    step = max(1, CHUNK // math.prod(x.shape[1:]))
    for start in range(0, len(x), step):
        some = x[start : start + step]
        if x.dtype.kind == "f":
            some = np.rint(np.clip(some * np.float32(factor), 0, 255))
        else:
            some = some.astype(np.uint8) * np.uint8(factor)
        scaled[start : start + step] = some
    return scaled
