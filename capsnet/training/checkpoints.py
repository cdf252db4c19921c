"""checkpoints."""

import contextlib
import fnmatch
import math
import os

from capsnet.files import (
    RECORD,
    sha256,
    state_sha256,
    whole_file,
    write_json,
    writing,
)
from capsnet.messages import UserError, reason_of


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


def save_checkpoint(folder, model, state):
    """Saves weights and optimizer, then the state that names their file.

    `state.json` appears last and under its name at once: it always names a
    complete file, whenever the process is killed.

    Args:
        folder: Where the checkpoint is kept.
        model: A compiled model.
        state: Dictionary that JSON can hold; `epochs_done` in it is how
            many epochs the weights have seen.
    """
    name = f"epoch-{state['epochs_done']:04d}.weights.h5"
    path = os.path.join(folder, name)
    with whole_file(path) as temporary:
        reserve(temporary, model)
        model.save_weights(temporary)
    state = {**state, "file": name, "sha256": sha256(path)}
    state["state_sha256"] = state_sha256(state)
    write_json(os.path.join(folder, "state.json"), state)
    for other in fnmatch.filter(os.listdir(folder), "epoch-*.weights.h5"):
        if other != name:
            os.remove(os.path.join(folder, other))


def drop_run(save_dir):
    """Removes what says of a run that a new one replaces how it went.

    What the new run writes first, its log and weights, would otherwise
    stand beside the state and the record of the old one, should it be killed.
    The old model stays until there is a new one: it tells its own record.
    """
    for name in (os.path.join("checkpoint", "state.json"), RECORD, "log.png"):
        path = os.path.join(save_dir, name)
        with writing(path), contextlib.suppress(FileNotFoundError):
            os.remove(path)


def cut_log(path, epochs_done):
    """Removes rows of a `log.csv` beyond the checkpoint's epoch.

    A kill between the row and the checkpoint leaves a row too many.

    Raises:
        UserError: If the log has fewer rows than the checkpoint epochs.
    """
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.read().splitlines(keepends=True)
    if len(lines) < epochs_done + 1:
        raise UserError(
            f"expected rows of epochs 1 to {epochs_done} in {path!r}, got "
            f"{len(lines) - 1} of them; restore the file, or start again "
            "without --resume"
        )
    with whole_file(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            file.writelines(lines[: epochs_done + 1])


def load_checkpoint(folder, model, state):
    """Puts weights and optimizer of a checkpoint into a compiled model.

    Args:
        folder: Where the checkpoint is kept.
        model: A compiled model.
        state: What `read_state` returned.

    Raises:
        UserError: If the model is another one.
    """
    model.optimizer.build(model.trainable_variables)
    try:
        model.load_weights(os.path.join(folder, state["file"]))
    except Exception as error:  # Keras raises nearly anything.
        raise UserError(
            f"the checkpoint in {folder!r} does not fit this model: "
            f"{reason_of(error)}"
        ) from error
