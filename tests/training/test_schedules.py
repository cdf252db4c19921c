"""Tests of schedules.py: the rate of every step, computed by hand."""

import math

import keras
import numpy as np
import pytest

from capsnet.training.schedules import schedule, warmup_steps

EPOCHS, STEPS, LR = 5, 4, 0.002
N = EPOCHS * STEPS


def cosine(step, warm, steps):
    """A half wave from the end of the warm-up to the end of the run."""
    return LR * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2


def by_epoch(step):
    return LR * 0.5 ** (step // STEPS)


def by_step(step):
    return LR * 0.5 ** (step / 3)


CASES = (
    ({}, by_epoch),
    ({"lr_decay_steps": 3}, by_step),
    (
        {"warmup": 1.5},
        lambda s: by_epoch(s) * ((s + 1) / 7 if s < 6 else 1),
    ),
    (
        {"warmup": 0.5, "lr_decay_steps": 3},
        lambda s: by_step(s) * ((s + 1) / 3 if s < 2 else 1),
    ),
    ({"lr_schedule": "cosine"}, lambda s: cosine(s, 0, N)),
    (
        {"lr_schedule": "cosine", "warmup": 1},
        lambda s: LR * (s + 1) / 5 if s < 4 else cosine(s, 4, N),
    ),
    # A warm-up of a part of a step is none.
    ({"lr_schedule": "cosine", "warmup": 0.2}, lambda s: cosine(s, 0, N)),
    (
        {"lr_schedule": "cosine", "warmup": 5},
        lambda s: LR * (s + 1) / (N + 1),
    ),
)


@pytest.mark.parametrize("arguments, expected", CASES)
def test_every_step_has_its_rate(arguments, expected):
    rate = schedule(EPOCHS, STEPS, LR, lr_decay=0.5, **arguments)
    rates = [float(rate(step)) for step in range(N)]
    np.testing.assert_allclose(
        rates, [expected(step) for step in range(N)], rtol=1e-5
    )


@pytest.mark.parametrize("steps", (0, 7))
def test_rate_without_warm_up_is_that_of_keras_to_the_last_bit(steps):
    rate = schedule(3, 600, 0.001, "step", 0.9, steps)
    other = keras.optimizers.schedules.ExponentialDecay(
        0.001, steps or 600, 0.9, staircase=steps == 0
    )
    for step in range(1800):
        assert float(rate(step)) == float(other(step))


@pytest.mark.parametrize("warmup", (0, 0.5))
def test_an_epoch_begins_with_its_rate_also_where_division_is_rough(warmup):
    """On a GPU 600 / 600 may be just under 1."""
    rate = schedule(50, 600, 0.001, "step", 0.9, warmup=warmup)
    for epoch in range(1, 50):
        found = float(rate(600 * epoch * (1 - 2**-22)))
        assert found == pytest.approx(0.001 * 0.9**epoch, rel=1e-5)
        found = float(rate(600 * epoch - 1))
        assert found == pytest.approx(0.001 * 0.9 ** (epoch - 1), rel=1e-5)


@pytest.mark.parametrize("arguments, expected", CASES[2:6:3])
def test_optimizer_follows_the_rate_from_its_first_step(arguments, expected):
    """With the gradient 1, Adam moves a weight by the rate."""
    rate = schedule(EPOCHS, STEPS, LR, lr_decay=0.5, **arguments)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(
        keras.optimizers.Adam(rate, epsilon=0.0),
        loss=lambda y_true, y_pred: y_pred,
    )
    before, moved = model.get_weights()[1][0], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            moved.append(before - self.model.get_weights()[1][0])

    x = np.ones((N, 1), "float32")
    model.fit(x, x, batch_size=1, verbose=0, callbacks=[Watch()])
    total = np.cumsum([expected(step) for step in range(N)])
    np.testing.assert_allclose(moved, total, rtol=1e-3)
    # TensorBoard's logs hold the optimizer's settings.
    config = keras.optimizers.serialize(model.optimizer)["config"]
    assert type(rate).__name__ in str(config["learning_rate"])


@pytest.mark.parametrize("warmup, expected", ((0, 0), (0.5, 5), (2, 20)))
def test_warm_up_has_whole_steps(warmup, expected):
    assert warmup_steps(warmup, 10) == expected
