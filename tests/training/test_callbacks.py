"""Tests of callbacks.py: each epoch of a model of a few weights."""

import csv

import keras
import numpy as np
import pytest

from capsnet.data.batches import ShiftedBatches, balanced_weights
from capsnet.data.datasets import Dataset
from capsnet.files import read_state
from capsnet.training import callbacks

TARGET = {"capsnet": np.zeros((1, 2), "float32")}


class Batches(keras.utils.PyDataset):
    """Two steps of one picture; knows the epochs that it was told."""

    process = 0, 1

    def __init__(self, value=0.0):
        super().__init__()
        self.epochs, self.value = [], value

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.full((1, 2, 2, 1), self.value, "float32"), TARGET


class Filled:
    """Three batches: of 4 pictures, 4 and 1, on three devices."""

    def __len__(self):
        return 3

    def size(self, index):
        return ((4, 6), (4, 6), (1, 3))[index]

    def mean_weights(self, count):
        return [1.0, 1.0]


@pytest.fixture
def model():
    """It takes every picture for class 0; with averaged weights for class 1."""
    image = keras.layers.Input((2, 2, 1), name="image")
    dense = keras.layers.Dense(2, kernel_initializer="zeros", name="dense")
    lengths = dense(keras.layers.Flatten()(image))
    model = keras.Model(image, {"capsnet": lengths}, name="capsnet_model")
    # The first step's weights are where the average begins.
    model.compile(keras.optimizers.Adam(1e-12, use_ema=True), "mse")
    dense.bias.assign([0, 1])
    model.train_on_batch(np.zeros((1, 2, 2, 1), "float32"), TARGET)
    dense.bias.assign([1, 0])
    return model


@pytest.fixture
def swap(model):
    callback = keras.callbacks.SwapEMAWeights()
    callback.set_model(model)
    return callback


def bias_of(model):
    bias = model.get_layer("dense").bias
    return keras.ops.convert_to_numpy(bias).round(6).tolist()


def test_clock_tells_the_epochs_and_keeps_rate_and_seconds(model):
    batches, seconds = Batches(), []
    clock = callbacks.EpochClock(batches, seconds)
    done = model.fit(batches, epochs=3, callbacks=[clock], verbose=0)
    assert batches.epochs == [0, 1, 2]
    assert done.history["learning_rate"] == pytest.approx([1e-12] * 3)
    assert len(seconds) == 3 and all(0 <= each < 60 for each in seconds)


def test_loss_that_is_no_number_stops_in_its_step(model):
    batches = Batches(np.nan)
    clock = callbacks.EpochClock(batches, [])
    with pytest.raises(FloatingPointError, match="nan in step 1; .*--lr"):
        model.fit(batches, callbacks=[clock], verbose=0)


def test_test_error_is_that_of_the_averaged_weights(model, swap, capsys):
    x, y = np.zeros((4, 2, 2, 1), "uint8"), np.array([1, 1, 1, 0])
    for given, wrong in ((swap, 1), (None, 3)):
        data = Dataset(x, y, x, y, ["a", "b"], "zeros")
        logs, watcher = {}, callbacks.TestError(model, data, given)
        watcher.on_epoch_end(0, logs)
        assert logs == {"test_error": 25 * wrong}
        assert bias_of(model) == [1, 0]
        line = f"Epoch 1: test error {25 * wrong:.2f} % ({wrong} of 4)\n"
        assert capsys.readouterr().out == line


def test_no_error_leaves_the_averaged_weights_in_the_model(model, swap):
    with pytest.raises(KeyboardInterrupt):
        with callbacks.averaged(swap):
            assert bias_of(model) == [0, 1]
            raise KeyboardInterrupt
    assert bias_of(model) == [1, 0]


@pytest.mark.parametrize("decoder, chooses", ((True, False), (False, True)))
def test_log_has_a_column_for_all_that_there_is(tmp_path, decoder, chooses):
    losses = ["capsnet_loss", "decoder_loss"] if decoder else []
    names = {"loss", "capsnet_accuracy", *losses}
    held_out = {f"val_{name}" for name in names} if chooses else set()
    rows = []
    log = callbacks.Log(tmp_path, rows, decoder, chooses)
    expected = names | held_out | {"learning_rate", "test_error"}
    assert set(log.columns) == expected
    for epoch in range(2):
        (tmp_path / "log.csv").unlink(missing_ok=True)  # By somebody.
        logs = {name: 0.1 + epoch for name in log.columns}
        log.on_epoch_end(epoch, {**logs, "another": 7.0})
    with open(tmp_path / "log.csv", newline="") as file:
        found = list(csv.DictReader(file))
    # The checkpoint gets the very numbers.
    assert found == [{k: str(v) for k, v in row.items()} for row in rows]
    assert [row["epoch"] for row in rows] == [0, 1]
    assert set(rows[1]) == {"epoch", *expected} and rows[1]["loss"] == 1.1


def test_dropout_draws_by_the_step_alone():
    """As if there had been no interruption, also with other draws before."""
    drawn = []
    for goes_on in (False, True):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((64,)), keras.layers.Dropout(0.5)]
        )
        ones = np.ones((1, 64), "float32")
        if goes_on:
            callbacks.place_generators(model, 2)
        steps = [model(ones, training=True) for _ in range(2 if goes_on else 4)]
        drawn.append(
            [keras.ops.convert_to_numpy(step).tolist() for step in steps]
        )
    assert drawn[1] == drawn[0][2:]
    assert drawn[0][2] != drawn[0][3] and drawn[0][2] != drawn[0][0]


@pytest.mark.parametrize("choose", (True, False))
def test_keeper_keeps_the_best_epoch_where_pictures_choose(
    tmp_path, model, choose
):
    keeper = callbacks.Keeper(tmp_path, model, {}, {"flags": {}}, choose)
    keeper.set_model(model)
    keeper.set_params({"epochs": 6})
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


def test_figures_of_an_epoch_are_means_over_its_pictures():
    # What Keras makes of a figure that is 1, 2 and 9 in the three batches.
    rows, values = [6, 6, 3], [1.0, 2.0, 9.0]
    means = [np.average(values[:n], weights=rows[:n]) for n in (1, 2, 3)]
    exact = callbacks.ExactMeans(Filled(), Filled())
    for batch, mean in enumerate(means):
        exact.on_train_batch_end(batch, {"loss": mean})
        exact.on_test_batch_end(batch, {"loss": -mean})
    logs = {"loss": means[-1], "val_loss": -means[-1], "other": 7.0}
    exact.on_epoch_end(0, logs)
    mean = pytest.approx(np.average(values, weights=[4, 4, 1]))
    assert logs["loss"] == mean and -logs["val_loss"] == mean
    assert logs["other"] == 7 and logs["loss"] != pytest.approx(means[-1])


@pytest.mark.parametrize("found", (0, 1))
@pytest.mark.parametrize("replicas", (1, 2))
def test_balanced_accuracy_is_the_same_on_several_devices(replicas, found):
    """All pictures are taken for one class, of which there are ten, or one."""
    x, y = np.zeros((11, 2, 2, 1), "uint8"), np.array([0] * 10 + [1])
    batches = ShiftedBatches(
        x,
        y,
        2,
        10,
        replicas=replicas,
        class_weight=balanced_weights(y, 2),
        decoder=False,
    )
    image = keras.Input((2, 2, 1))
    dense = keras.layers.Dense(2, kernel_initializer="zeros")
    scores = {"capsnet": dense(keras.layers.Flatten()(image))}
    model = keras.Model(image, scores)
    dense.bias.assign(np.eye(2)[found])
    name = "capsnet_accuracy"
    accuracy = keras.metrics.CategoricalAccuracy(name=name)
    model.compile(
        keras.optimizers.SGD(0.0), "mae", weighted_metrics={"capsnet": accuracy}
    )
    exact = callbacks.ExactMeans(batches)
    done = model.fit(batches, shuffle=False, verbose=0, callbacks=[exact])
    # Of each class as much as of the other: one of two is right.
    assert done.history[name] == [pytest.approx(0.5)]
    # Balanced, the absolute error of 0 or 1 is 1/2 for a picture.
    assert done.history["loss"] == [pytest.approx(0.5)]
