"""Which models are tested, on which data, with which classes.

A model's record says what it was trained on; what the user asks for goes
before it.
"""

import dataclasses
import os

import keras

from capsnet.data import looks
from capsnet.data.pairs import MARGIN
from capsnet.data.parts import TEST_FRACTION
from capsnet.data.pictures import read_pictures
from capsnet.data.sources import BUILT_IN, load, reorder
from capsnet.evaluation.figures import example
from capsnet.evaluation.prediction import cell
from capsnet.files import split_pairs
from capsnet.messages import UserError, listed, plain
from capsnet.models.networks import Network, attach
from capsnet.models.saving import check_model, class_names_of, load_model
from capsnet.models.several import check_labels
from capsnet.models.weights import copy_weights, load_weights

# Flags that say how pictures are read, and how a model computes.
OF_PICTURES = ("image_size", "grayscale", "skip_unreadable")
OF_COMPUTING = {"routings", "dtype_policy", "conv"}


def load_for_testing(paths, asked, build):
    """Loads models and the data to test them on.

    Args:
        paths: Files of models, or of weights, which have no record.
        asked: Dictionary of the flags that the user gave, by their names;
            `jit_compile` is a boolean or `"auto"`. For all else the records
            decide, of data the first one's, then the defaults.
        build: Function of a `Network`, `input_shape`, `n_class` and what
            labels a picture has that returns three models as `CapsNet` does.

    Returns:
        A list of such triples, the `sources.Dataset`, and the models'
        records, a dictionary by path, as the functions below take it.

    Raises:
        UserError: If a file is no model, or a model does not fit the data.
    """
    loaded = {
        path: load_model(path) if path.endswith(".keras") else (None, {})
        for path in paths
    }
    records = {path: record for path, (_, record) in loaded.items()}
    data = load_data(records, asked)
    sizes = data.input_shape, len(data.class_names)
    margin = MARGIN if data.pairs else 0
    for path, (model, record) in loaded.items():
        if model:
            check_labels(model, record, path, data)
            check_model(model, path, *sizes, margin)
    data = order_classes(data, records)
    models = []
    for path in paths:
        model, flags = loaded[path][0], records[path].get("flags", {})
        if model and not asked.keys() & OF_COMPUTING:
            models.append(attach(model))
            continue
        if model and not flags:
            raise UserError(
                f"{path!r} was not trained by this command, so that it is "
                "tested as it is: leave -r, --conv and --dtype_policy out"
            )
        if model and "routings" in asked:
            check_rounds(model, path)
        flags = {**flags, **asked}
        keras.config.set_dtype_policy(flags.get("dtype_policy", "float32"))
        network = Network.of(flags)
        models.append(build(network, *sizes, data.labels))
        if model:
            copy_weights(model, models[-1][1], path)
        else:
            load_weights(models[-1][1], path)
    if asked.get("jit_compile", "auto") != "auto":
        for _, eval_model, _ in models:
            eval_model.jit_compile = asked["jit_compile"]
    return models, data, records


def check_rounds(model, path):
    """Raises UserError unless a model's routing has rounds."""
    names = [layer.name for layer in model.layers]
    digitcaps = model.get_layer("digitcaps") if "digitcaps" in names else None
    if getattr(digitcaps, "routings", None) is None:
        raise UserError(
            f"-r expects a model with rounds of routing, got {path!r}, which "
            "has none: leave it out"
        )


def load_data(records, asked):
    """The data set that the user or else the first record names."""
    of_runs = {p: r["flags"] for p, r in records.items() if r.get("flags")}
    path, first = next(iter(of_runs.items()), (None, {}))
    flags = {**first, **asked}
    whole = [path for path in records if path.endswith(".keras")]
    if whole and not of_runs and "dataset" not in asked:
        raise UserError(
            f"{whole[0]!r} was not trained by this command, so that its data "
            "are unknown: name what to test on with --dataset"
        )
    name = flags.get("dataset")
    name = "mnist" if name is None else name
    inner = split_pairs(name)[1]
    is_there = inner in BUILT_IN or os.path.exists(inner)
    if "dataset" not in asked and not is_there:
        raise UserError(
            f"{path} was trained on {name!r}, which is not there; name what "
            "to test on with --dataset"
        )
    pictures = {key: flags[key] for key in OF_PICTURES if key in flags}
    if pictures.get("image_size"):
        pictures["image_size"] = tuple(pictures["image_size"])
    fraction = asked.get("test_fraction")
    pictures["test_fraction"] = fraction
    # Of other data of the same name, which may have a test part.
    pictures["usual_fraction"] = unseen_fraction(fraction, records, name)
    # The seed draws the digits.
    data = load(name, seed=flags.get("seed", 0), **pictures)
    if asked.get("invert"):
        data = dataclasses.replace(data, x_test=looks.invert(data.x_test))
    return data


def place_of(name):
    """A data set's name as a path that holds in every folder."""
    pairs, inner = split_pairs(name or "")
    if not name or inner in BUILT_IN:
        return name
    return pairs + os.path.realpath(os.path.expanduser(inner))


def folder_of(name):
    """The last part of a data set's path; None where it is no path."""
    inner = split_pairs(name or "")[1]
    if inner and inner not in BUILT_IN:
        return os.path.basename(place_of(inner))
    return None


def unseen_fraction(asked, records, name):
    """The part of each class that no model was trained on, None for no folder.

    The test part of a folder is the same for all seeds, and a smaller part
    lies within a larger one. A folder may have been moved: of the same name
    is the same.

    Args:
        asked: None, or the fraction that the user asked for; it may be
            smaller.
        records: As from `load_for_testing`.
        name: The data set to test on.
    """
    flags = [record.get("flags", {}) for record in records.values()]
    here = folder_of(name) or name
    same = [each for each in flags if folder_of(each.get("dataset")) == here]
    kept = [each.get("test_fraction") for each in same]
    smallest = min((each or TEST_FRACTION for each in kept), default=1)
    if asked and asked > smallest:
        raise UserError(
            f"expected --test_fraction of at most {smallest:g}, the part of "
            "these pictures that was kept from training, got "
            f"{asked:g}; leave it out"
        )
    return asked or (smallest if any(kept) else None)


def recorded_names(records, data):
    """The class names of each model whose record has some."""
    return {
        path: class_names_of(record, len(data.class_names))
        for path, record in records.items()
        if record.get("class_names")
    }


def order_classes(data, records):
    """The data with its classes in the order that the models know them in.

    Where they know other classes, the data stay as they are.

    Raises:
        UserError: If the models have them in different orders, or know some
            of them, but at other places.
    """
    same = {}
    for path, names in recorded_names(records, data).items():
        if sorted(names) == sorted(data.class_names):
            same[path] = names
            continue
        for name, theirs in zip(data.class_names, names):
            if name in names and name != theirs:
                raise UserError(
                    f"{path} knows the classes {listed(names)}, got "
                    f"{listed(data.class_names)}, of which {name!r} would be "
                    "taken for another one; give the classes the same names"
                )
    if len(set(map(tuple, same.values()))) > 1:
        raise UserError(
            "expected models with their classes in the same order after -w, "
            f"got {', '.join(map(repr, same))}; test them one by one"
        )
    return reorder(data, next(iter(same.values()))) if same else data


def trained_elsewhere(records, data):
    """Lines that name the models which were trained on something else."""
    tested = os.path.basename(place_of(data.name))
    names = recorded_names(records, data)
    for path, record in records.items():
        name = record.get("flags", {}).get("dataset")
        if name and os.path.basename(place_of(name)) != tested:
            yield f"{path} was trained on {name}"
        if names.get(path, data.class_names) != data.class_names:
            yield (
                f"{path} knows other classes, which are compared in their "
                f"order: {listed(names[path])} with {listed(data.class_names)}"
            )


def inverted(records, data, asked):
    """A line, or none, where the test pictures look inverted to a model."""
    for record in records.values():
        count = int(looks.unlike(data.x_test, record).sum())
        # A few are like that in many sets.
        if 2 * count > len(data.x_test):
            total, invert = len(data.x_test), asked.get("invert")
            return looks.note_unlike(count, total, record, invert)
    return []


def class_number(name, data):
    """The index of a class given by its name, or else its number."""
    n_class = len(data.class_names)
    choices = [*data.class_names, *map(str, range(n_class))]
    name = plain(name)
    if name not in choices:
        raise UserError(
            f"--digit expects a class, one of {listed(data.class_names)}; "
            f"got {name!r}"
        )
    number = choices.index(name) % n_class
    if len(data.tested(number)) == 0:
        raise UserError(
            "--digit expects a class with a picture in the test part, got "
            f"{name!r} without any; choose another class"
        )
    return number


def start_picture(asked, data, number, seed, invert=False):
    """The picture whose capsule --digit changes, uint8.

    Args:
        asked: A file, a name in `test.csv`, or `None`.
        data: A `Dataset`.
        number: Integer, the class of which to take one where none is asked
            for, and
        seed: which one.
        invert: Whether a file's light and dark are exchanged, as those of
            the test part have been.
    """
    if asked is None:
        return example(data, number, seed)
    for names in (data.test_names, [cell(name) for name in data.test_names]):
        if asked in names:
            return data.test_picture(names.index(asked))
    if not os.path.exists(asked):
        raise UserError(
            "--picture expects a file, or a name of the column file in "
            f"test.csv, got {asked!r}, which is neither"
        )
    pictures, unreadable, _ = read_pictures([asked], data.input_shape)
    if unreadable:
        raise UserError(
            f"--picture expects a picture, got {unreadable[0]}: take another"
        )
    picture = pictures[0][1]
    return looks.invert(picture) if invert else picture
