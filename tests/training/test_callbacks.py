"""What happens around each epoch, on a model of a few weights."""

import keras
import numpy as np
import pytest

from capsnet.training import callbacks


@pytest.fixture
def model():
    """It takes every picture for class 0; with averaged weights for class 1."""
    image = keras.layers.Input((2, 2, 1), name="image")
    dense = keras.layers.Dense(2, kernel_initializer="zeros", name="dense")
    lengths = dense(keras.layers.Flatten()(image))
    model = keras.Model(image, {"capsnet": lengths})
    # The first step's weights are where the average begins.
    model.compile(keras.optimizers.Adam(1e-12, use_ema=True), "mse")
    dense.bias.assign([0, 1])
    target = {"capsnet": np.zeros((1, 2), "float32")}
    model.train_on_batch(np.zeros((1, 2, 2, 1), "float32"), target)
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


def test_test_error_is_that_of_the_averaged_weights(model, swap):
    x, y = np.zeros((4, 2, 2, 1), "uint8"), np.array([1, 1, 1, 0])
    for given, expected in ((swap, 25), (None, 75)):
        logs = {}
        callbacks.TestError(model, x, y, given).on_epoch_end(0, logs)
        assert logs == {"test_error": expected}
        assert bias_of(model) == [1, 0]


def test_no_error_leaves_the_averaged_weights_in_the_model(model, swap):
    with pytest.raises(KeyboardInterrupt):
        with callbacks.averaged(swap):
            assert bias_of(model) == [0, 1]
            raise KeyboardInterrupt
    assert bias_of(model) == [1, 0]
