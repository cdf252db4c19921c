"""Tests of averages.py: averaged weights, and the statistics beside them."""

import keras
import numpy as np
import pytest
from keras import layers

from capsnet.data.batches import ShiftedBatches, pipeline
from capsnet.data.sources import Dataset
from capsnet.files import read_state
from capsnet.models.inference import lengths_model, predict
from capsnet.models.networks import attach
from capsnet.training.averages import average_statistics, bounded_momentum
from capsulenet import compile_model, train
from utils import read_log

EPSILON = 0.01


@pytest.mark.parametrize(
    "ema, steps, expected",
    (
        (0.999, 480, 1 - 1 / 48),
        (0.999, 20000, 0.999),
        (0.9, 50, 0.8),
        (0.9, 10, 0.0),
        (0.9, 1, 0.0),
        (0.0, 480, 0.0),
    ),
)
def test_average_remembers_at_most_a_tenth_of_the_run(ema, steps, expected):
    assert bounded_momentum(ema, steps) == pytest.approx(expected, abs=1e-12)


def models_of(image_shape=(3, 3, 1)):
    """A network whose first layer normalizes, and one inside another."""
    keras.utils.set_random_seed(0)
    image = layers.Input(image_shape, name="image")
    normalize = layers.BatchNormalization(epsilon=EPSILON, name="outer")
    inner = keras.Sequential(
        [
            layers.Input((9,)),
            layers.Dense(4, name="dense"),
            layers.BatchNormalization(epsilon=EPSILON, name="inner"),
        ],
        name="part",
    )
    hidden = inner(layers.Flatten()(normalize(image)))
    scores = layers.Dense(2, activation="sigmoid", name="capsnet")(hidden)
    return attach(keras.Model(image, {"capsnet": scores}, name="tiny"))


def batches_of(count=12, size=4):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, 3, 3, 1), dtype="uint8")
    y = np.arange(count) % 2
    x[y == 1] //= 2
    return ShiftedBatches(x, y, 2, size, decoder=False, shuffle=True)


def numbers(*variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


class Watch(keras.callbacks.Callback):
    """What the layers see, and the weights, before and after each step."""

    def __init__(self):
        super().__init__()
        self.dense, self.weights = [], []

    def on_train_batch_begin(self, batch, logs=None):
        outer, part = (self.model.get_layer(n) for n in ("outer", "part"))
        dense = part.get_layer("dense")
        self.dense.append(
            numbers(outer.gamma, outer.beta, dense.kernel, dense.bias)
        )

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(numbers(*self.model.trainable_variables))


def moving(values, momentum):
    """The first value, then a moving average of all."""
    average = values[0]
    for value in values[1:]:
        average = momentum * average + (1 - momentum) * value
    return average


def expected_statistics(batches, watch, momentum):
    """Mean and variance of both layers, averaged over the steps by hand."""
    outer, inner = [], []
    for step, (gamma, beta, kernel, bias) in enumerate(watch.dense):
        batches.set_epoch(step // len(batches))
        x = batches[step % len(batches)][0].astype("float64")
        mean, variance = x.mean(), x.var()
        outer.append(np.array([mean, variance]))
        x = gamma * (x - mean) / np.sqrt(variance + EPSILON) + beta
        x = x.reshape(len(x), -1) @ kernel + bias
        inner.append(np.stack([x.mean(axis=0), x.var(axis=0)]))
    return moving(outer, momentum), moving(inner, momentum)


def trained(momentum, epochs=3):
    """The models of a run, its batches and its watcher."""
    models, batches, watch = models_of(), batches_of(), Watch()
    compile_model(models[0], 0.05, 0.0, momentum)
    average_statistics(models[0], momentum, 9, batches)
    tell = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: batches.set_epoch(epoch)
    )
    models[0].fit(
        pipeline(batches),
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[tell, watch],
    )
    # The averaged weights are in the model when `fit` has ended.
    return models, batches, watch


@pytest.mark.parametrize("momentum", (0.75, 0.2))
def test_statistics_are_averaged_like_the_weights(momentum):
    models, batches, watch = trained(momentum)
    outer, inner = expected_statistics(batches, watch, momentum)
    first, second = (
        models[1].get_layer("outer"),
        models[1].get_layer("part").get_layer("inner"),
    )
    for layer, (mean, variance) in ((first, outer), (second, inner)):
        found = numbers(layer.moving_mean, layer.moving_variance)
        np.testing.assert_allclose(found[0].squeeze(), mean, atol=1e-5)
        np.testing.assert_allclose(
            found[1].squeeze(), variance, rtol=1e-4, atol=1e-6
        )
    for index, found in enumerate(numbers(*models[0].trainable_variables)):
        steps = [weights[index] for weights in watch.weights]
        expected = moving(steps, momentum)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_averaged_model_predicts_with_both_averages():
    models, batches, watch = trained(0.75)
    outer, inner = expected_statistics(batches, watch, 0.75)
    averages = [
        moving([weights[index] for weights in watch.weights], 0.75)
        for index in range(len(watch.weights[0]))
    ]
    gamma, beta, kernel, bias, scale, center, top, offset = averages
    x = batches.x.astype("float64") / 255
    x = gamma * (x - outer[0]) / np.sqrt(outer[1] + EPSILON) + beta
    x = x.reshape(len(x), -1) @ kernel + bias
    x = scale * (x - inner[0]) / np.sqrt(inner[1] + EPSILON) + center
    expected = 1 / (1 + np.exp(-(x @ top + offset)))
    found = predict(lengths_model(models[1]), batches.x)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def run_of(folder, data, *ends):
    """A run that goes on after each end; returns its log and its model."""
    folder.mkdir()
    for epochs in ends:
        resumed = None if epochs == ends[0] else read_state(folder)
        flags = {"ema": 0.75, "lr": 0.05, "batch_size": 4, "verbose": 0}
        flags |= {"epochs": epochs, "resumed": resumed}
        train(models_of(), data, folder, **flags)
    model = keras.models.load_model(folder / "trained_model.keras")
    return folder / "log.csv", model


def test_saved_and_resumed_runs_have_the_same_averages(tmp_path):
    batches = batches_of(40)
    x, y = batches.x, batches.y
    data = Dataset(x, y, x[::-1], y[::-1], ["a", "b"], "a test")
    log, model = run_of(tmp_path / "never", data, 3)
    other_log, other = run_of(tmp_path / "often", data, 1, 3)
    assert log.read_bytes() == other_log.read_bytes()
    for ours, theirs in zip(model.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(ours, theirs)
    layer = model.get_layer("outer")
    (mean,), (variance,) = numbers(layer.moving_mean, layer.moving_variance)
    assert mean == pytest.approx((x / 255).mean(), rel=0.1)
    assert variance == pytest.approx((x / 255).var(), rel=0.2)
    # The saved model is the one that was tested.
    found = predict(lengths_model(model), data.x_test).argmax(-1)
    error = 100 * np.mean(found != data.y_test)
    assert read_log(log)["test_error"][-1] == pytest.approx(error)


def test_run_that_goes_on_keeps_its_statistics():
    models, *_ = trained(0.75, epochs=1)
    layer = models[1].get_layer("outer")
    before = numbers(layer.moving_mean, layer.moving_variance)
    average_statistics(models[0], 0.5, 3)
    assert layer.momentum == 0.5
    after = numbers(layer.moving_mean, layer.moving_variance)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("steps, expected", ((200, 0.95), (50000, 0.99)))
def test_statistics_of_the_weights_themselves_forget_the_first_steps(
    steps, expected
):
    models, batches = models_of(), batches_of()
    average_statistics(models[0], 0.0, steps, batches)
    layer = models[1].get_layer("outer")
    assert layer.momentum == pytest.approx(expected)
    x = batches[0][0].astype("float64")
    mean, variance = numbers(layer.moving_mean, layer.moving_variance)
    np.testing.assert_allclose(mean, x.mean(), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var(), rtol=1e-4)
