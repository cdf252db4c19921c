"""What a command line may say: parsed, and refused where flags exclude each
other, have no effect, or name what is not there."""

import argparse
import importlib.util
import os
import signal
import sys

from capsnet.cli.options import GEOMETRY, MODEL_EXAMPLE, build_parser
from capsnet.files import read_state
from capsnet.messages import UserError, backend, fail, outlive_reader
from capsnet.training.recipes import RECIPES

# Data sets that are no files.
NAMED_DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
# What users may expect of --export, which would become a folder's name.
OTHER_FORMATS = (".onnx", ".tflite", ".h5", ".pb", ".pt")
# What decides about a network: needed where weights come without one.
STRUCTURE = {*GEOMETRY, "model", "routings", "capsule_bias", "primary_scale"}
STRUCTURE |= {"conv", "lam_recon"}
# What has no effect on a network without capsules.
OF_CAPSULES = (STRUCTURE | {"init"}) - {"model", "conv"}
# The flags that have an effect, for each task but training.
PICTURES = {"dataset", "image_size", "grayscale", "test_fraction", "seed"}
COMPUTING = {"routings", "conv", "dtype_policy", "jit_compile"}
EFFECTIVE = {
    "-t": {"weights", "save_dir", "skip_unreadable", *PICTURES, *COMPUTING},
    "--predict": {"weights", "save_dir", "skip_unreadable"},
    "--export": {"weights"},
}
TASKS = {"testing", "digit", "predict", "export"}
# What may differ between a run and its continuation.
FREE_ON_RESUME = {"resume", "save_dir", "epochs", "debug", "gpus", "device"}
# What `parse_args` adds to the flags.
NOT_FLAGS = ("given", "recipe_sets", "resumed", "task")
OLDEST_PYTHON = (3, 11)


def start(description, multi_gpu=False):
    """Parses a script's command line, before it imports what takes seconds.

    Meanwhile Ctrl-C ends the process with one line and status 130, whatever
    the libraries make of it while they are imported.
    """
    if sys.version_info < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        found = sys.version.split()[0]
        sys.exit(fail(f"expected Python {needed} or newer, got {found}", 2))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, lambda *_: os._exit(fail("interrupted", 130))
        )
    # Hides TensorFlow's notes in the middle of a training; its errors, and
    # what it says when it is imported, are shown.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    args = parse_args(description=description, multi_gpu=multi_gpu)
    outlive_reader()
    return args


def started():
    """Ctrl-C is a `KeyboardInterrupt` again: the libraries are there."""
    if signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, None):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def parse_args(argv=None, description="", multi_gpu=False):
    """Parses and checks a command line.

    Args:
        argv: List of strings, `sys.argv[1:]` by default.
        description: Text above the list of flags.
        multi_gpu: Whether `--gpus` and `--device` exist.

    Returns:
        `argparse.Namespace` of all flags. `given` in it is the set of those
        that the user named, `recipe_sets` a dictionary of those that the
        recipe set, `resumed` the state of the checkpoint to go on from, or
        `None`, and `task` a key of `EFFECTIVE`, or `None` for training.

    Raises:
        SystemExit: With status 2 and one line for wrong flags.
    """
    parser = build_parser(description, multi_gpu)
    defaults, given = parser.parse(argv)
    recipe = RECIPES[given.get("recipe", "classic")]
    args = argparse.Namespace(**{**defaults, **recipe, **given})
    args.given, args.resumed = set(given), None
    args.task = task_of(parser, args)
    args.recipe_sets = {
        flag: value
        for flag, value in recipe.items()
        if flag not in given
        and not (args.model == "baseline" and flag in OF_CAPSULES)
    }
    check_effect(parser, args)
    check_backend(parser)
    if args.task is None:
        check_training(parser, args)
    else:
        check_weights(parser, args, args.task)
    if args.export is not None:
        check_export(parser, args)
    for path in args.predict or ():
        if not os.path.exists(path):
            parser.error(
                "--predict expects pictures or folders of pictures, got "
                f"{path!r}, which is not there"
            )
    if os.path.exists(args.save_dir) and not os.path.isdir(args.save_dir):
        parser.error(f"--save_dir expects a folder, got {args.save_dir!r}")
    return args


def task_of(parser, args):
    """What is to be done: a key of `EFFECTIVE`, or `None` for training."""
    asked = {
        "-t": args.testing or args.digit is not None,
        "--predict": args.predict is not None,
        "--export": args.export is not None,
    }
    tasks = [flag for flag, is_asked in asked.items() if is_asked]
    if len(tasks) > 1:
        parser.error(f"{' and '.join(tasks)} exclude each other: choose one")
    return tasks[0] if tasks else None


def check_effect(parser, args):
    """Refuses a flag that would have no effect, by its name."""
    if args.model == "baseline":
        for name in sorted(args.given & {*OF_CAPSULES, "digit"}):
            parser.error(f"--{name} is for capsules: --model baseline has none")
    task = args.task
    if task is None:
        return
    effective = EFFECTIVE[task] | TASKS
    whole = all(path.endswith(".keras") for path in args.weights or ())
    if task == "-t" and not whole:
        effective |= STRUCTURE
    for name in sorted(args.given - effective):
        why = "has no effect"
        if name in STRUCTURE and task == "-t":
            why = "has no effect on a .keras file, which holds its network"
        parser.error(f"--{name} {why} with {task}: leave it out")


def check_backend(parser):
    """Ends with status 2 where the chosen backend is not installed."""
    name = backend()
    known = name in ("tensorflow", "jax", "torch")
    if known and importlib.util.find_spec(name) is None:
        parser.error(
            f"KERAS_BACKEND is {name}, which needs the package {name}: pip "
            f"install {name}"
        )


def check_training(parser, args):
    """Ends with status 2 where a training cannot begin, or go on."""
    if args.resume and "weights" in args.given:
        parser.error("--resume starts from its checkpoint: leave -w out")
    if len(args.weights or ()) > 1:
        parser.error("-w takes one file to start from; several need -t")
    if args.weights is not None:
        check_weights(parser, args, "-w")
    if args.debug and importlib.util.find_spec("tensorboard") is None:
        parser.error(
            "--debug needs the package tensorboard: pip install tensorboard"
        )
    if args.resume:
        restore_flags(parser, args)
    if args.dataset is None:
        args.dataset = "mnist"


def check_weights(parser, args, task):
    """Ends with status 2 unless -w names files that the task can use."""
    if args.weights is None:
        parser.error(
            f"{task if args.digit is None else '--digit'} needs a model: -w "
            f"FILE, for instance -w {MODEL_EXAMPLE}"
        )
    suffixes = (".keras", ".h5") if task in ("-t", "-w") else (".keras",)
    for path in args.weights:
        if os.path.isfile(path) and path.endswith(suffixes):
            continue
        expected = f"a {' or '.join(suffixes)} file"
        if task not in ("-t", "-w"):
            expected = "a whole model, a .keras file,"
        reason = "not there" if not os.path.exists(path) else "something else"
        parser.error(
            f"{task} expects {expected} after -w, got {path!r}, which is "
            f"{reason}; training writes trained_model.keras"
        )


def check_export(parser, args):
    """Ends with status 2 where an export would overwrite something."""
    target = args.export
    if len(args.weights) > 1:
        parser.error("--export takes one model; name one file after -w")
    if not target:
        parser.error("--export expects the name of a folder or file, got ''")
    if os.path.splitext(target)[1] in OTHER_FORMATS:
        parser.error(
            f"--export expects a folder or a .keras file, got {target!r}, a "
            "format that it does not write; the README names a way to ONNX"
        )
    empty = os.path.isdir(target) and not os.listdir(target)
    to_file = target.endswith(".keras")
    if os.path.lexists(target) and (to_file or not empty):
        kind = "new file" if to_file else "new or empty folder"
        parser.error(
            f"--export expects a {kind}, got {target!r}, which is there; name "
            "another, or remove it"
        )


def restore_flags(parser, args):
    """Takes the flags of the run in `save_dir`, refusing others."""
    try:
        state = read_state(args.save_dir)
    except UserError as error:
        parser.error(f"--resume: {error}")
    recorded = state["flags"]
    started_with = state.get("environment", {}).get("backend", backend())
    if started_with != backend():
        parser.error(
            f"--resume: the run was started with KERAS_BACKEND={started_with}, "
            f"got {backend()}; put KERAS_BACKEND={started_with} before the "
            "command"
        )
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
    args.resumed = state


def flags_of(args):
    """The flags of a run as plain values, for its record."""
    return {
        name: recorded_value(args, name)
        for name in sorted(vars(args))
        if name not in NOT_FLAGS
    }


def recorded_value(args, name):
    """A flag's value for the record: a path holds in every folder."""
    value = getattr(args, name)
    if name == "dataset" and value and value not in NAMED_DATASETS:
        return os.path.abspath(os.path.expanduser(value))
    return value
