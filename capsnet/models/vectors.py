"""Lengths of vectors, in float32 at least whatever the policy of a layer.

The result of the functions here is float64 where their input is.
"""

import keras
from keras import ops

# Far below every square that a float32 holds to full precision. A larger
# epsilon, 1e-7 say, drowns the short vectors of an untrained network, and
# with them the gradients that would make them longer.
EPSILON = 1e-30
# Longer vectors are brought to this length before they are squared.
LARGE = 2.0**50


def precise(tensor):
    """A tensor of integers or of 16 bits as float32, others as they are."""
    wide = keras.backend.result_type(tensor.dtype, "float32")
    return ops.cast(tensor, wide)


def shortened(vectors, axis):
    """Vectors of which no square overflows, and the divisors.

    Ordinary vectors are not touched: their divisor is 1.
    """
    vectors = precise(vectors)
    largest = ops.max(ops.abs(vectors), axis=axis, keepdims=True)
    divisor = ops.maximum(ops.stop_gradient(largest) / LARGE, 1.0)
    return ops.where(divisor > 1.0, vectors / divisor, vectors), divisor


def norms(vectors, axis=-1):
    """Euclidean norms, with `axis` kept; their gradient at zero is zero."""
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=True)
    return ops.sqrt(squares + EPSILON)


def lengths_of(vectors):
    """Euclidean norms of vectors of any length, along the last axis."""
    vectors, divisor = shortened(vectors, axis=-1)
    return ops.squeeze(norms(vectors) * divisor, axis=-1)
