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
import math
import os
import sys

from capsnet.cli import settings

parse_args = functools.partial(settings.parse_args, description=__doc__)

if __name__ == "__main__":
    parse_args()  # -h and a wrong flag answer before Keras is imported.

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers, ops  # noqa: E402

import utils  # noqa: E402
from capsnet.cli.checks import is_training
from capsnet.cli.options import GEOMETRY
from capsnet.cli.settings import flags_of
from capsnet.data.batches import (
    ShiftedBatches,
    balanced_weights,
    choose_batch_size,
    max_shift,
    pipeline,
)
from capsnet.data.folders import find_pictures
from capsnet.data.sources import hold_out, load
from capsnet.devices import (
    environment,
    machine_memory,
    make_deterministic,
    runs_on_cpu,
)
from capsnet.evaluation import loading
from capsnet.evaluation.figures import (
    draw_mistakes,
    spread,
    test_figures,
    worst_classes,
)
from capsnet.evaluation.loading import (
    load_for_testing,
    picture_flags,
    trained_elsewhere,
)
from capsnet.evaluation.prediction import (
    format_table,
    predict_files,
    write_predictions,
)
from capsnet.files import locked, read_state, whole_file, write_json
from capsnet.messages import UserError, counted, cross, fail, file_name
from capsnet.models.fastconv import FastConv2D
from capsnet.models.geometry import (
    CONV_FILTERS,
    DIM_PRIMARY,
    PRIMARY_TYPES,
    check_memory,
    fit_geometry,
    make_plan,
)
from capsnet.models.inference import PREDICT_BATCH, lengths_model, predict
from capsnet.models.networks import (
    SMALLEST_BASELINE,
    Baseline,
    Decoder,
    attach,
    initializers,
    reconstruction_weight,
)
from capsnet.models.saving import (
    export,
    load_models,
    load_weights,
    save_half,
    save_model,
)
from capsnet.training.callbacks import (
    EpochClock,
    Keeper,
    Log,
    TestError,
    final_figures,
    log_columns,
)
from capsnet.training.checkpoints import cut_log, drop_run, load_checkpoint
from capsnet.training.recipes import DEFAULT_BATCH_SIZE
from capsulelayers import CapsuleLayer, Length, Mask, PrimaryCap  # noqa: E402

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
        data: A `sources.Dataset`.
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
        resumed: None, or what `files.read_state` says of `save_dir`'s
            checkpoint, to continue from it.
        record: Dictionary for `run.json` and the model file.
        verbose: As in Keras's `fit`.

    Returns:
        Pair of Keras's `History` and the record with the final figures.

    Raises:
        FloatingPointError: If the loss is no number any more.
        UserError: If the checkpoint does not fit, or the log cannot be read.
    """
    train_model, eval_model, _ = models
    record = dict(record or {})
    decoder = "decoder" in eval_model.output
    n_class = len(data.class_names)
    batch = functools.partial(
        ShiftedBatches,
        n_class=n_class,
        batch_size=batch_size,
        replicas=replicas,
        decoder=decoder,
    )
    shift = max_shift(data.x_train.shape[1:3], shift_fraction)
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
        load_checkpoint(checkpoint, train_model, resumed)
        state = {**resumed, "flags": record.get("flags", {})}
        cut_log(log_path, state["epochs_done"])
    else:
        drop_run(save_dir)

    def save(figures):
        save_model(eval_model, model_path, {**record, **figures})

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
    with whole_file(os.path.join(save_dir, "log.png")) as path:
        utils.draw_log(log_path, path)
    record.update(figures, seconds_per_epoch=state["seconds_per_epoch"])
    write_json(os.path.join(save_dir, "run.json"), record)
    return history, record


def test(eval_models, data, save_dir, weights=()):
    """Tests a model, or several as one, and draws reconstructions.

    Args:
        eval_models: List of evaluation models of `CapsNet`. The lengths of
            their capsules are summed; reconstructions are the first one's.
        data: A `sources.Dataset`; its test part is used.
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
    write_json(os.path.join(save_dir, "test.json"), figures)
    path = os.path.join(save_dir, "confusion.png")
    with whole_file(path) as temporary:
        utils.draw_confusion(confusion, data.class_names, temporary)
    draw_mistakes(eval_model, data, lengths, save_dir)
    if "decoder" in eval_model.output:
        shown = data.x_test[spread(len(data.x_test))]
        reconstructions = predict(eval_model, shown)["decoder"]
        path = os.path.join(save_dir, "real_and_recon.png")
        with whole_file(path) as temporary:
            utils.draw_reconstructions(shown / 255, reconstructions, temporary)
    return figures


def manipulations(manipulate_model, data, class_number, seed=0):
    """What the decoder draws when dimensions of a class's capsule change.

    Args:
        manipulate_model: The third model of `CapsNet`.
        data: A `sources.Dataset`; one picture of its test part is taken.
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
    path = os.path.join(save_dir, f"manipulate-{file_name(name)}.png")
    with whole_file(path) as temporary:
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
            raise UserError(
                f"expected pictures of at least {SMALLEST_BASELINE}x"
                f"{SMALLEST_BASELINE} pixels (height x width) for --model "
                f"baseline, received {cross(input_shape[:2])} in "
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
        **{name: getattr(args, name) for name in GEOMETRY},
    }


def batch_size_of(args, pictures, replicas, resumed):
    """The batch size that the flags lead to; a resumed run keeps its own."""
    most = args.batch_size or DEFAULT_BATCH_SIZE * replicas
    if resumed:
        return resumed.get("batch_size", most)
    if "batch_size" in args.given:
        return most
    chosen = choose_batch_size(most, pictures, replicas)
    if chosen < most:
        print(
            f"Batches of {chosen}, not {most}, for "
            f"{counted(pictures, 'training picture')}: "
            f"{counted(math.ceil(pictures / chosen), 'step')} an "
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
    available = machine_memory() if runs_on_cpu() else None
    check_memory(plan_of, shape, batch_size, available, **sizes)


def run_training(args, scope=contextlib.nullcontext, replicas=1, resumed=None):
    """Trains as the flags say, and prints what came of it."""
    data = load(args.dataset, seed=args.seed, **picture_flags(args))
    for note in data.notes:
        print(note)
    validation = None
    if args.val_fraction:
        data, *validation = hold_out(data, args.val_fraction, args.seed)
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
        load_weights(eval_model, *args.weights)
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
        "flags": flags_of(args),
        "class_names": data.class_names,
        "input_shape": list(input_shape),
        "input_range": [0.0, 1.0],
        "batch_size": batch_size,
        "lam_recon": lam_recon,
        "parameters": train_model.count_params(),
        "environment": environment(),
    }
    if resumed and resumed["epochs_done"] >= args.epochs:
        print(
            f"The run is finished: {resumed['epochs_done']} of "
            f"{counted(args.epochs, 'epoch')}; a larger --epochs "
            "goes on"
        )
    else:
        print(
            f"Training on {counted(len(data.x_train), 'picture')} of "
            f"{cross(input_shape)}, {len(data.class_names)} classes; "
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
        state = read_state(os.path.join(save_dir, "checkpoint"))
    except UserError:
        return  # There is none that could have gone on.
    done, epochs = state["epochs_done"], state.get("flags", {}).get("epochs", 0)
    if done < epochs:
        print(
            f"Replacing the unfinished run in {save_dir} ({done} of "
            f"{counted(epochs, 'epoch')} done), with which --resume "
            "would have gone on"
        )
    else:
        print(
            f"Replacing the finished run in {save_dir} "
            f"({counted(done, 'epoch')})"
        )


def run_testing(args):
    """Tests as the flags say, and prints the figures."""
    models, data, records = load_for_testing(args, build)
    manipulate_model = models[0][2]
    if args.digit is not None:
        if manipulate_model is None:
            raise UserError(
                "--digit needs a model with a decoder, and this one has none: "
                "it is a baseline, or was trained with --lam_recon 0"
            )
        drawn = loading.class_number(args.digit, data)
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
    models, class_names, _ = load_models(args.weights)
    files = find_pictures(args.predict)
    rows, images, notes = predict_files(
        models, files, class_names, args.skip_unreadable
    )
    print(format_table(rows), flush=True)
    for note in notes:
        print(note)
    if len(models) > 1:
        print(f"{len(models)} models, mean of their capsules' lengths")
    if "save_dir" in args.given:
        write_predictions(models[0], rows, images, args.save_dir)
        print(f"Written to {args.save_dir}: predictions.csv, predictions.png")


def run_export(args):
    """Writes a model for others, and prints how to load it."""
    (model,), _, record = load_models(args.weights)
    if args.export.endswith(".keras"):
        save_half(model, args.export, record)
        size = os.path.getsize(args.export) / 1e6
        print(f"Written: {args.export}, {size:.1f} MB, weights in 16 bits")
        print(f"Test it: python capsulenet.py -t -w {args.export}")
        return
    export(model, record, args.export)
    print(f"Written: {args.export}, a SavedModel with the endpoint serve")
    print(
        f"Load it: served = tf.saved_model.load({args.export!r}); "
        "served.serve(images)"
    )


def run(args, scope=contextlib.nullcontext, replicas=1):
    """Runs parsed flags.

    Args:
        args: What `settings.parse_args` returns.
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
            lock = locked(args.save_dir)
        with lock:
            resumed = None
            if args.resume:  # Its flags are used from here on.
                folder = os.path.join(args.save_dir, "checkpoint")
                resumed = read_state(folder)
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
    except (UserError,) as error:
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
    if not is_training(args):
        return "interrupted"
    if not os.path.exists(state):
        return "interrupted before the first epoch's end; nothing is saved yet"
    script = os.path.basename(sys.argv[0])
    command = f"python {script} --resume --save_dir {args.save_dir}"
    for name in ("gpus", "device"):
        if name in args.given:
            command += f" --{name} {getattr(args, name)}"
    return f"interrupted; the finished epochs are saved. Go on: {command}"


def main(argv=None):
    """Parses a command line and runs it; returns the exit status."""
    return run(parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
