"""Tests of capsulelayers.py but for the routing, which has its own."""

import keras
import numpy as np
import pytest
from keras import ops
from numerics import (
    central_differences,
    gradients,
    random_normal,
    reference_squash,
    relative_error,
    to_numpy,
)

from capsulelayers import (
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCap,
    squash,
)

# Squash and Length


@pytest.mark.parametrize("axis", [-1, 1])
def test_squash_follows_equation_1_along_any_axis(axis):
    vectors = random_normal(4, 3, 5)
    squashed = to_numpy(squash(np.swapaxes(vectors, axis, -1), axis=axis))
    expected = [[reference_squash(v) for v in row] for row in vectors]
    squashed = np.swapaxes(squashed, axis, -1)
    np.testing.assert_allclose(squashed, expected, atol=1e-6)


@pytest.mark.parametrize("length", [1e-8, 1e-4, 1e4, 1e16, 1e19, 1e30, 3e38])
def test_squash_and_length_hold_at_extreme_lengths(length):
    """Beyond 1.8e19 the square of a length is no float32 any more."""
    direction = random_normal(5)
    direction /= np.linalg.norm(direction)
    vector = (length * direction.astype("float64")).astype("float32")
    expected = reference_squash(vector)
    assert relative_error(to_numpy(squash(vector)), expected) < 1e-3
    received = to_numpy(Length()(vector[None, None]))
    np.testing.assert_allclose(received, [[length]], rtol=1e-3)
    (gradient,) = gradients(lambda x: ops.sum(Length()(x)), vector[None, None])
    np.testing.assert_allclose(gradient[0, 0], direction, atol=1e-3)
    (gradient,) = gradients(lambda x: ops.sum(squash(x)), vector)
    assert np.isfinite(gradient).all()


def test_long_vectors_change_no_digit_of_their_neighbours():
    vectors = random_normal(4, 3, 5)
    alone = to_numpy(squash(vectors))
    vectors[1] *= 1e30
    together = to_numpy(squash(vectors))
    np.testing.assert_array_equal(together[[0, 2, 3]], alone[[0, 2, 3]])
    np.testing.assert_allclose(np.linalg.norm(together[1], axis=-1), 1, 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_squash_of_the_longest_vectors_of_16_bits(dtype):
    vector = ops.cast(np.array([3.0, -4.0]) * 1e4, dtype)
    squashed = squash(vector * 1e30 if dtype == "bfloat16" else vector)
    assert keras.backend.standardize_dtype(squashed.dtype) == dtype
    np.testing.assert_allclose(to_numpy(squashed), [0.6, -0.8], atol=5e-3)


def test_squash_and_length_are_zero_at_the_zero_vector():
    """And so are their gradients, not NaN."""
    zeros = np.zeros((2, 3, 4), "float32")
    np.testing.assert_array_equal(to_numpy(squash(zeros)), 0)
    np.testing.assert_allclose(to_numpy(Length()(zeros)), 0, atol=1e-12)
    for function in (squash, Length()):
        (gradient,) = gradients(lambda x: ops.sum(function(x)), zeros)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


def test_gradient_of_squash_matches_central_differences():
    vector, weights = random_normal(5), random_normal(5, seed=1)
    gradient, _ = gradients(
        lambda x, w: ops.sum(squash(x) * w), vector, weights
    )
    expected = central_differences(
        lambda x: reference_squash(x) @ weights, vector
    )
    assert relative_error(gradient, expected) < 1e-3


def test_length_is_the_euclidean_norm():
    capsules = random_normal(2, 6, 4)
    expected = [
        [sum(float(x) ** 2 for x in capsule) ** 0.5 for capsule in picture]
        for picture in capsules
    ]
    lengths = to_numpy(Length()(capsules))
    np.testing.assert_allclose(lengths, expected, rtol=1e-5)


# Mask


@pytest.mark.parametrize(
    "mask, kept",
    [
        ([[0, 0, 1], [1, 0, 0]], [[2], [0]]),
        ([[1, 0, 1], [0, 0, 0]], [[0, 2], []]),
        (None, [[1], [2]]),
    ],
    ids=["labels", "several", "longest"],
)
@pytest.mark.parametrize("length", [10.0, 1e30])
def test_mask_keeps_the_labelled_capsules_or_the_longest(mask, kept, length):
    capsules = random_normal(2, 3, 5)
    capsules[0, 1] *= length
    capsules[1, 2] *= length
    expected = np.zeros((2, 3, 5))
    for picture, numbers in enumerate(kept):
        expected[picture, numbers] = capsules[picture, numbers]
    inputs = [capsules, np.array(mask, "float32")] if mask else capsules
    masked = to_numpy(Mask()(inputs))
    np.testing.assert_array_equal(masked, expected.reshape(2, 15))


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 3)],
        [(2, 3, 4, 5)],
        [(2, 3, 5), (2, 4)],
        [(2, 3, 5), (2,)],
        [(2, 3, 5), (2, 1)],
        [(2, 3, 5), (2, 3, 1)],
    ],
)
def test_mask_refuses_shapes_that_do_not_fit(shapes):
    arrays = [random_normal(*shape) for shape in shapes]
    layer, used = Mask(), Mask()
    used(random_normal(2, 3, 5))  # Built without a mask.
    for each in (layer, used) if len(arrays) > 1 else (layer,):
        with pytest.raises(ValueError, match="Expected .* of shape"):
            each(arrays if len(arrays) > 1 else arrays[0])


def test_mask_with_labels_survives_a_file_in_safe_mode(tmp_path):
    capsules, labels = keras.Input((3, 5)), keras.Input((3,))
    model = keras.Model([capsules, labels], Mask()([capsules, labels]))
    assert tuple(model.output.shape) == (None, 15)
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    values = [random_normal(2, 3, 5), np.eye(3, dtype="float32")[[2, 0]]]
    expected = to_numpy(Mask()(values))
    np.testing.assert_array_equal(to_numpy(copy(values)), expected)


# PrimaryCap


@pytest.mark.parametrize("method", ["direct", "fast"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_primary_capsules_are_channels_of_one_cell(method, padding):
    """Scaled, then biased, then squashed; cell by cell, type by type."""
    pictures = random_normal(2, 7, 6, 3)
    kernel, bias = random_normal(3, 3, 3, 8, seed=1), random_normal(8, seed=2)
    layer = PrimaryCap(4, 2, 3, 2, padding, scale=0.25, method=method)
    layer.build(pictures.shape)
    layer.conv.set_weights([kernel])
    layer.bias.assign(bias)
    # One row above would make it two: the odd one lies below.
    edges = [(1, 1), (0, 1)] if padding == "same" else [(0, 0), (0, 0)]
    padded = np.pad(pictures, [(0, 0), *edges, (0, 0)]).astype("float64")
    capsules = to_numpy(layer(pictures))
    for picture, received in zip(padded, capsules):
        expected = []
        for y in range(0, len(picture) - 2, 2):
            for x in range(0, picture.shape[1] - 2, 2):
                cell = bias.astype("float64")
                for row in range(3):
                    for column in range(3):
                        pixel = picture[y + row, x + column]
                        cell = cell + 0.25 * pixel @ kernel[row, column]
                expected += [reference_squash(v) for v in (cell[:4], cell[4:])]
        assert received.shape == np.shape(expected)
        np.testing.assert_allclose(received, expected, atol=1e-5)


def test_primary_capsules_are_finite_at_a_black_picture():
    layer = PrimaryCap(4, 2, 3, method="direct", bias_initializer="zeros")
    zeros = np.zeros((2, 5, 4, 1), "float32")
    layer.build(zeros.shape)

    def loss(pictures, *variables):
        capsules, _ = layer.stateless_call(list(variables), [], pictures)
        return ops.sum(Length()(capsules))

    np.testing.assert_array_equal(to_numpy(layer(zeros)), 0)
    variables = [variable.value for variable in layer.trainable_variables]
    for gradient in gradients(loss, zeros, *variables):
        assert np.isfinite(gradient).all()


# Errors


@pytest.mark.parametrize("value", [0, -1, 2.5, "3"])
@pytest.mark.parametrize(
    "layer, argument",
    [
        (CapsuleLayer, "num_capsule"),
        (CapsuleLayer, "dim_capsule"),
        (CapsuleLayer, "routings"),
        (PrimaryCap, "dim_capsule"),
        (PrimaryCap, "n_channels"),
    ],
)
def test_what_is_not_positive_is_refused(layer, argument, value):
    arguments = {"dim_capsule": 4}
    if layer is PrimaryCap:
        arguments |= {"n_channels": 2, "kernel_size": 3}
    else:
        arguments |= {"num_capsule": 3}
    with pytest.raises(ValueError, match=f"Received: {argument}="):
        layer(**{**arguments, argument: value})


@pytest.mark.parametrize("argument", ["kernel_size", "strides"])
def test_primary_capsules_refuse_an_empty_kernel_or_stride(argument):
    with pytest.raises(ValueError, match=argument):
        PrimaryCap(4, 2, **{"kernel_size": 3, argument: 0})


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (PrimaryCap(4, 2, 5), (4, 4, 1), "<= 0|output size"),
        (PrimaryCap(4, 2, 3), (6,), "Expected pictures of shape"),
        (PrimaryCap(4, 2, 3), (None, 6, 1), "Expected pictures of shape"),
        (PrimaryCap(4, 2, 3), (6, None, 1), "Expected pictures of shape"),
        (CapsuleLayer(3, 5), (4,), "Expected inputs of shape"),
        (CapsuleLayer(3, 5), (None, 4), "Expected inputs of shape"),
        (CapsuleLayer(3, 5), (6, None), "Expected inputs of shape"),
        (CapsuleLayer(3, 5), (6, 4, 1), "Expected inputs of shape"),
        (Mask(), (None, 5), "Expected capsules of shape"),
    ],
)
def test_inputs_of_unknown_or_too_small_shape_are_refused(
    layer, shape, message
):
    with pytest.raises(ValueError, match=message):
        layer(keras.Input(shape))
