"""Tests of what a command line may say. None of them imports Keras."""

import importlib.util
import json
from pathlib import Path

import pytest

from capsnet.cli.checks import flags_of, parse_args
from capsnet.cli.options import build_parser
from capsnet.files import state_sha256

ROOT = Path(__file__).parents[2]
TASKS = {
    "-t": "-t -w m.keras",
    "--digit": "--digit 1 -w m.keras",
    "--explore": "--explore -w m.keras",
    "--predict": "--predict a.png -w m.keras",
    "--export": "--export new -w m.keras",
    "--show_augment": "--show_augment --augment photo",
}
# Which flags do something, with a whole model after -w.
PICTURES = {"dataset", "image_size", "grayscale", "test_fraction"}
TEST = PICTURES | {"routings", "conv", "dtype_policy", "jit_compile"}
TEST |= {"weights", "save_dir", "skip_unreadable", "seed", "invert"}
EFFECTIVE = {
    "-t": TEST | {"testing", "digit", "affine"},
    "--digit": TEST | {"testing", "digit", "picture"},
    "--explore": TEST | {"explore"},
    "--predict": {"predict", "weights", "save_dir", "skip_unreadable"}
    | {"invert"},
    "--export": {"export", "weights"},
    "--show_augment": PICTURES
    | {"skip_unreadable", "show_augment", "augment", "shift_fraction"}
    | {"rotation", "scale", "shear", "colour"}
    | {"recipe", "seed", "save_dir"},
}
GEOMETRY = {"conv_kernel", "conv_strides", "primary_kernel", "primary_strides"}
CAPSULES = GEOMETRY | {"capsule_bias", "primary_scale", "lam_recon", "routings"}
VALUES = {
    **{"test_fraction": [".5"], "ema": [".5"], "shift_fraction": [".5"]},
    **{"val_fraction": [".5"], "save_dir": ["new"]},
    **{"scale": [".5"], "shear": [".5"], "colour": [".5"]},
    **{"weights": ["m.keras"], "predict": ["a.png"], "image_size": ["9", "9"]},
    **{
        "hosts": ["a:1"],
        "digit": ["1"],
        "export": ["new"],
        "dataset": ["digits"],
    },
}


def words_of(action):
    """A flag with a value that it accepts."""
    value = VALUES.get(action.dest, [(action.choices or ["1"])[0]])
    return [action.option_strings[-1], *(value if action.nargs != 0 else [])]


@pytest.mark.parametrize("task", TASKS)
def test_each_flag_has_an_effect_or_is_refused_by_its_name(
    here, error_of, task
):
    for action in build_parser(multi_gpu=True)._actions:
        name = action.dest
        if name.startswith("help"):
            continue
        argv = [*TASKS[task].split(), *words_of(action)]
        if name in EFFECTIVE[task]:
            args = parse_args(argv, multi_gpu=True)
            assert name in args.given
            continue
        message = error_of(*argv, multi_gpu=True)
        if f"--{name}" in EFFECTIVE or name == "testing":
            assert f"--{name}".replace("--testing", "-t") in message
            assert task in message and "exclude each other" in message
        else:
            assert f"--{name} has no effect " in message
            assert task in message or ".keras file" in message
            assert "leave it out" in message


def test_weights_without_a_network_take_the_flags_that_describe_it(
    here, error_of
):
    for action in build_parser()._actions:
        if action.dest in CAPSULES | {"model"}:
            argv = ["-t", "-w", "m.keras", "w.h5", *words_of(action)]
            assert action.dest in parse_args(argv).given
            argv = ["--explore", "-w", "w.h5", *words_of(action)]
            assert action.dest in parse_args(argv).given
    for argv in (["--init", "glorot"], ["--recipe", "paper"]):
        assert argv[0] in error_of("-t", "-w", "w.h5", *argv)


def test_page_is_of_one_model(here, error_of):
    message = error_of(*"--explore -w m.keras n.keras".split())
    assert "--explore takes one model; name one file after -w" in message
    assert "-w FILE" in error_of("--explore")


def test_seed_without_anything_to_draw_is_refused(here, error_of):
    for task in ("-t", "--explore"):
        argv = f"{task} -w m.keras --seed 3 --dataset".split()
        assert parse_args([*argv, "digits"]).seed == 3
        message = error_of(*argv, "mnist")
        assert f"--seed has no effect with {task}" in message
    argv = "-t -w m.keras --seed 3 --dataset".split()
    assert parse_args([*argv, "mnist", "--digit", "1"]).seed == 3


def test_flags_of_capsules_are_refused_for_the_baseline(here, error_of):
    for action in build_parser()._actions:
        if action.dest in CAPSULES | {"init"}:
            message = error_of("--model", "baseline", *words_of(action))
            assert f"--{action.dest} is for capsules" in message
    for flag in ("--digit 1", "--explore"):
        message = error_of(*f"--model baseline {flag} -w w.h5".split())
        assert f"{flag.split()[0]} is for capsules" in message


RANGES = {
    "shift": ["shift_fraction"],
    "affine": ["rotation", "scale", "shear", "shift_fraction"],
    "photo": ["rotation", "scale", "shear", "shift_fraction", "colour"],
    "none": [],
}


@pytest.mark.parametrize("task", ([], ["--show_augment"]))
@pytest.mark.parametrize("kind", RANGES)
def test_ranges_that_a_kind_of_augmentation_lacks_are_refused(
    error_of, kind, task
):
    for name in RANGES["photo"]:
        argv = [*task, "--augment", kind, f"--{name}", "0.3"]
        if name in RANGES[kind]:
            assert vars(parse_args(argv))[name] == 0.3
        else:
            expected = f"--{name} has no effect with --augment {kind}: leave"
            assert expected in error_of(*argv)


def test_augmented_pictures_need_a_data_set_and_no_model(error_of):
    args = parse_args(["--show_augment"])
    assert (args.task, args.dataset) == ("--show_augment", "mnist")
    message = error_of("--show_augment", "-w", "m.keras")
    assert "--weights has no effect with --show_augment" in message


def test_affine_changes_are_refused_without_a_test(error_of, started):
    refused = "--affine has no effect without -t: leave it out"
    for argv in ([], started("--epochs", "5"), ["-w", "m.keras"]):
        assert refused in error_of(*argv, "--affine")
    argv = "-t -w m.keras --affine --dataset".split()
    assert parse_args([*argv, "mnist"]).affine
    refused = "--affine is for single pictures, not for pairs: leave it out"
    assert refused in error_of(*argv, "pairs:mnist")


def test_model_of_a_stopped_run_is_not_there_yet(error_of, started, here):
    message = error_of("-t", "-w", "run/trained_model.keras")
    assert "not there" in message and "--resume" not in message
    started("--epochs", "5")
    message = error_of("-t", "-w", "run/trained_model.keras")
    assert "not there" in message and "--resume finishes one" in message


def test_given_weights_leave_nothing_to_initialize(here, error_of):
    message = error_of("-w", "m.keras", "--init", "authors")
    assert "--init has no effect with -w" in message


def test_decay_is_refused_beside_a_cosine(here, error_of, started):
    resume = started("--lr_schedule", "cosine")
    for flag in ("--lr_decay 0.9", "--lr_decay_steps 0"):
        for argv in (["--lr_schedule", "cosine"], resume):
            message = error_of(*argv, *flag.split())
            assert f"{flag.split()[0]} has no effect with --lr_s" in message
        assert parse_args(flag.split()).lr_schedule == "step"
    args = parse_args(["--recipe", "paper", "--lr_schedule", "cosine"])
    assert not {"lr_decay", "lr_decay_steps"} & args.recipe_sets.keys()


def test_warm_up_ends_with_the_run(here, error_of, started):
    message = error_of("--warmup", "2.5", "--epochs", "2")
    assert "at most the run's 2 epochs, got 2.5" in message
    assert parse_args("--warmup 2 --epochs 2".split()).warmup == 2
    resume = started("--warmup", "3", "--epochs", "5")
    assert parse_args(resume).warmup == 3


def test_cosine_does_not_go_on_to_more_epochs(error_of, started):
    resume = started("--lr_schedule", "cosine", "--epochs", "5")
    assert parse_args([*resume, "--epochs", "5"]).lr_schedule == "cosine"
    message = error_of(*resume, "--epochs", "6")
    assert "with the run's 5 epochs, got --epochs 6" in message
    assert "-w" in message and "--save_dir" in message


def test_flag_that_an_older_run_does_not_know_is_refused(error_of, started):
    resume = started("--epochs", "5")
    state = Path(resume[-1], "checkpoint", "state.json")
    content = json.loads(state.read_text())
    del content["flags"]["warmup"]
    content["state_sha256"] = state_sha256(content)
    state.write_text(json.dumps(content))
    assert parse_args(resume).warmup == 0
    assert "with --warmup 0.0, got 2" in error_of(*resume, "--warmup", "2")


def test_recipe_paper_sets_what_the_authors_code_does(here):
    paper, classic = parse_args(["--recipe", "paper"]), parse_args([])
    changed = {
        name: value
        for name, value in flags_of(paper).items()
        if value != flags_of(classic)[name]
    }
    schedule = {"batch_size": 128, "lr_decay": 0.96, "lr_decay_steps": 2000}
    expected = schedule | {"lam_recon": "authors", "init": "authors"}
    expected |= {"capsule_bias": 0.1, "primary_scale": 0.03125}
    assert changed == {"recipe": "paper", **expected}
    assert (paper.recipe_sets, classic.recipe_sets) == (expected, {})
    # Where there are no capsules, or weights, it sets the rest.
    baseline = parse_args("--recipe paper --model baseline".split())
    assert baseline.recipe_sets == schedule
    started = parse_args("-w m.keras --recipe paper".split())
    del expected["init"]
    assert started.recipe_sets == expected
    # What is given goes before.
    for line in (
        "--recipe paper --batch_size 100",
        "--batch_size 100 --recipe paper",
    ):
        args = parse_args(line.split())
        assert (args.batch_size, args.lr_decay) == (100, 0.96)
        assert "batch_size" not in args.recipe_sets


def test_resume_takes_the_flags_of_the_run(started):
    resume = started("-r", "2", "--epochs", "5", "--dataset", "digits")
    same = ["-r", "2", "--epochs", "5", "--dataset", "digits"]
    for argv, epochs in (([], 5), (same, 5), (["--epochs", "8"], 8)):
        args = parse_args([*resume, *argv])
        assert (args.routings, args.dataset) == (2, "digits")
        assert (args.epochs, args.resume) == (epochs, True)
        assert args.save_dir == resume[-1]


def test_resume_of_a_run_from_before_a_flag_takes_its_default(
    started, error_of
):
    resume = started("--epochs", "5")
    state = Path(resume[-1], "checkpoint", "state.json")
    content = json.loads(state.read_text())
    for name in ("augment", "rotation", "scale", "shear", "colour"):
        del content["flags"][name]
    content["state_sha256"] = state_sha256(content)
    state.write_text(json.dumps(content))
    for argv in ([], ["--augment", "shift"]):
        assert parse_args([*resume, *argv]).augment == "shift"
    message = error_of(*resume, "--augment", "affine")
    assert "started with --augment shift, got affine" in message


def test_resume_takes_the_augmentation_of_the_run(started, error_of):
    resume = started("--augment", "affine", "--rotation", "30")
    for argv in ([], ["--rotation", "30"], ["--augment", "affine"]):
        args = parse_args([*resume, *argv])
        assert (args.augment, args.rotation) == ("affine", 30)
    assert "--rotation 30.0, got 20.0" in error_of(*resume, "--rotation", "20")
    # The run's own value, but of a range without effect.
    message = error_of(*resume, "--colour", "0.2")
    assert "--colour has no effect with --augment affine" in message


def test_resume_needs_no_file_that_the_run_started_from(started):
    resume = started("-r", "2", weights=["moved-since.keras"], lr_min=1e-6)
    assert parse_args(resume).weights == ["moved-since.keras"]


@pytest.mark.parametrize(
    "argv, expected",
    (
        ("-r 3", "--routings 2, got 3"),
        ("--batch_size 50", "--batch_size 40, got 50"),
        ("--seed 8", "--seed 7, got 8"),
        ("--conv_kernel 5", "without --conv_kernel, got 5"),
        ("--grayscale", "without --grayscale, got"),
        ("--recipe paper", "--recipe classic, got paper"),
        ("--augment photo", "--augment shift, got photo"),
        ("--epochs 4", "--epochs 5, got 4; it can only grow"),
        ("-w m.keras", "leave -w out"),
        ("-t -w m.keras", "--resume has no effect with -t"),
    ),
)
def test_resume_refuses_other_flags_by_name(started, error_of, argv, expected):
    flags = "-r 2 --epochs 5 --seed 7 --batch_size 40 --dataset digits"
    message = error_of(*started(*flags.split()), *argv.split())
    assert expected in message and "--resume" in message


def test_backend_has_to_be_known_and_installed(monkeypatch, error_of):
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    assert "expects tensorflow, jax, torch, got 'theano'" in error_of()
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install jax" in error_of()


def test_record_names_a_path_that_holds_in_every_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    # The shell leaves the ~ of --dataset=~/pictures as it is.
    for argv in (["--dataset", "pictures"], ["--dataset=~/pictures"]):
        assert flags_of(parse_args(argv))["dataset"] == str(here / "pictures")
    assert flags_of(parse_args([]))["dataset"] == "mnist"
