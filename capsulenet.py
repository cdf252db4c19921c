"""CapsNet: dynamic routing between capsules, on Keras 3.

Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017.

    python capsulenet.py                          train on MNIST
    python capsulenet.py --dataset digits         train without a download
    python capsulenet.py --resume                 go on after an interruption
    python capsulenet.py -t -w FILE               test a trained model
    python capsulenet.py --digit 5 -w FILE        draw what its capsules mean

Training writes into `--save_dir` (default `result`): `trained_model.keras`,
`log.csv`, `log.png`, `run.json` and `checkpoint/`. Testing writes `test.json`
and `real_and_recon.png`; `--digit N` also `manipulate-N.png`.
"""

import contextlib
import functools
import importlib
import math
import os
import sys
import time

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
from fastconv import FastConv2D  # noqa: E402

# Pictures of one step of prediction; larger steps gain nothing more.
PREDICT_BATCH = 250
# Weight of the sum of squared errors against Eq. 4 (section 4.1).
RECONSTRUCTION = 0.0005
NOISE = np.linspace(-0.25, 0.25, 11)


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
    decoder = keras.Sequential(
        [
            layers.Input((num_inputs,)),
            layers.Dense(512, activation="relu", **init),
            layers.Dense(1024, activation="relu", **init),
            layers.Dense(math.prod(output_shape), **init),
            layers.Activation("sigmoid", dtype="float32"),
            layers.Reshape(output_shape, dtype="float32"),
        ],
        name="decoder",
    )
    return decoder


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

    Returns:
        Three functional models that share their layers: the training model
        (`image`, `label` -> `capsnet`, `decoder`), the evaluation model
        (`image` -> `capsnet`, `decoder` of the longest capsule) and the
        manipulation model (`image`, `label`, `noise` -> `decoder`), None
        without a decoder.
    """
    first, primary, capsules, dense = initializers(init, capsule_bias)
    image = layers.Input(input_shape, name="image")
    features = FastConv2D(
        256, 9, activation="relu", method=conv, name="conv1", **first
    )(image)
    features = PrimaryCap(
        8,
        32,
        9,
        strides=2,
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
        Three models as from `CapsNet`; the first two are one, the third is
        None. The softmax takes the place of the capsules' lengths, under the
        same name, so that whatever works with the one works with the other.
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
    if "decoder" not in outputs:
        return eval_model, eval_model, None
    image = eval_model.input
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
        self.eval_model = eval_model
        self.x, self.y = x, y
        self.swap = swap

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.swap):
            lengths = predict_lengths(self.eval_model, self.x)
        wrong = int(np.sum(lengths.argmax(-1) != self.y))
        logs["test_error"] = 100 * wrong / len(self.y)
        print(
            f"Epoch {epoch + 1}: test error {logs['test_error']:.2f} % "
            f"({wrong} of {len(self.y)})",
            flush=True,
        )


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


def predict_lengths(eval_model, x):
    """Lengths of the capsules, shape `(n, n_class)`, for uint8 pictures."""
    lengths = keras.Model(eval_model.input, eval_model.output["capsnet"])
    return predict(lengths, x)


def predict(model, x):
    """`model.predict` for uint8 pictures, in large batches."""
    batches = datasets.ShiftedBatches(
        x,
        np.zeros(len(x), dtype="int64"),
        n_class=1,
        batch_size=PREDICT_BATCH,
        label_input=False,
        decoder=False,
    )
    return model.predict(batches, verbose=0)


def make_deterministic():
    """The same operations in the same order, whatever the threads do."""
    if keras.backend.backend() == "tensorflow":
        tensorflow = importlib.import_module("tensorflow")
        tensorflow.config.experimental.enable_op_determinism()


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
    resume=False,
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
        resume: Whether to continue from `save_dir`'s checkpoint.
        record: Dictionary for `run.json` and the model file.
        verbose: As in Keras's `fit`.

    Returns:
        Pair of Keras's `History` and the record with the final figures.

    Raises:
        FloatingPointError: If the loss is no number any more.
        FileError: If a checkpoint or the log cannot be read.
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
        data.x_train, data.y_train, shift=shift, seed=seed, shuffle=True
    )
    schedule = Decay(
        lr,
        lr_decay_steps or len(batches),
        lr_decay,
        staircase=not lr_decay_steps,
        minimum=lr_min,
    )
    compile_model(
        train_model, schedule, lam_recon, ema, jit_compile, steps_per_execution
    )
    checkpoint = os.path.join(save_dir, "checkpoint")
    log_path = os.path.join(save_dir, "log.csv")
    model_path = os.path.join(save_dir, "trained_model.keras")
    state = {"epochs_done": 0, "seconds_per_epoch": [], **record}
    if resume:
        state = checkpoints.load_checkpoint(checkpoint, train_model)
        state["flags"] = record.get("flags", {})
        checkpoints.cut_log(log_path, state["epochs_done"])

    def save(figures):
        checkpoints.save_model(eval_model, model_path, {**record, **figures})

    swap = keras.callbacks.SwapEMAWeights() if ema else None
    callbacks = [
        EpochClock(batches, state["seconds_per_epoch"]),
        *([swap] if swap else []),
        TestError(eval_model, data.x_test, data.y_test, swap),
        Log(log_path, log_columns(decoder, validation is not None), resume),
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
        batches,
        epochs=epochs,
        initial_epoch=state["epochs_done"],
        validation_data=batch(*validation) if validation else None,
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


def test(eval_models, data, save_dir):
    """Tests a model, or several as one, and draws reconstructions.

    Args:
        eval_models: List of evaluation models of `CapsNet`. The lengths of
            their capsules are summed; reconstructions are the first one's.
        data: A `datasets.Dataset`; its test part is used.
        save_dir: Folder for `test.json` and `real_and_recon.png`.

    Returns:
        Dictionary: `accuracy` in [0, 1], `test_error` in percent,
        `mistakes` and `pictures` as counts.
    """
    lengths = sum(predict_lengths(model, data.x_test) for model in eval_models)
    eval_model = eval_models[0]
    mistakes = int(np.sum(lengths.argmax(-1) != data.y_test))
    pictures = len(data.y_test)
    figures = {
        "accuracy": 1 - mistakes / pictures,
        "test_error": 100 * mistakes / pictures,
        "mistakes": mistakes,
        "pictures": pictures,
    }
    checkpoints.write_json(os.path.join(save_dir, "test.json"), figures)
    if "decoder" in eval_model.output:
        shown = data.x_test[:50]
        reconstructions = predict(eval_model, shown)["decoder"]
        path = os.path.join(save_dir, "real_and_recon.png")
        with checkpoints.whole_file(path) as temporary:
            utils.draw_reconstructions(shown / 255, reconstructions, temporary)
    return figures


def manipulate(manipulate_model, data, class_number, save_dir, seed=0):
    """Draws what each dimension of a class's capsule does, as in Figure 4.

    Args:
        manipulate_model: The third model of `CapsNet`.
        data: A `datasets.Dataset`; one picture of its test part is drawn.
        class_number: Integer, index of the class.
        save_dir: Folder for `manipulate-CLASS.png`.
        seed: Integer that chooses the picture.

    Returns:
        The name of the file.
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
    name = data.class_names[class_number]
    path = os.path.join(save_dir, f"manipulate-{name}.png")
    with checkpoints.whole_file(path) as temporary:
        utils.draw_manipulations(
            images.reshape(dimensions, len(NOISE), *images.shape[1:]),
            NOISE,
            f"reconstructions of class {name}",
            temporary,
        )
    return path


def build(args, data):
    """The three models that the flags ask for."""
    input_shape = data.x_train.shape[1:]
    n_class = len(data.class_names)
    if args.model == "baseline":
        return Baseline(input_shape, n_class, args.conv)
    lam_recon = reconstruction_weight(args.lam_recon, input_shape, n_class)
    return CapsNet(
        input_shape,
        n_class,
        args.routings,
        init=args.init,
        capsule_bias=args.capsule_bias,
        primary_scale=args.primary_scale,
        conv=args.conv,
        decoder=lam_recon > 0,
    )


def run_training(args, scope=contextlib.nullcontext, replicas=1):
    """Trains as the flags say, and prints what came of it."""
    args.batch_size = args.batch_size or options.DEFAULT_BATCH_SIZE * replicas
    data = datasets.load(args.dataset, seed=args.seed)
    for note in data.notes:
        print(note)
    validation = None
    if args.val_fraction:
        data, *validation = datasets.hold_out(
            data, args.val_fraction, args.seed
        )
    for flag, value in args.recipe_sets.items():
        print(f"Recipe {args.recipe} sets --{flag} {value}")
    with scope():
        models = build(args, data)
    train_model, eval_model, _ = models
    if args.weights:
        checkpoints.load_weights(eval_model, *args.weights)
    input_shape = data.x_train.shape[1:]
    lam_recon = reconstruction_weight(
        args.lam_recon, input_shape, len(data.class_names)
    )
    record = {
        "flags": options.flags_of(args),
        "class_names": data.class_names,
        "input_shape": list(input_shape),
        "input_range": [0.0, 1.0],
        "lam_recon": lam_recon,
        "parameters": train_model.count_params(),
        "environment": utils.environment(),
    }
    print(
        f"Training on {len(data.x_train)} pictures of "
        f"{'x'.join(map(str, input_shape))}, {len(data.class_names)} classes; "
        f"{record['parameters']:,} weights"
    )
    with scope():
        _, record = train(
            models,
            data,
            args.save_dir,
            epochs=args.epochs,
            batch_size=args.batch_size,
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
            resume=args.resume,
            record=record,
            verbose=1 if sys.stdout.isatty() else 2,
        )
    model_path = os.path.join(args.save_dir, "trained_model.keras")
    print(f"Test error: {record['test_error']:.2f} % (epoch {record['epoch']})")
    print(
        f"Written to {args.save_dir}: trained_model.keras, log.csv, log.png, "
        "run.json"
    )
    print(f"Test it: python capsulenet.py -t -w {model_path}")


def load_for_testing(args):
    """The models of `-w`, and the data to test them on."""
    loaded = [
        checkpoints.load_model(path) if path.endswith(".keras") else None
        for path in args.weights
    ]
    flags = next((model[1].get("flags", {}) for model in loaded if model), {})
    name = args.dataset or flags.get("dataset") or "mnist"
    # The seed draws the digits, and which pictures of a folder are for tests.
    seed = args.seed if "seed" in args.given else flags.get("seed", args.seed)
    data = datasets.load(name, seed=seed)
    models = []
    for path, model in zip(args.weights, loaded):
        if model is None:
            models.append(build(args, data))
            checkpoints.load_weights(models[-1][1], path)
            continue
        checkpoints.check_model(
            model[0], path, data.x_test.shape[1:], len(data.class_names)
        )
        models.append(attach(model[0]))
    return models, data


def run_testing(args):
    """Tests as the flags say, and prints the figures."""
    models, data = load_for_testing(args)
    manipulate_model = models[0][2]
    figures = test([model[1] for model in models], data, args.save_dir)
    if len(models) > 1:
        print(f"{len(models)} models, capsule lengths summed")
    print(f"Accuracy: {figures['accuracy']:.4f}")
    print(
        f"Test error: {figures['test_error']:.2f} % "
        f"({figures['mistakes']} of {figures['pictures']})"
    )
    if manipulate_model is None:
        print("No reconstructions: the model has no decoder")
    else:
        print(f"Written to {args.save_dir}: test.json, real_and_recon.png")
    if args.digit is None:
        return
    if manipulate_model is None:
        raise checkpoints.FileError(
            "--digit needs a model with a decoder, and this one has none: it "
            "is a baseline, or was trained with --lam_recon 0"
        )
    path = manipulate(
        manipulate_model,
        data,
        class_number(args.digit, data.class_names),
        args.save_dir,
        args.seed,
    )
    print(f"Written: {path}")


def class_number(name, class_names):
    """The index of a class given by its name, or else its number."""
    if name in class_names:
        return class_names.index(name)
    if name.isdigit() and int(name) < len(class_names):
        return int(name)
    raise checkpoints.FileError(
        f"--digit expects a class, one of {', '.join(class_names)}; "
        f"got {name!r}"
    )


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
        keras.utils.set_random_seed(args.seed)
        if args.jit_compile != "on":  # XLA orders operations by itself.
            make_deterministic()
        keras.config.set_dtype_policy(args.dtype_policy)
        with checkpoints.locked(args.save_dir):
            if args.testing:
                run_testing(args)
            else:
                run_training(args, scope, replicas)
    except (datasets.DatasetError, checkpoints.FileError) as error:
        return fail(str(error), 2)
    except OSError as error:
        return fail(f"{error.strerror or error}: {error.filename or ''}", 2)
    except FloatingPointError as error:
        return fail(str(error), 1)
    except KeyboardInterrupt:
        go_on = f"go on with --resume --save_dir {args.save_dir}"
        return fail(f"interrupted; {go_on}", 130)
    return 0


def fail(message, status):
    """Prints one line to standard error, and hands the status on."""
    print(f"{os.path.basename(sys.argv[0])}: {message}", file=sys.stderr)
    return status


def main(argv=None):
    """Parses a command line and runs it; returns the exit status."""
    return run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
