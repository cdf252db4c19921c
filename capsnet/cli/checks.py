"""What a command line may say: parsed, and refused where flags exclude each
other, have no effect, or name what is not there."""

import argparse
import gc
import importlib.util
import math
import os
import signal
import sys
import time

from capsnet.cli import hosts
from capsnet.cli.options import GEOMETRY, build_parser
from capsnet.cli.paths import check_export, check_paths, check_weights
from capsnet.cli.resuming import NOT_FLAGS, recorded_value, restore_flags
from capsnet.files import PAIRS
from capsnet.messages import (
    HUSH,
    UserError,
    backend,
    fail,
    keras_json,
    outlive_reader,
)
from capsnet.training.recipes import OF_PAIRS, RECIPES

# What decides about a network: needed where weights come without one.
OF_PAPER = {*GEOMETRY, "capsule_bias", "primary_scale"}
STRUCTURE = OF_PAPER | {"model", "routing", "routings", "conv", "lam_recon"}
USUAL_ROUTING = {"efficient": "attention"}
# What has no effect on a network without capsules.
OF_CAPSULES = (STRUCTURE | {"init", "digit", "explore"}) - {"model", "conv"}
# The ranges of each kind of augmentation.
OF_AFFINE = {"rotation", "scale", "shear", "shift_fraction"}
RANGES = {
    "shift": {"shift_fraction"},
    "affine": OF_AFFINE,
    "photo": {"colour", *OF_AFFINE},
    "none": set(),
}
# What decides about the training pictures, read and changed.
PICTURES = {"dataset", "image_size", "grayscale", "test_fraction"}
PICTURES |= {"skip_unreadable", "augment", *RANGES["photo"]}
# The flags that have an effect, for each task but training.
OF_TEST = {"weights", "save_dir", "skip_unreadable", "dataset"}
OF_TEST |= {"image_size", "grayscale", "test_fraction", "seed", "routings"}
OF_TEST |= {"conv", "dtype_policy", "jit_compile", "invert"}
OF_PREDICT = {"predict", "weights", "save_dir", "skip_unreadable", "invert"}
EFFECTIVE = {
    "-t": {"testing", "affine", *OF_TEST},
    "--digit": {"testing", "digit", "picture", *OF_TEST},
    "--explore": {"explore", *OF_TEST},
    "--predict": OF_PREDICT,
    "--export": {"export", "weights"},
    "--show_augment": {"show_augment", "save_dir", "seed", "recipe", *PICTURES},
}
BACKENDS = ("tensorflow", "jax", "torch")
# What else Keras takes from its settings; here it changes nothing.
KERAS_JSON = {
    "floatx": ("float32", "float16", "float64"),
    "image_data_format": ("channels_last", "channels_first"),
}
OLDEST_PYTHON = (3, 11)


def start(description, multi_gpu=False):
    """Parses a script's command line, before it imports what takes seconds.

    Meanwhile Ctrl-C ends the process with one line and status 130, whatever
    the libraries make of it while they are imported. What TensorFlow's C++
    prints then is kept from the screen, and what it logs later.
    """
    if sys.version_info < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        found = sys.version.split()[0]
        sys.exit(fail(f"expected Python {needed} or newer, got {found}", 2))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    # Errors reach the user as exceptions; what remains are notes, and a
    # line on each device that is not there.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    outlive_reader()
    args = parse_args(description=description, multi_gpu=multi_gpu)
    # The libraries' million objects stay: to look through them for garbage
    # again and again, and at the end, takes a quarter of a short command.
    gc.disable()
    HUSH.begin()
    return args


def end(*_):
    """Ends the process, whatever a library would make of an exception."""
    os._exit(fail("interrupted", 130))


def started():
    """Ends what `start` began: the libraries are there.

    Ctrl-C is a `KeyboardInterrupt` again, but one a second: a second one would
    break off the cleaning up.
    """
    last = -math.inf

    def interrupt(*_):
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, interrupt)
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    HUSH.end()


def parse_args(argv=None, description="", multi_gpu=False):
    """Parses and checks a command line.

    Args:
        argv: List of strings, `sys.argv[1:]` by default.
        description: Text above the list of flags.
        multi_gpu: Whether `--gpus`, `--device` and `--hosts` exist.

    Returns:
        `argparse.Namespace` of all flags. `given` in it is the set of those
        that the user named, `recipe_sets` a dictionary of those that the
        recipe set, `resumed` the state of the checkpoint to go on from, or
        `None`, `task` a key of `EFFECTIVE`, or `None` for training, and
        `group` the processes that train together, or `None`.

    Raises:
        SystemExit: With status 2 and one line for wrong flags.
    """
    parser = build_parser(description, multi_gpu)
    try:
        return checked(*parser.parse(argv))
    except UserError as error:
        parser.error(str(error))


def checked(defaults, given):
    """The namespace of `parse_args`, from what `Parser.parse` returns."""
    name = given.get("recipe", "classic")
    recipe = RECIPES[name]
    if (given.get("dataset") or "").startswith(PAIRS):
        recipe = {**recipe, **OF_PAIRS.get(name, {})}
    args = argparse.Namespace(**{**defaults, **recipe, **given})
    args.given, args.resumed, args.task = set(given), None, task_of(args)
    check_backend()
    if args.task is None and args.resume:
        restore_flags(args, defaults)
    if args.routing is None:
        args.routing = USUAL_ROUTING.get(args.model, "dynamic")
    idle = refuse_idle(args)
    args.group = hosts.find(args) if "hosts" in defaults else None
    args.recipe_sets = {
        # A resumed run has what its recipe set for its data.
        name: getattr(args, name)
        for name in recipe
        if name not in given and name not in idle
    }
    if args.task is None:
        check_training(args)
    elif "weights" in EFFECTIVE[args.task]:
        check_weights(args, args.task)
    if args.dataset is None and args.task in (None, "--show_augment"):
        args.dataset = "mnist"
    if args.export is not None:
        check_export(args)
    check_paths(args)
    return args


def task_of(args):
    """What is to be done: a key of `EFFECTIVE`, or `None` for training."""
    asked = {
        "-t": args.testing and args.digit is None,
        "--digit": args.digit is not None,
        "--explore": args.explore,
        "--predict": args.predict is not None,
        "--export": args.export is not None,
        "--show_augment": args.show_augment,
    }
    tasks = [task for task, is_asked in asked.items() if is_asked]
    if len(tasks) > 1:
        raise UserError(f"{' and '.join(tasks)} exclude each other: choose one")
    return tasks[0] if tasks else None


def refuse_idle(args):
    """Returns `idle_flags`; raises `UserError` where one of them is given."""
    idle = idle_flags(args)
    for name in sorted(args.given & idle.keys()):
        raise UserError(f"--{name} {idle[name]}: leave it out")
    return idle


def idle_flags(args):
    """The flags without effect: a dictionary of the reasons."""
    idle = idle_of_training(args) if args.task is None else idle_of_task(args)
    if args.model == "baseline":
        why = "is for capsules, and --model baseline has none"
        idle |= dict.fromkeys(OF_CAPSULES, why)
    elif args.model == "efficient":
        why = "is for --model capsnet; the small network has its own"
        idle |= dict.fromkeys(OF_PAPER | {"init"}, why)
    if args.routing == "attention":
        idle["routings"] = "is for rounds, and attention has none"
    if (args.dataset or "").startswith(PAIRS):
        why = f"has no effect on {PAIRS}, whose digits have shifts of their own"
        names = {"augment", "show_augment", *RANGES["photo"]}
        idle |= dict.fromkeys(names, why)
        why = "is for single pictures, not for pairs"
        idle |= dict.fromkeys(("class_weight", "affine"), why)
    others = RANGES["photo"] - RANGES[args.augment]
    why = f"has no effect with --augment {args.augment}"
    return dict.fromkeys(others, why) | idle


def idle_of_task(args):
    """The flags without effect on `args.task`."""
    task = args.task
    effective = EFFECTIVE[task]
    whole = all(path.endswith(".keras") for path in args.weights or ())
    is_test = OF_TEST <= effective
    if is_test and not whole:
        effective = effective | STRUCTURE
    drawn = (None, "digits", f"{PAIRS}digits")
    if task in ("-t", "--explore") and args.dataset not in drawn:
        effective = effective - {"seed"}  # There is nothing to draw.
    others = vars(args).keys() - effective
    idle = dict.fromkeys(others, f"has no effect with {task}")
    if is_test:
        why = "has no effect on a .keras file, which holds its network"
        idle |= dict.fromkeys(STRUCTURE - effective, why)
    return idle


def idle_of_training(args):
    """The flags without effect on any training, or on one with these."""
    idle = {
        "affine": "has no effect without -t",
        "picture": "has no effect without --digit",
        "invert": "has no effect without --predict or -t",
    }
    if args.weights is not None:
        idle["init"] = "has no effect with -w, which brings all weights"
    if args.lr_schedule == "cosine":
        why = "has no effect with --lr_schedule cosine"
        idle |= dict.fromkeys(("lr_decay", "lr_decay_steps"), why)
    return idle


def check_backend():
    """Raises `UserError` where Keras could not be imported."""
    name = backend()
    if name not in BACKENDS:
        expected = ", ".join(BACKENDS)
        raise UserError(f"KERAS_BACKEND expects {expected}, got {name!r}")
    check_package(name, f"KERAS_BACKEND={name}")
    file, found = keras_json()
    if not isinstance(found, dict):
        raise UserError(f"{file} expects an object {{}}; correct or remove it")
    for key, choices in KERAS_JSON.items():
        if found.get(key, choices[0]) not in choices:
            raise UserError(
                f"{file}: {key} expects {', '.join(choices)}, got "
                f"{found[key]!r}; correct it, or remove the file"
            )


def check_package(name, user):
    """Raises `UserError` unless a package is installed."""
    if importlib.util.find_spec(name) is None:
        raise UserError(f"{user} needs the package {name}: pip install {name}")


def check_training(args):
    """Raises `UserError` where a training cannot begin, or go on."""
    if args.weights is not None and not args.resume:
        check_weights(args, "-w")
        if len(args.weights) > 1:
            raise UserError("-w takes one file to start from; several need -t")
    if args.debug:
        check_package("tensorboard", "--debug")
    if args.warmup > args.epochs:
        raise UserError(
            f"--warmup expects at most the run's {args.epochs} epochs, got "
            f"{args.warmup:g}; lower it, or raise --epochs"
        )


def flags_of(args):
    """The flags of a run as plain values, for its record."""
    names = sorted(vars(args).keys() - NOT_FLAGS)
    return {name: recorded_value(args, name) for name in names}
