"""The life of a small network: trained, stopped, tested, looked at, used."""

import json

import numpy as np
import pytest
from conftest import bars
from running import (
    SHAPE,
    command,
    lengths_of,
    message_of,
    on_backend,
    run,
    same,
    stopped_in_epoch,
    train,
    weights_of,
)
from samples import save_picture

import utils
from capsnet.models.saving import load_model

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

EPOCHS = 3
FLAGS = (
    f"--model efficient --epochs {EPOCHS} --augment affine --ema 0.999 "
    "--lr_schedule cosine --warmup 1"
).split()


@pytest.fixture(scope="module")
def small(tmp_path_factory, data):
    """A run without an interruption."""
    done = train(tmp_path_factory.mktemp("small"), data, *FLAGS)
    assert done.status == 0, done.err
    return done


def figures_of(folder, *argv):
    """The figures of a test."""
    done = command(folder, *argv)
    assert done.status == 0, done.err
    return done.figures()


def test_resumed_run_is_the_uninterrupted_one(tmp_path, data, small):
    stopped = stopped_in_epoch(2, tmp_path, data, *FLAGS)
    assert "Go on: " in message_of(stopped, status=130)
    resumed = command(tmp_path, "--resume")
    assert resumed.status == 0, resumed.err
    log = (small.folder / "log.csv").read_bytes()
    assert (tmp_path / "log.csv").read_bytes() == log
    # Statistics of batches are among them.
    ours = weights_of(resumed.model())
    assert "norm4/moving_variance" in ours
    assert same(ours, weights_of(small.model()))


def test_model_is_tested_and_drawn_without_any_flag(tmp_path, small):
    argv = "--digit", "1", "-w", small.model_path()
    done = command(tmp_path, *argv)
    assert done.status == 0, done.err
    error = small.log()["test_error"][-1]
    assert done.figures()["test_error"] == pytest.approx(error)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "confusion.png",
        "manipulate-1.png",
        "mistakes.png",
        "real_and_recon.png",
    }
    # It has no rounds.
    message = message_of(command(tmp_path, *argv, "-r", 2))
    assert "expects a model with rounds of routing" in message


def test_computed_in_other_ways_it_sees_the_same(tmp_path, data, small):
    expected = small.log()["test_error"][-1]
    weights = str(tmp_path / "small.weights.h5")
    small.model().save_weights(weights)
    for argv in (
        ["-w", small.model_path(), "--conv", "fast"],
        ["-w", small.model_path(), "--dtype_policy", "mixed_bfloat16"],
        ["-w", weights, "--model", "efficient", "--dataset", data],
    ):
        figures = figures_of(tmp_path, "-t", *argv)
        assert figures["test_error"] == pytest.approx(expected), argv


def test_it_votes_with_the_network_of_the_paper(tmp_path, small, trained):
    x, _ = bars(4, SHAPE, seed=3)
    files = [save_picture(tmp_path / f"{i}.png", x[i]) for i in range(4)]
    runs = small, trained
    done = run("--predict", *files, "-w", *(run.model_path() for run in runs))
    assert done.status == 0, done.err
    lengths = np.mean([lengths_of(run.model(), x) for run in runs], axis=0)
    for line, expected in zip(done.out.splitlines()[1:], lengths):
        label = expected.argmax()
        columns = line.split()[1:3]
        assert columns == [str(label), f"{expected[label]:.3f}"]
    assert "2 models, mean of their capsules' lengths" in done.out


def test_exported_it_computes_the_same(tmp_path, small):
    path, half, served = small.model_path(), "half.keras", "served"
    x = bars(5, SHAPE)[0]
    expected = lengths_of(small.model(), x)
    done = run("--export", tmp_path / half, "-w", path)
    assert done.status == 0, done.err
    found = lengths_of(load_model(str(tmp_path / half))[0], x)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    tensorflow = pytest.importorskip("tensorflow")
    done = run("--export", tmp_path / served, "-w", path)
    assert done.status == 0, done.err
    model = tensorflow.saved_model.load(str(tmp_path / served))
    outputs = model.serve(x / np.float32(255))
    np.testing.assert_allclose(outputs["capsnet"], expected, atol=1e-5)


@pytest.fixture(scope="module")
def again(tmp_path_factory, data, small):
    """Two more epochs, from the model of `small`; and the flags for them."""
    flags = "--model", "efficient", "--epochs", 2, "-w", small.model_path()
    done = train(tmp_path_factory.mktemp("again"), data, *flags)
    assert done.status == 0, done.err
    return done, flags


@pytest.mark.parametrize("other", ("jax", "torch"))
def test_other_backends_test_it_and_train_it_alike(
    tmp_path, data, small, again, other, monkeypatch
):
    folder, compiled = tmp_path / "run", tmp_path / "compiled"
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compiled))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    into = "--save_dir", folder
    on_backend(other, "-t", "-w", small.model_path(), *into)
    figures = json.loads((folder / "test.json").read_text())
    error = small.log()["test_error"][-1]
    assert figures["test_error"] == pytest.approx(error)
    argv = "--dataset", data, "--batch_size", 20, *again[1]
    on_backend(other, *argv, *into)
    found, expected = utils.read_log(folder / "log.csv"), again[0].log()
    for column in ("capsnet_loss", "decoder_loss"):
        np.testing.assert_allclose(
            found[column], expected[column], atol=1e-3, rtol=0
        )
    if other == "jax":  # Steps are compiled, not each operation by itself.
        assert 0 < len(list(compiled.glob("*-cache"))) < 120
