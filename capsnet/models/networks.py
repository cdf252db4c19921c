"""The parts and the variants of the networks: all but `CapsNet` itself.

The decoder, the small network, the paper's baseline, and the three models
around one evaluation model. `Network` says what a run's record knows of one.
"""

import dataclasses
import math

import keras
from keras import layers

from capsnet.messages import UserError, cross
from capsnet.models.fastconv import FastConv2D
from capsnet.models.geometry import DECODER_UNITS, SMALLEST_SIDE
from capsnet.models.normalization import BatchNormalization, Present
from capsulelayers import CapsuleLayer, Length, Mask, PrimaryCap

# Weight of the sum of squared errors against Eq. 4 (section 4.1).
RECONSTRUCTION = 0.0005
# The small network: filters, kernel and stride of each convolution, and the
# deviation of its matrices.
SMALL_CONVOLUTIONS = ((32, 5, 1), (64, 3, 1), (64, 3, 1), (128, 3, 2))
SMALL_TYPES, SMALL_DIM = 16, 8
SMALL_STDDEV = 0.0395
# Of what has no capsules, by the model's name.
LOSSES = {
    "baseline": "categorical_crossentropy",
    "several_baseline": "binary_crossentropy",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """What a network is made of; the flags of these names describe it.

    Attributes:
        model: `"capsnet"`, `"efficient"` or `"baseline"`.
        routing, routings: None for what is usual in the network.
        decoder: Whether pictures are reconstructed.
        The rest: As the arguments of `CapsNet`.
    """

    model: str = "capsnet"
    routing: str | None = None
    routings: int | None = None
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
        if known.get("routing") == "attention":
            known["routings"] = None  # It has no rounds.
        return cls(**{**known, "decoder": flags.get("lam_recon") != 0})


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


def add_decoder(outputs, digitcaps, output_shape, init):
    """Adds `"decoder"` to a network's outputs, from its class capsules."""
    masked = Mask(name="mask")(digitcaps)
    decode = Decoder(masked.shape[-1], tuple(output_shape), init)
    outputs["decoder"] = decode(masked)


def few_channels_method():
    """The `method` of `FastConv2D` that is fastest for the small network.

    Its convolutions have so few channels that TensorFlow's own are faster: a
    step takes 222 ms against 236 where `"auto"` chooses layer by layer. On
    JAX `"auto"` is, and PyTorch takes as long either way.
    """
    return "auto" if keras.backend.backend() == "jax" else "direct"


def Efficient(
    input_shape,
    n_class,
    routing=None,
    routings=None,
    conv="auto",
    decoder=True,
):
    """Efficient-CapsNet: 161,824 weights for MNIST, without the decoder.

    Mazzia, Salvetti and Chiaberge, *Efficient-CapsNet: Capsule Network with
    Self-Attention Routing*, 2021, Figure 2. Four convolutions, each with
    batch normalization after its ReLU; 16 primary capsules, for each of which
    a depthwise kernel covers all that is left of the picture; class capsules
    of 16 dimensions. The decoder is `CapsNet`'s.

    Args:
        input_shape: Tuple `(height, width, channels)`, of at least 12 rows
            and columns.
        n_class: Integer of at least 2, number of classes.
        routing, routings: As in `CapsuleLayer`; None means attention.
        conv, decoder: As in `CapsNet`.

    Returns:
        Three models as from `CapsNet`.

    Raises:
        UserError: If the picture is smaller.
    """
    if min(input_shape[:2]) < SMALLEST_SIDE:
        raise UserError(
            f"expected pictures of at least {SMALLEST_SIDE}x{SMALLEST_SIDE} "
            f"pixels for --model efficient, received {cross(input_shape[:2])}: "
            "enlarge them with --image_size"
        )
    if conv == "auto":
        conv = few_channels_method()
    image = layers.Input(input_shape, name="image")
    features = normalized_convolutions(image, conv)
    capsules = PrimaryCap(
        SMALL_DIM,
        SMALL_TYPES,
        None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        squash="exponential",
        data_format="channels_last",
        name="primarycap",
    )(features)
    digitcaps = CapsuleLayer(
        n_class,
        16,
        routings,
        kernel_initializer=keras.initializers.RandomNormal(0.0, SMALL_STDDEV),
        routing=routing or "attention",
        squash="exponential",
        name="digitcaps",
    )(capsules)
    outputs = {"capsnet": Length(name="capsnet", dtype="float32")(digitcaps)}
    if decoder:
        init = {"kernel_initializer": "glorot_uniform"}
        add_decoder(outputs, digitcaps, input_shape, init)
    return attach(keras.Model(image, outputs, name="efficient_model"))


def normalized_convolutions(image, method):
    """The four convolutions of `Efficient`, each with its normalization."""
    present, features = Present(name="present")(image), image
    for number, (filters, kernel, strides) in enumerate(SMALL_CONVOLUTIONS, 1):
        features = FastConv2D(
            filters,
            kernel,
            strides=strides,
            activation="relu",
            kernel_initializer="he_normal",
            method=method,
            name=f"conv{number}",
        )(features)
        normalize = BatchNormalization(name=f"norm{number}")
        features = normalize(features, mask=present)
    return features


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
    # Whatever Keras is set up for.
    features = layers.Flatten("channels_last", name="flatten")(features)
    for number, units in enumerate((328, 192), 1):
        features = layers.Dense(
            units, activation="relu", name=f"dense{number}"
        )(features)
    features = layers.Dropout(dropout, name="dropout")(features)
    scores = layers.Dense(n_class, name="scores")(features)
    softmax = layers.Softmax(name="capsnet", dtype="float32")(scores)
    return attach(keras.Model(image, {"capsnet": softmax}, name="baseline"))


def reconstruct(eval_model, label):
    """What the decoder draws of the labelled capsules.

    Args:
        eval_model: A model with a decoder.
        label: `(batch, n_class)`, or `(batch, 2, n_class)`: for each of two
            rows the one decoder runs, and draws a picture.
    """
    digitcaps = eval_model.get_layer("digitcaps").output
    mask, decode = map(eval_model.get_layer, ("mask", "decoder"))
    if len(label.shape) == 2:
        return decode(mask([digitcaps, label]))
    drawn = []
    for row in range(2):
        one = layers.Cropping1D((row, 1 - row))(label)
        one = layers.Reshape(label.shape[2:])(one)
        picture = decode(mask([digitcaps, one]))
        shape = (1, *picture.shape[1:])
        drawn.append(layers.Reshape(shape, dtype="float32")(picture))
    return layers.Concatenate(axis=1, dtype="float32")(drawn)


def attach(eval_model):
    """The three models of `CapsNet` around a (loaded) evaluation model.

    That of a pair of digits reconstructs both, for which the training model
    takes a label of two rows.
    """
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
    true = label
    if len(outputs["decoder"].shape) == 5:
        true = layers.Input((2, n_class), name="label")
    reconstruction = reconstruct(eval_model, true)
    train_model = keras.Model(
        {"image": image, "label": true},
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


def reconstruction_weight(lam_recon, target_shape, n_class):
    """The weight of the mean squared error, from `--lam_recon`.

    The paper adds 0.0005 x the *sum* of squared errors to Eq. 4, of each of
    two pictures, where a pair is drawn. The authors' code also halves Eq. 4
    and averages it over the classes, so that against Eq. 4 it weighs 2 x
    n_class times more.

    Args:
        lam_recon: `"classic"`, `"authors"`, or a number, which is returned.
        target_shape: What the decoder draws of a picture, `(height, width,
            channels)`, or `(2, height, width, channels)` for a pair.
        n_class: Integer, number of classes.
    """
    classic = RECONSTRUCTION * math.prod(target_shape)
    names = {"classic": classic, "authors": classic * 2 * n_class}
    return names.get(lam_recon, lam_recon)
