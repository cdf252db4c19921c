"""The command line: flags, defaults, and every check that needs no Keras.

`parse_args` answers `-h` and wrong flags at once, because importing Keras
takes seconds and nothing here does it.
"""

import argparse
import difflib
import importlib.util
import json
import math
import os
import re

# Hides TensorFlow's notes in the middle of a training, and on how Ctrl-C ended
# its threads; its errors, and what it says when it is imported, are shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

RECIPES = {
    # The classic Keras repository's loss, schedule, batch and epochs.
    "classic": {},
    # What the authors' own code does (README: 'What differs').
    "paper": {
        "batch_size": 128,
        "lr_decay": 0.96,
        "lr_decay_steps": 2000,
        "lr_min": 1e-6,
        "lam_recon": "authors",
        "init": "authors",
        "capsule_bias": 0.1,
        "primary_scale": 1 / 32,
    },
}
DEFAULT_BATCH_SIZE = 100
# Data sets that are no files.
NAMED_DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
# What users may expect of --export, which would become a folder's name.
OTHER_FORMATS = (".onnx", ".tflite", ".h5", ".pb", ".pt")
# How the convolutions of the capsule network look.
GEOMETRY = ("conv_kernel", "conv_strides", "primary_kernel", "primary_strides")
# What has no effect on a network without capsules.
OF_CAPSULES = (
    *GEOMETRY,
    "routings",
    "init",
    "capsule_bias",
    "primary_scale",
    "lam_recon",
)
# What may differ between a run and its continuation.
FREE_ON_RESUME = {"resume", "save_dir", "epochs", "debug", "gpus", "device"}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose errors are one line."""

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--\w[\w-]*)", message)
        hint = "-h lists the flags"
        if unknown:
            flags = list(self._option_string_actions)
            for flag in difflib.get_close_matches(unknown[1], flags, n=1):
                hint = f"did you mean {flag}? {hint}"
        self.exit(2, f"{self.prog}: {message} ({hint})\n")


def number(convert, low, high, low_included=True):
    """An argparse type: a number within bounds, with its own error."""

    def converter(text):
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        above = value >= low if low_included else value > low
        if not (above and value <= high and math.isfinite(value)):
            kind = "an integer" if convert is int else "a number"
            bound = "at least" if low_included else "above"
            upper = f" and at most {high}" if high != math.inf else ""
            raise argparse.ArgumentTypeError(
                f"expected {kind} {bound} {low}{upper}, got {text!r}"
            )
        return value

    return converter


positive_int = number(int, 1, math.inf)
positive_float = number(float, 0, math.inf, low_included=False)
non_negative_float = number(float, 0, math.inf)
fraction = number(float, 0, 0.9)


def lam_recon(text):
    """`--lam_recon`: a number, or how to derive it from the pictures."""
    if text in ("classic", "authors"):
        return text
    return non_negative_float(text)


def add_data_options(parser):
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default=None,
        metavar="NAME|PATH",
        help="mnist, fashion_mnist, cifar10, digits (built in, no download), "
        "an .npz file, a folder with MNIST's four idx files, or a folder of "
        "pictures (default: mnist; with -t, what the model was trained on)",
    )
    group.add_argument(
        "--image_size",
        type=positive_int,
        nargs=2,
        default=None,
        metavar=("H", "W"),
        help="resize all pictures to this height and width (default: as they "
        "are; with -t, as in training)",
    )
    group.add_argument(
        "--grayscale",
        action="store_true",
        help="turn colour into grey (default: as they are)",
    )
    group.add_argument(
        "--test_fraction",
        type=number(float, 0, 0.9, low_included=False),
        default=None,
        metavar="F",
        help="part of each class that a folder of pictures without train and "
        "test keeps for the test (default: 0.2)",
    )
    group.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="leave out the pictures of a folder that cannot be read "
        "(default: stop, and name them)",
    )
    group.add_argument(
        "--shift_fraction",
        type=number(float, 0, 0.5),
        default=0.1,
        help="shift training pictures by up to this part of their side, in "
        "whole pixels (default: %(default)s)",
    )
    group.add_argument(
        "--val_fraction",
        type=fraction,
        default=0.0,
        help="part of the training set that is held out to choose the best "
        "epoch; 0 keeps the last epoch (default: %(default)s)",
    )


def add_model_options(parser):
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        choices=("capsnet", "baseline"),
        default="capsnet",
        help="the capsule network, or the plain convolutional network that "
        "the paper compares with (default: %(default)s)",
    )
    group.add_argument(
        "-r",
        "--routings",
        type=positive_int,
        default=3,
        help="rounds of dynamic routing (default: %(default)s)",
    )
    group.add_argument(
        "--init",
        choices=("length", "glorot", "authors"),
        default="length",
        help="initial weights: matrices that keep a vector's length, the "
        "classic code's, or the authors' truncated normals and biases of 0.1 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--capsule_bias",
        type=number(float, -1e6, 1e6),
        default=None,
        metavar="VALUE",
        help="bias of the primary and, in every routing round, the digit "
        "capsules, starting at VALUE (default: 0 in the primary capsules, "
        "none in the digit capsules)",
    )
    group.add_argument(
        "--primary_scale",
        type=positive_float,
        default=1.0,
        help="factor on PrimaryCap's convolution; the authors divide by 32 "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--conv",
        choices=("auto", "direct", "fast"),
        default="auto",
        help="how convolutions are computed: fast is for CPUs "
        "(default: %(default)s)",
    )
    for name, what in (
        ("conv_kernel", "side of conv1's kernel"),
        ("conv_strides", "conv1's strides"),
        ("primary_kernel", "side of PrimaryCap's kernel"),
        ("primary_strides", "PrimaryCap's strides"),
    ):
        group.add_argument(
            f"--{name}",
            type=positive_int,
            default=None,
            metavar="N",
            help=f"{what} (default: chosen for the size of the pictures)",
        )


def add_training_options(parser, batch_help):
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        default="classic",
        help="defaults for the flags of this and the model's group: the "
        "classic Keras code's, or what the paper's authors' code does "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--epochs",
        type=positive_int,
        default=50,
        help="passes over the training pictures (default: %(default)s)",
    )
    group.add_argument(
        "--batch_size", type=positive_int, default=None, help=batch_help
    )
    group.add_argument(
        "--lr",
        type=positive_float,
        default=0.001,
        help="initial learning rate of Adam (default: %(default)s)",
    )
    group.add_argument(
        "--lr_decay",
        type=number(float, 0, 1, low_included=False),
        default=0.9,
        help="factor on the learning rate after each epoch, or each "
        "--lr_decay_steps (default: %(default)s)",
    )
    group.add_argument(
        "--lr_decay_steps",
        type=number(int, 0, math.inf),
        default=0,
        help="decay continuously, by --lr_decay in this many steps; 0 decays "
        "after each epoch (default: %(default)s)",
    )
    group.add_argument(
        "--lr_min",
        type=non_negative_float,
        default=0.0,
        help="the learning rate never falls below (default: %(default)s)",
    )
    group.add_argument(
        "--lam_recon",
        type=lam_recon,
        default="classic",
        metavar="X|classic|authors",
        help="weight of the reconstruction's mean squared error: a number, "
        "classic for 0.0005 x the number of values in a picture (0.392 for "
        "MNIST), authors for 2 x classes times that (7.84), or 0 for no "
        "decoder (default: %(default)s)",
    )
    group.add_argument(
        "--class_weight",
        choices=("none", "balanced"),
        default="none",
        help="balanced lets rare classes count more in the class loss: "
        "pictures / (classes x pictures of the class) "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--ema",
        type=number(float, 0, 0.999999),
        default=0.0,
        metavar="MOMENTUM",
        help="test and save a moving average of the weights; 0 saves the "
        "weights themselves (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        type=number(int, 0, 2**32 - 1),
        default=0,
        help="seed of weights, order and shifts (default: %(default)s)",
    )
    group.add_argument(
        "-w",
        "--weights",
        metavar="FILE",
        nargs="+",
        default=None,
        help="model or weights to start from, or to test; several are tested "
        "as one, their capsule lengths summed",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --save_dir, with the flags it was "
        "started with; a larger --epochs is welcome",
    )


def add_test_options(parser):
    group = parser.add_argument_group("test, manipulate, predict and export")
    group.add_argument(
        "-t",
        "--testing",
        action="store_true",
        help="test the model of -w instead of training",
    )
    group.add_argument(
        "--digit",
        metavar="CLASS",
        default=None,
        help="draw what each capsule dimension of this class does (implies "
        "-t): its name or number",
    )
    group.add_argument(
        "--predict",
        metavar="FILE|FOLDER",
        nargs="+",
        default=None,
        help="print what the model of -w takes these pictures for; with "
        "--save_dir also write a table and a picture (default: none)",
    )
    group.add_argument(
        "--export",
        metavar="DIR|FILE.keras",
        default=None,
        help="write the model of -w into a new or empty folder as a TensorFlow "
        "SavedModel for serving, or into a new .keras file with its weights "
        "in 16 bits, half the size (default: none)",
    )


def add_output_options(parser):
    group = parser.add_argument_group("output")
    group.add_argument(
        "--save_dir",
        default="result",
        help="folder for all that is written (default: %(default)s)",
    )
    group.add_argument(
        "--debug",
        action="store_true",
        help="write TensorBoard logs with weight histograms",
    )


def add_computing_options(group):
    """The flags of precision and compilation, which benchmarks have, too."""
    group.add_argument(
        "--dtype_policy",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
        default="float32",
        help="precision of the computation (default: %(default)s)",
    )
    group.add_argument(
        "--jit_compile",
        choices=("auto", "on", "off"),
        default="auto",
        help="compile with XLA (default: %(default)s, Keras's choice)",
    )


def add_device_options(parser, multi_gpu):
    group = parser.add_argument_group("devices")
    add_computing_options(group)
    group.add_argument(
        "--steps_per_execution",
        type=positive_int,
        default=1,
        help="training steps between two looks of Python "
        "(default: %(default)s)",
    )
    if multi_gpu:
        group.add_argument(
            "--gpus",
            type=positive_int,
            default=None,
            help="number of GPUs (default: all there are)",
        )
        group.add_argument(
            "--device",
            choices=("gpu", "cpu"),
            default="gpu",
            help="cpu splits the CPU into --gpus logical devices, to try it "
            "(default: %(default)s)",
        )


def build_parser(description, multi_gpu=False):
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    batch_help = (
        f"pictures of one step (default: {DEFAULT_BATCH_SIZE}"
        f"{' for each GPU' if multi_gpu else ''}; of a small set a hundredth "
        "of the training pictures, at least 10)"
    )
    add_data_options(parser)
    add_model_options(parser)
    add_training_options(parser, batch_help)
    add_test_options(parser)
    add_output_options(parser)
    add_device_options(parser, multi_gpu)
    return parser


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


def check_backend(parser):
    """Ends with status 2 where the chosen backend is not installed."""
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    known = backend in ("tensorflow", "jax", "torch")
    if known and importlib.util.find_spec(backend) is None:
        parser.error(
            f"KERAS_BACKEND is {backend}, which needs the package {backend}: "
            f"pip install {backend}"
        )


def is_training(args):
    """Whether parsed flags ask for a training."""
    return not (args.testing or args.predict or args.export)


def given_flags(parser, argv):
    """The flags that the user named, with their values."""
    unset = object()
    names = vars(parser.parse_args([]))
    namespace = argparse.Namespace(**dict.fromkeys(names, unset))
    values = vars(parser.parse_args(argv, namespace))
    return {name: value for name, value in values.items() if value is not unset}


def check(parser, args):
    """Ends with status 2 where flags exclude each other."""
    check_task(parser, args)
    if args.testing and args.weights is None:
        parser.error(
            "-t and --digit need a model: -w FILE, for instance "
            f"-w {os.path.join(args.save_dir, 'trained_model.keras')}"
        )
    for path in args.weights or ():
        is_file = os.path.isfile(path)
        if not is_file or not path.endswith((".keras", ".h5")):
            reason = "neither by its name" if is_file else "not a file"
            parser.error(
                f"-w expects a .keras or .h5 file, got {path!r}, which is "
                f"{reason}; training writes "
                f"{os.path.join(args.save_dir, 'trained_model.keras')}"
            )
    if len(args.weights or ()) > 1 and is_training(args):
        parser.error("-w takes one file to start from; several need -t")
    if args.digit is not None and args.model == "baseline":
        parser.error("--digit needs capsules: --model baseline has none")
    for name in OF_CAPSULES if args.model == "baseline" else ():
        if name in args.given:
            parser.error(f"--{name} is for capsules: --model baseline has none")
    if args.testing and args.resume:
        parser.error("--resume continues a training, -t tests: choose one")
    if args.resume and "weights" in args.given:
        parser.error("--resume starts from its checkpoint: leave -w out")
    if args.debug and importlib.util.find_spec("tensorboard") is None:
        parser.error(
            "--debug needs the package tensorboard: pip install tensorboard"
        )
    if os.path.exists(args.save_dir) and not os.path.isdir(args.save_dir):
        parser.error(f"--save_dir expects a folder, got {args.save_dir!r}")


def check_task(parser, args):
    """Ends with status 2 where `--predict` or `--export` cannot be done."""
    asked = {
        "-t" if args.digit is None else "--digit": args.testing,
        "--predict": args.predict is not None,
        "--export": args.export is not None,
    }
    tasks = [flag for flag, is_asked in asked.items() if is_asked]
    if len(tasks) > 1:
        parser.error(f"{' and '.join(tasks)} exclude each other: choose one")
    if not tasks or args.testing:
        return
    (task,) = tasks
    if args.resume:
        parser.error(f"--resume continues a training: leave {task} out")
    for flag in ("dataset", "image_size", "grayscale", "test_fraction"):
        if flag in args.given:
            parser.error(
                f"{task} takes the model's own kind of picture and no data "
                f"set: leave --{flag} out"
            )
    if args.weights is None:
        parser.error(
            f"{task} needs a model: -w FILE, for instance "
            f"-w {os.path.join(args.save_dir, 'trained_model.keras')}"
        )
    for path in args.weights:
        if not path.endswith(".keras"):
            parser.error(
                f"{task} needs a whole model, a .keras file, got {path!r}; "
                "training writes trained_model.keras"
            )
    if args.export is not None:
        check_export(parser, args)
    missing = [p for p in args.predict or () if not os.path.exists(p)]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        parser.error(
            "--predict expects pictures or folders of pictures, got what is "
            f"not there: {', '.join(missing[:10])}{more}"
        )


def check_export(parser, args):
    """Ends with status 2 where an export would overwrite something."""
    target = args.export
    if len(args.weights) > 1:
        parser.error("--export takes one model; name one file after -w")
    if "save_dir" in args.given:
        parser.error("--export names its own target: leave --save_dir out")
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
