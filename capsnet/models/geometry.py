"""Section 4's numbers for any size of picture, and what was built of them.

`fit_geometry` chooses kernels and strides before a network is built.
`describe` and `training_memory` read the network that was built, whatever
layers it has: a table for the user, and the memory that training will take.
"""

import math
import typing

from keras import tree

from capsnet.messages import UserError, cross, gigabytes
from capsnet.models.fastconv import CoveringConv2D, FastConv2D
from capsnet.models.toomcook import axis_plans

# Section 4 of the paper.
CONV_FILTERS = 256
PRIMARY_TYPES, DIM_PRIMARY = 32, 8
DECODER_UNITS = (512, 1024)
LARGEST_KERNEL, PRIMARY_STRIDES = 9, 2
SMALLEST_SIDE = 12
# Rows of conv1's output beyond which its stride grows.
LARGEST_MAP = 28
# Python, NumPy, Keras and TensorFlow without a network (measured).
PROGRAM_BYTES = 900e6
FLOAT_BYTES = 4


class Geometry(typing.NamedTuple):
    """Rows and columns of both convolutions' kernels and strides."""

    conv_kernel: tuple
    conv_strides: tuple
    primary_kernel: tuple
    primary_strides: tuple


def choose_geometry(height, width):
    """Kernels and strides for a picture size; 9, 1, 9, 2 from 28 to 36.

    Along each side, both kernels are just under a third of it and at most 9,
    the strides are 1 and 2, and conv1's stride (with its kernel, where that
    would be smaller) grows so that at most 28 rows come out of it.

    Args:
        height, width: Integers of at least 12.

    Returns:
        A `Geometry`; the primary grid that it leads to has 4 to 10 rows.

    Raises:
        UserError: If the picture is too small.
    """
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"expected pictures of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} "
            f"pixels (height x width), received {height}x{width}: enlarge "
            "them with --image_size, or set all of --conv_kernel, "
            "--conv_strides, --primary_kernel and --primary_strides"
        )
    sides = []
    for size in (height, width):
        kernel = min((size - 1) // 3, LARGEST_KERNEL)
        strides = (size - kernel) // LARGEST_MAP + 1
        sides.append((max(kernel, strides), strides, kernel, PRIMARY_STRIDES))
    return Geometry(*zip(*sides))


def fit_geometry(height, width, **given):
    """`choose_geometry`, but for what is given.

    Args:
        height, width: Integers, the picture's size.
        **given: `Geometry`'s fields: an integer, a pair, or `None` for what
            `choose_geometry` says.

    Returns:
        A `Geometry` that leaves at least one cell of the picture.

    Raises:
        UserError: If it leaves nothing, or the picture is too small.
    """
    chosen = {
        name: (value, value) if isinstance(value, int) else tuple(value)
        for name, value in given.items()
        if value is not None
    }
    if len(chosen) < len(Geometry._fields):
        chosen = choose_geometry(height, width)._asdict() | chosen
    geometry = Geometry(**chosen)
    map_sizes(geometry, (height, width))
    return geometry


def map_sizes(geometry, picture):
    """Rows and columns of conv1's and of PrimaryCap's output.

    Raises:
        UserError: If a kernel is larger than what it is to go over.
    """
    sizes = []
    size = picture
    for name, what, more in (
        ("conv", "picture", ""),
        ("primary", "feature map", ", --conv_kernel or --conv_strides"),
    ):
        kernel = getattr(geometry, f"{name}_kernel")
        strides = getattr(geometry, f"{name}_strides")
        if kernel[0] > size[0] or kernel[1] > size[1]:
            raise UserError(
                f"expected a {name}_kernel (height x width) within the {what} "
                f"of {cross(size)}, received {cross(kernel)}: lower "
                f"--{name}_kernel{more}"
            )
        size = tuple((n - k) // s + 1 for n, k, s in zip(size, kernel, strides))
        sizes.append(size)
    return sizes


def describe(model, batch_size, **sizes):
    """What was built, as lines for the user.

    Args:
        model: A training or an evaluation model; layers of one's own in it
            are counted, and of those with capsules or convolutions ours are
            named.
        batch_size, **sizes: As in `training_memory`.
    """
    picture = model.get_layer("image").output.shape[1:]
    rows = [("picture", f"{cross(picture)} (height x width x channels)")]
    for layer in model.layers:
        conv = getattr(layer, "conv", layer)
        if isinstance(conv, (FastConv2D, CoveringConv2D)):
            primary = conv is not layer
            shape = conv.compute_output_shape(layer.input.shape)[1:]
            how = f"{cross(conv.kernel.shape[:2])} depthwise"
            if isinstance(conv, FastConv2D):
                how = (
                    f"{cross(conv.kernel_size)} with strides "
                    f"{cross(conv.strides)}"
                )
            kind = "primary grid" if primary else "feature map"
            size = cross(shape[:2] if primary else shape)
            rows.append((kind, f"{size}, {layer.name} {how}"))
        if hasattr(layer, "num_capsule"):
            kind = {"primarycap": "primary", "digitcaps": "class"}
            name = f"{kind.get(layer.name, layer.name)} capsules"
            number, dimensions = layer.output.shape[1:]
            rows.append((name, f"{number:,} of {dimensions} dimensions"))
    needed = gigabytes(training_memory(model, batch_size, **sizes))
    rows += [
        ("weights", f"{parameters(model):,}"),
        ("memory", f"about {needed} on a CPU, in batches of {batch_size}"),
    ]
    return "\n".join(f"{name:<17} {value}" for name, value in rows)


def parameters(model):
    """The number of weights that are trained; statistics are none."""
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


def training_memory(model, batch_size, test_batch=0, pictures=0, replicas=1):
    """An estimate of the largest resident size of a training run, in bytes.

    Fitted to runs with TensorFlow on a CPU: 0.7 to 1.4 times of what was
    measured with 10 to 196 classes and from 12x12 to 160x160 pixels.

    Args:
        model: A training or an evaluation model.
        batch_size: Integer, pictures of a training step.
        test_batch: Integer, pictures of a step of the test.
        pictures: Integer, how many the data set has.
        replicas: By how many devices a batch is divided.
    """
    weights = model.count_params()
    largest = max(math.prod(weight.shape) for weight in model.weights)
    values = math.prod(model.get_layer("image").output.shape[1:])
    outputs = sum(
        math.prod(tensor.shape[1:])
        for layer in model.layers
        for tensor in tree.flatten(layer.output)
    )
    transformed, kernels = transforms(model)
    capsule_kernels = kept = tested = 0
    for layer in model.layers:
        if hasattr(layer, "routings"):
            pairs = layer.num_capsule * layer.input_num_capsule
            # A product for each dimension of an input capsule, for the sum
            # and for the agreement, is kept in each round but the first; so
            # does attention, which has no rounds.
            rounds = (layer.routings or 2) - 1
            kept += 2 * layer.input_dim_capsule * pairs * rounds
            tested += (layer.input_dim_capsule + 2) * pairs
            # So has each use of the kernel a gradient, before their sum.
            size = math.prod(layer.kernel.shape)
            capsule_kernels += 2 * rounds * size

    # Weights, gradients and Adam's two averages; the kernels transformed,
    # their gradients and copies; outputs before and after the activation, and
    # their gradients; transforms, four of which are at work at once.
    training = replicas * (4 * weights + 4 * kernels + capsule_kernels)
    training += batch_size * (3 * outputs + 4 * transformed + kept)
    # Adam's update comes when the pictures' values are freed; it holds six
    # arrays of the size of the largest weight for a moment.
    update = replicas * (4 * weights + 6 * largest + kernels)
    # A test has no gradients, and keeps only what it is working at.
    testing = replicas * (3 * weights + 2 * kernels)
    testing += test_batch * (2 * outputs + 2 * transformed + tested)
    # One byte a value, and once more with margins to shift into.
    data = 2 * pictures * values
    return PROGRAM_BYTES + data + FLOAT_BYTES * max(training, update, testing)


def transforms(model):
    """Values of all fast convolutions' transforms: of a picture, the kernels.

    Args:
        model: A Keras model that is built.
    """
    of_picture = of_kernels = 0
    for layer in model._flatten_layers():
        if not isinstance(layer, FastConv2D):
            continue
        shape = layer.get_build_config()["input_shape"]
        if layer.uses_fast_path(shape):
            geometry = layer.kernel_size, layer.strides, layer.padding
            y, x = axis_plans(tuple(shape[1:3]), *geometry)
            points = y.n * x.n
            # The larger of what goes into the products and comes out.
            channels = max(shape[-1], layer.filters)
            of_picture += points * y.tiles * x.tiles * channels
            of_kernels += points * shape[-1] * layer.filters
    return of_picture, of_kernels
