"""Tests of what can go wrong: wrong commands, damaged files, full disks, kills.

Whatever the user or the machine does, a command ends with its status and one
line, and a file of an earlier run survives.
"""

import contextlib
import errno
import gzip
import io
import json
import os
import random
import resource
import shlex
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import bars, write_bars
from PIL import Image

import capsulenet
from capsnet import files  # noqa: E402
from capsnet import files as files_room
from capsnet.data import sources
from capsnet.data.pictures import MAX_UNPROVEN_PIXELS, read_picture
from capsnet.evaluation import figures, prediction  # noqa: E402
from capsnet.files import read_state, write_json
from capsnet.messages import UserError
from capsnet.models import saving  # noqa: E402
from capsnet.models.saving import load_model, save_model
from capsnet.training import checkpoints  # noqa: E402
from capsnet.training.checkpoints import save_checkpoint

ROOT = Path(__file__).parents[1]

# Wrong command lines, and a phrase of the one line with which they end.
WRONG_COMMANDS = (
    ("--epochs 0", "an integer at least 1"),
    ("--epochs ten", "an integer at least 1, got 'ten'"),
    ("--epochs", "--epochs: expected one argument"),
    ("--batch_size -1", "an integer at least 1"),
    ("--batch_size 1.5", "an integer at least 1, got '1.5'"),
    ("--batch_size 1e3", "an integer at least 1"),
    ("-r 0", "-r/--routings: expected an integer at least 1"),
    ("--lr 0", "a number above 0"),
    ("--lr nan", "a number above 0"),
    ("--lr inf", "a number above 0"),
    ("--lr_decay 1.1", "above 0 and at most 1, got '1.1'"),
    ("--lr_decay_steps -1", "an integer at least 0"),
    ("--lr_min -1", "a number at least 0"),
    ("--lam_recon paper", "a number at least 0, got 'paper'"),
    ("--shift_fraction 0.6", "at least 0 and at most 0.5"),
    ("--val_fraction 1", "at least 0 and at most 0.9"),
    ("--test_fraction 0", "above 0 and at most 0.9"),
    ("--ema 1", "at most 0.999999"),
    ("--seed -1", "an integer at least 0"),
    ("--seed 4294967296", "at most 4294967295"),
    ("--primary_scale 0", "a number above 0"),
    ("--capsule_bias nan", "a number at least"),
    ("--init zeros", "invalid choice: 'zeros'"),
    ("--conv slow", "invalid choice: 'slow'"),
    ("--recipe other", "invalid choice: 'other'"),
    ("--model resnet", "invalid choice: 'resnet'"),
    ("--dtype_policy float8", "invalid choice: 'float8'"),
    ("--jit_compile maybe", "invalid choice: 'maybe'"),
    ("--class_weight heavy", "invalid choice: 'heavy'"),
    ("--steps_per_execution 0", "an integer at least 1"),
    ("--image_size 28", "expected 2 arguments"),
    ("--image_size 0 28", "an integer at least 1"),
    ("--conv_kernel 0", "an integer at least 1"),
    ("--primary_strides -2", "an integer at least 1"),
    ("--epoch 3", "unrecognized arguments: --epoch"),
    ("--colour", "unrecognized arguments: --colour"),
    ("mnist", "unrecognized arguments: mnist"),
    ("--gpus 2", "unrecognized arguments: --gpus"),
    ("-t", "need a model: -w FILE"),
    ("--digit 5", "need a model: -w FILE"),
    ("-t -w missing.keras", "'missing.keras', which is not a file"),
    ("-w .", "'.', which is not a file"),
    ("-w text.keras text.h5", "several need -t"),
    ("--model baseline --digit 1 -w text.keras", "baseline has none"),
    ("--model baseline --conv_kernel 3", "--conv_kernel is for capsules"),
    ("--model baseline -r 1", "--routings is for capsules"),
    ("--model baseline --lam_recon 0", "--lam_recon is for capsules"),
    ("--predict picture.png", "--predict needs a model: -w FILE"),
    ("--predict none.png -w text.keras", "not there: none.png"),
    ("--predict picture.png -w text.h5", "a .keras file, got 'text.h5'"),
    ("--predict picture.png -w text.keras -t", "exclude each other"),
    (
        "--predict picture.png -w text.keras --dataset digits",
        "leave --dataset out",
    ),
    (
        "--predict picture.png -w text.keras --image_size 9 9",
        "leave --image_size out",
    ),
    ("--predict picture.png --resume", "leave --predict out"),
    ("--export new", "--export needs a model: -w FILE"),
    ("--export new -w text.keras --save_dir runs", "leave --save_dir out"),
    ("--export new -w text.keras text.keras", "takes one model"),
    ("--export unreadable -w text.keras", "a new or empty folder"),
    (
        "--export m.onnx -w text.keras",
        "a folder or a .keras file, got 'm.onnx'",
    ),
    ("--export '' -w text.keras", "name of a folder or file, got ''"),
    ("--resume", "found no checkpoint in 'result'; start the run without"),
    ("--resume -w text.keras", "leave -w out"),
    ("--resume -t -w text.keras", "choose one"),
    ("--resume --save_dir empty_state", "cannot read"),
    ("--resume --save_dir deep_state", "cannot read"),
    ("--resume --save_dir endless_state", "cannot read"),
    ("--save_dir text.keras", "--save_dir expects a folder"),
)

# Inputs that only a look into the file shows to be wrong.
WRONG_INPUTS = (
    ("--dataset emnist", "received 'emnist': check the name or the path"),
    ("--dataset ''", "received '': check the name or the path"),
    ("--dataset missing.npz", "'missing.npz': check the name or the path"),
    ("--dataset text.h5", "'text.h5': check the name or the path"),
    ("--dataset text.npz", "'text.npz', which is broken: copy or write"),
    ("--dataset cut.npz", "'cut.npz', which is broken: copy or write"),
    ("--dataset lacks.npz", "received none called x_test, y_test: add"),
    ("--dataset pickled.npz", "expected numbers in x_train, received object"),
    ("--dataset terabyte.npz", "'terabyte.npz', which is broken"),
    ("--dataset bomb.npz", "'bomb.npz', which is broken"),
    ("--dataset range.npz", "values from 0 to 300"),
    ("--dataset one_hot.npz", "store their argmax"),
    ("--dataset one_class.npz", "at least two classes"),
    ("--dataset unknown.npz", "with class 7 in the test part only"),
    ("--dataset channels.npz", "with 1, 3 or 4 channels"),
    ("--dataset tiny.npz --test_fraction 0.2", "class folders only"),
    ("--dataset tiny.npz --val_fraction 0.01", "choose another fraction"),
    ("--dataset tiny.npz --image_size 3 3", "--image_size"),
    ("--dataset tiny.npz --conv_kernel 99", "--conv_kernel"),
    ("--dataset tiny.npz --model baseline --image_size 3 3", "--image_size"),
    ("--dataset tiny.npz -w text.keras", "cannot load 'text.keras'"),
    ("--dataset tiny.npz -w text.h5", "cannot load weights from 'text.h5'"),
    ("--dataset idx", "expected four idx files in 'idx', received none"),
    ("--dataset broken_idx", "which is broken or something else: copy it"),
    ("--dataset flat", "directly in it: name the folder above"),
    ("--dataset nothing", "none with pictures: put the pictures in CLASS/"),
    ("--dataset no_test", "received train alone: add the other"),
    ("--dataset lacks_class", "none of 'b' in 'lacks_class': add some"),
    ("--dataset two_sizes", "add --image_size H W"),
    ("--dataset unreadable", "2 of 3 that cannot be read (a/1.png, b/0.png)"),
    ("--dataset absurd --image_size 17 17", "cannot be read (a/0.png)"),
    ("-t -w text.keras", "cannot load 'text.keras'; expected a model"),
    ("-t -w zip.keras", "cannot load 'zip.keras'; expected a model"),
    ("-t -w code.keras", "cannot load 'code.keras'; expected a model"),
    ("-t -w other.keras --dataset tiny.npz", "got 'other.keras', a model"),
    ("-t -w list.keras", "cannot read the record in 'list.keras'"),
    ("-t -w flags.keras", "cannot read the record in 'flags.keras'"),
    ("--predict picture.png -w text.keras", "cannot load 'text.keras'"),
    ("--predict picture.png -w other.keras", "got 'other.keras', a model"),
    ("--export new -w text.keras", "cannot load 'text.keras'"),
    ("--resume --save_dir no_digest", "start again without --resume"),
)


def npy(claimed, content=b"", dtype="|u1"):
    """A `.npy` member that claims a shape."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, "
    header += f"'shape': {claimed}, }}"
    header = (header + " " * (-(len(header) + 11) % 64) + "\n").encode()
    return (
        b"\x93NUMPY\x01\x00"
        + struct.pack("<H", len(header))
        + header
        + (content)
    )


def claim_terabytes(path, compression=zipfile.ZIP_STORED):
    """An `.npz` whose first member claims four terabytes."""
    with np.load("tiny.npz") as arrays:
        np.savez(path, **arrays)
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    kept["x_train.npy"] = npy((2**30, 64, 64, 1), bytes(100_000))
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


def write_arrays(path, **changes):
    """`tiny.npz` with other arrays; `None` leaves one out."""
    with np.load("tiny.npz") as arrays:
        changed = {**arrays, **changes}
    np.savez(path, **{k: v for k, v in changed.items() if v is not None})


def write_picture(path, shape=(17, 17, 1)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(bars(1, shape)[0][0, ..., 0]).save(path)


def write_absurd_picture(path):
    """A PNG of some bytes that claims a hundred thousand pixels a side."""
    write_picture(path)
    content = bytearray(Path(path).read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zipfile.crc32(content[12:29]))
    Path(path).write_bytes(content)


def write_models():
    """Models that are none of ours, or carry what they should not."""
    inputs = keras.layers.Input((3,))
    model = keras.Sequential([inputs, keras.layers.Dense(2)])
    for name, record in (
        ("other", "{}"),
        ("list", "[]"),
        ("flags", '{"flags": 1}'),
    ):
        model.save(f"{name}.keras")
        with zipfile.ZipFile(f"{name}.keras", "a") as archive:
            archive.writestr("run.json", record)
    inputs = keras.layers.Input((3,))
    code = keras.Sequential([inputs, keras.layers.Lambda(lambda x: 2 * x)])
    code.save("code.keras")


def write_pictures():
    """Folders of pictures, each with something wrong."""
    for path in (
        "picture.png",
        "flat/0.png",
        "no_test/train/a/0.png",
        "no_test/train/b/0.png",
        "lacks_class/train/a/0.png",
        "lacks_class/train/b/0.png",
        "lacks_class/test/a/0.png",
        "two_sizes/a/0.png",
        "unreadable/a/0.png",
        "absurd/b/0.png",
    ):
        write_picture(path)
    write_picture("two_sizes/b/0.png", (18, 17, 1))
    Path("unreadable/b").mkdir()
    Path("unreadable/a/1.png").write_bytes(b"")
    Path("unreadable/b/0.png").write_text("no picture")
    Path("absurd/a").mkdir()
    write_absurd_picture("absurd/a/0.png")


def write_idx_files():
    """One of the four idx files, and four that hold text."""
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    for folder in ("idx", "broken_idx"):
        Path(folder).mkdir()
        for name in names[: 1 if folder == "idx" else 4]:
            Path(folder, name).write_text("no idx file")
    header = struct.pack(">HBBIII", 0, 8, 3, 1, 17, 17)
    Path("idx", names[0]).write_bytes(header + bytes(17 * 17))


def write_states():
    """Checkpoints that cannot be gone on with."""
    for name, content in (
        ("empty", ""),
        ("deep", "[" * 100_000),
        ("endless", '{"flags": {"epochs": 1e999}}'),
    ):
        folder = Path(f"{name}_state", "checkpoint")
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(content)
    folder = Path("no_digest", "checkpoint")
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(
        '{"flags": {"epochs": 2, "image_size": 5, "seed": "x"}}'
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of files that are wrong, each in its own way."""
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_bars("tiny.npz")
        y_train, y_test = np.arange(40) % 3, np.arange(12) % 3
        for name in ("text.keras", "text.h5", "text.npz"):
            Path(name).write_text("neither a model nor pictures")
        Path("cut.npz").write_bytes(Path("tiny.npz").read_bytes()[:-99])
        write_arrays("lacks.npz", x_test=None, y_test=None)
        write_arrays("pickled.npz", x_train=np.array([{}], object))
        claim_terabytes("terabyte.npz")
        claim_terabytes("bomb.npz", zipfile.ZIP_DEFLATED)
        write_arrays("range.npz", x_test=np.full((12, 17, 17, 1), 300))
        write_arrays("one_hot.npz", y_train=np.eye(3, dtype=int)[y_train])
        write_arrays("one_class.npz", y_train=0 * y_train, y_test=0 * y_test)
        write_arrays("unknown.npz", y_test=np.full(12, 7))
        write_arrays("channels.npz", x_train=np.zeros((40, 17, 17, 2), "u1"))
        with zipfile.ZipFile("zip.keras", "w") as archive:
            archive.writestr("note.txt", "no model")
        Path("nothing").mkdir()
        write_models()
        write_pictures()
        write_idx_files()
        write_states()
    return folder


def contents(folder):
    """Every file under a folder, and what is in it."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def status_of(argv):
    """The exit status of the command, run in this process."""
    try:
        return capsulenet.main([str(word) for word in argv])
    except SystemExit as error:
        return error.code


def message_of(capsys, argv, status=2):
    """The one line with which a command ends."""
    capsys.readouterr()
    assert status_of(argv) == status
    message = capsys.readouterr().err
    assert message.endswith("\n") and message.count("\n") == 1, message
    return message


@pytest.mark.parametrize("line, phrase", (*WRONG_COMMANDS, *WRONG_INPUTS))
def test_wrong_command_or_input_is_one_line_and_status_2(
    inputs, monkeypatch, capsys, line, phrase
):
    monkeypatch.chdir(inputs)
    before = contents(inputs)
    assert phrase in message_of(capsys, shlex.split(line))
    assert contents(inputs) == before


# Kills

KILLS = 11
# So many that no run ends before it is killed.
EPOCHS = 40


def start(folder, *argv):
    """A training in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "capsulenet.py", "--save_dir", str(folder), *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, happened):
    """Looks until something has happened, or the process has ended."""
    end = time.monotonic() + 120
    while process.poll() is None and not happened():
        assert time.monotonic() < end, "nothing happened for two minutes"
        time.sleep(0.001)


def stamp(path):
    """When a file was written last; None while there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns


def kill_in_an_epoch(process, folder, rng):
    """SIGKILL at any time up to half a second after a checkpoint."""
    state = folder / "checkpoint" / "state.json"
    before = stamp(state)
    wait_for(process, lambda: stamp(state) != before)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()


def kill_in_a_write(process, folder, rng):
    """SIGKILL soon after a temporary file of the checkpoint appeared."""
    pattern = "checkpoint/.*-" + rng.choice(("epoch", "epoch", "state")) + "*"
    before = set(folder.glob(pattern))
    wait_for(process, lambda: set(folder.glob(pattern)) - before)
    time.sleep(rng.uniform(0, 0.02))
    process.kill()


def kill_at_once(process, folder, rng):
    """SIGKILL before there is a checkpoint of this process."""
    before = stamp(folder / "log.csv")
    wait_for(process, lambda: stamp(folder / "log.csv") != before)
    process.kill()


def saved_weights(path):
    """The weights in a `.keras` file, as bytes."""
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    weights = {}
    with h5py.File(content) as file:
        file.visititems(
            lambda name, item: (
                weights.update({name: item[()].tobytes()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return weights


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_like_the_other(tmp_path, tiny):
    argv = ["--dataset", tiny, "--batch_size", "10", "--seed", "5", "-r", "1"]
    argv += ["--epochs", str(EPOCHS)]
    never, often = tmp_path / "never", tmp_path / "often"
    state = often / "checkpoint" / "state.json"
    rng = random.Random(0)
    others = [kill_in_an_epoch] * 4 + [kill_in_a_write] * (KILLS - 6)
    rng.shuffle(others)
    torn = refused = 0
    # Twice before there is a checkpoint.
    for kill in (kill_at_once, kill_in_a_write, *others):
        if state.exists():
            process = start(often, "--resume")
        else:
            process = start(often, "--resume")
            message = process.communicate(timeout=60)[1]
            assert process.returncode == 2
            assert "found no checkpoint" in message
            assert "start the run without --resume" in message
            refused += 1
            process = start(often, *argv)
        try:
            kill(process, often, rng)
            message = process.communicate(timeout=60)[1]
        finally:
            process.kill()
        assert process.returncode == -signal.SIGKILL, message
        torn += any(
            path.name.startswith(f".{process.pid}-")
            for path in often.glob("checkpoint/*")
        )
    done = json.loads(state.read_text())["epochs_done"]
    print(f"{KILLS} kills, {torn} in a write, {refused} refused, {done} epochs")
    assert torn >= 3 and refused >= 1 and 0 < done < EPOCHS
    for process in (start(never, *argv), start(often, "--resume")):
        message = process.communicate(timeout=120)[1]
        assert process.returncode == 0, message
    log = (never / "log.csv").read_bytes()
    assert log.count(b"\n") == EPOCHS + 1
    assert (often / "log.csv").read_bytes() == log
    expected = saved_weights(never / "trained_model.keras")
    assert expected
    assert saved_weights(often / "trained_model.keras") == expected
    # What the kills left half written is gone.
    assert sorted(path.name for path in (often / "checkpoint").iterdir()) == [
        f"epoch-{EPOCHS:04d}.weights.h5",
        "state.json",
    ]


# Disks that are full


def tiny_model():
    """A compiled model of a few weights."""
    keras.utils.set_random_seed(0)
    inputs = keras.layers.Input((30,))
    model = keras.Sequential([inputs, keras.layers.Dense(30)])
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@contextlib.contextmanager
def file_limit(size):
    """No file may grow beyond `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def fill_disk(patch, name, size):
    """Lets the writing of the files of a name fail after `size` bytes."""
    whole_file = files_room.whole_file

    @contextlib.contextmanager
    def limited(path):
        with whole_file(path) as temporary:
            is_it = os.path.basename(path).endswith(name)
            with file_limit(size) if is_it else contextlib.nullcontext():
                yield temporary

    for room in (files, capsulenet, saving, figures, prediction, checkpoints):
        if hasattr(room, "whole_file"):
            patch.setattr(room, "whole_file", limited)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    """The folder of a run of one epoch that has been tested, too."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    argv = ["--save_dir", folder]
    flags = ["--dataset", tiny, "--batch_size", 20, "-r", 1, "--epochs", 1]
    assert status_of([*argv, *flags]) == 0
    model = folder / "trained_model.keras"
    assert status_of([*argv, "-t", "-w", model, "--digit", 1]) == 0
    predict = ["--predict", "tiny.png", "-w", model]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("picture"))
        write_picture("tiny.png")
        assert status_of([*argv, *predict]) == 0
    return folder


def temporaries(folder):
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def check_fault(capsys, folder, argv, name):
    """A command fails to write `name` and leaves the old one as it was."""
    before = contents(folder)
    message = message_of(capsys, [*argv, "--save_dir", folder])
    assert "cannot write" in message and name in message
    assert "make room there, or choose another --save_dir" in message
    after = contents(folder)
    for path in before:
        if path.name.endswith(name):
            assert after[path] == before[path]
    # A test without a mistake removes the picture of the mistakes.
    passing = ("checkpoint", "mistakes.png")
    others = [
        {path for path in files if path.parts[0] not in passing}
        for files in (before, after)
    ]
    assert others[0] == others[1] and not temporaries(folder)
    # The checkpoint, the old or the new one, is whole.
    return read_state(folder / "checkpoint")["epochs_done"]


@pytest.mark.slow
@pytest.mark.parametrize("size", (0, 64, 20_000))
@pytest.mark.parametrize(
    "name",
    (
        "weights.h5",
        "state.json",
        "log.csv",
        "trained_model.keras",
        "log.png",
        "run.json",
    ),
)
def test_training_that_fills_the_disk_keeps_the_old_files(
    finished, monkeypatch, capsys, name, size
):
    if size == 20_000 and name in ("state.json", "log.csv", "run.json"):
        pytest.skip("the file is smaller")
    epochs = read_state(finished / "checkpoint")["epochs_done"]
    if name == "weights.h5":
        # Another name than that of the checkpoint that there is.
        name = f"epoch-{epochs + 1:04d}.weights.h5"
    argv = ["--resume", "--epochs", epochs + 1]
    with monkeypatch.context() as patch:
        fill_disk(patch, name, size)
        done = check_fault(capsys, finished, argv, name)
    # The faults that come before the new checkpoint leave the old one.
    kept = name.startswith("epoch") or name in ("state.json", "log.csv")
    assert done == epochs + (not kept)


@pytest.mark.slow
def test_row_that_does_not_fit_on_the_disk_is_cut_off(
    finished, monkeypatch, capsys
):
    state = read_state(finished / "checkpoint")
    argv = ["--resume", "--epochs", state["epochs_done"] + 1]
    old = (finished / "log.csv").read_bytes()
    write = keras.callbacks.CSVLogger.on_epoch_end

    def write_half(*args):
        with file_limit(len(old) + 9):
            write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(keras.callbacks.CSVLogger, "on_epoch_end", write_half)
        message = message_of(capsys, [*argv, "--save_dir", finished])
    assert "cannot write" in message and "log.csv" in message
    assert (finished / "log.csv").read_bytes()[: len(old)] == old
    assert read_state(finished / "checkpoint") == state
    assert status_of([*argv, "--save_dir", finished]) == 0
    lines = (finished / "log.csv").read_bytes().splitlines(keepends=True)
    assert b"".join(lines[:-1]) == old
    assert len(lines) == state["epochs_done"] + 2


@pytest.mark.slow
@pytest.mark.parametrize("size", (0, 300))
@pytest.mark.parametrize(
    "name",
    (
        "test.json",
        "confusion.png",
        "real_and_recon.png",
        "manipulate-1.png",
        "predictions.csv",
        "predictions.png",
    ),
)
def test_testing_that_fills_the_disk_keeps_the_old_files(
    finished, tmp_path, monkeypatch, capsys, name, size
):
    if name == "predictions.csv" and size:
        pytest.skip("the file is smaller")
    model = finished / "trained_model.keras"
    argv = ["-t", "--digit", 1, "-w", model]
    if name.startswith("predictions"):
        write_picture(tmp_path / "a.png")
        argv = ["--predict", tmp_path / "a.png", "-w", model]
    with monkeypatch.context() as patch:
        fill_disk(patch, name, size)
        check_fault(capsys, finished, argv, name)


@pytest.mark.slow
def test_export_that_fills_the_disk_leaves_nothing(
    finished, tmp_path, monkeypatch, capsys
):
    argv = ["-w", finished / "trained_model.keras", "--export"]
    export = saving.export

    def limited(*args):
        with file_limit(1000):
            export(*args)

    monkeypatch.setattr(capsulenet, "export", limited)
    assert "export" in message_of(capsys, [*argv, tmp_path / "served"])
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


@pytest.mark.parametrize("size", (0, 64, 3000))
@pytest.mark.parametrize("name", ("a.keras", "a.json", "a.png"))
def test_full_disk_leaves_the_old_file(tmp_path, name, size):
    model = tiny_model()
    noise = np.random.default_rng(0).integers(0, 256, (99, 99), "uint8")
    write = {
        "a.keras": lambda path: model.save(path),
        "a.json": lambda path: Path(path).write_text("text " * 1000),
        "a.png": lambda path: Image.fromarray(noise).save(path),
    }[name]
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(UserError, match="File too large"):
        with files_room.whole_file(path) as temporary, file_limit(size):
            write(temporary)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("size", (0, 64, 3000, 20_000))
def test_full_disk_leaves_the_old_checkpoint(tmp_path, size):
    model = tiny_model()
    save_checkpoint(tmp_path, model, {"epochs_done": 1})
    before = contents(tmp_path)
    with pytest.raises(UserError, match="File too large"):
        with file_limit(size):
            save_checkpoint(tmp_path, model, {"epochs_done": 2})
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ("train", "test", "predict"))
def test_save_dir_that_cannot_be_written_is_one_line(
    inputs, monkeypatch, capsys, command
):
    monkeypatch.chdir(inputs)
    argv = {
        "train": ["--dataset", "tiny.npz"],
        "test": ["-t", "-w", "other.keras"],
        "predict": ["--predict", "picture.png", "-w", "other.keras"],
    }[command]
    before = contents(inputs)
    # No folder can be made below a file, whoever the user is.
    message = message_of(capsys, [*argv, "--save_dir", "text.h5/below"])
    assert "cannot write 'text.h5/below' (Not a directory)" in message
    assert "choose another --save_dir" in message

    def refuse(name, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", name)

    monkeypatch.setattr(os, "makedirs", refuse)
    message = message_of(capsys, [*argv, "--save_dir", "read_only"])
    assert "cannot write 'read_only' (Permission denied)" in message
    assert contents(inputs) == before


# Damaged files


def damage(content, rng):
    """The bytes cut off somewhere, or with one to four bits turned."""
    content = bytearray(content)
    if rng.random() < 0.3:
        return bytes(content[: rng.randrange(len(content))])
    # The places of the headers are tried more often.
    ends = (len(content), len(content), min(64, len(content)))
    for _ in range(rng.choice((1, 1, 2, 4))):
        content[rng.randrange(rng.choice(ends))] ^= 1 << rng.randrange(8)
    return bytes(content)


def try_damaged(path, load, is_right, refusal, rounds, seed):
    """Damages a file many times; returns how often it was refused.

    Args:
        path: A good file; it is good again in the end.
        load: Function without arguments.
        is_right: Function of what `load` returned for the good file, and for
            the damaged one.
        refusal: The only exception there may be, its message in one line.
    """
    rng = random.Random(seed)
    good, expected = path.read_bytes(), load()
    refused = 0
    for number in range(rounds):
        path.write_bytes(damage(good, rng))
        start = time.monotonic()
        try:
            received = load()
        except refusal as error:
            assert str(error) and "\n" not in str(error), number
            refused += 1
        else:
            assert is_right(expected, received), number
        assert time.monotonic() - start < 20, number
    path.write_bytes(good)
    assert is_right(expected, load())
    print(f"{path.name}: {rounds} mutations, {refused} refused")
    return refused


def same_data(expected, received):
    """Whether two data sets are equal; for files with a checksum."""
    return all(
        np.array_equal(getattr(expected, name), getattr(received, name))
        for name in ("x_train", "y_train", "x_test", "y_test")
    )


def same_shapes(expected, received):
    """Whether two data sets have the same shapes; for files without one."""
    return all(
        getattr(expected, name).shape == getattr(received, name).shape
        and getattr(expected, name).dtype == getattr(received, name).dtype
        for name in ("x_train", "y_train", "x_test", "y_test")
    )


def is_picture(expected, received):
    """Whether an array can be a picture of the size of its file."""
    return (
        received.dtype == np.uint8
        and received.ndim == 3
        and received.shape[2] in (1, 3, 4)
        and 0 < received.size <= 4 * MAX_UNPROVEN_PIXELS
    )


def same_picture(expected, received):
    return np.array_equal(expected, received)


def same_weights(expected, received):
    return all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(
            expected[0].get_weights(), received[0].get_weights(), strict=True
        )
    ) and (expected[1] == received[1])


def damage_arrays(folder, suffix, rounds):
    """Damages an `.npz` file, plain or compressed."""
    path = folder / "a.npz"
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.integers(0, 256, (8, 5, 4), "uint8"),
        "y_train": np.arange(8) % 2,
        "x_test": generator.integers(0, 256, (4, 5, 4), "uint8"),
        "y_test": np.arange(4) % 2,
    }
    save = np.savez_compressed if suffix == "compressed" else np.savez
    save(path, **arrays)
    return try_damaged(
        path,
        lambda: sources.load(str(path)),
        same_data,
        UserError,
        rounds,
        seed=1,
    )


def damage_idx(folder, suffix, rounds):
    """Damages the four idx files in turn, plain or compressed."""
    pack = gzip.compress if suffix == "gz" else bytes
    for name, values in (
        ("train-images-idx3-ubyte", np.arange(8 * 20).reshape(8, 5, 4)),
        ("train-labels-idx1-ubyte", np.arange(8) % 2),
        ("t10k-images-idx3-ubyte", np.arange(4 * 20).reshape(4, 5, 4)),
        ("t10k-labels-idx1-ubyte", np.arange(4) % 2),
    ):
        header = struct.pack(">HBB", 0, 8, values.ndim)
        header += struct.pack(f">{values.ndim}I", *values.shape)
        content = header + values.astype(np.uint8).tobytes()
        (folder / name).write_bytes(pack(content))
    return sum(
        try_damaged(
            path,
            lambda: sources.load(str(folder)),
            same_data if suffix == "gz" else same_shapes,
            UserError,
            rounds // 4,
            seed=2,
        )
        for path in sorted(folder.iterdir())
    )


def damage_picture(folder, suffix, rounds):
    """Damages a picture; PNG alone has a checksum."""
    path = folder / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), "uint8")
    Image.fromarray(pixels).save(path)
    return try_damaged(
        path,
        lambda: read_picture(path, None, None),
        same_picture if suffix == "png" else is_picture,
        UserError,
        rounds,
        seed=3,
    )


def damage_model(folder, suffix, rounds):
    """Damages a `.keras` file, whose archive has checksums."""
    path = folder / "a.keras"
    save_model(tiny_model(), path, {"class_names": ["a", "b"]})
    return try_damaged(
        path,
        lambda: load_model(str(path)),
        same_weights,
        UserError,
        rounds,
        seed=4,
    )


def damage_checkpoint(folder, name, rounds):
    """Damages one of the two files of a checkpoint."""
    state = {"epochs_done": 1, "flags": {"epochs": 3, "lr": 0.001}}
    save_checkpoint(folder, tiny_model(), state)
    return try_damaged(
        folder / name,
        lambda: read_state(folder),
        lambda expected, received: expected == received,
        UserError,
        rounds,
        seed=5,
    )


# How to damage a kind of file, and how often: quickly, and in the slow tests.
DAMAGES = (
    (damage_arrays, "plain", 60, 1500),
    (damage_arrays, "compressed", 60, 1500),
    (damage_idx, "plain", 60, 1000),
    (damage_idx, "gz", 60, 1000),
    (damage_picture, "png", 60, 1500),
    (damage_picture, "jpg", 40, 1000),
    (damage_picture, "bmp", 40, 500),
    (damage_picture, "gif", 40, 500),
    (damage_picture, "tif", 40, 500),
    (damage_picture, "webp", 40, 500),
    (damage_model, "keras", 20, 400),
    (damage_checkpoint, "state.json", 60, 1000),
    (damage_checkpoint, "epoch-0001.weights.h5", 60, 500),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage_file, suffix, rounds, _", DAMAGES)
def test_damaged_file_is_right_or_refused(
    tmp_path, damage_file, suffix, rounds, _
):
    assert damage_file(tmp_path, suffix, rounds) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage_file, suffix, _, rounds", DAMAGES)
def test_file_damaged_in_ten_thousand_ways_is_right_or_refused(
    tmp_path, damage_file, suffix, _, rounds
):
    assert sum(entry[3] for entry in DAMAGES) >= 10_000
    assert damage_file(tmp_path, suffix, rounds) > 0
