"""Wrong command lines and wrong inputs, each in its own way.

Whatever the user asks for, a command that cannot be done ends with status 2
and one line, and leaves every file as it is.
"""

import re
import shlex
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import write_bars
from PIL import Image
from running import command, contents, message_of, run, train

from capsnet import devices
from capsnet.cli import checks
from capsnet.files import locked

ROOT = Path(__file__).parents[2]

# Command lines, and a phrase of the line with which they end.
WRONG = """
--epochs 0                      an integer at least 1
--epochs ten                    an integer at least 1
--epochs                        --epochs: expected one argument
--epochs 9{400}                 an integer at least 1 and at most
--batch_size -1                 an integer at least 1
--batch_size 1.5                an integer at least 1
--batch_size 1e3                an integer at least 1
-r 0                            -r/--routings: expected an integer at least 1
--lr 0                          a number above 0
--lr nan                        a number above 0
--lr inf                        a number above 0
--lr_decay 1.1                  above 0 and at most 1, got '1.1'
--lr_decay_steps -1             an integer at least 0
--lr_min 0.1                    unrecognized arguments: --lr_min
--lam_recon paper               a number at least 0, got 'paper'
--shift_fraction 0.6            at least 0 and at most 0.5
--val_fraction 1                at least 0 and at most 0.9
--test_fraction 0               above 0 and at most 0.9
--ema 1                         at most 0.999999
--seed -1                       an integer at least 0
--seed 4294967296               at most 4294967295
--primary_scale 0               a number above 0
--capsule_bias nan              a number at least
--init zeros                    invalid choice: 'zeros'
--conv slow                     invalid choice: 'slow'
--recipe other                  invalid choice: 'other'
--model resnet                  invalid choice: 'resnet'
--dtype_policy float8           invalid choice: 'float8'
--jit_compile maybe             invalid choice: 'maybe'
--class_weight heavy            invalid choice: 'heavy'
--steps_per_execution 0         an integer at least 1
--image_size 28                 expected 2 arguments
--image_size 0 28               an integer at least 1
--conv_kernel 0                 an integer at least 1
--primary_strides -2            an integer at least 1
--epoch 3                       unrecognized arguments: --epoch
--colour                        unrecognized arguments: --colour
mnist                           unrecognized arguments: mnist
--gpus 2                        unrecognized arguments: --gpus
-t                              needs a model: -w FILE
--digit 5                       needs a model: -w FILE
-t -w missing.keras             got 'missing.keras', which is not there
-w .                            got '.', which is something else
-w text.keras text.h5           several need -t
--model baseline --digit 1 -w text.keras  baseline has none
--model baseline --conv_kernel 3          --conv_kernel is for capsules
--model baseline -r 1           --routings is for capsules
--model baseline --lam_recon 0  --lam_recon is for capsules
-t -w text.keras --epochs 3     --epochs has no effect with -t: leave it out
-t -w text.keras --conv_kernel 3  no effect on a .keras file, which holds its
--resume                        no checkpoint in 'result'; start the run without
--resume -w text.keras          leave -w out
--resume -t -w text.keras       --resume has no effect with -t: leave it out
--resume --save_dir empty_state    cannot read
--resume --save_dir deep_state     cannot read
--resume --save_dir endless_state  cannot read
--resume --save_dir no_digest      start again without --resume
--save_dir text.keras           --save_dir expects a folder
--dataset emnist                received 'emnist': check the name or the path
--dataset ''                    received '': check the name or the path
--dataset missing.npz           'missing.npz': check the name or the path
--dataset text.h5               'text.h5': check the name or the path
--dataset text.npz              'text.npz', which is broken: copy or write
--dataset cut.npz               'cut.npz', which is broken: copy or write
--dataset lacks.npz             received none called x_test, y_test: add
--dataset pickled.npz           expected numbers in x_train, received object
--dataset terabyte.npz          'terabyte.npz', which is broken
--dataset bomb.npz              'bomb.npz', which is broken
--dataset range.npz             values from 0 to 300
--dataset one_hot.npz           store their argmax
--dataset one_class.npz         at least two classes
--dataset unknown.npz           with class 7 in the test part only
--dataset channels.npz          with 1, 3 or 4 channels
--dataset tiny.npz --test_fraction 0.2   class folders only
--dataset tiny.npz --val_fraction 0.01   choose another fraction
--dataset tiny.npz --image_size 3 3      --image_size
--dataset small.npz --model capsnet      of at least 12x12 pixels
--dataset tiny.npz --conv_kernel 99      --conv_kernel
--dataset tiny.npz -w text.keras         cannot load 'text.keras'
--dataset tiny.npz -w text.h5   cannot load weights from 'text.h5'
--dataset idx                   expected four idx files in 'idx', received none
--dataset broken_idx            which is broken or something else: copy it
--dataset flat                  directly in it: name the folder above
--dataset nothing               none with pictures: put the pictures in CLASS/
--dataset no_test               received train alone: add the other
--dataset lacks_class           none of 'b' in 'lacks_class': add some
--dataset two_sizes             add --image_size H W
--dataset unreadable            2 of 3 that cannot be read (a/1.png, b/0.png)
--dataset absurd --image_size 17 17      cannot be read (a/0.png)
-t -w text.keras                cannot load 'text.keras'; expected a model
-t -w zip.keras                 cannot load 'zip.keras'; expected a model
-t -w code.keras                'code.keras' has a 'Lambda', which is not known
-t -w other.keras --dataset tiny.npz     got 'other.keras', a model
-t -w list.keras                cannot read the record in 'list.keras'
-t -w flags.keras               cannot read the record in 'flags.keras'
--predict picture.png -w text.keras      cannot load 'text.keras'
--predict picture.png -w other.keras     got 'other.keras', a model
--export new -w text.keras      cannot load 'text.keras'
"""


def write_arrays(path, **changes):
    """`tiny.npz` with other arrays; `None` leaves one out."""
    with np.load("tiny.npz") as arrays:
        changed = {**arrays, **changes}
    np.savez(path, **{k: v for k, v in changed.items() if v is not None})


def claim_terabytes(path, compression=zipfile.ZIP_STORED):
    """An `.npz` whose first member claims four terabytes."""
    header = "{'descr': '|u1', 'fortran_order': False, "
    header = f"{header}'shape': (1073741824, 64, 64, 1), }}".ljust(117) + "\n"
    claims = b"\x93NUMPY\x01\x00v\x00" + header.encode() + bytes(100_000)
    with (
        zipfile.ZipFile("tiny.npz") as archive,
        zipfile.ZipFile(path, "w", compression) as written,
    ):
        for name in archive.namelist():
            content = claims if name == "x_train.npy" else archive.read(name)
            written.writestr(name, content)


def write_picture(path, height=17):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (17, height), 99).save(path)


def write_pictures():
    """Folders of pictures, each with something wrong."""
    for path in (
        "picture.png flat/0.png no_test/train/a/0.png no_test/train/b/0.png "
        "lacks_class/train/a/0.png lacks_class/train/b/0.png "
        "lacks_class/test/a/0.png two_sizes/a/0.png unreadable/a/0.png "
        "unreadable/b/0.png absurd/a/0.png absurd/b/0.png"
    ).split():
        write_picture(path)
    write_picture("two_sizes/b/0.png", height=18)
    Path("nothing").mkdir()
    Path("unreadable/a/1.png").write_bytes(b"")
    Path("unreadable/b/0.png").write_text("no picture")
    # Some bytes that claim a hundred thousand pixels a side.
    content = bytearray(Path("absurd/a/0.png").read_bytes())
    content[16:24] = struct.pack(">II", 100_000, 100_000)
    content[29:33] = struct.pack(">I", zipfile.crc32(content[12:29]))
    Path("absurd/a/0.png").write_bytes(content)


def write_models():
    """Models that are none of ours, or carry what they should not."""
    for name, layer, record in (
        ("other", keras.layers.Dense(2), "{}"),
        ("list", keras.layers.Dense(2), "[]"),
        ("flags", keras.layers.Dense(2), '{"flags": 1}'),
        ("code", keras.layers.Lambda(lambda x: 2 * x), "{}"),
    ):
        inputs = keras.layers.Input((3,))
        keras.Sequential([inputs, layer]).save(f"{name}.keras")
        with zipfile.ZipFile(f"{name}.keras", "a") as archive:
            archive.writestr("run.json", record)
    with zipfile.ZipFile("zip.keras", "w") as archive:
        archive.writestr("note.txt", "no model")


def write_idx_files():
    """One of the four idx files, and four that hold text."""
    Path("idx").mkdir()
    header = struct.pack(">HBBIII", 0, 8, 3, 1, 17, 17)
    one = Path("idx", "train-images-idx3-ubyte")
    one.write_bytes(header + bytes(17 * 17))
    Path("broken_idx").mkdir()
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            Path(f"broken_idx/{part}-{kind}-ubyte").write_text("no idx file")


def write_states():
    """Checkpoints that cannot be gone on with."""
    flags = '{"flags": {"epochs": 2, "image_size": 5, "seed": "x"}}'
    for name, content in (
        ("empty_state", ""),
        ("deep_state", "[" * 100_000),
        ("endless_state", '{"flags": {"epochs": 1e999}}'),
        ("no_digest", flags),
    ):
        Path(name, "checkpoint").mkdir(parents=True)
        Path(name, "checkpoint", "state.json").write_text(content)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of files that are wrong, each in its own way."""
    folder = tmp_path_factory.mktemp("inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_bars("tiny.npz")
        write_bars("small.npz", shape=(9, 20, 1))
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
        write_models()
        write_pictures()
        write_idx_files()
        write_states()
    return folder


@pytest.mark.parametrize("row", WRONG.strip().splitlines())
def test_wrong_command_or_input_is_one_line_and_status_2(
    inputs, monkeypatch, row
):
    line, phrase = re.split("  +", row, maxsplit=1)
    monkeypatch.chdir(inputs)
    before = contents(inputs)
    argv = shlex.split(line.replace("9{400}", "9" * 400))
    assert phrase in message_of(run(*argv))
    assert contents(inputs) == before


def test_wrong_data_set_is_one_line_and_status_2_for_the_shell(inputs):
    done = subprocess.run(
        [sys.executable, ROOT / "capsulenet.py", "--dataset", "nowhere"],
        cwd=inputs,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("capsulenet.py: ") and "'nowhere'" in last


def test_older_python_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["capsulenet.py"])
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    monkeypatch.setattr(sys, "version", "3.10.13 (main)")
    with pytest.raises(SystemExit) as ended:
        checks.start("")
    assert ended.value.code == 2
    message = "capsulenet.py: expected Python 3.11 or newer, got 3.10.13\n"
    assert capsys.readouterr().err == message


def test_second_run_in_a_folder_is_refused(tmp_path, data, trained):
    with locked(tmp_path):
        for argv in (["--epochs", 1], ["-t", "-w", trained.model_path()]):
            message = message_of(command(tmp_path, "--dataset", data, *argv))
            assert "another run is writing" in message
            assert "another --save_dir" in message
    assert contents(tmp_path) == {}


def test_more_memory_than_there_is_is_warned_of(tmp_path, data, monkeypatch):
    limit = tmp_path / "memory.max"  # As in a container.
    limit.write_text("1000000\n")
    monkeypatch.setattr(devices, "MEMORY_LIMITS", (str(limit),))
    monkeypatch.setattr("capsnet.cli.telling.runs_on_cpu", lambda: True)
    flags = "--epochs", 1, "-r", 1, "--lam_recon", 0
    done = train(tmp_path / "run", data, *flags)
    assert done.status == 0, done.err
    assert "Warning: training may need" in done.out
    assert "and there are 0.0 GB: if it fails, lower --batch_size" in done.out
    limit.write_text("max\n")
    assert devices.machine_memory() > 10**8
