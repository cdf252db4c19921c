"""A convolution layer with a fast path for CPUs.

`FastConv2D` is `keras.layers.Conv2D` with one more argument, `method`. Its
weights, its config and its files are those of `Conv2D`; only the way to the
result differs (toomcook.py explains it). For the 9x9 convolution of CapsNet's
primary capsules it takes a sixth of the multiplications. The result is that
of `Conv2D` but for rounding: its relative error is about 1e-4 in float32. That
is too much for 16-bit numbers, and GPUs have faster ways; so `method="auto"`
uses it on CPUs in float32 only.
"""

import keras
import numpy as np
from keras import ops

from capsnet.devices import runs_on_cpu
from capsnet.models.arguments import config_of
from capsnet.models.toomcook import plan, saving


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


def least_saving(strides):
    """How many times fewer multiplications pay for the fast path on a CPU.

    JAX's own convolutions are slower than TensorFlow's, and the gradients of
    strided ones very slow: those pay at any price (measured, benchmarks/).
    """
    if keras.backend.backend() != "jax":
        return 2
    return 1 if tuple(strides) == (1, 1) else 0


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


@keras.saving.register_keras_serializable(package="capsnet")
class FastConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that may compute by Toom-Cook.

    Args:
        filters, kernel_size, ...: As in `keras.layers.Conv2D`, but channels
            come last unless `data_format` says something else.
        method: `"direct"` is `Conv2D`'s own computation; `"fast"` the one of
            this module wherever it is possible (channels last, neither
            dilation nor groups, a known picture size, not in float64, which
            its matrices are not); `"auto"`, the default, is fast on a CPU in
            float32 where that pays (see `least_saving`), and direct elsewhere.

    Input shape, output shape:
        As in `keras.layers.Conv2D`.

    Raises:
        ValueError: If `method` is none of the three.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        data_format="channels_last",
        *args,
        method="auto",
        **kwargs,
    ):
        super().__init__(
            filters, kernel_size, strides, padding, data_format, *args, **kwargs
        )
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
            and self.compute_dtype != "float64"
        )
        if self.method == "direct" or not possible:
            return False
        if self.method == "fast":
            return True
        geometry = (size, self.kernel_size, self.strides, self.padding)
        return (
            self.compute_dtype == "float32"
            and runs_on_cpu()
            and saving(*geometry, input_shape[-1], self.filters)
            >= least_saving(self.strides)
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


@keras.saving.register_keras_serializable(package="capsnet")
class CoveringConv2D(keras.layers.Layer):
    """A depthwise convolution whose kernel covers its whole input.

    Each channel is summed with weights of its own. As a product this takes a
    fraction of the time of `DepthwiseConv2D`.

    Args:
        filters: Integer, how many channels the input must have.
        kernel_initializer: As in `keras.layers.Conv2D`; it sees the shape of
            a convolution in groups, `(height, width, 1, filters)`.
        kernel_regularizer, kernel_constraint: As in `keras.layers.Conv2D`.

    Input shape:
        4D tensor with shape `(batch_size, height, width, filters)`.

    Output shape:
        4D tensor with shape `(batch_size, 1, 1, filters)`.

    Raises:
        ValueError: If there are other channels.
    """

    def __init__(
        self,
        filters,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)

    def build(self, input_shape):
        if input_shape[-1] != self.filters:
            raise ValueError(
                f"Expected {self.filters} channels, one for each filter. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.kernel = self.add_weight(
            (*input_shape[1:3], 1, self.filters),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="kernel",
        )

    def call(self, inputs):
        kernel = ops.cast(self.kernel, inputs.dtype)[:, :, 0]
        return ops.sum(inputs * kernel, axis=(1, 2), keepdims=True)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], 1, 1, self.filters)

    def get_config(self):
        names = "filters kernel_initializer kernel_regularizer "
        own = config_of(self, names + "kernel_constraint")
        return {**super().get_config(), **own}


# Keras names a layer's group in a `.weights.h5` after its class: with this
# name such files are the same for both classes.
FastConv2D.__name__ = "Conv2D"
