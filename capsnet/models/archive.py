"""The inside of a `.keras` file: what it may describe, and 16-bit weights.

Keras's safe mode refuses code, but allocates whatever a config describes and
reads whatever a member inflates to. So a file is looked at before: it has to
hold all that it claims, and names no classes but known ones.
"""

import io
import json
import math
import os
import zipfile

import h5py
import numpy as np

from capsnet.limits import INTEGERS, is_within
from capsnet.messages import UserError, cross, shorten

# Where Keras keeps the layers and the weights in a `.keras` file.
CONFIG, WEIGHTS = "config.json", "model.weights.h5"
# Keras stores weights as they are; packed again they shrink by a tenth. What
# claims more than this times its file's size is no model.
MOST_EXPANSION = 10
# The classes that a model's config may name, beside those of `KERNELS`.
KNOWN = (
    "Functional Sequential InputLayer __keras_tensor__ DTypePolicy Mask Length "
    "Activation Add Concatenate Cropping1D Dropout Flatten MaxPooling2D Named "
    "Reshape Softmax BatchNormalization Present Zeros Ones Constant "
    "GlorotUniform HeNormal RandomNormal TruncatedNormal CapsuleNormal "
    "L1 L2 L1L2 MaxNorm NonNeg UnitNorm"
).split()
# Those with a kernel, and its shape by their config and their input's shape.
KERNELS = {
    "Dense": lambda of, inputs: (inputs[-1], of["units"]),
    "Conv2D": lambda of, inputs: (
        (*of["kernel_size"], inputs[-1], of["filters"])
    ),
    "PrimaryCap": lambda of, inputs: (
        (*of["kernel_size"], inputs[-1], of["n_channels"] * of["dim_capsule"])
        if of["kernel_size"]
        else (*inputs[1:3], 1, inputs[-1])
    ),
    "CapsuleLayer": lambda of, inputs: (
        (of["num_capsule"], inputs[1], of["dim_capsule"], inputs[2])
    ),
}
# How zipfile inflates in small parts.
PACKINGS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
OURS = "expected a model that capsulenet.py saved"


def check_archive(archive, path):
    """Raises UserError for a `.keras` file that claims more than it holds.

    Keras allocates the layers that a config describes before it looks at the
    weights. So each kernel of the config has to be there, in this shape.
    """
    claimed = check_packing(archive, path)
    with h5py.File(io.BytesIO(archive.read(WEIGHTS))) as file:
        stored = [array.shape for array in arrays_of(file, path).values()]
    # A weight takes two bytes at least.
    if 2 * sum(map(math.prod, stored)) > claimed:
        raise UserError(f"{path!r} is too small for its weights; {OURS}")
    config = json.loads(archive.read(CONFIG))
    config.pop("compile_config", None)  # Keras passes over it, too.
    for layer in described_in(config):
        name = layer["class_name"]
        # Each round becomes a part of the model: it would never be loaded.
        rounds = layer.get("config", {}).get("routings") or 1
        if not is_within(rounds, "routings"):
            raise UserError(
                f"{path!r} has {shorten(repr(rounds), 20)} rounds of routing, "
                f"expected at most {INTEGERS['routings'][1]}; {OURS}"
            )
        if name in KERNELS:
            inputs = layer["build_config"]["input_shape"]
            kernel = KERNELS[name](layer["config"], inputs)
            if kernel not in stored or "module" not in layer:
                raise UserError(
                    f"{path!r} describes weights of {cross(kernel)}, which it "
                    f"does not hold; {OURS}"
                )
            stored.remove(kernel)
        elif name not in KNOWN:
            raise UserError(
                f"{path!r} has a {name!r}, which is not known; {OURS} (a class "
                "of your own belongs into KNOWN in capsnet/models/archive.py)"
            )


def check_packing(archive, path):
    """The bytes that a file's members inflate to.

    Raises UserError where they are too many, damaged, or packed otherwise.
    """
    claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MOST_EXPANSION * os.path.getsize(path):
        raise UserError(
            f"{path!r} would inflate to {claimed:,} bytes, more than "
            f"{MOST_EXPANSION} times its size; {OURS}"
        )
    if {each.compress_type for each in archive.infolist()} - PACKINGS:
        # Inflated at once, whatever is claimed.
        raise UserError(f"{path!r} is not packed by deflate; {OURS}")
    # Whole members are read below; this finds, in small parts, those that
    # inflate to more than they claim.
    damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path!r} is damaged ({damaged}); {OURS}")
    return claimed


def described_in(config):
    """Every part of a model's config that names a class."""
    if isinstance(config, dict):
        if "class_name" in config:
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from described_in(part)


def arrays_of(file, path):
    """The arrays in an HDF5 file by name; they are not read yet.

    Args:
        file: An open file.
        path: What the user calls it.

    Raises:
        UserError: If what is there is no array of numbers that the file
            itself holds: who reads it would read another file, or more than
            this one is.
    """
    found = {}

    def note(name, link):
        entry = file[name] if isinstance(link, h5py.HardLink) else link
        if isinstance(entry, h5py.Dataset) and is_held(entry):
            found[name] = entry
        elif not isinstance(entry, h5py.Group):
            return name  # Ends the visit.

    wrong = file.visititems_links(note)
    if wrong is not None:
        raise UserError(
            f"expected weights that Keras saved, got {path!r}, in which "
            f"{wrong!r} is no array of numbers in the file itself"
        )
    return found


def is_held(array):
    """Whether a file holds all numbers of an array in it."""
    elsewhere = array.external or array.is_virtual
    stored = array.id.get_storage_size()
    is_whole = array.nbytes <= MOST_EXPANSION * stored
    return array.dtype.kind in "fiu" and is_whole and not elsewhere


def half_weights(content):
    """The bytes of a `.weights.h5` with float16 in place of float32."""
    halved = io.BytesIO()
    with (
        h5py.File(io.BytesIO(content)) as source,
        h5py.File(halved, "w") as target,
    ):
        for name, array in arrays_of(source, "model").items():
            with np.errstate(over="ignore"):
                target[name] = array[()].astype("float16")
            if not np.isfinite(target[name]).all():
                raise UserError(
                    f"expected weights of at most 65,504 in {name!r}, got "
                    "larger ones: they cannot be stored in 16 bits"
                )
    return halved.getvalue()
