"""From the arrays of a `Dataset` to the batches that Keras is fed.

Pictures stay uint8 in memory; a batch is moved, cast and scaled at once.
"""

import dataclasses
import math

import keras
import numpy as np

from capsnet.data.augment import Augmentation, Shift
from capsnet.devices import keep_freed_memory, tensorflow

# Batches are smaller where an epoch would have fewer steps, but not below.
STEPS, SMALLEST_BATCH = 100, 10


@dataclasses.dataclass(eq=False, repr=False)
class Batches(keras.utils.PyDataset):
    """Batches for `fit` and `evaluate`: what all kinds of them have.

    What is random is drawn for a whole epoch from `(seed, epoch)`. So a
    batch depends on `(seed, epoch, index)` alone, a picture on neither batch
    nor replicas, and a resumed run sees what the uninterrupted one would have
    seen; a callback tells the epoch by `set_epoch`.

    A batch is `(inputs, targets)`, inputs `{"image", "label"}` and targets
    `{"capsnet", "decoder"}`: float32 pictures in [0, 1] and rows of zeros and
    ones. Without `decoder` the pictures are the only input. With
    `class_weight` or several replicas the weights `{"capsnet": (rows,),
    "decoder": (rows, 1, 1)}` follow, and every batch has a number of rows
    that the replicas divide: zero pictures of weight 0 fill it up, and the
    real ones weigh `rows / real rows`. Keras divides a weighted loss by the
    number of rows, so the loss is exactly the mean over the real pictures,
    and two replicas end with the weights of one. Pass metrics as
    `weighted_metrics`, or they count the zero pictures.

    Of several processes each takes its own rows of every batch, all of them
    the same number: the first process the first rows, and so on.
    """

    x: np.ndarray  # uint8, (n, height, width, channels).
    y: np.ndarray  # Integers, (n,), or rows of zeros and ones, (n, n_class).
    n_class: int
    batch_size: int  # Pictures a batch, all replicas together.
    seed: int = 0  # Draws the order and all else that is random.
    shuffle: bool = False  # Whether every epoch has an order of its own.
    replicas: int = 1  # Devices that share a batch.
    # Which of how many processes this is; they divide the replicas.
    process: tuple[int, int] = (0, 1)
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
        self.set_epoch(0)

    def __len__(self):
        return steps_per_epoch(len(self._drawn[0]), self.batch_size)

    def set_epoch(self, epoch):
        """Draws an epoch, counted from 0: `_drawn`, a row for each picture.

        It is stored at once: `fit` asks for batches in other threads.
        """
        raise NotImplementedError

    def _take(self, *drawn):
        """Some rows of `_drawn` as pictures, labels and decoder's targets.

        The targets may be None: the pictures. Values are 0 to 255, labels
        `(count, n_class)`, or `(count, 2, n_class)` with two of one picture.
        """
        raise NotImplementedError

    def size(self, index):
        """How many pictures a batch has, and rows with what fills it up."""
        first = index * self.batch_size
        count = min(self.batch_size, len(self._drawn[0]) - first)
        return count, math.ceil(count / self.replicas) * self.replicas

    def mean_weights(self, count):
        """The mean class weight of an epoch's first pictures, and the rest."""
        if self.class_weight is None:
            return [1.0, 1.0]
        weights = self.answers @ np.asarray(self.class_weight)
        return [weights[:count].mean(), weights[count:].mean()]

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)} was asked for.")
        part = slice(index * self.batch_size, (index + 1) * self.batch_size)
        count, rows = self.size(index)
        number, processes = self.process
        each = rows // processes
        own = slice(number * each, (number + 1) * each)
        image, label, target = self._take(*(d[part][own] for d in self._drawn))
        scale = np.zeros(each, np.float32)
        scale[: len(image)] = rows / count
        image, label = filled(image, each, 255), filled(label, each)
        truth = label.copy() if label.ndim == 2 else label.max(1)
        inputs, targets = image, {"capsnet": truth}
        if self.decoder:
            # Copies: TensorFlow takes over the memory of an array, and of two
            # tensors in the same memory one may be overwritten while the
            # other is still read (measured with two replicas).
            inputs = {"image": image, "label": label}
            targets["decoder"] = (
                image.copy() if target is None else filled(target, each, 255)
            )
        if self.class_weight is None and self.replicas == 1:
            return inputs, targets
        return inputs, targets, self._weigh(targets, scale)

    def _weigh(self, targets, scale):
        # Keras's losses keep all axes but the last.
        weights = {
            name: scale.reshape(-1, *[1] * (target.ndim - 2)).copy()
            for name, target in targets.items()
        }
        if self.class_weight is not None:
            each = np.asarray(self.class_weight, np.float32)
            weights["capsnet"] *= targets["capsnet"] @ each
        return weights


@dataclasses.dataclass(eq=False, repr=False)
class ShiftedBatches(Batches):
    """Batches of randomly moved pictures; `augment` moves each in its own way.

    A row for each picture of `x` is drawn.
    """

    augment: Augmentation = Shift(0.0)  # Leaves the pictures as they are.

    def __post_init__(self):
        super().__post_init__()
        self._padded = self.augment.pad(self.x)

    def set_epoch(self, epoch):
        n = len(self.y)
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(n) if self.shuffle else np.arange(n)
        draws = self.augment.draw(generator, n, self.x.shape[1:3])
        self._drawn = order, draws[order]

    def _take(self, chosen, draws):
        moved = self.augment.take(self._padded, chosen, draws)
        return moved, label_rows(self.y[chosen], self.n_class), None

    @property
    def answers(self):
        """The right classes of an epoch: booleans, `(pictures, n_class)`."""
        return label_rows(self.y[self._drawn[0]], self.n_class, bool)


def filled(values, rows, divisor=1):
    """`values / divisor` in float32; zeros fill it up to so many rows."""
    result = np.zeros((rows, *values.shape[1:]), np.float32)
    np.divide(values, np.float32(divisor), out=result[: len(values)])
    return result


def label_rows(labels, n_class, dtype=np.float32):
    """Labels as rows of zeros and ones, `(n, n_class)`, which may be such."""
    if labels.ndim == 2:
        return labels.astype(dtype)
    rows = np.zeros((len(labels), n_class), dtype)
    rows[np.arange(len(labels)), labels] = 1
    return rows


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
    """`batches`, a `Batches`, in the form that Keras is to be given.

    Left to Keras they become a `tf.data.Dataset` that tunes itself in a
    thread that sleeps for up to a minute, often through its cancellation,
    and the next epoch waits for it. Here there is nothing to tune.

    Returns:
        On TensorFlow a `tf.data.Dataset`, elsewhere `batches` themselves.
    """
    tf = tensorflow()
    if tf is None:
        keep_freed_memory()
        return batches

    def generate():
        # TensorFlow sets malloc to hand memory back when this begins.
        keep_freed_memory()
        return map(batches.__getitem__, range(len(batches)))

    dataset = tf.data.Dataset.from_generator(
        generate,
        output_signature=keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), array.dtype),
            batches[0],
        ),
    )
    options = tf.data.Options()
    options.autotune.enabled = False
    cardinality = tf.data.experimental.assert_cardinality(len(batches))
    return dataset.apply(cardinality).prefetch(2).with_options(options)
