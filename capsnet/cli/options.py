"""The flags: names, types, defaults, groups, and what the two helps say.

Nothing here imports Keras, which takes seconds: `-h` and a wrong flag answer
at once.
"""

import argparse
import re

from capsnet.cli.hosts import is_address
from capsnet.cli.parser import Parser, number
from capsnet.limits import CHOICES, INTEGERS, NUMBERS
from capsnet.messages import shorten
from capsnet.training.recipes import RECIPES

# How the convolutions of the capsule network look.
GEOMETRY = ("conv_kernel", "conv_strides", "primary_kernel", "primary_strides")
# The page of `-h`: what one does, an example, and the flags for it.
SCREEN = {
    "train": (
        "capsulenet.py --dataset digits --epochs 3",
        "dataset image_size recipe routings epochs batch_size seed "
        "save_dir resume",
    ),
    "test": (
        "capsulenet.py -t -w result/trained_model.keras",
        "testing weights",
    ),
    "look": (
        "capsulenet.py --explore -w result/mnist/v4.keras --dataset digits",
        "explore digit",
    ),
    "use": (
        "capsulenet.py --predict PICTURE -w result/mnist/v4.keras",
        "predict export",
    ),
}
MULTI_GPU = "capsulenet-multi-gpu.py --gpus 2"
MODEL_EXAMPLE = "result/trained_model.keras"
# The help of each flag; the default is added where there is one.
HELP = """
dataset: mnist, fashion_mnist, cifar10, digits, an .npz file, a folder of
  pictures or arrays; pairs:NAME overlays two (default: mnist; with -t, the
  model's)
image_size: resize all pictures (default: as they are; with -t, as in training)
grayscale: turn colour into grey
invert: with --predict and -t, turn dark on light into light on dark, or back
test_fraction: part of each class that data without a test part keep for the
  test (default: 0.2)
skip_unreadable: leave out the pictures of a folder that cannot be read
augment: how each epoch changes the training pictures: shift by whole pixels;
  affine also turns, scales and shears; photo also mirrors and changes colours
shift_fraction: shift by up to this part of the side
rotation: affine and photo turn by up to this many degrees
scale: affine and photo scale height and width by up to this part
shear: affine and photo slant by up to this many pixels for each pixel down
colour: photo changes brightness, contrast and colour by up to this part
val_fraction: part of the training set that is held out to choose the best
  epoch; 0 keeps the last epoch
model: the paper's network, a small one (Efficient-CapsNet), or the baseline
routing: how capsules are coupled; all but attention have rounds (default:
  dynamic; for --model efficient, attention)
routings: rounds of routing
init: initial weights: matrices that keep a vector's length, the classic
  code's, or the authors' truncated normals and biases of 0.1
capsule_bias: bias of the primary and, in every routing round, the class
  capsules, starting at X (default: 0 in the primary, none in the class
  capsules)
primary_scale: factor on PrimaryCap's convolution; the authors divide by 32
conv: how convolutions are computed; fast is for CPUs
conv_kernel: side of conv1's kernel (default: fits the pictures)
conv_strides: strides of conv1 (default: fits the pictures)
primary_kernel: side of PrimaryCap's kernel (default: fits the pictures)
primary_strides: strides of PrimaryCap (default: fits the pictures)
recipe: defaults of the classic code, the authors', the small network (laptop),
  the best
epochs: passes over the training pictures
batch_size: pictures of one step (default: 100 for each device; of a small set
  a hundredth, at least 10)
lr: learning rate of Adam, from which it falls
lr_schedule: the learning rate falls by --lr_decay, or as a cosine to 0 at the
  run's end
lr_decay: factor on the learning rate after each epoch
lr_decay_steps: decay continuously, by --lr_decay in N steps; 0 decays after
  each epoch
warmup: epochs, or a part of one, in which the learning rate rises
lam_recon: weight of the reconstruction: a number, classic (0.0005 x values of
  a picture), authors (2 x classes times that), 0 for no decoder
class_weight: balanced lets rare classes count more in the class loss: pictures
  / (classes x pictures of the class)
ema: momentum of a moving average of the weights, which is tested and saved; its
  memory is at most a tenth of the run; 0 saves the weights themselves
seed: seed of weights, order and shifts
weights: the model, several that vote, or where to start from
resume: go on with the run in --save_dir, to more --epochs
testing: test the model of -w instead of training
affine: with -t, test also on turned, slanted, scaled and moved pictures
digit: draw what each dimension of a class's capsule does
picture: with --digit, the picture to begin with: a file, or its name in
  test.csv (default: one of the class)
explore: write a page to turn a capsule's dimensions in
predict: print what the model takes pictures for; with --save_dir also write a
  table and a picture
show_augment: draw some training pictures as --augment changes them
export: write the model into a new folder, to be served by TensorFlow, or with
  16 bits into a new .keras file
save_dir: folder for all that is written
debug: write TensorBoard logs with weight histograms
dtype_policy: precision of the computation
jit_compile: compile with XLA; auto leaves it to Keras
steps_per_execution: training steps between two looks of Python
gpus: GPUs of each process (default: all; srun, mpirun: 1)
device: cpu splits the CPU, to try it
hosts: where process 0 is, and a free port there, to train in several
  processes, on several hosts (default: what srun or mpirun say)
processes: how many processes there are (default: what srun or mpirun say)
process: which of them this is, from 0 (default: what srun or mpirun say)
"""
HELP = dict(re.findall(r"^(\w+): (.+(?:\n  .+)*)", HELP, re.MULTILINE))


def lam_recon(text):
    """`--lam_recon`: a number, or how to derive it from the pictures."""
    if text in ("classic", "authors"):
        return text
    return number(float, *NUMBERS["lam_recon"])(text)


def host_and_port(text):
    """`--hosts`: the address of process 0."""
    if not is_address(text):
        raise argparse.ArgumentTypeError(
            f"expected ADDRESS:PORT, got {shorten(repr(text), 40)}"
        )
    return text


def adder(group):
    """`group.add_argument` for names and the default.

    It knows the help above, and the flag's limits or choices.
    """

    def add(*names_and_default, **more):
        *names, default = names_and_default
        name = names[-1].removeprefix("--")
        if default is False:
            more["action"] = "store_true"
        elif name in INTEGERS:
            more["type"] = number(int, *INTEGERS[name])
        elif name in NUMBERS:
            more.setdefault("type", number(float, *NUMBERS[name]))
        elif name in CHOICES:
            more["choices"] = CHOICES[name]
        text = HELP[name]
        group.add_argument(*names, default=default, help=text, **more)

    return add


def add_data_options(group):
    add = adder(group)
    add("--dataset", None, metavar="NAME|PATH")
    add("--image_size", None, nargs=2, metavar=("H", "W"))
    add("--grayscale", False)
    add("--invert", False)
    add("--test_fraction", None, metavar="F")
    add("--skip_unreadable", False)
    kinds = ("shift", "affine", "photo", "none")
    add("--augment", "shift", choices=kinds)
    add("--shift_fraction", 0.1, metavar="F")
    add("--rotation", 15.0, metavar="DEGREES")
    add("--scale", 0.12, metavar="F")
    add("--shear", 0.15, metavar="F")
    add("--colour", 0.2, metavar="F")
    add("--val_fraction", 0.0, metavar="F")


def add_model_options(group):
    add = adder(group)
    add("--model", "capsnet")
    add("--routing", None)
    add("-r", "--routings", 3, metavar="N")
    add("--init", "length")
    add("--capsule_bias", None, metavar="X")
    add("--primary_scale", 1.0, metavar="X")
    add("--conv", "auto")
    for name in GEOMETRY:
        add(f"--{name}", None, metavar="N")


def add_training_options(group):
    add = adder(group)
    add("--recipe", "classic", choices=tuple(RECIPES))
    add("--epochs", 50, metavar="N")
    add("--batch_size", None, metavar="N")
    add("--lr", 0.001, metavar="X")
    add("--lr_schedule", "step", choices=("step", "cosine"))
    add("--lr_decay", 0.9, metavar="X")
    add("--lr_decay_steps", 0, metavar="N")
    add("--warmup", 0.0, metavar="E")
    add("--lam_recon", "classic", type=lam_recon, metavar="X")
    add("--class_weight", "none", choices=("none", "balanced"))
    add("--ema", 0.0, metavar="X")
    add("--seed", 0, metavar="N")
    add("-w", "--weights", None, nargs="+", metavar="FILE")
    add("--resume", False)


def add_task_options(group):
    add = adder(group)
    add("-t", "--testing", False)
    add("--affine", False)
    add("--digit", None, metavar="CLASS")
    add("--picture", None, metavar="FILE")
    add("--explore", False)
    add("--predict", None, nargs="+", metavar="FILE|FOLDER")
    add("--export", None, metavar="DIR|FILE.keras")
    add("--show_augment", False)


def add_output_options(group):
    add = adder(group)
    add("--save_dir", "result", metavar="DIR")
    add("--debug", False)


def add_computing_options(group):
    """The flags of precision and compilation, which benchmarks have, too."""
    add = adder(group)
    add("--dtype_policy", "float32")
    add("--jit_compile", "auto", choices=("auto", "on", "off"))


def add_device_options(group, multi_gpu):
    add = adder(group)
    add_computing_options(group)
    add("--steps_per_execution", 1, metavar="N")
    if multi_gpu:
        add("--gpus", None, metavar="N")
        add("--device", "gpu", choices=("gpu", "cpu"))
        add("--hosts", None, type=host_and_port, metavar="ADDRESS:PORT")
        add("--processes", None, metavar="N")
        add("--process", None, metavar="I")


def build_parser(description="", multi_gpu=False):
    """The parser of all flags.

    Args:
        description: Text above the list of flags.
        multi_gpu: Whether `--gpus`, `--device` and `--hosts` exist.
    """
    screen = dict(SCREEN)
    if multi_gpu:
        screen["train"] = MULTI_GPU, f"{SCREEN['train'][1]} gpus device"
    parser = Parser(screen, description=description)
    group = parser.add_argument_group
    add_data_options(group("data"))
    add_model_options(group("model"))
    add_training_options(group("training"))
    add_task_options(group("test, look and use"))
    add_output_options(group("output"))
    add_device_options(group("devices"), multi_gpu)
    return parser
