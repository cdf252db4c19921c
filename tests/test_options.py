"""Tests of options.py. None of them imports Keras."""

import importlib.util  # noqa: E402
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capsnet.cli.options import build_parser
from capsnet.cli.settings import flags_of, parse_args
from capsnet.training.recipes import DEFAULT_BATCH_SIZE

ROOT = Path(__file__).parents[1]
SCRIPTS = ("capsulenet.py", "capsulenet-multi-gpu.py")
CLASSIC = {
    "dataset": "mnist",
    "shift_fraction": 0.1,
    "val_fraction": 0.0,
    "routings": 3,
    "epochs": 50,
    "lr": 0.001,
    "lr_decay": 0.9,
    "lr_decay_steps": 0,
    "lam_recon": "classic",
    "seed": 0,
    "weights": None,
    "testing": False,
    "digit": None,
    "save_dir": "result",
    "debug": False,
    "resume": False,
}


def parse(*argv, **kwargs):
    return parse_args(list(argv), **kwargs)


def error_of(capsys, *argv, **kwargs):
    """The one line with which a wrong command line ends, at status 2."""
    with pytest.raises(SystemExit) as caught:
        parse(*argv, **kwargs)
    assert caught.value.code == 2
    printed, message = capsys.readouterr()
    assert printed == ""
    assert message.endswith("\n") and message.count("\n") == 1
    return message


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "trained_model.keras"
    path.write_bytes(b"")
    return str(path)


@pytest.fixture
def started(tmp_path):
    """A folder whose checkpoint belongs to a run with flags of its own."""
    flags = flags_of(parse("--routings", "2", "--epochs", "5", "--seed", "7"))
    flags["batch_size"] = 40
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    state = folder / "checkpoint" / "state.json"
    state.write_text(json.dumps({"epochs_done": 2, "flags": flags}))
    return str(folder)


def test_defaults_are_those_of_the_classic_script():
    args = vars(parse())
    assert {name: args[name] for name in CLASSIC} == CLASSIC
    assert DEFAULT_BATCH_SIZE == 100


def test_short_flags_are_the_classic_ones(model_file):
    args = parse("-r", "1", "-w", model_file, "-t")
    assert (args.routings, args.testing) == (1, True)
    assert args.weights == [model_file]


@pytest.mark.parametrize("multi_gpu", (False, True))
def test_help_names_every_flag_and_the_default_of_each_value(capsys, multi_gpu):
    with pytest.raises(SystemExit) as caught:
        parse("-h", description="What it does.", multi_gpu=multi_gpu)
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert "What it does." in printed
    assert "100 for each GPU" in " ".join(printed.split()) or not multi_gpu
    for action in build_parser("", multi_gpu)._actions:
        assert all(flag in printed for flag in action.option_strings)
        takes_value = action.nargs != 0
        optional = action.dest in ("weights", "digit")
        if takes_value and not optional:
            assert "(default: " in action.help, action.dest


@pytest.mark.parametrize(
    "flag, value, expected",
    (
        ("--epochs", "0", "an integer at least 1"),
        ("--epochs", "1.5", "an integer at least 1"),
        ("--batch_size", "-1", "an integer at least 1"),
        ("-r", "0", "an integer at least 1"),
        ("--lr", "0", "a number above 0"),
        ("--lr", "nan", "a number above 0"),
        ("--lr", "inf", "a number above 0"),
        ("--lr", "fast", "a number above 0"),
        ("--lr_decay", "1.1", "above 0 and at most 1"),
        ("--lr_decay_steps", "-1", "an integer at least 0"),
        ("--lr_min", "-1", "a number at least 0"),
        ("--lam_recon", "-0.1", "a number at least 0"),
        ("--lam_recon", "paper", "a number at least 0"),
        ("--shift_fraction", "0.6", "at least 0 and at most 0.5"),
        ("--val_fraction", "1", "at least 0 and at most 0.9"),
        ("--ema", "1", "at most 0.999999"),
        ("--seed", "-1", "an integer at least 0"),
        ("--primary_scale", "0", "a number above 0"),
        ("--init", "zeros", "'authors'"),
        ("--conv", "slow", "'fast'"),
        ("--recipe", "other", "'paper'"),
        ("--dtype_policy", "float8", "'mixed_bfloat16'"),
    ),
)
def test_wrong_value_is_told_with_what_was_expected(
    capsys, flag, value, expected
):
    message = error_of(capsys, flag, value)
    assert flag in message and value in message and expected in message


@pytest.mark.parametrize(
    "argv", (["--epoch", "3"], ["--colour"], ["mnist"], ["--gpus", "2"])
)
def test_unknown_or_shortened_flag_is_refused(capsys, argv):
    assert argv[0] in error_of(capsys, *argv)


def test_gpus_belong_to_the_script_for_several(capsys):
    args = parse("--gpus", "2", "--device", "cpu", multi_gpu=True)
    assert (args.gpus, args.device) == (2, "cpu")
    assert parse(multi_gpu=True).gpus is None
    assert "at least 1" in error_of(capsys, "--gpus", "0", multi_gpu=True)


def test_lam_recon_is_a_number_or_derived():
    assert parse("--lam_recon", "0").lam_recon == 0
    assert parse("--lam_recon", "0.392").lam_recon == 0.392
    assert parse("--lam_recon", "authors").lam_recon == "authors"


def test_recipe_paper_sets_what_the_authors_code_does():
    paper, classic = vars(parse("--recipe", "paper")), vars(parse())
    changed = {
        name: value
        for name, value in paper.items()
        if value != classic[name]
        and name not in ("recipe", "given", "recipe_sets")
    }
    assert changed == {
        "batch_size": 128,
        "lr_decay": 0.96,
        "lr_decay_steps": 2000,
        "lr_min": 1e-6,
        "lam_recon": "authors",
        "init": "authors",
        "capsule_bias": 0.1,
        "primary_scale": 0.03125,
    }
    assert paper["recipe_sets"] == changed
    assert classic["recipe_sets"] == {}
    # Where there are no capsules, the rest is all that it sets.
    baseline = parse("--recipe", "paper", "--model", "baseline")
    assert set(baseline.recipe_sets) == {
        *("batch_size", "lr_decay", "lr_decay_steps", "lr_min")
    }


def test_given_flag_overrides_the_recipe():
    for argv in (
        ["--recipe", "paper", "--batch_size", "100"],
        ["--batch_size", "100", "--recipe", "paper"],
    ):
        args = parse(*argv)
        assert args.batch_size == 100
        assert "batch_size" not in args.recipe_sets
        assert args.lr_decay == args.recipe_sets["lr_decay"] == 0.96
        assert args.given == {"recipe", "batch_size"}


def test_digit_implies_testing(model_file):
    args = parse("--digit", "5", "-w", model_file)
    assert args.testing is True and args.digit == "5"


def test_testing_leaves_the_data_set_to_the_model(model_file):
    assert parse("-t", "-w", model_file).dataset is None
    assert parse("-t", "-w", model_file, "--dataset", "digits").dataset == (
        "digits"
    )


@pytest.mark.parametrize("argv", (["-t"], ["--digit", "5"]))
def test_testing_without_a_model_tells_how_to_name_one(capsys, argv):
    message = error_of(capsys, *argv, "--save_dir", "runs")
    assert "-w runs/trained_model.keras" in message


@pytest.mark.parametrize("argv", (["-t"], []))
def test_missing_model_file_is_named(capsys, tmp_path, argv):
    missing = str(tmp_path / "missing.keras")
    message = error_of(capsys, *argv, "-w", missing)
    assert missing in message and "trained_model.keras" in message
    # A folder is no model either.
    assert str(tmp_path) in error_of(capsys, *argv, "-w", str(tmp_path))


def test_training_starts_from_one_file(capsys, model_file):
    assert "several need -t" in error_of(capsys, "-w", model_file, model_file)
    assert len(parse("-t", "-w", model_file, model_file).weights) == 2


def test_digit_is_refused_for_the_baseline(capsys, model_file):
    message = error_of(
        capsys, "--model", "baseline", "--digit", "1", "-w", model_file
    )
    assert "--digit" in message and "baseline" in message


def test_debug_without_tensorboard_tells_how_to_install_it(capsys, monkeypatch):
    find_spec = importlib.util.find_spec

    def without(name, *args):
        return None if name == "tensorboard" else find_spec(name, *args)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert "pip install tensorboard" in error_of(capsys, "--debug")
    assert parse().debug is False


def test_save_dir_has_to_be_a_folder(capsys, tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    assert str(path) in error_of(capsys, "--save_dir", str(path))


def test_resume_takes_the_flags_of_the_run(started):
    args = parse("--resume", "--save_dir", started)
    assert (args.routings, args.epochs, args.seed) == (2, 5, 7)
    assert args.batch_size == 40
    assert args.resume is True and args.save_dir == started


def test_resume_accepts_the_same_flags_again(started):
    argv = ["--routings", "2", "--epochs", "5", "--batch_size", "40"]
    assert parse("--resume", "--save_dir", started, *argv).routings == 2


def test_resume_lets_epochs_grow(capsys, started):
    args = parse("--resume", "--save_dir", started, "--epochs", "8")
    assert args.epochs == 8
    message = error_of(
        capsys, "--resume", "--save_dir", started, "--epochs", "4"
    )
    assert "--epochs 5, got 4" in message


@pytest.mark.parametrize(
    "argv, expected",
    (
        (["-r", "3"], "--routings 2, got 3"),
        (["--batch_size", "50"], "--batch_size 40, got 50"),
        (["--seed", "8"], "--seed 7, got 8"),
        (["--conv_kernel", "5"], "without --conv_kernel, got 5"),
        (["--recipe", "paper"], "--recipe classic, got paper"),
    ),
)
def test_resume_refuses_other_flags_by_name(capsys, started, argv, expected):
    message = error_of(capsys, "--resume", "--save_dir", started, *argv)
    assert expected in message


@pytest.mark.parametrize("argv, named", ((["-t"], "-t"), ([], "-w")))
def test_resume_excludes_testing_and_weights(
    capsys, started, model_file, argv, named
):
    message = error_of(
        capsys, "--resume", "--save_dir", started, "-w", model_file, *argv
    )
    assert "--resume" in message and named in message


def test_resume_does_not_ask_for_the_weights_of_the_start(started):
    state = Path(started, "checkpoint", "state.json")
    content = json.loads(state.read_text())
    content["flags"]["weights"] = ["moved-since.keras"]
    state.write_text(json.dumps(content))
    assert parse("--resume", "--save_dir", started).routings == 2


def test_resume_without_a_checkpoint_tells_what_to_do(capsys, tmp_path):
    message = error_of(capsys, "--resume", "--save_dir", str(tmp_path))
    assert str(tmp_path) in message and "without --resume" in message


@pytest.mark.parametrize("content", ("", "{", "[]", "{}"))
def test_resume_from_a_damaged_state_is_refused(capsys, started, content):
    path = Path(started, "checkpoint", "state.json")
    path.write_text(content)
    message = error_of(capsys, "--resume", "--save_dir", started)
    assert "state.json" in message


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("argv, status", ((["-h"], 0), (["--no_flag"], 2)))
def test_help_and_wrong_flag_answer_before_keras_is_imported(
    script, argv, status
):
    seconds = []
    for _ in range(3):  # The best of three: others use the machine, too.
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", script, *argv],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds.append(time.perf_counter() - start)
        if seconds[-1] < 1:
            break
    imported = {
        line.split("|")[-1].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "capsnet.cli.options" in imported
    assert not imported & {"keras", "tensorflow", "numpy", "matplotlib"}
    assert done.returncode == status
    assert ("--lam_recon" in done.stdout) == (status == 0)
    assert ("--no_flag" in done.stderr) == (status == 2)
    assert min(seconds) < 1


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("--epoch 3", "--epochs"),
        ("--batch-size 3", "--batch_size"),
        ("--digits 5", "--digit"),
        ("--qqqqqqqq", None),
    ],
)
def test_unknown_flag_suggests_a_known_one(wrong, meant, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_args(wrong.split())
    message = capsys.readouterr().err
    assert exit_.value.code == 2 and "-h lists the flags" in message
    assert message.count("\n") == 1
    if meant is None:
        assert "did you mean" not in message
    else:
        assert f"did you mean {meant}?" in message


def test_backend_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as exit_:
        parse_args([])
    assert exit_.value.code == 2
    assert "pip install jax" in capsys.readouterr().err


def test_record_names_a_path_that_holds_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = parse_args(["--dataset", "pictures"])
    assert flags_of(args)["dataset"] == str(tmp_path / "pictures")
    # The shell leaves the ~ of --dataset=~/pictures as it is.
    monkeypatch.setenv("HOME", str(tmp_path))
    args = parse_args(["--dataset=~/pictures"])
    assert flags_of(args)["dataset"] == str(tmp_path / "pictures")
    args = parse_args(["--dataset", "digits"])
    assert flags_of(args)["dataset"] == "digits"
    (tmp_path / "model.keras").touch()
    args = parse_args(["-t", "-w", "model.keras"])
    assert flags_of(args)["dataset"] is None
