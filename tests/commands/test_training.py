"""What a training does, by the files that it leaves and what it prints."""

import importlib.util
import os
import shlex

import keras
import numpy as np
import pytest
from PIL import Image
from running import (
    N_CLASS,
    SHAPE,
    command,
    contents,
    lengths_of,
    message_of,
    run,
    train,
    weights_of,
)

from capsnet.data.augment import Affine, Shift
from capsnet.data.batches import ShiftedBatches
from capsnet.data.sources import hold_out, load
from capsnet.devices import tensorflow
from capsnet.files import read_state
from capsnet.models.networks import Network, attach
from capsnet.models.saving import load_model, save_model
from capsnet.training import checkpoints
from capsulenet import build, compile_model

HAS_TENSORBOARD = importlib.util.find_spec("tensorboard") is not None
# As good as no training: the weights stay what they are.
STILL = ("--lr", 1e-12, "--lam_recon", 0)
SMALL = ("-r", 1, "--lam_recon", 0, "--epochs", 1)


def margin_losses(labels, lengths):
    """Eq. 4, picture by picture and class by class."""
    losses = []
    for label, row in zip(labels, lengths):
        loss = 0.0
        for number, length in enumerate(map(float, row)):
            if number == label:
                loss += max(0.0, 0.9 - length) ** 2
            else:
                loss += 0.5 * max(0.0, length - 0.1) ** 2
        losses.append(loss)
    return np.array(losses)


def error_of(model, pictures, labels):
    """How many of a hundred pictures a model takes for something else."""
    found = lengths_of(model, pictures).argmax(-1)
    return 100 * sum(found != labels) / len(labels)


def test_training_leaves_its_files_and_no_others(trained):
    assert trained.status == 0, trained.err
    assert {str(path) for path in contents(trained.folder)} == {
        os.path.join("checkpoint", "epoch-0004.weights.h5"),
        os.path.join("checkpoint", "state.json"),
        *("log.csv", "log.png", "run.json", "trained_model.keras"),
        "batch.png",
    }
    with Image.open(trained.folder / "log.png") as picture:
        assert picture.format == "PNG"
        picture.load()


def test_record_says_how_the_model_came_about(trained, data):
    record, flags = trained.record(), trained.record()["flags"]
    assert flags["dataset"] == data
    assert (flags["seed"], flags["epochs"], flags["batch_size"]) == (0, 4, 20)
    assert record["class_names"] == ["0", "1", "2"]
    assert record["input_shape"] == list(SHAPE)
    assert record["input_range"] == [0, 1]
    assert record["lam_recon"] == pytest.approx(0.0005 * 17 * 17)
    environment = record["environment"]
    assert environment["versions"]["keras"] == keras.__version__
    assert environment["backend"] == keras.backend.backend()
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
    assert ",".join(log) == (
        "epoch,loss,capsnet_loss,capsnet_accuracy,decoder_loss,learning_rate,"
        "test_error"
    )
    assert log["epoch"].tolist() == [0, 1, 2, 3]
    total = log["capsnet_loss"] + 0.0005 * 17 * 17 * log["decoder_loss"]
    np.testing.assert_allclose(log["loss"], total, rtol=1e-4)
    assert log["capsnet_loss"][-1] < log["capsnet_loss"][0] / 2
    rates = [0.001 * 0.9**epoch for epoch in range(4)]
    np.testing.assert_allclose(log["learning_rate"], rates, rtol=1e-5)


def test_what_is_printed_are_the_figures_of_the_model(trained, arrays):
    lines, errors = trained.out.splitlines(), trained.log()["test_error"]
    error = error_of(trained.model(), arrays["x_test"], arrays["y_test"])
    assert 0 < error < 100  # 4 of the labels are wrong.
    assert errors[-1] == pytest.approx(error)
    assert "Learning rate 0.001, in the last step 0.000729" in lines
    for epoch, error in enumerate(errors, 1):
        wrong = round(12 * error / 100)
        line = f"Epoch {epoch}: test error {error:.2f} % ({wrong} of 12)"
        assert lines.count(line) == 1
    assert lines[-5] == f"Test error: {errors[-1]:.2f} % (epoch 4)"
    predicted = lengths_of(trained.model(), arrays["x_test"]).argmax(-1)
    y = arrays["y_test"]
    errors = np.bincount(y[predicted != y], minlength=N_CLASS) / np.bincount(y)
    assert lines[-4].startswith("Worst class")
    assert f", {100 * errors.max():.2f} %" in lines[-4]
    assert "--explore" in lines[-2] and str(trained.folder) in lines[-2]


def test_printed_test_command_works_as_it_stands(tmp_path, data):
    folder = tmp_path / "a run's folder"
    done = command(folder, "--dataset", data, *SMALL)
    advice = done.out.splitlines()[-1].removeprefix("Test it: ")
    words = shlex.split(advice)
    while "=" in words[0]:
        words.pop(0)  # KERAS_BACKEND, where it is not the default.
    assert words[0] == "python" and os.path.isfile(words[1])
    tested = run(*words[2:], folder=folder)
    assert tested.status == 0, tested.err
    assert tested.figures()["test_error"] == done.record()["test_error"]


def test_held_out_pictures_choose_the_epoch_that_is_kept(plain, data):
    assert plain.status == 0, plain.err
    log = plain.log()
    assert ",".join(log) == (
        "epoch,loss,capsnet_accuracy,val_loss,val_capsnet_accuracy,"
        "learning_rate,test_error"
    )
    scores = list(zip(log["val_capsnet_accuracy"], -log["val_loss"]))
    best = scores.index(max(scores))
    assert best < 2
    assert plain.record()["epoch"] == best + 1
    assert plain.record()["test_error"] == log["test_error"][best]
    assert f"(epoch {best + 1})" in plain.out
    # 30 % of the 40 pictures, and none of them is trained on.
    assert "Training on 28 pictures" in plain.out
    _, x, y = hold_out(load(data), 0.3, seed=0)
    assert len(x) == 12
    accuracy = 1 - error_of(plain.model(), x, y) / 100
    assert accuracy == pytest.approx(log["val_capsnet_accuracy"][best])
    losses = margin_losses(y, lengths_of(plain.model(), x))
    assert losses.mean() == pytest.approx(log["val_loss"][best], rel=1e-3)


def test_without_reconstruction_there_is_no_decoder(plain):
    names = {layer.name for layer in plain.model().layers}
    assert "digitcaps" in names and not names & {"decoder", "mask"}
    assert plain.record()["lam_recon"] == 0
    train_model, eval_model, manipulate_model = attach(plain.model())
    assert manipulate_model is None
    assert list(train_model.output) == list(eval_model.output) == ["capsnet"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, augment",
    (
        ("--augment none", Shift(0.0)),
        ("", Shift(0.1)),
        ("--augment affine --rotation 50", Affine(rotation=50)),
    ),
)
def test_each_epoch_changes_the_pictures_of_given_weights_anew(
    tmp_path, data, arrays, plain, flags, augment
):
    debug = ["--debug"] if HAS_TENSORBOARD and not flags else []
    start = "-w", plain.model_path(), "--epochs", 2, "--seed", 5, *debug
    done = train(tmp_path, data, *STILL, *flags.split(), *start)
    assert done.status == 0, done.err
    model = plain.model()
    x, y = arrays["x_train"], arrays["y_train"]
    drawn = {"augment": augment, "seed": 5, "shuffle": True, "decoder": False}
    batches = ShiftedBatches(x, y, N_CLASS, 20, **drawn)
    expected = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        losses = [
            margin_losses(labels["capsnet"].argmax(-1), lengths).mean()
            for x, labels in (batches[0], batches[1])
            for lengths in [model.predict(x, verbose=0)["capsnet"]]
        ]
        expected.append(np.mean(losses))
    np.testing.assert_allclose(done.log()["loss"], expected, rtol=1e-4)
    assert (abs(expected[0] - expected[1]) < 1e-6) == ("none" in flags)
    for name, weight in weights_of(model).items():
        received = weights_of(done.model())[name]
        np.testing.assert_allclose(received, weight, atol=1e-9)
    if debug:
        check_histograms(tmp_path / "tensorboard" / "train")


def check_histograms(folder):
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["tensors"] if "histogram" in tag]
    for layer in ("conv1", "primarycap", "digitcaps"):
        assert any(layer in tag for tag in tags), layer


def test_debug_without_tensorboard_tells_how_to_install_it(
    tmp_path, data, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *args: name != "tensorboard" and find(name, *args) or None,
    )
    message = message_of(train(tmp_path, data, "--debug"))
    assert "pip install tensorboard" in message
    assert contents(tmp_path) == {}


def test_weights_of_another_network_are_refused(tmp_path, data, plain):
    flags = "--model", "efficient", "--lam_recon", 0, "--epochs", 1
    done = train(tmp_path, data, *flags, "-w", plain.model_path())
    expected = "expected conv/kernel (4, 4, 1, 128), got (5, 5, 256, 256)"
    assert expected in message_of(done)
    assert contents(tmp_path) == {}


@pytest.mark.slow
def test_moving_average_is_validated_and_saved(tmp_path, data, arrays):
    """Of 16 steps of 28 pictures, and one more after them."""
    flags = "--ema", 0.75, "--val_fraction", 0.3, "--lam_recon", 0, "--seed", 1
    flags += "--batch_size", 28, "--epochs", 16
    first = command(tmp_path, "--dataset", data, *flags)
    before = weights_of(first.model())
    line = "Averaged weights: momentum 0.375, not 0.75: a memory of 2 steps, of"
    assert f"{line} 16\n" in first.out
    done = command(tmp_path, "--resume", "--epochs", 17)
    assert done.status == 0 and done.record()["epoch"] == 17, done.err
    # The run keeps its momentum.
    assert f"{line} 17\n" in done.out and done.record()["ema"] == 0.375
    # The trained weights, not averaged, are those of the checkpoint.
    models = build(Network(decoder=False), SHAPE, N_CLASS)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.001, 1, 0.9)
    compile_model(models[0], schedule, 0, ema=0.75)
    checkpoints.go_on(tmp_path, models[0], read_state(tmp_path))
    saved = weights_of(done.model())
    for name, now in weights_of(models[1]).items():
        expected = 0.375 * before[name] + 0.625 * now
        np.testing.assert_allclose(saved[name], expected, atol=1e-6)
        assert np.abs(saved[name] - now).max() > 3e-5
    _, x, y = hold_out(load(data), 0.3, seed=1)
    losses = margin_losses(y, lengths_of(done.model(), x))
    log = done.log()
    assert losses.mean() == pytest.approx(log["val_loss"][-1], rel=1e-3)
    error = error_of(done.model(), arrays["x_test"], arrays["y_test"])
    assert error == pytest.approx(log["test_error"][-1])


@pytest.mark.slow
def test_balanced_classes_weigh_in_the_training(tmp_path, arrays, plain):
    path, y = str(tmp_path / "rare.npz"), arrays["y_train"].copy()
    y[10:] = 0
    np.savez(path, **{**arrays, "y_train": y})
    flags = *STILL, "--epochs", 1, "--shift_fraction", 0, "--batch_size", 40
    lengths = lengths_of(plain.model(), arrays["x_train"])
    counts = [sum(y == label) for label in range(N_CLASS)]
    weights = np.array([40 / (N_CLASS * counts[label]) for label in y])
    losses = {"none": margin_losses(y, lengths)}
    losses["balanced"] = losses["none"] * weights
    assert abs(losses["none"].mean() - losses["balanced"].mean()) > 1e-3
    for name, expected in losses.items():
        argv = *flags, "--class_weight", name, "-w", plain.model_path()
        log = command(tmp_path / name, "--dataset", path, *argv).log()
        assert log["loss"][0] == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.skipif(tensorflow() is None, reason="TensorFlow's own")
def test_operations_are_deterministic_unless_xla_orders_them(
    tmp_path, trained, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        tensorflow().config.experimental,
        "enable_op_determinism",
        lambda: asked.append(True),
    )
    for jit_compile, expected in (("on", 0), ("auto", 1)):
        flags = "-w", trained.model_path(), "--jit_compile", jit_compile
        assert command(tmp_path, "-t", *flags).status == 0
        assert len(asked) == expected


def test_loss_that_is_no_number_stops_the_run(tmp_path, data, trained):
    model, start = trained.model(), str(tmp_path / "start.keras")
    kernel = model.get_layer("digitcaps").kernel
    kernel.assign(kernel * np.nan)
    save_model(model, start, {})
    run = train(tmp_path / "run", data, "-r", 1, "-w", start)
    message = message_of(run, status=1)
    assert "the loss became nan" in message and "smaller --lr" in message
    assert "trained_model.keras" not in os.listdir(tmp_path / "run")


def test_baseline_trains_in_16_bits(tmp_path, data):
    flags = "--model", "baseline", "--image_size", 5, 5, "--epochs", 1
    done = train(tmp_path, data, *flags, "--dtype_policy", "mixed_bfloat16")
    assert done.status == 0, done.err
    conv1 = done.model().get_layer("conv1")
    assert conv1.compute_dtype == "bfloat16"
    assert conv1.variable_dtype == "float32"
    # The outputs, three probabilities, are not rounded to 16 bits.
    assert done.model().output["capsnet"].dtype == "float32"
    scores = lengths_of(done.model(), np.zeros((2, 5, 5, 1)))
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)
