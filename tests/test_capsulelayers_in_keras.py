"""The layers in Keras: shapes, configs, files, precision and training."""

import json

import keras
import numpy as np
import pytest
from keras import ops
from numerics import gradients, random_normal, relative_error, to_numpy

from capsnet.models.initializers import CapsuleNormal
from capsulelayers import (
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
)

LAYERS = {
    "length": lambda **kwargs: Length(**kwargs),
    "mask": lambda **kwargs: Mask(**kwargs),
    "primarycap": lambda **kwargs: PrimaryCap(
        4,
        2,
        (3, 2),
        strides=(2, 1),
        padding="same",
        scale=0.5,
        method="direct",
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.3),
        bias_initializer=keras.initializers.Constant(0.1),
        **kwargs,
    ),
    "default_capsules": lambda **kwargs: CapsuleLayer(3, 5, **kwargs),
    "capsules": lambda **kwargs: CapsuleLayer(
        3,
        5,
        routings=2,
        use_bias=True,
        kernel_initializer=CapsuleNormal(seed=3),
        bias_initializer=keras.initializers.Constant(0.1),
        **kwargs,
    ),
}
INPUT_SHAPES = {"primarycap": (7, 6, 3)}
OUTPUT_SHAPES = {
    "length": (6,),
    "mask": (24,),
    "primarycap": (4 * 6 * 2, 4),
    "default_capsules": (3, 5),
    "capsules": (3, 5),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_kind = pytest.mark.parametrize(
    "name", ["length", "mask", "primarycap", "capsules"]
)


def random_inputs(name, batch):
    return random_normal(batch, *INPUT_SHAPES.get(name, (6, 4)))


@each_layer
def test_config_round_trip_keeps_every_argument(name):
    layer = LAYERS[name](name="of_my_own")
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert copy.name == "of_my_own"
    inputs = random_inputs(name, 2)
    layer(inputs)
    copy(inputs)
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(
        to_numpy(copy(inputs)), to_numpy(layer(inputs))
    )


def test_config_holds_the_initializers():
    primary, capsules = (
        LAYERS[name]().get_config() for name in ("primarycap", "capsules")
    )
    assert primary["kernel_initializer"]["config"]["stddev"] == 0.3
    assert capsules["kernel_initializer"]["config"] == {"seed": 3}
    for config in (primary, capsules):
        assert config["bias_initializer"]["config"]["value"] == 0.1


@each_layer
def test_symbolic_and_eager_shapes_agree(name):
    inputs, expected = random_inputs(name, 2), OUTPUT_SHAPES[name]
    symbolic = LAYERS[name]()(keras.Input(inputs.shape[1:]))
    computed = LAYERS[name]().compute_output_shape((None, *inputs.shape[1:]))
    assert tuple(symbolic.shape) == tuple(computed) == (None, *expected)
    assert tuple(LAYERS[name]()(inputs).shape) == (2, *expected)


@each_layer
def test_whole_model_survives_a_file_in_safe_mode(name, tmp_path):
    """A batch of unknown size, too: one model predicts 5 pictures and 1."""
    inputs = random_inputs(name, 5)
    pictures = keras.Input(inputs.shape[1:])
    model = keras.Model(pictures, LAYERS[name]()(pictures))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    expected = model.predict(inputs, verbose=0)
    assert expected.shape == (5, *OUTPUT_SHAPES[name])
    np.testing.assert_array_equal(copy.predict(inputs, verbose=0), expected)
    alone = copy.predict(inputs[:1], verbose=0)
    np.testing.assert_allclose(alone, expected[:1], atol=1e-5)


@each_kind
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_policy_stays_close_to_float32(name, dtype):
    """Within 3 % of the norm; the gradient is finite, at zero too."""
    layer, inputs = LAYERS[name](dtype=f"mixed_{dtype}"), random_inputs(name, 3)
    inputs[2] = 0
    outputs = layer(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == dtype
    exact = LAYERS[name]()
    exact(inputs)
    exact.set_weights(layer.get_weights())
    assert np.isfinite(to_numpy(outputs)).all()
    assert relative_error(to_numpy(outputs), to_numpy(exact(inputs))) < 0.03
    (gradient,) = gradients(
        lambda x: ops.sum(ops.cast(layer(x), "float32")), inputs
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["length", "mask", "primarycap"])
def test_one_step_of_fit_lowers_the_loss(name):
    keras.utils.set_random_seed(0)
    inputs = random_inputs(name, 8)
    below = [LAYERS["primarycap"]()] if name == "primarycap" else []
    above = {"length": [Length()]}.get(name, [Mask(), keras.layers.Dense(3)])
    model = keras.Sequential([*below, CapsuleLayer(3, 5), *above])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    targets = np.eye(3, dtype="float32")[np.arange(8) % 3]
    # The loss of a step is the one before its update.
    steps = model.fit(inputs, targets, batch_size=8, epochs=2, verbose=0)
    before, after = steps.history["loss"]
    assert after < before


def test_integers_of_numpy_are_welcome():
    """`labels.max() + 1` is one, and JSON cannot hold it."""
    capsules = CapsuleLayer(np.int64(3), np.uint8(5), routings=np.int32(2))
    primary = PrimaryCap(np.int64(4), np.int64(2), kernel_size=3)
    for layer in (capsules, primary):
        again = type(layer).from_config(
            json.loads(json.dumps(layer.get_config()))
        )
        assert again.get_config() == layer.get_config()
    assert capsules.get_config()["num_capsule"] == 3


@pytest.mark.parametrize("name", ["primarycap", "capsules"])
def test_a_built_layer_refuses_inputs_of_another_shape(name):
    layer, inputs = LAYERS[name](), random_inputs(name, 2)
    layer(inputs)
    for axis in (1, 2):
        with pytest.raises(ValueError, match="shape"):
            layer(np.concatenate([inputs, inputs], axis=axis))
