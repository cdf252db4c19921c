"""From the arrays of a `Dataset` to the batches that Keras is fed.

Pictures stay uint8 in memory; a batch is cropped, cast and scaled at once.
"""

import dataclasses
import math

import keras
import numpy as np

from capsnet.devices import tensorflow

# Batches are smaller where an epoch would have fewer steps, but not below.
STEPS, SMALLEST_BATCH = 100, 10


def max_shift(shape, shift_fraction):
    """`(down, right)` in whole pixels, this part of `(height, width, ...)`."""
    # Rounded first: 0.29 * 100 is a little less than 29.
    return tuple(math.floor(round(shift_fraction * n, 6)) for n in shape[:2])


@dataclasses.dataclass(eq=False, repr=False)
class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly shifted pictures, for `fit` and `evaluate`.

    Each picture moves by its own number of whole pixels, and zeros come in
    at the edge. A batch depends on `(seed, epoch, index)` alone, so that a
    resumed run sees what the uninterrupted one would have seen; a callback
    tells the epoch by `set_epoch`.

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
    shift: tuple = (0, 0)  # (down, right), at most, in pixels either way.
    seed: int = 0  # Draws the order and the shifts.
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
        (down, right), (height, width) = self.shift, x.shape[1:3]
        if down or right:
            x = np.pad(x, ((0, 0), (down, down), (right, right), (0, 0)))
        crops = np.lib.stride_tricks.sliding_window_view(
            x, (height, width), axis=(1, 2)
        )
        # (n, top, left, height, width, channels), a view.
        self._crops = np.moveaxis(crops, 3, -1)
        self.set_epoch(0)

    def __len__(self):
        return steps_per_epoch(len(self.y), self.batch_size)

    def set_epoch(self, epoch):
        """Draws the order and the shifts of an epoch, counted from 0."""
        n = len(self.y)
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(n) if self.shuffle else np.arange(n)
        tops, lefts = (generator.integers(0, 2 * s + 1, n) for s in self.shift)
        # Stored at once: `fit` asks for batches in other threads.
        self._drawn = order, tops, lefts

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)} was asked for.")
        order, tops, lefts = self._drawn
        chosen = order[index * self.batch_size :][: self.batch_size]
        count = len(chosen)
        rows = math.ceil(count / self.replicas) * self.replicas
        crops = self._crops[chosen, tops[chosen], lefts[chosen]]
        image = np.zeros((rows, *crops.shape[1:]), np.float32)
        np.divide(crops, np.float32(255), out=image[:count])
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
