"""Tests of capsulelayers.py. References are NumPy loops, in float64."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import capsulenet
from capsulelayers import (
    CapsuleLayer,
    CapsuleNormal,
    Length,
    Mask,
    PrimaryCap,
    couple,
    squash,
)

ROUTINGS = (1, 2, 3, 5)


def random_normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def relative_error(value, reference):
    difference = np.linalg.norm(np.asarray(value, "float64") - reference)
    return difference / np.linalg.norm(reference)


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


def reference_squash(vector):
    """Eq. 1 for one vector."""
    squared = sum(float(x) ** 2 for x in vector)
    if squared == 0:
        return np.zeros(len(vector))
    return squared / (1 + squared) * np.array(vector) / squared**0.5


def reference_votes(inputs, kernel):
    """Eq. 2, `u_hat[j, i] = W_ij u_i`, for the capsules of one picture."""
    num_capsule, input_num_capsule, dim_capsule, _ = kernel.shape
    votes = np.zeros((num_capsule, input_num_capsule, dim_capsule))
    for j in range(num_capsule):
        for i in range(input_num_capsule):
            votes[j, i] = kernel[j, i].astype("float64") @ inputs[i]
    return votes


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


def reference_convolution(picture, kernel, stride):
    """One picture, without padding."""
    rows, columns, _, filters = kernel.shape
    height = (picture.shape[0] - rows) // stride + 1
    width = (picture.shape[1] - columns) // stride + 1
    result = np.zeros((height, width, filters))
    for y in range(height):
        for x in range(width):
            for row in range(rows):
                for column in range(columns):
                    cell = picture[y * stride + row, x * stride + column]
                    result[y, x] += cell @ kernel[row, column].astype("float64")
    return result


def capsule_layer(routings=3, bias=None, stddev=1.0):
    """3 capsules of 5 above 6 of 4, with large matrices, and its kernel."""
    use_bias = bias is not None
    layer = CapsuleLayer(3, 5, routings=routings, use_bias=use_bias)
    layer.build((None, 6, 4))
    kernel = stddev * random_normal(3, 6, 5, 4, seed=1)
    layer.set_weights([kernel, bias] if use_bias else [kernel])
    return layer, kernel


# Squash


def test_squash_follows_equation_1():
    vectors = random_normal(4, 3, 5)
    squashed = to_numpy(squash(vectors))
    for i in range(4):
        for j in range(3):
            expected = reference_squash(vectors[i, j])
            np.testing.assert_allclose(squashed[i, j], expected, atol=1e-6)


def test_squash_works_along_any_axis():
    vectors = random_normal(4, 5, 3)
    squashed = to_numpy(squash(vectors, axis=1))
    for i in range(4):
        for j in range(3):
            expected = reference_squash(vectors[i, :, j])
            np.testing.assert_allclose(squashed[i, :, j], expected, atol=1e-6)


@pytest.mark.parametrize("length", [1e-8, 1e-4, 1e4])
def test_squash_follows_equation_1_at_extreme_lengths(length):
    direction = random_normal(5)
    vector = (length * direction / np.linalg.norm(direction)).astype("float32")
    expected = reference_squash(vector)
    assert relative_error(to_numpy(squash(vector)), expected) < 1e-3


def test_squash_and_length_are_finite_at_the_zero_vector():
    zeros = np.zeros((2, 3, 4), "float32")
    np.testing.assert_array_equal(to_numpy(squash(zeros)), 0)
    np.testing.assert_allclose(to_numpy(Length()(zeros)), 0, atol=1e-12)


def test_gradients_of_squash_and_length_are_zero_at_the_zero_vector():
    zeros = np.zeros((2, 3, 4), "float32")
    for function in (squash, Length()):
        (gradient,) = gradients(lambda x: ops.sum(function(x)), zeros)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_gradient_of_squash_matches_central_differences():
    vector, weights = random_normal(5), random_normal(5, seed=1)
    (gradient,) = gradients(lambda x: ops.sum(squash(x) * weights), vector)
    expected = central_differences(
        lambda x: reference_squash(x) @ weights, vector
    )
    assert relative_error(gradient, expected) < 1e-3


# Length


def test_length_is_the_euclidean_norm():
    capsules = random_normal(2, 6, 4)
    lengths = to_numpy(Length()(capsules))
    assert lengths.shape == (2, 6)
    for i in range(2):
        for j in range(6):
            expected = sum(float(x) ** 2 for x in capsules[i, j]) ** 0.5
            np.testing.assert_allclose(lengths[i, j], expected, rtol=1e-5)


@pytest.mark.parametrize("length", [1e-8, 1e-4, 1.0])
def test_gradient_of_length_is_a_unit_vector(length):
    capsules = random_normal(2, 6, 4)
    norms = np.linalg.norm(capsules, axis=-1, keepdims=True)
    directions = capsules / norms
    (gradient,) = gradients(lambda x: ops.sum(Length()(x)), length * directions)
    np.testing.assert_allclose(gradient, directions, atol=1e-3)
    norms = np.linalg.norm(gradient, axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-3)


# Mask


def test_mask_keeps_the_labelled_capsule():
    capsules, labels = random_normal(4, 3, 5), [2, 0, 1, 1]
    masked = to_numpy(Mask()([capsules, np.eye(3, dtype="float32")[labels]]))
    expected = np.zeros((4, 15))
    for i, label in enumerate(labels):
        expected[i, label * 5 : label * 5 + 5] = capsules[i, label]
    np.testing.assert_array_equal(masked, expected)


def test_mask_without_labels_keeps_the_longest_capsule():
    capsules, longest = random_normal(4, 3, 5), [1, 2, 0, 2]
    for i, j in enumerate(longest):
        capsules[i, j] *= 10
    masked = to_numpy(Mask()(capsules))
    expected = np.zeros((4, 15))
    for i, j in enumerate(longest):
        expected[i, j * 5 : j * 5 + 5] = capsules[i, j]
    np.testing.assert_array_equal(masked, expected)


def test_mask_with_several_ones_keeps_several_capsules():
    capsules = random_normal(2, 3, 5)
    mask = np.array([[1, 0, 1], [0, 0, 0]], "float32")
    masked = to_numpy(Mask()([capsules, mask]))
    expected = capsules.reshape(2, 15).copy()
    expected[0, 5:10] = 0
    expected[1] = 0
    np.testing.assert_array_equal(masked, expected)


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3)],
        [(2, 3, 4, 5)],
        [(2, 3, 5), (2, 4)],
        [(2, 3, 5), (2,)],
        [(2, 3, 5), (2, 3, 1)],
    ],
)
def test_mask_refuses_shapes_that_do_not_fit(shapes):
    arrays = [random_normal(*shape) for shape in shapes]
    with pytest.raises(ValueError, match="Expected .* of shape"):
        Mask()(arrays if len(arrays) > 1 else arrays[0])


def test_mask_refuses_an_unknown_number_of_capsules():
    with pytest.raises(ValueError, match="Expected capsules of shape"):
        Mask()(keras.Input((None, 5)))


# PrimaryCap


def test_primary_capsule_is_the_channels_of_one_cell():
    """With a kernel that copies, a capsule is a run of the input's channels."""
    pictures = random_normal(2, 3, 4, 6)
    layer = PrimaryCap(2, 3, 1)
    layer.build(pictures.shape)
    layer.conv.set_weights([np.eye(6).reshape(1, 1, 6, 6)])
    capsules = to_numpy(layer(pictures))
    assert capsules.shape == (2, 3 * 4 * 3, 2)
    for i in range(2):
        number = 0
        for y in range(3):
            for x in range(4):
                for kind in range(3):
                    vector = pictures[i, y, x, 2 * kind : 2 * kind + 2]
                    expected = reference_squash(vector)
                    np.testing.assert_allclose(
                        capsules[i, number], expected, atol=1e-6
                    )
                    number += 1


@pytest.mark.parametrize("method", ["direct", "fast"])
def test_primary_capsules_are_scaled_then_biased_then_squashed(method):
    pictures = random_normal(2, 7, 6, 3)
    kernel, bias = random_normal(3, 3, 3, 8, seed=1), random_normal(8, seed=2)
    layer = PrimaryCap(4, 2, 3, strides=2, scale=0.25, method=method)
    layer.build(pictures.shape)
    layer.conv.set_weights([kernel])
    layer.bias.assign(bias)
    capsules = to_numpy(layer(pictures))
    for i in range(2):
        cells = reference_convolution(pictures[i], kernel, 2)
        vectors = (0.25 * cells + bias).reshape(-1, 4)
        assert len(capsules[i]) == len(vectors) == 3 * 2 * 2
        for capsule, vector in zip(capsules[i], vectors):
            np.testing.assert_allclose(
                capsule, reference_squash(vector), atol=1e-5
            )


def test_primary_capsules_with_same_padding_cover_the_picture():
    layer = PrimaryCap(4, 2, 3, strides=2, padding="same")
    assert to_numpy(layer(random_normal(2, 7, 6, 3))).shape == (2, 24, 4)


# CapsuleLayer


def test_votes_follow_equation_2():
    inputs = random_normal(2, 6, 4)
    layer, kernel = capsule_layer()
    votes = to_numpy(layer.votes(ops.convert_to_tensor(inputs)))
    for i in range(2):
        expected = reference_votes(inputs[i], kernel)
        np.testing.assert_allclose(votes[i], expected, atol=1e-5)


@pytest.mark.parametrize("routings", ROUTINGS)
def test_routing_matches_procedure_1(routings):
    inputs = random_normal(2, 6, 4)
    layer, kernel = capsule_layer(routings)
    outputs, coupling = map(to_numpy, layer.route(inputs))
    for i in range(2):
        expected = reference_routing(inputs[i], kernel, routings)
        np.testing.assert_allclose(outputs[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(coupling[i], expected[1], atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer(inputs)), outputs, atol=1e-6)


@pytest.mark.parametrize("routings", ROUTINGS)
def test_coupling_sums_to_one_over_output_capsules(routings):
    layer, _ = capsule_layer(routings)
    _, coupling = layer.route(random_normal(2, 6, 4))
    coupling = to_numpy(coupling)
    assert coupling.shape == (2, 3, 6)
    np.testing.assert_allclose(coupling.sum(axis=1), 1, atol=1e-5)
    if routings > 1:  # Not over the input capsules, which would be a mistake.
        assert abs(coupling.sum(axis=2) - 1).max() > 0.1


def test_one_round_is_the_uniform_mean():
    inputs = random_normal(2, 6, 4)
    layer, kernel = capsule_layer(routings=1)
    outputs, coupling = map(to_numpy, layer.route(inputs))
    np.testing.assert_allclose(coupling, 1 / 3, atol=1e-6)
    for i in range(2):
        votes = reference_votes(inputs[i], kernel)
        for j in range(3):
            expected = reference_squash(votes[j].mean(axis=0) * 6 / 3)
            np.testing.assert_allclose(outputs[i, j], expected, atol=1e-5)


@pytest.mark.parametrize("routings", ROUTINGS)
def test_bias_is_added_in_every_routing_round(routings):
    inputs, bias = random_normal(2, 6, 4), random_normal(3, 5, seed=2)
    layer, kernel = capsule_layer(routings, bias)
    outputs, coupling = map(to_numpy, layer.route(inputs))
    for i in range(2):
        expected = reference_routing(inputs[i], kernel, routings, bias)
        np.testing.assert_allclose(outputs[i], expected[0], atol=1e-5)
        np.testing.assert_allclose(coupling[i], expected[1], atol=1e-5)


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


# Gradients


def central_differences(function, values, step=1e-5):
    """Difference quotients of a float64 function, entry by entry."""
    values = values.astype("float64")
    result = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = function(values)
        values[index] = kept - step
        below = function(values)
        values[index] = kept
        result[index] = (above - below) / (2 * step)
    return result


@pytest.mark.parametrize("use_bias", [False, True])
def test_gradients_go_through_all_routing_rounds(use_bias):
    """Against central differences of Procedure 1, relative error 1e-3."""
    inputs, weights = random_normal(6, 4), random_normal(3, 5, seed=3)
    bias = random_normal(3, 5, seed=2) if use_bias else None
    layer, kernel = capsule_layer(bias=bias)
    rest = [] if bias is None else [bias]

    def loss(inputs, *variables):
        outputs, _ = layer.stateless_call(list(variables), [], inputs[None])
        return ops.sum(outputs[0] * weights)

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


def test_primary_capsules_are_finite_at_a_black_picture():
    layer = PrimaryCap(4, 2, 3, method="direct")
    zeros = np.zeros((2, 5, 4, 1), "float32")
    layer.build(zeros.shape)

    def loss(pictures, *variables):
        capsules, _ = layer.stateless_call(list(variables), [], pictures)
        return ops.sum(Length()(capsules))

    np.testing.assert_array_equal(to_numpy(layer(zeros)), 0)
    variables = [variable.value for variable in layer.trainable_variables]
    for gradient in gradients(loss, zeros, *variables):
        assert np.isfinite(gradient).all()


# Initialization


def test_capsule_normal_has_its_documented_deviation():
    shape = (10, 120, 16, 8)
    matrices = to_numpy(CapsuleNormal(seed=0)(shape))
    expected = 10 / (120 * 16) ** 0.5
    np.testing.assert_allclose(matrices.std(), expected, rtol=0.02)
    np.testing.assert_allclose(matrices.mean(), 0, atol=0.02 * expected)


def test_capsule_normal_is_0_074_for_mnist():
    matrices = to_numpy(CapsuleNormal(seed=0)((10, 1152, 16, 8)))
    assert round(float(matrices.std()), 3) == 0.074


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
    votes = to_numpy(layer.votes(ops.convert_to_tensor(inputs)))
    total = votes.sum(axis=2) / num_capsule
    squared = (total**2).sum(axis=-1).mean()
    np.testing.assert_allclose(squared, 1, rtol=0.15)


def test_capsule_normal_repeats_itself_with_a_seed_only():
    def draw(seed):
        return to_numpy(CapsuleNormal(seed=seed)((3, 6, 5, 4)))

    np.testing.assert_array_equal(draw(1), draw(1))
    assert (draw(1) != draw(2)).any()
    assert (draw(None) != draw(None)).any()


def test_three_capsule_layers_in_a_row_learn():
    """Four kinds of noisy inputs; the loss at least halves in 200 steps."""
    keras.utils.set_random_seed(0)
    labels = np.arange(32) % 4
    inputs = random_normal(4, 8, 4)[labels] + 0.3 * random_normal(32, 8, 4)
    inputs /= 1 + np.linalg.norm(inputs, axis=-1, keepdims=True)
    model = keras.Sequential(
        [
            keras.Input((8, 4)),
            CapsuleLayer(6, 3),
            CapsuleLayer(5, 3),
            CapsuleLayer(4, 4),
            Length(),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    targets = np.eye(4, dtype="float32")[labels]

    def loss_of_steps(count):
        many = np.tile(inputs, (count, 1, 1)), np.tile(targets, (count, 1))
        history = model.fit(*many, batch_size=32, shuffle=False, verbose=0)
        return history.history["loss"][0]

    before, _, after = map(loss_of_steps, (1, 198, 1))
    assert after < before / 2


# Every layer: shapes, files, precision, training

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


def test_config_holds_every_argument():
    config = LAYERS["primarycap"]().get_config()
    assert config["dim_capsule"] == 4 and config["n_channels"] == 2
    assert config["kernel_size"] == (3, 2) and config["strides"] == (2, 1)
    assert config["padding"] == "same" and config["method"] == "direct"
    assert config["scale"] == 0.5
    assert config["kernel_initializer"]["config"]["stddev"] == 0.3
    assert config["bias_initializer"]["config"]["value"] == 0.1
    config = LAYERS["capsules"]().get_config()
    assert config["num_capsule"] == 3 and config["dim_capsule"] == 5
    assert config["routings"] == 2 and config["use_bias"] is True
    assert config["kernel_initializer"]["config"] == {"seed": 3}
    assert config["bias_initializer"]["config"]["value"] == 0.1


@each_layer
def test_symbolic_and_eager_shapes_agree(name):
    inputs = random_inputs(name, 2)
    symbolic = LAYERS[name]()(keras.Input(inputs.shape[1:]))
    computed = LAYERS[name]().compute_output_shape((None, *inputs.shape[1:]))
    assert tuple(symbolic.shape) == (None, *OUTPUT_SHAPES[name])
    assert tuple(computed) == (None, *OUTPUT_SHAPES[name])
    assert tuple(LAYERS[name]()(inputs).shape) == (2, *OUTPUT_SHAPES[name])


@each_kind
def test_a_batch_of_one_keeps_its_axis(name):
    layer, inputs = LAYERS[name](), random_inputs(name, 3)
    alone = to_numpy(layer(inputs[:1]))
    assert alone.shape == (1, *OUTPUT_SHAPES[name])
    np.testing.assert_allclose(alone, to_numpy(layer(inputs))[:1], atol=1e-5)


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


def test_mask_with_labels_survives_a_file_in_safe_mode(tmp_path):
    capsules, labels = keras.Input((3, 5)), keras.Input((3,))
    model = keras.Model([capsules, labels], Mask()([capsules, labels]))
    assert tuple(model.output.shape) == (None, 15)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    values = [random_normal(2, 3, 5), np.eye(3, dtype="float32")[[2, 0]]]
    expected = to_numpy(Mask()(values))
    np.testing.assert_array_equal(to_numpy(copy(values)), expected)


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
    expected = to_numpy(exact(inputs))
    assert np.isfinite(to_numpy(outputs)).all()
    assert relative_error(to_numpy(outputs), expected) < 0.03
    (gradient,) = gradients(
        lambda x: ops.sum(ops.cast(layer(x), "float32")), inputs
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["length", "mask", "primarycap"])
def test_one_step_of_fit_lowers_the_loss(name):
    keras.utils.set_random_seed(0)
    shape = (7, 6, 3) if name == "primarycap" else (6, 4)
    inputs = random_normal(8, *shape)
    below = [LAYERS["primarycap"]()] if name == "primarycap" else []
    above = {"length": [Length()]}.get(name, [Mask(), keras.layers.Dense(3)])
    model = keras.Sequential(
        [keras.Input(shape), *below, CapsuleLayer(3, 5), *above]
    )
    model.compile(keras.optimizers.SGD(0.01), "mse")
    targets = np.eye(3, dtype="float32")[np.arange(8) % 3]
    # The loss of a step is the one before its update.
    steps = model.fit(inputs, targets, batch_size=8, epochs=2, verbose=0)
    before, after = steps.history["loss"]
    assert after < before


# Errors


@pytest.mark.parametrize("value", [0, -1, 2.5, None])
@pytest.mark.parametrize("argument", ["num_capsule", "dim_capsule", "routings"])
def test_capsule_layer_refuses_what_is_not_positive(argument, value):
    arguments = {"num_capsule": 3, "dim_capsule": 5, argument: value}
    with pytest.raises(ValueError, match=f"Received: {argument}="):
        CapsuleLayer(**arguments)


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


@pytest.mark.parametrize("value", [0, -1, 2.5, None])
@pytest.mark.parametrize("argument", ["dim_capsule", "n_channels"])
def test_primary_capsules_refuse_what_is_not_positive(argument, value):
    arguments = {"dim_capsule": 4, "n_channels": 2, argument: value}
    with pytest.raises(ValueError, match=f"Received: {argument}="):
        PrimaryCap(kernel_size=3, **arguments)


@pytest.mark.parametrize("argument", ["kernel_size", "strides"])
def test_primary_capsules_refuse_an_empty_kernel_or_stride(argument):
    with pytest.raises(ValueError, match=argument):
        PrimaryCap(4, 2, **{"kernel_size": 3, argument: 0})


def test_primary_capsules_refuse_pictures_smaller_than_the_kernel():
    with pytest.raises(ValueError, match="Expected pictures of at least"):
        PrimaryCap(4, 2, 5)(random_normal(2, 4, 4, 1))


@pytest.mark.parametrize("shape", [(6,), (None, 6, 1), (6, None, 1)])
def test_primary_capsules_refuse_pictures_of_unknown_shape(shape):
    with pytest.raises(ValueError, match="Expected pictures of shape"):
        PrimaryCap(4, 2, 3)(keras.Input(shape))


@pytest.mark.parametrize("shape", [(4,), (None, 4), (6, None), (6, 4, 1)])
def test_capsule_layer_refuses_inputs_of_unknown_shape(shape):
    with pytest.raises(ValueError, match="Expected inputs of shape"):
        CapsuleLayer(3, 5)(keras.Input(shape))


@pytest.mark.parametrize("name", ["primarycap", "capsules"])
def test_a_built_layer_refuses_inputs_of_another_shape(name):
    layer, inputs = LAYERS[name](), random_inputs(name, 2)
    layer(inputs)
    for axis in (1, 2):
        with pytest.raises(ValueError, match="shape"):
            layer(np.concatenate([inputs, inputs], axis=axis))


# The network


@pytest.mark.parametrize("size, expected", [(28, 8_215_568), (36, 11_361_808)])
def test_network_has_the_papers_number_of_weights(size, expected):
    model, *_ = capsulenet.CapsNet((size, size, 1), 10)
    assert model.count_params() == expected


def test_coupling_of_large_logits():
    # exp(1000) overflows; three output capsules, one picture, two inputs.
    logits = np.array([[[1000.0, -1e4]], [[999.0, 0.0]], [[-1e4, 0.0]]])
    coupling = np.asarray(couple(logits.astype("float32")))
    e = np.exp(1.0)
    expected = [[[e / (e + 1), 0.0]], [[1 / (e + 1), 0.5]], [[0.0, 0.5]]]
    np.testing.assert_allclose(coupling, expected, atol=1e-6)
