"""A run's folder: begin, go on, keep, finish.

`log.csv` gains a row and `checkpoint/` is replaced after each epoch; a kill
at any time costs the epoch at work. `checkpoint/state.json` appears last and
at once: it always names a complete file of weights.
"""

import fnmatch
import math
import os

import utils
from capsnet.devices import alone
from capsnet.files import (
    CHECKPOINT,
    LOG,
    OF_RUN,
    PLOT,
    RECORD,
    STATE,
    remove,
    sha256,
    state_sha256,
    whole_file,
    write_json,
    write_text,
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


def go_on(save_dir, model, state, writes=True):
    """Puts a checkpoint into a compiled model, and cuts the log to fit.

    Args:
        save_dir: The run's folder.
        model: A compiled model.
        state: What `files.read_state` returned.
        writes: Whether the log is this process's to cut.

    Raises:
        UserError: If the model is another one, or the log has fewer rows
            than the checkpoint epochs.
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
    path, done = os.path.join(save_dir, LOG), state["epochs_done"]
    try:
        with open(path, newline="", encoding="utf-8") as file:
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:
        lines = [""]
    if len(lines) < done + 1:
        raise UserError(
            f"expected rows of epochs 1 to {done} in {path!r}, got "
            f"{len(lines) - 1} of them; restore the file, or start again "
            "without --resume"
        )
    if writes:
        # A kill between the row and the checkpoint leaves a row too many.
        write_text(path, "".join(lines[: done + 1]))


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
