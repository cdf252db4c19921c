"""Files that are damaged, or made by a stranger, are refused."""

import json
import struct
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from model_files import (
    capsnet,
    dense_model,
    members_of,
    message_of,
    write_members,
)

from capsnet.models import saving
from capsnet.models.archive import arrays_of
from capsnet.models.saving import load_model, save_model

# Zeros, which deflate into a thousandth.
BOMB = 123_456_789


def rewrite(path, old, new):
    """Changes the one place of a model's config where `old` stands."""
    members = members_of(path)
    assert members["config.json"].count(old) == 1
    members["config.json"] = members["config.json"].replace(old, new)
    write_members(path, members)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of a file that a network was saved in."""
    path = tmp_path_factory.mktemp("archive") / "model.keras"
    save_model(capsnet(seed=1), path, {"flags": {"seed": 3}})
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, content):
    (tmp_path / "model.keras").write_bytes(content)
    return str(tmp_path / "model.keras")


def test_model_that_was_packed_again_is_loaded(path):
    write_members(path, members_of(path), zipfile.ZIP_DEFLATED)
    assert load_model(path)[1] == {"flags": {"seed": 3}}


@pytest.mark.parametrize("damage", ("0.3", "0.6", "cut", "text", "zip"))
def test_damaged_model_is_refused(path, damage):
    content = bytearray(Path(path).read_bytes())
    if damage.startswith("0"):
        content[int(float(damage) * len(content))] ^= 0xFF
    Path(path).write_bytes(content[:-100] if damage == "cut" else content)
    if damage == "text":
        Path(path).write_text("no model")
    if damage == "zip":
        write_members(path, {"note.txt": "no model"})
    message = message_of(load_model, path)
    assert "expected a model that capsulenet.py saved" in message
    assert path in message


@pytest.mark.parametrize("claimed", (BOMB, 1000))
@pytest.mark.parametrize(
    "bomb", ("run.json", "config.json", "model.weights.h5")
)
def test_model_that_would_inflate_is_refused_before_it_does(
    tmp_path, bomb, claimed
):
    path = tmp_path / "model.keras"
    save_model(dense_model(), path, {"flags": {}})
    members = {**members_of(path), bomb: bytes(BOMB)}
    write_members(path, members, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    # A member may also claim less than it holds.
    sizes = [struct.pack("<L", size) for size in (BOMB, claimed)]
    content = path.read_bytes()
    assert content.count(sizes[0]) == 2
    path.write_bytes(content.replace(*sizes))
    del members, content
    tracemalloc.start()
    try:
        message = message_of(load_model, str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ("would inflate to 123," in message) == (claimed == BOMB)
    assert "expected a model that capsulenet.py saved" in message
    assert peak < 2**23


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_model_that_is_packed_in_another_way_is_refused(tmp_path, packing):
    """They inflate at once, to gigabytes, whatever a member claims."""
    path = tmp_path / "model.keras"
    save_model(dense_model(), path, {"flags": {}})
    write_members(path, members_of(path), packing)
    assert "not packed by deflate" in message_of(load_model, str(path))


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"units": 1024', b'"units": 100000000'),
        (b'"filters": 256', b'"filters": 100000000'),
        (b'"n_channels": 32', b'"n_channels": 100000000'),
        (b'"num_capsule": 3', b'"num_capsule": 300000000'),
        (b'"dim_capsule": 16', b'"dim_capsule": 1600000000'),
        (b'"input_shape": [null, 512]', b'"input_shape": [null, 51200000000]'),
    ],
)
def test_model_that_describes_more_than_it_holds_is_refused(path, old, new):
    """Before Keras makes arrays of that size: here of 200 GB and more."""
    rewrite(path, old, new)
    message = message_of(load_model, path)
    assert "describes weights of" in message and "does not hold" in message


@pytest.mark.parametrize("name", ["Conv2D", "PrimaryCap", "CapsuleLayer"])
def test_each_layer_needs_a_kernel_of_its_own(path, name):
    """Or one kernel would answer for any number of layers."""
    members = members_of(path)
    config = json.loads(members["config.json"])
    layers = config["config"]["layers"]
    layers += [layer for layer in layers if layer["class_name"] == name]
    members["config.json"] = json.dumps(config)
    write_members(path, members)
    assert "does not hold" in message_of(load_model, path)


def test_model_whose_arrays_are_claimed_only_is_refused(path):
    rewrite(path, b'"units": 1024', b'"units": 100000000')
    members = members_of(path)
    name = Path(path).with_name("weights.h5")
    name.write_bytes(members["model.weights.h5"])
    with h5py.File(name, "a") as file:
        (one,) = find_array(file, (512, 1024))
        for number in range(20):  # One array under many names.
            file[f"more{number}"] = file[one]
    members["model.weights.h5"] = name.read_bytes()
    write_members(path, members)
    assert "too small for its weights" in message_of(load_model, path)


def find_array(file, shape):
    """The names of the arrays of a shape."""
    arrays = arrays_of(file, "f").items()
    return [name for name, array in arrays if array.shape == shape]


@pytest.fixture
def weights(tmp_path):
    """An HDF5 file with an array, and one beside it that nobody names."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["kernel"] = np.full((2, 3), 7, "float32")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["layer/kernel"] = np.ones((2, 3), "float32")
        yield file


def external(file):
    more = {"external": [("secret.h5", 0, 24)]}
    file["layer"].create_dataset("bias", (2, 3), "float32", **more)


def virtual(file):
    layout = h5py.VirtualLayout((2, 3), "float32")
    layout[:] = h5py.VirtualSource("secret.h5", "kernel", (2, 3))
    file["layer"].create_virtual_dataset("bias", layout)


def link(file):
    file["layer/bias"] = h5py.ExternalLink("secret.h5", "kernel")


def soft_link(file):
    file["layer/bias"] = h5py.SoftLink("/layer/kernel")


def texts(file):
    file["layer"].create_dataset("bias", (2, 3), "S20000", chunks=(1, 1))


def unwritten(file):
    shape, chunks = (512, 10**8), (9, 9)
    file["layer"].create_dataset("bias", shape, "float32", chunks=chunks)


@pytest.mark.parametrize(
    "add", (external, virtual, link, soft_link, texts, unwritten)
)
def test_weights_are_numbers_of_the_file_itself(weights, add):
    assert list(arrays_of(weights, "a.h5")) == ["layer/kernel"]
    add(weights)
    message = message_of(arrays_of, weights, "a.h5")
    assert "got 'a.h5', in which 'layer/bias' is no array of" in message


def test_rounds_of_routing_are_bounded(path):
    """Each would become a part of the model; its loading would never end."""
    rewrite(path, b'"routings": 1', b'"routings": 10000000')
    message = message_of(load_model, path)
    assert "has 10000000 rounds of routing, expected at most 20" in message


@pytest.mark.parametrize(
    "layer", [keras.layers.Lambda(lambda x: 2 * x), keras.layers.LSTM(2)]
)
def test_model_of_layers_that_are_not_ours_is_refused(tmp_path, layer):
    """Code that it carries, too, is named before it is loaded."""
    path = str(tmp_path / "model.keras")
    keras.Sequential([keras.layers.Input((3, 2)), layer]).save(path)
    assert type(layer).__name__ in message_of(load_model, path)


def test_code_is_refused_by_keras_too(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "check_archive", lambda archive, path: None)
    path = str(tmp_path / "model.keras")
    layer = keras.layers.Lambda(lambda x: 2 * x)
    keras.Sequential([keras.layers.Input((3,)), layer]).save(path)
    assert "cannot load" in message_of(load_model, path)
