"""checks."""

import argparse
import importlib.util
import os

from capsnet.cli.options import OF_CAPSULES, OTHER_FORMATS


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
