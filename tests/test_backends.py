"""The same command trains the same network on every backend."""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_bars

ROOT = Path(__file__).parents[1]


def run(backend, *flags):
    """Runs `capsulenet.py` on a backend; returns what it printed."""
    process = subprocess.run(
        [sys.executable, str(ROOT / "capsulenet.py"), *map(str, flags)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def losses(folder):
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return [
            [float(row["capsnet_loss"]), float(row["decoder_loss"])]
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_first_ten_steps_agree_between_backends(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    data = write_bars(tmp_path / "data.npz", train=20, test=6)
    # One epoch is one step, and every epoch has its losses in the log.
    flags = ["--dataset", data, "--batch_size", 20]
    start = tmp_path / "start"
    run("tensorflow", *flags, "--epochs", 1, "--save_dir", start)
    flags += ["-w", start / "trained_model.keras", "--epochs", 10]
    found = {}
    for name in ("tensorflow", backend):
        run(name, *flags, "--save_dir", tmp_path / name)
        found[name] = losses(tmp_path / name)
    np.testing.assert_allclose(
        found[backend], found["tensorflow"], atol=1e-3, rtol=0
    )
    model = tmp_path / backend / "trained_model.keras"
    printed = run(
        backend, "--digit", 1, "-w", model, "--save_dir", tmp_path / backend
    )
    assert "Test error" in printed
    assert (tmp_path / backend / "manipulate-1.png").exists()
