"""Wrong command lines and wrong inputs, each in its own way.

Whatever the user asks for, a command that cannot be done ends with status 2
and one line, and leaves every file as it is.
"""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import write_bars
from running import command, contents, message_of, run, train
from samples import write_folder

from capsnet import devices
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
--lr_schedule linear            invalid choice: 'linear'
--warmup -1                     a number at least 0
--warmup 51                     at most the run's 50 epochs, got 51
--lr_min 0.1                    unrecognized arguments: --lr_min
--lam_recon paper               at most 1000000, got 'paper'
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
--coloured                      unrecognized arguments: --coloured
--augment flip                  invalid choice: 'flip'
--rotation 181                  at least 0 and at most 180
--scale 0.91                    at least 0 and at most 0.9
--rotation 10                   no effect with --augment shift: leave it out
--show_augment --epochs 2       no effect with --show_augment: leave it out
--show_augment --dataset ''     received '': check the name or the path
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
--save_dir ''                   --save_dir expects a folder, got ''
-t -w text.keras --save_dir ''  --save_dir expects a folder, got ''
--predict . -w text.keras --save_dir ''  --save_dir expects a folder, got ''
--dataset emnist                received 'emnist': check the name or the path
--dataset ''                    received '': check the name or the path
--dataset missing.npz           'missing.npz': check the name or the path
--dataset text.h5               an .npz or .csv file, received 'text.h5'
--dataset text.npz              'text.npz', which is broken: copy or write
--dataset one_hot.npz           received shapes (40, 3) and (12,)
--dataset tiny.npz --test_fraction 0.2   data that have no test part
--dataset tiny.npz --val_fraction 0.01   choose another fraction
--dataset tiny.npz --image_size 3 3      --image_size
--dataset small.npz --model capsnet      of at least 12x12 pixels
--dataset tiny.npz --conv_kernel 99      --conv_kernel
--dataset tiny.npz -w text.keras         cannot load 'text.keras'
--dataset tiny.npz -w text.h5   cannot load weights from 'text.h5'
--dataset broken_idx            which is broken or something else: copy it
--dataset three --val_fraction 0.1       and 'three' has one: leave it out
--dataset flat                  sort them into train/CLASS/
--dataset three --invert        no effect without --predict or -t
--dataset unreadable            2 of 2 that cannot be read
-t -w text.keras                cannot load 'text.keras'; expected a model
-t -w flags.keras               the record in 'flags.keras' has flags
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of files that are wrong, each in its own way."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny = write_bars(folder / "tiny.npz")
    write_bars(folder / "small.npz", shape=(9, 20, 1))
    with np.load(tiny) as arrays:
        one_hot = {**arrays, "y_train": np.eye(3, dtype=int)[arrays["y_train"]]}
    np.savez(folder / "one_hot.npz", **one_hot)
    for path, content in (
        *((name, "text") for name in ("text.keras", "text.h5", "text.npz")),
        ("broken_idx/train-images-idx3-ubyte", "text"),
        ("broken_idx/train-labels-idx1-ubyte", "text"),
        ("broken_idx/t10k-images-idx3-ubyte", "text"),
        ("broken_idx/t10k-labels-idx1-ubyte", "text"),
        ("unreadable/a/0.png", "no picture"),
        ("unreadable/b/0.png", ""),
        # Checkpoints that cannot be gone on with.
        ("empty_state/checkpoint/state.json", ""),
        ("deep_state/checkpoint/state.json", "[" * 100_000),
        ("endless_state/checkpoint/state.json", '{"flags": {"epochs": 1e999}}'),
        ("no_digest/checkpoint/state.json", '{"flags": {"epochs": 2}}'),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    names = [
        f"{part}/{name}" for part in ("train", "val", "test") for name in "ab"
    ]
    write_folder(folder / "three", dict.fromkeys(names, 2))
    write_folder(folder / "flat", {"train": 2, "test": 2})
    inputs = keras.layers.Input((3,))
    model = keras.Sequential([inputs, keras.layers.Dense(2)])
    model.save(folder / "flags.keras")
    with zipfile.ZipFile(folder / "flags.keras", "a") as archive:
        archive.writestr("run.json", '{"flags": 1}')
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


def test_second_run_in_a_folder_is_refused(tmp_path, data, trained):
    with locked(tmp_path):
        for argv in (["--epochs", 1], ["-t", "-w", trained.model_path()]):
            message = message_of(command(tmp_path, "--dataset", data, *argv))
            assert "another run is writing" in message
            assert "another --save_dir" in message
    assert contents(tmp_path) == {}


def test_memory_that_ends_in_the_middle_is_told_in_one_line(
    tmp_path, data, monkeypatch
):
    def exhaust(*args, **kwargs):
        raise RuntimeError("Graph execution error:\nOOM when allocating")

    monkeypatch.setattr(keras.Model, "fit", exhaust)
    message = message_of(train(tmp_path, data, "--epochs", 1, "-r", 1))
    assert "not enough memory for it; lower --batch_size" in message
    # What does not train has no such flags.
    monkeypatch.setattr("capsnet.cli.commands.load_models", exhaust)
    (tmp_path / "m.keras").touch()
    done = run("--predict", tmp_path, "-w", tmp_path / "m.keras")
    assert message_of(done).endswith("not enough memory for it\n")


def test_more_memory_than_there_is_is_warned_of(tmp_path, data, monkeypatch):
    limit = tmp_path / "memory.max"  # As in a container.
    limit.write_text("850000000\n")
    monkeypatch.setattr(devices, "MEMORY_LIMITS", (str(limit),))
    monkeypatch.setattr("capsnet.cli.telling.runs_on_cpu", lambda: True)
    flags = "--epochs", 1, "-r", 1, "--lam_recon", 0
    done = train(tmp_path / "run", data, *flags)
    assert done.status == 0, done.err
    assert "Warning: training may need" in done.out
    assert "and there are 0.8 GB: if it fails, lower --batch_size" in done.out
    # Far less would end it in the middle.
    limit.write_text("100000000\n")
    message = message_of(train(tmp_path / "other", data, *flags))
    assert "and there are 0.1 GB: lower --batch_size or --image_s" in message
    limit.write_text("max\n")
    assert devices.machine_memory() > 10**8
