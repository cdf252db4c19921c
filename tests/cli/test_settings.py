"""Tests of the seam: a command line becomes values and objects."""

import ast
import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from capsnet.cli import settings, telling
from capsnet.cli.checks import RANGES, parse_args
from capsnet.cli.resuming import NAMED_DATASETS
from capsnet.data.augment import Affine, Photo, Shift
from capsnet.data.sources import BUILT_IN
from capsnet.models.networks import Network

ROOT = Path(__file__).parents[2]


def read(line):
    return settings.read(parse_args(line.split()))


def test_training_has_the_values_of_its_flags():
    task = read(
        "--dataset digits --epochs 7 --lr 0.1 --image_size 20 30 --grayscale "
        "-r 2 --val_fraction 0.2 --class_weight balanced --seed 3"
    )
    assert isinstance(task, settings.Training)
    assert (task.dataset, task.seed, task.val_fraction) == ("digits", 3, 0.2)
    assert (task.balanced, task.weights, task.recipe) == (True, None, {})
    assert task.network == Network(routing="dynamic", routings=2)
    bias = {"capsule_bias": 0.1, "primary_scale": 1 / 32}
    paper = read("--recipe paper").network
    assert paper == Network("capsnet", "dynamic", 3, "authors", **bias)
    small = read("--model efficient").network
    assert small == Network("efficient", "attention")
    assert task.pictures == {
        **{"image_size": (20, 30), "grayscale": True},
        **{"test_fraction": None, "skip_unreadable": False},
    }
    expected = {"epochs": 7, "lr": 0.1, "lr_decay": 0.9, "resumed": None}
    assert expected.items() <= task.arguments.items()
    assert task.flags["epochs"] == 7 and "given" not in task.flags
    again = ["--resume", "--save_dir", "result"]
    assert task.again == ["capsulenet.py", *again]
    several = settings.read(parse_args(["--gpus", "2"], multi_gpu=True))
    again = ["capsulenet-multi-gpu.py", *again, "--gpus", 2]
    assert several.again == again
    # What a record does not tell a continuation.
    assert read("--debug --epochs 7 --dataset digits").again[4:] == ["--debug"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.seed = 4


@pytest.mark.parametrize(
    "words, expected",
    (
        ("", Shift(0.1)),
        ("--shift_fraction 0.2", Shift(0.2)),
        ("--augment none", Shift(0.0)),
        ("--augment affine", Affine(15.0, 0.12, 0.15, 0.1)),
        (
            "--augment affine --rotation 1 --scale 0.2 --shear 0.3 "
            "--shift_fraction 0.4",
            Affine(1.0, 0.2, 0.3, 0.4),
        ),
        ("--augment photo --colour 0.5", Photo(15.0, 0.12, 0.15, 0.1, 0.5)),
    ),
)
def test_augmentation_is_an_object_with_the_ranges_of_its_flags(
    words, expected
):
    assert read(words).arguments["augment"] == expected
    task = read(f"{words} --show_augment --image_size 20 30 --seed 3")
    assert isinstance(task, settings.Showing)
    assert (task.augment, task.dataset) == (expected, "mnist")
    assert (task.seed, task.save_dir) == (3, "result")
    assert task.pictures["image_size"] == (20, 30)


def test_ranges_of_the_flags_are_the_fields_of_the_augmentations():
    for kind, augmentation in settings.AUGMENTATIONS.items():
        fields = {field.name for field in dataclasses.fields(augmentation)}
        assert fields == RANGES[kind]
        defaults = vars(parse_args([]))
        assert vars(augmentation()).items() <= defaults.items()


@pytest.mark.parametrize(
    "words, shape, n_class, expected",
    (
        ("", (28, 28, 1), 10, 0.392),
        ("--lam_recon classic", (32, 32, 3), 5, 1.536),
        ("--lam_recon authors", (28, 28, 1), 10, 7.84),
        ("--recipe paper", (32, 32, 3), 5, 15.36),
        ("--recipe paper --lam_recon 0.25", (28, 28, 1), 10, 0.25),
        ("--lam_recon 0", (28, 28, 1), 10, 0),
    ),
)
def test_weight_of_the_reconstruction_is_a_number(
    words, shape, n_class, expected
):
    task = read(words)
    assert task.lam_recon(shape, n_class) == pytest.approx(expected)
    assert task.network.decoder == (expected != 0)


@pytest.mark.parametrize(
    "words, resumed, pictures, replicas, expected",
    (
        ("", None, 60000, 1, (100, 100)),
        ("", None, 40, 1, (10, 100)),
        ("", None, 3000, 2, (60, 200)),
        ("--recipe paper", None, 3000, 1, (30, 128)),
        ("--batch_size 64", None, 40, 1, (64, 64)),
        ("", {"batch_size": 30}, 40, 1, (30, 30)),
        # A run of before, which recorded none, keeps its flag.
        ("", {}, 40, 1, (100, 100)),
    ),
)
def test_small_sets_have_small_batches_unless_the_size_is_known(
    words, resumed, pictures, replicas, expected
):
    args = parse_args(words.split())
    args.resumed, args.resume = resumed, resumed is not None
    task = settings.read(args)
    assert task.batch_size(pictures, replicas) == expected


@pytest.mark.parametrize(
    "resumed, expected",
    # A run of before recorded none, and kept what was asked for.
    ((None, 0.75), ({"ema": 0.5}, 0.5), ({}, 0.999)),
)
def test_momentum_is_bounded_once_for_a_run(resumed, expected):
    args = parse_args(["--ema", "0.999"])
    args.resumed = resumed
    assert settings.read(args).ema(steps=40) == expected


@pytest.mark.parametrize(
    "flags, expected",
    (
        ("", "Learning rate 0.001, in the last step 0.00081"),
        (
            "--lr_decay_steps 6 --warmup .5",
            "Learning rate 0.000333, in step 3 0.000965, in the last step "
            f"{0.001 * 0.9 ** (11 / 6):.3g}",
        ),
        (
            "--lr_schedule cosine --warmup 3",
            "Learning rate 7.69e-05, in step 12 0.000923, in the last step "
            "0.000923",
        ),
    ),
)
def test_rates_that_are_told_are_those_of_the_steps(capsys, flags, expected):
    task = read(f"--epochs 3 --ema 0.3 {flags}")
    telling.tell_steps(task, 4, {"ema": task.ema(12)})
    lines = capsys.readouterr().out.splitlines()
    memory = "momentum 0.166667, not 0.3: a memory of 1 step, of 12"
    assert lines == [expected, f"Averaged weights: {memory}"]


def test_last_batch_is_a_step_whatever_is_left_for_it(capsys):
    data = SimpleNamespace(x_train=range(41))
    assert telling.tell_choices(read(""), data, None, replicas=1) == 10
    expected = "Batches of 10, not 100, for 41 training pictures: 5 steps an"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "word, expected", (("auto", "auto"), ("on", True), ("off", False))
)
def test_words_for_compilation_are_those_of_keras(here, word, expected):
    training = read(f"--jit_compile {word}")
    assert training.jit_compile is expected
    assert training.arguments["jit_compile"] is expected
    testing = read(f"-t -w m.keras --jit_compile {word}")
    assert testing.asked == {"jit_compile": expected}


def test_compiling_a_direct_convolution_on_a_cpu_is_warned_of(
    monkeypatch, capsys
):
    monkeypatch.setattr(telling, "runs_on_cpu", lambda: True)
    for flags, warned in (
        ("--conv direct", True),
        ("--conv fast", False),
        ("--dtype_policy mixed_bfloat16", True),
    ):
        telling.tell_compilation(read(f"--jit_compile on {flags}"))
        assert ("twenty times slower" in capsys.readouterr().out) is warned


def test_testing_asks_for_what_was_given_alone(here):
    task = read("-t -w m.keras n.keras --save_dir new")
    assert isinstance(task, settings.Testing)
    assert (task.weights, task.save_dir) == (["m.keras", "n.keras"], "new")
    assert (task.asked, task.digit, task.affine) == ({}, None, False)
    task = read("-t --affine -w m.keras")
    assert (task.asked, task.affine) == ({}, True)
    task = read("--digit 5 -w m.keras --dataset own --seed 0 -r 3 --grayscale")
    assert (task.digit, task.save_dir, task.seed) == ("5", "result", 0)
    assert task.asked == {
        **{"dataset": str(here / "own"), "seed": 0},
        **{"routings": 3, "grayscale": True},
    }


def test_page_asks_for_what_was_given_alone(here):
    task = read("--explore -w m.keras --dataset own --grayscale")
    assert isinstance(task, settings.Exploring)
    assert (task.weights, task.save_dir) == (["m.keras"], "result")
    assert task.asked == {"dataset": str(here / "own"), "grayscale": True}


def test_prediction_and_export_write_where_they_are_told(here):
    task = read("--predict a.png -w m.keras --skip_unreadable")
    assert isinstance(task, settings.Prediction)
    assert (task.paths, task.skip_unreadable) == (["a.png"], True)
    assert task.save_dir is None
    assert read("--predict a.png -w m.keras --save_dir s").save_dir == "s"
    task = read("--export new -w m.keras")
    assert isinstance(task, settings.Export)
    assert (task.target, task.save_dir) == ("new", None)


@pytest.mark.parametrize(
    "flags, is_saved",
    (("--lr 0.1", True), ("--lr 0.2", False), ("--resume", True)),
)
def test_advice_after_ctrl_c_is_not_about_an_older_run(
    started, here, flags, is_saved
):
    folder = str(here / "run")
    started("--lr", "0.1", save_dir=folder)
    message = telling.interrupted(read(f"{flags} --save_dir {folder}"))
    assert ("nothing is saved yet" in message) != is_saved
    assert ("--resume --save_dir" in message) == is_saved


def test_named_data_sets_are_those_that_there_are():
    assert NAMED_DATASETS == BUILT_IN


def test_namespace_ends_at_the_seam():
    files = [ROOT / "capsulelayers.py", ROOT / "utils.py"]
    files += (ROOT / "capsnet").rglob("*.py")
    seen = 0
    for path in files:
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.Lambda):
                every = ast.walk(node.args)
                names = {a.arg for a in every if isinstance(a, ast.arg)}
                if node.args.vararg:  # `*args` is no namespace.
                    names.discard(node.args.vararg.arg)
                assert "args" not in names, f"{path}:{node.lineno}"
                seen += 1
            assert not (isinstance(node, ast.Name) and node.id == "argparse")
    assert seen > 100
