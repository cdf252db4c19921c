"""The matrices of the fast convolution, and when they pay; NumPy only.

In one dimension first:

1. *Parts.* With a stride of 2, even rows of the picture only ever meet even
   taps of the kernel, and odd rows odd taps. So the convolution is the sum of
   two of stride 1, one of the even rows and taps and one of the odd ones. A
   kernel with many taps is cut into runs in the same way.
2. *Toom-Cook.* `m` outputs of a convolution with `r` taps are coefficients of
   a product of polynomials. Instead of multiplying all pairs of coefficients,
   evaluate both polynomials at `m + r - 1` points, multiply point by point,
   and interpolate: `m + r - 1` multiplications, not `m * r`. With the points
   fixed, evaluation and interpolation are constant matrices:
   `output = A' [(G kernel) * (B' input)]`.
3. *Together.* The points of all parts lie side by side: the rows of `G` and
   `B'` pick out the taps and the rows of a part, and `A'` sums over the parts
   while it interpolates. 9 taps with a stride of 2 are parts of 5 and 4 taps;
   6 outputs take 10 + 9 = 19 multiplications instead of 54.

In two dimensions, for each tile of `m x m` outputs:
`output = A' [(G kernel G') * (B' input B)] A`. The products in the brackets
are summed over the channels: a matrix product of `(tiles, channels)` with
`(channels, filters)` for each of the `n x n` points, where most of the time
goes, and what a CPU is best at.

Sources: Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*,
CVPR 2016 (the nesting, 'Winograd's minimal filtering'); Toom 1963 and Cook
1966 (evaluation and interpolation).
"""

import functools
import math
from fractions import Fraction

import numpy as np

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
    matrices = output.T, kernel, data
    norms = [np.linalg.norm(matrix, axis=1) for matrix in matrices]
    mean = np.prod(norms, axis=0) ** (1 / 3)
    output, kernel, data = (
        matrix * (mean / norm)[:, None] for matrix, norm in zip(matrices, norms)
    )
    return output.T, kernel, data


class AxisPlan:
    """How one axis of the picture is convolved: parts, tiles and matrices.

    Args:
        size, kernel_size: Positive integers, rows of the input, the kernel.
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
            steps = np.add.outer(
                np.arange(points), self.m * np.arange(self.tiles)
            )
            rows = part[0] + self.stride * steps - self.pad
            select_rows = np.equal.outer(rows, np.arange(self.size))
            outputs.append(output)
            kernels.append(kernel)
            inputs.append(np.tensordot(of_rows, select_rows, 1))
        stacked = np.hstack(outputs), np.concatenate(kernels)
        return [
            matrix.astype("float32")
            for matrix in (*stacked, np.concatenate(inputs))
        ]


@functools.lru_cache(maxsize=64)
def axis_plans(input_size, kernel_size, strides, padding):
    """The two `AxisPlan`s of one convolution."""
    sides = zip(input_size, kernel_size, strides)
    return [AxisPlan(*side, padding) for side in sides]


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
