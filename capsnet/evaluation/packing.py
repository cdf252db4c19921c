"""A network's layers in a form that the page of `--explore` can compute.

Weights are integers of 12 bits with a scale for each column. The decoder of
`result/mnist/v4.keras` is then wrong by up to 0.004 in a pixel of 500 test
digits, with 8 bits by up to 0.054.
"""

import base64

import keras
import numpy as np

from capsnet.messages import UserError
from capsnet.models.fastconv import CoveringConv2D, FastConv2D
from capsnet.models.normalization import BatchNormalization, Present
from capsulelayers import CapsuleLayer, PrimaryCap

# A larger encoder makes the page too large, and reads a drawing too slowly.
LARGEST_ENCODER = 1_000_000
LARGEST_INTEGER = 2**11 - 1
ACTIVATIONS = ("linear", "relu", "sigmoid")
WITHOUT_WEIGHTS = (keras.layers.Activation, keras.layers.Reshape)


def encoded(array, dtype):
    """The bytes of an array as base64."""
    content = np.ascontiguousarray(array, dtype).tobytes()
    return base64.b64encode(content).decode()


def packed(weights):
    """Weights as integers of 12 bits, with a scale for each column.

    A column is the last axis. The upper 8 bits of all integers are one array,
    the lower 4 another, with two in a byte, the first one in its lower half.
    """
    weights = weights.reshape(-1, weights.shape[-1])
    scales = np.abs(weights).max(0) / LARGEST_INTEGER
    scales[scales == 0] = 1
    integers = np.rint(weights / scales).astype("int16").ravel()
    lower = np.append(integers, 0) & 15  # One more, if they are odd.
    pairs = lower[: len(lower) // 2 * 2].reshape(-1, 2)
    return {
        "upper": encoded(integers >> 4, "i1"),
        "lower": encoded(pairs[:, 0] | pairs[:, 1] << 4, "u1"),
        "scales": encoded(scales, "<f4"),
    }


def dense_layers(decoder):
    """The decoder's layers for the page."""
    found = []
    for layer in decoder.layers:
        if isinstance(layer, keras.layers.Dense):
            kernel, bias = map(keras.ops.convert_to_numpy, layer.weights)
            found.append({"kernel": packed(kernel)})
            found[-1]["bias"] = encoded(bias, "<f4")
        elif not isinstance(layer, WITHOUT_WEIGHTS):
            raise unknown(layer)
        if hasattr(layer, "activation"):
            found[-1]["activation"] = layer.activation.__name__
            if found[-1]["activation"] not in ACTIVATIONS:
                raise unknown(layer)
    return found


def unknown(layer):
    """The error that names a decoder's layer which the page cannot compute."""
    return UserError(
        "--explore expects a decoder of dense layers with relu and sigmoid, "
        f"got one with {layer.name!r}; test it with -t, or draw with --digit"
    )


def encoder_of(eval_model):
    """The encoder's layers for the page, or None; and why there is none."""
    if eval_model.input.shape[-1] != 1:
        return None, "Drawing is for models of pictures with one channel."
    size = eval_model.count_params()
    size -= eval_model.get_layer("decoder").count_params()
    if size > LARGEST_ENCODER:
        return None, (
            f"This model’s encoder has {size / 1e6:.1f} million weights, too "
            "many for a page. The small network’s would fit in."
        )
    layers = encoder_layers(eval_model)
    if layers is None:
        return None, "The encoder has layers that this page does not know."
    return layers, None


def encoder_layers(eval_model):
    """The layers from the picture to the class capsules, or None.

    What batch normalization does to each channel goes into the kernel of the
    layer above it, which is exact where nothing is padded.
    """
    found, factor, offset = [], 1.0, 0.0
    for layer in eval_model.layers:
        if isinstance(layer, (keras.layers.InputLayer, Present)):
            continue
        if isinstance(layer, BatchNormalization):
            factor, offset = normalization(layer)
        elif isinstance(layer, CapsuleLayer):
            found.append(capsule_layer(layer))
            if layer.name == "digitcaps":
                return found
        elif isinstance(layer, (FastConv2D, PrimaryCap)):
            made = convolution(layer, factor, offset)
            if made is None:
                return None
            found.append(made)
            factor, offset = 1.0, 0.0
            if isinstance(layer, PrimaryCap):
                group = {"kind": "grouping", "squash": layer.squash}
                found.append({**group, "dimensions": layer.dim_capsule})
        else:
            return None
    return None


def normalization(layer):
    """The factor and the offset of each channel, `(channels,)`."""
    gamma, beta, mean, variance = map(
        keras.ops.convert_to_numpy,
        (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance),
    )
    factor = gamma / np.sqrt(variance + layer.epsilon)
    return factor, beta - factor * mean


def convolution(layer, factor, offset):
    """A convolution for the page, of a layer of its own or in `PrimaryCap`.

    Args:
        layer: The layer.
        factor, offset: What each channel of its input is multiplied by, and
            what is then added: floats or arrays of shape `(channels,)`.

    Returns:
        Dictionary, or None where the page could not compute it.
    """
    conv = getattr(layer, "conv", layer)
    kernel, bias = map(keras.ops.convert_to_numpy, (conv.kernel, layer.bias))
    kernel = kernel * getattr(layer, "scale", 1.0)
    if isinstance(conv, CoveringConv2D):
        kernel = kernel[:, :, 0]
        added, kernel = kernel * offset, kernel * factor
        bias = bias + added.sum((0, 1))
        made = {"kind": "covering"}
    else:
        config = conv.get_config()
        if (
            config["padding"] != "valid"
            or config["groups"] != 1
            or tuple(config["dilation_rate"]) != (1, 1)
            or conv.activation.__name__ not in ACTIVATIONS[:2]
        ):
            return None
        added = kernel * np.reshape(offset, (-1, 1))
        kernel = kernel * np.reshape(factor, (-1, 1))
        bias = bias + added.sum((0, 1, 2))
        made = {
            "kind": "convolution",
            "size": list(conv.kernel_size),
            "strides": list(conv.strides),
            "activation": conv.activation.__name__,
        }
    return {**made, "kernel": packed(kernel), "bias": encoded(bias, "<f4")}


def capsule_layer(layer):
    """A `CapsuleLayer` for the page."""
    made = {
        "kind": "routing",
        "routing": layer.routing,
        "rounds": layer.routings,
        "squash": layer.squash,
        "outputs": layer.num_capsule,
        "inputs": layer.input_num_capsule,
        "dimensions": layer.dim_capsule,
        "kernel": packed(keras.ops.convert_to_numpy(layer.kernel)),
    }
    for name in ("bias", "prior"):
        if hasattr(layer, name):
            weight = keras.ops.convert_to_numpy(getattr(layer, name))
            made[name] = encoded(weight, "<f4")
    return made
