"""The same command trains the same network on every backend."""

import numpy as np
import pytest
from conftest import write_bars
from running import on_backend

import utils


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Flags of a training of ten steps, and its log on TensorFlow."""
    folder = tmp_path_factory.mktemp("tensorflow")
    data = write_bars(folder / "data.npz", train=20, test=6)
    # One epoch is one step, and every epoch has its losses in the log.
    flags = ["--dataset", data, "--batch_size", 20]
    start = folder / "start"
    on_backend("tensorflow", *flags, "--epochs", 1, "--save_dir", start)
    flags += ["-w", start / "trained_model.keras", "--epochs", 10]
    on_backend("tensorflow", *flags, "--save_dir", folder / "run")
    return flags, utils.read_log(folder / "run" / "log.csv")


@pytest.mark.slow
@pytest.mark.parametrize("other", ("jax", "torch"))
def test_first_ten_steps_agree_between_backends(other, expected, tmp_path):
    flags, log = expected
    printed = on_backend(other, *flags, "--save_dir", tmp_path / other)
    found = utils.read_log(tmp_path / other / "log.csv")
    for column in ("capsnet_loss", "decoder_loss"):
        ours, theirs = log[column], found[column]
        assert len(ours) == 10
        np.testing.assert_allclose(theirs, ours, atol=1e-3, rtol=0)
    assert f"Test it: KERAS_BACKEND={other} python " in printed
    model = tmp_path / other / "trained_model.keras"
    argv = "--digit", 1, "-w", model, "--save_dir", tmp_path / other
    assert "Test error" in on_backend(other, *argv)
    assert (tmp_path / other / "manipulate-1.png").exists()
