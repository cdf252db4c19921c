"""Tests of benchmarks/worker.py and classic.py: the networks and their work."""

import keras
import numpy as np
import processes
import pytest
import worker
from classic import ClassicCapsNet

from capsnet.messages import UserError
from capsulenet import CapsNet, compile_model

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

SHAPE, N_CLASS = (20, 20, 1), 3
SPEC = {**worker.DEFAULTS, "size": 20, "n_class": N_CLASS, "batch_size": 4}


def arrays_of(layer):
    # Copies: JAX gives a model's own buffers away when it trains or predicts.
    return [np.array(weight) for weight in layer.get_weights()]


def twins(conv="direct", routings=3):
    """Ours and the classic network, with the same weights.

    The weights are scaled so that lengths and coupling differ.
    """
    keras.utils.set_random_seed(1)
    ours = CapsNet(SHAPE, N_CLASS, routings, conv=conv, **worker.GEOMETRY)[0]
    classic = ClassicCapsNet(SHAPE, N_CLASS, routings)[0]
    primary = ours.get_layer("primarycap")
    primary.conv.kernel.assign(4 * primary.conv.kernel)
    capsules = ours.get_layer("digitcaps")
    capsules.kernel.assign(12 * capsules.kernel)
    bias = np.array(keras.ops.convert_to_numpy(primary.bias))
    classic.get_layer("primarycap_conv2d").set_weights(
        [*arrays_of(primary.conv), bias]
    )
    for name in ("conv1", "digitcaps", "decoder"):
        classic.get_layer(name).set_weights(arrays_of(ours.get_layer(name)))
    return ours, classic


@pytest.mark.parametrize("conv", ["direct", "fast"])
@pytest.mark.parametrize("routings", [1, 3])
def test_classic_formulation_gives_the_same_numbers(conv, routings):
    ours, classic = twins(conv, routings)
    x, _ = worker.batches_of(SPEC, 4)[0]
    expected = classic.predict(x, verbose=0)
    received = ours.predict(x, verbose=0)
    lengths = expected["capsnet"]
    assert 0.05 < lengths.min() and lengths.max() < 0.98
    assert np.ptp(lengths) > 0.05
    for name in ("capsnet", "decoder"):
        np.testing.assert_allclose(received[name], expected[name], atol=1e-5)


def test_routing_matters_to_the_twins():
    x, _ = worker.batches_of(SPEC, 4)[0]
    once, thrice = (
        twins(routings=routings)[1].predict(x, verbose=0)["capsnet"]
        for routings in (1, 3)
    )
    assert np.abs(once - thrice).max() > 1e-2


def test_classic_formulation_trains_alike():
    x, y = worker.batches_of(SPEC, 4)[0]
    losses = []
    for model in twins():
        compile_model(model, 1e-5, 0.2)
        losses.append([model.train_on_batch(x, y)[0] for _ in range(3)])
    assert losses[0][0] > losses[0][2]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("conv", ["auto", "direct"])
def test_work_is_counted_from_the_shapes(conv):
    model, _, _ = CapsNet((28, 28, 1), 10, 3, conv=conv)
    conv1 = 2 * 20 * 20 * 256 * 81
    primary = 3 * 6 * 6 * 256 * 81 * 256
    decoder = 3 * (160 * 512 + 512 * 1024 + 1024 * 784)
    votes, use = 3 * 1152 * 10 * 16 * 8, 3 * 1152 * 10 * 16
    counted = worker.work(model, 100)
    # Votes once, and 3 sums and 2 agreements of them.
    assert counted["written"] == 100 * (
        conv1 + primary + decoder + votes + 5 * use
    )
    others = 100 * (conv1 + decoder + 5 * votes)
    if conv == "direct":
        assert counted["done"] == others + 100 * primary
    else:
        # Parts of 5 and 4 taps: 10 + 9 points along either axis. Rows, then
        # columns of the pictures, columns, then rows of the kernel.
        products = 19 * 19 * 256 * 256
        of_input = (19 * 20 * 20 + 19 * 19 * 20) * 256
        of_output = 36 * 19 * 19 * 256
        of_kernel = (9 * 9 * 19 + 9 * 19 * 19) * 256 * 256
        transforms = 100 * (of_input + of_output) + of_kernel
        assert counted["done"] == others + 300 * products + 2 * transforms


def test_worker_builds_by_the_setting():
    changed = {"steps_per_execution": 5, "jit_compile": "off"}
    train_model, eval_model = worker.build({**SPEC, **changed})
    assert train_model.steps_per_execution == 5
    assert train_model.jit_compile is eval_model.jit_compile is False
    weights = train_model.get_compile_config()["loss_weights"]
    assert weights["decoder"] == pytest.approx(0.0005 * 400)


@pytest.mark.parametrize(
    "changed, kind",
    [
        ({}, ("dynamic", 3)),
        ({"routing": "leaky", "routings": 2}, ("leaky", 2)),
        ({"routing": "attention", "routings": None}, ("attention", None)),
        ({"network": "small"}, ("attention", None)),
    ],
)
def test_worker_builds_the_routing(changed, kind):
    train_model, _ = worker.build({**SPEC, **changed})
    capsules = train_model.get_layer("digitcaps")
    assert (capsules.routing, capsules.routings) == kind


def test_small_network_is_measured_on_affine_pictures():
    small = {"network": "small", "augment": "affine"}
    bench = worker.Bench({**SPEC, **small})
    assert min(bench.train(1), bench.feed(8), bench.predict(8, 4)) > 0
    pictures = bench.augmented(4)[0][0]["image"]
    assert pictures.shape == (4, *SHAPE)
    # Between pixels; shifts are by whole ones.
    pictures = 255 * pictures
    assert np.abs(pictures - np.round(pictures)).max() > 0.1
    bench.spec["augment"] = "shift"
    pictures = 255 * bench.augmented(4)[0][0]["image"]
    np.testing.assert_allclose(pictures, np.round(pictures), atol=1e-3)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="a choice of TensorFlow's"
)
@pytest.mark.parametrize("network", ["classic", "ours"])
@pytest.mark.parametrize("jit_compile", ["auto", "on"])
def test_both_networks_compute_alike(network, jit_compile):
    """XLA needs operations that are not deterministic, for both."""
    from tensorflow.python.framework import config

    config.disable_op_determinism()
    changed = {"network": network, "jit_compile": jit_compile}
    train_model, _ = worker.build({**SPEC, **changed})
    assert config.is_op_determinism_enabled() == (jit_compile == "auto")
    assert train_model.jit_compile == (jit_compile == "on")


def test_worker_that_fails_says_why_and_leaves_no_process():
    with pytest.raises(UserError, match="ended with status 1.*last words"):
        processes.Worker(**{**SPEC, "size": 12})
