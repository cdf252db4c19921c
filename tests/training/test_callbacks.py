"""Tests of callbacks.py: what happens around each epoch."""

import os

import keras
import numpy as np
import pytest

from capsnet.files import read_state
from capsnet.messages import UserError
from capsnet.training import callbacks

# Of one picture of a pixel, two classes.
RATE, MOMENTUM = 0.5, 0.75


class Batches(keras.utils.PyDataset):
    """Two steps of one picture; knows the epochs that it was told."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.epochs, self.scale = [], scale

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        image = np.full((1, 1, 1, 1), self.scale, "float32")
        return {"image": image}, {"capsnet": np.eye(2, dtype="float32")[:1]}


@pytest.fixture
def model():
    """Scores of two classes, to be averaged over the steps."""
    image = keras.layers.Input((1, 1, 1), name="image")
    flat = keras.layers.Flatten()(image)
    zeros = {"kernel_initializer": "zeros", "use_bias": False}
    scores = keras.layers.Dense(2, name="capsnet", **zeros)(flat)
    made = keras.Model(image, {"capsnet": scores}, name="capsnet_model")
    sgd = keras.optimizers.SGD(RATE, use_ema=True, ema_momentum=MOMENTUM)
    accuracy = keras.metrics.CategoricalAccuracy(name="capsnet_accuracy")
    made.compile(sgd, {"capsnet": "mse"}, weighted_metrics=[accuracy])
    return made


def fit(model, *watchers, batches=None, epochs=2):
    batches = batches or Batches()
    fitted = model.fit(batches, epochs=epochs, callbacks=watchers, verbose=0)
    return fitted.history


def test_clock_tells_the_epochs_and_keeps_rate_and_seconds(model):
    batches, seconds = Batches(), []
    clock = callbacks.EpochClock(batches, seconds)
    history = fit(model, clock, batches=batches, epochs=3)
    assert batches.epochs == [0, 1, 2]
    assert history["learning_rate"] == [RATE] * 3
    assert len(seconds) == 3 and all(0 <= each < 60 for each in seconds)


def test_loss_that_is_no_number_stops_in_its_step(model):
    batches = Batches(scale=np.nan)
    clock = callbacks.EpochClock(batches, [])
    with pytest.raises(FloatingPointError, match="nan in step 1; .*--lr"):
        fit(model, clock, batches=batches)


def test_test_error_is_counted_and_printed_once_an_epoch(model, capsys):
    x, y = np.full((4, 1, 1, 1), 255, "uint8"), np.array([0, 1, 1, 0])
    history = fit(model, callbacks.TestError(model, x, y))
    assert history["test_error"] == [50.0, 50.0]
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("Epoch")]
    expected = "test error 50.00 % (2 of 4)"
    assert lines == [f"Epoch 1: {expected}", f"Epoch 2: {expected}"]


@pytest.mark.parametrize("decoder, validation", ((True, False), (False, True)))
def test_log_has_a_column_for_all_that_there_is(tmp_path, decoder, validation):
    losses = ["capsnet_loss", "decoder_loss"] if decoder else []
    names = {"loss", "capsnet_accuracy", *losses}
    held_out = {f"val_{name}" for name in names} if validation else set()
    log = callbacks.Log(tmp_path, decoder, validation, append=False)
    expected = names | held_out | {"learning_rate", "test_error"}
    assert set(log.columns) == expected


def test_row_that_cannot_be_written_is_told_once(tmp_path, model):
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no full device here")
    (tmp_path / "log.csv").symlink_to("/dev/full")
    log = callbacks.Log(tmp_path, False, False, append=False)
    x, y = np.zeros((1, 1, 1, 1), "uint8"), np.zeros(1, int)
    watchers = callbacks.EpochClock(Batches(), []), log
    with pytest.raises(UserError, match="cannot write .*log.csv"):
        fit(model, callbacks.TestError(model, x, y), *watchers)


def test_averaged_weights_are_gone_even_after_an_error(model):
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    images, labels = Batches()[0]
    for _ in range(3):
        model.train_on_batch(images, labels)
    (own,) = model.get_weights()
    with pytest.raises(KeyError):
        with callbacks.averaged(swap):
            (average,) = model.get_weights()
            raise KeyError
    assert not np.allclose(average, own)
    np.testing.assert_array_equal(model.get_weights()[0], own)
    with callbacks.averaged(None):
        np.testing.assert_array_equal(model.get_weights()[0], own)


@pytest.mark.parametrize("choose", (True, False))
def test_keeper_keeps_the_best_epoch_where_pictures_choose(
    tmp_path, model, choose
):
    record, state = {"flags": {}}, {"flags": {}}
    keeper = callbacks.Keeper(tmp_path, model, record, state, choose)
    keeper.set_model(model)
    (tmp_path / "test.json").touch()
    scores = ((0.5, 1.0), (0.75, 0.9), (0.75, 0.8), (0.75, 0.8), (0.5, 0.1))
    for epoch, (accuracy, loss) in enumerate(scores):
        logs = {"val_capsnet_accuracy": accuracy, "val_loss": loss}
        keeper.on_epoch_end(epoch, {**logs, "test_error": float(epoch)})
    found = read_state(tmp_path)
    assert found["epochs_done"] == 5
    assert (tmp_path / "trained_model.keras").exists() == choose
    # What told of the model before is gone with it.
    assert (tmp_path / "test.json").exists() != choose
    if choose:
        best = found["best"]
        assert (best["epoch"], best["test_error"]) == (3, 2.0)
