"""Batch normalization that counts real pictures only, on all devices alike."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="capsnet")
class Present(keras.layers.Layer):
    """Which pictures have a value other than zero: `(batch, 1, 1)`, boolean.

    The pictures that fill up a last batch have none. A black picture of a
    data set has none either; it is left out alike on any number of devices.
    """

    def call(self, inputs):
        present = ops.any(ops.not_equal(inputs, 0), axis=(1, 2, 3))
        return present[:, None, None]

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((inputs.shape[0], 1, 1), "bool")


@keras.saving.register_keras_serializable(package="capsnet")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras's layer, with a mask and several devices at once.

    Keras's own statistics are either those of all devices or those of a
    mask's pictures. Here they are both: two devices train like one, also
    where blank pictures fill up a batch. Weights, config and files are
    Keras's.

    Args:
        As in `keras.layers.BatchNormalization`, for channels that come last.

    Input shape, output shape:
        4D tensor with shape `(batch_size, height, width, channels)`; `call`
        takes a `mask` of shape `(batch_size, 1, 1)`.
    """

    def compute_mask(self, inputs, previous_mask):
        """None: the layers above see all pictures."""

    def _moments(self, inputs, mask):
        """Mean and variance of each channel, shape `(channels,)`."""
        if mask is None:
            mask = ops.ones_like(inputs[:, :1, :1, 0])
        mask = ops.cast(mask, inputs.dtype)[:, 0]  # (batch, 1)
        means = ops.mean(inputs, axis=(1, 2))  # (batch, channels)
        squares = ops.mean(ops.square(inputs), axis=(1, 2))
        sums = ops.concatenate([mask, mask * means, mask * squares], axis=-1)
        # Small by now: all devices together cost next to nothing. On JAX the
        # batch of all of them, and of all processes, is one array.
        on_tensorflow = keras.backend.backend() == "tensorflow"
        means, _ = ops.moments(sums, axes=0, synchronized=on_tensorflow)
        part = ops.maximum(means[0], keras.config.epsilon())
        mean, square = ops.split(means[1:] / part, 2)
        return mean, ops.maximum(square - ops.square(mean), 0.0)
