"""CapsNet at any size of picture, and the weight of a class in its loss."""

import keras
import numpy as np
import pytest
from conftest import bars

import capsulenet
from capsnet.data.batches import ShiftedBatches, balanced_weights
from capsnet.models.inference import predict
from capsnet.models.networks import Efficient


@pytest.mark.parametrize(
    "shape, n_class",
    [
        ((12, 12, 1), 2),
        ((13, 30, 3), 12),
        ((64, 20, 4), 2),
        pytest.param((13, 13, 3), 12, marks=pytest.mark.slow),
        pytest.param((17, 17, 4), 2, marks=pytest.mark.slow),
        pytest.param((21, 21, 1), 12, marks=pytest.mark.slow),
        pytest.param((12, 30, 3), 2, marks=pytest.mark.slow),
        pytest.param((40, 15, 1), 2, marks=pytest.mark.slow),
    ],
)
def test_small_sizes_train(shape, n_class):
    keras.utils.set_random_seed(0)
    x, _ = bars(2 * n_class, shape, n_class=2)
    batches = ShiftedBatches(x, np.arange(len(x)) % n_class, n_class, len(x))
    train_model, _, _ = capsulenet.CapsNet(shape, n_class, routings=2)
    capsulenet.compile_model(train_model, 0.001, 0.4)
    losses = [train_model.train_on_batch(*batches[0])[0] for _ in range(3)]
    # The third step may be too long: Adam's are, at the start.
    assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
    assert train_model.output["decoder"].shape[1:] == shape


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow traces"
)
@pytest.mark.parametrize("network", [capsulenet.CapsNet, Efficient])
@pytest.mark.parametrize("decoder", [True, False])
def test_a_training_step_is_traced_once(monkeypatch, network, decoder):
    """What the step would create is there before; else it is traced again."""
    x, y = bars(4, (17, 17, 1))
    train_model, _, _ = network((17, 17, 1), 3, decoder=decoder)
    capsulenet.compile_model(train_model, 0.001, 0.4, ema=0.9)
    # The metrics count from here.
    counts = [v.numpy() for m in train_model.metrics for v in m.variables]
    assert len(counts) > 3 and not np.any(counts)
    traced, step = [], train_model.train_step
    monkeypatch.setattr(
        train_model, "train_step", lambda data: traced.append(1) or step(data)
    )
    batches = ShiftedBatches(x, y, 3, 2, decoder=decoder)
    train_model.fit(batches, epochs=2, verbose=0)
    assert len(traced) == 1 and train_model.optimizer.iterations == 4


@pytest.mark.parametrize(
    "shape, n_class",
    [
        ((28, 28, 4), 12),
        ((32, 32, 3), 2),
        ((36, 36, 1), 2),
        ((48, 48, 3), 2),
        ((64, 64, 4), 2),
        ((64, 20, 3), 2),
    ],
)
def test_larger_sizes_predict(shape, n_class):
    _, eval_model, _ = capsulenet.CapsNet(shape, n_class)
    x = np.zeros((2, *shape), "uint8")
    outputs = predict(eval_model, x)
    assert outputs["capsnet"].shape == (2, n_class)
    assert outputs["decoder"].shape == x.shape


def test_class_weights_reach_the_class_loss_alone():
    x, _ = bars(4, (12, 12, 1))
    y = np.array([0, 0, 0, 1])
    train_model, _, _ = capsulenet.CapsNet((12, 12, 1), 2)
    capsulenet.compile_model(train_model, 0.001, 0.5)
    weights = balanced_weights(y, 2)
    batches = ShiftedBatches(x, y, 2, 4, class_weight=weights)
    inputs, targets, _ = batches[0]
    predictions = train_model.predict(inputs, verbose=0)
    # By hand: Eq. 4 for each picture, times n / (n_class * count).
    margin = []
    for label, lengths in zip(targets["capsnet"], predictions["capsnet"]):
        present = label * np.maximum(0, 0.9 - lengths) ** 2
        absent = (1 - label) * np.maximum(0, lengths - 0.1) ** 2
        margin.append(np.sum(present + 0.5 * absent))
    by_hand = np.mean(np.array([2 / 3, 2 / 3, 2 / 3, 2]) * margin)
    error = np.mean((predictions["decoder"] - targets["decoder"]) ** 2)
    figures = train_model.evaluate(batches, verbose=0, return_dict=True)
    np.testing.assert_allclose(figures["capsnet_loss"], by_hand, rtol=1e-5)
    np.testing.assert_allclose(figures["decoder_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(
        figures["loss"], by_hand + 0.5 * error, rtol=1e-5
    )
