"""geometry."""

import bisect
import dataclasses
import math
import typing

from capsnet.messages import UserError, cross, gigabytes
from capsnet.models.fastconv import FastConv2D
from capsnet.models.toomcook import axis_plans

# Python, NumPy, Keras and TensorFlow without a network (measured).
PROGRAM_BYTES = 900e6
FLOAT_BYTES = 4
# Section 4 of the paper.
CONV_FILTERS = 256
PRIMARY_TYPES, DIM_PRIMARY = 32, 8
DECODER_UNITS = (512, 1024)
LARGEST_KERNEL, PRIMARY_STRIDES = 9, 2
SMALLEST_SIDE = 12
# Rows of conv1's output beyond which its stride grows.
LARGEST_MAP = 28


@dataclasses.dataclass
class Plan:
    """How large a capsule network will be; nothing is built.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        kernels, strides: Pairs of those of conv1 and PrimaryCap.
        feature_map: Shape of conv1's output.
        grid: Rows and columns of PrimaryCap's output.
        primary: Number and dimensions of the primary capsules.
        classes: Number and dimensions of the class capsules.
        routings: Rounds of routing.
        weight_sizes: Number of values in each kernel and bias.
        transformed: Values of the fast convolutions' transforms, for each
            picture and of the kernels.
    """

    input_shape: tuple
    kernels: tuple
    strides: tuple
    feature_map: tuple
    grid: tuple
    primary: tuple
    classes: tuple
    routings: int
    weight_sizes: list
    transformed: tuple

    @property
    def weights(self):
        return sum(self.weight_sizes)

    def memory(self, batch_size, test_batch=0, pictures=0, replicas=1):
        """An estimate of the largest resident size of a training run.

        Fitted to runs with TensorFlow on a CPU: 0.9 to 1.3 times of what was
        measured from 12x12 to 160x160 pixels and with batches of 1 to 400.

        Args:
            batch_size: Integer, pictures of a training step.
            test_batch: Integer, pictures of a step of the test.
            pictures: Integer, how many the data set has.
            replicas: By how many devices a batch is divided.

        Returns:
            Float, bytes.
        """
        maps, values = math.prod(self.feature_map), math.prod(self.input_shape)
        (num_capsule, dim_capsule), (n_class, _) = self.primary, self.classes
        pairs = n_class * num_capsule
        transformed, kernels = self.transformed

        # Weights, gradients and Adam's two averages; the kernels transformed,
        # their gradients, and the copy that a transposition makes; the
        # transforms that the last test has left.
        training = replicas * (4 * self.weights + 4 * kernels)
        # For each picture: both convolutions' outputs, before and after the
        # activation, and a gradient; transforms, four of which are kept or
        # at work at once; a value for each pair of capsules and each input
        # dimension, from the agreement and from the weighted sum in each
        # round but the first; pictures, reconstructions and gradients.
        training += batch_size * (
            3 * (maps + dim_capsule * num_capsule)
            + 4 * transformed
            + 2 * dim_capsule * pairs * (self.routings - 1)
            + 6 * values
        )
        # Adam's update comes when the pictures' values are freed; it holds six
        # arrays of the size of the largest weight for a moment.
        update = replicas * (
            4 * self.weights + 6 * max(self.weight_sizes) + kernels
        )
        # A test has no gradients, and keeps only what it is working at.
        testing = replicas * (3 * self.weights + 2 * kernels)
        testing += test_batch * (
            2 * maps + 3 * transformed + 3 * pairs + 2 * values
        )
        # One byte a value, and once more with margins to shift into.
        data = 2 * pictures * values
        return (
            PROGRAM_BYTES + data + FLOAT_BYTES * max(training, update, testing)
        )

    def table(self, batch_size, **sizes):
        """What comes, as lines for the user; `sizes` as in `memory`."""
        conv, primary = (
            f"{cross(kernel)} with strides {cross(strides)}"
            for kernel, strides in zip(self.kernels, self.strides)
        )
        rows = {
            "picture": f"{cross(self.input_shape)} (height x width x channels)",
            "feature map": f"{cross(self.feature_map)}, conv1 {conv}",
            "primary grid": f"{cross(self.grid)}, primarycap {primary}",
            "primary capsules": "{:,} of {} dimensions".format(*self.primary),
            "class capsules": "{} of {} dimensions".format(*self.classes),
            "weights": f"{self.weights:,}",
            "memory": f"about {gigabytes(self.memory(batch_size, **sizes))} "
            f"on a CPU, in batches of {batch_size}",
        }
        return "\n".join(f"{name:<18}{value}" for name, value in rows.items())


def check_memory(make_plan, input_shape, batch_size, available, **sizes):
    """Refuses a training that needs more memory than there is.

    Args:
        make_plan: Function from an input shape to a `Plan`.
        input_shape: Tuple `(height, width, channels)`.
        batch_size: Integer, pictures of a training step.
        available: Bytes, or `None` for no check.
        **sizes: As in `Plan.memory`.

    Raises:
        UserError: With the largest batch that fits, or the largest picture,
            where no batch does.
    """

    def fits(shape, count):
        try:
            return make_plan(shape).memory(count, **sizes) <= available
        except UserError:  # Too small a picture, perhaps for the flags.
            return False

    if available is None or fits(input_shape, batch_size):
        return
    needed = make_plan(input_shape).memory(batch_size, **sizes)
    message = (
        f"training in batches of {batch_size} needs about {gigabytes(needed)} "
        f"of memory, and this machine has {gigabytes(available)}: "
    )
    if fits(input_shape, 1):
        # The memory grows with the batch: the first that does not fit.
        first = bisect.bisect_left(
            range(batch_size), 1, key=lambda n: not fits(input_shape, n)
        )
        raise UserError(f"{message}use --batch_size {first - 1} or less")
    height, width, channels = input_shape
    for rows in range(height - 1, 0, -1):
        columns = round(rows * width / height)
        if fits((rows, columns, channels), batch_size):
            raise UserError(f"{message}use --image_size {rows} {columns}")
    raise UserError(f"{message}no size of pictures fits")


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
    sizes, what = [picture], "picture"
    for name in ("conv", "primary"):
        kernel = getattr(geometry, f"{name}_kernel")
        strides = getattr(geometry, f"{name}_strides")
        size = sizes[-1]
        if kernel[0] > size[0] or kernel[1] > size[1]:
            advice = f"lower --{name}_kernel"
            if name == "primary":
                advice += ", --conv_kernel or --conv_strides"
            raise UserError(
                f"expected a {name}_kernel (height x width) within the {what} "
                f"of {cross(size)}, received {cross(kernel)}: "
                f"{advice}"
            )
        sizes.append(
            tuple((n - k) // s + 1 for n, k, s in zip(size, kernel, strides))
        )
        what = "feature map"
    return sizes[1:]


def make_plan(
    input_shape,
    n_class,
    routings=3,
    dim_capsule=16,
    capsule_bias=None,
    conv="auto",
    decoder=True,
    **given,
):
    """A `geometry.Plan` of what `CapsNet` makes of these arguments."""
    input_shape = tuple(input_shape)
    shapes = fit_geometry(*input_shape[:2], **given)
    feature_map, grid = map_sizes(shapes, input_shape[:2])
    feature_map = (*feature_map, CONV_FILTERS)
    kernels = shapes.conv_kernel, shapes.primary_kernel
    strides = shapes.conv_strides, shapes.primary_strides
    convolutions = (
        (input_shape, kernels[0], strides[0], CONV_FILTERS),
        (feature_map, kernels[1], strides[1], PRIMARY_TYPES * DIM_PRIMARY),
    )
    num_capsule = math.prod(grid) * PRIMARY_TYPES
    capsules = n_class * dim_capsule
    sizes = []
    for shape, kernel, _, filters in convolutions:
        sizes += [math.prod(kernel) * shape[2] * filters, filters]
    sizes += [num_capsule * DIM_PRIMARY * capsules]
    sizes += [] if capsule_bias is None else [capsules]
    if decoder:
        units = (capsules, *DECODER_UNITS, math.prod(input_shape))
        for inputs, outputs in zip(units, units[1:]):
            sizes += [inputs * outputs, outputs]
    transformed = [transform_sizes(*each, conv) for each in convolutions]
    return Plan(
        input_shape=input_shape,
        kernels=kernels,
        strides=strides,
        feature_map=feature_map,
        grid=grid,
        primary=(num_capsule, DIM_PRIMARY),
        classes=(n_class, dim_capsule),
        routings=routings,
        weight_sizes=sizes,
        transformed=tuple(map(sum, zip(*transformed))),
    )


def transform_sizes(shape, kernel, strides, filters, method):
    """Values of a fast convolution's transforms: of a picture, the kernel."""
    layer = FastConv2D(
        filters,
        kernel,
        strides=strides,
        method=method,
        # A random one would draw a seed, and change those of the network.
        kernel_initializer="zeros",
    )
    if not layer.uses_fast_path((None, *shape)):
        return 0, 0
    y, x = axis_plans(shape[:2], kernel, strides, "valid")
    points = y.n * x.n
    # The larger of what goes into the products and comes out.
    channels = max(shape[2], filters)
    of_picture = points * y.tiles * x.tiles * channels
    return of_picture, points * shape[2] * filters
