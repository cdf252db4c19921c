"""The same command trains the same network on every backend."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_bars

import utils
from capsnet.messages import backend, command

ROOT = Path(__file__).parents[2]


def run(name, *flags):
    """Runs `capsulenet.py` on a backend; returns what it printed."""
    process = subprocess.run(
        [sys.executable, str(ROOT / "capsulenet.py"), *map(str, flags)],
        env={**os.environ, "KERAS_BACKEND": name},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("other", ("jax", "torch"))
def test_first_ten_steps_agree_between_backends(other, tmp_path):
    if importlib.util.find_spec(other) is None:
        pytest.skip(f"{other} is not installed")
    data = write_bars(tmp_path / "data.npz", train=20, test=6)
    # One epoch is one step, and every epoch has its losses in the log.
    flags = ["--dataset", data, "--batch_size", 20]
    start = tmp_path / "start"
    run("tensorflow", *flags, "--epochs", 1, "--save_dir", start)
    flags += ["-w", start / "trained_model.keras", "--epochs", 10]
    logs = []
    for name in ("tensorflow", other):
        printed = run(name, *flags, "--save_dir", tmp_path / name)
        logs.append(utils.read_log(tmp_path / name / "log.csv"))
    for column in ("capsnet_loss", "decoder_loss"):
        ours, theirs = (log[column] for log in logs)
        assert len(ours) == 10
        np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
    assert f"Test it: KERAS_BACKEND={other} python " in printed
    model = tmp_path / other / "trained_model.keras"
    argv = "--digit", 1, "-w", model, "--save_dir", tmp_path / other
    assert "Test error" in run(other, *argv)
    assert (tmp_path / other / "manipulate-1.png").exists()


@pytest.mark.parametrize(
    "variable, file, expected",
    (
        (None, None, "tensorflow"),
        ("jax", None, "jax"),
        (None, {"backend": "torch"}, "torch"),
        ("", {"backend": "jax"}, "jax"),
        ("tensorflow", {"backend": "jax"}, "tensorflow"),
        (None, {"floatx": "float32"}, "tensorflow"),
        (None, [], "tensorflow"),
    ),
)
def test_printed_commands_name_the_backend_that_keras_takes(
    tmp_path, monkeypatch, variable, file, expected
):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    if variable is not None:
        monkeypatch.setenv("KERAS_BACKEND", variable)
    if file is not None:
        (tmp_path / "keras.json").write_text(json.dumps(file))
    assert backend() == expected
    words = shlex.split(command("capsulenet.py", "-w", tmp_path / "a b"))
    names = [f"KERAS_BACKEND={expected}", "python"]
    assert words[: words.index("python") + 1] == (
        names if expected != "tensorflow" else ["python"]
    )
    assert words[-2:] == ["-w", str(tmp_path / "a b")]


def test_printed_commands_work_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    monkeypatch.chdir(ROOT)
    assert command("capsulenet.py", "-t") == "python capsulenet.py -t"
    monkeypatch.chdir(tmp_path)
    script = shlex.split(command("capsulenet.py", "-t"))[1]
    assert Path(script) == ROOT / "capsulenet.py"
