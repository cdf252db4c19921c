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
    squash,
)
from capsulenet import margin_loss

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


# As Keras users use them


def test_classic_call_is_told_how_a_layer_is_called():
    inputs = keras.Input((7, 6, 3))
    shown = r"PrimaryCap\(8, 32, 9, strides=2\)\(inputs\)"
    with pytest.raises(TypeError, match=shown):
        PrimaryCap(inputs, dim_capsule=4, n_channels=2, kernel_size=3)
    with pytest.raises(TypeError, match=shown):
        PrimaryCap(inputs, 4, 2, 3, 2, "valid")
    with pytest.raises(TypeError, match=shown):
        PrimaryCap(inputs=inputs, dim_capsule=4, n_channels=2, kernel_size=3)


@pytest.mark.parametrize("name", ["primarycap", "covering", "capsules"])
def test_kernels_are_regularized_and_constrained(name, tmp_path):
    keras.utils.set_random_seed(0)
    options = {"kernel_regularizer": keras.regularizers.L2(0.5)}
    options["kernel_constraint"] = keras.constraints.MaxNorm(0.25, axis=-1)
    layer, shape = {
        "primarycap": (PrimaryCap(4, 2, 3, **options), (7, 6, 3)),
        "covering": (PrimaryCap(4, 2, None, **options), (7, 6, 8)),
        "capsules": (CapsuleLayer(3, 5, **options), (6, 4)),
    }[name]
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    kernel = getattr(layer, "conv", layer).kernel
    squares = (to_numpy(kernel).astype("float64") ** 2).sum()
    (loss,) = model.losses
    np.testing.assert_allclose(to_numpy(loss), 0.5 * squares, rtol=1e-5)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x = random_normal(2, *shape)
    model.train_on_batch(x, np.zeros((2, *layer.output.shape[1:])))
    assert np.linalg.norm(to_numpy(kernel), axis=-1).max() <= 0.25001
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert copy.layers[1].get_config() == layer.get_config()
    assert len(copy.losses) == 1


def skip_without_float64():
    if keras.backend.backend() != "tensorflow":
        # JAX has it where it is told to; Keras's matmul on PyTorch never.
        pytest.skip("Keras has no float64 on this backend")


@pytest.mark.parametrize("routing", ["dynamic", "leaky", "max_min"])
def test_float64_policy_is_computed_in_float64(routing):
    """One round, against NumPy; each coupling is its kind's first one."""
    share = {"dynamic": 1 / 3, "leaky": 1 / 4, "max_min": 1.0}[routing]
    skip_without_float64()
    layer = CapsuleLayer(3, 5, routings=1, routing=routing, dtype="float64")
    inputs = np.random.default_rng(0).normal(size=(2, 6, 4))
    received = ops.convert_to_numpy(layer(inputs))
    kernel = ops.convert_to_numpy(layer.kernel)
    assert received.dtype == kernel.dtype == "float64"
    total = share * np.einsum("bik,jidk->bjd", inputs, kernel)
    length = np.linalg.norm(total, axis=-1, keepdims=True)
    expected = total * length / (1 + length**2)
    np.testing.assert_allclose(received, expected, rtol=1e-13)
    lengths = ops.convert_to_numpy(Length(dtype="float64")(expected))
    expected = np.linalg.norm(expected, axis=-1)
    np.testing.assert_allclose(lengths, expected, rtol=1e-13)


def test_float64_primary_capsules_and_later_rounds():
    """Gradients of the whole, against central differences in float64."""
    skip_without_float64()
    primary = PrimaryCap(4, 2, 3, method="fast", dtype="float64")
    capsules = CapsuleLayer(3, 5, use_bias=True, dtype="float64")
    pictures = np.random.default_rng(0).normal(size=(1, 5, 5, 2))
    once = ops.convert_to_numpy(capsules(primary(pictures)))
    moved = pictures.copy()
    moved[0, 2, 2, 0] += 1e-9  # Float32 would not see it.
    twice = ops.convert_to_numpy(capsules(primary(moved)))
    moved[0, 2, 2, 0] += 1e-9
    thrice = ops.convert_to_numpy(capsules(primary(moved)))
    first, second = twice - once, thrice - twice
    assert np.abs(first).max() > 1e-12
    np.testing.assert_allclose(first, second, atol=1e-15)


def test_integers_are_as_good_as_floats():
    np.testing.assert_allclose(
        to_numpy(squash(np.array([[3, 4]]))), [[15 / 26, 20 / 26]], rtol=1e-6
    )
    generator = np.random.default_rng(0)
    for layer, shape in (
        (CapsuleLayer(3, 5), (2, 6, 4)),
        (PrimaryCap(4, 2, 3), (2, 7, 6, 3)),
        (Length(), (2, 6, 4)),
    ):
        integers = generator.integers(0, 9, shape)
        expected = to_numpy(layer(integers.astype("float32")))
        assert expected.any()
        np.testing.assert_array_equal(to_numpy(layer(integers)), expected)


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def test_channels_that_come_first_are_refused(channels_first):
    with pytest.raises(ValueError, match="data_format.*'channels_last'"):
        PrimaryCap(4, 2, 3)
    layer = PrimaryCap(4, 2, 3, data_format="channels_last")
    assert layer(random_normal(1, 7, 6, 3)).shape == (1, 5 * 4 * 2, 4)
    again = PrimaryCap.from_config(layer.get_config())
    assert again.data_format == "channels_last"


@pytest.mark.parametrize("shape", [(10,), (10, 1)])
def test_margin_loss_refuses_class_numbers(shape):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)])
    model.compile("sgd", margin_loss)
    with pytest.raises(ValueError, match="to_categorical"):
        model.fit(np.zeros((10, 4)), np.arange(10).reshape(shape), verbose=0)
