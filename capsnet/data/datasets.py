"""A data set in memory, and the batches of its parts."""

import dataclasses
import hashlib
import json

import numpy as np

from capsnet.data.batches import ShiftedBatches
from capsnet.data.looks import border_figures
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
    # Pictures and labels of a part that chooses the epoch to keep, if any.
    validation: tuple | None = None
    # Of each test picture its file, below the data set's folder, or its row,
    # which is what None stands for.
    test_names: list[str] | None = None

    def __post_init__(self):
        if self.test_names is None:
            self.test_names = list(map(str, range(len(self.y_test))))

    @property
    def labels(self):
        """What a picture has: `"one"` label, a `"pair"` or `"several"`."""
        if self.pairs:
            return "pair"
        return "one" if self.y_train.ndim == 1 else "several"

    @property
    def input_shape(self):
        """`(height, width, channels)` of what a network gets."""
        shape = self.x_train.shape[1:]
        return canvas(shape) if self.pairs else shape

    @property
    def target_shape(self):
        """The shape of what its decoder is to draw: both pictures of a pair."""
        return (2, *self.input_shape) if self.pairs else self.input_shape

    def record(self):
        """What a model's record says of the pictures that it is made for."""
        return {
            "class_names": self.class_names,
            "labels": self.labels,
            "input_shape": list(self.input_shape),
            "input_range": [0.0, 1.0],
            "border": border_figures(self.x_train),
        }

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

    def digest(self):
        """Hexadecimal SHA-256 of all pictures, labels and class names."""
        arrays = self.x_train, self.y_train, self.x_test, self.y_test
        arrays += self.validation or ()
        shapes = [array.shape for array in arrays]
        head = json.dumps([self.pairs, self.class_names, shapes])
        digest = hashlib.sha256(head.encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def tested(self, class_number):
        """Which pictures of the test part are of a class, by index."""
        y = self.y_test
        is_it = y == class_number if y.ndim == 1 else y[:, class_number]
        return np.flatnonzero(is_it)
