"""Two digits in one picture: MultiMNIST, section 6 of the paper.

Two pictures of different classes are placed on a canvas that is `MARGIN`
pixels wider on each side, each shifted by whole pixels, and added; what is
brighter than white is white.
"""

import dataclasses

import numpy as np

from capsnet.data.augment import windows
from capsnet.data.batches import Batches, label_rows

# Pixels by which a picture is shifted at most, along both axes.
MARGIN = 4
# Pairs that begin with each picture of the test part.
VERSIONS = 10


def canvas(shape):
    """The shape of a pair's picture, from that of a single one."""
    height, width, *channels = shape
    return (height + 2 * MARGIN, width + 2 * MARGIN, *channels)


def partners(labels, firsts, generator):
    """A picture of another class for each one, all of them alike likely.

    Args:
        labels: Integers of shape `(n,)`, of two classes at least.
        firsts: Indices of shape `(m,)`.
        generator: `numpy.random.Generator`.

    Returns:
        Indices of shape `(m,)`.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels)
    begins = np.cumsum(counts) - counts  # Of each class in the order.
    own = labels[firsts]
    # A place among the others, and then past the picture's own class.
    places = generator.integers(0, len(labels) - counts[own])
    return order[np.where(places < begins[own], places, places + counts[own])]


def place(images, shifts):
    """Pictures on their canvas, black elsewhere.

    Args:
        images: uint8 array of shape `(n, height, width, channels)`.
        shifts: Integers of shape `(n, 2)`, pixels down and right of the
            middle, from -MARGIN to MARGIN.

    Returns:
        uint8 array of shape `(n, height + 2 * MARGIN, ...)`.
    """
    margins = (0, 0), (2 * MARGIN, 2 * MARGIN), (2 * MARGIN, 2 * MARGIN), (0, 0)
    parts = windows(np.pad(images, margins), canvas(images.shape[1:3]))
    top, left = MARGIN - shifts.T
    return parts[np.arange(len(images)), top, left]


def merge(digits):
    """The sum of two pictures, 255 at most: `(n, 2, ...)` to `(n, ...)`."""
    return np.minimum(digits.sum(1, dtype=np.uint16), 255).astype(np.uint8)


@dataclasses.dataclass(eq=False, repr=False)
class PairBatches(Batches):
    """Batches of pairs of the pictures in `x`, of different classes.

    An epoch has `versions` pairs for each picture, of which that is the
    first: first one for each, then the next. The other one and both shifts
    are drawn. With `shuffle` every epoch draws anew, so that pairs never
    repeat. Without it, and with seed 0, they are always the same.

    Inputs are `image`, the merged pictures, and `label` `(rows, 2, n_class)`,
    a row for each of the two; targets are `capsnet` `(rows, n_class)`, with
    two ones, and `decoder`, `(rows, 2, height, width, channels)`, the single
    pictures at their places.
    """

    versions: int = 1

    def set_epoch(self, epoch):
        n = len(self.y)
        generator = np.random.default_rng([self.seed, epoch])
        pairs, shifts = [], []
        for _ in range(self.versions):
            first = generator.permutation(n) if self.shuffle else np.arange(n)
            second = partners(self.y, first, generator)
            pairs.append(np.stack([first, second], axis=1))
            low, high = -MARGIN, MARGIN + 1
            shifts.append(generator.integers(low, high, (n, 2, 2)))
        self._drawn = np.concatenate(pairs), np.concatenate(shifts)

    def _take(self, pairs, shifts):
        digits = place(self.x[pairs.ravel()], shifts.reshape(-1, 2))
        digits = digits.reshape(len(pairs), 2, *digits.shape[1:])
        return merge(digits), self._rows(pairs), digits

    def _rows(self, pairs, dtype=np.float32):
        """The labels of pairs, `(m, 2, n_class)`."""
        rows = label_rows(self.y[pairs.ravel()], self.n_class, dtype)
        return rows.reshape(*pairs.shape, self.n_class)

    def pictures(self, chosen):
        """Some pairs of the epoch, by number.

        Returns:
            Merged pictures `(m, height, width, channels)`, single ones `(m,
            2, height, width, channels)`, both uint8, and the classes of these
            `(m, 2)`.
        """
        pairs, shifts = (rows[chosen] for rows in self._drawn)
        merged, _, digits = self._take(pairs, shifts)
        return merged, digits, self.y[pairs]

    @property
    def answers(self):
        """The right classes of an epoch: booleans, `(pairs, n_class)`."""
        return self._rows(self._drawn[0], bool).any(1)
