"""A convolution layer with a fast path for CPUs.

`FastConv2D` is `keras.layers.Conv2D` with one more argument, `method`. Its
weights, its config and its files are those of `Conv2D`; only the way to the
result differs. The fast way needs a fraction of the multiplications (for the
9x9 convolution of CapsNet's primary capsules an eighth in the products over
the channels, and a sixth with the transforms before and after them) and does
them as dense matrix products, which is what a CPU is best at.

How it works, in one dimension first:

1. *Parts.* With a stride of 2, even rows of the picture only ever meet even
   taps of the kernel, and odd rows odd taps. So the convolution is the sum of
   two convolutions of stride 1, one with the even rows and taps and one with
   the odd ones. A kernel with many taps is cut into runs in the same way.

2. *Toom-Cook.* `m` outputs of a convolution with `r` taps are the
   coefficients of a product of polynomials. Instead of multiplying all pairs
   of coefficients, evaluate the two polynomials at `m + r - 1` points,
   multiply the values point by point, and interpolate: `m + r - 1`
   multiplications instead of `m * r`. (The layer needs the transpose of that
   product, which takes the same three matrices.) With the points fixed,
   evaluation and interpolation are constant matrices:
   `output = A' [(G kernel) * (B' input)]`.

3. *Together.* The points of all parts lie side by side: the rows of `G` and
   `B'` pick out the taps and the rows of a part, and `A'` sums over the parts
   while it interpolates. 9 taps with a stride of 2 are parts of 5 and 4 taps;
   6 outputs take 10 + 9 = 19 multiplications instead of 54.

4. *Two dimensions.* Apply it to the rows and to the columns:
   `output = A' [(G kernel G') * (B' input B)] A`, for each tile of `m x m`
   outputs. The products in the brackets are summed over the channels: a
   matrix product of `(tiles, channels)` with `(channels, filters)` for each
   of the `n x n` points, which is where most of the time goes.

The result equals that of `Conv2D` but for rounding: its relative error is
about 1e-4 in float32 at ten points a part. That is too much for 16-bit
numbers, and GPUs have faster ways; so `method="auto"` uses it on CPUs in
float32 only.

Sources: Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*,
CVPR 2016 (the nesting, 'Winograd's minimal filtering'); Toom 1963 and Cook
1966 (evaluation and interpolation).
"""

import functools
import importlib
import math
from fractions import Fraction

import keras
import numpy as np
from keras import ops

# Small numbers and their inverses keep the matrices well conditioned. With
# the point at infinity they allow for transforms of up to ten points.
POINTS = [
    Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "3", "-1/3")
]
MAX_POINTS = len(POINTS) + 1
# Pictures over which the transform of the kernel is counted as shared.
NOMINAL_BATCH = 100


def polynomial_from_roots(roots):
    """Ascending coefficients of the product of `(x - root)`."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        scaled = [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled)]
    return coefficients


def toom_cook(m, r):
    """The exact matrices for `m` outputs of a correlation with `r` taps.

    Args:
        m: Positive integer, outputs of one tile.
        r: Positive integer, taps of the kernel.

    Returns:
        `(A', G, B')`, lists of rows of `fractions.Fraction`, of shapes
        `(m, n)`, `(n, r)` and `(n, n)` with `n = m + r - 1`, such that
        `A' [(G g) * (B' d)]` is the correlation of `d` (n values) with `g`.

    Raises:
        ValueError: If more than `MAX_POINTS` points are needed.
    """
    n = m + r - 1
    if n > MAX_POINTS:
        raise ValueError(
            f"Expected m + r - 1 <= {MAX_POINTS}. Received: m={m}, r={r}"
        )
    finite = POINTS[: n - 1]
    output = [[p**i for p in finite] + [Fraction(i == m - 1)] for i in range(m)]
    kernel, data = [], []
    for j, point in enumerate(finite):
        others = finite[:j] + finite[j + 1 :]
        scale = math.prod((point - q for q in others), start=Fraction(1))
        kernel.append([point**k / scale for k in range(r)])
        data.append(polynomial_from_roots(others) + [Fraction(0)])
    kernel.append([Fraction(k == r - 1) for k in range(r)])
    data.append(polynomial_from_roots(finite))
    return output, kernel, data


def balanced_toom_cook(m, r):
    """`toom_cook` in floating point, scaled for the smallest error.

    For each point the three vectors that belong to it get the same norm; the
    product of the three scales is one, so that the result stays the same.
    """
    output, kernel, data = (
        np.array(matrix, dtype="float64") for matrix in toom_cook(m, r)
    )
    norms = np.stack(
        [
            np.linalg.norm(output, axis=0),
            np.linalg.norm(kernel, axis=1),
            np.linalg.norm(data, axis=1),
        ]
    )
    scales = np.prod(norms, axis=0) ** (1 / 3) / norms
    return (
        output * scales[0],
        kernel * scales[1][:, None],
        data * scales[2][:, None],
    )


class AxisPlan:
    """How one axis of the picture is convolved: parts, tiles and matrices.

    Args:
        size: Positive integer, rows of the input.
        kernel_size: Positive integer, rows of the kernel.
        stride: Positive integer.
        padding: `"valid"` or `"same"`.

    Attributes:
        outputs: Rows of the output.
        parts: List of lists, the kernel rows (taps) of each part.
        m, n, tiles: Outputs and points of a tile, and number of tiles.
    """

    def __init__(self, size, kernel_size, stride, padding):
        self.size, self.kernel_size, self.stride = size, kernel_size, stride
        if padding == "same":
            self.outputs = -(-size // stride)
            total = (self.outputs - 1) * stride + kernel_size - size
            self.pad = max(total, 0) // 2
        else:
            self.outputs = (size - kernel_size) // stride + 1
            self.pad = 0
        phase_taps = -(-kernel_size // stride)
        # The fewest products, and of those the fewest points.
        _, self.n, taps, self.m = min(
            (-(-self.outputs // m) * n, n, taps, m)
            for taps in range(1, min(phase_taps, MAX_POINTS) + 1)
            for m in range(1, MAX_POINTS - taps + 2)
            for n in [sum(m + len(p) - 1 for p in self._cut(taps))]
        )
        self.tiles = -(-self.outputs // self.m)
        self.parts = self._cut(taps)

    def _cut(self, taps):
        """The phases of the kernel's rows, in runs of at most `taps`."""
        phases = [
            range(phase, self.kernel_size, self.stride)
            for phase in range(min(self.stride, self.kernel_size))
        ]
        return [
            list(phase[start : start + taps])
            for phase in phases
            for start in range(0, len(phase), taps)
        ]

    def matrices(self):
        """The constant matrices of this axis, float32.

        Returns:
            Three arrays: for the output, shape `(m, n)`; for the kernel,
            `(n, kernel_size)`; for the input, `(n, tiles, size)`. Padding is
            in the last one: rows outside of the picture have no column.
        """
        outputs, kernels, inputs = [], [], []
        for part in self.parts:
            output, of_taps, of_rows = balanced_toom_cook(self.m, len(part))
            points = len(of_taps)
            kernel = np.zeros((points, self.kernel_size))
            kernel[:, part] = of_taps
            select_rows = np.zeros((points, self.tiles, self.size))
            for tile in range(self.tiles):
                for j in range(points):
                    row = part[0] + self.stride * (tile * self.m + j) - self.pad
                    if 0 <= row < self.size:
                        select_rows[j, tile, row] = 1
            outputs.append(output)
            kernels.append(kernel)
            inputs.append(np.tensordot(of_rows, select_rows, 1))
        return (
            np.concatenate(outputs, axis=1).astype("float32"),
            np.concatenate(kernels).astype("float32"),
            np.concatenate(inputs).astype("float32"),
        )


@functools.lru_cache(maxsize=64)
def axis_plans(input_size, kernel_size, strides, padding):
    """The two `AxisPlan`s of one convolution."""
    return [
        AxisPlan(*axis, padding)
        for axis in zip(input_size, kernel_size, strides)
    ]


@functools.lru_cache(maxsize=64)
def plan(input_size, kernel_size, strides, padding):
    """The two `AxisPlan`s and their matrices for one convolution."""
    axes = axis_plans(input_size, kernel_size, strides, padding)
    return axes, [axis.matrices() for axis in axes]


def multiplications(y, x, channels, filters):
    """Multiplications of the fast path by the plans of its two axes.

    Returns:
        Triple of integers: for one picture the products over the channels and
        the transforms of its input and output; and the transform of the
        kernel, which all pictures of a batch share.
    """
    points, tiles = y.n * x.n, y.tiles * x.tiles
    products = points * tiles * channels * filters
    # An axis after the other, as `fast_convolution` does it.
    data = y.n * y.tiles * x.size * channels * (y.size + x.n * x.tiles)
    output = points * tiles * y.m * x.m * filters
    kernel = x.n * y.kernel_size * (x.kernel_size + y.n) * channels * filters
    return products, data + output, kernel


def saving(input_size, kernel_size, strides, padding, channels, filters):
    """How many times fewer multiplications the fast path needs.

    Counts the products and all the transforms, for one picture; the
    transform of the kernel is shared by a batch of `NOMINAL_BATCH`.
    """
    y, x = axis_plans(input_size, kernel_size, strides, padding)
    direct = (y.outputs * y.kernel_size * x.outputs * x.kernel_size) * (
        channels * filters
    )
    products, transforms, kernel = multiplications(y, x, channels, filters)
    return direct / (products + transforms + kernel / NOMINAL_BATCH)


def transform_kernel(kernel, axes, matrices):
    """`(kh, kw, channels, filters) -> (points, channels, filters)`."""
    (y, x), ((_, rows, _), (_, columns, _)) = axes, matrices
    kh, kw, channels, filters = kernel.shape
    kernel = ops.reshape(kernel, (kh, kw, channels * filters))
    kernel = ops.matmul(columns, kernel)
    kernel = ops.reshape(kernel, (kh, x.n * channels * filters))
    kernel = ops.matmul(rows, kernel)
    return ops.reshape(kernel, (y.n * x.n, channels, filters))


def transform_input(inputs, axes, matrices):
    """`(batch, h, w, channels) -> (points, batch * tiles, channels)`."""
    (y, x), ((_, _, rows), (_, _, columns)) = axes, matrices
    channels = inputs.shape[-1]
    inputs = ops.reshape(inputs, (-1, y.size, x.size * channels))
    inputs = ops.matmul(rows.reshape(-1, y.size), inputs)
    inputs = ops.reshape(inputs, (-1, x.size, channels))
    inputs = ops.matmul(columns.reshape(-1, x.size), inputs)
    inputs = ops.reshape(inputs, (-1, y.n, y.tiles, x.n, x.tiles, channels))
    inputs = ops.transpose(inputs, (1, 3, 0, 2, 4, 5))
    return ops.reshape(inputs, (y.n * x.n, -1, channels))


def transform_output(products, axes, matrices):
    """`(points, batch * tiles, filters) -> (batch, h, w, filters)`."""
    (y, x), ((rows, _, _), (columns, _, _)) = axes, matrices
    filters = products.shape[-1]
    products = ops.reshape(products, (y.n * x.n, -1))
    outputs = ops.matmul(np.kron(rows, columns), products)
    outputs = ops.reshape(outputs, (y.m, x.m, -1, y.tiles, x.tiles, filters))
    outputs = ops.transpose(outputs, (2, 3, 0, 4, 1, 5))
    outputs = ops.reshape(outputs, (-1, y.tiles * y.m, x.tiles * x.m, filters))
    return outputs[:, : y.outputs, : x.outputs]


def fast_convolution(inputs, kernel, strides, padding, transformed=None):
    """`keras.ops.conv` by Toom-Cook, for channels-last float32 tensors.

    Args:
        inputs: Tensor of shape `(batch, h, w, channels)`, h and w known.
        kernel: Tensor of shape `(kh, kw, channels, filters)`.
        strides: Pair of positive integers.
        padding: `"valid"` or `"same"`.
        transformed: What `transform_kernel` makes of the kernel, if that is
            known already.

    Returns:
        Tensor of shape `(batch, out_h, out_w, filters)`.
    """
    axes, matrices = plan(
        tuple(inputs.shape[1:3]), tuple(kernel.shape[:2]), strides, padding
    )
    if transformed is None:
        transformed = transform_kernel(kernel, axes, matrices)
    products = ops.matmul(transform_input(inputs, axes, matrices), transformed)
    return transform_output(products, axes, matrices)


def runs_on_cpu():
    """Whether Keras computes on a CPU. Starts no device.

    TensorFlow's devices can only be split before they are started, so they
    are not asked for more than which of them are visible.
    """
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    if backend == "tensorflow":
        return not module.config.get_visible_devices("GPU")
    if backend == "jax":
        return module.default_backend() == "cpu"
    return not module.cuda.is_available()


@keras.saving.register_keras_serializable(package="capsnet")
class FastConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that may compute by Toom-Cook (module docstring).

    Args:
        filters, kernel_size, ...: As in `keras.layers.Conv2D`.
        method: `"direct"` is `Conv2D`'s own computation; `"fast"` the one of
            this module wherever it is possible (channels last, neither
            dilation nor groups, a known picture size); `"auto"`, the
            default, is fast on a CPU in float32 where that saves at least
            half of the multiplications, and direct elsewhere.

    Input shape, output shape:
        As in `keras.layers.Conv2D`.

    Raises:
        ValueError: If `method` is none of the three.
    """

    def __init__(self, filters, kernel_size, *args, method="auto", **kwargs):
        super().__init__(filters, kernel_size, *args, **kwargs)
        if method not in ("auto", "direct", "fast"):
            raise ValueError(
                "Expected method to be 'auto', 'direct' or 'fast'. "
                f"Received: method={method!r}"
            )
        self.method = method
        self.transformed = None  # Or what a `Predictor` has ready.

    def uses_fast_path(self, input_shape):
        """Whether pictures of this shape take the fast path."""
        size = tuple(input_shape[1:3])
        possible = (
            self.data_format == "channels_last"
            and self.groups == 1
            and tuple(self.dilation_rate) == (1, 1)
            and None not in size
            and self.padding in ("valid", "same")
        )
        if self.method == "direct" or not possible:
            return False
        if self.method == "fast":
            return True
        geometry = (size, self.kernel_size, self.strides, self.padding)
        return (
            self.compute_dtype == "float32"
            and saving(*geometry, input_shape[-1], self.filters) >= 2
            and runs_on_cpu()
        )

    def convolution_op(self, inputs, kernel):
        if not self.uses_fast_path(inputs.shape):
            return super().convolution_op(inputs, kernel)
        outputs = fast_convolution(
            inputs, kernel, self.strides, self.padding, self.transformed
        )
        # The matrices make it float32, whatever the policy.
        return ops.cast(outputs, self.compute_dtype)

    def transform_kernel(self):
        """The kernel for the fast path on pictures as large as when built."""
        size = self.get_build_config()["input_shape"][1:3]
        geometry = tuple(size), self.kernel_size, self.strides, self.padding
        return transform_kernel(
            ops.cast(self.kernel, self.compute_dtype), *plan(*geometry)
        )

    def get_config(self):
        return {**super().get_config(), "method": self.method}


# Keras names a layer's group in a `.weights.h5` after its class: with this
# name such files are the same for both classes.
FastConv2D.__name__ = "Conv2D"


class Predictor(keras.Model):
    """A model whose `predict` transforms each kernel once, not in every batch.

    It shares its weights with the model, which may be trained in between;
    but only `predict` is sure to use the weights as they are then. The
    transforms take as much memory as they would within a batch.

    Args:
        model: Keras model. Each `FastConv2D` in it gets pictures of one size.
    """

    def __init__(self, model):
        super().__init__(name=model.name)
        self.model = model
        self.jit_compile = model.jit_compile
        self.convolutions = [
            layer
            for layer in model._flatten_layers()
            if isinstance(layer, FastConv2D)
            and layer.uses_fast_path(layer.get_build_config()["input_shape"])
        ]
        self.transformed = [
            self.add_weight(
                shape=convolution.transform_kernel().shape,
                initializer="zeros",
                trainable=False,
                autocast=False,  # In 16 bits the matrices lose too much.
            )
            for convolution in self.convolutions
        ]

    def call(self, inputs):
        pairs = list(zip(self.convolutions, self.transformed))
        for convolution, transformed in pairs:
            convolution.transformed = transformed.value
        try:
            return self.model(inputs, training=False)
        finally:
            for convolution, _ in pairs:
                convolution.transformed = None

    def predict(self, *args, **kwargs):
        for convolution, transformed in zip(
            self.convolutions, self.transformed
        ):
            transformed.assign(convolution.transform_kernel())
        return super().predict(*args, **kwargs)
