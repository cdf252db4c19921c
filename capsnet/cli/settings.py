"""The seam: parsed flags become what the rooms below take.

Nothing else reads argparse's namespace once it is checked. `read` returns
one of four frozen dataclasses, with objects and numbers in place of the
flags' words.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

from capsnet.cli.checks import TASKS, flags_of
from capsnet.data.batches import choose_batch_size
from capsnet.models.networks import Network
from capsnet.training.recipes import DEFAULT_BATCH_SIZE

# Weight of the sum of squared errors against Eq. 4 (section 4.1).
RECONSTRUCTION = 0.0005
JIT = {"auto": "auto", "on": True, "off": False}
# Arguments of `sources.load`, and of `capsulenet.train`, named as the flags.
PICTURES = ("image_size", "grayscale", "test_fraction", "skip_unreadable")
TRAINING = (
    "epochs lr lr_decay lr_decay_steps shift_fraction ema seed debug "
    "steps_per_execution"
).split()


@dataclasses.dataclass(frozen=True)
class Task:
    """What every task has.

    Args:
        weights: List of files after -w, or `None`.
        save_dir: Folder for what is written, or `None` for nothing.
        seed: Integer.
        dtype_policy: Keras's name of the precision.
        jit_compile: `"auto"`, `True` or `False`, as in `Model.compile`.
    """

    weights: list | None
    save_dir: str | None
    seed: int
    dtype_policy: str
    jit_compile: bool | str


@dataclasses.dataclass(frozen=True)
class Training(Task):
    """A training, from `weights` where they are given.

    Args:
        dataset: Name or path for `sources.load`, `pictures` its arguments.
        val_fraction: Float, the part that is held out.
        network: A `Network`.
        lam_recon: Function of the pictures' shape and the number of classes:
            the weight of the mean squared error of the reconstruction.
        balanced: Whether rare classes count more.
        batch_size: Function of the numbers of training pictures and devices:
            the size of a batch, and the larger one that it was lowered from.
        arguments: Dictionary, further arguments of `capsulenet.train`.
        flags: Dictionary, all flags, for the record.
        recipe: Dictionary of what the recipe sets.
        resumed: State of the checkpoint to go on from, or `None`.
        again: The flags that go on with the run.
    """

    dataset: str
    pictures: dict
    val_fraction: float
    network: Network
    lam_recon: Callable
    balanced: bool
    batch_size: Callable
    arguments: dict
    flags: dict
    recipe: dict
    resumed: dict | None
    again: list


@dataclasses.dataclass(frozen=True)
class Testing(Task):
    """A test of the models in `weights`.

    Args:
        digit: Name or number of the class to draw, or `None`.
        asked: Dictionary of the flags that the user gave; all else is as in
            training.
    """

    digit: str | None
    asked: dict


@dataclasses.dataclass(frozen=True)
class Prediction(Task):
    """What the models in `weights` take the pictures in `paths` for."""

    paths: list
    skip_unreadable: bool


@dataclasses.dataclass(frozen=True)
class Export(Task):
    """The model in `weights`, to be written to `target`."""

    target: str


def read(args):
    """The task that checked flags describe, one of the classes above."""
    common = {
        "weights": args.weights,
        "save_dir": args.save_dir,
        "seed": args.seed,
        "dtype_policy": args.dtype_policy,
        "jit_compile": JIT[args.jit_compile],
    }
    flags = flags_of(args)
    if args.task == "-t":
        asked = {name: flags[name] for name in args.given - TASKS}
        asked |= {"jit_compile": common["jit_compile"]}
        return Testing(**common, digit=args.digit, asked=asked)
    if args.task is None:
        return read_training(args, flags, common)
    if "save_dir" not in args.given:
        common["save_dir"] = None
    if args.task == "--export":
        return Export(**common, target=args.export)
    return Prediction(
        **common, paths=args.predict, skip_unreadable=args.skip_unreadable
    )


def read_training(args, flags, common):
    """The `Training` of checked flags; `flags` are those for its record."""
    again = ["--resume", "--save_dir", args.save_dir]
    for name in sorted({"gpus", "device"} & args.given):
        again += [f"--{name}", flags[name]]
    pictures = {name: flags[name] for name in PICTURES}
    pictures["image_size"] = args.image_size and tuple(args.image_size)
    return Training(
        **common,
        dataset=args.dataset,
        pictures=pictures,
        val_fraction=args.val_fraction,
        network=Network.of(flags),
        lam_recon=functools.partial(reconstruction_weight, args.lam_recon),
        balanced=args.class_weight == "balanced",
        batch_size=functools.partial(
            batch_size,
            args.batch_size,
            "batch_size" in args.given,
            args.resumed,
        ),
        arguments={name: flags[name] for name in TRAINING},
        flags=flags,
        recipe=args.recipe_sets,
        resumed=args.resumed,
        again=again,
    )


def batch_size(flag, is_given, resumed, pictures, replicas):
    """The size of a batch, and the larger one that it was lowered from.

    What is given holds, and a resumed run keeps its own.
    """
    most = flag or DEFAULT_BATCH_SIZE * replicas
    if resumed:
        size = resumed.get("batch_size", most)
        return size, size
    if is_given:
        return most, most
    return choose_batch_size(most, pictures, replicas), most


def reconstruction_weight(lam_recon, input_shape, n_class):
    """The weight of the mean squared error, from `--lam_recon`.

    The paper adds 0.0005 x the *sum* of squared errors to Eq. 4. The
    authors' code also halves Eq. 4 and averages it over the classes, so that
    against Eq. 4 it weighs 2 x n_class times more.
    """
    if lam_recon == "classic":
        return RECONSTRUCTION * math.prod(input_shape)
    if lam_recon == "authors":
        return RECONSTRUCTION * math.prod(input_shape) * 2 * n_class
    return lam_recon
