"""The same command trains the same network on every backend."""

import numpy as np
import pytest
from conftest import write_bars
from running import on_backend

import utils


@pytest.mark.slow
@pytest.mark.parametrize("other", ("jax", "torch"))
def test_first_ten_steps_agree_between_backends(other, tmp_path):
    data = write_bars(tmp_path / "data.npz", train=20, test=6)
    # One epoch is one step, and every epoch has its losses in the log.
    flags = ["--dataset", data, "--batch_size", 20]
    start = tmp_path / "start"
    on_backend("tensorflow", *flags, "--epochs", 1, "--save_dir", start)
    flags += ["-w", start / "trained_model.keras", "--epochs", 10]
    logs = []
    for name in ("tensorflow", other):
        printed = on_backend(name, *flags, "--save_dir", tmp_path / name)
        logs.append(utils.read_log(tmp_path / name / "log.csv"))
    for column in ("capsnet_loss", "decoder_loss"):
        ours, theirs = (log[column] for log in logs)
        assert len(ours) == 10
        np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
    assert f"Test it: KERAS_BACKEND={other} python " in printed
    model = tmp_path / other / "trained_model.keras"
    argv = "--digit", 1, "-w", model, "--save_dir", tmp_path / other
    assert "Test error" in on_backend(other, *argv)
    assert (tmp_path / other / "manipulate-1.png").exists()
