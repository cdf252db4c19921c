"""A run's folder: begin, go on, keep, finish.

`log.csv` gains a row and `checkpoint/` is replaced after each epoch; a kill
at any time costs the epoch at work. `checkpoint/state.json` appears last and
at once: it always names a complete file of weights, and holds the log's rows.
"""

import csv
import fnmatch
import math
import os

import utils
from capsnet.devices import alone
from capsnet.files import (
    CHECKPOINT,
    LOG,
    MODEL,
    OF_RUN,
    PLOT,
    RECORD,
    STATE,
    remove,
    sha256,
    state_sha256,
    whole_file,
    write_json,
)
from capsnet.messages import UserError, reason_of

WEIGHTS = "epoch-*.weights.h5"


def begin(save_dir):
    """Removes what tells of an old run how it went.

    Beside the files that a new run writes first it would be taken for the
    new run's. The old model stays until there is a new one: it tells its own
    record.
    """
    remove(save_dir, OF_RUN)


def start(save_dir, model, record, resumed, writes=True):
    """The state of a run that begins, or goes on from `resumed`.

    Args:
        save_dir, model, writes: As in `go_on`.
        record: Dictionary, what `run.json` will say of the run.
        resumed: None, or what `files.read_state` returned.
    """
    if resumed:
        rows = go_on(save_dir, model, resumed, writes)
        return {**resumed, "log": rows, "flags": record.get("flags", {})}
    if writes:
        begin(save_dir)
    return {"epochs_done": 0, "seconds_per_epoch": [], "log": [], **record}


def go_on(save_dir, model, state, writes=True):
    """Puts a checkpoint into a compiled model, and writes the log that fits.

    Args:
        save_dir: The run's folder.
        model: A compiled model.
        state: What `files.read_state` returned.
        writes: Whether the log is this process's to cut.

    Returns:
        The rows of the log, as `write_log` takes them.

    Raises:
        UserError: If the model is another one, the best epoch's model is not
            there, or neither the state nor the log has a row for each epoch.
    """
    model.optimizer.build(model.trainable_variables)
    folder = os.path.join(save_dir, CHECKPOINT)
    try:
        model.load_weights(os.path.join(folder, state["file"]))
    except Exception as error:  # Keras raises nearly anything.
        raise UserError(
            f"the checkpoint in {folder!r} does not fit this model: "
            f"{reason_of(error)}"
        ) from error
    best = os.path.join(save_dir, MODEL)
    if "best" in state and not os.path.exists(best):
        raise UserError(
            f"expected the model of epoch {state['best']['epoch']}, the best "
            f"one so far, in {best!r}, which is not there; restore the file, "
            "or start again without --resume"
        )
    path, done = os.path.join(save_dir, LOG), state["epochs_done"]
    rows = state["log"] if "log" in state else read_rows(path)
    if len(rows) < done:
        raise UserError(
            f"expected rows of epochs 1 to {done} in {path!r}, got "
            f"{len(rows)} of them; restore the file, or start again without "
            "--resume"
        )
    # A kill between the row and the checkpoint leaves a row too many.
    if writes:
        write_log(save_dir, rows[:done])
    return rows[:done]


def read_rows(path):
    """The rows of a log, dictionaries of strings; none where there is none."""
    if not os.path.exists(path):
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        return list(csv.DictReader(file))


def write_log(save_dir, rows):
    """Writes `log.csv`.

    Args:
        save_dir: The run's folder.
        rows: Dictionaries with the same keys, the names of the columns.
    """
    with whole_file(os.path.join(save_dir, LOG)) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def keep(save_dir, model, state):
    """Saves weights and optimizer, then the state that names their file.

    Args:
        save_dir: The run's folder.
        model: A compiled model.
        state: Dictionary that JSON can hold; `epochs_done` in it is how
            many epochs the weights have seen.
    """
    name = WEIGHTS.replace("*", f"{state['epochs_done']:04d}")
    path = os.path.join(save_dir, CHECKPOINT, name)
    with whole_file(path) as temporary:
        reserve(temporary, model)
        with alone():  # Keras makes variables even to save some.
            model.save_weights(temporary)
    state = {**state, "file": name, "sha256": sha256(path)}
    state["state_sha256"] = state_sha256(state)
    write_json(os.path.join(save_dir, STATE), state)
    for other in fnmatch.filter(os.listdir(os.path.dirname(path)), WEIGHTS):
        if other != name:
            os.remove(os.path.join(os.path.dirname(path), other))


def reserve(path, model):
    """Makes sure that the disk has room for a model's weights.

    HDF5 crashes the process where the disk is full in the middle.

    Raises:
        OSError: If there is not enough room.
    """
    variables = [*model.variables, *model.optimizer.variables]
    size = 2**20 + 4 * sum(math.prod(v.shape) for v in variables)
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)


def finish(save_dir, record):
    """Draws the log, and writes the record of a finished run."""
    with whole_file(os.path.join(save_dir, PLOT)) as path:
        utils.draw_log(os.path.join(save_dir, LOG), path)
    write_json(os.path.join(save_dir, RECORD), record)
