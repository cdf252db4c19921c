"""The other routings and the other squash, against NumPy loops."""

import keras
import numpy as np
import pytest
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

from capsnet.models.routings import max_min
from capsulelayers import CapsuleLayer, Length, squash

ITERATIVE = ("dynamic", "leaky", "max_min")
KINDS = (*ITERATIVE, "attention")


def shares_of(logits, routing):
    """The coupling of one input capsule with all outputs."""
    if routing == "max_min":
        if max(logits) == min(logits):
            return np.ones(len(logits))
        spread = max(logits) - min(logits)
        return np.array([(b - min(logits)) / spread for b in logits])
    exponentials = np.exp(logits)
    extra = 1.0 if routing == "leaky" else 0.0
    return exponentials / (extra + sum(exponentials))


def reference(inputs, kernel, routing, routings=3, squash="paper", prior=None):
    """The capsules of one picture, by the formulas of the sources."""
    votes = reference_votes(inputs, kernel)
    num_capsule, input_num_capsule, dim_capsule = votes.shape
    logits = np.zeros((num_capsule, input_num_capsule))
    coupling = np.zeros_like(logits)
    if routing == "attention":
        for j in range(num_capsule):
            total = sum(votes[j, k] for k in range(input_num_capsule))
            for i in range(input_num_capsule):
                logits[j, i] = votes[j, i] @ total / np.sqrt(dim_capsule)
    for _ in range(1 if routing == "attention" else routings):
        for i in range(input_num_capsule):
            coupling[:, i] = shares_of(logits[:, i], routing)
            if routing == "attention":
                coupling[:, i] += prior[:, i, 0]
        outputs = np.zeros((num_capsule, dim_capsule))
        for j in range(num_capsule):
            total = sum(
                coupling[j, i] * votes[j, i] for i in range(input_num_capsule)
            )
            outputs[j] = reference_squash(total, squash)
        for j in range(num_capsule):
            for i in range(input_num_capsule):
                logits[j, i] += votes[j, i] @ outputs[j]
    return outputs, coupling


def built(routing, squash="paper", routings=None):
    """3 capsules of 5 above 6 of 4, and its weights."""
    layer = CapsuleLayer(3, 5, routings, routing=routing, squash=squash)
    layer.build((None, 6, 4))
    weights = [0.7 * random_normal(3, 6, 5, 4, seed=1)]
    if routing == "attention":
        weights.append(0.3 * random_normal(3, 6, 1, seed=2))
    layer.set_weights(weights)
    return layer, weights


@pytest.mark.parametrize("squash", ["paper", "exponential"])
@pytest.mark.parametrize(
    "routing, routings",
    [(name, n) for name in ITERATIVE for n in (1, 2, 4)]
    + [("attention", None)],
)
def test_routing_is_that_of_its_source(routing, routings, squash):
    layer, (kernel, *prior) = built(routing, squash, routings)
    inputs = random_normal(3, 6, 4)
    outputs, coupling = map(to_numpy, layer.route(inputs))
    for row in range(3):
        expected = reference(
            inputs[row], kernel, routing, routings, squash, *prior
        )
        np.testing.assert_allclose(outputs[row], expected[0], atol=1e-5)
        np.testing.assert_allclose(coupling[row], expected[1], atol=1e-5)
    # No picture depends on the others of its batch.
    alone = to_numpy(layer(inputs[1:2]))
    np.testing.assert_allclose(alone[0], outputs[1], atol=1e-6)


@pytest.mark.parametrize("routing", KINDS)
def test_gradients_are_those_of_the_formulas(routing):
    layer, weights = built(routing)
    inputs, factors = random_normal(6, 4), random_normal(3, 5, seed=3)

    def loss(inputs, *weights):
        outputs, _ = layer.stateless_call(list(weights), [], inputs[None])
        return ops.sum(outputs[0] * ops.convert_to_tensor(factors))

    def of_kernel(kernel):
        found, _ = reference(inputs, kernel, routing, 3, "paper", *weights[1:])
        return float(np.sum(found * factors))

    _, by_kernel, *by_prior = gradients(loss, inputs, *weights)
    expected = central_differences(of_kernel, weights[0])
    assert relative_error(by_kernel, expected) < 1e-3
    if by_prior:
        assert np.abs(by_prior[0]).min() > 0


@pytest.mark.parametrize("routing", KINDS)
@pytest.mark.parametrize("squash", ["paper", "exponential"])
def test_routing_is_finite_where_all_is_zero_or_alike(routing, squash):
    layer, weights = built(routing, squash)

    def loss(inputs, *weights):
        outputs, _ = layer.stateless_call(list(weights), [], inputs)
        return ops.sum(Length()(outputs))

    alike = [np.broadcast_to(w[:1], w.shape).copy() for w in weights]
    for inputs, given in (
        (np.zeros((2, 6, 4), "float32"), weights),
        (random_normal(2, 6, 4), alike),
        (1e-20 * random_normal(2, 6, 4), weights),
    ):
        assert np.isfinite(to_numpy(loss(inputs, *given)))
        for gradient in gradients(loss, inputs, *given):
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    "routing, first",
    [("dynamic", 1 / 3), ("leaky", 1 / 4), ("max_min", 1.0)],
)
def test_the_first_round_couples_all_alike(routing, first):
    layer, _ = built(routing, routings=1)
    _, coupling = layer.route(random_normal(2, 6, 4))
    np.testing.assert_allclose(to_numpy(coupling), first, rtol=1e-6)


def test_max_min_takes_next_to_no_range_for_none():
    """Its reciprocal could overflow."""
    logits = np.array([0, 1e-35, 2e-35], "float32")[:, None, None]
    np.testing.assert_array_equal(to_numpy(max_min(logits)), 1.0)
    wider = to_numpy(max_min(logits * np.float32(1e10))).ravel()
    np.testing.assert_allclose(wider, [0, 0.5, 1], atol=1e-6)


def test_large_logits_overflow_in_no_routing():
    inputs = 200 * random_normal(2, 6, 4)
    for routing in KINDS:
        outputs, coupling = map(to_numpy, built(routing)[0].route(inputs))
        assert np.isfinite(outputs).all() and np.isfinite(coupling).all()


@pytest.mark.parametrize("routing", KINDS)
def test_a_layer_comes_back_with_its_routing(routing, tmp_path):
    layer, _ = built(routing, "exponential")
    copy = CapsuleLayer.from_config(layer.get_config())
    assert (copy.routing, copy.squash) == (routing, "exponential")
    assert copy.routings == (None if routing == "attention" else 3)
    model = keras.Sequential([keras.Input((6, 4)), layer])
    path = tmp_path / "model.keras"
    model.save(path)
    inputs = random_normal(2, 6, 4)
    loaded = keras.models.load_model(path, safe_mode=True)
    np.testing.assert_array_equal(
        loaded.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"routing": "attention", "routings": 3}, "routings=3"),
        ({"routing": "em"}, "'leaky'.*routing='em'"),
        ({"squash": "none"}, "'exponential'.*squash='none'"),
        ({"routings": 0}, "routings=0"),
    ],
)
def test_what_a_routing_does_not_know_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        CapsuleLayer(3, 5, **arguments)


def test_the_exponential_squash_is_equation_2_at_every_length():
    vectors = random_normal(5, 4)
    for scale in (1e-6, 1e-2, 1.0, 30.0):
        received = to_numpy(squash(scale * vectors, kind="exponential"))
        for vector, result in zip(vectors, received):
            expected = reference_squash(scale * vector, "exponential")
            np.testing.assert_allclose(result, expected, rtol=2e-5)
    # Short vectors are not squared: the gradient at zero is finite.
    (gradient,) = gradients(
        lambda v: ops.sum(squash(v, kind="exponential")), 1e-20 * vectors
    )
    np.testing.assert_allclose(gradient, 1.0, atol=1e-5)
