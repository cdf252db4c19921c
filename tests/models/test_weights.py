"""Weights from files into models that are there."""

import warnings

import h5py
import keras
import numpy as np
import pytest
from model_files import N_CLASS, SHAPE, capsnet, dense_model, message_of

from capsnet.models.networks import Baseline, Efficient
from capsnet.models.saving import save_model
from capsnet.models.weights import load_weights, start_from
from capsulenet import CapsNet


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
    assert "in which 'digitcaps/digitcaps/W:0' is no array of" in message
    with h5py.File(path, "a") as file:
        del file["digitcaps"]["digitcaps"]
    message = message_of(load_weights, trained, path)
    assert "digitcaps/kernel" in message and "no such weight" in message
    assert same(weights_of(trained), before)


def test_classic_weights_do_not_fit_a_network_with_more_of_them(
    tmp_path, trained
):
    path = str(tmp_path / "classic.h5")
    write_classic(path, trained, first_dense=1)
    for more in ({"capsule_bias": 0.5}, {"routing": "attention"}):
        model = CapsNet(SHAPE, N_CLASS, **more)[1]
        before = weights_of(model)
        message = message_of(load_weights, model, path)
        assert "digitcaps/" in message and "got no such weight" in message
        assert same(weights_of(model), before)
        assert start_from(model, path) == (["digitcaps"], [])


# Where a training starts


@pytest.mark.parametrize("suffix", (".keras", ".h5"))
def test_training_starts_from_a_model_of_other_classes(
    tmp_path, path, trained, suffix
):
    """What the number of classes decides about begins anew, and whole."""
    if suffix == ".h5":
        path = str(tmp_path / "classic.h5")
        write_classic(path, trained, first_dense=1)
    model = CapsNet(SHAPE, N_CLASS + 2, routings=1)[1]
    before = {w.path: keras.ops.convert_to_numpy(w) for w in model.weights}
    assert start_from(model, path) == (["digitcaps", "dense1"], [])
    taken = {w.path: w for w in trained.weights}
    for weight in model.weights:
        is_new = weight.path.split("/")[-2] in ("digitcaps", "dense1")
        expected = before[weight.path] if is_new else taken[weight.path]
        np.testing.assert_array_equal(weight, expected)


def test_training_starts_from_the_same_network_whole(path, trained):
    model = capsnet(seed=2)
    assert start_from(model, path) == ([], [])
    assert same(weights_of(model), weights_of(trained))


def test_another_network_for_the_same_weights_is_told(tmp_path, trained):
    source = CapsNet(SHAPE, N_CLASS, 2, capsule_bias=0.1, primary_scale=0.5)[1]
    path = str(tmp_path / "model.keras")
    save_model(source, path, {})
    model = CapsNet(SHAPE, N_CLASS, routings=1, primary_strides=1)[1]
    _, lines = start_from(CapsNet(SHAPE, N_CLASS, routings=1)[1], path)
    assert lines == [
        "primarycap's scale 0.5 (here 1.0)",
        "digitcaps's routings 2 (here 1)",
        "digitcaps's use_bias True (here False)",
    ]
    # What begins anew does not count.
    assert "digitcaps" in start_from(model, path)[0]
    assert all("digitcaps" not in line for line in start_from(model, path)[1])


def test_training_takes_a_layer_of_primary_capsules_whole_or_not(tmp_path):
    source = CapsNet(SHAPE, N_CLASS, primary_kernel=4)[1]
    source.get_layer("primarycap").bias.assign(np.full(256, 7.0))
    path = str(tmp_path / "model.keras")
    save_model(source, path, {})
    model = CapsNet(SHAPE, N_CLASS, primary_kernel=3)[1]
    before = weights_of(model.get_layer("primarycap"))
    assert "primarycap" in start_from(model, path)[0]
    assert same(weights_of(model.get_layer("primarycap")), before)
    for name in ("conv1", "decoder"):
        expected = weights_of(source.get_layer(name))
        assert same(weights_of(model.get_layer(name)), expected)


def test_training_does_not_start_from_another_network(path):
    baseline = Baseline((17, 17, 3), N_CLASS)[1]
    message = message_of(start_from, baseline, path)
    assert path in message and "does not fit: expected" in message
