"""Training on several devices, with a CPU that is split into two."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import bars
from running import SHAPE, Run, command, message_of, weights_of

from capsnet.cli import checks, settings, telling

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

SCRIPT = Path(__file__).parents[2] / "capsulenet-multi-gpu.py"
TWO = ("--gpus", 2, "--device", "cpu")

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="MirroredStrategy is TensorFlow's",
)


def split(folder, *argv, **environment):
    """Runs the script in a process of its own: it splits the CPU."""
    argv = map(str, (*argv, *TWO, "--save_dir", folder))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *argv],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Run(Path(folder), done.returncode, done.stdout, done.stderr)


def write_data(path, train, test):
    """Bars, and test labels by chance: no two orders make as many errors."""
    x_train, y_train = bars(train, SHAPE)
    x_test, _ = bars(test, SHAPE, seed=1)
    y_test = np.random.default_rng(2).integers(0, 3, test)
    y_test[:3] = range(3)
    np.savez(
        path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test
    )
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ten steps with one device and with two.

    An epoch is one batch of all the 20 pictures. Two devices do not divide
    the 53 pictures of the test.
    """
    folder = tmp_path_factory.mktemp("runs")
    path = write_data(folder / "data.npz", 20, 53)
    argv = ["--dataset", path, "--epochs", 10, "--batch_size", 20]
    one = command(folder / "one", *argv)
    two = split(folder / "two", *argv)
    assert one.status == two.status == 0, two.err
    return one, two


@tensorflow_only
def test_two_replicas_train_like_one_for_ten_steps(runs):
    ours, theirs = (run.log() for run in runs)
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
    one, two = runs
    errors = two.log()["test_error"]
    for epoch, error in enumerate(errors, 1):
        wrong = round(error / 100 * 53)
        expected = f"Epoch {epoch}: test error {error:.2f} % ({wrong} of 53)"
        assert expected in two.out.splitlines()
    # Predictions come back in the order of the pictures.
    expected = one.log()["test_error"]
    np.testing.assert_allclose(errors, expected, atol=100 * 1.5 / 53)
    assert "Training on 2 devices" in two.out


def test_interrupted_run_is_told_to_go_on_with_its_devices(tmp_path):
    argv = [*map(str, TWO), "--save_dir", str(tmp_path)]
    task = settings.read(checks.parse_args(argv, multi_gpu=True))
    # A task that goes on has a checkpoint.
    arguments = {**task.arguments, "resumed": {}}
    message = telling.interrupted(
        dataclasses.replace(task, arguments=arguments)
    )
    flags = f"--resume --save_dir {tmp_path} --device cpu --gpus 2"
    assert message.endswith(f"capsulenet-multi-gpu.py {flags}")


@tensorflow_only
def test_default_batch_grows_with_the_devices(tmp_path):
    path = write_data(tmp_path / "data.npz", 60, 3)
    done = split(tmp_path, "--dataset", path, "--epochs", 1, "-r", 1)
    assert done.status == 0, done.err
    assert "Batches of 20, not 200, for 60 training pictures" in done.out
    record = done.record()
    assert (record["flags"]["gpus"], record["batch_size"]) == (2, 20)
    # A run that goes on with another number of devices keeps its batches.
    again = command(tmp_path, "--resume", "--epochs", 2)
    assert again.status == 0, again.err
    assert again.record()["batch_size"] == 20


@pytest.mark.slow
@tensorflow_only
@pytest.mark.parametrize("model", ["capsnet", "efficient"])
def test_two_replicas_end_with_the_weights_of_one_on_odd_batches(
    tmp_path, model
):
    """Blank pictures fill up a batch; they are in no statistics.

    Where they were, or each device had its own, the small network's kernels
    would differ by 6e-3 and more; what rounding alone makes of tiny gradients,
    Adam lets grow to 1e-3.
    """
    path = write_data(tmp_path / "data.npz", 7, 3)
    argv = ["--dataset", path, "--batch_size", 4, "--epochs", 6]
    argv += ["--lr_schedule", "cosine", "--warmup", 1, "--ema", 0.9]
    argv += ["--model", model]
    one, two = command(tmp_path / "1", *argv), split(tmp_path / "2", *argv)
    assert one.status == two.status == 0, two.err
    ours, theirs = (weights_of(run.model()) for run in (one, two))
    assert ours.keys() == theirs.keys()
    tolerance = 1e-4 if model == "capsnet" else 2e-3
    for name, expected in ours.items():
        np.testing.assert_allclose(theirs[name], expected, atol=tolerance)


@pytest.mark.slow
@tensorflow_only
def test_run_of_two_devices_is_tested_and_resumed(runs):
    _, two = runs
    done = command(two.folder, "-t", "-w", two.model_path())
    assert f"Test error: {two.log()['test_error'][-1]:.2f} %" in done.out
    done = split(two.folder, "--resume", "--epochs", 11)
    assert done.status == 0, done.err
    assert two.log()["epoch"].tolist() == list(range(11))


@tensorflow_only
@pytest.mark.parametrize(
    "argv, asked", [(["--gpus", "60"], "60 GPUs"), ([], "all GPUs")]
)
def test_more_gpus_than_there_are_is_refused(capsys, tmp_path, argv, asked):
    import tensorflow as tf

    # The script as a module; its name is none that `import` takes.
    spec = importlib.util.spec_from_file_location("multi_gpu", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    found = len(tf.config.list_physical_devices("GPU"))
    if found and not argv:
        pytest.skip("there is a GPU, so all of them are enough")
    status = script.main([*argv, "--save_dir", str(tmp_path)])
    message = capsys.readouterr().err
    assert status == 2 and message.count("\n") == 1
    assert f"for {asked}," in message and f"sees {found};" in message
    assert "--device cpu" in message
    assert list(tmp_path.iterdir()) == []


def test_a_backend_without_several_devices_is_refused(tmp_path):
    pytest.importorskip("torch")
    done = split(tmp_path, KERAS_BACKEND="torch")
    message = message_of(done._replace(err=done.err.splitlines()[-1] + "\n"))
    assert "KERAS_BACKEND=jax or tensorflow, got 'torch'" in message
    assert "Keras 3.16" in message and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []
