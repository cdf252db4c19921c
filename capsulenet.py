"""CapsNet: dynamic routing between capsules, on Keras 3.

Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017.

    python capsulenet.py                          train on MNIST
    python capsulenet.py --dataset digits         train without a download
    python capsulenet.py --dataset pairs:digits   two digits in each picture
    python capsulenet.py --resume                 go on after an interruption
    python capsulenet.py -t -w FILE               test a trained model
    python capsulenet.py --digit 5 -w FILE        draw what its capsules mean
    python capsulenet.py --explore -w FILE        write a page to try them in
    python capsulenet.py --predict P... -w FILE   classify pictures, folders
    python capsulenet.py --export DIR -w FILE     write a model for serving
    python capsulenet.py --show_augment           draw what training will see

Training writes into `--save_dir` (default `result`): `trained_model.keras`,
`log.csv`, `log.png`, `run.json`, `batch.png` and `checkpoint/`. Testing
writes `test.json`, `test.csv`, `confusion.png`, `mistakes.png` and
`real_and_recon.png`; `--affine` also `affine.png`, `--digit N`
`manipulate-N.png`. Predicting writes `predictions.csv` and `predictions.png`
where `--save_dir` is given, else nothing. `--explore` writes `explore.html`,
`--show_augment` `augment.png`. Of pairs no `test.csv` is written, and of
them and of several labels a picture no `confusion.png`.
"""

import sys

from capsnet.cli import checks

if __name__ == "__main__":
    # -h and a wrong flag answer before Keras is imported.
    args = checks.start(__doc__)

import keras
import numpy as np
from keras import layers, ops

import utils
from capsnet.cli import commands
from capsnet.data.augment import Shift
from capsnet.data.batches import pipeline
from capsnet.devices import create_variables
from capsnet.evaluation import answers, figures, prediction
from capsnet.files import whole_file
from capsnet.fonts import drawable_names
from capsnet.models import geometry, networks, several
from capsnet.models.fastconv import FastConv2D
from capsnet.models.initializers import initializers
from capsnet.training import averages, callbacks, checkpoints, schedules
from capsulelayers import CapsuleLayer, Length, PrimaryCap

NOISE = np.linspace(-0.25, 0.25, 11)  # Section 5.1.


def CapsNet(
    input_shape,
    n_class,
    routings=None,
    dim_capsule=16,
    routing=None,
    init="length",
    capsule_bias=None,
    primary_scale=1.0,
    conv="auto",
    decoder=True,
    **shapes,
):
    """The network of Figure 1 and its decoder, Figure 2.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        n_class: Integer of at least 2, number of classes.
        routings, routing: Rounds and kind of routing, as in `CapsuleLayer`.
        dim_capsule: Positive integer, length of a digit capsule.
        init: `"length"` (matrices that keep a vector's length), `"glorot"`
            (the classic code) or `"authors"` (truncated normals, biases 0.1).
        capsule_bias: None, or the initial bias of primary and digit capsules.
        primary_scale: Float, factor on the convolution of `PrimaryCap`.
        conv: `"auto"`, `"direct"` or `"fast"`, see `FastConv2D`.
        decoder: Whether pictures are reconstructed.
        **shapes: `conv_kernel`, `conv_strides`, `primary_kernel`,
            `primary_strides`: integers or pairs, the two convolutions. By
            default what fits the picture: the paper's 9, 1, 9 and 2 for 28
            to 36 rows and columns.

    Returns:
        Three functional models that share their layers: the training model
        (`image`, `label` -> `capsnet`, `decoder`), the evaluation model
        (`image` -> `capsnet`, `decoder` of the longest capsule) and the
        manipulation model (`image`, `label`, `noise` -> `decoder`), None
        without a decoder.

    Raises:
        UserError: If the picture is smaller than a kernel.
    """
    first, primary, capsules, dense = initializers(init, capsule_bias)
    shapes = geometry.fit_geometry(*input_shape[:2], **shapes)
    image = layers.Input(input_shape, name="image")
    features = FastConv2D(
        geometry.CONV_FILTERS,
        shapes.conv_kernel,
        strides=shapes.conv_strides,
        activation="relu",
        method=conv,
        name="conv1",
        **first,
    )(image)
    features = PrimaryCap(
        geometry.DIM_PRIMARY,
        geometry.PRIMARY_TYPES,
        shapes.primary_kernel,
        strides=shapes.primary_strides,
        scale=primary_scale,
        method=conv,
        data_format="channels_last",
        name="primarycap",
        **primary,
    )(features)
    digitcaps = CapsuleLayer(
        n_class,
        dim_capsule,
        routings,
        use_bias=capsule_bias is not None,
        routing=routing or "dynamic",
        name="digitcaps",
        **capsules,
    )(features)
    outputs = {"capsnet": Length(name="capsnet", dtype="float32")(digitcaps)}
    if decoder:
        networks.add_decoder(outputs, digitcaps, input_shape, dense)
    return networks.attach(keras.Model(image, outputs, name="capsnet_model"))


def build(network, input_shape, n_class, labels="one"):
    """The models that a `Network` describes, for `Dataset.labels` a picture."""
    if network.model == "baseline":
        one = labels == "one"
        baseline = networks.Baseline if one else several.SeveralBaseline
        return baseline(input_shape, n_class, network.conv)
    arguments = dict(vars(network))
    make = CapsNet
    if arguments.pop("model") == "efficient":
        names = "routing routings conv decoder".split()
        arguments = {name: arguments[name] for name in names}
        make = networks.Efficient
    models = make(input_shape, n_class, **arguments)
    return several.for_labels(models, labels)


def margin_loss(y_true, y_pred):
    """Eq. 4 of the paper, for each picture.

    One value a picture, never their mean: a scalar is counted once for each
    replica under MirroredStrategy.

    Args:
        y_true: Labels, one-hot or with several ones, `(batch, n_class)`.
        y_pred: Lengths of the capsules, shape `(batch, n_class)`.

    Returns:
        Tensor of shape `(batch,)`.

    Raises:
        ValueError: If the labels are class numbers.
    """
    y_true = several.check_rows(y_true, y_pred)
    present = y_true * ops.square(ops.maximum(0.0, 0.9 - y_pred))
    absent = (1 - y_true) * ops.square(ops.maximum(0.0, y_pred - 0.1))
    return ops.sum(present + 0.5 * absent, axis=-1)


def compile_model(
    train_model,
    learning_rate,
    lam_recon,
    ema=0.0,
    jit_compile="auto",
    steps_per_execution=1,
    labels="one",
):
    """Adam, the two losses of sections 3 and 4.1, and the accuracy.

    Args:
        train_model: The first model of `CapsNet`.
        learning_rate: Float, or a schedule of Keras.
        lam_recon, ema: As in `train`.
        jit_compile, steps_per_execution: As in Keras's `compile`.
        labels: What a picture has, as in `Dataset.labels`.
    """
    loss = {"capsnet": networks.LOSSES.get(train_model.name, margin_loss)}
    weights = {"capsnet": 1.0}
    accuracy = "capsnet_accuracy"
    if "decoder" in train_model.output:
        loss["decoder"], weights["decoder"] = "mse", lam_recon
        accuracy = "accuracy"  # Keras adds the output's name, if several.
    averaged = {"use_ema": ema > 0, "ema_momentum": ema or 0.99}
    train_model.compile(
        keras.optimizers.Adam(learning_rate, **averaged),
        loss=loss,
        loss_weights=weights,
        # Weighted, so that what fills up a batch counts nothing.
        weighted_metrics={"capsnet": several.accuracy(labels, accuracy)},
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    create_variables(train_model)


def train(
    models,
    data,
    save_dir,
    *,
    epochs=50,
    batch_size=100,
    lr=0.001,
    lr_schedule="step",
    lr_decay=0.9,
    lr_decay_steps=0,
    warmup=0.0,
    lam_recon=0.392,
    augment=Shift(),
    validation=None,
    ema=0.0,
    seed=0,
    replicas=1,
    process=(0, 1),
    debug=False,
    jit_compile="auto",
    steps_per_execution=1,
    class_weight=None,
    resumed=None,
    record=None,
    verbose=True,
):
    """Trains, and leaves in `save_dir` what the module's docstring names.

    Args:
        models: What `CapsNet` returns.
        data: A `sources.Dataset`.
        save_dir: Folder to write to.
        lr, lr_schedule, lr_decay, lr_decay_steps, warmup: As in
            `schedules.schedule`.
        lam_recon: Weight of the mean squared error of the reconstruction.
        augment: How each epoch changes the pictures, an `Augmentation`.
        validation: None, or a pair of held out pictures and labels; then the
            epoch with their best accuracy is kept, else the last one.
        ema: Momentum of averaged weights, 0 for none.
        replicas, process: By how many devices a batch is divided, and which
            of how many processes this is: all but 0 train and do no more.
        class_weight: None, or how much a picture of each class counts in
            the class loss and the training accuracy.
        resumed: None, or what `files.read_state` says of `save_dir`'s
            checkpoint, to continue from it.
        record: Dictionary for `run.json` and the model file.
        verbose: Whether progress is printed.

    Returns:
        Pair of Keras's `History` and the record with the final figures.

    Raises:
        FloatingPointError: If the loss is no number any more.
        UserError: If the checkpoint does not fit, or a file fails.
    """
    train_model, eval_model, _ = models
    record = {**data.record(), **(record or {})}
    common = {
        "batch_size": batch_size,
        "replicas": replicas,
        "process": process,
        "decoder": "decoder" in eval_model.output,
    }
    batches = data.training_batches(augment, seed, class_weight, **common)
    held_out = validation and data.fixed_batches(*validation, **common)
    falling = lr_schedule, lr_decay, lr_decay_steps, warmup
    rate = schedules.schedule(epochs, len(batches), lr, *falling)
    compiled = jit_compile, steps_per_execution, data.labels
    compile_model(train_model, rate, lam_recon, ema, *compiled)
    leads = process[0] == 0
    state = checkpoints.start(save_dir, train_model, record, resumed, leads)
    if leads and not resumed:
        figures.draw_batch(batches[0], data.class_names, save_dir)
    averages.average_statistics(
        train_model, ema, epochs * len(batches), None if resumed else batches
    )
    tested, swap = averages.tested(eval_model, ema)
    choose = validation is not None
    keeper = callbacks.Keeper(save_dir, tested, record, state, choose, swap)
    shown = debug, verbose
    history = train_model.fit(
        pipeline(batches),
        epochs=epochs,
        initial_epoch=state["epochs_done"],
        validation_data=held_out and pipeline(held_out),
        callbacks=callbacks.around(keeper, batches, held_out, data, *shown),
        shuffle=False,
        verbose=0,
    )
    if not leads:
        return history, record
    record.update(keeper.finish())
    record.update(answers.last_test(save_dir, data))
    checkpoints.finish(save_dir, record)
    return history, record


def test(eval_models, data, save_dir, weights=()):
    """Tests a model, or several as one, and draws reconstructions.

    Args:
        eval_models: List of evaluation models of `CapsNet`. The lengths of
            their capsules are averaged; reconstructions are the first one's.
        data: A `sources.Dataset`; its test part is used.
        save_dir: Folder for `test.json` and the pictures.
        weights: Files of the models, for `test.json`.

    Returns:
        Dictionary, the content of `test.json`: `dataset`, `weights`, and
        what `figures.test_figures` says, or `answers.test_figures`.
    """
    if data.labels != "one":
        return answers.test(eval_models, data, save_dir, weights)
    tested = data.x_test, data.y_test, len(data.class_names)
    lengths, confusion = figures.count_answers(eval_models, *tested)
    counts = {
        "dataset": data.name,
        "weights": list(weights),
        **figures.test_figures(confusion, data.class_names),
    }
    figures.replace_test(save_dir, counts)
    prediction.write_test_table(data, lengths, save_dir)
    figures.draw_test(eval_models[0], data, lengths, confusion, save_dir)
    return counts


def manipulations(manipulate_model, image, class_number):
    """The decoder's drawings when dimensions of a class's capsule change.

    Args:
        manipulate_model: The third model of `CapsNet`.
        image: uint8 array of shape `(height, width, channels)`.
        class_number: Integer, index of the class.

    Returns:
        float32 array of shape `(dimensions, len(NOISE), height, width,
        channels)`: each dimension, with each number of `NOISE` added to it.
    """
    n_class, dimensions = manipulate_model.get_layer("noise").output.shape[1:]
    # One picture for each dimension (rows) and value (columns).
    count = dimensions * len(NOISE)
    noise = np.zeros((dimensions, len(NOISE), n_class, dimensions), "float32")
    for dimension in range(dimensions):
        noise[dimension, :, class_number, dimension] = NOISE
    label = np.eye(n_class, dtype="float32")[class_number]
    image = image.astype("float32") / 255
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


def manipulate(manipulate_model, image, class_number, class_names, save_dir):
    """Draws what each dimension of a class's capsule does, as in Figure 4.

    Args:
        manipulate_model, image, class_number: As in `manipulations`.
        class_names: List of strings.
        save_dir: Folder for `manipulate-CLASS.png`.

    Returns:
        The name of the file.
    """
    images = manipulations(manipulate_model, image, class_number)
    name = drawable_names(class_names)[class_number]
    title = f"reconstructions of class {name}"
    path = figures.manipulation_path(save_dir, class_names, class_number)
    with whole_file(path) as temporary:
        utils.draw_manipulations(image / 255, images, NOISE, title, temporary)
    return path


SCRIPT = commands.Script(build, train, test, manipulate)


def main(argv=None):
    """Parses a command line and runs it; returns the exit status."""
    return commands.run(checks.parse_args(argv, __doc__), SCRIPT)


if __name__ == "__main__":
    sys.exit(commands.run(args, SCRIPT))
