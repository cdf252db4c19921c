"""A data set in memory, and the batches of its parts."""

import dataclasses
import hashlib

import numpy as np

from capsnet.data.batches import ShiftedBatches
from capsnet.data.pairs import PairBatches, canvas


@dataclasses.dataclass
class Dataset:
    """Pictures and labels, in a training and a test part."""

    x_train: np.ndarray  # uint8, (n, height, width, channels).
    # int64, (n,), indices into `class_names`; uint8, (n, n_class), rows of
    # zeros and ones, where a picture has several labels.
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]  # All different.
    name: str  # What `--dataset` was.
    notes: list[str] = dataclasses.field(default_factory=list)  # For the user.
    pairs: bool = False  # Whether two of the pictures are to be in each.

    @property
    def labels(self):
        """What a picture has: `"one"` label, a `"pair"` or `"several"`."""
        if self.pairs:
            return "pair"
        return "one" if self.y_train.ndim == 1 else "several"

    @property
    def sha256(self):
        """Hexadecimal SHA-256 of all pictures, labels and class names."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for x in (self.x_train, self.y_train, self.x_test, self.y_test):
            digest.update(repr((x.shape, x.dtype)).encode())
            digest.update(np.ascontiguousarray(x))
        return digest.hexdigest()

    @property
    def input_shape(self):
        """`(height, width, channels)` of what a network gets."""
        shape = self.x_train.shape[1:]
        return canvas(shape) if self.pairs else shape

    @property
    def target_shape(self):
        """The shape of what its decoder is to draw: both pictures of a pair."""
        return (2, *self.input_shape) if self.pairs else self.input_shape

    def training_batches(self, augment, seed, class_weight=None, **common):
        """The training part, in each epoch anew.

        Args:
            augment: An `Augmentation`. Pairs have shifts of their own.
            seed, class_weight, **common: As in `batches.Batches`.
        """
        arguments = self.x_train, self.y_train, len(self.class_names)
        common |= {"seed": seed, "shuffle": True, "class_weight": class_weight}
        if self.pairs:
            return PairBatches(*arguments, **common)
        return ShiftedBatches(*arguments, augment=augment, **common)

    def fixed_batches(self, x, y, **common):
        """Pictures and labels, always the same; of pairs one for each."""
        kind = PairBatches if self.pairs else ShiftedBatches
        return kind(x, y, len(self.class_names), **common)

    def test_batches(self, batch_size, **common):
        """The test part without its reconstructions."""
        common |= {"batch_size": batch_size, "decoder": False}
        return self.fixed_batches(self.x_test, self.y_test, **common)

    def test_picture(self, index):
        """A picture of the test part, or a pair that begins with it, uint8."""
        if self.pairs:
            return self.test_batches(1).pictures([index])[0][0]
        return self.x_test[index]

    def tested(self, class_number):
        """Which pictures of the test part are of a class, by index."""
        y = self.y_test
        is_it = y == class_number if y.ndim == 1 else y[:, class_number]
        return np.flatnonzero(is_it)
