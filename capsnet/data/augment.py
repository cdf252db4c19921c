"""Training pictures that differ in every epoch: shifts, and more than shifts.

An augmentation is called with pictures and a generator, `(batch, generator)
-> batch`, or in three steps, so that a training pads its pictures once and
draws once an epoch: `pad`, `draw` and `take`. A batch is transformed at once,
each picture in its own way; what comes in from outside of a picture is zero.
"""

import dataclasses
import math

import numpy as np

# Weights of red, green and blue in grey (ITU-R 601-2).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def max_shift(shape, shift_fraction):
    """`(down, right)` in whole pixels, this part of `(height, width, ...)`."""
    # Rounded first: 0.29 * 100 is a little less than 29.
    return tuple(math.floor(round(shift_fraction * n, 6)) for n in shape[:2])


def windows(images, size):
    """All parts of a size of pictures, a view.

    From `(n, ...)` to `(n, top, left, height, width, channels)`.
    """
    parts = np.lib.stride_tricks.sliding_window_view(images, size, axis=(1, 2))
    return np.moveaxis(parts, 3, -1)


class Augmentation:
    """What all augmentations have: pictures in, other pictures out."""

    def __call__(self, images, generator):
        """Each picture in a version of its own.

        Args:
            images: uint8 array of shape `(n, height, width, channels)`.
            generator: `numpy.random.Generator`.

        Returns:
            float32 array of the same shape, in [0, 1].
        """
        count = len(images)
        draws = self.draw(generator, count, images.shape[1:3])
        moved = self.take(self.pad(images), np.arange(count), draws)
        return np.divide(moved, np.float32(255), dtype=np.float32)

    def pad(self, images):
        """All pictures, in the form from which `take` takes them."""
        raise NotImplementedError

    def draw(self, generator, n, size):
        """Random numbers for `n` pictures of a size, a row for each."""
        raise NotImplementedError

    def take(self, padded, chosen, draws):
        """The chosen pictures, transformed.

        Args:
            padded: What `pad` returned.
            chosen: Integer array of shape `(m,)`, which pictures.
            draws: The `m` rows of what `draw` returned.

        Returns:
            Array of shape `(m, height, width, channels)`, 0 to 255.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Shift(Augmentation):
    """By whole pixels, up to a part of each side: the classic one."""

    shift_fraction: float = 0.1

    def pad(self, images):
        height, width = images.shape[1:3]
        down, right = max_shift((height, width), self.shift_fraction)
        if down or right:
            margins = (0, 0), (down, down), (right, right), (0, 0)
            images = np.pad(images, margins)
        return windows(images, (height, width))

    def draw(self, generator, n, size):
        # In this order, or old runs would go on with other shifts.
        most = max_shift(size, self.shift_fraction)
        return np.stack([generator.integers(0, 2 * s + 1, n) for s in most], 1)

    def take(self, padded, chosen, draws):
        return padded[chosen, draws[:, 0], draws[:, 1]]


@dataclasses.dataclass(frozen=True)
class Affine(Augmentation):
    """Scaled, slanted and turned about the centre, then shifted, bilinear.

    Args:
        rotation: Degrees, at most, to either side.
        scale: Part by which each axis grows or shrinks, at most.
        shear: Pixels to the side for each pixel down, at most.
        shift_fraction: Part of each side, at most; not in whole pixels.
    """

    rotation: float = 15.0
    scale: float = 0.12
    shear: float = 0.15
    shift_fraction: float = 0.1

    def pad(self, images):
        # (channels, n, height + 3, width + 3)
        planes = np.moveaxis(images, -1, 0)
        return np.pad(planes, ((0, 0), (0, 0), (1, 2), (1, 2)))

    def draw(self, generator, n, size):
        return generator.uniform(-1, 1, (n, 6))

    def take(self, padded, chosen, draws):
        shifts = self.shift_fraction * draws[:, 4:6]
        moved = transform(padded, chosen, self.matrices(draws), shifts)
        return np.moveaxis(moved, 0, -1)

    def matrices(self, draws):
        """From a transformed picture's places to the picture's own.

        Returns:
            Array of shape `(m, 2, 2)`, rows before columns.
        """
        angle, shear, down, right = draws[:, :4].T
        angle, shear = np.deg2rad(self.rotation) * angle, self.shear * shear
        cos, sin = np.cos(angle), np.sin(angle)
        down, right = 1 / (1 + self.scale * down), 1 / (1 + self.scale * right)
        rows = [down * cos, down * sin]
        columns = [right * (shear * cos - sin), right * (shear * sin + cos)]
        return np.stack([rows, columns]).transpose(2, 0, 1)


@dataclasses.dataclass(frozen=True)
class Photo(Affine):
    """As `Affine`; half of the pictures mirrored; other light and colours.

    Brightness, then contrast (about the picture's mean), then colour (about
    each pixel's grey, where there are three channels) are multiplied by
    1 - `colour` to 1 + `colour`. A fourth channel, alpha, only moves.

    Args:
        colour: Part by which each of the three changes, at most.
    """

    colour: float = 0.2

    def draw(self, generator, n, size):
        return generator.uniform(-1, 1, (n, 10))

    def matrices(self, draws):
        matrices = super().matrices(draws)
        matrices[draws[:, 6] < 0, 1] *= -1  # The columns from the right.
        return matrices

    def take(self, padded, chosen, draws):
        # Before they move: what comes in from outside stays zero.
        planes = padded[:, chosen].astype(np.float32)
        recolour(planes[:3, :, 1:-2, 1:-2], 1 + self.colour * draws[:, 7:])
        np.clip(planes, 0, 255, out=planes)
        return super().take(planes, np.arange(len(chosen)), draws)


def recolour(planes, factors):
    """Multiplies brightness, contrast and colour of pictures, in place.

    Args:
        planes: float32 array of shape `(channels, m, height, width)`.
        factors: Array of shape `(m, 3)`, in this order.
    """
    factors = factors.astype(np.float32)
    brightness, contrast, colour = factors.T[..., None, None]
    planes *= brightness
    mean = planes.mean((0, 2, 3))[:, None, None]
    planes -= mean
    planes *= contrast
    planes += mean
    if len(planes) == 3:
        grey = np.einsum("cmhw,c->mhw", planes, LUMA)
        planes -= grey
        planes *= colour
        planes += grey


def transform(padded, chosen, matrices, shifts):
    """Bilinear values of pictures at places moved by affine maps.

    The value at place `p`, seen from the centre, is the picture's at
    `matrix @ (p - shift * size)`.

    Args:
        padded: Array of shape `(channels, n, height + 3, width + 3)`: zeros,
            one before and two behind each row and column of pixels.
        chosen: Integer array of shape `(m,)`, which pictures.
        matrices: Array of shape `(m, 2, 2)`, rows before columns.
        shifts: Array of shape `(m, 2)`, parts of the height and the width.

    Returns:
        float32 array of shape `(channels, m, height, width)`.
    """
    rows, stride = padded.shape[2:]
    size = rows - 3, stride - 3
    centre = np.subtract(size, 1) / 2
    middle = centre + shifts * size  # Where the picture's centre comes to lie.
    offsets = centre - np.einsum("nij,nj->ni", matrices, middle)
    # The margin is one pixel wide: further out all is zero.
    maps = np.concatenate([matrices, offsets[..., None] + 1], -1)
    maps = maps.astype(np.float32)[..., None, None]
    down = np.arange(size[0], dtype=np.float32)[:, None]
    right = np.arange(size[1], dtype=np.float32)
    y, x = (  # (m, height, width)
        np.clip(row[:, 0] * down + row[:, 1] * right + row[:, 2], 0, side + 1)
        for row, side in zip(maps.swapaxes(0, 1), size)
    )
    top, left = y.astype(np.intp), x.astype(np.intp)
    y, x = y - top.astype(np.float32), x - left.astype(np.float32)
    place = (np.asarray(chosen)[:, None, None] * rows + top) * stride + left
    moved = np.empty((len(padded), *y.shape), np.float32)
    for plane, out in zip(padded, moved):
        plane = plane.reshape(-1)
        above = along(plane, place, x)
        below = along(plane, place + stride, x)
        below -= above
        below *= y
        np.add(above, below, out=out)
    return moved


def along(values, place, part):
    """Values `part` of the way from `place` to the next one."""
    first = values[place].astype(np.float32, copy=False)
    second = values[place + 1].astype(np.float32, copy=False)
    second -= first
    second *= part
    second += first
    return second
