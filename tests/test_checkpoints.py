"""Tests of checkpoints.py: what is on the disk is whole, or refused."""

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from capsnet.files import (
    fcntl,  # noqa: E402
    locked,  # noqa: E402
    read_state,  # noqa: E402
    whole_file,  # noqa: E402
    write_json,  # noqa: E402
)
from capsnet.messages import UserError  # noqa: E402
from capsnet.models.saving import (
    check_model,  # noqa: E402
    load_model,  # noqa: E402
    load_weights,  # noqa: E402
    save_model,  # noqa: E402
)
from capsnet.training import checkpoints as training_checkpoints  # noqa: E402
from capsnet.training.checkpoints import (
    cut_log,  # noqa: E402
    load_checkpoint,  # noqa: E402
    save_checkpoint,  # noqa: E402
)
from capsulenet import CapsNet  # noqa: E402

ROOT = Path(__file__).parents[1]
SHAPE, N_CLASS = (17, 17, 1), 3
MNIST = (28, 28, 1)
# Zeros, which deflate into a thousandth.
BOMB = 123_456_789
# Holds a folder until it is killed. What is not used is not imported.
HOLDER = """
import sys, time, types
sys.modules["keras"] = sys.modules["h5py"] = types.ModuleType("unused")
from capsnet import files
with files.locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""
# Is killed in the middle of a file.
WRITER = """
import sys, time, types
sys.modules["keras"] = sys.modules["h5py"] = types.ModuleType("unused")
from capsnet import files
with files.whole_file(sys.argv[1]) as temporary:
    open(temporary, "w").write("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def message_of(function, *args):
    """The message of a FileError, which has to be one line."""
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def flip_byte(path, place=0.5):
    """Changes one byte, at a part of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    path.write_bytes(content)


def weights_of(model):
    return [weight.copy() for weight in model.get_weights()]


def same(arrays, others):
    return len(arrays) == len(others) and all(
        np.array_equal(one, other) for one, other in zip(arrays, others)
    )


def dense_model(units=4):
    """A small compiled model, and a step that changes it."""
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(units, name="dense")]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    x = np.arange(6, dtype="float32").reshape(2, 3)

    def step():
        return model.train_on_batch(x, np.ones((2, units), "float32"))

    return model, step


def capsnet(seed, **kwargs):
    keras.utils.set_random_seed(seed)
    return CapsNet(SHAPE, N_CLASS, routings=1, **kwargs)[1]


def write_classic(path, model, first_dense):
    """Weights as CapsNet-Keras wrote them with Keras 2."""
    layers = {layer.name: layer for layer in model.layers}
    primary = layers["primarycap"]
    groups = {
        "conv1": {
            "conv1/kernel:0": layers["conv1"].kernel,
            "conv1/bias:0": layers["conv1"].bias,
        },
        "primarycap_conv2d": {
            "primarycap_conv2d/kernel:0": primary.conv.kernel,
            "primarycap_conv2d/bias:0": primary.bias,
        },
        "digitcaps": {"digitcaps/W:0": layers["digitcaps"].kernel},
        "mask": {},
        "capsnet": {},
    }
    dense = [layer for layer in layers["decoder"].layers if layer.weights]
    groups["decoder"] = decoder = {}
    for number, layer in enumerate(dense, first_dense):
        name = f"dense_{number}" if number else "dense"
        decoder[f"{name}/kernel:0"] = layer.kernel
        decoder[f"{name}/bias:0"] = layer.bias
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in groups]
        file.attrs["keras_version"] = b"2.0.7"
        file.attrs["backend"] = b"tensorflow"
        for name, arrays in groups.items():
            group = file.create_group(name)
            for key, weight in arrays.items():
                group[key] = keras.ops.convert_to_numpy(weight)


@pytest.fixture(scope="module")
def trained():
    """A network that stands for a trained one."""
    return capsnet(seed=1)


@pytest.fixture(scope="module")
def classic():
    """The network of MNIST, with biases that a mistake would show."""
    keras.utils.set_random_seed(1)
    model = CapsNet(MNIST, 10)[1]
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "bias":
            weight.assign(generator.normal(0, 0.1, weight.shape))
    return model


@pytest.fixture
def saved(tmp_path):
    """A checkpoint after one epoch, its model and the step that trains."""
    model, step = dense_model()
    step()
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, model, {"epochs_done": 1})
    return folder, model, step


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "figures.json"
    with whole_file(path) as temporary:
        assert temporary.endswith(".json")
        Path(temporary).write_text("complete")
        assert not path.exists()
    assert path.read_text() == "complete"
    assert os.listdir(path.parent) == ["figures.json"]


def test_failing_writer_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        with whole_file(path) as temporary:
            Path(temporary).write_text("ha")
            raise OSError("disk full")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["figures.json"]


def test_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"accuracy": 0.5, "model": object()})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert os.listdir(tmp_path) == ["figures.json"]


def test_saved_model_comes_back_with_its_record(tmp_path, trained):
    path = str(tmp_path / "model.keras")
    record = {"flags": {"dataset": "digits"}, "class_names": ["a", "b"]}
    save_model(trained, path, record)
    model, found = load_model(path)
    assert found == record
    assert same(weights_of(model), weights_of(trained))
    x = np.random.default_rng(0).uniform(size=(2, *SHAPE)).astype("float32")
    expected, received = trained.predict(x), model.predict(x)
    for name in ("capsnet", "decoder"):
        np.testing.assert_allclose(received[name], expected[name], atol=1e-6)
    # Keras alone reads it, too.
    assert keras.models.load_model(path).name == trained.name
    assert os.listdir(tmp_path) == ["model.keras"]


def test_model_without_a_record_has_an_empty_one(tmp_path):
    path = str(tmp_path / "model.keras")
    dense_model()[0].save(path)
    assert load_model(path)[1] == {}


@pytest.mark.parametrize("place", (0.3, 0.6))
def test_damaged_model_is_refused(tmp_path, trained, place):
    path = tmp_path / "model.keras"
    save_model(trained, path, {})
    flip_byte(path, place)
    assert "model.keras" in message_of(load_model, str(path))


def test_cut_off_model_is_refused(tmp_path):
    path = tmp_path / "model.keras"
    dense_model()[0].save(path)
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.keras" in message_of(load_model, str(path))


@pytest.mark.parametrize("claimed", (BOMB, 1000))
@pytest.mark.parametrize(
    "bomb", ("run.json", "config.json", "model.weights.h5")
)
def test_model_that_would_inflate_is_refused_before_it_does(
    tmp_path, bomb, claimed
):
    path = tmp_path / "model.keras"
    save_model(dense_model()[0], path, {"flags": {}})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[bomb] = bytes(BOMB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
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


def test_model_that_describes_more_than_it_holds_is_refused(tmp_path, trained):
    path = tmp_path / "model.keras"
    save_model(trained, path, {})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    # The decoder's second layer, 1024 units: 5e10 weights and 200 GB.
    described = members["config.json"]
    assert described.count(b'"units": 1024') == 1
    members["config.json"] = described.replace(
        b'"units": 1024', b'"units": 100000000'
    )
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    add_weight = keras.layers.Layer.add_weight
    message = message_of(load_model, str(path))
    assert "51,2" in message and "too small to hold" in message
    assert keras.layers.Layer.add_weight is add_weight


def test_model_that_was_packed_again_is_loaded(tmp_path, trained):
    path, packed = tmp_path / "model.keras", tmp_path / "packed.keras"
    save_model(trained, path, {"flags": {"seed": 3}})
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as again,
    ):
        for name in archive.namelist():
            again.writestr(name, archive.read(name))
    model, record = load_model(str(packed))
    assert record == {"flags": {"seed": 3}}
    assert same(weights_of(model), weights_of(trained))


def test_text_that_is_named_like_a_model_is_refused(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("no model")
    message = message_of(load_model, str(path))
    assert "expected a model that capsulenet.py saved" in message


def test_model_that_carries_code_is_refused(tmp_path):
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Lambda(lambda x: 2 * x)]
    )
    path = str(tmp_path / "model.keras")
    model.save(path)
    assert "cannot load" in message_of(load_model, path)


def test_model_of_another_kind_is_refused():
    model, _ = dense_model()
    message = message_of(check_model, model, "a.keras", (3,), 4)
    assert "expected a model that capsulenet.py saved" in message
    assert model.name in message


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


@pytest.mark.parametrize("suffix", (".keras", ".weights.h5"))
def test_weights_are_those_of_the_file(tmp_path, trained, suffix):
    path = str(tmp_path / f"model{suffix}")
    if suffix == ".keras":
        save_model(trained, path, {})
    else:
        trained.save_weights(path)
    # Made in the same process, and by another seed.
    model = capsnet(seed=2)
    assert not same(weights_of(model), weights_of(trained))
    load_weights(model, path)
    assert same(weights_of(model), weights_of(trained))


def test_weights_of_another_architecture_say_what_differs(tmp_path, trained):
    path = str(tmp_path / "model.keras")
    save_model(trained, path, {})
    for kwargs, expected in (
        ({"decoder": False}, "expected dense1/bias no such weight"),
        ({"capsule_bias": 0.1}, "digitcaps/bias (3, 16), got no such weight"),
        ({"dim_capsule": 8}, "(24, 512), got (48, 512)"),
    ):
        model = capsnet(seed=2, **kwargs)
        before = weights_of(model)
        message = message_of(load_weights, model, path)
        assert expected in message and path in message
        assert same(weights_of(model), before)


@pytest.mark.parametrize("suffix", (".weights.h5", ".h5", ".txt"))
def test_text_that_is_named_like_weights_is_refused(tmp_path, trained, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_text("no weights")
    message = message_of(load_weights, trained, str(path))
    assert "cannot load weights" in message and path.name in message


def test_weights_file_of_another_architecture_is_refused(tmp_path, trained):
    path = str(tmp_path / "model.weights.h5")
    dense_model()[0].save_weights(path)
    assert path in message_of(load_weights, trained, path)


@pytest.mark.parametrize("first_dense", (0, 1, 9))
def test_classic_weights_give_the_same_outputs(tmp_path, classic, first_dense):
    path = str(tmp_path / "classic.h5")
    write_classic(path, classic, first_dense)
    keras.utils.set_random_seed(2)
    model = CapsNet(MNIST, 10)[1]
    x = np.random.default_rng(0).uniform(size=(3, *MNIST)).astype("float32")
    expected, before = classic.predict(x), model.predict(x)
    load_weights(model, path)
    received = model.predict(x)
    for name in ("capsnet", "decoder"):
        np.testing.assert_allclose(received[name], expected[name], atol=1e-4)
        assert np.abs(before[name] - expected[name]).max() > 1e-2


def test_classic_weights_fit_a_network_without_decoder(tmp_path, classic):
    path = str(tmp_path / "classic.h5")
    write_classic(path, classic, first_dense=1)
    model = CapsNet(MNIST, 10, decoder=False)[1]
    load_weights(model, path)
    for name in ("conv1", "primarycap", "digitcaps"):
        expected = weights_of(classic.get_layer(name))
        assert same(weights_of(model.get_layer(name)), expected)


def test_classic_weights_of_another_shape_say_what_differs(tmp_path, trained):
    path = str(tmp_path / "classic.h5")
    write_classic(path, trained, first_dense=1)
    model = CapsNet((17, 17, 3), N_CLASS)[1]
    before = weights_of(model)
    message = message_of(load_weights, model, path)
    assert "conv1/kernel of shape (5, 5, 3, 256)" in message
    assert "got (5, 5, 1, 256)" in message
    with h5py.File(path, "a") as file:
        del file["digitcaps"]["digitcaps"]
    message = message_of(load_weights, trained, path)
    assert "digitcaps/kernel" in message and "got nothing" in message
    assert same(weights_of(model), before)


def test_classic_weights_that_claim_terabytes_are_refused(tmp_path, trained):
    path = str(tmp_path / "classic.h5")
    write_classic(path, trained, first_dense=1)
    with h5py.File(path, "a") as file:
        group = file["digitcaps"]["digitcaps"]
        del group["W:0"]
        # Chunks that are written nowhere: the file is small.
        group.create_dataset("W:0", (10**4, 10**8), "float32", chunks=(9, 9))
    message = message_of(load_weights, trained, path)
    assert "digitcaps/kernel" in message
    assert "got (10000, 100000000)" in message


def test_checkpoint_brings_weights_and_optimizer_back(saved):
    folder, model, step = saved
    other, other_step = dense_model()
    state = read_state(folder)
    assert state["epochs_done"] == 1
    load_checkpoint(folder, other, state)
    # Adam's moments and step count are there, or the paths would part.
    for _ in range(3):
        assert step() == other_step()
    assert same(weights_of(model), weights_of(other))


def test_checkpoint_keeps_one_file_of_weights(saved):
    folder, model, step = saved
    step()
    (folder / "best.pt").write_bytes(b"the user's")
    (folder / ".notes").mkdir()
    save_checkpoint(folder, model, {"epochs_done": 2, "x": "y"})
    # The older checkpoint is gone, and what is not ours is left alone.
    ours = ["epoch-0002.weights.h5", "state.json"]
    assert sorted(os.listdir(folder)) == [".notes", "best.pt", *ours]
    state = read_state(folder)
    assert state["file"] == "epoch-0002.weights.h5"
    assert (state["epochs_done"], state["x"]) == (2, "y")


def test_crash_before_the_state_leaves_the_old_checkpoint(saved, monkeypatch):
    folder, model, step = saved
    before = weights_of(model)
    step()

    def crash(path, content):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(training_checkpoints, "write_json", crash)
        save_checkpoint(folder, model, {"epochs_done": 2})
    assert not same(weights_of(model), before)
    state = read_state(folder)
    assert state["epochs_done"] == 1
    load_checkpoint(folder, model, state)
    assert same(weights_of(model), before)


@pytest.mark.parametrize("place", (0.05, 0.5, 0.95))
def test_damaged_checkpoint_is_refused(saved, place):
    folder, _, _ = saved
    path = folder / "epoch-0001.weights.h5"
    flip_byte(path, place)
    message = message_of(read_state, folder)
    assert path.name in message and "is damaged" in message
    assert "without --resume" in message


@pytest.mark.parametrize(
    "content", (None, "", "[]", "{}", '{"epochs_done": 1, "file": "x"}')
)
def test_unreadable_state_is_refused(saved, content):
    folder, _, _ = saved
    (folder / "state.json").unlink()
    if content is not None:
        (folder / "state.json").write_text(content)
    message = message_of(read_state, folder)
    assert "state.json" in message and "without --resume" in message


def test_checkpoint_of_another_model_is_refused(saved):
    folder, _, _ = saved
    model, _ = dense_model(units=5)
    state = read_state(folder)
    message = message_of(load_checkpoint, folder, model, state)
    assert "does not fit" in message


@pytest.mark.parametrize("epochs_done, rows", ((0, 0), (2, 2), (3, 3)))
def test_log_is_cut_to_the_epochs_of_the_checkpoint(
    tmp_path, epochs_done, rows
):
    path = tmp_path / "log.csv"
    lines = ["epoch,loss\n", "0,0.5\n", "1,0.25\n", "2,0.125\n"]
    path.write_text("".join(lines))
    cut_log(path, epochs_done)
    assert path.read_text() == "".join(lines[: rows + 1])
    assert os.listdir(tmp_path) == ["log.csv"]


def test_log_with_too_few_rows_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n0,0.5\n")
    message = message_of(cut_log, str(path), 2)
    assert "rows of epochs 1 to 2" in message and "got 1 of them" in message
    assert path.read_text() == "epoch,loss\n0,0.5\n"


def test_second_run_in_a_folder_is_refused(tmp_path):
    folder = str(tmp_path / "run")
    with locked(folder):
        with pytest.raises(UserError, match="another run is writing"):
            with locked(folder):
                pass
        with locked(str(tmp_path / "other")):
            pass
    with locked(folder):
        pass


def test_file_system_without_locks_can_be_used(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    half = tmp_path / ".7-log.csv"  # Perhaps of a run that is writing it.
    half.write_text("")
    with locked(tmp_path):
        assert half.exists()


def test_killed_run_holds_its_folder_no_longer(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="choose another --save_dir"):
            with locked(tmp_path):
                pass
    finally:
        holder.kill()
        holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    with locked(tmp_path):
        pass


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    kept = [tmp_path / ".7-notes.txt", tmp_path / "run.json"]
    kept.append(checkpoint / "state.json")
    for path in kept:
        path.write_text("whole")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for path in (tmp_path / "run.json", checkpoint / "state.json")
    ]
    for writer in writers:
        try:
            assert writer.stdout.readline() == "writing\n"
        finally:
            writer.kill()
            writer.communicate()
    leftovers = [
        tmp_path / f".{writers[0].pid}-run.json",
        checkpoint / f".{writers[1].pid}-state.json",
    ]
    assert all(path.exists() for path in leftovers)
    with locked(tmp_path):
        assert not any(path.exists() for path in leftovers)
    assert [path.read_text() for path in kept] == ["whole"] * 3


def test_every_file_of_a_run_is_known_to_be_removed_half_written(tmp_path):
    names = [
        *("log.csv", "log.png", "run.json", "trained_model.keras"),
        *("test.json", "confusion.png", "mistakes.png", "real_and_recon.png"),
        *("manipulate-a-b.png", "predictions.csv", "predictions.png"),
        *("epoch-0012.weights.h5", "state.json"),
    ]
    for name in names:
        (tmp_path / f".12345-{name}").touch()
        (tmp_path / name).touch()
    with locked(tmp_path):
        assert sorted(os.listdir(tmp_path)) == sorted([".lock", *names])


def test_zip_archive_that_is_no_model_is_refused(tmp_path):
    path = str(tmp_path / "model.keras")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "no model")
    assert "cannot load" in message_of(load_model, path)
