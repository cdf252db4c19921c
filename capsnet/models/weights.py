"""Weights from files into a model that is there: all, or those that fit."""

import warnings

import h5py
import numpy as np

from capsnet.messages import UserError, reason_of
from capsnet.models.archive import arrays_of
from capsnet.models.saving import load_model

# What decides, beside its weights, about what a layer computes.
COMPUTING = ("strides", "scale", "routing", "routings", "squash", "use_bias")


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


def assign_fitting(weights, arrays, path):
    """`assign` for the layers of which all weights fit.

    Returns:
        The names of the other layers.

    Raises:
        UserError: If no layer fits.
    """
    fitting, left = {}, []
    for name, weight in weights.items():
        found = arrays.get(name)
        if found is None or tuple(found.shape) != tuple(weight.shape):
            left.append(layer_of(name))
    for name, weight in weights.items():
        if layer_of(name) not in left:
            fitting[name] = weight
    if not fitting:
        assign(weights, arrays, path)  # Raises.
    assign(fitting, {name: arrays[name] for name in fitting}, path)
    return list(dict.fromkeys(left))


def layer_of(name):
    """The layer of a weight's path: `dense1` of `decoder/dense1/kernel`."""
    layer = name.split("/")[-2]
    return "primarycap" if layer == "conv" else layer  # Its convolution.


def start_from(model, path):
    """`load_weights` for a training, which may have other classes.

    Returns:
        The names of the layers that do not fit and are left as they are, and
        what of the others is not as in a `.keras` file, for the user.
    """
    if not str(path).endswith(".keras"):
        return load_weights(model, path, assign_fitting) or [], []
    source = load_model(path)[0]
    left = copy_weights(source, model, path, assign_fitting)
    return left, differences(source, model, left)


def differences(source, model, left):
    """Layers with weights that are not here, or that compute something else."""
    ours = {layer.name: layer.get_config() for layer in model.layers}
    lines = []
    for layer in source.layers:
        if layer.name not in ours:
            lines += [f"{layer.name} (not here)"] if layer.weights else []
            continue
        theirs, own = layer.get_config(), ours[layer.name]
        for name in COMPUTING:
            if layer.name not in left and theirs.get(name) != own.get(name):
                was = f"{layer.name}'s {name} {theirs.get(name)}"
                lines.append(f"{was} (here {own.get(name)})")
    return lines


def load_weights(model, path, assign=assign):
    """Loads `.keras`, `.weights.h5` or the classic code's `.h5` weights.

    Args:
        model: The evaluation model of `CapsNet`.
        path: The file.
        assign: What is done with arrays that are found by name: `assign`, or
            `assign_fitting`; not for `.weights.h5`, which have to fit.

    Returns:
        What `assign` returns.

    Raises:
        UserError: If the file is damaged or its shapes are others.
    """
    if str(path).endswith(".keras"):
        return copy_weights(load_model(path)[0], model, path, assign)
    try:
        with h5py.File(path, "r") as file:
            if "layer_names" in file.attrs or "digitcaps" in file:
                return load_classic_weights(file, model, path, assign)
            # Keras would follow a link into another file.
            arrays_of(file, path)
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


def copy_weights(source, model, path, assign=assign):
    """Copies weights between two models of the same architecture."""

    def by_name(weights):
        # Layer and weight; a loaded decoder's paths lack its own name.
        return {"/".join(w.path.split("/")[-2:]): w for w in weights}

    return assign(by_name(model.weights), by_name(source.weights), path)


def load_classic_weights(file, model, path, assign=assign):
    """Reads weights that CapsNet-Keras saved with Keras 2."""
    arrays = arrays_of(file, path)

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
    return assign(
        {weight.path: weight for weight in model.weights},
        {weight.path: found[0] for weight, found in pairs if found},
        path,
    )
