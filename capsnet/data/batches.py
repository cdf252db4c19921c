"""From the arrays of a `Dataset` to the batches that Keras is fed.

Pictures stay uint8 in memory; a batch is moved, cast and scaled at once.
"""

import dataclasses
import math

import keras
import numpy as np

from capsnet.data.augment import Augmentation, Shift
from capsnet.devices import tensorflow

# Batches are smaller where an epoch would have fewer steps, but not below.
STEPS, SMALLEST_BATCH = 100, 10


@dataclasses.dataclass(eq=False, repr=False)
class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly moved pictures, for `fit` and `evaluate`.

    `augment` moves each picture in its own way. What is random is drawn for
    a whole epoch from `(seed, epoch)`, a row for each picture of `x`. So a
    batch depends on `(seed, epoch, index)` alone, a picture's version on
    neither batch nor replicas, and a resumed run sees what the uninterrupted
    one would have seen; a callback tells the epoch by `set_epoch`.

    A batch is `(inputs, targets)`, inputs `{"image", "label"}` and targets
    `{"capsnet", "decoder"}`: float32 pictures in [0, 1] and one-hot labels.
    Without `decoder` the pictures are the only input. With `class_weight` or
    several replicas the weights `{"capsnet": (rows,), "decoder": (rows, 1,
    1)}` follow, and every batch has a number of rows that the replicas
    divide: zero pictures of weight 0 fill it up, and the real ones weigh
    `rows / real rows`. Keras divides a weighted loss by the number of rows,
    so the loss is exactly the mean over the real pictures, and two replicas
    end with the weights of one. Pass metrics as `weighted_metrics`, or they
    count the zero pictures.
    """

    x: np.ndarray  # uint8, (n, height, width, channels).
    y: np.ndarray  # Integers, (n,).
    n_class: int
    batch_size: int  # Pictures a batch, all replicas together.
    augment: Augmentation = Shift(0.0)  # Leaves the pictures as they are.
    seed: int = 0  # Draws the order and what `augment` needs.
    shuffle: bool = False  # Whether every epoch has an order of its own.
    replicas: int = 1  # Devices that share a batch.
    # (n_class,), how much a picture counts in the loss of `capsnet`.
    class_weight: np.ndarray | None = None
    decoder: bool = True  # Whether the model has this output.

    def __post_init__(self):
        super().__init__()
        x = self.x
        if len(x) != len(self.y) or len(x) == 0 or self.batch_size < 1:
            raise ValueError(
                "Expected as many labels as pictures, at least one, and a "
                f"positive batch size. Received: len(x)={len(x)}, "
                f"len(y)={len(self.y)}, batch_size={self.batch_size}"
            )
        self._padded = self.augment.pad(x)
        self.set_epoch(0)

    def __len__(self):
        return steps_per_epoch(len(self.y), self.batch_size)

    def set_epoch(self, epoch):
        """Draws the order and the versions of an epoch, counted from 0."""
        n = len(self.y)
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(n) if self.shuffle else np.arange(n)
        draws = self.augment.draw(generator, n, self.x.shape[1:3])
        # Stored at once: `fit` asks for batches in other threads.
        self._drawn = order, draws

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)} was asked for.")
        order, draws = self._drawn
        chosen = order[index * self.batch_size :][: self.batch_size]
        count = len(chosen)
        rows = math.ceil(count / self.replicas) * self.replicas
        moved = self.augment.take(self._padded, chosen, draws[chosen])
        image = np.zeros((rows, *moved.shape[1:]), np.float32)
        np.divide(moved, np.float32(255), out=image[:count])
        one_hot = np.zeros((rows, self.n_class), np.float32)
        one_hot[np.arange(count), self.y[chosen]] = 1
        inputs, targets = image, {"capsnet": one_hot}
        if self.decoder:
            # Copies: TensorFlow takes over the memory of an array, and of two
            # tensors in the same memory one may be overwritten while the
            # other is still read (measured with two replicas).
            inputs = {"image": image, "label": one_hot.copy()}
            targets["decoder"] = image.copy()
        if self.class_weight is None and self.replicas == 1:
            return inputs, targets
        return inputs, targets, self._weigh(self.y[chosen], rows)

    def _weigh(self, labels, rows):
        scale = np.zeros(rows, np.float32)
        scale[: len(labels)] = rows / len(labels)
        weights = {"capsnet": scale}
        if self.decoder:
            # Keras's mse keeps (rows, height, width).
            weights["decoder"] = scale[:, None, None].copy()
        if self.class_weight is not None:
            each = np.asarray(self.class_weight, np.float32)
            scale[: len(labels)] *= each[labels]
        return weights


def steps_per_epoch(pictures, batch_size):
    """Steps of an epoch; the last has what is left."""
    return math.ceil(pictures / batch_size)


def choose_batch_size(most, pictures, replicas=1):
    """A hundredth of the training pictures, within bounds.

    An epoch of a few large steps learns next to nothing. `most` is the batch
    of the recipe; `replicas` devices divide a batch.
    """
    return min(most, replicas * max(SMALLEST_BATCH, pictures // STEPS))


def balanced_weights(labels, n_class):
    """Weights with which all classes count alike; their mean is 1.

    Of shape `(n_class,)`: n / (n_class * pictures of the class).
    """
    counts = np.bincount(labels, minlength=n_class)
    return len(labels) / (n_class * np.maximum(counts, 1))


def pipeline(batches):
    """`batches`, a `ShiftedBatches`, in the form that Keras is to be given.

    Left to Keras they become a `tf.data.Dataset` that tunes itself in a
    thread that sleeps for up to a minute, often through its cancellation,
    and the next epoch waits for it. Here there is nothing to tune.

    Returns:
        On TensorFlow a `tf.data.Dataset`, elsewhere `batches` themselves.
    """
    tf = tensorflow()
    if tf is None:
        return batches
    dataset = tf.data.Dataset.from_generator(
        lambda: map(batches.__getitem__, range(len(batches))),
        output_signature=keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype),
            batches[0],
        ),
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    cardinality = tf.data.experimental.assert_cardinality(len(batches))
    return dataset.apply(cardinality).prefetch(2).with_options(options)
