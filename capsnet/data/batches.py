"""batches."""

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
    return int(shift_fraction * shape[0]), int(shift_fraction * shape[1])


class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly shifted pictures, for `fit` and `evaluate`.

    Each picture moves by its own number of whole pixels, and zeros come in
    at the edge. A batch depends on `(seed, epoch, index)` alone, not on what
    was drawn before, so that a resumed run sees the batches that the
    uninterrupted one would have seen; a callback tells the epoch by
    `set_epoch`.

    With several replicas every batch has a number of rows that they divide:
    a batch that has not is filled up with zero pictures of weight 0, and the
    real ones weigh `rows / real rows`. Keras divides a weighted loss by the
    number of rows, weighted or not, so the loss is exactly the mean over the
    real pictures: none is left out, and two replicas end with the weights of
    one. Pass metrics as `weighted_metrics`, or they count the zero pictures.

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
        decoder: Boolean, whether the model has the output `decoder`.
        label_input: Boolean, whether the model has the input `label`.
            Without it the inputs are the pictures alone.

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
        label_input=True,
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
        self.class_weight = class_weight
        self.decoder = decoder
        self.label_input = label_input
        self.epoch = 0
        self._drawn = None
        self._windows = self._every_window(x)

    def __len__(self):
        return math.ceil(len(self.y) / self.batch_size)

    def set_epoch(self, epoch):
        """Chooses the epoch, counted from 0, that batches are drawn for."""
        self.epoch = epoch

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)} was asked for.")
        order, tops, lefts = self._draw()
        chosen = order[index * self.batch_size :][: self.batch_size]
        count = len(chosen)
        rows = math.ceil(count / self.replicas) * self.replicas
        crops = self._windows[chosen, tops[chosen], lefts[chosen]]
        image = np.zeros((rows, *crops.shape[1:]), np.float32)
        np.divide(crops, np.float32(255), out=image[:count])
        one_hot = np.zeros((rows, self.n_class), np.float32)
        one_hot[np.arange(count), self.y[chosen]] = 1.0

        # Copies: TensorFlow takes over the memory of an array, and of two
        # tensors in the same memory one may be overwritten while the other
        # is still read (measured with two replicas).
        inputs, targets = image, {"capsnet": one_hot}
        if self.label_input:
            inputs = {"image": image, "label": one_hot.copy()}
        if self.decoder:
            targets["decoder"] = image.copy()
        if self.class_weight is None and self.replicas == 1:
            return inputs, targets
        return inputs, targets, self._weigh(chosen, rows)

    def _every_window(self, x):
        """A view of all the crops, `(n, top, left, height, width, channels)`.

        Only the padded pictures take memory.
        """
        (down, right), (height, width) = self.shift, x.shape[1:3]
        if down or right:
            x = np.pad(x, ((0, 0), (down, down), (right, right), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(
            x, (height, width), axis=(1, 2)
        )
        return np.moveaxis(windows, 3, -1)

    def _draw(self):
        """The epoch's order, and where each picture's crop begins."""
        epoch, drawn = self.epoch, self._drawn
        if drawn is None or drawn[0] != epoch:
            n = len(self.y)
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(n) if self.shuffle else np.arange(n)
            down, right = self.shift
            tops = generator.integers(0, 2 * down + 1, n)
            lefts = generator.integers(0, 2 * right + 1, n)
            # Stored whole: `fit` draws batches in other threads.
            self._drawn = drawn = epoch, (order, tops, lefts)
        return drawn[1]

    def _weigh(self, chosen, rows):
        scale = np.zeros(rows, np.float32)
        scale[: len(chosen)] = rows / len(chosen)
        weights = {"capsnet": scale}
        if self.class_weight is not None:
            weights["capsnet"] = scale.copy()
            weights["capsnet"][: len(chosen)] *= np.asarray(
                self.class_weight, np.float32
            )[self.y[chosen]]
        if self.decoder:
            # Keras's mse keeps (rows, height, width).
            weights["decoder"] = scale[:, None, None]
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
    """What Keras is to be given for `batches`, a `ShiftedBatches`.

    Left to Keras they become a `tf.data.Dataset` that tunes itself in a
    thread, and that thread sleeps for 10 ms, 20 ms, ... up to a minute. It
    often sleeps through its cancellation, and the next epoch or the end of
    `predict` waits for it to wake. Here there is nothing to tune.

    Args:
        batches: A `ShiftedBatches`; every epoch asks it again.

    Returns:
        On TensorFlow a `tf.data.Dataset`, elsewhere `batches` themselves.
    """
    tf = tensorflow()
    if tf is None:
        return batches

    def signature(array):
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    dataset = tf.data.Dataset.from_generator(
        lambda: map(batches.__getitem__, range(len(batches))),
        output_signature=keras.tree.map_structure(signature, batches[0]),
    )
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(len(batches))
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)
