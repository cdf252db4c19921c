"""options."""

import argparse
import difflib
import math
import os
import re

from capsnet.training.recipes import DEFAULT_BATCH_SIZE, RECIPES

# Hides TensorFlow's notes in the middle of a training, and on how Ctrl-C ended
# its threads; its errors, and what it says when it is imported, are shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

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
