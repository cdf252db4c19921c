"""Tests of fastconv.py, against keras.layers.Conv2D."""

import importlib
from fractions import Fraction

import keras
import numpy as np
import pytest
from keras import ops
from keras.layers import Conv2D

from capsnet.devices import runs_on_cpu
from capsnet.models import fastconv as fastconv_room  # noqa: E402
from capsnet.models.fastconv import (
    FastConv2D,
    fast_convolution,
    transform_kernel,
)
from capsnet.models.inference import Predictor
from capsnet.models.toomcook import (
    MAX_POINTS,
    AxisPlan,
    balanced_toom_cook,
    plan,
    saving,
    toom_cook,
)
from capsulelayers import PrimaryCap

TRANSFORMS = [
    (m, r) for m in range(1, 11) for r in range(1, 11) if m + r - 1 <= 10
]
# CapsNet's layers: size, kernel, strides, padding, channels, filters.
CONV1 = (28, 28), (9, 9), (1, 1), "valid", 1, 256
PRIMARY = (20, 20), (9, 9), (2, 2), "valid", 256, 256


def random_normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def relative_error(value, reference):
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


def gradients(function, *values):
    """Gradients of a scalar function, by the backend's own means."""
    values = [ops.convert_to_tensor(value) for value in values]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(*values)
        found = tape.gradient(result, values)
    elif keras.backend.backend() == "jax":
        import jax

        # Without optimization, which takes longer than tiny shapes do.
        options = {"xla_backend_optimization_level": 0}
        gradient = jax.grad(function, tuple(range(len(values))))
        found = jax.jit(gradient, compiler_options=options)(*values)
    else:
        import torch

        values = [value.detach().requires_grad_() for value in values]
        found = torch.autograd.grad(function(*values), values)
    return [to_numpy(gradient) for gradient in found]


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


# The transform


@pytest.mark.parametrize("m, r", TRANSFORMS)
def test_transform_is_exact_in_fractions(m, r):
    """For each pair of unit vectors, and so for all pictures and kernels."""
    output, kernel, data = toom_cook(m, r)
    n = m + r - 1
    for tap in range(r):
        for position in range(n):
            products = [kernel[j][tap] * data[j][position] for j in range(n)]
            for i in range(m):
                value = sum(output[i][j] * products[j] for j in range(n))
                assert type(value) is Fraction
                assert value == (position == i + tap)


@pytest.mark.parametrize("m, r", TRANSFORMS)
def test_balancing_equals_the_norms_and_keeps_the_result(m, r):
    exact = [np.array(matrix, dtype="float64") for matrix in toom_cook(m, r)]
    output, kernel, data = balanced = balanced_toom_cook(m, r)
    for j in range(m + r - 1):
        np.testing.assert_allclose(
            np.einsum("a,b,c", output[:, j], kernel[j], data[j]),
            np.einsum("a,b,c", exact[0][:, j], exact[1][j], exact[2][j]),
            rtol=1e-12,
        )
        norms = [np.linalg.norm(output[:, j])]
        norms += [np.linalg.norm(matrix[j]) for matrix in balanced[1:]]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-12)


def test_transform_refuses_too_many_points():
    assert MAX_POINTS == 10
    with pytest.raises(ValueError, match="Received: m=6, r=6"):
        toom_cook(6, 6)


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


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [(1, 2), (3, 1)])
@pytest.mark.parametrize("kernel_size", [(3, 5), (7, 4), (1, 9)])
def test_rows_and_columns_may_differ(kernel_size, strides, padding):
    assert_like_conv2d((9, 17), kernel_size, strides, padding)


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 10), (10, 11)])
def test_odd_padding_is_laid_where_conv2d_lays_it(size):
    """4 taps at a stride of 3: up to 3 rows of padding, more of it below."""
    axes = [AxisPlan(n, 4, 3, "same") for n in size]
    totals = [(a.outputs - 1) * 3 + 4 - a.size for a in axes]
    assert any(total % 2 for total in totals)
    assert_like_conv2d(size, 4, 3, "same")


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_may_be_larger_than_the_picture(stride):
    assert_like_conv2d((4, 2), 7, stride, "same")


def test_a_stride_may_be_larger_than_the_kernel():
    assert_like_conv2d((11, 12), 2, 3, "valid")


def test_a_batch_of_one_keeps_its_axis():
    assert_like_conv2d((8, 9), 3, 1, "valid", batch=1)


# The choice of the method


def test_primary_capsules_need_less_than_a_third_of_the_products(monkeypatch):
    monkeypatch.setattr(fastconv_room, "runs_on_cpu", lambda: True)
    assert saving(*PRIMARY) > 3.5
    axes, _ = plan(*PRIMARY[:4])
    assert [(axis.m, axis.n) for axis in axes] == [(6, 19), (6, 19)]
    assert axes[0].parts == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    assert chosen(PRIMARY)


def chosen(geometry, **kwargs):
    """Whether a layer takes the fast path for pictures of this geometry."""
    size, kernel_size, strides, padding, channels, filters = geometry
    layer = FastConv2D(
        filters, kernel_size, strides=strides, padding=padding, **kwargs
    )
    return layer.uses_fast_path((None, *size, channels))


def test_auto_is_direct_where_it_saves_too_little(monkeypatch):
    monkeypatch.setattr(fastconv_room, "runs_on_cpu", lambda: True)
    assert saving(*CONV1) < 2
    assert not chosen(CONV1)
    assert chosen(CONV1, method="fast")


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_auto_is_direct_in_16_bits(dtype, monkeypatch):
    monkeypatch.setattr(fastconv_room, "runs_on_cpu", lambda: True)
    assert not chosen(PRIMARY, dtype=dtype)
    assert chosen(PRIMARY, dtype=dtype, method="fast")


def test_auto_is_direct_where_a_gpu_is_visible(monkeypatch):
    monkeypatch.setattr(fastconv_room, "runs_on_cpu", lambda: False)
    assert not chosen(PRIMARY)
    assert chosen(PRIMARY, method="fast")


@pytest.mark.parametrize("gpu", [True, False])
def test_a_visible_gpu_is_found(gpu, monkeypatch):
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
    assert runs_on_cpu() is not gpu


def test_direct_is_never_fast():
    assert not chosen(PRIMARY, method="direct")


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
    assert outputs.dtype == expected.dtype == layer.compute_dtype
    expected = to_numpy(expected)
    assert relative_error(to_numpy(outputs), expected) < 0.01


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_symbolic_and_eager_shapes_agree(padding):
    pictures = random_normal(2, 9, 8, 3)
    layer = FastConv2D(4, 3, strides=2, padding=padding, method="fast")
    eager = layer(pictures).shape
    assert tuple(layer(keras.Input((9, 8, 3))).shape) == (None, *eager[1:])
    assert tuple(layer.compute_output_shape((2, 9, 8, 3))) == tuple(eager)


def test_one_step_of_fit_lowers_the_loss():
    keras.utils.set_random_seed(0)
    pictures, targets = random_normal(4, 9, 8, 3), random_normal(4, 7, 6, 4)
    layer = FastConv2D(4, 3, method="fast")
    model = keras.Sequential([keras.Input((9, 8, 3)), layer])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    # The loss of a step is the one before its update.
    steps = model.fit(pictures, targets, batch_size=4, epochs=2, verbose=0)
    before, after = steps.history["loss"]
    assert after < before


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


class Holder(keras.Model):
    """A model that holds its convolution as an attribute."""

    def __init__(self, layer):
        super().__init__()
        self.convolution = layer

    def build(self, input_shape):
        self.convolution.build(input_shape)

    def call(self, inputs):
        return self.convolution(inputs)


@pytest.mark.parametrize(
    "writer, reader", [(FastConv2D, Conv2D), (Conv2D, FastConv2D)]
)
def test_files_of_weights_serve_conv2d_too(writer, reader, tmp_path):
    path = tmp_path / "model.weights.h5"
    first, second = (
        Holder(kind(4, 3, bias_initializer="normal"))
        for kind in (writer, reader)
    )
    first.build((None, 9, 8, 3))
    second.build((None, 9, 8, 3))
    first.save_weights(path)
    second.load_weights(path)
    assert len(first.get_weights()) == 2
    for loaded, saved in zip(second.get_weights(), first.get_weights()):
        np.testing.assert_array_equal(loaded, saved)
    pictures = random_normal(2, 9, 8, 3)
    expected = to_numpy(first(pictures))
    assert relative_error(to_numpy(second(pictures)), expected) < 5e-4


@pytest.mark.parametrize(
    "source, target", [(FastConv2D, Conv2D), (Conv2D, FastConv2D)]
)
def test_files_of_functional_models_serve_conv2d_too(source, target, tmp_path):
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


# Prediction


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
    # The model by itself transforms its kernels again.
    model.set_weights([0 * w for w in model.get_weights()])
    assert not np.any(model.predict(pictures, verbose=0)["sum"])


def test_predictor_transforms_each_kernel_once_for_all_batches(monkeypatch):
    model, pictures = network("fast"), random_normal(9, 12, 11, 2)
    predictor, calls = Predictor(model), []
    transform = transform_kernel

    def watch(kernel, *args):
        calls.append(tuple(kernel.shape))
        return transform(kernel, *args)

    monkeypatch.setattr(fastconv_room, "transform_kernel", watch)
    for _ in range(2):
        predictor.predict(pictures, batch_size=2, verbose=0)
        assert sorted(calls) == [(3, 3, 3, 8), (5, 5, 2, 3)]
        calls.clear()


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
