"""The six tasks: what each does, and what it tells the user.

The functions of `capsulenet.py` that they call are handed to them: the
script is above this room.
"""

import contextlib
import os
import sys
import typing
from collections.abc import Callable

import keras
import numpy as np

import utils
from capsnet.cli import checks, settings, telling
from capsnet.cli.runs import agreement, held_out, record_of
from capsnet.data.batches import balanced_weights
from capsnet.data.folders import find_pictures
from capsnet.data.sources import is_downloaded, load
from capsnet.devices import (
    forget_settings,
    is_out_of_memory,
    make_deterministic,
)
from capsnet.evaluation import explore, loading, prediction, robustness
from capsnet.files import AUGMENTED, locked, refuse_tables, whole_file
from capsnet.fonts import legend
from capsnet.messages import UserError, command, fail, printable
from capsnet.models.saving import export, load_models, save_half
from capsnet.models.several import labels_of
from capsnet.models.weights import start_from
from capsnet.training.sharing import Sharing

# What --show_augment draws: pictures, and versions of each.
AUGMENTED_ROWS, VERSIONS = 8, 9

# The tasks that write tables, or remove an old model's.
REPLACING = settings.Training, settings.Testing, settings.Prediction


class Script(typing.NamedTuple):
    """The functions of `capsulenet.py`."""

    build: Callable
    train: Callable
    test: Callable
    manipulate: Callable


def run(args, script, sharing=Sharing()):
    """Does what checked flags ask for.

    Args:
        args: What `checks.parse_args` returns.
        script: A `Script`.
        sharing: A `Sharing`: which devices train together.

    Returns:
        Exit status: 0, 1 when training diverged, 2 for what the user can
        mend, 130 after Ctrl-C. Each but 0 comes with one line.
    """
    task = settings.read(args)
    try:
        checks.started()
        writes = task.save_dir and sharing.leads
        if writes and isinstance(task, REPLACING):
            refuse_tables(task.save_dir)
        with locked(task.save_dir) if writes else contextlib.nullcontext():
            carry_out(task, script, sharing)
    except UserError as error:
        return fail(error, 2)
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{file}", 2)
    except FloatingPointError as error:
        return fail(error, 1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = ""
        if isinstance(task, settings.Training):
            advice = "; lower --batch_size or --image_size, or take "
            advice += "--model efficient"
        return fail(f"there is not enough memory for it{advice}", 2)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # The progress bar's line has no end yet.
        return fail(telling.interrupted(task), 130)
    return 0


def carry_out(task, script, sharing):
    """Does a task as in a fresh process, whatever was done before in this."""
    forget_settings()
    keras.utils.set_random_seed(task.seed)
    if task.jit_compile is not True:
        make_deterministic()
    keras.config.set_dtype_policy(task.dtype_policy)
    if isinstance(task, settings.Training):
        run_training(task, script, sharing)
    elif isinstance(task, settings.Testing):
        run_testing(task, script)
    elif isinstance(task, settings.Exploring):
        run_exploring(task, script)
    elif isinstance(task, settings.Prediction):
        run_prediction(task)
    elif isinstance(task, settings.Showing):
        run_showing(task)
    else:
        run_export(task)


def read(task):
    """The data set of a task."""
    data = load(task.dataset, seed=task.seed, **task.pictures)
    tell_notes(data)
    return data


def tell_notes(data):
    """Prints what is read of a data set, and what is not."""
    for note in data.notes:
        print(printable(note))


def run_training(task, script, sharing):
    """Trains, and prints before what will be and after what came of it."""
    with sharing.in_turn(is_downloaded(task.dataset)):
        data = read(task)
    digest = data.digest()
    sharing.agree(agreement(task, digest))
    telling.tell_changed(task, digest)
    replicas = sharing.replicas
    data, validation = held_out(task, data)
    class_weight = class_weights(data) if task.balanced else None
    batch_size = telling.tell_choices(task, data, class_weight, replicas)
    with sharing.scope():
        sizes = data.input_shape, len(data.class_names)
        models = script.build(task.network, *sizes, data.labels)
    telling.tell_network(models[0], data, batch_size, replicas)
    telling.tell_compilation(task)
    if task.weights and not task.arguments["resumed"]:
        telling.tell_start(task, *start_from(models[1], *task.weights))
    record = record_of(task, data, batch_size, models[0])
    record["data_sha256"] = digest  # Held-out pictures included.
    telling.tell_run(task, data, record)
    with sharing.scope():
        _, record = script.train(
            models,
            data,
            task.save_dir,
            batch_size=batch_size,
            lam_recon=record["lam_recon"],
            ema=record["ema"],
            validation=validation,
            replicas=replicas,
            process=sharing.process,
            class_weight=class_weight,
            record=record,
            **task.arguments,
        )
    if sharing.leads:
        telling.tell_result(task, data, record)


def class_weights(data):
    """How much a picture of each class counts with --class_weight."""
    if data.labels == "several":
        raise UserError(
            "--class_weight is for one label a picture, and "
            f"{data.name!r} has several: leave it out"
        )
    return balanced_weights(data.y_train, len(data.class_names))


def run_testing(task, script):
    """Tests models, draws a class where it is asked for, and tells of both."""
    models, data, records = loading.load_for_testing(
        task.weights, task.asked, script.build
    )
    tell_notes(data)
    manipulate_model = models[0][2]
    if task.digit is not None:
        check_decoder("--digit", manipulate_model)
        drawn = loading.class_number(task.digit, data)
        picture = loading.start_picture(
            task.picture, data, drawn, task.seed, task.asked.get("invert")
        )
    if task.affine and data.labels != "one":
        raise UserError(
            f"--affine expects pictures of one class each, got {data.name!r}, "
            "whose pictures have several labels: leave it out"
        )
    eval_models = [model[1] for model in models]
    figures = script.test(eval_models, data, task.save_dir, task.weights)
    if task.affine:
        figures = robustness.test_affine(
            eval_models, data, task.save_dir, figures
        )
    print(f"Tested on {printable(data.name)}: {', '.join(task.weights)}")
    lines = list(loading.trained_elsewhere(records, data))
    for line in lines + loading.inverted(records, data, task.asked):
        print(printable(line))
    for line in legend(data.class_names):
        print(line)
    if len(models) > 1:
        print(f"{len(models)} models, mean of their capsules' lengths")
    has_decoder = manipulate_model is not None
    telling.tell_figures(figures, task.save_dir, has_decoder, data.labels)
    if task.digit is not None:
        path = script.manipulate(
            manipulate_model, picture, drawn, data.class_names, task.save_dir
        )
        print(f"Written: {path}")


def check_decoder(flag, manipulate_model):
    """Raises UserError where a model has no decoder."""
    if manipulate_model is None:
        raise UserError(
            f"{flag} needs a model with a decoder, and this one has none: it "
            "is a baseline, or was trained with --lam_recon 0"
        )


def run_exploring(task, script):
    """Writes the page in which one turns the dimensions of capsules."""
    ((_, eval_model, manipulate_model),), data, records = (
        loading.load_for_testing(task.weights, task.asked, script.build)
    )
    check_decoder("--explore", manipulate_model)
    for line in loading.trained_elsewhere(records, data):
        print(line)
    path = explore.write_page(eval_model, data, task.weights[0], task.save_dir)
    size = os.path.getsize(path) / 1e6
    print(f"Written: {path}, {size:.1f} MB; open it in a browser")


def run_prediction(task):
    """Prints what the models take pictures for; writes only if asked to."""
    models, class_names, record = load_models(task.weights)
    labels = labels_of(models[0], record)
    files, left_out = find_pictures(task.paths)
    rows, images, notes = prediction.predict_files(
        models,
        files,
        class_names,
        task.skip_unreadable,
        labels,
        record,
        task.invert,
    )
    print(prediction.format_table(rows, labels), flush=True)
    for note in notes + left_out:
        print(note)
    if len(models) > 1:
        print(f"{len(models)} models, mean of their capsules' lengths")
    if task.save_dir:
        prediction.write_predictions(
            models[0], rows, images, task.save_dir, labels
        )
        print(f"Written to {task.save_dir}: predictions.csv, predictions.png")


def run_showing(task):
    """Draws training pictures beside versions of them; trains nothing."""
    data = read(task)
    generator = np.random.default_rng(task.seed)
    count = min(AUGMENTED_ROWS, len(data.x_train))
    images = data.x_train[generator.permutation(len(data.x_train))[:count]]
    versions = task.augment(np.repeat(images, VERSIONS, axis=0), generator)
    versions = versions.reshape(count, VERSIONS, *images.shape[1:])
    path = os.path.join(task.save_dir, AUGMENTED)
    with whole_file(path) as temporary:
        utils.draw_versions(images / 255, versions, temporary)
    print(f"Written: {path}")


def run_export(task):
    """Writes a model for others, and prints how to load it."""
    (model,), _, record = load_models(task.weights)
    target = task.target
    if target.endswith(".keras"):
        save_half(model, target, record)
        size = os.path.getsize(target) / 1e6
        print(f"Written: {target}, {size:.1f} MB, weights in 16 bits")
        print(f"Test it: {command(telling.SCRIPT, '-t', '-w', target)}")
        return
    export(model, record, target)
    print(f"Written: {target}, a SavedModel with the endpoint serve")
    shape = ", ".join(map(str, model.input.shape[1:]))
    print(
        f"Load it: served = tf.saved_model.load({target!r}); "
        f"served.serve(images) of (n, {shape}), float32 in [0, 1], gives "
        f"{' and '.join(model.output)}"
    )
