"""saving."""

import contextlib
import io
import json
import math
import os
import shutil
import zipfile

import h5py
import keras
import numpy as np

from capsnet.files import RECORD, whole_file, write_json
from capsnet.messages import UserError, reason_of

# Where Keras keeps the weights in a `.keras` file.
WEIGHTS = "model.weights.h5"
# A SavedModel's place for what its loaders leave alone.
EXTRA = "assets.extra"
# Keras stores weights as they are; packed again they shrink by a tenth. What
# claims more than this times its file's size is no model.
MOST_EXPANSION = 10
CLASSIC_CONVOLUTIONS = ("conv1", "primarycap_conv2d")


def save_model(model, path, record):
    """Saves a whole model, with the run's record inside of the file.

    A `.keras` file is a zip archive; the record is one more member of it,
    which `keras.models.load_model` passes over.

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


def half_weights(content):
    """The bytes of a `.weights.h5` with float16 in place of float32."""
    halved = io.BytesIO()

    def copy(name, entry):
        if not isinstance(entry, h5py.Dataset):
            target.require_group(name).attrs.update(entry.attrs)
            return
        with np.errstate(over="ignore"):
            array = entry[()].astype("float16")
        if not np.isfinite(array).all():
            raise UserError(
                f"expected weights of at most 65,504 in {name!r}, got larger "
                "ones: they cannot be stored in 16 bits"
            )
        target.create_dataset(name, data=array).attrs.update(entry.attrs)

    with h5py.File(io.BytesIO(content)) as source:
        with h5py.File(halved, "w") as target:
            target.attrs.update(source.attrs)
            source.visititems(copy)
    return halved.getvalue()


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
    advice = "expected a model that capsulenet.py saved"
    try:
        with zipfile.ZipFile(path) as archive:
            # Keras and we read whole members; `testzip`, in small parts,
            # finds those that inflate to more than they claim.
            claimed = sum(member.file_size for member in archive.infolist())
            if claimed > MOST_EXPANSION * os.path.getsize(path):
                raise UserError(
                    f"{path!r} would inflate to {claimed:,} bytes, more than "
                    f"{MOST_EXPANSION} times its size; {advice}"
                )
            damaged = archive.testzip()
            if damaged is not None:
                raise UserError(f"{path!r} is damaged ({damaged}); {advice}")
            names = archive.namelist()
            record = json.loads(archive.read(RECORD)) if RECORD in names else {}
        # Twice as many as could be there: a weight takes two bytes at least.
        with at_most_weights(claimed, path):
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras and zipfile raise nearly anything.
        raise UserError(
            f"cannot load {path!r}; {advice}: {reason_of(error)}"
        ) from error
    flags = record.get("flags", {}) if isinstance(record, dict) else None
    if not isinstance(flags, dict):
        raise UserError(f"cannot read the record in {path!r}; {advice}")
    return model, record


@contextlib.contextmanager
def at_most_weights(most, path):
    """Refuses to build a model with more weights than its file can hold.

    Keras allocates the layers that a file's config names before it looks at
    the file's weights.
    """
    add_weight = keras.layers.Layer.add_weight
    total = 0

    def counted(layer, shape=None, *args, **kwargs):
        nonlocal total
        total += math.prod(shape or ())
        if total > most:
            raise UserError(
                f"{path!r} describes a model of {total:,} weights or more, "
                "which it is too small to hold; expected a model that "
                "capsulenet.py saved"
            )
        return add_weight(layer, shape, *args, **kwargs)

    keras.layers.Layer.add_weight = counted
    try:
        yield
    finally:
        keras.layers.Layer.add_weight = add_weight


def signature(model, path):
    """The shape of a loaded model's pictures and its number of classes.

    Raises:
        UserError: Unless it is an evaluation model of ours.
    """
    outputs = getattr(model, "output", None)
    image = getattr(getattr(model, "input", None), "shape", ())
    known = len(image) == 4 and None not in image[1:]
    if not known or not isinstance(outputs, dict) or "capsnet" not in outputs:
        raise UserError(
            f"expected a model that capsulenet.py saved, got {path!r}, a "
            f"model named {model.name!r}"
        )
    return tuple(image[1:]), outputs["capsnet"].shape[-1]


def check_model(model, path, input_shape, n_class):
    """Raises UserError unless a loaded model fits the data."""
    shape, classes = signature(model, path)
    if (shape, classes) == (tuple(input_shape), n_class):
        return
    theirs, ours = ("x".join(map(str, s)) for s in (shape, input_shape))
    advice = "choose another --dataset"
    flags = []
    if shape[:2] != tuple(input_shape[:2]):
        flags.append("--image_size {} {}".format(*shape))
    if shape[2] == 1 < input_shape[2]:
        flags.append("--grayscale")
    if flags and classes == n_class:
        advice += f", or add {' '.join(flags)}"
    raise UserError(
        f"{path!r} was trained on pictures of {theirs} (height x width x "
        f"channels) and {classes} classes, got {ours} and {n_class}; {advice}"
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
    loaded = [load_model(path) for path in paths]
    expected = None
    for path, (model, record) in zip(paths, loaded):
        input_shape, n_class = signature(model, path)
        received = input_shape, class_names_of(record, n_class)
        expected = expected or received
        if received != expected:
            raise UserError(
                "expected models of the same pictures and classes after -w, "
                f"got {paths[0]!r} and {path!r}, which differ; take one of "
                "them"
            )
    return [model for model, _ in loaded], expected[1], loaded[0][1]


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
        source, _ = load_model(path)
        copy_weights(source, model, path)
        return
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs or "digitcaps" in file:
                load_classic_weights(file, model, path)
                return
        model.load_weights(path)
    except UserError:
        raise
    except Exception as error:  # h5py and Keras raise nearly anything.
        raise UserError(
            f"cannot load weights from {path!r}: {reason_of(error)}"
        ) from error


def copy_weights(source, model, path):
    """Copies weights between two models of the same architecture."""

    def by_name(weights):
        # Layer and weight; a loaded decoder's paths lack its own name.
        return {"/".join(w.path.split("/")[-2:]): w for w in weights}

    ours, theirs = by_name(model.weights), by_name(source.weights)
    for name in sorted(ours.keys() | theirs.keys()):
        expected = ours[name].shape if name in ours else "no such weight"
        received = theirs[name].shape if name in theirs else "no such weight"
        if expected != received:
            raise UserError(
                f"{path!r} does not fit: expected {name} {expected}, got "
                f"{received}; check --dataset and the model's flags"
            )
    for name, weight in ours.items():
        weight.assign(theirs[name])


def load_classic_weights(file, model, path):
    """Reads weights that CapsNet-Keras saved with Keras 2."""
    arrays = {}
    file.visititems(
        lambda name, item: (
            arrays.update({name: item})
            if isinstance(item, h5py.Dataset)
            else None
        )
    )

    def pick(prefix, suffix):
        found = [
            name
            for name in arrays
            if name.startswith(prefix) and name.endswith(suffix)
        ]
        # Dense layers are numbered from nothing or from 1, by version.
        return [arrays[name] for name in sorted(found, key=natural)]

    conv1, primary = CLASSIC_CONVOLUTIONS
    layers = {layer.name: layer for layer in model.layers}
    targets = [
        (layers["conv1"].kernel, pick(conv1, "kernel:0")),
        (layers["conv1"].bias, pick(conv1, "bias:0")),
        (layers["primarycap"].conv.kernel, pick(primary, "kernel:0")),
        (layers["primarycap"].bias, pick(primary, "bias:0")),
        (layers["digitcaps"].kernel, pick("digitcaps", "W:0")),
    ]
    if "decoder" in layers:
        kernels = pick("decoder", "kernel:0")
        biases = pick("decoder", "bias:0")
        dense = [layer for layer in layers["decoder"].layers if layer.weights]
        for number, layer in enumerate(dense):
            targets.append((layer.kernel, kernels[number : number + 1]))
            targets.append((layer.bias, biases[number : number + 1]))
    for weight, found in targets:
        received = found[0].shape if found else "nothing"
        if received != tuple(weight.shape):
            raise UserError(
                f"{path!r} does not fit: expected {weight.path} of shape "
                f"{tuple(weight.shape)}, got {received}"
            )
    # Read only now: a file may claim shapes that no memory can hold.
    for weight, found in targets:
        weight.assign(np.asarray(found[0]))


def natural(name):
    """Sort key by which `dense`, `dense_2`, `dense_10` come in this order."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return [int(part) for part in digits]
