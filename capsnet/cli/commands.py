"""The five tasks: what each does, and what it tells the user.

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
from capsnet.data.batches import balanced_weights, steps_per_epoch
from capsnet.data.folders import find_pictures
from capsnet.data.sources import hold_out, is_downloaded, load
from capsnet.devices import environment, make_deterministic
from capsnet.evaluation import loading, prediction, robustness
from capsnet.files import AUGMENTED, locked, whole_file
from capsnet.messages import UserError, command, fail
from capsnet.models.geometry import parameters
from capsnet.models.saving import export, load_models, load_weights, save_half
from capsnet.models.several import labels_of
from capsnet.training.sharing import Sharing

# What --show_augment draws: pictures, and versions of each.
AUGMENTED_ROWS, VERSIONS = 8, 9


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
        with locked(task.save_dir) if writes else contextlib.nullcontext():
            keras.utils.set_random_seed(task.seed)
            if task.jit_compile is not True:
                make_deterministic()
            keras.config.set_dtype_policy(task.dtype_policy)
            if isinstance(task, settings.Training):
                run_training(task, script, sharing)
            elif isinstance(task, settings.Testing):
                run_testing(task, script)
            elif isinstance(task, settings.Prediction):
                run_prediction(task)
            elif isinstance(task, settings.Showing):
                run_showing(task)
            else:
                run_export(task)
    except UserError as error:
        return fail(error, 2)
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{file}", 2)
    except FloatingPointError as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()  # The progress bar's line has no end yet.
        return fail(telling.interrupted(task), 130)
    return 0


def run_training(task, script, sharing):
    """Trains, and prints before what will be and after what came of it."""
    with sharing.in_turn(is_downloaded(task.dataset)):
        data = load(task.dataset, seed=task.seed, **task.pictures)
    sharing.agree(described(task, data))
    replicas = sharing.replicas
    for note in data.notes:
        print(note)
    validation = class_weight = None
    if task.val_fraction:
        data, *validation = hold_out(data, task.val_fraction, task.seed)
    n_class = len(data.class_names)
    if task.balanced:
        if data.labels == "several":
            raise UserError(
                "--class_weight is for one label a picture, and "
                f"{data.name!r} has several: leave it out"
            )
        class_weight = balanced_weights(data.y_train, n_class)
    batch_size = telling.tell_choices(task, data, class_weight, replicas)
    with sharing.scope():
        models = script.build(
            task.network, data.input_shape, n_class, data.labels
        )
    telling.tell_network(models[0], data, batch_size, replicas)
    telling.tell_compilation(task)
    if task.weights:
        load_weights(models[1], *task.weights)
    record = record_of(task, data, batch_size, models[0])
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
            verbose=1 if sys.stdout.isatty() else 2,
            **task.arguments,
        )
    if sharing.leads:
        telling.tell_result(task, record)


def described(task, data):
    """What all processes of a training have to have in common."""
    flags = {f"--{name}": task.flags[name] for name in task.flags}
    for name in ("--hosts", "--process", "--save_dir"):
        flags.pop(name, None)
    checkpoint = (task.arguments["resumed"] or {}).get("state_sha256")
    versions = environment()["versions"]
    return {**flags, **versions, "checkpoint": checkpoint, "data": data.sha256}


def record_of(task, data, batch_size, train_model):
    """What `run.json` and the model file will say of a training."""
    n_class = len(data.class_names)
    steps = steps_per_epoch(len(data.x_train), batch_size)
    return {
        "flags": task.flags,
        "class_names": data.class_names,
        "labels": data.labels,
        "input_shape": list(data.input_shape),
        "input_range": [0.0, 1.0],
        "batch_size": batch_size,
        "lam_recon": task.lam_recon(data.target_shape, n_class),
        "ema": task.ema(task.arguments["epochs"] * steps),
        "parameters": parameters(train_model),
        "environment": environment(),
    }


def run_testing(task, script):
    """Tests models, draws a class where it is asked for, and tells of both."""
    models, data, records = loading.load_for_testing(
        task.weights, task.asked, script.build
    )
    manipulate_model = models[0][2]
    if task.digit is not None:
        if manipulate_model is None:
            raise UserError(
                "--digit needs a model with a decoder, and this one has none: "
                "it is a baseline, or was trained with --lam_recon 0"
            )
        drawn = loading.class_number(task.digit, data)
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
    print(f"Tested on {data.name}: {', '.join(task.weights)}")
    for line in loading.trained_elsewhere(records, data):
        print(line)
    if len(models) > 1:
        print(f"{len(models)} models, capsule lengths summed")
    has_decoder = manipulate_model is not None
    telling.tell_figures(figures, task.save_dir, has_decoder, data.labels)
    if task.digit is not None:
        path = script.manipulate(
            manipulate_model, data, drawn, task.save_dir, task.seed
        )
        print(f"Written: {path}")


def run_prediction(task):
    """Prints what the models take pictures for; writes only if asked to."""
    models, class_names, record = load_models(task.weights)
    labels = labels_of(models[0], record)
    files = find_pictures(task.paths)
    rows, images, notes = prediction.predict_files(
        models, files, class_names, task.skip_unreadable, labels
    )
    print(prediction.format_table(rows, labels), flush=True)
    for note in notes:
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
    data = load(task.dataset, seed=task.seed, **task.pictures)
    for note in data.notes:
        print(note)
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
    print(
        f"Load it: served = tf.saved_model.load({target!r}); "
        "served.serve(images)"
    )
