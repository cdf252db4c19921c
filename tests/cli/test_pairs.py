"""What a command line may say of pairs. Nothing here imports Keras."""

import pytest

from capsnet.cli.checks import flags_of, parse_args
from capsnet.training.recipes import RECIPES

PAIRS = ("--dataset", "pairs:digits")


@pytest.mark.parametrize(
    "words",
    (
        "--augment shift",
        "--augment affine",
        "--augment none",
        "--shift_fraction 0.1",
        "--augment photo --rotation 3",
        "--class_weight balanced",
        "--show_augment",
    ),
)
def test_pairs_have_shifts_and_no_class_weights(error_of, started, words):
    message = error_of(*PAIRS, *words.split())
    assert message.split(": ")[1].split()[0] in words.split()
    assert "pairs:" in message and "leave it out" in message
    resume = started(*PAIRS)
    message = error_of(*resume, *words.split())
    assert "leave" in message or "--resume has no effect" in message
    args = parse_args(list(PAIRS))
    assert (args.dataset, args.augment) == ("pairs:digits", "shift")
    assert parse_args(resume).dataset == "pairs:digits"


def test_recipe_paper_has_the_papers_schedule_for_pairs():
    for dataset, steps in (("pairs:digits", 20_000), ("digits", 2000)):
        argv = "--recipe", "paper", "--dataset", dataset
        args = parse_args(list(argv))
        assert (args.lr_decay, args.lr_decay_steps) == (0.96, steps)
        assert args.recipe_sets["lr_decay_steps"] == steps
        args = parse_args([*argv, "--lr_decay_steps", "7"])
        assert args.lr_decay_steps == 7
    args = parse_args(list(PAIRS))
    assert (args.lr_decay, args.lr_decay_steps) == (0.9, 0)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_takes_pairs(recipe):
    """What moves single pictures is not among what it sets."""
    args = parse_args(["--dataset", "pairs:digits", "--recipe", recipe])
    assert args.recipe == recipe and "augment" not in args.recipe_sets


def test_resumed_run_keeps_the_schedule_of_its_recipe(started):
    resume = started("--recipe", "paper", *PAIRS)
    assert parse_args(resume).lr_decay_steps == 20_000
    args = parse_args([*resume, "--recipe", "paper"])
    assert args.lr_decay_steps == args.recipe_sets["lr_decay_steps"] == 20_000


def test_record_names_a_path_of_pairs_that_holds_in_every_folder(here):
    for name, expected in (
        ("pairs:own.npz", f"pairs:{here / 'own.npz'}"),
        ("pairs:mnist", "pairs:mnist"),
    ):
        assert flags_of(parse_args(["--dataset", name]))["dataset"] == expected


def test_seed_of_a_test_draws_digits_only(here, error_of):
    argv = "-t -w m.keras --seed 3 --dataset".split()
    assert parse_args([*argv, "pairs:digits"]).seed == 3
    assert "--seed has no effect with -t" in error_of(*argv, "pairs:mnist")
