"""Models and weights as files: whole models, weights, a SavedModel.

A `.keras` file is a zip archive; the run's record is one more member of it,
which `keras.models.load_model` passes over. A file may come from a stranger:
it is loaded in Keras's safe mode, after archive.py has looked at it.
"""

import json
import math
import os
import shutil
import zipfile

import keras

from capsnet.devices import machine_memory
from capsnet.files import RECORD, beside, whole_file, write_json
from capsnet.limits import is_within
from capsnet.messages import UserError, cross, gigabytes, plain, reason_of
from capsnet.models.archive import (
    OURS,
    WEIGHTS,
    check_archive,
    half_weights,
)
from capsnet.models.records import check_record
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
        write_model(model, temporary, record)


def write_model(model, path, record):
    """`save_model`, in place."""
    model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(RECORD, json.dumps(record, indent=2))


def save_half(model, path, record):
    """`save_model` with the weights in float16, in half the space.

    They are rounded to three decimal digits, and load as what they were.

    Raises:
        UserError: If a weight is beyond 65,504, the largest number of 16 bits.
    """
    with whole_file(path) as temporary:
        write_model(model, temporary, record)
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
            check_record(record, path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras and zipfile raise nearly anything.
        raise UserError(
            f"cannot load {path!r}; {OURS}: {reason_of(error)}"
        ) from error
    return model, record


def signature(model, path):
    """The shape of a loaded model's pictures and its number of classes.

    Raises:
        UserError: Unless it is an evaluation model of ours, with two classes
            at least, that one picture finds memory in.
    """
    outputs = getattr(model, "output", None)
    lengths = outputs.get("capsnet") if isinstance(outputs, dict) else None
    image, n_class = (
        tuple(getattr(tensor, "shape", ()))[1:]
        for tensor in (getattr(model, "input", None), lengths)
    )
    is_known = len(image) == 3 and len(n_class) == 1
    is_known = is_known and all(is_within(n, "image_size") for n in image)
    if not is_known or None in n_class or n_class[0] < 2:
        raise UserError(f"{OURS}, got {path!r}, a model named {model.name!r}")
    tensors = keras.tree.flatten([layer.output for layer in model.layers])
    needed = 4 * max(math.prod(tensor.shape[1:]) for tensor in tensors)
    if needed > (machine_memory() or math.inf):
        raise UserError(
            f"{path!r} needs {gigabytes(needed)} of memory for one picture of "
            f"{cross(image)}, more than there is; {OURS}"
        )
    return image, n_class[0]


def check_model(model, path, input_shape, n_class, margin=0):
    """Raises UserError unless a loaded model fits the data.

    `margin` is how many pixels the data add on each side of a picture.
    """
    shape, classes = signature(model, path)
    if (shape, classes) == (tuple(input_shape), n_class):
        return
    flags = []
    if shape[:2] != tuple(input_shape[:2]):
        flags.append(
            f"--image_size {shape[0] - 2 * margin} {shape[1] - 2 * margin}"
        )
    if shape[2] == 1 < input_shape[2]:
        flags.append("--grayscale")
    advice = "choose another --dataset"
    # No flag adds colours or classes.
    can_fit = shape[2] in (1, input_shape[2]) and classes == n_class
    if flags and can_fit:
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
        return [plain(str(name)) for name in names]
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
    target = os.path.realpath(folder)  # A link stays, and leads to it.
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = beside(target)
    try:
        model.export(temporary, verbose=False)
        write_json(os.path.join(temporary, EXTRA, RECORD), record)
        if os.path.isdir(target):
            os.rmdir(target)
        os.rename(temporary, target)
    except (OSError, UserError):
        raise
    except Exception as error:  # Keras and TensorFlow raise nearly anything.
        raise UserError(
            f"cannot export to {folder!r}: {reason_of(error)}"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
