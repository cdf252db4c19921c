"""The fast convolution, against keras.layers.Conv2D."""

import importlib

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Conv2D
from numerics import gradients, random_normal, relative_error, to_numpy

from capsnet.devices import runs_on_cpu
from capsnet.models.fastconv import FastConv2D, fast_convolution
from capsnet.models.toomcook import AxisPlan, saving

# CapsNet's layers: size, kernel, strides, padding, channels, filters.
CONV1 = (28, 28), (9, 9), (1, 1), "valid", 1, 256
PRIMARY = (20, 20), (9, 9), (2, 2), "valid", 256, 256
on_cpu = pytest.mark.skipif(not runs_on_cpu(), reason="auto is for CPUs")


def assert_like_conv2d(size, kernel_size, strides, padding, batch=2):
    """Output and both gradients, relative error below 5e-4."""
    direct = Conv2D(4, kernel_size, strides=strides, padding=padding)
    strides = direct.strides
    pictures = random_normal(batch, *size, 3)
    kernel = random_normal(*direct.kernel_size, 3, 4, seed=1)
    direct.build(pictures.shape)
    shape = direct.compute_output_shape(pictures.shape)
    weights = random_normal(*shape, seed=2)

    def by_conv2d(pictures, kernel):
        return direct.convolution_op(pictures, kernel)

    def by_toom_cook(pictures, kernel):
        return fast_convolution(pictures, kernel, strides, padding)

    # The gradient by the weights of the sum is the output itself.
    expected, values = (
        gradients(
            lambda x, k, w: ops.sum(function(x, k) * w),
            pictures,
            kernel,
            weights,
        )
        for function in (by_conv2d, by_toom_cook)
    )
    for value, reference in zip(values, expected):
        assert value.shape == reference.shape
        assert relative_error(value, reference) < 5e-4


def divides(axis):
    return axis.tiles * axis.m == axis.outputs


def chosen(geometry, **kwargs):
    """Whether a layer takes the fast path for pictures of this geometry."""
    size, kernel_size, strides, padding, channels, filters = geometry
    layer = FastConv2D(filters, kernel_size, strides, padding, **kwargs)
    return layer.uses_fast_path((None, *size, channels))


def layers_with_equal_weights(pictures, *args, dtype=None, **kwargs):
    """A fast layer and Keras's own, with the same weights and a bias."""
    layer = FastConv2D(
        *args, method="fast", bias_initializer="normal", dtype=dtype, **kwargs
    )
    direct = Conv2D(*args, dtype=dtype, **kwargs)
    layer.build(pictures.shape)
    direct.build(pictures.shape)
    direct.set_weights(layer.get_weights())
    return layer, direct


# The convolution


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", range(3, 12))
def test_output_and_gradients_equal_those_of_conv2d(
    kernel_size, stride, padding
):
    """Rows divide into tiles and columns do not, where that can be."""
    sizes = range(kernel_size, kernel_size + 13 * stride)
    axes = [AxisPlan(size, kernel_size, stride, padding) for size in sizes]
    rows = [axis.size for axis in axes if divides(axis) and axis.tiles > 1]
    columns = [axis.size for axis in axes if not divides(axis)]
    assert columns or kernel_size == stride  # One tap: tiles of one output.
    size = rows[0], (columns or rows)[0]
    assert_like_conv2d(size, kernel_size, stride, padding)


@pytest.mark.parametrize(
    "size, kernel_size, strides, padding, batch",
    [
        *(
            ((9, 17), kernel_size, strides, padding, 2)
            for kernel_size in [(3, 5), (7, 4), (1, 9)]
            for strides in [(1, 2), (3, 1)]
            for padding in ["valid", "same"]
        ),
        # A kernel larger than the picture, a stride larger than the kernel,
        # a batch of one.
        ((4, 2), 7, 1, "same", 2),
        ((4, 2), 7, 2, "same", 2),
        ((11, 12), 2, 3, "valid", 2),
        ((8, 9), 3, 1, "valid", 1),
    ],
)
def test_rows_and_columns_may_differ(
    size, kernel_size, strides, padding, batch
):
    assert_like_conv2d(size, kernel_size, strides, padding, batch)


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 10), (10, 11)])
def test_odd_padding_is_laid_where_conv2d_lays_it(size):
    """4 taps at a stride of 3: up to 3 rows of padding, more of it below."""
    axes = [AxisPlan(n, 4, 3, "same") for n in size]
    totals = [(a.outputs - 1) * 3 + 4 - a.size for a in axes]
    assert any(total % 2 for total in totals)
    assert_like_conv2d(size, 4, 3, "same")


# The choice of the method


@on_cpu
def test_auto_is_fast_on_a_cpu_where_it_saves_half():
    assert chosen(PRIMARY) and not chosen(PRIMARY, method="direct")
    assert not chosen(CONV1) and chosen(CONV1, method="fast")
    on_jax = keras.backend.backend() == "jax"
    nearly_half = (12, 12), (5, 5), (2, 2), "valid", 64, 64
    assert 1.8 < saving(*nearly_half) < 2 and chosen(nearly_half) == on_jax
    # On JAX what is strided is fast at any price, the rest where it saves.
    strided = (20, 20), (3, 3), (2, 2), "valid", 64, 64
    plain = (24, 24), (3, 3), (1, 1), "valid", 32, 64
    assert saving(*strided) < 1 and chosen(strided) == on_jax
    assert 1 < saving(*plain) < 2 and chosen(plain) == on_jax


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_auto_is_direct_in_16_bits(dtype):
    assert not chosen(PRIMARY, dtype=dtype)
    assert chosen(PRIMARY, dtype=dtype, method="fast")


@pytest.mark.parametrize("gpu", [True, False])
def test_auto_is_direct_where_a_gpu_is_visible(gpu, monkeypatch):
    backend = keras.backend.backend()
    name, answer = {
        "tensorflow": ("config.get_visible_devices", ["GPU:0"] if gpu else []),
        "jax": ("default_backend", "gpu" if gpu else "cpu"),
        "torch": ("cuda.is_available", gpu),
    }[backend]
    module = importlib.import_module(backend)
    *path, function = name.split(".")
    for part in path:
        module = getattr(module, part)
    monkeypatch.setattr(module, function, lambda *_: answer)
    assert runs_on_cpu() == (not gpu)
    assert chosen(PRIMARY) == (not gpu)
    assert chosen(PRIMARY, method="fast")


@pytest.mark.parametrize("method", ["Fast", "winograd", None])
def test_wrong_method_is_refused(method):
    with pytest.raises(ValueError, match="Received: method="):
        FastConv2D(4, 3, method=method)


@pytest.mark.parametrize(
    "arguments", [{"dilation_rate": 2}, {"groups": 3}], ids=str
)
def test_dilation_and_groups_are_computed_directly(arguments):
    pictures = random_normal(2, 9, 8, 3)
    layer, direct = layers_with_equal_weights(pictures, 6, 3, **arguments)
    assert not layer.uses_fast_path(pictures.shape)
    np.testing.assert_allclose(
        to_numpy(layer(pictures)), to_numpy(direct(pictures)), atol=1e-6
    )


def test_channels_first_is_computed_directly():
    layer = FastConv2D(4, 3, data_format="channels_first", method="fast")
    assert not layer.uses_fast_path((None, 3, 9, 8))


@pytest.mark.parametrize("shape", [(None, 8, 3), (9, None, 3)])
def test_pictures_of_unknown_size_are_computed_directly(shape):
    pictures = random_normal(2, 9, 8, 3)
    layer, direct = layers_with_equal_weights(pictures, 4, 3)
    assert layer.uses_fast_path(pictures.shape)
    assert not layer.uses_fast_path((None, *shape))
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layer(inputs))
    assert tuple(model.output.shape) == tuple(direct(inputs).shape)
    outputs = model.predict(pictures, verbose=0)
    assert relative_error(outputs, to_numpy(direct(pictures))) < 5e-4


# The layer


def test_layer_equals_conv2d_with_bias_and_activation():
    pictures = random_normal(2, 9, 8, 3)
    layer, direct = layers_with_equal_weights(pictures, 4, 3, activation="relu")
    expected = to_numpy(direct(pictures))
    assert relative_error(to_numpy(layer(pictures)), expected) < 5e-4


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_16_bit_policy_keeps_its_dtype_on_the_fast_path(dtype):
    """Within 1 % of Conv2D under the same policy."""
    pictures = random_normal(2, 9, 8, 3)
    layer, direct = layers_with_equal_weights(pictures, 4, 3, dtype=dtype)
    outputs, expected = layer(pictures), direct(pictures)
    kept = keras.backend.standardize_dtype(outputs.dtype)
    assert kept == layer.compute_dtype and outputs.dtype == expected.dtype
    expected = to_numpy(expected)
    assert relative_error(to_numpy(outputs), expected) < 0.01


# Config and files


def test_config_is_that_of_conv2d_and_the_method():
    arguments = {"strides": 2, "padding": "same", "activation": "relu"}
    config = FastConv2D(4, 3, method="fast", name="c", **arguments).get_config()
    copy = FastConv2D.from_config(config)
    assert copy.get_config() == config
    assert config.pop("method") == copy.method == "fast"
    direct = Conv2D(4, 3, name="c", **arguments).get_config()
    assert config == direct
    assert Conv2D.from_config(config).get_config() == direct
    copy = FastConv2D.from_config(direct).get_config()
    assert copy == {**direct, "method": "auto"}


def test_whole_model_survives_a_file_in_safe_mode(tmp_path):
    pictures = random_normal(2, 9, 8, 3)
    inputs = keras.Input((9, 8, 3))
    layer = FastConv2D(4, 3, method="fast", name="c")
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert type(copy.get_layer("c")) is FastConv2D
    assert copy.get_layer("c").method == "fast"
    np.testing.assert_array_equal(
        copy.predict(pictures, verbose=0), model.predict(pictures, verbose=0)
    )


@pytest.mark.parametrize(
    "source, target", [(FastConv2D, Conv2D), (Conv2D, FastConv2D)]
)
def test_files_of_weights_serve_conv2d_too(source, target, tmp_path):
    models = []
    for kind in (source, target):
        inputs = keras.Input((9, 8, 3))
        layer = kind(4, 3, bias_initializer="normal")
        models.append(keras.Model(inputs, layer(inputs)))
    models[0].save_weights(tmp_path / "model.weights.h5")
    models[1].load_weights(tmp_path / "model.weights.h5")
    pictures = random_normal(2, 9, 8, 3)
    first, second = (to_numpy(model(pictures)) for model in models)
    assert relative_error(second, first) < 5e-4
