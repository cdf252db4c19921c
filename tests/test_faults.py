"""Tests of what can go wrong: wrong commands, damaged files, full disks, kills.

Whatever the user or the machine does, a command ends with its status and one
line, and a file of an earlier run survives.
"""

import shlex
import struct
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import bars, write_bars
from PIL import Image

import capsulenet

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
    ("--export '' -w text.keras", "the name of a folder, got ''"),
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
