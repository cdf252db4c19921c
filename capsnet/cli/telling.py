"""What a training or a test tells the user."""

import contextlib
import os

import numpy as np

from capsnet.cli.settings import Training
from capsnet.data.batches import steps_per_epoch
from capsnet.devices import described, machine_memory, runs_on_cpu
from capsnet.evaluation import answers
from capsnet.evaluation.figures import (
    class_figures,
    class_lines,
    worst_classes,
)
from capsnet.files import AFFINE, MODEL, OF_MODEL, found, read_state
from capsnet.fonts import legend
from capsnet.messages import (
    UserError,
    command,
    counted,
    cross,
    duration,
    gigabytes,
    listed,
    printable,
)
from capsnet.models.geometry import describe, training_memory
from capsnet.models.inference import PREDICT_BATCH
from capsnet.training.schedules import schedule, warmup_steps

SCRIPT = "capsulenet.py"
# Training pictures of a class that are few; and by how many times the largest
# class has more than the smallest, so that it is worth a warning.
FEW, UNEQUAL = 20, 10
# How many times too large an estimate of memory may be.
SURELY = 1.5


def tell_changed(task, digest):
    """Warns where a run goes on with other pictures than it began with.

    Args:
        task: A `Training`.
        digest: The data set's, as `Dataset.digest` returns it.

    Raises:
        UserError: If the user named them for those of the run.
    """
    resumed = task.arguments["resumed"] or {}
    if resumed.get("data_sha256", digest) == digest:
        return
    if task.flags["dataset"] != resumed["flags"]["dataset"]:
        raise UserError(
            "--resume: expected the run's pictures and labels, got "
            f"{task.dataset!r}, which holds others; name the place of the "
            "run's, or start a new run from its model (-w)"
        )
    print(
        "Warning: the data set has changed since the run began; from here on "
        "it is another run"
    )


def tell_start(task, left, differences):
    """Says what does not begin as in the model of -w, if anything."""
    if differences:
        print(
            f"Not as in {task.weights[0]}: {listed(differences)}. For the same "
            "network give the flags of its training"
        )
    if left:
        print(
            f"Starting from {task.weights[0]}, but for layers that do not "
            f"fit, which begin anew: {listed(left)}"
        )


def tell_choices(task, data, class_weight, replicas):
    """Prints what was chosen for the user; returns the size of a batch."""
    for flag, value in task.recipe.items():
        print(f"Recipe {task.flags['recipe']} sets --{flag} {value}")
    pictures = len(data.x_train)
    batch_size, lowered_from = task.batch_size(pictures, replicas)
    if batch_size < lowered_from:
        steps = steps_per_epoch(pictures, batch_size)
        print(
            f"Batches of {batch_size}, not {lowered_from}, for "
            f"{counted(pictures, 'training picture')}: "
            f"{counted(steps, 'step')} an epoch (--batch_size takes "
            "another number)"
        )
    if class_weight is not None:
        weights = map("{} {:.3g}".format, data.class_names, class_weight)
        print(f"Class weights: {', '.join(weights)}")
    return batch_size


def tell_network(train_model, data, batch_size, replicas):
    """Prints the network that was built, and whether its memory is there.

    Raises:
        UserError: If there is by far not enough: the system would end the
            process in the middle of it.
    """
    sizes = {
        # One batch may be larger than the whole set.
        "batch_size": min(batch_size, len(data.x_train)),
        "test_batch": min(PREDICT_BATCH, len(data.x_test)),
        "pictures": len(data.x_train) + len(data.x_test),
        "replicas": replicas,
    }
    print(describe(train_model, **sizes), flush=True)
    available = machine_memory() if runs_on_cpu() else None
    needed = training_memory(train_model, **sizes)
    if available is None or needed <= available:
        return
    line = (
        f"training may need {gigabytes(needed)} of memory, and there are "
        f"{gigabytes(available)}"
    )
    if needed > SURELY * available:
        raise UserError(f"{line}: lower --batch_size or --image_size")
    print(f"Warning: {line}: if it fails, lower --batch_size or --image_size")


def tell_compilation(task):
    """Warns where XLA would be far slower than no compilation."""
    direct = task.network.conv == "direct" or task.dtype_policy != "float32"
    if task.jit_compile is True and direct and runs_on_cpu():
        print(
            "Warning: with direct convolutions (--conv direct, or 16 bits) "
            "--jit_compile on makes a CPU about twenty times slower"
        )


def tell_run(task, data, record):
    """Prints what is trained, how the rate falls, and what is replaced."""
    epochs, resumed = task.arguments["epochs"], task.arguments["resumed"]
    if resumed and resumed["epochs_done"] >= epochs:
        more = "; a larger --epochs goes on"
        if task.arguments["lr_schedule"] == "cosine":
            more = ""  # Its rate is zero at the run's end.
        print(
            f"The run is finished: {resumed['epochs_done']} of "
            f"{counted(epochs, 'epoch')}{more}"
        )
        return
    pictures = len(data.x_train)
    several = ", several a picture" if data.labels == "several" else ""
    print(
        f"Training on {counted(pictures, 'pair' if data.pairs else 'picture')} "
        f"of {cross(record['input_shape'])}, {len(data.class_names)} classes"
        f"{several}; {record['parameters']:,} weights"
    )
    for line in legend(data.class_names):
        print(line)
    if data.labels == "one":
        tell_classes(data, task.balanced)
    print(f"Computing with {described(record['environment'])}")
    tell_steps(task, steps_per_epoch(pictures, record["batch_size"]), record)
    if resumed:
        print(f"Going on after epoch {resumed['epochs_done']} of {epochs}")
    else:
        tell_replaced(task.save_dir)


def tell_classes(data, balanced):
    """Prints how many pictures a class has, and warns where it is unequal."""
    counts = np.bincount(data.y_train, minlength=len(data.class_names))
    few, many = counts.min(), counts.max()
    between = few if few == many else f"{few} to {many}"
    print(f"{between} of them in each class")
    rarest = f"{printable(data.class_names[counts.argmin()])!r}"
    if many >= UNEQUAL * few and not balanced:
        print(
            f"Warning: class {rarest} has {few}, others have {UNEQUAL} times "
            "as many: --class_weight balanced lets each class count alike"
        )
    elif few < FEW:
        print(
            f"Warning: class {rarest} has {counted(few, 'training picture')}; "
            f"{FEW} are few, 100 better"
        )


def tell_steps(task, steps, record):
    """Prints the learning rate of some steps, and how many are averaged."""
    names = "epochs lr lr_schedule lr_decay lr_decay_steps warmup".split()
    falling = {name: task.arguments[name] for name in names}
    rate, count = schedule(steps=steps, **falling), steps * falling["epochs"]
    warm = min(warmup_steps(falling["warmup"], steps), count - 1)
    risen = f", in step {warm + 1} {float(rate(warm)):.3g}" if warm else ""
    print(
        f"Learning rate {float(rate(0)):.3g}{risen}, in the last step "
        f"{float(rate(count - 1)):.3g}"
    )
    ema, asked = record["ema"], task.flags["ema"]
    if ema < asked:
        print(
            f"Averaged weights: momentum {ema:.6g}, not {asked:.6g}: a memory "
            f"of {counted(round(1 / (1 - ema)), 'step')}, of {count}"
        )


def tell_replaced(save_dir):
    """Says which run, or pictures of which model, a new run replaces."""
    try:
        state = read_state(save_dir)
    except UserError:  # There is none that could have gone on.
        old = sorted(map(os.path.basename, found(save_dir, OF_MODEL)))
        if old:
            print(f"Replacing in {save_dir}: {printable(listed(old))}")
        return
    done = state["epochs_done"]
    epochs = state.get("flags", {}).get("epochs", 0)
    if done < epochs:
        print(
            f"Replacing the unfinished run in {save_dir} ({done} of "
            f"{counted(epochs, 'epoch')} done), with which --resume would "
            "have gone on"
        )
    else:
        print(
            f"Replacing the finished run in {save_dir} "
            f"({counted(done, 'epoch')}), with its pictures and pages"
        )


def tell_result(task, data, record):
    """Prints what came of a training, and how to test it."""
    print(f"Trained for {duration(sum(record['seconds_per_epoch']))}")
    if record["labels"] == "one":
        error = f"Test error: {record['test_error']:.2f} %"
        print(f"{error} (epoch {record['epoch']})")
        counts = np.bincount(data.y_test, minlength=len(data.class_names))
        if "class_mistakes" in record:
            tested = counts, record["class_mistakes"]
            classes = class_figures(data.class_names, *tested)
            for line in class_lines(classes):
                print(line)
    else:
        print(f"Epoch {record['epoch']}, all of the test part:")
        print("\n".join(answers.lines(record)))
    print(
        f"Written to {task.save_dir}: {MODEL}, log.csv, log.png, run.json, "
        "batch.png"
    )
    words = ["-w", os.path.join(task.save_dir, MODEL)]
    if task.save_dir != "result":
        words += ["--save_dir", task.save_dir]
    if record["lam_recon"] and task.network.model != "baseline":
        print(f"Turn its capsules: {command(SCRIPT, '--explore', *words)}")
    print(f"Test it: {command(SCRIPT, '-t', *words)}")


def tell_figures(figures, save_dir, decoder, labels="one"):
    """Prints what came of a test, of a model with or without a decoder."""
    written = ["test.json", *(["test.csv"] if labels != "pair" else [])]
    if labels == "one":
        print(f"Accuracy: {100 * figures['accuracy']:.2f} %")
        error = "{test_error:.2f} % ({mistakes} of {pictures})"
        written.append("confusion.png")
        changed = ""
        if "affine" in figures:
            changed = f"; affinely changed {error.format(**figures['affine'])}"
            written.append(AFFINE)
        print(f"Test error: {error.format(**figures)}{changed}")
        lines = class_lines(figures["classes"])
    else:
        lines = answers.lines(figures)
        if figures["mistakes"]:
            lines.append(worst_classes(figures["classes"]))
    for line in lines:
        print(line)
    if figures["mistakes"]:
        written.append("mistakes.png")
    else:
        print("No mistakes, so no mistakes.png")
    if decoder:
        written.append("real_and_recon.png")
    else:
        print("No reconstructions: the model has no decoder")
    print(f"Written to {save_dir}: {', '.join(written)}")


def interrupted(task):
    """What to say after Ctrl-C."""
    if not isinstance(task, Training):
        return "interrupted"
    is_saved = task.arguments["resumed"] is not None
    with contextlib.suppress(UserError):
        # The folder may still hold another run's checkpoint.
        is_saved |= read_state(task.save_dir).get("flags") == task.flags
    if not is_saved:
        return "interrupted before the first epoch's end; nothing is saved yet"
    go_on = command(*task.again)
    return f"interrupted; the finished epochs are saved. Go on: {go_on}"
