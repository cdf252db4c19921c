"""loading."""

import os

import keras

from capsnet.cli.settings import recorded_value
from capsnet.data.folders import TEST_FRACTION
from capsnet.data.sources import BUILT_IN, load, reorder
from capsnet.messages import UserError, listed
from capsnet.models.networks import attach
from capsnet.models.saving import (
    check_model,
    class_names_of,
    copy_weights,
    load_model,
    load_weights,
)


def picture_flags(args, recorded=None):
    """How `datasets.load` is to take the pictures.

    Args:
        args: Parsed flags.
        recorded: None, or the flags of the run that trained the model: they
            hold where the user gave none.
    """
    recorded = recorded or {}
    names = ["image_size", "grayscale", "skip_unreadable", "test_fraction"]
    flags = {name: getattr(args, name) for name in names}
    dataset = recorded_value(args, "dataset")
    if dataset not in (None, recorded.get("dataset")):
        names.remove("test_fraction")  # Another folder may have both parts.
    for name in names:
        if name not in args.given:
            flags[name] = recorded.get(name, flags[name])
    flags["image_size"] = flags["image_size"] and tuple(flags["image_size"])
    return flags


def load_for_testing(args, build):
    """The models of `-w`, the data to test them on, the models' records."""
    loaded = [
        load_model(path) if path.endswith(".keras") else None
        for path in args.weights
    ]
    flags = next((model[1].get("flags", {}) for model in loaded if model), {})
    name = args.dataset or flags.get("dataset") or "mnist"
    # The seed draws the digits.
    seed = args.seed if "seed" in args.given else flags.get("seed", args.seed)
    records = [model[1] if model else {} for model in loaded]
    records = dict(zip(args.weights, records))
    pictures = picture_flags(args, flags)
    pictures["test_fraction"] = unseen_fraction(args, records, name)
    if not args.dataset and name not in BUILT_IN:
        if not os.path.exists(name):
            raise UserError(
                f"{args.weights[0]} was trained on {name!r}, which is not "
                "there; name what to test on with --dataset"
            )
    data = load(name, seed=seed, **pictures)
    data = order_classes(data, records)
    models = []
    for path, model in zip(args.weights, loaded):
        if model is None:
            models.append(build(args, data))
            load_weights(models[-1][1], path)
            continue
        check_model(
            model[0], path, data.x_test.shape[1:], len(data.class_names)
        )
        models.append(attach(as_asked(*model, path, args, data, build)))
    if args.jit_compile != "auto":
        for _, eval_model, _ in models:
            eval_model.jit_compile = args.jit_compile == "on"
    return models, data, records


def unseen_fraction(args, records, name):
    """The part of each class that no model was trained on, None for no folder.

    The test part of a folder is the same for all seeds, and a smaller part
    lies within a larger one.

    Args:
        args: Parsed flags.
        records: Dictionary, a model's record for each file.
        name: The data set to test on.

    Raises:
        UserError: If `--test_fraction` asks for more than was kept.
    """
    flags = [record.get("flags", {}) for record in records.values()]
    tested = os.path.abspath(os.path.expanduser(name))
    kept = [
        each.get("test_fraction")
        for each in flags
        if os.path.abspath(each.get("dataset") or "") == tested
    ]
    smallest = min((each or TEST_FRACTION for each in kept), default=1)
    if args.test_fraction and args.test_fraction > smallest:
        raise UserError(
            f"expected --test_fraction of at most {smallest:g}, the part of "
            "these pictures that was kept from training, got "
            f"{args.test_fraction:g}; leave it out"
        )
    return args.test_fraction or (smallest if any(kept) else None)


def order_classes(data, records):
    """The data with its classes in the order that the models know them in.

    Args:
        data: A `sources.Dataset`.
        records: Dictionary, a model's record for each file.

    Returns:
        The data as it is where the models know other classes.

    Raises:
        UserError: If the models have them in different orders, or know some
            of them, but at other places.
    """
    known = {
        path: class_names_of(record, len(data.class_names))
        for path, record in records.items()
        if len(record.get("class_names", ())) == len(data.class_names)
    }
    same = {
        path: names
        for path, names in known.items()
        if sorted(names) == sorted(data.class_names)
    }
    for path in known.keys() - same.keys():
        moved = [
            name
            for place, name in enumerate(data.class_names)
            if name in known[path] and known[path].index(name) != place
        ]
        if moved:
            raise UserError(
                f"{path} knows the classes {listed(known[path])}, got "
                f"{listed(data.class_names)}, of which "
                f"{moved[0]!r} would be taken for another one; give the "
                "classes the same names"
            )
    if len({tuple(names) for names in same.values()}) > 1:
        raise UserError(
            "expected models with their classes in the same order after -w, "
            f"got {', '.join(map(repr, same))}; test them one by one"
        )
    return reorder(data, next(iter(same.values()))) if same else data


def trained_elsewhere(records, data):
    """Lines that name the models which were trained on something else.

    Args:
        records: Dictionary, a model's record for each file.
        data: The `sources.Dataset` that they are tested on.
    """
    for path, record in records.items():
        name = record.get("flags", {}).get("dataset")
        if name and os.path.basename(name) != os.path.basename(data.name):
            yield f"{path} was trained on {name}"
        if "class_names" in record:
            theirs = class_names_of(record, len(data.class_names))
            if theirs != data.class_names:
                yield (
                    f"{path} knows other classes, which are compared in their "
                    f"order: {listed(theirs)} with "
                    f"{listed(data.class_names)}"
                )


def as_asked(model, record, path, args, data, build):
    """A loaded model, built anew where a flag says how it is to compute.

    These are `--routings`, `--dtype_policy` and `--conv`; without them it
    computes as it was trained.
    """
    asked = args.given & {"routings", "dtype_policy", "conv"}
    if not asked or "flags" not in record:
        return model
    recorded = {
        name: value
        for name, value in record["flags"].items()
        if name not in asked
    }
    flags = type(args)(**{**vars(args), **recorded})
    keras.config.set_dtype_policy(flags.dtype_policy)
    built = build(flags, data)[1]
    copy_weights(model, built, path)
    return built


def class_number(name, data):
    """The index of a class given by its name, or else its number."""
    class_names = data.class_names
    if name in class_names:
        number = class_names.index(name)
    elif name.isdecimal() and int(name) < len(class_names):
        number = int(name)
    else:
        raise UserError(
            f"--digit expects a class, one of {', '.join(class_names)}; "
            f"got {name!r}"
        )
    if number not in data.y_test:
        raise UserError(
            "--digit expects a class with a picture in the test part, got "
            f"{name!r} without any; choose another class"
        )
    return number
