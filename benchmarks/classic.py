"""The network as public Keras code usually writes it, to compare with.

The formulation that most repositories share, written from its description: the
inputs of the digit capsules are tiled, once for every output capsule; the votes
are mapped sample by sample (11,520 small products of a matrix and a vector for
a picture of MNIST) and written down; each round of routing multiplies all the
votes; all convolutions are direct.

Weights, names, loss and decoder are those of `capsulenet.CapsNet`, and with
the same weights the numbers are the same, so that a difference in time or
memory is one of formulation alone. For that reason `squash`, `Length` and
`Mask` are ours too; they cost the same anywhere.
"""

import keras
from keras import layers, ops

from capsnet.models.initializers import initializers
from capsnet.models.networks import Decoder, attach
from capsulelayers import Length, Mask, squash


class Squash(layers.Layer):
    """Eq. 1 as a layer, as the classic code has it behind a `Reshape`."""

    def call(self, inputs):
        return squash(inputs)


class ClassicCapsuleLayer(layers.Layer):
    """Routing over votes that are mapped sample by sample and kept.

    Arguments and shapes are those of `capsulelayers.CapsuleLayer`.
    """

    def __init__(
        self, num_capsule, dim_capsule, routings, kernel_initializer, **kwargs
    ):
        super().__init__(**kwargs)
        self.num_capsule = num_capsule
        self.dim_capsule = dim_capsule
        self.routings = routings
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        _, input_num_capsule, input_dim_capsule = input_shape
        shape = (self.num_capsule, input_num_capsule)
        shape += (self.dim_capsule, input_dim_capsule)
        self.kernel = self.add_weight(
            shape, self.kernel_initializer, name="kernel"
        )

    def call(self, inputs):
        kernel = ops.convert_to_tensor(self.kernel)
        # (batch, num_capsule, input_num_capsule, input_dim_capsule)
        tiled = ops.tile(
            ops.expand_dims(inputs, 1), (1, self.num_capsule, 1, 1)
        )

        # Of several ways to write the product the fastest that was found.
        def votes_of(sample):
            return ops.einsum("jik,jidk->jid", sample, kernel)

        # (batch, num_capsule, input_num_capsule, dim_capsule)
        votes = ops.map(votes_of, tiled)
        logits = ops.zeros_like(votes[..., 0])
        logits = ops.cast(ops.expand_dims(logits, 2), "float32")
        for routing in range(self.routings):
            # (batch, num_capsule, 1, input_num_capsule)
            coupling = ops.softmax(logits, axis=1)
            coupling = ops.cast(coupling, self.compute_dtype)
            # (batch, num_capsule, 1, dim_capsule)
            outputs = squash(ops.matmul(coupling, votes))
            if routing < self.routings - 1:
                # A matrix product that reads the votes as they lie.
                agreement = ops.einsum("bjod,bjid->bjoi", outputs, votes)
                logits = logits + ops.cast(agreement, "float32")
        return ops.squeeze(outputs, axis=2)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_capsule, self.dim_capsule)


def ClassicCapsNet(input_shape, n_class, routings=3, dim_capsule=16):
    """`capsulenet.CapsNet` in the classic formulation, with its arguments."""
    first, primary, capsules, dense = initializers("length", None)
    image = layers.Input(input_shape, name="image")
    features = layers.Conv2D(256, 9, activation="relu", name="conv1", **first)(
        image
    )
    features = layers.Conv2D(
        256, 9, strides=2, name="primarycap_conv2d", **primary
    )(features)
    features = layers.Reshape((-1, 8), name="primarycap_reshape")(features)
    features = Squash(name="primarycap_squash")(features)
    digitcaps = ClassicCapsuleLayer(
        n_class,
        dim_capsule,
        routings,
        capsules["kernel_initializer"],
        name="digitcaps",
    )(features)
    masked = Mask(name="mask")(digitcaps)
    decode = Decoder(n_class * dim_capsule, tuple(input_shape), dense)
    outputs = {
        "capsnet": Length(name="capsnet", dtype="float32")(digitcaps),
        "decoder": decode(masked),
    }
    return attach(keras.Model(image, outputs, name="classic_model"))
