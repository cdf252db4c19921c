"""From the arrays of a `Dataset` to the batches that Keras is fed.

Pictures stay uint8 in memory; a batch is cropped, cast and scaled at once.
"""

import math

import keras
import numpy as np

from capsnet.devices import tensorflow

# Batches are smaller where an epoch would have fewer steps, but not below.
STEPS, SMALLEST_BATCH = 100, 10


def max_shift(shape, shift_fraction):
    """Largest shift, in whole pixels, as `(down, right)`.

    Args:
        shape: `(height, width, ...)` of a picture.
        shift_fraction: Float, the part of each side.
    """
    # Rounded first: 0.29 * 100 is a little less than 29.
    return tuple(math.floor(round(shift_fraction * n, 6)) for n in shape[:2])


class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly shifted pictures, for `fit` and `evaluate`.

    Each picture moves by its own number of whole pixels, and zeros come in
    at the edge. A batch depends on `(seed, epoch, index)` alone, so that a
    resumed run sees what the uninterrupted one would have seen; a callback
    tells the epoch by `set_epoch`.

    With several replicas every batch has a number of rows that they divide:
    it is filled up with zero pictures of weight 0, and the real ones weigh
    `rows / real rows`. Keras divides a weighted loss by the number of rows,
    so the loss is exactly the mean over the real pictures, and two replicas
    end with the weights of one. Pass metrics as `weighted_metrics`, or they
    count the zero pictures.

    Args:
        x: uint8 array of shape `(n, height, width, channels)`.
        y: Integer array of shape `(n,)`.
        n_class: Integer, length of the one-hot labels.
        batch_size: Integer, pictures a batch, all replicas together.
        shift: `(down, right)`, the largest shift in pixels either way.
        seed: Integer, draws the order and the shifts.
        shuffle: Boolean, whether every epoch has an order of its own.
        replicas: Integer, number of devices that share a batch.
        class_weight: Array of shape `(n_class,)` or `None`, how much a
            picture counts in the loss of `capsnet`.
        decoder: Boolean, whether the model has the output `decoder`, and
            for it the input `label`. Without it pictures are the only input.

    Returns:
        A batch is `(inputs, targets)`, inputs `{"image", "label"}` and targets
        `{"capsnet", "decoder"}`: float32 pictures in [0, 1] and one-hot
        labels. With `class_weight` or more than one replica a third element
        follows, the weights `{"capsnet": (rows,), "decoder": (rows, 1, 1)}`.
    """

    def __init__(
        self,
        x,
        y,
        n_class,
        batch_size,
        shift=(0, 0),
        seed=0,
        shuffle=False,
        replicas=1,
        class_weight=None,
        decoder=True,
    ):
        super().__init__()
        if len(x) != len(y) or len(x) == 0 or batch_size < 1:
            raise ValueError(
                "Expected as many labels as pictures, at least one, and a "
                f"positive batch size. Received: len(x)={len(x)}, "
                f"len(y)={len(y)}, batch_size={batch_size}"
            )
        self.y = y
        self.n_class = n_class
        self.batch_size = batch_size
        self.shift = shift
        self.seed = seed
        self.shuffle = shuffle
        self.replicas = replicas
        if class_weight is not None:
            class_weight = np.asarray(class_weight, np.float32)
        self.class_weight = class_weight
        self.decoder = decoder
        (down, right), (height, width) = shift, x.shape[1:3]
        if down or right:
            x = np.pad(x, ((0, 0), (down, down), (right, right), (0, 0)))
        crops = np.lib.stride_tricks.sliding_window_view(
            x, (height, width), axis=(1, 2)
        )
        # (n, top, left, height, width, channels), a view: only the padded
        # pictures take memory.
        self._crops = np.moveaxis(crops, 3, -1)
        self.set_epoch(0)

    def __len__(self):
        return math.ceil(len(self.y) / self.batch_size)

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
            scale[: len(labels)] *= self.class_weight[labels]
        return weights


def choose_batch_size(most, pictures, replicas=1):
    """A hundredth of the training pictures, within bounds.

    An epoch of a few large steps learns next to nothing.

    Args:
        most: Integer, the batch of the recipe.
        pictures: Integer, how many there are to train on.
        replicas: Integer, by how many devices a batch is divided.
    """
    return min(most, replicas * max(SMALLEST_BATCH, pictures // STEPS))


def balanced_weights(labels, n_class):
    """Weights with which all classes count alike; their mean is 1.

    Args:
        labels: Integer array of shape `(n,)`, the training labels.
        n_class: Integer, number of classes.

    Returns:
        Array of shape `(n_class,)`: n / (n_class * pictures of the class).
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
