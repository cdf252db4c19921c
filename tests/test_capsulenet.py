"""Tests of capsulenet.py: the models, the loss, and the command line.

The command runs in this process on pictures of 17x17; a run that several
tests look at is made once.
"""

import contextlib
import importlib.util
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from conftest import bars, write_bars
from PIL import Image

import capsulenet
import utils
from capsnet import files  # noqa: E402  # noqa: E402
from capsnet.cli.options import NAMED_DATASETS  # noqa: E402
from capsnet.cli.settings import parse_args  # noqa: E402
from capsnet.data import sources  # noqa: E402
from capsnet.data.batches import (
    ShiftedBatches,  # noqa: E402
    choose_batch_size,  # noqa: E402
    pipeline,  # noqa: E402
)
from capsnet.data.folders import TEST_FRACTION  # noqa: E402
from capsnet.data.sources import (
    BUILT_IN,  # noqa: E402
    Dataset,  # noqa: E402
    hold_out,  # noqa: E402
)
from capsnet.devices import tensorflow  # noqa: E402
from capsnet.evaluation import loading  # noqa: E402
from capsnet.evaluation.figures import spread  # noqa: E402
from capsnet.evaluation.loading import (
    class_number,  # noqa: E402
    load_for_testing,  # noqa: E402
    unseen_fraction,  # noqa: E402
)
from capsnet.files import (
    locked,  # noqa: E402
    read_state,  # noqa: E402
    state_sha256,  # noqa: E402
)
from capsnet.messages import UserError  # noqa: E402
from capsnet.models import inference  # noqa: E402  # noqa: E402
from capsnet.models.inference import lengths_model  # noqa: E402
from capsnet.models.networks import (
    attach,  # noqa: E402
    reconstruction_weight,  # noqa: E402
)
from capsnet.models.saving import (
    load_model,  # noqa: E402
    save_model,  # noqa: E402
)
from capsnet.training import callbacks  # noqa: E402
from capsnet.training import checkpoints as training_checkpoints  # noqa: E402
from capsnet.training.callbacks import (
    EpochClock,  # noqa: E402
    Log,  # noqa: E402
)
from capsnet.training.checkpoints import save_checkpoint  # noqa: E402
from capsulenet import CapsNet, Decay, margin_loss  # noqa: E402

ROOT = Path(__file__).parents[1]
SHAPE, N_CLASS = (17, 17, 1), 3
# Standard deviation of a normal distribution cut off at two deviations.
CUT_OFF = 0.8796


class Run(NamedTuple):
    """What a command left: its folder, exit status and what it printed."""

    folder: Path
    status: int
    out: str
    err: str

    def log(self):
        return utils.read_log(self.folder / "log.csv")

    def record(self):
        return json.loads((self.folder / "run.json").read_text())

    def model_path(self):
        return str(self.folder / "trained_model.keras")

    def model(self):
        return keras.models.load_model(self.model_path())


def command(folder, *argv):
    """Runs the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = capsulenet.main(
                [*map(str, argv), "--save_dir", str(folder)]
            )
        except SystemExit as error:
            status = error.code
    return Run(Path(folder), status, out.getvalue(), err.getvalue())


def train(folder, data, *argv):
    """Trains in steps of 20 pictures, two in an epoch of `data`."""
    return command(folder, "--dataset", data, "--batch_size", 20, *argv)


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
    return {
        f"{layer.name}/{weight.name}": keras.ops.convert_to_numpy(weight)
        for part in model.layers
        for layer in getattr(part, "layers", [part])
        for weight in layer.weights
    }


def same(weights, others):
    return weights.keys() == others.keys() and all(
        np.array_equal(weights[name], others[name]) for name in weights
    )


def reference_squash(vector):
    """Eq. 1."""
    squared = np.sum(np.square(vector), -1, keepdims=True)
    return squared / (1 + squared) * vector / np.sqrt(squared)


def reference_margin_loss(y_true, y_pred):
    """Eq. 4, class by class."""
    losses = []
    for labels, lengths in zip(y_true, y_pred):
        loss = 0.0
        for t, v in zip(labels, lengths):
            loss += t * max(0.0, 0.9 - v) ** 2
            loss += 0.5 * (1 - t) * max(0.0, v - 0.1) ** 2
        losses.append(loss)
    return losses


@pytest.fixture(autouse=True)
def dtype_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 and 12 pictures, of which 4 of the test have a wrong label.

    So the test error is never zero.
    """
    path = write_bars(tmp_path_factory.mktemp("data") / "data.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["y_test"][:4] = (arrays["y_test"][:4] + 1) % N_CLASS
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def arrays(data):
    with np.load(data) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(3)
    return CapsNet(SHAPE, N_CLASS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Four epochs without an interruption."""
    folder = tmp_path_factory.mktemp("trained")
    return train(folder, data, "--epochs", 4)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data):
    """No decoder, and held-out data that choose; the last epoch is spoilt."""
    folder = tmp_path_factory.mktemp("plain")
    begin = EpochClock.on_epoch_begin

    def spoil(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 2:
            kernel = self.model.get_layer("digitcaps").kernel
            kernel.assign(0 * kernel)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochClock, "on_epoch_begin", spoil)
        return train(
            folder,
            data,
            *("--epochs", 3, "--lam_recon", 0, "--val_fraction", 0.3),
        )


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, data, trained):
    """Stopped in epoch 3, between the row in the log and the checkpoint."""
    folder = tmp_path_factory.mktemp("interrupted")
    save = save_checkpoint

    def stop(folder, model, state):
        if state["epochs_done"] == 3:
            raise KeyboardInterrupt
        save(folder, model, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "save_checkpoint", stop)
        run = train(folder, data, "--epochs", 4)
    return run, run.log()


@pytest.fixture(scope="module")
def resumed(interrupted):
    return command(interrupted[0].folder, "--resume")


@pytest.fixture(scope="module")
def restarted(tmp_path_factory, data, trained):
    """From the weights of `trained`, so slowly that it leaves them as is."""
    folder = tmp_path_factory.mktemp("restarted")
    debug = ["--debug"] if importlib.util.find_spec("tensorboard") else []
    return train(
        folder,
        data,
        *("--epochs", 1, "--lr", 1e-12, "--seed", 5),
        *("-w", trained.model_path(), *debug),
    )


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, data):
    """Averaged weights; also the bias of conv1 and the batch of each step."""
    steps, batches = [], []
    end = EpochClock.on_train_batch_end

    def watch(self, batch, logs=None):
        end(self, batch, logs)
        steps.append(
            keras.ops.convert_to_numpy(self.model.get_layer("conv1").bias)
        )
        batches.append(self.batches[batch][0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochClock, "on_train_batch_end", watch)
        folder = tmp_path_factory.mktemp("averaged")
        run = train(
            folder,
            data,
            *("--epochs", 2, "--lam_recon", 0, "--val_fraction", 0.3),
            *("--ema", 0.75, "--seed", 1),
        )
    return run, steps, batches


# The models and the loss.


def test_models_have_the_inputs_and_outputs_of_their_names(models):
    train_model, eval_model, manipulate_model = models
    image, label = (None, *SHAPE), (None, N_CLASS)
    lengths, noise = (None, N_CLASS), (None, N_CLASS, 16)
    for model, inputs, outputs in (
        (
            train_model,
            {"image": image, "label": label},
            {"capsnet": lengths, "decoder": image},
        ),
        (
            manipulate_model,
            {"image": image, "label": label, "noise": noise},
            {"decoder": image},
        ),
        (eval_model, None, {"capsnet": lengths, "decoder": image}),
    ):
        if inputs is None:
            assert model.input.shape == image and model.input.name == "image"
        else:
            found = {name: x.shape for name, x in model.input.items()}
            assert found == inputs
        assert {name: x.shape for name, x in model.output.items()} == outputs
    names = {layer.name for layer in eval_model.layers}
    assert names >= {"conv1", "primarycap", "digitcaps", "capsnet", "decoder"}


def test_training_changes_all_three_models():
    keras.utils.set_random_seed(0)
    train_model, eval_model, manipulate_model = CapsNet(SHAPE, N_CLASS)
    pictures, labels = bars(6, SHAPE)
    x = pictures.astype("float32") / 255
    label = np.eye(N_CLASS, dtype="float32")[labels]
    noise = np.zeros((6, N_CLASS, 16), "float32")
    inputs = {"image": x, "label": label, "noise": noise}
    before = eval_model.predict(x, verbose=0)
    drawn = manipulate_model.predict(inputs, verbose=0)["decoder"]
    capsulenet.compile_model(train_model, 0.001, 0.1)
    train_model.train_on_batch(
        {"image": x, "label": label}, {"capsnet": label, "decoder": x}
    )
    after = eval_model.predict(x, verbose=0)
    trained = train_model.predict({"image": x, "label": label}, verbose=0)
    redrawn = manipulate_model.predict(inputs, verbose=0)["decoder"]
    for name in ("capsnet", "decoder"):
        assert np.abs(after[name] - before[name]).max() > 1e-3
    assert np.abs(redrawn - drawn).max() > 1e-3
    np.testing.assert_allclose(after["capsnet"], trained["capsnet"], atol=1e-6)
    np.testing.assert_allclose(redrawn, trained["decoder"], atol=1e-6)


def test_decoder_sees_the_longest_capsule_or_the_labelled_one(models):
    train_model, eval_model, _ = models
    pictures, _ = bars(5, SHAPE)
    x = pictures.astype("float32") / 255
    digitcaps = eval_model.get_layer("digitcaps").output
    capsules = keras.Model(eval_model.input, digitcaps).predict(x, verbose=0)
    outputs = eval_model.predict(x, verbose=0)
    lengths = np.sqrt(np.sum(capsules**2, -1))
    np.testing.assert_allclose(outputs["capsnet"], lengths, atol=1e-6)
    decoder = eval_model.get_layer("decoder")
    # A class that is not the longest one.
    labels = (lengths.argmax(-1) + 1) % N_CLASS
    one_hot = np.eye(N_CLASS, dtype="float32")[labels]
    labelled = train_model.predict({"image": x, "label": one_hot}, verbose=0)
    for kept, received in (
        (lengths.argmax(-1), outputs["decoder"]),
        (labels, labelled["decoder"]),
    ):
        masked = np.zeros_like(capsules)
        for sample, number in enumerate(kept):
            masked[sample, number] = capsules[sample, number]
        expected = decoder.predict(masked.reshape(5, -1), verbose=0)
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_margin_loss_is_equation_4_for_each_picture():
    generator = np.random.default_rng(0)
    y_pred = generator.uniform(size=(7, 4)).astype("float32")
    # Inside, on and outside of both margins.
    y_pred[0] = 0.0, 0.1, 0.9, 1.0
    y_true = np.eye(4, dtype="float32")[generator.integers(0, 4, 7)]
    y_true[1] = 1, 0, 0, 1  # Two digits in one picture.
    loss = keras.ops.convert_to_numpy(margin_loss(y_true, y_pred))
    assert loss.shape == (7,)
    expected = reference_margin_loss(y_true, y_pred.astype("float64"))
    np.testing.assert_allclose(loss, expected, atol=1e-6)


def test_reconstruction_weighs_as_in_the_paper():
    assert reconstruction_weight("classic", (28, 28, 1), 10) == pytest.approx(
        0.392
    )
    assert reconstruction_weight("authors", (28, 28, 1), 10) == pytest.approx(
        7.84
    )
    # 0.0005 for each value; two times the classes for the authors.
    assert reconstruction_weight("classic", (32, 32, 3), 5) == pytest.approx(
        1.536
    )
    assert reconstruction_weight("authors", (32, 32, 3), 5) == pytest.approx(
        15.36
    )
    assert reconstruction_weight(0.25, (28, 28, 1), 10) == 0.25


@pytest.mark.parametrize("lam_recon", ("classic", "authors"))
def test_loss_is_the_classic_or_a_multiple_of_the_authors_one(lam_recon):
    keras.utils.set_random_seed(0)
    train_model = CapsNet((28, 28, 1), 10)[0]
    weight = reconstruction_weight(lam_recon, (28, 28, 1), 10)
    capsulenet.compile_model(train_model, 0.001, weight)
    generator = np.random.default_rng(0)
    x = generator.uniform(size=(4, 28, 28, 1)).astype("float32")
    label = np.eye(10, dtype="float32")[[3, 1, 4, 9]]
    inputs = {"image": x, "label": label}
    figures = train_model.test_on_batch(
        inputs, {"capsnet": label, "decoder": x}, return_dict=True
    )
    outputs = train_model.predict(inputs, verbose=0)
    total, margins, squares = 0.0, [], []
    for sample in range(4):
        margin, squared = 0.0, 0.0
        for t, v in zip(label[sample], outputs["capsnet"][sample]):
            cost = (
                t * max(0, 0.9 - v) ** 2 + 0.5 * (1 - t) * max(0, v - 0.1) ** 2
            )
            # The authors halve this cost, and average it over the classes.
            margin += cost if lam_recon == "classic" else 0.5 * cost / 10
        for real, made in zip(x[sample].flat, outputs["decoder"][sample].flat):
            squared += (float(real) - float(made)) ** 2
        total += (margin + 0.0005 * squared) / 4
        margins.append(margin)
        squares.append(squared)
    # The authors' total, so multiplied, is our loss: the same gradient.
    factor = 1 if lam_recon == "classic" else 20
    assert figures["loss"] == pytest.approx(factor * total, rel=1e-4)
    # Logged under these names, and not weighted.
    mean_margin = factor * np.mean(margins)
    assert figures["capsnet_loss"] == pytest.approx(mean_margin, rel=1e-4)
    mean_square = np.mean(squares) / 784
    assert figures["decoder_loss"] == pytest.approx(mean_square, rel=1e-4)
    right = np.mean(outputs["capsnet"].argmax(-1) == [3, 1, 4, 9])
    assert figures["capsnet_accuracy"] == pytest.approx(right)


def glorot(shape):
    """Deviation by Glorot and Bengio, the last two sizes being in and out."""
    field = math.prod(shape[:-2])
    return math.sqrt(2 / (field * shape[-2] + field * shape[-1]))


@pytest.mark.parametrize("init", ("length", "glorot", "authors"))
def test_initial_weights_have_the_deviations_of_init(init):
    keras.utils.set_random_seed(0)
    weights = weights_of(CapsNet(SHAPE, N_CLASS, init=init)[1])
    expected = {
        name: glorot(weight.shape)
        for name, weight in weights.items()
        if name.endswith("/kernel")
    }
    assert len(expected) == 6
    if init == "length":
        # As the layer's docstring says.
        num_capsule, inputs, dim_capsule, _ = weights["digitcaps/kernel"].shape
        deviation = num_capsule / math.sqrt(inputs * dim_capsule)
        expected["digitcaps/kernel"] = deviation
    if init == "authors":
        expected = dict.fromkeys(expected, 0.1 * CUT_OFF)
        expected["conv1/kernel"] = 0.05 * CUT_OFF
    for name, deviation in expected.items():
        kernel = weights[name]
        assert np.std(kernel) == pytest.approx(deviation, rel=0.03), name
        assert abs(np.mean(kernel)) < 0.05 * deviation
    if init == "authors":
        assert np.abs(weights["conv1/kernel"]).max() <= 0.1
    bias = 0.1 if init == "authors" else 0.0
    for name in ("conv1", "dense1", "dense2", "dense3"):
        np.testing.assert_allclose(weights[f"{name}/bias"], bias)


def test_capsule_bias_is_where_capsules_begin():
    weights = weights_of(CapsNet(SHAPE, N_CLASS)[1])
    assert "digitcaps/bias" not in weights
    np.testing.assert_array_equal(weights["primarycap/bias"], 0)
    weights = weights_of(CapsNet(SHAPE, N_CLASS, capsule_bias=0.1)[1])
    assert weights["digitcaps/bias"].shape == (N_CLASS, 16)
    np.testing.assert_allclose(weights["digitcaps/bias"], 0.1)
    np.testing.assert_allclose(weights["primarycap/bias"], 0.1)


def test_primary_scale_divides_the_convolution_but_not_the_bias():
    keras.utils.set_random_seed(0)
    model = CapsNet(
        SHAPE, N_CLASS, init="authors", capsule_bias=0.1, primary_scale=1 / 32
    )[1]
    x = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    layer = model.get_layer("primarycap")
    conv1 = model.get_layer("conv1").output
    both = keras.Model(model.input, [conv1, layer.output])
    features, received = both.predict(x, verbose=0)
    kernel = keras.ops.convert_to_numpy(layer.conv.kernel)
    height, width = kernel.shape[:2]
    down, right = layer.conv.strides
    capsules = []
    for top in range(0, features.shape[1] - height + 1, down):
        for left in range(0, features.shape[2] - width + 1, right):
            window = features[:, top : top + height, left : left + width]
            sums = np.tensordot(window, kernel, 3)
            capsules.append((sums / 32 + 0.1).reshape(2, 32, 8))
    expected = reference_squash(np.concatenate(capsules, axis=1))
    np.testing.assert_allclose(received, expected, atol=1e-5)


def test_rate_decays_by_epochs_or_continuously_to_a_floor():
    # 8 steps in an epoch.
    stairs = Decay(0.001, 8, 0.9, staircase=True)
    for step in (0, 7, 8, 39, 40):
        expected = 0.001 * 0.9 ** (step // 8)
        assert float(stairs(step)) == pytest.approx(expected, rel=1e-5)
    smooth = Decay(0.001, 2000, 0.96, minimum=1e-6)
    for step in (0, 1, 1000, 2000, 250_000, 338_000, 340_000, 10**6):
        expected = max(1e-6, 0.001 * 0.96 ** (step / 2000))
        assert float(smooth(step)) == pytest.approx(expected, rel=1e-4)
    assert float(smooth(10**6)) == pytest.approx(1e-6)
    copy = Decay.from_config(smooth.get_config())
    assert float(copy(10**6)) == float(smooth(10**6))
    assert float(copy(1000)) == float(smooth(1000))


# Training.


def test_training_leaves_its_files_and_no_others(trained):
    assert trained.status == 0, trained.err
    assert sorted(os.listdir(trained.folder)) == [
        ".lock",
        "checkpoint",
        "log.csv",
        "log.png",
        "run.json",
        "trained_model.keras",
    ]
    assert sorted(os.listdir(trained.folder / "checkpoint")) == [
        "epoch-0004.weights.h5",
        "state.json",
    ]
    with Image.open(trained.folder / "log.png") as picture:
        assert picture.format == "PNG"
        picture.load()


def test_record_says_how_the_model_came_about(trained, data):
    record = trained.record()
    flags = record["flags"]
    assert flags["dataset"] == data
    assert (flags["seed"], flags["epochs"], flags["batch_size"]) == (0, 4, 20)
    assert record["class_names"] == ["0", "1", "2"]
    assert record["input_shape"] == list(SHAPE)
    assert record["lam_recon"] == pytest.approx(0.0005 * 17 * 17)
    versions = record["environment"]["versions"]
    assert versions["keras"] == keras.__version__
    assert record["environment"]["backend"] == keras.backend.backend()
    assert record["parameters"] == trained.model().count_params()
    assert len(record["seconds_per_epoch"]) == 4
    assert min(record["seconds_per_epoch"]) > 0
    assert record["epoch"] == 4
    assert record["test_error"] == trained.log()["test_error"][-1]
    # The model carries the same record, but for what is known at the end.
    carried = load_model(trained.model_path())[1]
    assert carried["flags"] == flags
    assert carried["test_error"] == record["test_error"]


def test_log_has_a_row_for_each_epoch(trained):
    log = trained.log()
    assert list(log) == [
        "epoch",
        "loss",
        "capsnet_loss",
        "capsnet_accuracy",
        "decoder_loss",
        "learning_rate",
        "test_error",
    ]
    assert log["epoch"].tolist() == [0, 1, 2, 3]
    total = log["capsnet_loss"] + 0.0005 * 17 * 17 * log["decoder_loss"]
    np.testing.assert_allclose(log["loss"], total, rtol=1e-4)
    assert log["capsnet_loss"][-1] < log["capsnet_loss"][0] / 2


def test_rate_in_the_log_is_multiplied_after_each_epoch(trained):
    expected = [0.001 * 0.9**epoch for epoch in range(4)]
    rates = trained.log()["learning_rate"]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_each_epoch_prints_its_test_error(trained):
    lines = trained.out.splitlines()
    for epoch, error in enumerate(trained.log()["test_error"], 1):
        wrong = round(12 * error / 100)
        line = f"Epoch {epoch}: test error {error:.2f} % ({wrong} of 12)"
        assert lines.count(line) == 1


def test_test_error_is_that_of_the_saved_model(trained, arrays):
    x = arrays["x_test"].astype("float32") / 255
    lengths = trained.model().predict(x, verbose=0)["capsnet"]
    wrong = sum(
        int(np.argmax(row)) != label
        for row, label in zip(lengths, arrays["y_test"])
    )
    # 4 of the labels are wrong.
    assert 1 <= wrong <= 11
    assert trained.log()["test_error"][-1] == pytest.approx(100 * wrong / 12)


def test_training_ends_with_the_error_and_the_command_to_test(trained):
    error, written, advice = trained.out.splitlines()[-3:]
    figure = trained.record()["test_error"]
    assert error == f"Test error: {figure:.2f} % (epoch 4)"
    assert str(trained.folder) in written
    assert f"capsulenet.py -t -w {trained.model_path()}" in advice


def test_rate_of_the_last_step_is_printed(trained):
    # Four epochs, each 0.9 of the one before.
    line = "Learning rate 0.001, in the last step 0.000729\n"
    assert line in trained.out


def test_interruption_tells_how_to_go_on(interrupted):
    run, log = interrupted
    message = message_of(run, status=130)
    assert f"--resume --save_dir {run.folder}" in message
    # One row more than there are epochs in the checkpoint.
    assert log["epoch"].tolist() == [0, 1, 2]
    state = read_state(run.folder / "checkpoint")
    assert state["epochs_done"] == 2


@pytest.fixture
def unfinished(tmp_path, trained):
    """A copy of `trained`'s folder, as if it were to have nine epochs."""
    folder = tmp_path / "unfinished"
    shutil.copytree(trained.folder, folder)
    path = folder / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    state["flags"]["epochs"] = 9
    state["state_sha256"] = state_sha256(state)
    path.write_text(json.dumps(state))
    return folder


def stop(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "owner, name",
    (
        # Before the first of the old run's files is opened, at the first row
        # of the log, and between the first weights and their state.
        (Log, "on_train_begin"),
        (callbacks, "save_checkpoint"),
        (training_checkpoints, "state_sha256"),
    ),
)
def test_new_run_that_is_stopped_leaves_no_mixture(
    unfinished, data, monkeypatch, owner, name
):
    state = unfinished / "checkpoint" / "state.json"
    old = (unfinished / "log.csv").read_bytes()
    sha256 = state_sha256

    def stop_new(content):
        if content["epochs_done"] == 1:
            raise KeyboardInterrupt
        return sha256(content)

    patched = stop_new if name == "state_sha256" else stop
    monkeypatch.setattr(owner, name, patched)
    run = train(unfinished, data, "--epochs", 2, "-r", 1, "--lam_recon", 0)
    assert "nothing is saved yet" in message_of(run, status=130)
    assert (
        f"Replacing the unfinished run in {unfinished} (4 of 9 epochs done), "
        "with which --resume would have gone on\n"
    ) in run.out
    assert not state.exists()
    for old_file in ("run.json", "log.png"):
        assert not (unfinished / old_file).exists()
    # It tells its own record, and there is no other one yet.
    assert (unfinished / "trained_model.keras").exists()
    log = (unfinished / "log.csv").read_bytes()
    assert (log == old) == (name == "on_train_begin")
    monkeypatch.undo()
    message = message_of(command(unfinished, "--resume"))
    assert "found no checkpoint" in message


def test_new_run_that_cannot_start_leaves_the_old_one(unfinished, data):
    before = contents(unfinished)
    run = train(unfinished, data, "--conv_kernel", 99)
    assert "expected a conv_kernel" in message_of(run)
    assert "Replacing" not in run.out
    assert contents(unfinished) == before


def test_new_run_says_that_it_replaces_a_finished_one(
    tmp_path, data, trained, monkeypatch
):
    shutil.copytree(trained.folder, tmp_path / "run")
    monkeypatch.setattr(Log, "on_train_begin", stop)
    run = train(tmp_path / "run", data, "--epochs", 2, "-r", 1)
    assert run.status == 130
    notice = f"Replacing the finished run in {tmp_path / 'run'} (4 epochs)\n"
    assert notice in run.out and "--resume" not in run.out
    assert not (tmp_path / "run" / "checkpoint" / "state.json").exists()


def test_same_seed_gives_the_same_log(trained, interrupted):
    log = interrupted[1]
    for name, values in trained.log().items():
        assert values[:3].tolist() == log[name].tolist(), name


def test_resumed_run_is_the_uninterrupted_one(trained, resumed):
    assert resumed.status == 0, resumed.err
    log = (resumed.folder / "log.csv").read_bytes()
    assert log == (trained.folder / "log.csv").read_bytes()
    assert same(weights_of(trained.model()), weights_of(resumed.model()))
    # Epochs 1 and 2 were not run again.
    assert "Epoch 2:" not in resumed.out and "Epoch 3:" in resumed.out
    record, expected = resumed.record(), trained.record()
    assert len(record["seconds_per_epoch"]) == 4
    for run in (record, expected):
        for name in ("seconds_per_epoch", "flags"):
            del run[name]
    assert record == expected


def test_resuming_a_finished_run_says_that_it_is_finished(resumed):
    before = contents(resumed.folder / "checkpoint")
    (resumed.folder / "run.json").unlink()  # As if killed just before it.
    run = command(resumed.folder, "--resume")
    assert run.status == 0, run.err
    lines = run.out.splitlines()
    expected = "The run is finished: 4 of 4 epochs; a larger --epochs goes on"
    assert expected in lines
    assert "Training on" not in run.out and "Epoch" not in run.out
    assert run.record()["epoch"] == 4
    assert contents(resumed.folder / "checkpoint") == before


def test_finished_run_goes_on_to_more_epochs(resumed, monkeypatch):
    before = resumed.log()
    hashed = []
    sha256 = files.sha256

    def watch(path):
        hashed.append(Path(path).name)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", watch)
    run = command(resumed.folder, "--resume", "--epochs", 5)
    assert run.status == 0, run.err
    # Each file of weights once: hundreds of megabytes for large pictures.
    assert len(hashed) == 2 and hashed[0] == "epoch-0004.weights.h5"
    log = run.log()
    assert log["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert log["loss"][:4].tolist() == before["loss"].tolist()
    assert log["learning_rate"][4] == pytest.approx(0.001 * 0.9**4)
    assert run.record()["epoch"] == 5


@pytest.mark.parametrize(
    "argv, expected",
    (
        (["--routings", 1], "--routings 3, got 1"),
        (["--lr", 0.1], "--lr 0.001, got 0.1"),
        (["--epochs", 3], "--epochs 4, got 3"),
    ),
)
def test_resume_with_other_flags_is_refused(trained, argv, expected):
    before = contents(trained.folder)
    run = command(trained.folder, "--resume", *argv)
    assert expected in message_of(run)
    assert contents(trained.folder) == before


def test_resume_without_a_checkpoint_is_refused(tmp_path):
    message = message_of(command(tmp_path, "--resume"))
    assert "no checkpoint" in message and str(tmp_path) in message


def test_damaged_checkpoint_is_refused_and_nothing_overwritten(
    tmp_path, trained
):
    for path, content in contents(trained.folder).items():
        if path.suffix == ".h5":
            content = content[:-1] + bytes([content[-1] ^ 1])
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    before = contents(tmp_path)
    run = command(tmp_path, "--resume", "--epochs", 5)
    assert "is damaged" in message_of(run)
    assert contents(tmp_path) == before


def test_second_run_in_a_folder_is_refused(tmp_path, data, trained):
    with locked(tmp_path):
        for argv in (["--epochs", 1], ["-t", "-w", trained.model_path()]):
            message = message_of(train(tmp_path, data, *argv))
            assert "another run is writing" in message
            assert "another --save_dir" in message
    assert contents(tmp_path) == {}


def test_held_out_pictures_choose_the_epoch_that_is_kept(plain, data):
    assert plain.status == 0, plain.err
    log = plain.log()
    assert list(log) == [
        "epoch",
        "loss",
        "capsnet_accuracy",
        "val_loss",
        "val_capsnet_accuracy",
        "learning_rate",
        "test_error",
    ]
    scores = list(zip(log["val_capsnet_accuracy"], -log["val_loss"]))
    best = scores.index(max(scores))
    assert best < 2
    assert plain.record()["epoch"] == best + 1
    assert plain.record()["test_error"] == log["test_error"][best]
    assert f"(epoch {best + 1})" in plain.out
    # 30 % of the 40 pictures, and none of them is trained on.
    assert "Training on 28 pictures" in plain.out
    _, x, y = hold_out(sources.load(data), 0.3, seed=0)
    assert len(x) == 12
    lengths = plain.model().predict(x.astype("float32") / 255, verbose=0)
    lengths = lengths["capsnet"].astype("float64")
    accuracy = np.mean(lengths.argmax(-1) == y)
    assert accuracy == pytest.approx(log["val_capsnet_accuracy"][best])
    loss = np.mean(reference_margin_loss(np.eye(N_CLASS)[y], lengths))
    assert loss == pytest.approx(log["val_loss"][best], rel=1e-3)


def test_without_reconstruction_there_is_no_decoder(plain):
    names = {layer.name for layer in plain.model().layers}
    assert "digitcaps" in names and not names & {"decoder", "mask"}
    assert plain.record()["lam_recon"] == 0
    train_model, eval_model, manipulate_model = attach(plain.model())
    assert manipulate_model is None
    assert list(train_model.output) == list(eval_model.output) == ["capsnet"]


def test_training_starts_from_given_weights(trained, restarted):
    assert restarted.status == 0, restarted.err
    expected = weights_of(trained.model())
    received = weights_of(restarted.model())
    assert expected.keys() == received.keys()
    for name in expected:
        np.testing.assert_allclose(received[name], expected[name], atol=1e-9)


def test_debug_logs_histograms_of_the_weights(restarted):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(
        str(restarted.folder / "tensorboard" / "train")
    ).Reload()
    histograms = [
        tag for tag in events.Tags()["tensors"] if tag.endswith("histogram")
    ]
    for layer in ("conv1", "primarycap", "digitcaps", "dense1"):
        assert any(layer in tag for tag in histograms), layer


def test_weights_of_another_network_are_refused(tmp_path, data, plain):
    run = train(tmp_path, data, "--epochs", 1, "-w", plain.model_path())
    message = message_of(run)
    assert "expected dense1/bias (512,), got no such weight" in message
    assert contents(tmp_path) == {}


def test_saved_weights_are_the_moving_average(averaged):
    run, steps, _ = averaged
    assert run.status == 0, run.err
    assert len(steps) == 4
    epoch = run.record()["epoch"]
    average = steps[0].astype("float64")
    for step in steps[1 : 2 * epoch]:
        average = 0.75 * average + 0.25 * step
    saved = weights_of(run.model())["conv1/bias"]
    np.testing.assert_allclose(saved, average, atol=1e-6)
    assert np.abs(saved - steps[2 * epoch - 1]).max() > 1e-4


def test_moving_average_is_what_is_validated(averaged, data):
    run, _, _ = averaged
    _, x, y = hold_out(sources.load(data), 0.3, seed=1)
    lengths = run.model().predict(x.astype("float32") / 255, verbose=0)
    losses = reference_margin_loss(np.eye(N_CLASS)[y], lengths["capsnet"])
    logged = run.log()["val_loss"][run.record()["epoch"] - 1]
    assert np.mean(losses) == pytest.approx(logged, rel=1e-3)


def test_moving_average_is_what_is_tested(averaged, arrays):
    run, _, _ = averaged
    x = arrays["x_test"].astype("float32") / 255
    lengths = run.model().predict(x, verbose=0)["capsnet"]
    wrong = int(np.sum(lengths.argmax(-1) != arrays["y_test"]))
    epoch = run.record()["epoch"]
    logged = run.log()["test_error"][epoch - 1]
    assert logged == pytest.approx(100 * wrong / 12)


def test_averaged_weights_are_in_place_while_the_test_set_is_shown(
    tmp_path, data, monkeypatch
):
    """On so few pictures both weights may make the same mistakes."""
    predict, seen = inference.predict, []

    def watch(model, x, *args):
        layer = model.model.get_layer("conv1")
        seen.append(keras.ops.convert_to_numpy(layer.bias).copy())
        return predict(model, x, *args)

    monkeypatch.setattr(capsulenet, "predict", watch)
    flags = "--epochs", 1, "--lam_recon", 0, "--ema", 0.75
    run = train(tmp_path, data, *flags)
    np.testing.assert_array_equal(seen, [weights_of(run.model())["conv1/bias"]])


@pytest.mark.parametrize(
    "fraction, largest", ((0, (0, 0)), (0.1, (1, 1)), (0.3, (5, 5)))
)
def test_training_shifts_by_the_part_that_is_asked_for(
    tmp_path, data, monkeypatch, fraction, largest
):
    made, batches = [], ShiftedBatches

    def watch(*args, **kwargs):
        made.append(batches(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(capsulenet, "ShiftedBatches", watch)
    monkeypatch.setattr(inference, "ShiftedBatches", watch)
    train(tmp_path, data, "--epochs", 1, "--shift_fraction", fraction)
    # The training pictures, then the test's.
    assert [each.shift for each in made] == [largest, (0, 0)]


def test_balanced_classes_weigh_in_the_training(tmp_path, arrays, plain):
    """Rare classes count more: the loss is the weighted one."""
    path = str(tmp_path / "rare.npz")
    y = arrays["y_train"].copy()
    y[10:] = 0
    np.savez(path, **{**arrays, "y_train": y})
    flags = "--epochs", 1, "--lr", 1e-12, "--lam_recon", 0
    flags += "--shift_fraction", 0, "--batch_size", 40
    flags += "-w", plain.model_path()
    losses = []
    for class_weight in ("none", "balanced"):
        run = train(
            tmp_path / class_weight,
            path,
            *flags,
            "--class_weight",
            class_weight,
        )
        x = arrays["x_train"].astype("float32") / 255
        lengths = run.model().predict(x, verbose=0)["capsnet"]
        each = np.array(reference_margin_loss(np.eye(N_CLASS)[y], lengths))
        if class_weight == "balanced":
            counts = [sum(y == label) for label in range(N_CLASS)]
            each *= [40 / (N_CLASS * counts[label]) for label in y]
        assert run.log()["loss"][0] == pytest.approx(each.mean(), rel=1e-4)
        losses.append(each.mean())
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)
@pytest.mark.parametrize("jit_compile, expected", (("auto", 1), ("on", 0)))
def test_operations_are_deterministic_unless_xla_orders_them(
    tmp_path, trained, monkeypatch, jit_compile, expected
):
    asked = []
    experimental = tensorflow().config.experimental
    monkeypatch.setattr(
        experimental, "enable_op_determinism", lambda: asked.append(True)
    )
    flags = "--jit_compile", jit_compile
    run = command(tmp_path, "-t", "-w", trained.model_path(), *flags)
    assert run.status == 0, run.err
    assert len(asked) == expected


def test_each_epoch_shifts_and_orders_the_pictures_anew(averaged):
    first, again = np.split(np.concatenate(averaged[2]), 2)
    assert first.shape == again.shape == (28, *SHAPE)
    equal = [np.array_equal(*pair) for pair in zip(first, again)]
    assert sum(equal) < 7


def test_another_seed_gives_another_log(plain, averaged):
    # The average does not touch the training itself.
    ours, theirs = plain.log(), averaged[0].log()
    assert list(ours) == list(theirs)
    for name in ("loss", "val_loss"):
        assert not set(ours[name]) & set(theirs[name])


def test_debug_without_tensorboard_tells_how_to_install_it(
    tmp_path, data, monkeypatch
):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: (
            None if name == "tensorboard" else find_spec(name, *args)
        ),
    )
    message = message_of(train(tmp_path, data, "--debug"))
    assert "pip install tensorboard" in message
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    "most, pictures, replicas, expected",
    (
        (100, 60_000, 1, 100),
        (128, 60_000, 1, 128),
        (100, 10_000, 1, 100),
        (100, 9_999, 1, 99),
        (128, 1_000, 1, 10),
        (100, 3, 1, 10),
        (8, 3, 1, 8),
        (800, 60_000, 8, 800),
        (400, 1_500, 4, 60),
    ),
)
def test_small_sets_have_small_batches(most, pictures, replicas, expected):
    chosen = choose_batch_size(most, pictures, replicas)
    assert chosen == expected


@pytest.mark.parametrize("recipe, most", (("classic", 100), ("paper", 128)))
def test_batches_of_a_small_set_are_printed_recorded_and_kept(
    tmp_path, data, recipe, most
):
    argv = ["--recipe", recipe, "-r", 1, "--lam_recon", 0, "--epochs", 1]
    run = command(tmp_path, "--dataset", data, *argv)
    assert run.status == 0, run.err
    line = f"Batches of 10, not {most}, for 40 training pictures: 4 steps an"
    assert line in run.out
    assert "on a CPU, in batches of 10\n" in run.out
    record = run.record()
    assert record["batch_size"] == 10
    # As it was given: the flags tell what was asked for.
    assert record["flags"]["batch_size"] == (128 if most == 128 else None)
    state = read_state(tmp_path / "checkpoint")
    run = command(tmp_path, "--resume", "--epochs", 2)
    assert run.status == 0, run.err
    assert run.record()["batch_size"] == 10 == state["batch_size"]
    resumed = read_state(tmp_path / "checkpoint")
    assert resumed["flags"]["batch_size"] == record["flags"]["batch_size"]


def test_a_batch_size_that_is_given_holds(tmp_path, data):
    argv = ["--batch_size", 100, "-r", 1, "--lam_recon", 0, "--epochs", 1]
    run = command(tmp_path, "--dataset", data, *argv)
    assert run.record()["batch_size"] == 100
    assert "Batches of" not in run.out


def test_run_of_before_that_recorded_no_batch_size_keeps_its_flag(
    tmp_path, data
):
    argv = ["-r", 1, "--lam_recon", 0, "--epochs", 1]
    run = command(tmp_path, "--dataset", data, "--batch_size", 30, *argv)
    path = tmp_path / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    del state["batch_size"]
    state["state_sha256"] = state_sha256(state)
    path.write_text(json.dumps(state))
    run = command(tmp_path, "--resume", "--epochs", 2)
    assert run.status == 0, run.err
    assert run.record()["batch_size"] == 30


def test_loss_that_is_no_number_stops_the_run(tmp_path, data):
    run = train(tmp_path, data, "--epochs", 2, "--lam_recon", 0, "--lr", 1e30)
    message = message_of(run, status=1)
    assert "the loss became nan" in message and "smaller --lr" in message
    assert "trained_model.keras" not in os.listdir(tmp_path)


def test_recipe_paper_is_printed_recorded_and_followed(tmp_path, data):
    run = train(
        tmp_path,
        data,
        *("--recipe", "paper", "--epochs", 3, "--lr_decay_steps", 4),
        *("--lr_min", 0.00097),
    )
    assert run.status == 0, run.err
    printed = [
        line.removeprefix("Recipe paper sets ")
        for line in run.out.splitlines()
        if line.startswith("Recipe")
    ]
    # Given flags are not the recipe's.
    assert printed == [
        "--lr_decay 0.96",
        "--lam_recon authors",
        "--init authors",
        "--capsule_bias 0.1",
        "--primary_scale 0.03125",
    ]
    record = run.record()
    assert record["lam_recon"] == pytest.approx(0.0005 * 17 * 17 * 6)
    assert record["flags"]["lr_decay"] == 0.96
    assert record["flags"]["batch_size"] == 20
    # Two steps an epoch, four steps for 0.96; then the floor.
    expected = [0.001, 0.001 * 0.96**0.5, 0.00097]
    rates = run.log()["learning_rate"]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    bias = weights_of(run.model())["digitcaps/bias"]
    np.testing.assert_allclose(bias, 0.1, atol=0.02)
    assert run.model().get_layer("primarycap").scale == 1 / 32


def test_baseline_trains_in_16_bits(tmp_path, data):
    run = train(
        tmp_path,
        data,
        *("--model", "baseline", "--epochs", 1, "--lr", 0.0001),
        *("--dtype_policy", "mixed_bfloat16"),
    )
    assert run.status == 0, run.err
    model = run.model()
    assert model.get_layer("conv1").compute_dtype == "bfloat16"
    assert model.get_layer("conv1").variable_dtype == "float32"
    # The outputs, three probabilities, are not rounded to 16 bits.
    assert model.output["capsnet"].dtype == "float32"
    x = np.zeros((2, *SHAPE), "float32")
    scores = model.predict(x, verbose=0)["capsnet"]
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)


def test_pictures_that_are_too_small_are_refused(tmp_path):
    path = write_bars(tmp_path / "small.npz", shape=(9, 20, 1))
    for model in ("capsnet", "baseline"):
        message = message_of(train(tmp_path / model, path, "--model", model))
        assert "expected pictures of at least" in message
        assert "received 9x20" in message
        assert contents(tmp_path / model) == {}


def test_missing_data_set_is_a_line_and_status_2_for_the_shell(tmp_path):
    done = subprocess.run(
        [sys.executable, "capsulenet.py", "--dataset", "nowhere"]
        + ["--save_dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("capsulenet.py: ") and "'nowhere'" in last
    assert contents(tmp_path) == {}


# Testing and manipulating.


def test_testing_prints_and_records_the_figures(tmp_path, trained, arrays):
    run = command(tmp_path, "-t", "-w", trained.model_path())
    assert run.status == 0, run.err
    x = arrays["x_test"].astype("float32") / 255
    lengths = trained.model().predict(x, verbose=0)["capsnet"]
    wrong = int(np.sum(lengths.argmax(-1) != arrays["y_test"]))
    figures = json.loads((tmp_path / "test.json").read_text())
    assert figures["accuracy"] == pytest.approx(1 - wrong / 12)
    assert figures["test_error"] == pytest.approx(100 * wrong / 12)
    assert (figures["mistakes"], figures["pictures"]) == (wrong, 12)
    assert "was trained on" not in run.out
    lines = run.out.splitlines()
    assert f"Accuracy: {100 - 100 * wrong / 12:.2f} %" in lines
    assert f"Test error: {100 * wrong / 12:.2f} % ({wrong} of 12)" in lines
    with Image.open(tmp_path / "real_and_recon.png") as picture:
        assert picture.format == "PNG"
        picture.load()


def test_other_data_set_than_the_recorded_one_can_be_tested(tmp_path, trained):
    path = write_bars(tmp_path / "other.npz", test=9)
    run = command(tmp_path, "-t", "-w", trained.model_path(), "--dataset", path)
    assert run.status == 0, run.err
    figures = json.loads((tmp_path / "test.json").read_text())
    assert figures["pictures"] == 9
    assert Path(figures["dataset"]).name == "other.npz"
    assert figures["weights"] == [trained.model_path()]
    assert f"{trained.model_path()} was trained on " in run.out


def named_models(tmp_path, plain, *orders):
    """Files of one model that knows its classes by several names."""
    for number, names in enumerate(orders):
        path = str(tmp_path / f"{number}.keras")
        save_model(plain.model(), path, {"class_names": names})
        yield path


def test_classes_are_found_by_their_names(tmp_path, plain, arrays):
    """A data set that lists the same classes in another order."""
    (path,) = named_models(tmp_path, plain, ["ant", "bee", "cow"])
    names = np.array(["cow", "ant", "bee"])
    place = np.array([1, 2, 0])  # Of ant, bee and cow.
    labels = {part: place[arrays[part]] for part in ("y_train", "y_test")}
    other = str(tmp_path / "other.npz")
    np.savez(other, **{**arrays, **labels}, class_names=names)
    run = command(tmp_path / "run", "-t", "-w", path, "--dataset", other)
    assert run.status == 0, run.err
    x = arrays["x_test"].astype("float32") / 255
    lengths = plain.model().predict(x, verbose=0)["capsnet"]
    wrong = int(np.sum(lengths.argmax(-1) != arrays["y_test"]))
    figures = json.loads((run.folder / "test.json").read_text())
    assert figures["mistakes"] == wrong
    assert list(figures["classes"]) == ["ant", "bee", "cow"]
    assert "other classes" not in run.out


def test_other_classes_are_compared_in_their_order_and_said_so(
    tmp_path, plain, data
):
    (path,) = named_models(tmp_path, plain, ["ant", "bee", "cow"])
    run = command(tmp_path, "-t", "-w", path, "--dataset", data)
    assert run.status == 0, run.err
    assert (
        f"{path} knows other classes, which are compared in their order: "
        "ant, bee, cow with 0, 1, 2\n"
    ) in run.out


def test_classes_at_other_places_are_refused(tmp_path, plain, data):
    (path,) = named_models(tmp_path, plain, ["ant", "0", "1"])
    run = command(tmp_path, "-t", "-w", path, "--dataset", data)
    assert "'0' would be taken for another one" in message_of(run)


def test_data_that_are_gone_are_asked_for(tmp_path, plain):
    path = str(tmp_path / "model.keras")
    flags = {"dataset": str(tmp_path / "gone"), "seed": 0}
    save_model(plain.model(), path, {"flags": flags})
    message = message_of(command(tmp_path, "-t", "-w", path))
    assert "which is not there" in message and "with --dataset" in message


def test_only_what_no_model_was_trained_on_is_tested():
    def record(fraction, dataset="/data/own"):
        flags = {"test_fraction": fraction, "dataset": dataset}
        return {"flags": flags}

    args = parse_args([])
    for fractions, expected in (
        ([None], None),  # A set with a test part of its own, or the default.
        ([0.5], 0.5),
        ([0.3, None], TEST_FRACTION),
        ([None, 0.1], 0.1),
    ):
        records = dict(enumerate(map(record, fractions)))
        found = unseen_fraction(args, records, "/data/own")
        assert found == expected
    records[2] = record(0.01, "/data/other")
    assert unseen_fraction(args, records, "/data/own") == 0.1
    args = parse_args(["--test_fraction", "0.3"])
    with pytest.raises(UserError, match="at most 0.1"):
        unseen_fraction(args, records, "/data/own")
    assert unseen_fraction(args, records, "/data/new") == 0.3


def test_models_with_classes_in_different_orders_are_no_ensemble(
    tmp_path, plain, data
):
    paths = named_models(tmp_path, plain, ["0", "1", "2"], ["1", "0", "2"])
    run = command(tmp_path, "-t", "--dataset", data, "-w", *paths)
    assert "classes in the same order" in message_of(run)


def test_rounds_of_routing_may_be_changed_for_the_test(tmp_path, trained):
    models, data, _ = load_for_testing(
        capsulenet.parse_args(["-t", "-w", trained.model_path(), "-r", "1"])
    )
    assert models[0][1].get_layer("digitcaps").routings == 1
    x = data.x_test.astype("float32") / 255
    found = models[0][1].predict(x, verbose=0)["capsnet"]
    recorded = trained.model().predict(x, verbose=0)["capsnet"]
    assert np.abs(found - recorded).max() > 1e-3


@pytest.mark.parametrize("count", (1, 3, 49, 50, 51, 200, 10_000))
def test_shown_pictures_are_spread_over_the_test_set(count):
    shown = spread(count)
    assert len(shown) == min(count, 50) and shown[0] == 0
    steps = np.diff([*shown, count])
    assert steps.min() >= 1 and np.ptp(steps) <= 1
    if count == 200:
        # Of ten classes, one after the other, five of each.
        assert np.bincount(shown // 20).tolist() == [5] * 10


@pytest.mark.parametrize("channels", (1, 3))
def test_50_pictures_are_drawn_in_their_colours(
    tmp_path, monkeypatch, channels
):
    shape = (17, 17, channels)
    x, y = bars(60, shape)
    data = Dataset(x, y, x, y, ["a", "b", "c"], "bars")
    keras.utils.set_random_seed(0)
    model = CapsNet(shape, N_CLASS)[1]
    drawn = []
    draw = utils.draw_reconstructions

    def watch(real, made, path):
        drawn.extend((real, made))
        draw(real, made, path)

    monkeypatch.setattr(utils, "draw_reconstructions", watch)
    figures = capsulenet.test([model], data, tmp_path)
    assert figures["pictures"] == 60
    real, made = drawn
    shown = x[[int(number * 1.2) for number in range(50)]]
    np.testing.assert_allclose(real, shown / 255)
    images = shown.astype("float32") / 255
    expected = model.predict(images, verbose=0)["decoder"]
    np.testing.assert_allclose(made, expected, atol=1e-5)
    with Image.open(tmp_path / "real_and_recon.png") as picture:
        pixels = np.asarray(picture.convert("RGB"), "int64")
    coloured = np.mean(pixels.max(-1) - pixels.min(-1) > 20) > 0.01
    assert coloured == (channels == 3)


def test_several_models_vote_with_the_sum_of_their_lengths(
    tmp_path, trained, plain, arrays
):
    run = command(
        tmp_path, "-t", "-w", trained.model_path(), plain.model_path()
    )
    assert run.status == 0, run.err
    assert "2 models" in run.out
    x = arrays["x_test"].astype("float32") / 255
    lengths = sum(
        run.model().predict(x, verbose=0)["capsnet"] for run in (trained, plain)
    )
    wrong = int(np.sum(lengths.argmax(-1) != arrays["y_test"]))
    figures = json.loads((tmp_path / "test.json").read_text())
    assert figures["mistakes"] == wrong


def test_without_a_decoder_testing_draws_nothing(tmp_path, plain):
    run = command(tmp_path, "-t", "-w", plain.model_path())
    assert run.status == 0, run.err
    assert "No reconstructions" in run.out
    assert (tmp_path / "test.json").exists()
    assert not (tmp_path / "real_and_recon.png").exists()


def test_without_a_decoder_digit_is_refused(tmp_path, plain):
    run = command(tmp_path, "--digit", 1, "-w", plain.model_path())
    assert "--lam_recon 0" in message_of(run)
    assert contents(tmp_path) == {}


def test_manipulation_adds_to_one_dimension_in_each_row(
    tmp_path, trained, arrays, monkeypatch
):
    calls, drawn = [], []
    predict = keras.Model.predict

    def watch(self, x, *args, **kwargs):
        outputs = predict(self, x, *args, **kwargs)
        if self.name == "manipulate_model":
            calls.append(x)
            drawn.append(outputs["decoder"])
        return outputs

    monkeypatch.setattr(keras.Model, "predict", watch)
    run = command(tmp_path, "--digit", 2, "-w", trained.model_path())
    assert run.status == 0, run.err
    monkeypatch.undo()
    # It implies the test.
    assert "Test error:" in run.out
    assert str(tmp_path / "manipulate-2.png") in run.out
    assert (tmp_path / "test.json").exists()
    # All in one call.
    (inputs,), (images,) = calls, drawn
    noise = inputs["noise"]
    assert noise.shape == (16 * 11, N_CLASS, 16)
    for row in range(16):
        for column in range(11):
            expected = np.zeros((N_CLASS, 16))
            expected[2, row] = -0.25 + 0.05 * column
            np.testing.assert_allclose(
                noise[11 * row + column], expected, atol=1e-6
            )
    # One picture of the class.
    image = inputs["image"][0]
    np.testing.assert_array_equal(inputs["image"], [image] * 176)
    choices = arrays["x_test"][arrays["y_test"] == 2] / np.float32(255)
    assert any(np.array_equal(image, choice) for choice in choices)
    # Row 6, column 10, through the layers one by one.
    model = trained.model()
    digitcaps = keras.Model(model.input, model.get_layer("digitcaps").output)
    capsules = digitcaps.predict(image[None], verbose=0)[0]
    masked = np.zeros((N_CLASS, 16), "float32")
    masked[2] = capsules[2]
    masked[2, 5] += 0.2
    decoder = model.get_layer("decoder")
    expected = decoder.predict(masked.reshape(1, -1), verbose=0)[0]
    np.testing.assert_allclose(images[11 * 5 + 9], expected, atol=1e-5)
    # Without noise the column in the middle is the same in every row.
    np.testing.assert_allclose(images[5], images[11 * 15 + 5], atol=1e-6)


def test_same_seed_manipulates_the_same_picture(tmp_path, trained, data):
    manipulate_model = attach(trained.model())[2]
    pictures = sources.load(data)
    drawn = [
        Path(
            capsulenet.manipulate(
                manipulate_model, pictures, 1, tmp_path / str(number), seed
            )
        ).read_bytes()
        for number, seed in enumerate((4, 4, 0, 1, 2))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_manipulated_class_may_have_any_name(tmp_path, trained, data):
    manipulate_model = attach(trained.model())[2]
    pictures = sources.load(data)
    pictures.class_names = ["0", "T-shirt/top: $a$ ^$", "2"]
    path = capsulenet.manipulate(manipulate_model, pictures, 1, tmp_path)
    assert path == str(tmp_path / "manipulate-T-shirt-top- $a$ ^$.png")
    assert [found.name for found in tmp_path.iterdir()] == [Path(path).name]


def test_class_is_chosen_by_name_or_else_by_number():
    x, y = bars(8, SHAPE)
    data = Dataset(x, y, x, y, ["cat", "2", "1"], "bars")
    for name, expected in (("cat", 0), ("2", 1), ("1", 2), ("0", 0)):
        assert class_number(name, data) == expected


@pytest.mark.parametrize("digit", ("3", "-1", "two", "²", ""))
def test_digit_that_is_no_class_is_refused(tmp_path, trained, digit):
    run = command(tmp_path, f"--digit={digit}", "-w", trained.model_path())
    message = message_of(run)
    assert "one of 0, 1, 2" in message and repr(digit) in message
    assert contents(tmp_path) == {}


def test_class_without_a_test_picture_is_refused(tmp_path, trained):
    path = write_bars(tmp_path / "few.npz", test=2)
    run = command(
        tmp_path / "run",
        *("--digit", 2, "-w", trained.model_path(), "--dataset", path),
    )
    assert "'2' without any" in message_of(run)
    assert contents(tmp_path / "run") == {}


@pytest.mark.parametrize("argv", (["-t"], ["--digit", 1]))
def test_testing_without_a_model_is_refused(tmp_path, argv):
    message = message_of(command(tmp_path, *argv))
    assert f"-w {tmp_path / 'trained_model.keras'}" in message


def test_missing_and_foreign_models_are_refused(tmp_path, data):
    missing = tmp_path / "missing.keras"
    message = message_of(command(tmp_path / "run", "-t", "-w", missing))
    assert str(missing) in message and "trained_model.keras" in message
    text = tmp_path / "text.keras"
    text.write_text("no model")
    other = tmp_path / "other.keras"
    keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]).save(
        other
    )
    for path in (text, other):
        run = command(tmp_path / "run", "-t", "-w", path, "--dataset", data)
        message = message_of(run)
        assert str(path) in message
        assert "expected a model that capsulenet.py saved" in message
    assert not (tmp_path / "run" / "test.json").exists()


@pytest.mark.parametrize(
    "kwargs, received",
    (
        ({"shape": (20, 20, 1)}, "20x20x1 and 3"),
        ({"n_class": 4}, "17x17x1 and 4"),
    ),
)
def test_data_of_another_shape_or_kind_are_refused(
    tmp_path, trained, kwargs, received
):
    path = write_bars(tmp_path / "other.npz", **kwargs)
    run = command(
        tmp_path / "run", "-t", "-w", trained.model_path(), "--dataset", path
    )
    message = message_of(run)
    assert received in message and "another --dataset" in message


def test_seed_of_the_run_draws_the_data_that_are_tested(
    tmp_path, plain, data, monkeypatch
):
    record = {"flags": {"dataset": data, "seed": 7}}
    path = str(tmp_path / "model.keras")
    save_model(plain.model(), path, record)
    seeds = []
    load = sources.load

    def watch(*args, seed, **kwargs):
        seeds.append(seed)
        return load(*args, seed=seed, **kwargs)

    monkeypatch.setattr(loading, "load", watch)
    for argv in ([], ["--seed", 3]):
        assert command(tmp_path, "-t", "-w", path, *argv).status == 0
    assert seeds == [7, 3]


@pytest.mark.slow
@pytest.mark.parametrize("number", (signal.SIGKILL, signal.SIGINT))
def test_run_that_is_killed_goes_on_to_the_same_end(
    tmp_path, data, trained, number
):
    status = -signal.SIGKILL if number == signal.SIGKILL else 130
    # On a busy machine the run may end before the signal comes: once more.
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        argv = [sys.executable, "capsulenet.py", "--save_dir", str(folder)]
        process = subprocess.Popen(
            [*argv, "--dataset", data, "--batch_size", "20", "--epochs", "4"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # A shell has the jobs in its background ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            for line in process.stdout:
                if line.startswith("Epoch 2: "):
                    break
            process.send_signal(number)
            process.communicate(timeout=60)
        finally:
            process.kill()
        if process.returncode != 0:
            break
    assert process.returncode == status
    done = subprocess.run(
        [*argv, "--resume"], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    log = utils.read_log(folder / "log.csv")
    for name, expected in trained.log().items():
        np.testing.assert_allclose(log[name], expected, rtol=1e-5)


def test_testing_computes_as_precision_and_convolution_flags_ask(trained):
    model = str(trained.folder / "trained_model.keras")
    plain, flagged = (
        load_for_testing(capsulenet.parse_args(["-t", "-w", model, *flags]))
        for flags in (
            [],
            ["--dtype_policy", "mixed_bfloat16", "--conv", "fast"],
        )
    )
    found = []
    for (models,), data, _ in (plain, flagged):
        eval_model = models[1]
        lengths = lengths_model(eval_model)
        found.append(
            (
                eval_model.get_layer("digitcaps").compute_dtype,
                eval_model.get_layer("primarycap").conv.method,
                inference.predict(lengths, data.x_test),
            )
        )
    assert found[0][:2] == ("float32", "auto")
    assert found[1][:2] == ("bfloat16", "fast")
    np.testing.assert_allclose(found[1][2], found[0][2], atol=0.05)


def test_compiling_a_direct_convolution_on_a_cpu_is_warned_of(
    tmp_path, data, monkeypatch, capsys
):
    class Built(Exception):
        pass

    def stop(*args, **kwargs):
        raise Built

    monkeypatch.setattr(capsulenet, "train", stop)
    monkeypatch.setattr(capsulenet, "runs_on_cpu", lambda: True)
    flags = ["--dataset", data, "--save_dir", str(tmp_path)]
    for method, warned in (("direct", True), ("fast", False)):
        with pytest.raises(Built):
            capsulenet.main([*flags, "--jit_compile", "on", "--conv", method])
        assert ("twenty times slower" in capsys.readouterr().out) is warned


def test_command_line_knows_the_same_names():
    # `options` imports nothing of ours, so it has a list of its own.
    assert NAMED_DATASETS == BUILT_IN


def test_keras_gets_each_epochs_batches_in_order():
    x, y = bars(40, (17, 17, 1))
    batches = ShiftedBatches(x, y, N_CLASS, 15, shift=(1, 1), shuffle=True)
    dataset = pipeline(batches)
    assert len(dataset) == len(batches) > 1
    seen = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        received = [keras.tree.flatten(batch) for batch in dataset]
        expected = [
            keras.tree.flatten(batches[index]) for index in range(len(batches))
        ]
        for ours, theirs in zip(received, expected, strict=True):
            for value, wanted in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(np.asarray(value), wanted)
        seen.append(np.asarray(received[0][0]))
    assert np.any(seen[0] != seen[1])


def test_no_epoch_waits_for_a_tuning_thread():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow has such a thread")
    batches = ShiftedBatches(*bars(40, (17, 17, 1)), N_CLASS, 15)
    assert pipeline(batches).options().autotune.enabled is False
