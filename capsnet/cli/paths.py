"""Whether the paths on a command line are there, and what a task needs."""

import os

from capsnet.cli.options import MODEL_EXAMPLE
from capsnet.files import STATE
from capsnet.messages import UserError

# What users may expect of --export, which would become a folder's name.
OTHER_FORMATS = (".onnx", ".tflite", ".h5", ".pb", ".pt")


def check_weights(args, task):
    """Raises `UserError` unless -w names files that the task can use."""
    if args.weights is None:
        raise UserError(
            f"{task} needs a model: -w FILE, for instance -w {MODEL_EXAMPLE}"
        )
    suffixes, expected = (".keras", ".h5"), "a .keras or .h5 file"
    if task in ("--predict", "--export"):
        suffixes, expected = (".keras",), "a whole model, a .keras file,"
    for path in args.weights:
        if not (os.path.isfile(path) and path.endswith(suffixes)):
            is_there = os.path.exists(path)
            stopped = os.path.exists(os.path.join(os.path.dirname(path), STATE))
            more = (
                " (--resume finishes one that was stopped)" if stopped else ""
            )
            raise UserError(
                f"{task} expects {expected} after -w, got {path!r}, which is "
                f"{'something else' if is_there else 'not there'}; training "
                f"writes trained_model.keras at its end{more}"
            )
    if task in ("--export", "--explore") and len(args.weights) > 1:
        raise UserError(f"{task} takes one model; name one file after -w")


def check_export(args):
    """Raises `UserError` where an export would overwrite something."""
    target = args.export
    if not target:
        raise UserError("--export expects the name of a folder or file, got ''")
    if target.endswith(OTHER_FORMATS):
        raise UserError(
            f"--export expects a folder or a .keras file, got {target!r}, a "
            "format that it does not write; for ONNX see Keras's model.export"
        )
    empty = os.path.isdir(target) and not os.listdir(target)
    empty = empty and not os.path.samefile(target, os.curdir)
    to_file = target.endswith(".keras")
    if os.path.lexists(target) and (to_file or not empty):
        kind = "new file" if to_file else "new or empty folder"
        raise UserError(
            f"--export expects a {kind}, got {target!r}, which is there; name "
            "another, or remove it"
        )


def check_paths(args):
    """Raises `UserError` where --predict or --save_dir cannot be used."""
    for path in args.predict or ():
        if not os.path.exists(path):
            raise UserError(
                "--predict expects pictures or folders of pictures, got "
                f"{path!r}, which is not there"
            )
    is_there = os.path.exists(args.save_dir)
    if not args.save_dir or is_there and not os.path.isdir(args.save_dir):
        raise UserError(f"--save_dir expects a folder, got {args.save_dir!r}")
