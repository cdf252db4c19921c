"""Models and weights as files: whole, the same again, or refused."""

import os
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from model_files import N_CLASS, SHAPE, capsnet, dense_model, message_of

from capsnet.models.networks import Baseline, Efficient
from capsnet.models.saving import (
    check_model,
    class_names_of,
    load_model,
    load_models,
    load_weights,
    save_half,
    save_model,
)
from capsulenet import CapsNet

ROOT = Path(__file__).parents[2]


def weights_of(model):
    return [weight.copy() for weight in model.get_weights()]


def same(arrays, others):
    return len(arrays) == len(others) and all(
        np.array_equal(one, other) for one, other in zip(arrays, others)
    )


def write_classic(path, model, first_dense):
    """Weights as CapsNet-Keras wrote them with Keras 2."""
    layers = {layer.name: layer for layer in model.layers}
    primary = layers["primarycap"]
    arrays = {
        "conv1/conv1/kernel:0": layers["conv1"].kernel,
        "conv1/conv1/bias:0": layers["conv1"].bias,
        "primarycap_conv2d/primarycap_conv2d/kernel:0": primary.conv.kernel,
        "primarycap_conv2d/primarycap_conv2d/bias:0": primary.bias,
        "digitcaps/digitcaps/W:0": layers["digitcaps"].kernel,
    }
    dense = [layer for layer in layers["decoder"].layers if layer.weights]
    for number, layer in enumerate(dense, first_dense):
        name = f"decoder/dense_{number}" if number else "decoder/dense"
        arrays[f"{name}/kernel:0"] = layer.kernel
        arrays[f"{name}/bias:0"] = layer.bias
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.0.7"
        file.attrs["layer_names"] = [b"conv1", b"digitcaps", b"decoder"]
        for name, weight in arrays.items():
            file[name] = keras.ops.convert_to_numpy(weight)


@pytest.fixture(scope="module")
def trained():
    """A network that stands for a trained one, its biases included."""
    model = capsnet(seed=1)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "bias":
            weight.assign(generator.normal(0, 0.1, weight.shape))
    return model


@pytest.fixture
def path(tmp_path, trained):
    save_model(trained, tmp_path / "model.keras", {"flags": {"seed": 3}})
    return str(tmp_path / "model.keras")


# Whole models


@pytest.mark.parametrize(
    "network",
    [
        lambda: capsnet(1),
        lambda: capsnet(1, init="authors", capsule_bias=0.1, decoder=False),
        lambda: Baseline((6, 5, 3), 2)[1],
    ],
)
def test_saved_model_comes_back_with_its_record(tmp_path, network):
    path, model = str(tmp_path / "model.keras"), network()
    record = {"flags": {"dataset": "digits"}, "class_names": ["a", "b"]}
    save_model(model, path, record)
    loaded, found = load_model(path)
    assert found == record and same(weights_of(loaded), weights_of(model))
    shape = (2, *model.input.shape[1:])
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    expected = model.predict(x, verbose=0)
    for name, values in loaded.predict(x, verbose=0).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    # Keras alone reads it, too.
    assert keras.models.load_model(path).name == model.name
    assert os.listdir(tmp_path) == ["model.keras"]


def test_a_model_from_before_the_move_loads():
    model, record = load_model(str(ROOT / "result" / "mnist" / "v4.keras"))
    assert model.count_params() == record["parameters"] == 8_215_568


def test_halved_model_is_half_as_large_and_nearly_the_same(
    tmp_path, path, trained
):
    half = str(tmp_path / "half.keras")
    save_half(trained, half, {"flags": {"seed": 3}})
    assert 0.45 < os.path.getsize(half) / os.path.getsize(path) < 0.55
    model, record = load_model(half)
    assert record == {"flags": {"seed": 3}}
    for weight, expected in zip(model.weights, trained.weights, strict=True):
        assert weight.dtype == expected.dtype == "float32"
        # Half a unit in the last of ten binary places, or of the smallest.
        np.testing.assert_allclose(weight, expected, rtol=2**-11, atol=2**-25)
    large = keras.models.clone_model(trained)
    bias = large.get_layer("conv1").bias
    bias.assign(np.full(bias.shape, 7e4, "float32"))
    other = tmp_path / "other.keras"
    assert "at most 65,504" in message_of(save_half, large, other, {})
    assert not other.exists()


def test_model_without_a_record_has_an_empty_one(tmp_path):
    dense_model().save(tmp_path / "model.keras")
    assert load_model(str(tmp_path / "model.keras"))[1] == {}


# What a model is for


def test_model_of_another_kind_is_refused():
    message = message_of(check_model, dense_model(), "a.keras", (3,), 4)
    assert "expected a model that capsulenet.py saved" in message
    assert "sequential" in message


@pytest.mark.parametrize(
    "shape, n_class, received, advice",
    (
        (SHAPE, 4, "17x17x1 and 4", ""),
        ((18, 17, 1), 4, "18x17x1 and 4", ""),
        ((18, 17, 1), 3, "18x17x1 and 3", ", or add --image_size 17 17"),
        ((17, 17, 3), 3, "17x17x3 and 3", ", or add --grayscale"),
        (
            (17, 9, 4),
            3,
            "17x9x4 and 3",
            ", or add --image_size 17 17 --grayscale",
        ),
    ),
)
def test_model_for_other_pictures_or_classes_is_refused(
    trained, shape, n_class, received, advice
):
    check_model(trained, "a.keras", SHAPE, N_CLASS)
    message = message_of(check_model, trained, "a.keras", shape, n_class)
    expected = "17x17x1 (height x width x channels) and 3 classes"
    assert expected in message and f"got {received}" in message
    assert message.endswith("choose another --dataset" + advice)


def test_models_that_know_other_classes_do_not_predict_together(
    tmp_path, path, trained
):
    models, names, record = load_models([path, path])
    assert len(models) == 2 and names == ["0", "1", "2"]
    assert record == {"flags": {"seed": 3}}
    other = str(tmp_path / "other.keras")
    save_model(trained, other, {"class_names": ["x", "y", "z"]})
    message = message_of(load_models, [path, path, other])
    assert path in message and other in message and "differ" in message


@pytest.mark.parametrize("record", ({}, {"class_names": ["a"]}, {"x": 5}))
def test_model_without_class_names_numbers_its_classes(record):
    assert class_names_of(record, 3) == ["0", "1", "2"]


# Weights


@pytest.mark.parametrize("suffix", (".keras", ".weights.h5", "-0.h5", "-9.h5"))
def test_weights_are_those_of_the_file(tmp_path, path, trained, suffix):
    """The last ones are the classic code's, by the number of its layers."""
    if suffix == ".weights.h5":
        path = str(tmp_path / "model.weights.h5")
        trained.save_weights(path)
    elif suffix != ".keras":
        path = str(tmp_path / "classic.h5")
        write_classic(path, trained, first_dense=int(suffix[1]))
    # Made in the same process, and by another seed.
    model = capsnet(seed=2)
    assert not same(weights_of(model), weights_of(trained))
    load_weights(model, path)
    assert same(weights_of(model), weights_of(trained))


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"decoder": False}, "expected dense1/bias no such weight"),
        ({"capsule_bias": 0.1}, "digitcaps/bias (3, 16), got no such weight"),
        ({"dim_capsule": 8}, "(24, 512), got (48, 512)"),
    ],
)
def test_weights_of_another_network_say_what_differs(path, arguments, expected):
    model = capsnet(seed=2, **arguments)
    before = weights_of(model)
    message = message_of(load_weights, model, path)
    assert expected in message and path in message
    assert same(weights_of(model), before)


@pytest.mark.parametrize("suffix", (".weights.h5", ".h5", ".txt"))
def test_what_holds_no_weights_is_refused(tmp_path, trained, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text("no weights")
    message = message_of(load_weights, trained, str(path))
    assert "cannot load weights" in message and path.name in message
    other = str(tmp_path / "other.weights.h5")
    dense_model().save_weights(other)
    assert other in message_of(load_weights, trained, other)


def test_weights_of_more_layers_are_refused_in_one_line(tmp_path, trained):
    path = str(tmp_path / "small.weights.h5")
    Efficient(SHAPE, N_CLASS)[1].save_weights(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A warning would be a second one.
        message = message_of(load_weights, trained, path)
    assert f"{path!r}; check the file and the model's flags" in message
    assert "objects could not be loaded" in message


def test_classic_weights_fit_a_network_without_decoder(tmp_path, trained):
    path = str(tmp_path / "classic.h5")
    write_classic(path, trained, first_dense=1)
    model = capsnet(seed=2, decoder=False)
    load_weights(model, path)
    for name in ("conv1", "primarycap", "digitcaps"):
        expected = weights_of(trained.get_layer(name))
        assert same(weights_of(model.get_layer(name)), expected)


def test_classic_weights_that_do_not_fit_say_what_differs(tmp_path, trained):
    path = str(tmp_path / "classic.h5")
    write_classic(path, trained, first_dense=1)
    model = CapsNet((17, 17, 3), N_CLASS)[1]
    message = message_of(load_weights, model, path)
    assert "conv1/kernel (5, 5, 3, 256), got (5, 5, 1, 256)" in message
    before = weights_of(trained)
    with h5py.File(path, "a") as file:
        group = file["digitcaps"]["digitcaps"]
        del group["W:0"]
        # Chunks that are written nowhere: the file is small.
        group.create_dataset("W:0", (10**4, 10**8), "float32", chunks=(9, 9))
    message = message_of(load_weights, trained, path)
    assert "digitcaps/kernel" in message
    assert "got (10000, 100000000)" in message
    with h5py.File(path, "a") as file:
        del file["digitcaps"]["digitcaps"]
    message = message_of(load_weights, trained, path)
    assert "digitcaps/kernel" in message and "no such weight" in message
    assert same(weights_of(trained), before)
