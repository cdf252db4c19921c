"""Tests of capsulenet-multi-gpu.py, on a CPU split into two devices."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import bars

import capsulenet
import utils
from capsnet.cli.settings import parse_args

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "capsulenet-multi-gpu.py"

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="MirroredStrategy is TensorFlow's",
)


@pytest.fixture(autouse=True)
def dtype_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def run(*argv, **environment):
    """Runs the script in a process of its own: it splits the CPU."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, argv)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def write_data(path, train, test):
    """Bars, and test labels by chance: no two orders make as many errors."""
    x_train, y_train = bars(train, (17, 17, 1))
    x_test, _ = bars(test, (17, 17, 1), seed=1)
    y_test = np.random.default_rng(2).integers(0, 3, test)
    y_test[:3] = range(3)
    np.savez(
        path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test
    )


def weights_of(folder):
    model = keras.models.load_model(folder / "trained_model.keras")
    return {
        weight.path: keras.ops.convert_to_numpy(weight)
        for weight in model.weights
    }


def module():
    """The script as a module; its name is none that `import` takes."""
    spec = importlib.util.spec_from_file_location("multi_gpu", SCRIPT)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ten steps with one device and with two: folders, and what is printed.

    An epoch is one batch of all the 20 pictures. Two devices do not divide
    the 53 pictures of the test.
    """
    folder = tmp_path_factory.mktemp("runs")
    write_data(folder / "data.npz", 20, 53)
    argv = ["--dataset", str(folder / "data.npz"), "--epochs", "10"]
    argv += ["--batch_size", "20"]
    one, two = folder / "one", folder / "two"
    assert capsulenet.main([*argv, "--save_dir", str(one)]) == 0
    done = run(*argv, "--save_dir", two, "--gpus", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return one, two, done.stdout


@tensorflow_only
def test_two_replicas_train_like_one_for_ten_steps(runs):
    one, two, _ = runs
    ours, theirs = (utils.read_log(run / "log.csv") for run in (one, two))
    assert list(ours) == list(theirs) and len(ours["loss"]) == 10
    for name in ("loss", "capsnet_loss", "decoder_loss"):
        np.testing.assert_allclose(theirs[name], ours[name], atol=1e-4)
    # The steps have changed much more than the tolerance.
    assert ours["capsnet_loss"][0] - ours["capsnet_loss"][-1] > 0.1
    np.testing.assert_allclose(
        theirs["capsnet_accuracy"], ours["capsnet_accuracy"], atol=1e-6
    )


@tensorflow_only
def test_test_error_is_shown_after_every_epoch(runs):
    one, two, printed = runs
    lines = [line for line in printed.splitlines() if line.startswith("Epoch ")]
    errors = utils.read_log(two / "log.csv")["test_error"]
    for epoch, error in enumerate(errors, 1):
        wrong = round(error / 100 * 53)
        expected = f"Epoch {epoch}: test error {error:.2f} % ({wrong} of 53)"
        assert expected in lines
    # Predictions come back in the order of the pictures.
    expected = utils.read_log(one / "log.csv")["test_error"]
    np.testing.assert_allclose(errors, expected, atol=100 * 1.5 / 53)
    assert "Training on 2 devices" in printed


def test_interrupted_run_is_told_to_go_on_with_its_devices(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.json").touch()
    argv = ["--gpus", "2", "--device", "cpu", "--save_dir", str(tmp_path)]
    args = parse_args(argv, multi_gpu=True)
    advice = f"--resume --save_dir {tmp_path} --gpus 2 --device cpu"
    assert capsulenet.interrupted(args).endswith(advice)


@tensorflow_only
def test_default_batch_grows_with_the_devices(tmp_path):
    write_data(tmp_path / "data.npz", 60, 3)
    argv = ["--dataset", tmp_path / "data.npz", "--epochs", 1, "-r", 1]
    argv += ["--save_dir", tmp_path, "--gpus", 2, "--device", "cpu"]
    done = run(*argv)
    assert done.returncode == 0, done.stderr
    assert "Batches of 20, not 200, for 60 training pictures" in done.stdout
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["flags"]["gpus"], record["batch_size"]) == (2, 20)
    # A run that goes on with another number of devices keeps its batches.
    argv = ["--resume", "--epochs", "2", "--save_dir", str(tmp_path)]
    assert capsulenet.main(argv) == 0
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["batch_size"] == 20


@pytest.mark.slow
@tensorflow_only
def test_two_replicas_end_with_the_weights_of_one_on_odd_batches(tmp_path):
    write_data(tmp_path / "data.npz", 7, 3)
    argv = ["--dataset", str(tmp_path / "data.npz"), "--batch_size", "4"]
    argv += ["--epochs", "3", "--save_dir"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert capsulenet.main([*argv, str(one)]) == 0
    done = run(*argv, two, "--gpus", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    ours, theirs = weights_of(one), weights_of(two)
    assert ours.keys() == theirs.keys()
    for name, expected in ours.items():
        np.testing.assert_allclose(
            theirs[name], expected, atol=1e-4, err_msg=name
        )


@tensorflow_only
def test_more_gpus_than_there_are_is_refused(capsys, tmp_path):
    import tensorflow as tf

    found = len(tf.config.list_physical_devices("GPU"))
    status = module().main(["--gpus", "99", "--save_dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert status == 2 and message.count("\n") == 1
    assert "99 GPUs" in message and f"sees {found};" in message
    assert "--device cpu" in message
    assert list(tmp_path.iterdir()) == []


def test_other_backends_are_refused(tmp_path):
    pytest.importorskip("jax")
    done = run(
        *("--gpus", 2, "--device", "cpu", "--save_dir", tmp_path),
        KERAS_BACKEND="jax",
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "TensorFlow backend, got 'jax'" in last and "Traceback" not in last
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@tensorflow_only
def test_model_of_two_devices_is_tested_and_resumed_on_two(runs):
    _, two, _ = runs
    argv = ["--gpus", 2, "--device", "cpu", "--save_dir", two]
    done = run("-t", "-w", two / "trained_model.keras", *argv)
    assert done.returncode == 0, done.stderr
    error = utils.read_log(two / "log.csv")["test_error"][-1]
    assert f"Test error: {error:.2f} %" in done.stdout
    done = run("--resume", "--epochs", 11, *argv)
    assert done.returncode == 0, done.stderr
    assert utils.read_log(two / "log.csv")["epoch"].tolist() == list(range(11))
