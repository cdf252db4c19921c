"""The parts and the variants of the networks: all but `CapsNet` itself.

The initializers, the decoder, the paper's baseline, and the three models
around one evaluation model. `Network` says what a run's record knows of one.
"""

import dataclasses
import math

import keras
from keras import layers

from capsnet.models.fastconv import FastConv2D
from capsnet.models.geometry import DECODER_UNITS

# Weight of the sum of squared errors against Eq. 4 (section 4.1).
RECONSTRUCTION = 0.0005


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network is made of; the flags of these names describe it.

    Attributes:
        model: `"capsnet"` or `"baseline"`.
        decoder: Whether pictures are reconstructed.
        The rest: As the arguments of `CapsNet`.
    """

    model: str = "capsnet"
    routings: int = 3
    init: str = "length"
    capsule_bias: float | None = None
    primary_scale: float = 1.0
    conv: str = "auto"
    decoder: bool = True
    conv_kernel: int | list | None = None
    conv_strides: int | list | None = None
    primary_kernel: int | list | None = None
    primary_strides: int | list | None = None

    @classmethod
    def of(cls, flags):
        """The network of a record's `flags`; other flags are passed over."""
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: flags[name] for name in flags if name in names}
        return cls(**{**known, "decoder": flags.get("lam_recon") != 0})


def initializers(init, capsule_bias):
    """Initializers of each layer: conv1, primary, capsules, decoder."""
    if init == "authors":
        normal = keras.initializers.TruncatedNormal
        bias = keras.initializers.Constant(0.1)
        kernels = normal(stddev=0.05), *(normal(stddev=0.1) for _ in range(3))
    else:
        bias = "zeros"
        capsules = (
            "glorot_uniform" if init == "glorot" else "capsnet>CapsuleNormal"
        )
        kernels = "glorot_uniform", "glorot_uniform", capsules, "glorot_uniform"
    of_capsules = keras.initializers.Constant(capsule_bias or 0.0)
    biases = bias, of_capsules, of_capsules, bias
    return [
        {"kernel_initializer": kernel, "bias_initializer": bias}
        for kernel, bias in zip(kernels, biases)
    ]


def Decoder(num_inputs, output_shape, init):
    """Fully connected decoder, section 4.1 and Figure 2 of the paper."""
    first, second = DECODER_UNITS
    return keras.Sequential(
        [
            layers.Input((num_inputs,)),
            layers.Dense(first, activation="relu", name="dense1", **init),
            layers.Dense(second, activation="relu", name="dense2", **init),
            layers.Dense(math.prod(output_shape), name="dense3", **init),
            layers.Activation("sigmoid", dtype="float32"),
            layers.Reshape(output_shape, dtype="float32"),
        ],
        name="decoder",
    )


def Baseline(input_shape, n_class, conv="auto", dropout=0.5):
    """The plain convolutional network that the paper compares with.

    Section 5: three 5x5 convolutions of 256, 256 and 128 channels with
    stride 1, dense layers of 328 and 192 units, and dropout before the
    softmax. Padding keeps the size of the picture: only so are there the
    paper's 35.4 million weights, 35,445,522 for MNIST.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        n_class: Integer, number of classes.
        conv: As in `CapsNet`.
        dropout: Float, part of the units that is dropped.

    Returns:
        Three models as from `CapsNet`, the third is None. The softmax takes
        the place of the capsules' lengths, under the same name, so that
        whatever works with the one works with the other.
    """
    image = features = layers.Input(input_shape, name="image")
    for number, channels in enumerate((256, 256, 128), 1):
        features = FastConv2D(
            channels,
            5,
            padding="same",
            activation="relu",
            method=conv,
            name=f"conv{number}",
        )(features)
    features = layers.Flatten(name="flatten")(features)
    for number, units in enumerate((328, 192), 1):
        features = layers.Dense(
            units, activation="relu", name=f"dense{number}"
        )(features)
    features = layers.Dropout(dropout, name="dropout")(features)
    scores = layers.Dense(n_class, name="scores")(features)
    softmax = layers.Softmax(name="capsnet", dtype="float32")(scores)
    return attach(keras.Model(image, {"capsnet": softmax}, name="baseline"))


def attach(eval_model):
    """The three models of `CapsNet` around a (loaded) evaluation model."""
    image, outputs = eval_model.input, eval_model.output
    if "decoder" not in outputs:
        # Not the same object: what is saved has no loss and no optimizer,
        # so that it loads without this module.
        train_model = keras.Model(image, outputs, name=eval_model.name)
        return train_model, eval_model, None
    digitcaps = eval_model.get_layer("digitcaps").output
    decode = eval_model.get_layer("decoder")
    mask = eval_model.get_layer("mask")
    n_class, dim_capsule = digitcaps.shape[1:]
    label = layers.Input((n_class,), name="label")
    noise = layers.Input((n_class, dim_capsule), name="noise")
    inputs = {"image": image, "label": label}
    reconstruction = decode(mask([digitcaps, label]))
    train_model = keras.Model(
        inputs,
        {"capsnet": outputs["capsnet"], "decoder": reconstruction},
        name="train_model",
    )
    noised = layers.Add(name="noised")([digitcaps, noise])
    manipulate_model = keras.Model(
        {**inputs, "noise": noise},
        {"decoder": decode(mask([noised, label]))},
        name="manipulate_model",
    )
    return train_model, eval_model, manipulate_model


def reconstruction_weight(lam_recon, input_shape, n_class):
    """The weight of the mean squared error, from `--lam_recon`.

    The paper adds 0.0005 x the *sum* of squared errors to Eq. 4. The
    authors' code also halves Eq. 4 and averages it over the classes, so that
    against Eq. 4 it weighs 2 x n_class times more.
    """
    classic = RECONSTRUCTION * math.prod(input_shape)
    names = {"classic": classic, "authors": classic * 2 * n_class}
    return names.get(lam_recon, lam_recon)
