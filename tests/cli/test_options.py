"""Tests of the flags and the two helps. None of them imports Keras."""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsnet.cli.checks import parse_args
from capsnet.cli.options import build_parser
from capsnet.limits import INTEGERS, NUMBERS
from capsnet.training.recipes import DEFAULT_BATCH_SIZE

ROOT = Path(__file__).parents[2]
SCRIPTS = ("capsulenet.py", "capsulenet-multi-gpu.py")
CLASSIC = {
    **{"shift_fraction": 0.1, "val_fraction": 0.0, "routings": 3, "seed": 0},
    **{"epochs": 50, "lr": 0.001, "lr_decay": 0.9, "lr_decay_steps": 0},
    **{"lam_recon": "classic", "dataset": "mnist", "save_dir": "result"},
    **{"weights": None, "testing": False, "digit": None, "debug": False},
    **{"augment": "shift"},
}
ACTIONS = build_parser(multi_gpu=True)._actions


def takes_integers(action):
    """Whether a flag's type is a bounded integer."""
    try:
        return isinstance(action.type("3"), int)
    except (TypeError, argparse.ArgumentTypeError):
        return False


def page(capsys, flag, multi_gpu):
    """What one of the helps prints, where no terminal tells its width."""
    with pytest.raises(SystemExit) as caught:
        parse_args([flag], description="The manual.", multi_gpu=multi_gpu)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_defaults_are_those_of_the_classic_script():
    args = vars(parse_args([]))
    assert {name: args[name] for name in CLASSIC} == CLASSIC
    assert DEFAULT_BATCH_SIZE == 100


@pytest.mark.parametrize("multi_gpu", (False, True))
def test_help_is_one_screen_in_the_order_of_use(
    capsys, monkeypatch, tmp_path, multi_gpu
):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    for name in ("PICTURE", "result/trained_model.keras", "result/mnist/v4"):
        path = Path(name).with_suffix(".keras" if "/" in name else "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    printed = page(capsys, "-h", multi_gpu)
    lines = printed.splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 80
    titles = re.findall(r"^(\w+):$", printed, re.MULTILINE)
    assert titles == ["train", "test", "look", "use"]
    assert "--help_all" in lines[-1]
    examples = re.findall(r"^  python (\S+) (.+)", printed, re.MULTILINE)
    tasks = []
    for script, argv in examples:
        assert (ROOT / script).exists()
        args = parse_args(argv.split(), multi_gpu=script == SCRIPTS[1])
        tasks.append(args.task)
    assert tasks == [None, "-t", "--explore", "--predict"]
    shown = re.findall(r"^  (-.*?)(?:  |$)", printed, re.MULTILINE)
    used = {word for _, argv in examples for word in argv.split()}
    used = {word for word in used if word.startswith("-")}
    assert used <= set(" ".join(shown).replace(",", " ").split())
    assert ("--gpus" in printed) == multi_gpu


@pytest.mark.parametrize("multi_gpu", (False, True))
def test_whole_help_names_every_flag_with_its_default(capsys, multi_gpu):
    printed = page(capsys, "--help_all", multi_gpu)
    assert "The manual." in printed
    # From each flag to the next, or to an empty line.
    entries = re.findall(r"^  (-.+(?:\n {3,}.+)*)", printed, re.MULTILINE)
    texts = dict(zip((a.option_strings[-1] for a in ACTIONS), entries))
    known = build_parser(multi_gpu=multi_gpu)._actions
    assert len(entries) == len(known)
    for action in known:
        text = " ".join(texts[action.option_strings[-1]].split())
        assert all(flag in text for flag in action.option_strings)
        optional = ("weights", "digit", "predict", "export")
        if action.nargs != 0 and action.dest not in optional:
            assert "(default: " in text
        if action.default not in (None, False, argparse.SUPPRESS):
            assert f"(default: {action.default})" in text


@pytest.mark.parametrize(
    "flag", [a.option_strings[-1] for a in ACTIONS if takes_integers(a)]
)
def test_integers_of_any_length_are_refused_in_one_line(error_of, flag):
    for value in ("9" * 400, "9" * 5000, "-" + "9" * 400, "1.5", "nan", ""):
        argv = [f"{flag}={value}"]
        if flag == "--image_size":
            argv = [flag, "17", value]
            if value.startswith("-"):
                continue  # argparse takes it for a flag.
        message = error_of(*argv, multi_gpu=True)
        assert flag in message and "expected an integer" in message
        assert len(message) < 200


def test_each_number_has_one_limit_which_its_error_tells(error_of):
    options = {a.dest: a.option_strings[-1] for a in ACTIONS}
    assert {*INTEGERS, *NUMBERS} <= options.keys()
    for name, (_, high) in INTEGERS.items():
        argv = [options[name], *["1"] * (name == "image_size"), str(high + 1)]
        message = error_of(*argv, multi_gpu=True)
        assert f" and at most {high}, got '{high + 1}'" in message
    for name, (_, high, _) in NUMBERS.items():
        message = error_of(f"{options[name]}={high * 1.01}", multi_gpu=True)
        assert f" and at most {high}, got" in message


def test_the_integer_flags_are_found():
    flags = {a.dest for a in ACTIONS if takes_integers(a)}
    assert {"epochs", "batch_size", "routings", "seed", "gpus"} <= flags
    assert {"image_size", "conv_kernel", "lr_decay_steps"} <= flags
    assert len(flags) == 14 and "lr" not in flags


@pytest.mark.parametrize(
    "wrong, meant",
    (
        ("--epoch 3", "--epochs"),
        ("--batch-size 3", "--batch_size"),
        ("--digits 5", "--digit"),
        ("--qqqqqqqq", None),
    ),
)
def test_unknown_flag_suggests_a_known_one(error_of, wrong, meant):
    message = error_of(*wrong.split())
    assert wrong in message and "--help_all lists the flags" in message
    assert message.count("did you mean") == (meant is not None)
    assert meant is None or f"did you mean {meant}?" in message


def test_command_is_parsed_once(monkeypatch):
    passes, once = [], argparse.ArgumentParser.parse_known_args

    def count(self, *args, **kwargs):
        passes.append(args)
        return once(self, *args, **kwargs)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", count)
    args = parse_args(["--recipe", "paper", "--epochs", "3"])
    assert (len(passes), args.epochs, args.batch_size) == (1, 3, 128)


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "flag, status", (("-h", 0), ("--help_all", 0), ("--no_flag", 2))
)
def test_helps_and_wrong_flags_answer_before_keras_is_imported(
    script, flag, status
):
    seconds = []
    while len(seconds) < 5 and min(seconds, default=1) >= 1:
        # The best of some: others use the machine, too.
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", script, flag],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.perf_counter() - start)
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "capsnet.cli.options" in imported
    assert not imported & {"keras", "tensorflow", "numpy", "matplotlib"}
    assert done.returncode == status
    assert ("--epochs" in done.stdout) == (status == 0)
    assert min(seconds) < 1
