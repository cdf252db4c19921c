"""The flags of a run that goes on: the recorded ones, and no others."""

import os

from capsnet.files import read_state, split_pairs
from capsnet.messages import UserError, backend

# Data sets that are no files.
NAMED_DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10")
# What may differ between a run and its continuation.
FREE_ON_RESUME = {"resume", "save_dir", "epochs", "debug", "gpus", "device"}
FREE_ON_RESUME |= {"hosts", "processes", "process"}
# Those of them that the next continuation needs again.
NEEDED_AGAIN = FREE_ON_RESUME - {"resume", "save_dir"} | {"dataset"}
# Refused with every training.
FREE_ON_RESUME |= {"affine", "invert", "picture"}
# What `parse_args` adds to the flags.
NOT_FLAGS = {"given", "recipe_sets", "resumed", "task", "group"}


def restore_flags(args, defaults):
    """Takes the flags of the run in `save_dir`, refusing others.

    A run of before has no record of a newer flag, and did what is its
    default.
    """
    if args.weights is not None:
        raise UserError("--resume starts from its checkpoint: leave -w out")
    args.resumed = started_state(args.save_dir)
    recorded = {**defaults, **args.resumed["flags"]}
    ours = backend()
    theirs = args.resumed.get("environment", {}).get("backend", ours)
    if theirs != ours:
        raise UserError(
            f"--resume: the run was started with KERAS_BACKEND={theirs}, got "
            f"{ours}; put KERAS_BACKEND={theirs} before the command"
        )
    epochs = args.epochs if "epochs" in args.given else recorded["epochs"]
    if epochs < recorded["epochs"]:
        raise UserError(
            f"--resume: the run was started with --epochs "
            f"{recorded['epochs']}, got {epochs}; it can only grow"
        )
    if epochs > recorded["epochs"] and recorded["lr_schedule"] == "cosine":
        raise UserError(
            "--resume: the cosine of the learning rate ends with the run's "
            f"{recorded['epochs']} epochs, got --epochs {epochs}; start a new "
            "run from its model (-w) in another --save_dir"
        )
    args.epochs = epochs
    free = FREE_ON_RESUME | free_dataset(args, recorded["dataset"])
    for name in sorted(recorded.keys() & vars(args).keys() - free):
        value = recorded[name]
        if name in args.given and recorded_value(args, name) != value:
            unset = value is None or value is False
            was = f"without --{name}" if unset else f"with --{name} {value}"
            raise UserError(
                f"--resume: the run was started {was}, got "
                f"{getattr(args, name)}; leave the flag out, or start a new "
                "run in another --save_dir"
            )
        setattr(args, name, value)


def started_state(save_dir):
    """The state of a run that a command started."""
    state = read_state(save_dir)
    if "flags" not in state:
        raise UserError(
            f"--resume: the run in {save_dir!r} was started by a program, not "
            "by this command; go on there, by train(resumed=...)"
        )
    return state


def free_dataset(args, recorded):
    """`{"dataset"}` where the run goes on with pictures that were moved.

    Once they are read, a digest tells whether they are the run's.
    """
    if "dataset" in args.given:
        return {"dataset"} if "data_sha256" in args.resumed else set()
    inner = split_pairs(recorded or "")[1]
    if inner in NAMED_DATASETS or os.path.exists(inner):
        return set()
    raise UserError(
        f"--resume: the run's pictures in {recorded!r} are not there; if they "
        "were moved, name the place with --dataset"
    )


def recorded_value(args, name):
    """A flag's value for the record: a path holds in every folder."""
    value = getattr(args, name)
    if name == "dataset" and value:
        pairs, inner = split_pairs(value)
        if inner not in NAMED_DATASETS:
            return pairs + os.path.abspath(os.path.expanduser(inner))
    return value
