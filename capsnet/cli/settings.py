"""settings."""

import json
import os

from capsnet.cli.checks import check, check_backend, given_flags, is_training
from capsnet.cli.options import (
    FREE_ON_RESUME,
    NAMED_DATASETS,
    OF_CAPSULES,
    build_parser,
)
from capsnet.training.recipes import RECIPES


def parse_args(argv=None, description=None, multi_gpu=False):
    """Parses and checks the command line.

    Args:
        argv: List of strings, `sys.argv[1:]` by default.
        description: Text above the list of flags.
        multi_gpu: Whether `--gpus` and `--device` exist.

    Returns:
        `argparse.Namespace`. `given` in it is the set of flags that the user
        named; `recipe_sets` what the recipe set, for printing.

    Raises:
        SystemExit: With status 2 and one line for wrong flags.
    """
    parser = build_parser(description, multi_gpu)
    given = given_flags(parser, argv)
    recipe = given.get("recipe", "classic")
    parser.set_defaults(**RECIPES[recipe])
    args = parser.parse_args(argv)
    args.given = set(given)
    args.recipe_sets = {
        flag: value
        for flag, value in RECIPES[recipe].items()
        if flag not in given
        and not (args.model == "baseline" and flag in OF_CAPSULES)
    }
    if args.digit is not None:
        args.testing = True
    check(parser, args)
    check_backend(parser)
    if args.resume:
        restore_flags(parser, args)
    if args.dataset is None and is_training(args):
        args.dataset = "mnist"
    return args


def restore_flags(parser, args):
    """Takes the flags of the run in `save_dir`, refusing others."""
    path = os.path.join(args.save_dir, "checkpoint", "state.json")
    try:
        with open(path, encoding="utf-8") as file:
            recorded = dict(json.load(file)["flags"])
        recorded["epochs"] = int(recorded["epochs"])
    except FileNotFoundError:
        parser.error(
            f"--resume found no checkpoint in {args.save_dir!r}; start the "
            "run without --resume, or name its folder with --save_dir"
        )
    except Exception as error:  # Damaged JSON raises nearly anything.
        parser.error(f"--resume cannot read {path!r}: {error}")
    for name, value in recorded.items():
        if name in FREE_ON_RESUME or not hasattr(args, name):
            continue
        if name in args.given and recorded_value(args, name) != value:
            was = f"without --{name}"
            if value is not None:
                was = f"with --{name} {value}"
            parser.error(
                f"--resume: the run was started {was}, got "
                f"{getattr(args, name)}; leave the flag out, or start a new "
                "run in another --save_dir"
            )
        setattr(args, name, value)
    if "epochs" not in args.given:
        args.epochs = recorded["epochs"]
    if args.epochs < recorded["epochs"]:
        parser.error(
            f"--resume: the run was started with --epochs "
            f"{recorded['epochs']}, got {args.epochs}; it can only grow"
        )


def flags_of(args):
    """The flags of a run as plain values, for its record."""
    return {
        name: recorded_value(args, name)
        for name in sorted(vars(args))
        if name not in ("given", "recipe_sets")
    }


def recorded_value(args, name):
    """A flag's value for the record: a path holds in every folder."""
    value = getattr(args, name)
    if name == "dataset" and value and value not in NAMED_DATASETS:
        return os.path.abspath(os.path.expanduser(value))
    return value
