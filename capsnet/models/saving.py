"""Models and weights as files: whole models, weights, a SavedModel.

A `.keras` file is a zip archive; the run's record is one more member of it,
which `keras.models.load_model` passes over. A file may come from a stranger:
it is loaded in Keras's safe mode, after archive.py has looked at it.
"""

import json
import os
import shutil
import warnings
import zipfile

import h5py
import keras
import numpy as np

from capsnet.files import RECORD, whole_file, write_json
from capsnet.messages import UserError, cross, reason_of
from capsnet.models.archive import (
    OURS,
    WEIGHTS,
    arrays_of,
    check_archive,
    half_weights,
)
from capsnet.models.several import labels_of

# A SavedModel's place for what its loaders leave alone.
EXTRA = "assets.extra"


def save_model(model, path, record):
    """Saves a whole model, with the run's record inside of the file.

    Args:
        model: Keras model.
        path: File name that ends in `.keras`.
        record: Dictionary that JSON can hold.
    """
    with whole_file(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(RECORD, json.dumps(record, indent=2))


def save_half(model, path, record):
    """`save_model` with the weights in float16, in half the space.

    They are rounded to three decimal digits, and load as what they were.

    Raises:
        UserError: If a weight is beyond 65,504, the largest number of 16 bits.
    """
    with whole_file(path) as temporary:
        save_model(model, temporary, record)
        with zipfile.ZipFile(temporary) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members[WEIGHTS] = half_weights(members[WEIGHTS])
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)


def load_model(path):
    """Loads what `save_model` or `save_half` wrote.

    Args:
        path: A `.keras` file.

    Returns:
        Pair of the model and its record (empty if the file has none).

    Raises:
        UserError: If the file is damaged, carries code, or holds no capsule
            network of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path)
            record = {}
            if RECORD in archive.namelist():
                record = json.loads(archive.read(RECORD))
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras and zipfile raise nearly anything.
        raise UserError(
            f"cannot load {path!r}; {OURS}: {reason_of(error)}"
        ) from error
    flags = record.get("flags", {}) if isinstance(record, dict) else None
    if not isinstance(flags, dict):
        raise UserError(f"cannot read the record in {path!r}; {OURS}")
    return model, record


def signature(model, path):
    """The shape of a loaded model's pictures and its number of classes.

    Raises:
        UserError: Unless it is an evaluation model of ours.
    """
    outputs = getattr(model, "output", None)
    image = getattr(getattr(model, "input", None), "shape", ())
    known = len(image) == 4 and None not in image[1:]
    if not known or not isinstance(outputs, dict) or "capsnet" not in outputs:
        raise UserError(f"{OURS}, got {path!r}, a model named {model.name!r}")
    return tuple(image[1:]), outputs["capsnet"].shape[-1]


def check_model(model, path, input_shape, n_class):
    """Raises UserError unless a loaded model fits the data."""
    shape, classes = signature(model, path)
    if (shape, classes) == (tuple(input_shape), n_class):
        return
    flags = []
    if shape[:2] != tuple(input_shape[:2]):
        flags.append("--image_size {} {}".format(*shape))
    if shape[2] == 1 < input_shape[2]:
        flags.append("--grayscale")
    advice = "choose another --dataset"
    if flags and classes == n_class:
        advice += f", or add {' '.join(flags)}"
    raise UserError(
        f"{path!r} was trained on pictures of {cross(shape)} (height x width "
        f"x channels) and {classes} classes, got {cross(input_shape)} and "
        f"{n_class}; {advice}"
    )


def load_models(paths):
    """Loads whole models that can predict together.

    Args:
        paths: `.keras` files.

    Returns:
        The evaluation models, the class names, and the first one's record.

    Raises:
        UserError: If a file is no model of ours, or the models differ in
            their pictures or classes.
    """
    models, records = zip(*map(load_model, paths))
    known = []
    for path, model, record in zip(paths, models, records):
        input_shape, n_class = signature(model, path)
        names = class_names_of(record, n_class)
        known.append((input_shape, names, labels_of(model, record)))
        if known[-1] != known[0]:
            raise UserError(
                "expected models of the same pictures and classes after -w, "
                f"got {paths[0]!r} and {path!r}, which differ; take one of "
                "them"
            )
    return list(models), known[0][1], records[0]


def class_names_of(record, n_class):
    """The class names in a model's record; numbers if it has none."""
    names = record.get("class_names")
    if isinstance(names, list) and len(names) == n_class:
        return [str(name) for name in names]
    return [str(number) for number in range(n_class)]


def export(model, record, folder):
    """Writes a TensorFlow SavedModel for serving, whole or not at all.

    The record, class names included, goes into `assets.extra/run.json`.

    Args:
        model: Evaluation model.
        record: Dictionary that JSON can hold.
        folder: Where the model is to appear; missing or empty.

    Raises:
        UserError: If Keras cannot export the model.
    """
    parent, name = os.path.split(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    temporary = os.path.join(parent, f".{os.getpid()}-{name}")
    try:
        model.export(temporary, verbose=False)
        write_json(os.path.join(temporary, EXTRA, RECORD), record)
        if os.path.isdir(folder):
            os.rmdir(folder)
        os.rename(temporary, folder)
    except (OSError, UserError):
        raise
    except Exception as error:  # Keras and TensorFlow raise nearly anything.
        raise UserError(
            f"cannot export to {folder!r}: {reason_of(error)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_weights(model, path):
    """Loads `.keras`, `.weights.h5` or the classic code's `.h5` weights.

    Args:
        model: The evaluation model of `CapsNet`.
        path: The file.

    Raises:
        UserError: If the file is damaged or its shapes are others.
    """
    if str(path).endswith(".keras"):
        copy_weights(load_model(path)[0], model, path)
        return
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs or "digitcaps" in file:
                load_classic_weights(file, model, path)
                return
        with warnings.catch_warnings():
            # Keras says in many lines what its error says in one.
            warnings.simplefilter("ignore")
            model.load_weights(path)
    except UserError:
        raise
    except Exception as error:  # h5py and Keras raise nearly anything.
        raise UserError(
            f"cannot load weights from {path!r}; check the file and the "
            f"model's flags, --model first: {reason_of(error)}"
        ) from error


def copy_weights(source, model, path):
    """Copies weights between two models of the same architecture."""

    def by_name(weights):
        # Layer and weight; a loaded decoder's paths lack its own name.
        return {"/".join(w.path.split("/")[-2:]): w for w in weights}

    assign(by_name(model.weights), by_name(source.weights), path)


def load_classic_weights(file, model, path):
    """Reads weights that CapsNet-Keras saved with Keras 2."""
    arrays = arrays_of(file)

    def pick(layer, suffix):
        names = [n for n in arrays if n.startswith(layer) and suffix in n]
        # `dense`, `dense_2`, `dense_10`: numbered from nothing or from 1.
        return [arrays[name] for name in sorted(names, key=len)]

    layers = {layer.name: layer for layer in model.layers}
    primary = layers["primarycap"]
    pairs = [
        (layers["conv1"].kernel, pick("conv1", "kernel:0")),
        (layers["conv1"].bias, pick("conv1", "bias:0")),
        (primary.conv.kernel, pick("primarycap_conv2d", "kernel:0")),
        (primary.bias, pick("primarycap_conv2d", "bias:0")),
        (layers["digitcaps"].kernel, pick("digitcaps", "W:0")),
    ]
    if "decoder" in layers:
        dense = [layer for layer in layers["decoder"].layers if layer.weights]
        for number, layer in enumerate(dense):
            for weight in layer.weights:
                found = pick("decoder", f"{weight.name}:0")
                pairs.append((weight, found[number:]))
    assign(
        {weight.path: weight for weight, _ in pairs},
        {weight.path: found[0] for weight, found in pairs if found},
        path,
    )


def assign(weights, arrays, path):
    """Gives weights the arrays of their names, if all shapes fit.

    Nothing is read before: a file may claim shapes that no memory can hold.
    """
    for name in sorted(weights.keys() | arrays.keys()):
        expected, received = (
            tuple(found[name].shape) if name in found else "no such weight"
            for found in (weights, arrays)
        )
        if expected != received:
            raise UserError(
                f"{path!r} does not fit: expected {name} {expected}, got "
                f"{received}; check --dataset and the model's flags"
            )
    for name, weight in weights.items():
        weight.assign(np.asarray(arrays[name]))
