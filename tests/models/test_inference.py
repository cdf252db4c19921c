"""Predictor: as its model, with each kernel transformed once."""

import keras
import numpy as np
import pytest
from keras import ops
from numerics import random_normal, relative_error

from capsnet.models.fastconv import FastConv2D
from capsnet.models.inference import Predictor, lengths_model, predict
from capsulelayers import PrimaryCap


def network(method):
    """A convolution on its own and one inside of another layer."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((12, 11, 2))
    features = FastConv2D(3, 5, strides=2, method=method, name="first")(inputs)
    capsules = PrimaryCap(2, 4, 3, method=method, name="second")(features)
    outputs = {"all": capsules, "sum": keras.layers.Flatten()(features)}
    return keras.Model(inputs, outputs)


def test_predictor_predicts_as_its_model_whatever_its_weights_become():
    model, pictures = network("fast"), random_normal(7, 12, 11, 2)
    predictor = Predictor(model)
    seen = []
    for _ in range(2):
        model.set_weights([2 * w + 0.1 for w in model.get_weights()])
        expected = model.predict(pictures, verbose=0)
        received = predictor.predict(pictures, batch_size=3, verbose=0)
        for name, values in expected.items():
            assert relative_error(received[name], values) < 1e-4
        seen.append(received["sum"])
    assert not np.allclose(*seen)
    # The model by itself transforms its kernels again, traced or not.
    model.set_weights([0 * w for w in model.get_weights()])
    assert not np.any(model.predict(pictures, verbose=0)["sum"])
    assert not np.any(ops.convert_to_numpy(model(pictures)["sum"]))


class Counted(FastConv2D):
    """Counts how often it transforms its kernel on its own."""

    count = 0

    def transform_kernel(self):
        type(self).count += 1
        return super().transform_kernel()


def test_predictor_transforms_each_kernel_once_for_all_batches():
    inputs = keras.Input((12, 11, 2))
    model = keras.Model(inputs, Counted(3, 5, method="fast")(inputs))
    predictor = Predictor(model)
    for _ in range(2):
        Counted.count = 0
        predictor.predict(random_normal(9, 12, 11, 2), batch_size=2, verbose=0)
        assert Counted.count == 1


def test_predictor_of_direct_convolutions_keeps_nothing():
    model, pictures = network("direct"), random_normal(3, 12, 11, 2)
    predictor = Predictor(model)
    assert predictor.transformed == []
    np.testing.assert_array_equal(
        predictor.predict(pictures, verbose=0)["all"],
        model.predict(pictures, verbose=0)["all"],
    )


def test_predictor_adds_nothing_to_what_its_model_saves():
    model = network("fast")
    shapes = [weight.shape for weight in model.get_weights()]
    Predictor(model).predict(random_normal(2, 12, 11, 2), verbose=0)
    assert [weight.shape for weight in model.get_weights()] == shapes


def test_pictures_become_lengths_whatever_the_batch():
    inputs = keras.Input((4, 3, 1), name="image")
    outputs = {"capsnet": ops.mean(inputs, axis=(1, 2)), "decoder": inputs}
    model = keras.Model(inputs, outputs)
    pictures = np.arange(60, dtype="uint8").reshape(5, 4, 3, 1)
    for batch_size in (2, 100):
        lengths = predict(lengths_model(model), pictures, batch_size)
        expected = pictures.mean(axis=(1, 2)) / 255
        np.testing.assert_allclose(lengths, expected, rtol=1e-5)


def test_lengths_that_are_no_numbers_are_told():
    image = keras.Input((2, 2, 1))
    broken = keras.initializers.Constant(np.nan)
    dense = keras.layers.Dense(2, bias_initializer=broken)
    model = keras.Model(image, dense(keras.layers.Flatten()(image)))
    with pytest.raises(FloatingPointError, match="outputs are no numbers"):
        predict(model, np.zeros((3, 2, 2, 1), "uint8"))
