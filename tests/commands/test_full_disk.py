"""Disks that are full: what could not be written leaves the old file.

No file may grow beyond a limit, which the system sets when the file of the
test is opened, and lifts when it is renamed or removed.
"""

import contextlib
import errno
import json
import os
import resource
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from running import command, contents, message_of, run

from capsnet.cli import commands
from capsnet.files import read_state, whole_file, write_json
from capsnet.messages import UserError
from capsnet.training import checkpoints

# Which temporary file is limited, by the end of its name, to which size.
FULL = {}
TRAINING = "weights.h5 state.json log.csv trained_model.keras log.png run.json"
TESTING = "test.json confusion.png real_and_recon.png manipulate-1.png"
PREDICTING = "predictions.csv predictions.png"


@contextlib.contextmanager
def file_limit(size):
    """No file may grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def watch_files(event, arguments):
    """Fills the disk while a file of `FULL` is written."""
    if not FULL or event not in ("open", "os.rename", "os.remove"):
        return
    name = os.path.basename(str(arguments[0]))
    if name.startswith(".") and name.endswith(FULL["name"]):
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        size = FULL["size"] if event == "open" else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


# Hooks cannot be removed; this one does nothing but in these tests.
sys.addaudithook(watch_files)


@contextlib.contextmanager
def full_disk(name, size):
    """The files of a name cannot become larger than `size` bytes."""
    with file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[0]):
        FULL.update(name=name, size=size)
        try:
            yield
        finally:
            FULL.clear()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """A run of one epoch that has been tested, too; and a picture."""
    folder = tmp_path_factory.mktemp("finished")
    picture = folder.with_suffix(".png")
    Image.new("L", (17, 17), 99).save(picture)
    flags = "--batch_size", 20, "-r", 1, "--epochs", 1
    model = "-w", folder / "trained_model.keras"
    for argv in (
        ("--dataset", tiny, *flags),
        ("-t", "--digit", 1, *model),
        ("--predict", picture, *model),
    ):
        assert command(folder, *argv).status == 0
    return folder, picture


def check_fault(folder, argv, name, size):
    """A command fails to write `name` and leaves the old one as it was."""
    before = contents(folder)
    with full_disk(name, size):
        message = message_of(command(folder, *argv))
    assert "cannot write" in message and name in message
    assert "make room there, or choose another --save_dir" in message
    after = contents(folder)
    for path in before:
        # What tells of a model may be gone, but is never another.
        gone_is_right = path.name in TESTING
        if path.name.endswith(name) and (path in after or not gone_is_right):
            assert after[path] == before[path]
    assert not [path for path in after if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize("size", (0, 64, 20_000))
@pytest.mark.parametrize("name", TRAINING.split())
def test_training_that_fills_the_disk_keeps_the_old_files(finished, name, size):
    if size == 20_000 and name.endswith((".json", ".csv")):
        pytest.skip("the file is smaller")
    folder, _ = finished
    epochs = read_state(folder)["epochs_done"]
    check_fault(folder, ["--resume", "--epochs", epochs + 1], name, size)
    # The faults that come before the new checkpoint leave the old one.
    kept = name not in ("log.png", "run.json")
    assert read_state(folder)["epochs_done"] == epochs + (not kept)


@pytest.mark.slow
@pytest.mark.parametrize("size", (0, 300))
@pytest.mark.parametrize("name", [*TESTING.split(), *PREDICTING.split()])
def test_testing_that_fills_the_disk_keeps_the_old_files(finished, name, size):
    if name == "predictions.csv" and size:
        pytest.skip("the file is smaller")
    folder, picture = finished
    predicts = name in PREDICTING.split()
    argv = ["--predict", picture] if predicts else ["-t", "--digit", 1]
    model = folder / "trained_model.keras"
    if not (folder / name).exists():  # A new model's saving removed it.
        assert command(folder, *argv, "-w", model).status == 0
    check_fault(folder, [*argv, "-w", model], name, size)


@pytest.mark.slow
def test_export_that_fills_the_disk_leaves_nothing(
    finished, tmp_path, monkeypatch
):
    export = commands.export

    def limited(*args):
        with file_limit(1000):
            export(*args)

    monkeypatch.setattr(commands, "export", limited)
    argv = "-w", finished[0] / "trained_model.keras", "--export"
    assert "export" in message_of(run(*argv, tmp_path / "served"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ("fsync", "replace"))
def test_failing_system_call_leaves_the_old_file(
    tmp_path, monkeypatch, function
):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "state.json"
    write_json(path, {"epochs_done": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(UserError) as caught:
            write_json(path, {"epochs_done": 2})
    assert f"cannot write '{path}' (No space left" in str(caught.value)
    assert json.loads(path.read_text()) == {"epochs_done": 1}
    assert list(tmp_path.iterdir()) == [path]


def small_model():
    """A compiled model of a few weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((30,))
    model = keras.Sequential([inputs, keras.layers.Dense(30)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("size", (0, 64, 3000))
@pytest.mark.parametrize("name", ("a.keras", "a.json", "a.png"))
def test_full_disk_leaves_the_old_file(tmp_path, name, size):
    model = small_model()
    noise = np.random.default_rng(0).integers(0, 256, (99, 99), "uint8")
    write = {
        "a.keras": lambda path: model.save(path),
        "a.json": lambda path: Path(path).write_text("text " * 1000),
        "a.png": lambda path: Image.fromarray(noise).save(path),
    }[name]
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(UserError, match="File too large"):
        with whole_file(path) as temporary, file_limit(size):
            write(temporary)
    assert contents(tmp_path) == {Path(name): b"old"}


@pytest.mark.parametrize("size", (0, 64, 3000, 20_000))
def test_full_disk_leaves_the_old_checkpoint(tmp_path, size):
    model = small_model()
    checkpoints.keep(tmp_path, model, {"epochs_done": 1})
    before = contents(tmp_path)
    with pytest.raises(UserError, match="File too large"):
        with file_limit(size):
            checkpoints.keep(tmp_path, model, {"epochs_done": 2})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("task", ("train", "-t", "--predict"))
def test_save_dir_that_cannot_be_written_is_one_line(
    tmp_path, data, trained, monkeypatch, task
):
    argv = ["--dataset", data] if task == "train" else [task]
    if task == "--predict":
        argv.append(trained.folder / "log.png")
    if task != "train":
        argv += ["-w", trained.model_path()]
    # No folder can be made below a file, whoever the user is.
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "below"
    message = message_of(command(folder, *argv))
    assert f"cannot write '{folder}' (Not a directory)" in message
    assert "choose another --save_dir" in message

    def refuse(name, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr(os, "makedirs", refuse)
    message = message_of(command(tmp_path / "read_only", *argv))
    assert "read_only' (Permission denied)" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
