"""Tests of CapsuleLayer, against Procedure 1 in NumPy loops."""

import keras
import numpy as np
import pytest
from conftest import bars, real_data
from keras import ops
from numerics import (
    central_differences,
    gradients,
    random_normal,
    reference_squash,
    reference_votes,
    relative_error,
    to_numpy,
)

from capsnet.data.sources import load
from capsnet.models.initializers import CapsuleNormal
from capsulelayers import (
    CapsuleLayer,
    Length,
    PrimaryCap,
    couple,
)
from capsulenet import margin_loss


def reference_routing(inputs, kernel, routings, bias=None):
    """Procedure 1 for the capsules of one picture: `v` and the last `c`."""
    votes = reference_votes(inputs, kernel)
    num_capsule, input_num_capsule, dim_capsule = votes.shape
    logits = np.zeros((num_capsule, input_num_capsule))
    for _ in range(routings):
        coupling = np.zeros_like(logits)
        for i in range(input_num_capsule):
            exponentials = np.exp(logits[:, i])
            coupling[:, i] = exponentials / sum(exponentials)
        outputs = np.zeros((num_capsule, dim_capsule))
        for j in range(num_capsule):
            total = np.zeros(dim_capsule) if bias is None else bias[j] + 0.0
            for i in range(input_num_capsule):
                total = total + coupling[j, i] * votes[j, i]
            outputs[j] = reference_squash(total)
        for j in range(num_capsule):
            for i in range(input_num_capsule):
                logits[j, i] += votes[j, i] @ outputs[j]
    return outputs, coupling


def capsule_layer(routings=3, bias=None, stddev=1.0):
    """3 capsules of 5 above 6 of 4, with large matrices, and its kernel."""
    use_bias = bias is not None
    layer = CapsuleLayer(3, 5, routings=routings, use_bias=use_bias)
    layer.build((None, 6, 4))
    kernel = stddev * random_normal(3, 6, 5, 4, seed=1)
    layer.set_weights([kernel, bias] if use_bias else [kernel])
    return layer, kernel


@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("routings", [1, 2, 3, 5])
def test_routing_matches_procedure_1(routings, use_bias):
    """The bias is added in every round; the coupling is over the outputs."""
    inputs = random_normal(2, 6, 4)
    bias = random_normal(3, 5, seed=2) if use_bias else None
    layer, kernel = capsule_layer(routings, bias)
    outputs, coupling = map(to_numpy, layer.route(inputs))
    for i in range(2):
        expected = reference_routing(inputs[i], kernel, routings, bias)
        np.testing.assert_allclose(outputs[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(coupling[i], expected[1], atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer(inputs)), outputs, atol=1e-6)


def test_capsule_layer_has_no_bias_by_default():
    layer = CapsuleLayer(3, 5)
    layer.build((None, 6, 4))
    assert [tuple(w.shape) for w in layer.weights] == [(3, 6, 5, 4)]


def test_prediction_does_not_depend_on_batch_neighbours():
    pictures = random_normal(7, 6, 5, 2)
    layers = [PrimaryCap(4, 2, 3), CapsuleLayer(3, 5), Length()]
    layers[1].build((None, 24, 4))
    layers[1].kernel.assign(random_normal(3, 24, 5, 4, seed=1))
    model = keras.Sequential([keras.Input((6, 5, 2)), *layers])
    alone = model.predict(pictures[:1], verbose=0)
    together = model.predict(pictures, verbose=0)
    elsewhere = np.concatenate([10 * pictures[1:], pictures[:1]])
    elsewhere = model.predict(elsewhere, verbose=0)
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)
    np.testing.assert_allclose(elsewhere[-1:], alone, atol=1e-5)
    assert abs(together[1:] - alone).max() > 1e-2


@pytest.mark.parametrize("use_bias", [False, True])
def test_gradients_go_through_all_routing_rounds(use_bias):
    """Against central differences of Procedure 1, relative error 1e-3."""
    inputs, weights = random_normal(6, 4), random_normal(3, 5, seed=3)
    bias = random_normal(3, 5, seed=2) if use_bias else None
    layer, kernel = capsule_layer(bias=bias)
    rest = [] if bias is None else [bias]

    def loss(inputs, *variables):
        outputs, _ = layer.stateless_call(list(variables), [], inputs[None])
        return ops.sum(outputs[0] * ops.convert_to_tensor(weights))

    def reference(inputs, kernel, bias=None):
        outputs, _ = reference_routing(inputs, kernel, 3, bias)
        return float(np.sum(outputs * weights))

    by_inputs, by_kernel, *by_rest = gradients(loss, inputs, kernel, *rest)
    expected = central_differences(
        lambda value: reference(value, kernel, bias), inputs
    )
    assert relative_error(by_inputs, expected) < 1e-3
    expected = central_differences(
        lambda value: reference(inputs, value, bias), kernel
    )
    assert relative_error(by_kernel, expected) < 1e-3
    for gradient in by_rest:
        expected = central_differences(
            lambda value: reference(inputs, kernel, value), bias
        )
        assert relative_error(gradient, expected) < 1e-3


def test_capsule_layer_is_finite_at_zero_inputs():
    layer, kernel = capsule_layer()
    zeros = np.zeros((2, 6, 4), "float32")

    def loss(inputs, kernel):
        outputs, _ = layer.stateless_call([kernel], [], inputs)
        return ops.sum(Length()(outputs))

    np.testing.assert_array_equal(to_numpy(layer(zeros)), 0)
    for gradient in gradients(loss, zeros, kernel):
        assert np.isfinite(gradient).all()


# Initialization


def test_capsule_normal_has_its_documented_deviation():
    """For the digit capsules of MNIST it is 0.074."""
    matrices = to_numpy(CapsuleNormal(seed=0)((10, 1152, 16, 8)))
    expected = 10 / (1152 * 16) ** 0.5
    np.testing.assert_allclose(matrices.std(), expected, rtol=0.01)
    np.testing.assert_allclose(matrices.mean(), 0, atol=0.01 * expected)
    assert round(expected, 3) == 0.074


@pytest.mark.parametrize("shape", [(10, 300, 16, 8), (4, 50, 8, 8)])
def test_capsule_normal_keeps_the_squared_length_before_squash(shape):
    """Of random unit vectors, in the first round; the mean over outputs."""
    num_capsule, input_num_capsule, dim_capsule, input_dim_capsule = shape
    inputs = random_normal(20, input_num_capsule, input_dim_capsule)
    inputs /= np.linalg.norm(inputs, axis=-1, keepdims=True)
    layer = CapsuleLayer(
        num_capsule, dim_capsule, kernel_initializer=CapsuleNormal(seed=0)
    )
    layer.build(inputs.shape)
    total = np.einsum("bik,jidk->bjd", inputs, to_numpy(layer.kernel))
    total /= num_capsule
    squared = (total**2).sum(axis=-1).mean()
    np.testing.assert_allclose(squared, 1, rtol=0.15)


def test_capsule_normal_repeats_itself_with_a_seed_only():
    def draw(seed):
        return to_numpy(CapsuleNormal(seed=seed)((3, 6, 5, 4)))

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert (draw(None) != draw(None)).any()


def stack(shape, channels, n_class, count):
    """Layers of capsules upon each other, as a user would write them."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(channels, 9, activation="relu"),
            PrimaryCap(8, channels // 4, 9, strides=2),
            *(CapsuleLayer(16, 16) for _ in range(count - 1)),
            CapsuleLayer(n_class, 16),
            Length(),
        ]
    )


def trained(model, images, labels, epochs):
    """The loss and the accuracy of the last epoch."""
    model.compile("adam", margin_loss, metrics=["categorical_accuracy"])
    targets = np.eye(labels.max() + 1, dtype="float32")[labels]
    fit = model.fit(images / 255, targets, 50, epochs, verbose=0)
    return fit.history["loss"][-1], fit.history["categorical_accuracy"][-1]


@pytest.mark.slow
def test_three_capsule_layers_in_a_row_learn():
    """With primary capsules that start 0.007 long the loss stays at 0.81."""
    keras.utils.set_random_seed(0)
    images, labels = bars(400, (28, 28, 1), n_class=4)
    model = stack((28, 28, 1), 32, 4, 3)
    loss, accuracy = trained(model, images, labels, 4)
    assert loss < 0.1 and accuracy > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name, count", [("digits", 3), ("photos", 2)])
def test_stacked_capsules_learn_real_pictures(name, count):
    """Silent ones stay at 0.81; all as long as absent ones may be: 0.64."""
    keras.utils.set_random_seed(0)
    dataset = load(name if name == "digits" else real_data(name))
    order = np.random.default_rng(0).permutation(len(dataset.x_train))[:1000]
    images, labels = dataset.x_train[order], dataset.y_train[order]
    model = stack(images.shape[1:], 32, 10, count)
    assert trained(model, images, labels, 4)[0] < 0.55


@pytest.mark.parametrize("shape, kernel", [((12, 12, 256), 9), ((6, 6, 8), 3)])
def test_primary_capsules_begin_some_tenths_long(shape, kernel):
    """Of features as a first convolution makes them of digits."""
    keras.utils.set_random_seed(0)
    features = np.maximum(0, random_normal(4, *shape)) * 0.045
    lengths = to_numpy(Length()(PrimaryCap(8, 4, kernel)(features)))
    assert 0.1 < lengths.mean() < 0.3


def test_coupling_of_large_logits():
    # exp(1000) overflows; three output capsules, one picture, two inputs.
    logits = np.array([[[1000.0, -1e4]], [[999.0, 0.0]], [[-1e4, 0.0]]])
    logits = ops.convert_to_tensor(logits.astype("float32"))
    coupling = to_numpy(couple(logits))
    e = np.exp(1.0)
    expected = [[[e / (e + 1), 0.0]], [[1 / (e + 1), 0.5]], [[0.0, 0.5]]]
    np.testing.assert_allclose(coupling, expected, atol=1e-6)
