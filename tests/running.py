"""Runs of the command in this process, and the tests' ways to look at them."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest

import capsulenet
import utils
from capsnet.training import callbacks

ROOT = Path(__file__).parents[1]

# Of the pictures in `data`, on which the shared runs are trained.
SHAPE, N_CLASS = (17, 17, 1), 3
# Of the classes of some models.
NAMES = ["bottom $1", "middle", "top"]


class Run(NamedTuple):
    """A command's folder, its exit status and its two outputs."""

    folder: Path
    status: int
    out: str
    err: str

    def log(self):
        return utils.read_log(self.folder / "log.csv")

    def record(self):
        return json.loads((self.folder / "run.json").read_text())

    def figures(self):
        return json.loads((self.folder / "test.json").read_text())

    def model_path(self):
        return str(self.folder / "trained_model.keras")

    def model(self):
        return keras.models.load_model(self.model_path())


def run(*argv, folder="result"):
    """Runs the command; `folder` is where the test looks for its files."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = capsulenet.main(list(map(str, argv)))
        except SystemExit as error:
            status = error.code
    return Run(Path(folder), status, out.getvalue(), err.getvalue())


def command(folder, *argv):
    """Runs the command with `--save_dir folder`."""
    return run(*argv, "--save_dir", folder, folder=folder)


def train(folder, data, *argv):
    """Trains in steps of 20 pictures, two in an epoch of `data`."""
    return command(folder, "--dataset", data, "--batch_size", 20, *argv)


def stopped_in_epoch(number, folder, data, *argv, kept=False):
    """`train`, stopped between an epoch's row in the log and its checkpoint.

    Or, `kept`, right after the checkpoint.
    """
    keep = callbacks.keep

    def stop(folder, model, state):
        is_last = state["epochs_done"] == number
        if kept or not is_last:
            keep(folder, model, state)
        if is_last:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "keep", stop)
        return train(folder, data, *argv)


def on_backend(name, *argv):
    """Runs the command on a backend in its own process; what it printed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    process = subprocess.run(
        [sys.executable, str(ROOT / "capsulenet.py"), *map(str, argv)],
        env={**os.environ, "KERAS_BACKEND": name},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def heed_ctrl_c():
    """For a process to be: those in a shell's background ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def message_of(run, status=2):
    """The one line with which a run failed."""
    assert run.status == status
    assert run.err.endswith("\n") and run.err.count("\n") == 1, run.err
    return run.err


def contents(folder):
    """Every file under a folder, and what is in it."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def weights_of(model):
    """The model's weights by layer and name."""
    return {
        f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight)
        for part in model.layers
        for layer in getattr(part, "layers", [part])
        for weight in layer.weights
    }


def same(weights, others):
    """Whether two results of `weights_of` are equal to the last bit."""
    return weights.keys() == others.keys() and all(
        np.array_equal(weights[name], others[name]) for name in weights
    )


def lengths_of(model, pictures):
    """The capsules' lengths for uint8 pictures, by Keras's own `predict`."""
    x = np.asarray(pictures, "float32").reshape(-1, *model.input.shape[1:])
    return model.predict(x / 255, verbose=0)["capsnet"]
