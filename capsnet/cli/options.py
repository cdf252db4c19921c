"""The flags: names, types, defaults, groups, and the page of `-h`.

Nothing here imports Keras, which takes seconds: `-h` and a wrong flag answer
at once.
"""

from capsnet.cli.parser import (
    LARGEST_INTEGER,
    Parser,
    adder,
    non_negative_float,
    number,
    positive_float,
    positive_int,
)
from capsnet.training.recipes import DEFAULT_BATCH_SIZE, RECIPES

# How the convolutions of the capsule network look.
GEOMETRY = {
    "conv_kernel": "side of conv1's kernel",
    "conv_strides": "strides of conv1",
    "primary_kernel": "side of PrimaryCap's kernel",
    "primary_strides": "strides of PrimaryCap",
}
# The page of `-h`: what one does, an example, and the flags for it.
SCREEN = {
    "train": (
        "--dataset digits --epochs 3",
        "dataset image_size model routings epochs batch_size seed save_dir "
        "resume",
    ),
    "test": ("-t -w result/trained_model.keras", "testing weights"),
    "look": ("--digit 5 -w result/mnist/v4.keras --dataset digits", "digit"),
    "use": ("--predict PICTURE -w result/mnist/v4.keras", "predict export"),
}
MODEL_EXAMPLE = "result/trained_model.keras"


def lam_recon(text):
    """`--lam_recon`: a number, or how to derive it from the pictures."""
    if text in ("classic", "authors"):
        return text
    return non_negative_float(text)


def add_data_options(add):
    add(
        "--dataset",
        None,
        "mnist, fashion_mnist, cifar10, digits, an .npz file, a folder of idx "
        "files or of pictures (default: mnist; with -t, the model's)",
        metavar="NAME|PATH",
    )
    add(
        "--image_size",
        None,
        "resize all pictures (default: as they are; with -t, as in training)",
        type=positive_int,
        nargs=2,
        metavar=("H", "W"),
    )
    add("--grayscale", False, "turn colour into grey")
    add(
        "--test_fraction",
        None,
        "part of each class that a folder of pictures without train and test "
        "keeps for the test (default: 0.2)",
        type=number(float, 0, 0.9, low_included=False),
        metavar="F",
    )
    text = "leave out the pictures of a folder that cannot be read"
    add("--skip_unreadable", False, text)
    add(
        "--shift_fraction",
        0.1,
        "shift training pictures by up to this part of their side, in whole "
        "pixels",
        type=number(float, 0, 0.5),
        metavar="F",
    )
    add(
        "--val_fraction",
        0.0,
        "part of the training set that is held out to choose the best epoch; "
        "0 keeps the last epoch",
        type=number(float, 0, 0.9),
        metavar="F",
    )


def add_model_options(add):
    text = "capsules, or the plain network that the paper compares with"
    add("--model", "capsnet", text, choices=("capsnet", "baseline"))
    text = "rounds of dynamic routing"
    add("-r", "--routings", 3, text, type=positive_int, metavar="N")
    add(
        "--init",
        "length",
        "initial weights: matrices that keep a vector's length, the classic "
        "code's, or the authors' truncated normals and biases of 0.1",
        choices=("length", "glorot", "authors"),
    )
    add(
        "--capsule_bias",
        None,
        "bias of the primary and, in every routing round, the class capsules, "
        "starting at X (default: 0 in the primary, none in the class capsules)",
        type=number(float, -1e6, 1e6),
        metavar="X",
    )
    text = "factor on PrimaryCap's convolution; the authors divide by 32"
    add("--primary_scale", 1.0, text, type=positive_float, metavar="X")
    text = "how convolutions are computed; fast is for CPUs"
    add("--conv", "auto", text, choices=("auto", "direct", "fast"))
    for name, text in GEOMETRY.items():
        text += " (default: chosen for the size of the pictures)"
        add(f"--{name}", None, text, type=positive_int, metavar="N")


def add_training_options(add, devices):
    add(
        "--recipe",
        "classic",
        "defaults of the classic Keras code, or of the paper's authors' code",
        choices=tuple(RECIPES),
    )
    text = "passes over the training pictures"
    add("--epochs", 50, text, type=positive_int, metavar="N")
    add(
        "--batch_size",
        None,
        f"pictures of one step (default: {DEFAULT_BATCH_SIZE}{devices}; of a "
        "small set a hundredth, at least 10)",
        type=positive_int,
        metavar="N",
    )
    text = "initial learning rate of Adam"
    add("--lr", 0.001, text, type=positive_float, metavar="X")
    add(
        "--lr_decay",
        0.9,
        "factor on the learning rate after each epoch",
        type=number(float, 0, 1, low_included=False),
        metavar="X",
    )
    add(
        "--lr_decay_steps",
        0,
        "decay continuously, by --lr_decay in N steps; 0 decays after each "
        "epoch",
        type=number(int, 0, LARGEST_INTEGER),
        metavar="N",
    )
    add(
        "--lam_recon",
        "classic",
        "weight of the reconstruction: a number, classic (0.0005 x values of "
        "a picture), authors (2 x classes times that), 0 for no decoder",
        type=lam_recon,
        metavar="X",
    )
    add(
        "--class_weight",
        "none",
        "balanced lets rare classes count more in the class loss: pictures / "
        "(classes x pictures of the class)",
        choices=("none", "balanced"),
    )
    add(
        "--ema",
        0.0,
        "momentum of a moving average of the weights, which is tested and "
        "saved; 0 saves the weights themselves",
        type=number(float, 0, 0.999999),
        metavar="X",
    )
    text = "seed of weights, order and shifts"
    add("--seed", 0, text, type=number(int, 0, 2**32 - 1), metavar="N")
    add(
        "-w",
        "--weights",
        None,
        "the model, or several that vote; in training, where to start from",
        nargs="+",
        metavar="FILE",
    )
    text = "go on with the run in --save_dir; a larger --epochs is welcome"
    add("--resume", False, text)


def add_task_options(add):
    text = "test the model of -w instead of training"
    add("-t", "--testing", False, text)
    text = "draw what each dimension of a class's capsule does; tests, too"
    add("--digit", None, text, metavar="CLASS")
    add(
        "--predict",
        None,
        "print what the model takes pictures for; with --save_dir also write "
        "a table and a picture",
        nargs="+",
        metavar="FILE|FOLDER",
    )
    add(
        "--export",
        None,
        "write the model into a new folder, to be served by TensorFlow, or "
        "with 16 bits into a new .keras file",
        metavar="DIR|FILE.keras",
    )


def add_output_options(add):
    text = "folder for all that is written"
    add("--save_dir", "result", text, metavar="DIR")
    add("--debug", False, "write TensorBoard logs with weight histograms")


def add_computing_options(add):
    """The flags of precision and compilation, which benchmarks have, too."""
    policies = ("float32", "mixed_bfloat16", "mixed_float16")
    text = "precision of the computation"
    add("--dtype_policy", "float32", text, choices=policies)
    text = "compile with XLA; auto leaves it to Keras"
    add("--jit_compile", "auto", text, choices=("auto", "on", "off"))


def add_device_options(add, multi_gpu):
    add_computing_options(add)
    text = "training steps between two looks of Python"
    add("--steps_per_execution", 1, text, type=positive_int, metavar="N")
    if multi_gpu:
        text = "number of GPUs (default: all there are)"
        add("--gpus", None, text, type=number(int, 1, 1024), metavar="N")
        text = "cpu splits the CPU into --gpus logical devices, to try it"
        add("--device", "gpu", text, choices=("gpu", "cpu"))


def build_parser(description="", multi_gpu=False):
    """The parser of all flags.

    Args:
        description: Text above the list of flags.
        multi_gpu: Whether `--gpus` and `--device` exist.
    """
    parser = Parser(SCREEN, description=description)

    def group(title):
        return adder(parser.add_argument_group(title))

    add_data_options(group("data"))
    add_model_options(group("model"))
    devices = " for each GPU" if multi_gpu else ""
    add_training_options(group("training"), devices)
    add_task_options(group("test, look and use"))
    add_output_options(group("output"))
    add_device_options(group("devices"), multi_gpu)
    return parser
