"""The small network: its parts, its statistics, its sizes."""

import keras
import numpy as np
import pytest
from conftest import bars
from numerics import random_normal, reference_squash, to_numpy
from running import weights_of

from capsnet.messages import UserError
from capsnet.models.geometry import describe, parameters
from capsnet.models.networks import Efficient
from capsnet.models.normalization import BatchNormalization, Present
from capsnet.models.saving import load_model, save_model
from capsulelayers import PrimaryCap
from capsulenet import margin_loss


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return Efficient((28, 28, 1), 10)


def test_it_has_exactly_the_weights_of_its_source(small):
    without = Efficient((28, 28, 1), 10, decoder=False)[1]
    assert parameters(without) == 161_824
    assert without.count_params() - parameters(without) == 576
    assert [parameters(model) for model in small[:2]] == [1_573_168] * 2
    # 3 more capsules of 16 above 16 of 8, each pair with a prior.
    more = Efficient((28, 28, 1), 13, decoder=False)[1]
    assert parameters(more) == 161_824 + 3 * (16 * 16 * 8 + 16)


def test_its_weights_begin_as_in_its_source(small):
    weights = weights_of(small[1])
    # he_normal, cut off at two deviations; the grouped convolution's Glorot.
    for name, deviation in (
        ("conv1/kernel", (2 / 25) ** 0.5),
        ("conv2/kernel", (2 / (9 * 32)) ** 0.5),
        ("conv4/kernel", (2 / (9 * 64)) ** 0.5),
        ("primarycap/kernel", (2 / (81 + 81 * 128)) ** 0.5),
        ("digitcaps/kernel", 0.0395),
    ):
        found = np.std(weights[name])
        assert found == pytest.approx(deviation, rel=0.06), name
    for name in ("conv1/bias", "primarycap/bias", "digitcaps/prior"):
        np.testing.assert_array_equal(weights[name], 0)


def test_a_covering_kernel_sums_each_channel_with_weights_of_its_own():
    layer = PrimaryCap(2, 3, None, squash="exponential")
    inputs = random_normal(2, 4, 5, 6)
    layer.build((None, 4, 5, 6))
    kernel, bias = random_normal(4, 5, 1, 6, seed=1), random_normal(6, seed=2)
    layer.conv.kernel.assign(kernel)
    layer.bias.assign(bias)
    received = to_numpy(layer(inputs))
    assert received.shape == (2, 3, 2)
    for picture, capsules in zip(inputs, received):
        sums = bias.astype("float64")
        for row in range(4):
            for column in range(5):
                for channel in range(6):
                    sums[channel] += (
                        picture[row, column, channel]
                        * kernel[row, column, 0, channel]
                    )
        for vector, capsule in zip(sums.reshape(3, 2), capsules):
            expected = reference_squash(vector, "exponential")
            np.testing.assert_allclose(capsule, expected, atol=1e-5)
    copy = type(layer.conv).from_config(layer.conv.get_config())
    assert to_numpy(copy(inputs)).shape == (2, 1, 1, 6)
    with pytest.raises(ValueError, match="6 channels"):
        PrimaryCap(2, 3, None).build((None, 4, 5, 7))


@pytest.mark.parametrize(
    "shape, n_class",
    [((12, 12, 1), 2), ((13, 40, 3), 12), ((64, 20, 4), 2)],
)
def test_pictures_of_any_size_train(shape, n_class):
    keras.utils.set_random_seed(0)
    x = bars(2 * n_class, shape, n_class=2)[0].astype("float32") / 255
    label = np.eye(n_class, dtype="float32")[np.arange(len(x)) % n_class]
    train_model, eval_model, _ = Efficient(shape, n_class)
    train_model.compile("adam", {"capsnet": margin_loss, "decoder": "mse"})
    batch = {"image": x, "label": label}, {"capsnet": label, "decoder": x}
    losses = [train_model.train_on_batch(*batch)[0] for _ in range(3)]
    assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
    together = eval_model.predict(x, verbose=0)["capsnet"]
    alone = eval_model.predict(x[:1], verbose=0)["capsnet"]
    np.testing.assert_allclose(together[:1], alone, atol=1e-5)


def test_the_table_says_what_comes_of_a_picture(small):
    lines = describe(small[0], 100).splitlines()
    assert "feature map       9x9x128, conv4 3x3 with strides 2x2" in lines
    assert "primary grid      1x1, primarycap 9x9 depthwise" in lines
    assert "weights           1,573,168" in lines


def test_smaller_pictures_are_refused():
    with pytest.raises(UserError, match="12x12.*received 11x28.*image_size"):
        Efficient((11, 28, 1), 10)


def test_a_file_brings_all_of_it(small, tmp_path):
    eval_model = small[1]
    path = str(tmp_path / "small.keras")
    save_model(eval_model, path, {})
    loaded, _ = load_model(path)
    x = random_normal(3, 28, 28, 1)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0)["capsnet"],
        eval_model.predict(x, verbose=0)["capsnet"],
    )


# Batch normalization


def test_blank_pictures_stay_out_of_the_statistics():
    layer = BatchNormalization(momentum=0.0)
    layer.build((None, 4, 3, 2))
    real = random_normal(5, 4, 3, 2) + 3
    pictures = np.concatenate([real, np.zeros((3, 4, 3, 2), "float32")])
    mask = Present()(pictures)
    assert to_numpy(mask).ravel().tolist() == [1] * 5 + [0] * 3
    # A layer below made something else than zero of the blank pictures.
    shown = layer(pictures + 7, training=True, mask=mask)
    for channel in range(2):
        values = [v + 7 for v in real[..., channel].astype("float64").ravel()]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        found = to_numpy(layer.moving_mean)[channel]
        assert found == pytest.approx(mean, rel=1e-5)
        found = to_numpy(layer.moving_variance)[channel]
        assert found == pytest.approx(variance, rel=1e-3)
        expected = (real[..., channel] + 7 - mean) / (variance + 1e-3) ** 0.5
        found = to_numpy(shown)[:5, ..., channel]
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_without_a_mask_it_is_keras_own():
    inputs = random_normal(6, 4, 3, 2)
    ours, keras_own = BatchNormalization(), keras.layers.BatchNormalization()
    received = [to_numpy(x(inputs, training=True)) for x in (ours, keras_own)]
    np.testing.assert_allclose(*received, atol=1e-5)
    for one, other in zip(ours.weights, keras_own.weights):
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=1e-6)
