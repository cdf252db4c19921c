"""The seam: parsed flags become what the rooms below take.

Nothing else reads argparse's namespace once it is checked. `read` returns
one of six frozen dataclasses, with objects and numbers in place of the
flags' words.
"""

import dataclasses

from capsnet.cli.checks import flags_of
from capsnet.cli.resuming import NEEDED_AGAIN
from capsnet.data.augment import Affine, Augmentation, Photo, Shift
from capsnet.data.batches import choose_batch_size
from capsnet.models.networks import Network, reconstruction_weight
from capsnet.training.averages import bounded_momentum
from capsnet.training.recipes import DEFAULT_BATCH_SIZE

# Their fields are named as the flags.
AUGMENTATIONS = {"shift": Shift, "affine": Affine, "photo": Photo}
JIT = {"auto": "auto", "on": True, "off": False}
# Arguments of `sources.load`, and of `capsulenet.train`, named as the flags.
PICTURES = ("image_size", "grayscale", "test_fraction", "skip_unreadable")
TRAINING = (
    "epochs lr lr_schedule lr_decay lr_decay_steps warmup seed debug "
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
        balanced: Whether rare classes count more.
        keeps_batch: Whether the size of a batch is the user's or that of
            a resumed run, and not lowered for a small set.
        arguments: Dictionary, further arguments of `capsulenet.train`.
        flags: Dictionary, all flags, for the record.
        recipe: Dictionary of what the recipe sets.
        again: List of words: the script and the flags that go on with it.
    """

    dataset: str
    pictures: dict
    val_fraction: float
    network: Network
    balanced: bool
    keeps_batch: bool
    arguments: dict
    flags: dict
    recipe: dict
    again: list

    def batch_size(self, pictures, replicas):
        """The size of a batch, and the larger one that it was lowered from.

        Args:
            pictures: Number of training pictures.
            replicas: Number of devices.
        """
        own = (self.arguments["resumed"] or {}).get("batch_size")
        most = own or self.flags["batch_size"] or DEFAULT_BATCH_SIZE * replicas
        if self.keeps_batch:
            return most, most
        return choose_batch_size(most, pictures, replicas), most

    def ema(self, steps):
        """The momentum of averaged weights, in a run of so many steps.

        A resumed run keeps its own, however many epochs are added; one of
        before, which recorded none, had what was asked for.
        """
        asked, resumed = self.flags["ema"], self.arguments["resumed"]
        if resumed is not None:
            return resumed.get("ema", asked)
        return bounded_momentum(asked, steps)

    def lam_recon(self, target_shape, n_class):
        """The weight of the mean squared error of the reconstruction."""
        return reconstruction_weight(
            self.flags["lam_recon"], target_shape, n_class
        )


@dataclasses.dataclass(frozen=True)
class Testing(Task):
    """A test of the models in `weights`.

    Args:
        digit: Name or number of the class to draw, or `None`.
        picture: File or number of the picture to draw it of, or `None`.
        affine: Whether to test on affinely changed pictures, too.
        asked: Dictionary of the flags that the user gave; all else is as in
            training.
    """

    digit: str | None
    picture: str | None
    affine: bool
    asked: dict


@dataclasses.dataclass(frozen=True)
class Exploring(Task):
    """A page about the model in `weights`; `asked` is as in `Testing`."""

    asked: dict


@dataclasses.dataclass(frozen=True)
class Prediction(Task):
    """What the models in `weights` take the pictures in `paths` for."""

    paths: list
    skip_unreadable: bool
    invert: bool


@dataclasses.dataclass(frozen=True)
class Export(Task):
    """The model in `weights`, to be written to `target`."""

    target: str


@dataclasses.dataclass(frozen=True)
class Showing(Task):
    """Some training pictures of `dataset`, to be drawn as `augment` has them.

    Args:
        dataset, pictures: As in `Training`.
        augment: An `Augmentation`.
    """

    dataset: str
    pictures: dict
    augment: Augmentation


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
    if args.task in ("-t", "--digit", "--explore"):
        own = {"testing", "digit", "picture", "affine", "explore"}
        own |= {"weights", "save_dir"}
        named = args.given - own
        asked = {name: flags[name] for name in named}
        if "jit_compile" in asked:
            asked["jit_compile"] = common["jit_compile"]
        if args.explore:
            return Exploring(**common, asked=asked)
        common |= {"digit": args.digit, "picture": args.picture}
        common["affine"] = args.affine
        return Testing(**common, asked=asked)
    if args.task is None:
        return read_training(args, flags, common)
    if args.task == "--show_augment":
        return Showing(**common, **read_pictures(args, flags))
    if "save_dir" not in args.given:
        common["save_dir"] = None
    if args.task == "--export":
        return Export(**common, target=args.export)
    read = {name: flags[name] for name in ("skip_unreadable", "invert")}
    return Prediction(**common, paths=args.predict, **read)


def read_training(args, flags, common):
    """The `Training` of checked flags; `flags` are those for its record."""
    script = "capsulenet.py"
    if "gpus" in flags:
        script = "capsulenet-multi-gpu.py"
    again = [script, "--resume", "--save_dir", args.save_dir]
    # A run's own epochs and pictures are in its record.
    recorded = set() if args.resume else {"epochs", "dataset"}
    for name in sorted(NEEDED_AGAIN & args.given - recorded):
        again += [f"--{name}"] + [flags[name]] * (flags[name] is not True)
    arguments = {name: flags[name] for name in TRAINING}
    arguments |= {"jit_compile": common["jit_compile"], "resumed": args.resumed}
    read = read_pictures(args, flags)
    arguments["augment"] = read.pop("augment")
    return Training(
        **common,
        **read,
        val_fraction=args.val_fraction,
        network=Network.of(flags),
        balanced=args.class_weight == "balanced",
        keeps_batch="batch_size" in args.given or args.resume,
        arguments=arguments,
        flags=flags,
        recipe=args.recipe_sets,
        again=again,
    )


def read_pictures(args, flags):
    """Where the training pictures come from, and how they change."""
    pictures = {name: flags[name] for name in PICTURES}
    pictures["image_size"] = args.image_size and tuple(args.image_size)
    return {
        "dataset": args.dataset,
        "pictures": pictures,
        "augment": augmentation(args.augment, flags),
    }


def augmentation(kind, flags):
    """The `Augmentation` of a kind, with the ranges that it has."""
    if kind == "none":
        return Shift(0.0)
    names = [field.name for field in dataclasses.fields(AUGMENTATIONS[kind])]
    return AUGMENTATIONS[kind](**{name: flags[name] for name in names})
