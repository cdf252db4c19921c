"""The networks: their models, weights, initial values, and the loss."""

import math

import keras
import numpy as np
import pytest
from conftest import bars
from numerics import reference_squash
from running import weights_of

from capsnet.models.networks import (
    Baseline,
    Efficient,
    Network,
    attach,
    reconstruction_weight,
)
from capsnet.models.several import SeveralBaseline
from capsulenet import CapsNet, margin_loss

SHAPE, N_CLASS = (17, 17, 1), 3
# Standard deviation of a normal distribution cut off at two deviations.
CUT_OFF = 0.8796


def margin(labels, lengths):
    """Eq. 4, class by class."""
    return sum(
        t * max(0.0, 0.9 - v) ** 2 + 0.5 * (1 - t) * max(0.0, v - 0.1) ** 2
        for t, v in zip(labels, lengths)
    )


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(3)
    return CapsNet(SHAPE, N_CLASS)


# How many weights


@pytest.mark.parametrize(
    "network, expected",
    [
        (lambda: CapsNet((28, 28, 1), 10), 8_215_568),
        (lambda: CapsNet((36, 36, 1), 10), 11_361_808),
        (lambda: CapsNet((28, 28, 1), 10, decoder=False), 6_804_224),
        (lambda: CapsNet((28, 28, 1), 10, capsule_bias=0.1), 8_215_728),
        (lambda: Baseline((28, 28, 1), 10), 35_445_522),
        (lambda: Baseline((5, 4, 3), 2), 3_381_002),
    ],
)
def test_networks_have_exactly_these_weights(network, expected):
    train_model, eval_model, _ = network()
    assert train_model.count_params() == eval_model.count_params() == expected


def test_baseline_is_that_of_section_5():
    train_model, eval_model, manipulate_model = Baseline((8, 6, 1), 3)
    assert manipulate_model is None and train_model is not eval_model
    kinds = [type(layer).__name__ for layer in eval_model.layers]
    assert (
        kinds
        == (
            "InputLayer Conv2D Conv2D Conv2D Flatten Dense Dense Dropout Dense "
            "Softmax"
        ).split()
    )
    x = np.random.default_rng(0).uniform(size=(2, 8, 6, 1))
    scores = eval_model.predict(x, verbose=0)["capsnet"]
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-5)


# The models


def test_models_have_the_inputs_and_outputs_of_their_names(models):
    train_model, eval_model, manipulate_model = models
    image, label = (None, *SHAPE), (None, N_CLASS)
    lengths, noise = (None, N_CLASS), (None, N_CLASS, 16)
    inputs = {"image": image, "label": label}
    for model, inputs, outputs in (
        (train_model, inputs, {"capsnet": lengths, "decoder": image}),
        (manipulate_model, {**inputs, "noise": noise}, {"decoder": image}),
        (eval_model, {"image": image}, {"capsnet": lengths, "decoder": image}),
    ):
        assert {x.name: x.shape for x in model.inputs} == inputs
        assert {name: x.shape for name, x in model.output.items()} == outputs
    names = {layer.name for layer in eval_model.layers}
    assert names >= {"conv1", "primarycap", "digitcaps", "capsnet", "decoder"}


def test_without_a_decoder_there_is_nothing_to_manipulate():
    train_model, eval_model, manipulate_model = CapsNet(
        SHAPE, N_CLASS, decoder=False
    )
    assert manipulate_model is None
    for model in (train_model, eval_model):
        assert list(model.output) == ["capsnet"]
        assert [x.name for x in model.inputs] == ["image"]


def test_training_changes_all_three_models(models):
    train_model, eval_model, manipulate_model = attach(
        keras.models.clone_model(models[1])
    )
    pictures, labels = bars(6, SHAPE)
    x = pictures.astype("float32") / 255
    label = np.eye(N_CLASS, dtype="float32")[labels]
    noise = np.zeros((6, N_CLASS, 16), "float32")
    inputs = {"image": x, "label": label, "noise": noise}

    def predicted():
        outputs = eval_model.predict(x, verbose=0)
        drawn = manipulate_model.predict(inputs, verbose=0)["decoder"]
        return {**outputs, "drawn": drawn}

    before = predicted()
    train_model.compile("adam", {"capsnet": margin_loss, "decoder": "mse"})
    train_model.train_on_batch(
        {"image": x, "label": label}, {"capsnet": label, "decoder": x}
    )
    after = predicted()
    for name, values in after.items():
        assert np.abs(values - before[name]).max() > 1e-3
    trained = train_model.predict({"image": x, "label": label}, verbose=0)
    np.testing.assert_allclose(after["capsnet"], trained["capsnet"], atol=1e-6)
    np.testing.assert_allclose(after["drawn"], trained["decoder"], atol=1e-6)


def test_decoder_sees_the_longest_capsule_or_the_labelled_one(models):
    train_model, eval_model, _ = models
    x = bars(5, SHAPE)[0].astype("float32") / 255
    digitcaps = eval_model.get_layer("digitcaps").output
    capsules = keras.Model(eval_model.input, digitcaps).predict(x, verbose=0)
    outputs = eval_model.predict(x, verbose=0)
    lengths = np.sqrt(np.sum(capsules**2, -1))
    np.testing.assert_allclose(outputs["capsnet"], lengths, atol=1e-6)
    longest = lengths.argmax(-1)
    labels = (longest + 1) % N_CLASS
    one_hot = np.eye(N_CLASS, dtype="float32")[labels]
    labelled = train_model.predict({"image": x, "label": one_hot}, verbose=0)
    decoder = eval_model.get_layer("decoder")
    for kept, received in (
        (longest, outputs["decoder"]),
        (labels, labelled["decoder"]),
    ):
        masked = np.zeros_like(capsules)
        for sample, number in enumerate(kept):
            masked[sample, number] = capsules[sample, number]
        expected = decoder.predict(masked.reshape(5, -1), verbose=0)
        np.testing.assert_allclose(received, expected, atol=1e-5)


# The loss


def test_margin_loss_is_equation_4_for_each_picture():
    generator = np.random.default_rng(0)
    y_pred = generator.uniform(size=(7, 4)).astype("float32")
    # Inside, on and outside of both margins.
    y_pred[0] = 0.0, 0.1, 0.9, 1.0
    y_true = np.eye(4, dtype="float32")[generator.integers(0, 4, 7)]
    y_true[1] = 1, 0, 0, 1  # Two digits in one picture.
    loss = keras.ops.convert_to_numpy(margin_loss(y_true, y_pred))
    assert loss.shape == (7,)
    expected = list(map(margin, y_true, y_pred.astype("float64")))
    np.testing.assert_allclose(loss, expected, atol=1e-6)


@pytest.mark.parametrize(
    "lam_recon, shape, n_class, expected",
    [
        ("classic", (28, 28, 1), 10, 0.392),
        ("authors", (28, 28, 1), 10, 7.84),
        # 0.0005 for each value; two times the classes for the authors.
        ("classic", (32, 32, 3), 5, 1.536),
        ("authors", (32, 32, 3), 5, 15.36),
        (0.25, (28, 28, 1), 10, 0.25),
    ],
)
def test_reconstruction_weighs_as_in_the_paper(
    lam_recon, shape, n_class, expected
):
    weight = reconstruction_weight(lam_recon, shape, n_class)
    assert weight == pytest.approx(expected)


# What they begin with


def glorot(shape):
    """Deviation by Glorot and Bengio, the last two sizes being in and out."""
    field = math.prod(shape[:-2])
    return math.sqrt(2 / (field * shape[-2] + field * shape[-1]))


@pytest.mark.parametrize("init", ("length", "glorot", "authors"))
def test_initial_weights_have_the_deviations_of_init(init):
    keras.utils.set_random_seed(0)
    weights = weights_of(CapsNet(SHAPE, N_CLASS, init=init)[1])
    expected = {
        name: glorot(weight.shape)
        for name, weight in weights.items()
        if name.endswith("/kernel")
    }
    assert len(expected) == 6
    if init == "length":
        # As the layer's docstring says.
        num_capsule, inputs, dim_capsule, _ = weights["digitcaps/kernel"].shape
        deviation = num_capsule / math.sqrt(inputs * dim_capsule)
        expected["digitcaps/kernel"] = deviation
    if init == "authors":
        expected = dict.fromkeys(expected, 0.1 * CUT_OFF)
        expected["conv1/kernel"] = 0.05 * CUT_OFF
        assert np.abs(weights["conv1/kernel"]).max() <= 0.1
    for name, deviation in expected.items():
        kernel = weights[name]
        assert np.std(kernel) == pytest.approx(deviation, rel=0.03), name
        assert abs(np.mean(kernel)) < 0.05 * deviation
    bias = 0.1 if init == "authors" else 0.0
    for name in ("conv1", "dense1", "dense2", "dense3"):
        np.testing.assert_allclose(weights[f"{name}/bias"], bias)


def test_capsule_bias_is_where_capsules_begin(models):
    weights = weights_of(models[1])
    assert "digitcaps/bias" not in weights
    np.testing.assert_array_equal(weights["primarycap/bias"], 0)
    weights = weights_of(CapsNet(SHAPE, N_CLASS, capsule_bias=0.1)[1])
    assert weights["digitcaps/bias"].shape == (N_CLASS, 16)
    np.testing.assert_allclose(weights["digitcaps/bias"], 0.1)
    np.testing.assert_allclose(weights["primarycap/bias"], 0.1)


def test_primary_scale_divides_the_convolution_but_not_the_bias():
    model = CapsNet(
        SHAPE, N_CLASS, init="authors", capsule_bias=0.1, primary_scale=1 / 32
    )[1]
    layer = model.get_layer("primarycap")
    sums = layer.conv(model.get_layer("conv1").output)
    both = keras.Model(model.input, [sums, layer.output])
    x = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    sums, received = both.predict(x, verbose=0)
    vectors = (sums / 32 + 0.1).reshape(*received.shape)
    for row, capsules in zip(vectors, received):
        expected = list(map(reference_squash, row))
        np.testing.assert_allclose(capsules, expected, atol=1e-5)


# What a record says of one


def test_network_is_what_the_flags_of_a_record_name():
    assert Network.of({}) == Network()
    flags = {"routings": 1, "lam_recon": 0.0, "epochs": 5, "conv_kernel": [3]}
    network = Network.of(flags)
    assert network == Network(routings=1, decoder=False, conv_kernel=[3])
    assert Network.of({"lam_recon": "authors"}).decoder
    with pytest.raises(AttributeError):
        network.routings = 2


@pytest.mark.parametrize(
    "network", (CapsNet, Efficient, Baseline, SeveralBaseline)
)
def test_networks_are_what_they_are_whatever_keras_is_set_up_for(network):
    images = np.random.default_rng(0).random((2, 17, 16, 1), "float32")
    lengths = []
    for order in ("channels_last", "channels_first"):
        keras.config.set_image_data_format(order)
        try:
            keras.utils.set_random_seed(0)
            eval_model = network((17, 16, 1), N_CLASS)[1]
            lengths.append(eval_model.predict(images, verbose=0)["capsnet"])
        finally:
            keras.config.set_image_data_format("channels_last")
    np.testing.assert_array_equal(lengths[1], lengths[0])
