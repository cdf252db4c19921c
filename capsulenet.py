"""CapsNet: dynamic routing between capsules, on Keras 3.

Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017.

    python capsulenet.py                          train on MNIST
    python capsulenet.py --dataset digits         train without a download
    python capsulenet.py --resume                 go on after an interruption
    python capsulenet.py -t -w FILE               test a trained model
    python capsulenet.py --digit 5 -w FILE        draw what its capsules mean
    python capsulenet.py --predict P... -w FILE   classify pictures, folders
    python capsulenet.py --export DIR -w FILE     write a model for serving

Training writes into `--save_dir` (default `result`): `trained_model.keras`,
`log.csv`, `log.png`, `run.json` and `checkpoint/`. Testing writes `test.json`,
`confusion.png`, `mistakes.png` and `real_and_recon.png`; `--digit N` also
`manipulate-N.png`. Predicting writes `predictions.csv` and `predictions.png`
where `--save_dir` is given, else nothing.
"""

import contextlib
import functools
import importlib
import math
import os
import sys
import time
import typing

import options

parse_args = functools.partial(options.parse_args, description=__doc__)

if __name__ == "__main__":
    parse_args()  # -h and a wrong flag answer before Keras is imported.

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers, ops  # noqa: E402

import checkpoints  # noqa: E402
import datasets  # noqa: E402
import utils  # noqa: E402
from capsulelayers import CapsuleLayer, Length, Mask, PrimaryCap  # noqa: E402
from fastconv import FastConv2D, Predictor, axis_plans, runs_on_cpu  # noqa: E402

# Section 4 of the paper.
CONV_FILTERS = 256
PRIMARY_TYPES, DIM_PRIMARY = 32, 8
DECODER_UNITS = (512, 1024)
LARGEST_KERNEL, PRIMARY_STRIDES = 9, 2
SMALLEST_SIDE = 12
# Rows of conv1's output beyond which its stride grows.
LARGEST_MAP = 28
# Pictures of one step of prediction; larger steps gain nothing more.
PREDICT_BATCH = 250
# Weight of the sum of squared errors against Eq. 4 (section 4.1).
RECONSTRUCTION = 0.0005
# Three 5x5 convolutions leave one pixel of it.
SMALLEST_BASELINE = 13
NOISE = np.linspace(-0.25, 0.25, 11)
# Pictures that are drawn at most.
SHOWN = 50
# Batches are smaller where an epoch would have fewer steps, but not below.
STEPS, SMALLEST_BATCH = 100, 10


@keras.saving.register_keras_serializable(package="capsnet")
class Decay(keras.optimizers.schedules.ExponentialDecay):
    """`ExponentialDecay` that never falls below `minimum`."""

    def __init__(self, *args, minimum=0.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.minimum = minimum

    def __call__(self, step):
        return ops.maximum(super().__call__(step), self.minimum)

    def get_config(self):
        return {**super().get_config(), "minimum": self.minimum}


def make_schedule(steps, lr, lr_decay, lr_decay_steps=0, lr_min=0.0):
    """The learning rate by step, as the flags of these names describe it.

    Args:
        steps: Positive integer, steps of an epoch.
    """
    return Decay(
        lr,
        lr_decay_steps or steps,
        lr_decay,
        staircase=not lr_decay_steps,
        minimum=lr_min,
    )


def initializers(init, capsule_bias):
    """Initializers of each layer: conv1, primary, capsules, decoder."""
    if init == "authors":
        normal = keras.initializers.TruncatedNormal
        bias = keras.initializers.Constant(0.1)
        kernels = normal(stddev=0.05), *(normal(stddev=0.1) for _ in range(3))
    else:
        bias = "zeros"
        capsules = (
            "glorot_uniform" if init == "glorot" else "capsnet>CapsuleNormal"
        )
        kernels = "glorot_uniform", "glorot_uniform", capsules, "glorot_uniform"
    of_capsules = keras.initializers.Constant(capsule_bias or 0.0)
    biases = bias, of_capsules, of_capsules, bias
    return [
        {"kernel_initializer": kernel, "bias_initializer": bias}
        for kernel, bias in zip(kernels, biases)
    ]


def Decoder(num_inputs, output_shape, init):
    """Fully connected decoder, section 4.1 and Figure 2 of the paper."""
    first, second = DECODER_UNITS
    decoder = keras.Sequential(
        [
            layers.Input((num_inputs,)),
            layers.Dense(first, activation="relu", name="dense1", **init),
            layers.Dense(second, activation="relu", name="dense2", **init),
            layers.Dense(math.prod(output_shape), name="dense3", **init),
            layers.Activation("sigmoid", dtype="float32"),
            layers.Reshape(output_shape, dtype="float32"),
        ],
        name="decoder",
    )
    return decoder


class Geometry(typing.NamedTuple):
    """Rows and columns of both convolutions' kernels and strides."""

    conv_kernel: tuple
    conv_strides: tuple
    primary_kernel: tuple
    primary_strides: tuple


def choose_geometry(height, width):
    """Kernels and strides for a picture size; 9, 1, 9, 2 from 28 to 36.

    Along each side, both kernels are just under a third of it and at most 9,
    the strides are 1 and 2, and conv1's stride (with its kernel, where that
    would be smaller) grows so that at most 28 rows come out of it.

    Args:
        height, width: Integers of at least 12.

    Returns:
        A `Geometry`; the primary grid that it leads to has 4 to 10 rows.

    Raises:
        PlanError: If the picture is too small.
    """
    if min(height, width) < SMALLEST_SIDE:
        raise utils.PlanError(
            f"expected pictures of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} "
            f"pixels (height x width), received {height}x{width}: enlarge "
            "them with --image_size, or set all of --conv_kernel, "
            "--conv_strides, --primary_kernel and --primary_strides"
        )
    sides = []
    for size in (height, width):
        kernel = min((size - 1) // 3, LARGEST_KERNEL)
        strides = (size - kernel) // LARGEST_MAP + 1
        sides.append((max(kernel, strides), strides, kernel, PRIMARY_STRIDES))
    return Geometry(*zip(*sides))


def fit_geometry(height, width, **given):
    """`choose_geometry`, but for what is given.

    Args:
        height, width: Integers, the picture's size.
        **given: `Geometry`'s fields: an integer, a pair, or `None` for what
            `choose_geometry` says.

    Returns:
        A `Geometry` that leaves at least one cell of the picture.

    Raises:
        PlanError: If it leaves nothing, or the picture is too small.
    """
    chosen = {
        name: (value, value) if isinstance(value, int) else tuple(value)
        for name, value in given.items()
        if value is not None
    }
    if len(chosen) < len(Geometry._fields):
        chosen = choose_geometry(height, width)._asdict() | chosen
    geometry = Geometry(**chosen)
    map_sizes(geometry, (height, width))
    return geometry


def map_sizes(geometry, picture):
    """Rows and columns of conv1's and of PrimaryCap's output.

    Raises:
        PlanError: If a kernel is larger than what it is to go over.
    """
    sizes, what = [picture], "picture"
    for name in ("conv", "primary"):
        kernel = getattr(geometry, f"{name}_kernel")
        strides = getattr(geometry, f"{name}_strides")
        size = sizes[-1]
        if kernel[0] > size[0] or kernel[1] > size[1]:
            advice = f"lower --{name}_kernel"
            if name == "primary":
                advice += ", --conv_kernel or --conv_strides"
            raise utils.PlanError(
                f"expected a {name}_kernel (height x width) within the {what} "
                f"of {utils.cross(size)}, received {utils.cross(kernel)}: "
                f"{advice}"
            )
        sizes.append(
            tuple((n - k) // s + 1 for n, k, s in zip(size, kernel, strides))
        )
        what = "feature map"
    return sizes[1:]


def make_plan(
    input_shape,
    n_class,
    routings=3,
    dim_capsule=16,
    capsule_bias=None,
    conv="auto",
    decoder=True,
    **given,
):
    """A `utils.Plan` of what `CapsNet` makes of these arguments."""
    input_shape = tuple(input_shape)
    shapes = fit_geometry(*input_shape[:2], **given)
    feature_map, grid = map_sizes(shapes, input_shape[:2])
    feature_map = (*feature_map, CONV_FILTERS)
    kernels = shapes.conv_kernel, shapes.primary_kernel
    strides = shapes.conv_strides, shapes.primary_strides
    convolutions = (
        (input_shape, kernels[0], strides[0], CONV_FILTERS),
        (feature_map, kernels[1], strides[1], PRIMARY_TYPES * DIM_PRIMARY),
    )
    num_capsule = math.prod(grid) * PRIMARY_TYPES
    capsules = n_class * dim_capsule
    sizes = []
    for shape, kernel, _, filters in convolutions:
        sizes += [math.prod(kernel) * shape[2] * filters, filters]
    sizes += [num_capsule * DIM_PRIMARY * capsules]
    sizes += [] if capsule_bias is None else [capsules]
    if decoder:
        units = (capsules, *DECODER_UNITS, math.prod(input_shape))
        for inputs, outputs in zip(units, units[1:]):
            sizes += [inputs * outputs, outputs]
    transformed = [transform_sizes(*each, conv) for each in convolutions]
    return utils.Plan(
        input_shape=input_shape,
        kernels=kernels,
        strides=strides,
        feature_map=feature_map,
        grid=grid,
        primary=(num_capsule, DIM_PRIMARY),
        classes=(n_class, dim_capsule),
        routings=routings,
        weight_sizes=sizes,
        transformed=tuple(map(sum, zip(*transformed))),
    )


def transform_sizes(shape, kernel, strides, filters, method):
    """Values of a fast convolution's transforms: of a picture, the kernel."""
    layer = FastConv2D(
        filters,
        kernel,
        strides=strides,
        method=method,
        # A random one would draw a seed, and change those of the network.
        kernel_initializer="zeros",
    )
    if not layer.uses_fast_path((None, *shape)):
        return 0, 0
    y, x = axis_plans(shape[:2], kernel, strides, "valid")
    points = y.n * x.n
    # The larger of what goes into the products and comes out.
    channels = max(shape[2], filters)
    of_picture = points * y.tiles * x.tiles * channels
    return of_picture, points * shape[2] * filters


def CapsNet(
    input_shape,
    n_class,
    routings=3,
    dim_capsule=16,
    init="length",
    capsule_bias=None,
    primary_scale=1.0,
    conv="auto",
    decoder=True,
    conv_kernel=None,
    conv_strides=None,
    primary_kernel=None,
    primary_strides=None,
):
    """The network of Figure 1 and its decoder, Figure 2.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        n_class: Integer of at least 2, number of classes.
        routings: Positive integer, rounds of dynamic routing.
        dim_capsule: Positive integer, length of a digit capsule.
        init: `"length"` (matrices that keep a vector's length), `"glorot"`
            (the classic code) or `"authors"` (truncated normals, biases 0.1).
        capsule_bias: None, or the initial bias of primary and digit capsules.
        primary_scale: Float, factor on the convolution of `PrimaryCap`.
        conv: `"auto"`, `"direct"` or `"fast"`, see `FastConv2D`.
        decoder: Whether pictures are reconstructed.
        conv_kernel, conv_strides, primary_kernel, primary_strides: Integers
            or pairs, kernel size and strides of the two convolutions; None
            for what `choose_geometry` says, the paper's 9, 1, 9 and 2 for
            pictures of 28 to 36 rows and columns.

    Returns:
        Three functional models that share their layers: the training model
        (`image`, `label` -> `capsnet`, `decoder`), the evaluation model
        (`image` -> `capsnet`, `decoder` of the longest capsule) and the
        manipulation model (`image`, `label`, `noise` -> `decoder`), None
        without a decoder.
    """
    first, primary, capsules, dense = initializers(init, capsule_bias)
    shapes = fit_geometry(
        *input_shape[:2],
        conv_kernel=conv_kernel,
        conv_strides=conv_strides,
        primary_kernel=primary_kernel,
        primary_strides=primary_strides,
    )
    image = layers.Input(input_shape, name="image")
    features = FastConv2D(
        CONV_FILTERS,
        shapes.conv_kernel,
        strides=shapes.conv_strides,
        activation="relu",
        method=conv,
        name="conv1",
        **first,
    )(image)
    features = PrimaryCap(
        DIM_PRIMARY,
        PRIMARY_TYPES,
        shapes.primary_kernel,
        strides=shapes.primary_strides,
        scale=primary_scale,
        method=conv,
        name="primarycap",
        **primary,
    )(features)
    digitcaps = CapsuleLayer(
        n_class,
        dim_capsule,
        routings,
        use_bias=capsule_bias is not None,
        name="digitcaps",
        **capsules,
    )(features)
    outputs = {"capsnet": Length(name="capsnet", dtype="float32")(digitcaps)}
    if decoder:
        masked = Mask(name="mask")(digitcaps)
        decode = Decoder(n_class * dim_capsule, tuple(input_shape), dense)
        outputs["decoder"] = decode(masked)
    eval_model = keras.Model(image, outputs, name="capsnet_model")
    return attach(eval_model)


def Baseline(input_shape, n_class, conv="auto", dropout=0.5):
    """The plain convolutional network that the paper compares with.

    Section 5: three 5x5 convolutions of 256, 256 and 128 channels with
    stride 1, dense layers of 328 and 192 units, dropout and a softmax. The
    paper does not say where the dropout is; here it follows each dense layer.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        n_class: Integer, number of classes.
        conv: As in `CapsNet`.
        dropout: Float, part of the units that is dropped.

    Returns:
        Three models as from `CapsNet`; the first two share all layers, the
        third is None. The softmax takes the place of the capsules' lengths,
        under the same name, so that whatever works with the one works with
        the other.
    """
    image = layers.Input(input_shape, name="image")
    features = image
    for number, channels in enumerate((256, 256, 128), 1):
        features = FastConv2D(
            channels, 5, activation="relu", method=conv, name=f"conv{number}"
        )(features)
    features = layers.Flatten(name="flatten")(features)
    for number, units in enumerate((328, 192), 1):
        features = layers.Dense(
            units, activation="relu", name=f"dense{number}"
        )(features)
        features = layers.Dropout(dropout, name=f"dropout{number}")(features)
    scores = layers.Dense(n_class, name="scores")(features)
    softmax = layers.Softmax(name="capsnet", dtype="float32")(scores)
    return attach(keras.Model(image, {"capsnet": softmax}, name="baseline"))


def attach(eval_model):
    """The three models of `CapsNet` around a (loaded) evaluation model."""
    outputs = eval_model.output
    image = eval_model.input
    if "decoder" not in outputs:
        # Not the same object: what is saved has no loss and no optimizer,
        # so that it loads without this module.
        train_model = keras.Model(image, outputs, name=eval_model.name)
        return train_model, eval_model, None
    digitcaps = eval_model.get_layer("digitcaps").output
    decode = eval_model.get_layer("decoder")
    mask = eval_model.get_layer("mask")
    n_class, dim_capsule = digitcaps.shape[1:]
    label = layers.Input((n_class,), name="label")
    noise = layers.Input((n_class, dim_capsule), name="noise")
    train_model = keras.Model(
        {"image": image, "label": label},
        {
            "capsnet": outputs["capsnet"],
            "decoder": decode(mask([digitcaps, label])),
        },
        name="train_model",
    )
    noised = layers.Add(name="noised")([digitcaps, noise])
    manipulate_model = keras.Model(
        {"image": image, "label": label, "noise": noise},
        {"decoder": decode(mask([noised, label]))},
        name="manipulate_model",
    )
    return train_model, eval_model, manipulate_model


def margin_loss(y_true, y_pred):
    """Eq. 4 of the paper, for each picture.

    One value a picture, never their mean: a scalar is counted once for each
    replica under MirroredStrategy.

    Args:
        y_true: One-hot labels, shape `(batch, n_class)`.
        y_pred: Lengths of the capsules, shape `(batch, n_class)`.

    Returns:
        Tensor of shape `(batch,)`.
    """
    y_true = ops.cast(y_true, y_pred.dtype)
    present = y_true * ops.square(ops.maximum(0.0, 0.9 - y_pred))
    absent = (1 - y_true) * ops.square(ops.maximum(0.0, y_pred - 0.1))
    return ops.sum(present + 0.5 * absent, axis=-1)


def reconstruction_weight(lam_recon, input_shape, n_class):
    """The weight of the mean squared error, from `--lam_recon`.

    The paper adds 0.0005 x the *sum* of squared errors to Eq. 4. The
    authors' code also halves Eq. 4 and averages it over the classes, so that
    against Eq. 4 it weighs 2 x n_class times more.
    """
    if lam_recon == "classic":
        return RECONSTRUCTION * math.prod(input_shape)
    if lam_recon == "authors":
        return RECONSTRUCTION * math.prod(input_shape) * 2 * n_class
    return lam_recon


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


class EpochClock(keras.callbacks.Callback):
    """Tells the batches which epoch it is; keeps its rate and its seconds."""

    def __init__(self, batches, seconds):
        super().__init__()
        self.batches = batches
        self.seconds = seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)
        self.learning_rate = float(self.model.optimizer.learning_rate)
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.end = time.perf_counter()
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss became {logs['loss']} in step {batch + 1}; try a "
                "smaller --lr, or --dtype_policy float32"
            )

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(round(self.end - self.start, 2))
        logs["learning_rate"] = self.learning_rate


class TestError(keras.callbacks.Callback):
    """Adds the test error in percent to the log. It chooses nothing."""

    def __init__(self, eval_model, x, y, swap=None):
        super().__init__()
        # Made once, or TensorFlow would trace it anew in every epoch.
        self.lengths = lengths_model(eval_model)
        self.x, self.y = x, y
        self.swap = swap
        self.line = None

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.swap):
            lengths = predict(self.lengths, self.x)
        wrong = int(np.sum(lengths.argmax(-1) != self.y))
        logs["test_error"] = 100 * wrong / len(self.y)
        self.line = (
            f"Epoch {epoch + 1}: test error {logs['test_error']:.2f} % "
            f"({wrong} of {len(self.y)})"
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.print_line()

    def on_train_end(self, logs=None):
        self.print_line()

    def print_line(self):
        """Only now is Keras done with the epoch's progress bar."""
        if self.line:
            print(self.line, flush=True)
        self.line = None


class Log(keras.callbacks.CSVLogger):
    """`CSVLogger` with given columns.

    Left alone, it adds a `val_` column to every column, and fills it with NA.
    """

    def __init__(self, path, columns, append):
        super().__init__(path, append=append)
        self.columns = columns

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.keys = self.columns

    def on_epoch_end(self, epoch, logs=None):
        try:
            with checkpoints.writing(self.filename):
                super().on_epoch_end(epoch, logs)
        except OSError:
            # Or the file would try once more to write when it is forgotten.
            with contextlib.suppress(OSError):
                self.csv_file.close()
            raise


class Keeper(keras.callbacks.Callback):
    """Saves the checkpoint, and the best model where held-out data choose."""

    def __init__(self, folder, state, save, choose, swap=None):
        super().__init__()
        self.folder = folder
        self.state = state
        self.save = save
        self.choose = choose
        self.swap = swap

    def on_epoch_end(self, epoch, logs=None):
        if self.choose:
            # The highest accuracy; of several the one with the lowest loss.
            score = [logs["val_capsnet_accuracy"], -logs["val_loss"]]
            best = self.state.get("best")
            if best is None or score > best["score"]:
                self.state["best"] = {
                    "score": score,
                    "epoch": epoch + 1,
                    "test_error": logs["test_error"],
                }
                with averaged(self.swap):
                    self.save(final_figures(self.state["best"]))
        self.state["epochs_done"] = epoch + 1
        checkpoints.save_checkpoint(self.folder, self.model, self.state)


def final_figures(best):
    """What the record says of the epoch that is kept."""
    return {key: best[key] for key in ("epoch", "test_error")}


@contextlib.contextmanager
def averaged(swap):
    """Within it the model has its averaged weights, if it keeps any."""
    if swap is not None:
        swap.on_test_begin()
    yield
    if swap is not None:
        swap.on_test_end()


def lengths_model(eval_model):
    """From pictures to the lengths of the capsules, without the decoder."""
    lengths = keras.Model(eval_model.input, eval_model.output["capsnet"])
    lengths.jit_compile = eval_model.jit_compile
    return Predictor(lengths)


def predict(model, x, batch_size=PREDICT_BATCH):
    """`model.predict` for uint8 pictures, in large batches."""
    batches = datasets.ShiftedBatches(
        x,
        np.zeros(len(x), dtype="int64"),
        n_class=1,
        batch_size=batch_size,
        label_input=False,
        decoder=False,
    )
    return model.predict(pipeline(batches), verbose=0)


def tensorflow():
    """The package where it is Keras's backend, elsewhere None."""
    if keras.backend.backend() == "tensorflow":
        return importlib.import_module("tensorflow")
    return None


def make_deterministic():
    """The same operations in the same order, whatever the threads do."""
    if tf := tensorflow():
        tf.config.experimental.enable_op_determinism()


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


def compile_model(
    train_model,
    schedule,
    lam_recon,
    ema=0.0,
    jit_compile="auto",
    steps_per_execution=1,
):
    """Adam, the two losses of section 3 and 4.1, and the accuracy."""
    optimizer = keras.optimizers.Adam(
        schedule, use_ema=ema > 0, ema_momentum=ema or 0.99
    )
    baseline = train_model.name == "baseline"
    loss = {"capsnet": "categorical_crossentropy" if baseline else margin_loss}
    weights = {"capsnet": 1.0}
    accuracy = "capsnet_accuracy"
    if "decoder" in train_model.output:
        loss["decoder"], weights["decoder"] = "mse", lam_recon
        accuracy = "accuracy"  # Keras adds the output's name, if several.
    train_model.compile(
        optimizer,
        loss=loss,
        loss_weights=weights,
        # Weighted, so that what fills up a batch counts nothing.
        weighted_metrics={
            "capsnet": keras.metrics.CategoricalAccuracy(name=accuracy)
        },
        jit_compile={"auto": "auto", "on": True, "off": False}[jit_compile],
        steps_per_execution=steps_per_execution,
    )


def log_columns(decoder, validation):
    """The columns of `log.csv`, besides the epoch."""
    columns = ["loss", "capsnet_loss", "capsnet_accuracy"]
    if not decoder:
        columns.remove("capsnet_loss")  # It is the loss.
    else:
        columns.append("decoder_loss")
    held_out = [f"val_{name}" for name in columns] if validation else []
    return [*columns, *held_out, "learning_rate", "test_error"]


def train(
    models,
    data,
    save_dir,
    *,
    epochs=50,
    batch_size=100,
    lr=0.001,
    lr_decay=0.9,
    lr_decay_steps=0,
    lr_min=0.0,
    lam_recon=0.392,
    shift_fraction=0.1,
    validation=None,
    ema=0.0,
    seed=0,
    replicas=1,
    debug=False,
    jit_compile="auto",
    steps_per_execution=1,
    class_weight=None,
    resumed=None,
    record=None,
    verbose=1,
):
    """Trains, and leaves in `save_dir` what the module's docstring names.

    Args:
        models: What `CapsNet` returns.
        data: A `datasets.Dataset`.
        save_dir: Folder to write to.
        lr_decay_steps: 0 for a decay after each epoch, else the number of
            steps in which the rate falls by `lr_decay`, continuously.
        lam_recon: Weight of the mean squared error of the reconstruction.
        validation: None, or a pair of held out pictures and labels; then the
            epoch with their best accuracy is kept, else the last one.
        ema: Momentum of averaged weights, 0 for none.
        replicas: By how many devices a batch is divided.
        class_weight: None, or how much a picture of each class counts in
            the class loss and the training accuracy.
        resumed: None, or what `checkpoints.read_state` says of `save_dir`'s
            checkpoint, to continue from it.
        record: Dictionary for `run.json` and the model file.
        verbose: As in Keras's `fit`.

    Returns:
        Pair of Keras's `History` and the record with the final figures.

    Raises:
        FloatingPointError: If the loss is no number any more.
        FileError: If the checkpoint does not fit, or the log cannot be read.
    """
    train_model, eval_model, _ = models
    record = dict(record or {})
    decoder = "decoder" in eval_model.output
    n_class = len(data.class_names)
    batch = functools.partial(
        datasets.ShiftedBatches,
        n_class=n_class,
        batch_size=batch_size,
        replicas=replicas,
        decoder=decoder,
        label_input=decoder,
    )
    shift = datasets.max_shift(data.x_train.shape[1:3], shift_fraction)
    batches = batch(
        data.x_train,
        data.y_train,
        shift=shift,
        seed=seed,
        shuffle=True,
        class_weight=class_weight,
    )
    schedule = make_schedule(len(batches), lr, lr_decay, lr_decay_steps, lr_min)
    compile_model(
        train_model, schedule, lam_recon, ema, jit_compile, steps_per_execution
    )
    checkpoint = os.path.join(save_dir, "checkpoint")
    log_path = os.path.join(save_dir, "log.csv")
    model_path = os.path.join(save_dir, "trained_model.keras")
    state = {"epochs_done": 0, "seconds_per_epoch": [], **record}
    if resumed:
        checkpoints.load_checkpoint(checkpoint, train_model, resumed)
        state = {**resumed, "flags": record.get("flags", {})}
        checkpoints.cut_log(log_path, state["epochs_done"])
    else:
        checkpoints.drop_run(save_dir)

    def save(figures):
        checkpoints.save_model(eval_model, model_path, {**record, **figures})

    swap = keras.callbacks.SwapEMAWeights() if ema else None
    callbacks = [
        EpochClock(batches, state["seconds_per_epoch"]),
        *([swap] if swap else []),
        TestError(eval_model, data.x_test, data.y_test, swap),
        Log(
            log_path,
            log_columns(decoder, validation is not None),
            bool(resumed),
        ),
        Keeper(
            checkpoint,
            state,
            save,
            validation is not None,
            swap,
        ),
    ]
    if debug:
        callbacks.append(
            keras.callbacks.TensorBoard(
                os.path.join(save_dir, "tensorboard"), histogram_freq=1
            )
        )
    history = train_model.fit(
        pipeline(batches),
        epochs=epochs,
        initial_epoch=state["epochs_done"],
        validation_data=pipeline(batch(*validation)) if validation else None,
        callbacks=callbacks,
        shuffle=False,
        verbose=verbose,
    )
    if validation:
        figures = final_figures(state["best"])
    else:
        log = utils.read_log(log_path)
        figures = {"epoch": epochs, "test_error": float(log["test_error"][-1])}
        save(figures)
    with checkpoints.whole_file(os.path.join(save_dir, "log.png")) as path:
        utils.draw_log(log_path, path)
    record.update(figures, seconds_per_epoch=state["seconds_per_epoch"])
    checkpoints.write_json(os.path.join(save_dir, "run.json"), record)
    return history, record


def test(eval_models, data, save_dir, weights=()):
    """Tests a model, or several as one, and draws reconstructions.

    Args:
        eval_models: List of evaluation models of `CapsNet`. The lengths of
            their capsules are summed; reconstructions are the first one's.
        data: A `datasets.Dataset`; its test part is used.
        save_dir: Folder for `test.json`, `confusion.png`, `mistakes.png`
            (where there are any) and `real_and_recon.png`.
        weights: Files of the models, for `test.json`.

    Returns:
        Dictionary: `dataset`, `weights`, `accuracy` in [0, 1], `test_error`
        in percent, `mistakes` and `pictures` as counts, `classes` (by name,
        each with its `pictures`, `mistakes` and `error` in percent) and
        `confusion`, a list of rows: true classes, with a column for each
        predicted one.
    """
    lengths = sum(
        predict(lengths_model(model), data.x_test) for model in eval_models
    )
    eval_model = eval_models[0]
    n_class = len(data.class_names)
    confusion = np.zeros((n_class, n_class), "int64")
    np.add.at(confusion, (data.y_test, lengths.argmax(-1)), 1)
    figures = {
        "dataset": data.name,
        "weights": list(weights),
        **test_figures(confusion, data.class_names),
    }
    checkpoints.write_json(os.path.join(save_dir, "test.json"), figures)
    path = os.path.join(save_dir, "confusion.png")
    with checkpoints.whole_file(path) as temporary:
        utils.draw_confusion(confusion, data.class_names, temporary)
    draw_mistakes(eval_model, data, lengths, save_dir)
    if "decoder" in eval_model.output:
        shown = data.x_test[spread(len(data.x_test))]
        reconstructions = predict(eval_model, shown)["decoder"]
        path = os.path.join(save_dir, "real_and_recon.png")
        with checkpoints.whole_file(path) as temporary:
            utils.draw_reconstructions(shown / 255, reconstructions, temporary)
    return figures


def spread(count, most=SHOWN):
    """At most `most` of `count` indices, evenly from the first on.

    Folders of pictures are sorted by class, and other sets may be.
    """
    shown = min(count, most)
    return np.arange(shown) * count // shown


def test_figures(confusion, class_names):
    """The figures of `test.json`, from counts of true and predicted classes.

    Args:
        confusion: Integer array, rows are true classes, columns predicted.
        class_names: List of strings.

    Returns:
        Dictionary as `test` returns it.
    """
    counts = confusion.sum(axis=1).tolist()
    mistakes = (confusion.sum(axis=1) - confusion.diagonal()).tolist()
    return {
        "accuracy": 1 - sum(mistakes) / sum(counts),
        "test_error": 100 * sum(mistakes) / sum(counts),
        "mistakes": sum(mistakes),
        "pictures": sum(counts),
        "classes": {
            name: {
                "pictures": count,
                "mistakes": wrong,
                # A class may have no picture in the test part.
                "error": 100 * wrong / count if count else None,
            }
            for name, count, wrong in zip(class_names, counts, mistakes)
        },
        "confusion": confusion.tolist(),
    }


def draw_mistakes(eval_model, data, lengths, save_dir):
    """Draws `mistakes.png`, the most confident mistakes first.

    Args:
        eval_model: The model that reconstructs, if it has a decoder.
        data: A `datasets.Dataset`.
        lengths: Array of shape `(n, n_class)` for its test part.
        save_dir: Folder. Without a mistake an older file is removed.
    """
    path = os.path.join(save_dir, "mistakes.png")
    predicted = lengths.argmax(-1)
    wrong = np.flatnonzero(predicted != data.y_test)
    if len(wrong) == 0:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return
    order = np.argsort(-lengths.max(-1)[wrong], kind="stable")
    worst = wrong[order[:SHOWN]]
    names = [utils.shorten(name, 18) for name in data.class_names]
    titles = [
        f"{names[data.y_test[index]]} -> {names[predicted[index]]}"
        for index in worst
    ]
    draw_pictures(eval_model, data.x_test[worst], titles, path)


def draw_pictures(eval_model, images, titles, path):
    """Draws pictures, beside their reconstructions if there is a decoder."""
    reconstructions = None
    if "decoder" in eval_model.output:
        reconstructions = predict(eval_model, images)["decoder"]
    with checkpoints.whole_file(path) as temporary:
        utils.draw_pairs(images / 255, reconstructions, titles, temporary)


def predict_files(models, files, class_names, skip_unreadable=False):
    """Reads pictures and asks the models, some of them at a time.

    Args:
        models: Evaluation models; the lengths of their capsules are averaged.
        files: Paths of pictures.
        class_names: List of strings.
        skip_unreadable: Boolean, leave out what cannot be read.

    Returns:
        The rows of `utils.make_rows` in the order of the files, the first
        pictures as the models saw them (uint8), and lines for the user.

    Raises:
        DatasetError: If a file cannot be read, all of them at once.
    """
    input_shape = models[0].input.shape[1:]
    capsules = [lengths_model(model) for model in models]
    rows, images, unreadable, resized = [], [], [], 0
    for part in utils.in_parts(files, PREDICT_BATCH):
        pictures, failed, count = datasets.read_pictures(part, input_shape)
        unreadable += map(utils.printable, failed)
        resized += count
        # After the first unreadable file only the others are looked for.
        if pictures and (skip_unreadable or not unreadable):
            names, x = zip(*pictures)
            images += x[: SHOWN - len(images)]
            x = np.stack(x)
            lengths = sum(predict(model, x) for model in capsules)
            rows += utils.make_rows(names, lengths / len(models), class_names)
    if unreadable and not (skip_unreadable and rows):
        raise datasets.unreadable_error(
            "", unreadable, len(files), skip_unreadable
        )
    notes = []
    if resized:
        size = f"{utils.cross(input_shape[:2])} (height x width)"
        total = datasets.counted(len(rows), "picture")
        notes.append(f"Resized to {size}: {resized} of {total}")
    if unreadable:
        left_out = f"{len(unreadable)} ({datasets.listed(unreadable)})"
        notes.append(f"Left out, cannot be read: {left_out}")
    return rows, np.stack(images), notes


def write_predictions(eval_model, rows, images, save_dir):
    """Writes `predictions.csv` and `predictions.png`.

    Args:
        eval_model: The model that reconstructs, if it has a decoder.
        rows, images: What `predict_files` returns.
        save_dir: Folder.
    """
    path = os.path.join(save_dir, "predictions.csv")
    with checkpoints.whole_file(path) as temporary:
        utils.write_rows(rows, temporary)
    titles = [
        f"{utils.shorten(utils.printable(os.path.basename(file)), 18)}: "
        f"{utils.shorten(first, 18)} ({length:.2f})"
        for file, first, length, *_ in rows[: len(images)]
    ]
    path = os.path.join(save_dir, "predictions.png")
    draw_pictures(eval_model, images, titles, path)


def manipulations(manipulate_model, data, class_number, seed=0):
    """What the decoder draws when dimensions of a class's capsule change.

    Args:
        manipulate_model: The third model of `CapsNet`.
        data: A `datasets.Dataset`; one picture of its test part is taken.
        class_number: Integer, index of the class.
        seed: Integer that chooses the picture.

    Returns:
        float32 array of shape `(dimensions, len(NOISE), height, width,
        channels)`: each dimension, with each number of `NOISE` added to it.
    """
    choices = np.flatnonzero(data.y_test == class_number)
    chosen = np.random.default_rng(seed).choice(choices)
    noise_input = next(
        tensor for tensor in manipulate_model.inputs if tensor.name == "noise"
    )
    n_class, dimensions = noise_input.shape[1:]
    # One picture for each dimension (rows) and value (columns).
    count = dimensions * len(NOISE)
    noise = np.zeros((dimensions, len(NOISE), n_class, dimensions), "float32")
    for dimension in range(dimensions):
        noise[dimension, :, class_number, dimension] = NOISE
    label = np.eye(n_class, dtype="float32")[class_number]
    image = data.x_test[chosen].astype("float32") / 255
    images = manipulate_model.predict(
        {
            "image": np.repeat(image[None], count, axis=0),
            "label": np.repeat(label[None], count, axis=0),
            "noise": noise.reshape(count, n_class, dimensions),
        },
        batch_size=count,
        verbose=0,
    )["decoder"]
    return images.reshape(dimensions, len(NOISE), *images.shape[1:])


def manipulate(manipulate_model, data, class_number, save_dir, seed=0):
    """Draws what each dimension of a class's capsule does, as in Figure 4.

    Args:
        manipulate_model, data, class_number, seed: As in `manipulations`.
        save_dir: Folder for `manipulate-CLASS.png`, CLASS being the name
            with dashes for what a file name cannot hold.

    Returns:
        The name of the file.
    """
    images = manipulations(manipulate_model, data, class_number, seed)
    name = data.class_names[class_number]
    path = os.path.join(save_dir, f"manipulate-{utils.file_name(name)}.png")
    with checkpoints.whole_file(path) as temporary:
        utils.draw_manipulations(
            images, NOISE, f"reconstructions of class {name}", temporary
        )
    return path


def build(args, data):
    """The three models that the flags ask for."""
    input_shape = data.x_train.shape[1:]
    n_class = len(data.class_names)
    if args.model == "baseline":
        if min(input_shape[:2]) < SMALLEST_BASELINE:
            raise datasets.DatasetError(
                f"expected pictures of at least {SMALLEST_BASELINE}x"
                f"{SMALLEST_BASELINE} pixels (height x width) for --model "
                f"baseline, received {utils.cross(input_shape[:2])} in "
                f"{data.name!r}: enlarge them with --image_size"
            )
        return Baseline(input_shape, n_class, args.conv)
    return CapsNet(
        input_shape,
        n_class,
        init=args.init,
        primary_scale=args.primary_scale,
        **size_flags(args, input_shape, n_class),
    )


def size_flags(args, input_shape, n_class):
    """The arguments that `CapsNet` and `make_plan` share."""
    lam_recon = reconstruction_weight(args.lam_recon, input_shape, n_class)
    return {
        "routings": args.routings,
        "capsule_bias": args.capsule_bias,
        "conv": args.conv,
        "decoder": lam_recon > 0,
        **{name: getattr(args, name) for name in options.GEOMETRY},
    }


def batch_size_of(args, pictures, replicas, resumed):
    """The batch size that the flags lead to; a resumed run keeps its own."""
    most = args.batch_size or options.DEFAULT_BATCH_SIZE * replicas
    if resumed:
        return resumed.get("batch_size", most)
    if "batch_size" in args.given:
        return most
    chosen = choose_batch_size(most, pictures, replicas)
    if chosen < most:
        print(
            f"Batches of {chosen}, not {most}, for "
            f"{datasets.counted(pictures, 'training picture')}: "
            f"{datasets.counted(math.ceil(pictures / chosen), 'step')} an "
            "epoch (--batch_size takes another number)"
        )
    return chosen


def show_plan(args, data, batch_size, replicas):
    """Prints what will be built; refuses what the memory cannot hold."""
    if args.model == "baseline":
        return
    n_class = len(data.class_names)

    def plan_of(shape):
        return make_plan(shape, n_class, **size_flags(args, shape, n_class))

    shape = data.x_train.shape[1:]
    # One batch may be larger than the whole set.
    batch_size = min(batch_size, len(data.x_train))
    sizes = {
        "test_batch": min(PREDICT_BATCH, len(data.x_test)),
        "pictures": len(data.x_train) + len(data.x_test),
        "replicas": replicas,
    }
    print(plan_of(shape).table(batch_size, **sizes), flush=True)
    available = utils.machine_memory() if runs_on_cpu() else None
    utils.check_memory(plan_of, shape, batch_size, available, **sizes)


def run_training(args, scope=contextlib.nullcontext, replicas=1, resumed=None):
    """Trains as the flags say, and prints what came of it."""
    data = datasets.load(args.dataset, seed=args.seed, **picture_flags(args))
    for note in data.notes:
        print(note)
    validation = None
    if args.val_fraction:
        data, *validation = datasets.hold_out(
            data, args.val_fraction, args.seed
        )
    for flag, value in args.recipe_sets.items():
        print(f"Recipe {args.recipe} sets --{flag} {value}")
    batch_size = batch_size_of(args, len(data.x_train), replicas, resumed)
    show_plan(args, data, batch_size, replicas)
    with scope():
        models = build(args, data)
    train_model, eval_model, _ = models
    direct = args.conv == "direct" or args.dtype_policy != "float32"
    if args.jit_compile == "on" and direct and runs_on_cpu():
        print(
            "Warning: with direct convolutions (--conv direct, or 16 bits) "
            "--jit_compile on makes a CPU about twenty times slower"
        )
    if args.weights and not args.resume:
        checkpoints.load_weights(eval_model, *args.weights)
    input_shape = data.x_train.shape[1:]
    lam_recon = reconstruction_weight(
        args.lam_recon, input_shape, len(data.class_names)
    )
    class_weight = None
    if args.class_weight == "balanced":
        class_weight = balanced_weights(data.y_train, len(data.class_names))
        weights = map("{} {:.3g}".format, data.class_names, class_weight)
        print(f"Class weights: {', '.join(weights)}")
    record = {
        "flags": options.flags_of(args),
        "class_names": data.class_names,
        "input_shape": list(input_shape),
        "input_range": [0.0, 1.0],
        "batch_size": batch_size,
        "lam_recon": lam_recon,
        "parameters": train_model.count_params(),
        "environment": utils.environment(),
    }
    if resumed and resumed["epochs_done"] >= args.epochs:
        print(
            f"The run is finished: {resumed['epochs_done']} of "
            f"{datasets.counted(args.epochs, 'epoch')}; a larger --epochs "
            "goes on"
        )
    else:
        print(
            f"Training on {datasets.counted(len(data.x_train), 'picture')} of "
            f"{utils.cross(input_shape)}, {len(data.class_names)} classes; "
            f"{record['parameters']:,} weights"
        )
        print(last_rate(args, math.ceil(len(data.x_train) / batch_size)))
    if not resumed:
        tell_replaced(args.save_dir)
    with scope():
        _, record = train(
            models,
            data,
            args.save_dir,
            epochs=args.epochs,
            batch_size=batch_size,
            lr=args.lr,
            lr_decay=args.lr_decay,
            lr_decay_steps=args.lr_decay_steps,
            lr_min=args.lr_min,
            lam_recon=lam_recon,
            shift_fraction=args.shift_fraction,
            validation=validation,
            ema=args.ema,
            seed=args.seed,
            replicas=replicas,
            debug=args.debug,
            jit_compile=args.jit_compile,
            steps_per_execution=args.steps_per_execution,
            class_weight=class_weight,
            resumed=resumed,
            record=record,
            verbose=1 if sys.stdout.isatty() else 2,
        )
    model_path = os.path.join(args.save_dir, "trained_model.keras")
    print(f"Test error: {record['test_error']:.2f} % (epoch {record['epoch']})")
    print(
        f"Written to {args.save_dir}: trained_model.keras, log.csv, log.png, "
        "run.json"
    )
    hint = f"Test it: python capsulenet.py -t -w {model_path}"
    if args.save_dir != "result":
        hint += f" --save_dir {args.save_dir}"
    print(hint)


def last_rate(args, steps):
    """A line that says how far the learning rate will fall."""
    rates = args.lr, args.lr_decay, args.lr_decay_steps, args.lr_min
    schedule = make_schedule(steps, *rates)
    last = float(schedule(steps * args.epochs - 1))
    return f"Learning rate {args.lr:.3g}, in the last step {last:.3g}"


def tell_replaced(save_dir):
    """Says which run a new one in its folder replaces."""
    try:
        state = checkpoints.read_state(os.path.join(save_dir, "checkpoint"))
    except checkpoints.FileError:
        return  # There is none that could have gone on.
    done, epochs = state["epochs_done"], state.get("flags", {}).get("epochs", 0)
    if done < epochs:
        print(
            f"Replacing the unfinished run in {save_dir} ({done} of "
            f"{datasets.counted(epochs, 'epoch')} done), with which --resume "
            "would have gone on"
        )
    else:
        print(
            f"Replacing the finished run in {save_dir} "
            f"({datasets.counted(done, 'epoch')})"
        )


def picture_flags(args, recorded=None):
    """How `datasets.load` is to take the pictures.

    Args:
        args: Parsed flags.
        recorded: None, or the flags of the run that trained the model: they
            hold where the user gave none.
    """
    recorded = recorded or {}
    names = ["image_size", "grayscale", "skip_unreadable", "test_fraction"]
    flags = {name: getattr(args, name) for name in names}
    dataset = options.recorded_value(args, "dataset")
    if dataset not in (None, recorded.get("dataset")):
        names.remove("test_fraction")  # Another folder may have both parts.
    for name in names:
        if name not in args.given:
            flags[name] = recorded.get(name, flags[name])
    flags["image_size"] = flags["image_size"] and tuple(flags["image_size"])
    return flags


def load_for_testing(args):
    """The models of `-w`, the data to test them on, the models' records."""
    loaded = [
        checkpoints.load_model(path) if path.endswith(".keras") else None
        for path in args.weights
    ]
    flags = next((model[1].get("flags", {}) for model in loaded if model), {})
    name = args.dataset or flags.get("dataset") or "mnist"
    # The seed draws the digits.
    seed = args.seed if "seed" in args.given else flags.get("seed", args.seed)
    records = [model[1] if model else {} for model in loaded]
    records = dict(zip(args.weights, records))
    pictures = picture_flags(args, flags)
    pictures["test_fraction"] = unseen_fraction(args, records, name)
    if not args.dataset and name not in datasets.BUILT_IN:
        if not os.path.exists(name):
            raise checkpoints.FileError(
                f"{args.weights[0]} was trained on {name!r}, which is not "
                "there; name what to test on with --dataset"
            )
    data = datasets.load(name, seed=seed, **pictures)
    data = order_classes(data, records)
    models = []
    for path, model in zip(args.weights, loaded):
        if model is None:
            models.append(build(args, data))
            checkpoints.load_weights(models[-1][1], path)
            continue
        checkpoints.check_model(
            model[0], path, data.x_test.shape[1:], len(data.class_names)
        )
        models.append(attach(as_asked(*model, path, args, data)))
    if args.jit_compile != "auto":
        for _, eval_model, _ in models:
            eval_model.jit_compile = args.jit_compile == "on"
    return models, data, records


def unseen_fraction(args, records, name):
    """The part of each class that no model was trained on, None for no folder.

    The test part of a folder is the same for all seeds, and a smaller part
    lies within a larger one.

    Args:
        args: Parsed flags.
        records: Dictionary, a model's record for each file.
        name: The data set to test on.

    Raises:
        FileError: If `--test_fraction` asks for more than was kept.
    """
    flags = [record.get("flags", {}) for record in records.values()]
    tested = os.path.abspath(os.path.expanduser(name))
    kept = [
        each.get("test_fraction")
        for each in flags
        if os.path.abspath(each.get("dataset") or "") == tested
    ]
    smallest = min((each or datasets.TEST_FRACTION for each in kept), default=1)
    if args.test_fraction and args.test_fraction > smallest:
        raise checkpoints.FileError(
            f"expected --test_fraction of at most {smallest:g}, the part of "
            "these pictures that was kept from training, got "
            f"{args.test_fraction:g}; leave it out"
        )
    return args.test_fraction or (smallest if any(kept) else None)


def order_classes(data, records):
    """The data with its classes in the order that the models know them in.

    Args:
        data: A `datasets.Dataset`.
        records: Dictionary, a model's record for each file.

    Returns:
        The data as it is where the models know other classes.

    Raises:
        FileError: If the models have them in different orders, or know some
            of them, but at other places.
    """
    known = {
        path: checkpoints.class_names_of(record, len(data.class_names))
        for path, record in records.items()
        if len(record.get("class_names", ())) == len(data.class_names)
    }
    same = {
        path: names
        for path, names in known.items()
        if sorted(names) == sorted(data.class_names)
    }
    for path in known.keys() - same.keys():
        moved = [
            name
            for place, name in enumerate(data.class_names)
            if name in known[path] and known[path].index(name) != place
        ]
        if moved:
            raise checkpoints.FileError(
                f"{path} knows the classes {datasets.listed(known[path])}, got "
                f"{datasets.listed(data.class_names)}, of which "
                f"{moved[0]!r} would be taken for another one; give the "
                "classes the same names"
            )
    if len({tuple(names) for names in same.values()}) > 1:
        raise checkpoints.FileError(
            "expected models with their classes in the same order after -w, "
            f"got {', '.join(map(repr, same))}; test them one by one"
        )
    return datasets.reorder(data, next(iter(same.values()))) if same else data


def trained_elsewhere(records, data):
    """Lines that name the models which were trained on something else.

    Args:
        records: Dictionary, a model's record for each file.
        data: The `datasets.Dataset` that they are tested on.
    """
    for path, record in records.items():
        name = record.get("flags", {}).get("dataset")
        if name and os.path.basename(name) != os.path.basename(data.name):
            yield f"{path} was trained on {name}"
        if "class_names" in record:
            theirs = checkpoints.class_names_of(record, len(data.class_names))
            if theirs != data.class_names:
                yield (
                    f"{path} knows other classes, which are compared in their "
                    f"order: {datasets.listed(theirs)} with "
                    f"{datasets.listed(data.class_names)}"
                )


def as_asked(model, record, path, args, data):
    """A loaded model, built anew where a flag says how it is to compute.

    These are `--routings`, `--dtype_policy` and `--conv`; without them it
    computes as it was trained.
    """
    asked = args.given & {"routings", "dtype_policy", "conv"}
    if not asked or "flags" not in record:
        return model
    recorded = {
        name: value
        for name, value in record["flags"].items()
        if name not in asked
    }
    flags = type(args)(**{**vars(args), **recorded})
    keras.config.set_dtype_policy(flags.dtype_policy)
    built = build(flags, data)[1]
    checkpoints.copy_weights(model, built, path)
    return built


def run_testing(args):
    """Tests as the flags say, and prints the figures."""
    models, data, records = load_for_testing(args)
    manipulate_model = models[0][2]
    if args.digit is not None:
        if manipulate_model is None:
            raise checkpoints.FileError(
                "--digit needs a model with a decoder, and this one has none: "
                "it is a baseline, or was trained with --lam_recon 0"
            )
        drawn = class_number(args.digit, data)
    figures = test(
        [model[1] for model in models], data, args.save_dir, args.weights
    )
    print(f"Tested on {data.name}: {', '.join(args.weights)}")
    for line in trained_elsewhere(records, data):
        print(line)
    if len(models) > 1:
        print(f"{len(models)} models, capsule lengths summed")
    print(f"Accuracy: {100 * figures['accuracy']:.2f} %")
    print(
        f"Test error: {figures['test_error']:.2f} % "
        f"({figures['mistakes']} of {figures['pictures']})"
    )
    if figures["mistakes"]:
        print(worst_classes(figures["classes"]))
    else:
        print("No mistakes, so no mistakes.png")
    written = ["test.json", "confusion.png"]
    written += ["mistakes.png"] if figures["mistakes"] else []
    if manipulate_model is None:
        print("No reconstructions: the model has no decoder")
    else:
        written.append("real_and_recon.png")
    print(f"Written to {args.save_dir}: {', '.join(written)}")
    if args.digit is not None:
        path = manipulate(
            manipulate_model, data, drawn, args.save_dir, args.seed
        )
        print(f"Written: {path}")


def run_prediction(args):
    """Prints what the models take pictures for; writes only if asked to."""
    models, class_names, _ = checkpoints.load_models(args.weights)
    files = datasets.find_pictures(args.predict)
    rows, images, notes = predict_files(
        models, files, class_names, args.skip_unreadable
    )
    print(utils.format_table(rows), flush=True)
    for note in notes:
        print(note)
    if len(models) > 1:
        print(f"{len(models)} models, mean of their capsules' lengths")
    if "save_dir" in args.given:
        write_predictions(models[0], rows, images, args.save_dir)
        print(f"Written to {args.save_dir}: predictions.csv, predictions.png")


def run_export(args):
    """Writes a model for others, and prints how to load it."""
    (model,), _, record = checkpoints.load_models(args.weights)
    if args.export.endswith(".keras"):
        checkpoints.save_half(model, args.export, record)
        size = os.path.getsize(args.export) / 1e6
        print(f"Written: {args.export}, {size:.1f} MB, weights in 16 bits")
        print(f"Test it: python capsulenet.py -t -w {args.export}")
        return
    checkpoints.export(model, record, args.export)
    print(f"Written: {args.export}, a SavedModel with the endpoint serve")
    print(
        f"Load it: served = tf.saved_model.load({args.export!r}); "
        "served.serve(images)"
    )


def worst_classes(classes, named=3):
    """A line that names the classes with the largest error.

    Args:
        classes: `figures["classes"]` of `test`.
        named: How many of those with the same error are named.
    """
    errors = {name: each["error"] or 0 for name, each in classes.items()}
    largest = max(errors.values())
    worst = [name for name in errors if errors[name] == largest]
    if len(worst) == 1:
        counts = "{mistakes} of {pictures}".format(**classes[worst[0]])
        return f"Worst class: {worst[0]}, {largest:.2f} % ({counts})"
    listed = ", ".join(worst[:named])
    more = f" and {len(worst) - named} more" if len(worst) > named else ""
    return f"Worst classes: {listed}{more}, {largest:.2f} % each"


def class_number(name, data):
    """The index of a class given by its name, or else its number."""
    class_names = data.class_names
    if name in class_names:
        number = class_names.index(name)
    elif name.isdecimal() and int(name) < len(class_names):
        number = int(name)
    else:
        raise checkpoints.FileError(
            f"--digit expects a class, one of {', '.join(class_names)}; "
            f"got {name!r}"
        )
    if number not in data.y_test:
        raise checkpoints.FileError(
            "--digit expects a class with a picture in the test part, got "
            f"{name!r} without any; choose another class"
        )
    return number


def run(args, scope=contextlib.nullcontext, replicas=1):
    """Runs parsed flags.

    Args:
        args: What `options.parse_args` returns.
        scope: Function that returns the context to build models in.
        replicas: By how many devices a batch is divided.

    Returns:
        Exit status: 0, 1 when training diverged, 2 for what the user can
        mend, 130 after Ctrl-C. Each but 0 comes with one line.
    """
    try:
        # A prediction or an export writes there only if it is named.
        lock = contextlib.nullcontext()
        if not (args.predict or args.export) or "save_dir" in args.given:
            lock = checkpoints.locked(args.save_dir)
        with lock:
            resumed = None
            if args.resume:  # Its flags are used from here on.
                folder = os.path.join(args.save_dir, "checkpoint")
                resumed = checkpoints.read_state(folder)
            keras.utils.set_random_seed(args.seed)
            if args.jit_compile != "on":  # XLA orders operations by itself.
                make_deterministic()
            keras.config.set_dtype_policy(args.dtype_policy)
            if args.testing:
                run_testing(args)
            elif args.predict:
                run_prediction(args)
            elif args.export:
                run_export(args)
            else:
                run_training(args, scope, replicas, resumed)
    except (
        datasets.DatasetError,
        checkpoints.FileError,
        utils.PlanError,
    ) as error:
        return fail(str(error), 2)
    except BrokenPipeError:  # The reader, `head` perhaps, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return fail(f"{error.strerror or error}: {error.filename or ''}", 2)
    except FloatingPointError as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # The progress bar's line has no end yet.
        return fail(interrupted(args), 130)
    return 0


def interrupted(args):
    """What to say after Ctrl-C."""
    state = os.path.join(args.save_dir, "checkpoint", "state.json")
    if not options.is_training(args):
        return "interrupted"
    if not os.path.exists(state):
        return "interrupted before the first epoch's end; nothing is saved yet"
    script = os.path.basename(sys.argv[0])
    command = f"python {script} --resume --save_dir {args.save_dir}"
    for name in ("gpus", "device"):
        if name in args.given:
            command += f" --{name} {getattr(args, name)}"
    return f"interrupted; the finished epochs are saved. Go on: {command}"


def fail(message, status):
    """Prints one line to standard error, and hands the status on."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    return status


def main(argv=None):
    """Parses a command line and runs it; returns the exit status."""
    return run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
