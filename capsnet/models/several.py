"""Several labels a picture: pairs of digits, and rows of zeros and ones.

What a picture has is called `labels` everywhere: `"one"` label, a `"pair"`,
or `"several"`, none included.
"""

import keras
from keras import layers, ops

from capsnet.messages import UserError
from capsnet.models.arguments import one_of
from capsnet.models.fastconv import FastConv2D
from capsnet.models.networks import attach, reconstruct

# Filters and kernel of the convolutions that pairs are compared with.
CONVOLUTIONS = ((512, 9), (256, 5))
DENSE = 1024
CALLED = {
    "one": "one label each",
    "pair": "two digits each",
    "several": "several labels each",
}


@keras.saving.register_keras_serializable(package="capsnet")
class Named(keras.layers.Layer):
    """The classes that lengths stand for, as labels for the decoder.

    Of equal lengths the class of the lower number counts as the longer.

    Args:
        labels: `"pair"`, the two longest, or `"several"`, all above 0.5, or
            where there are none the longest.

    Input shape:
        2D tensor with shape `(batch_size, num_capsule)`.

    Output shape:
        `(batch_size, 2, num_capsule)` for a pair, the longest before the
        second longest, each one-hot; else `(batch_size, num_capsule)`.
    """

    def __init__(self, labels, **kwargs):
        super().__init__(**kwargs)
        self.labels = one_of(("pair", "several"), labels=labels)

    def call(self, inputs):
        if self.labels == "pair":
            return ops.stack(two_longest(inputs), axis=1)
        above = ops.cast(inputs > 0.5, inputs.dtype)
        is_any = ops.any(inputs > 0.5, axis=-1, keepdims=True)
        return ops.where(is_any, above, two_longest(inputs)[0])

    def compute_output_shape(self, input_shape):
        batch, num_capsule = input_shape
        two = [2] if self.labels == "pair" else []
        return (batch, *two, num_capsule)

    def get_config(self):
        return {**super().get_config(), "labels": self.labels}


def two_longest(lengths):
    """The longest and the second longest, each one-hot `(batch, n_class)`."""
    n_class = lengths.shape[-1]
    first = ops.one_hot(ops.argmax(lengths, -1), n_class, dtype=lengths.dtype)
    others = ops.where(first > 0, -1.0, lengths)
    second = ops.one_hot(ops.argmax(others, -1), n_class, dtype=lengths.dtype)
    return first, second


def check_rows(y_true, y_pred):
    """Labels as rows of zeros and ones, in the dtype of the predictions.

    Raises:
        ValueError: If they are class numbers, which broadcast in silence.
    """
    expected, received = tuple(y_pred.shape), tuple(y_true.shape)
    same_rank = len(received) == len(expected)
    if not (same_rank and received[-1] in (None, expected[-1])):
        raise ValueError(
            f"Expected labels of shape {expected}, one-hot or with several "
            "ones: keras.utils.to_categorical makes them of class numbers. "
            f"Received: labels of shape {received}"
        )
    return ops.cast(y_true, y_pred.dtype)


def pair_is_exact(y_true, y_pred):
    """Whether the two longest are the two labels, shape `(batch,)`."""
    named = sum(two_longest(y_pred))
    return ops.all(ops.equal(named > 0.5, y_true > 0.5), axis=-1)


def set_is_exact(y_true, y_pred):
    """Whether those above 0.5 are the labels, shape `(batch,)`."""
    return ops.all(ops.equal(y_pred > 0.5, y_true > 0.5), axis=-1)


def accuracy(labels, name):
    """The metric of a training: with several labels all have to be right."""
    if labels == "one":
        return keras.metrics.CategoricalAccuracy(name=name)
    exact = pair_is_exact if labels == "pair" else set_is_exact
    return keras.metrics.MeanMetricWrapper(exact, name=name)


def for_labels(models, labels):
    """Models of `CapsNet` with a decoder for all labels of a picture.

    For a pair the one decoder runs twice. Its output, and the training
    model's input `label`, have a first axis of two.

    Args:
        models: What `CapsNet` returns.
        labels: What a picture has.
    """
    eval_model = models[1]
    if labels == "one" or "decoder" not in eval_model.output:
        return models
    lengths = eval_model.output["capsnet"]
    label = Named(labels, name="named", dtype="float32")(lengths)
    outputs = {"capsnet": lengths, "decoder": reconstruct(eval_model, label)}
    return attach(keras.Model(eval_model.input, outputs, name=eval_model.name))


def SeveralBaseline(input_shape, n_class, conv="auto"):
    """The convolutional network that the paper compares pairs with.

    Section 6: convolutions of 512 channels 9x9 and 256 channels 5x5, each
    with ReLU and 2x2 max-pooling, a dense layer of 1024 units, and a sigmoid
    for each class. Padding keeps the size of the picture: only so are there
    the paper's 24.56 million weights, 24,563,978 for pairs of MNIST.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        n_class: Integer, number of classes.
        conv: As in `CapsNet`.

    Returns:
        Three models as from `networks.Baseline`.
    """
    image = features = layers.Input(input_shape, name="image")
    for number, (filters, kernel) in enumerate(CONVOLUTIONS, 1):
        features = FastConv2D(
            filters,
            kernel,
            padding="same",
            activation="relu",
            method=conv,
            name=f"conv{number}",
        )(features)
        pool = layers.MaxPooling2D(
            data_format="channels_last", name=f"pool{number}"
        )
        features = pool(features)
    features = layers.Flatten("channels_last", name="flatten")(features)
    features = layers.Dense(DENSE, activation="relu", name="dense1")(features)
    scores = layers.Dense(n_class, name="scores")(features)
    sigmoid = layers.Activation("sigmoid", name="capsnet", dtype="float32")
    outputs = {"capsnet": sigmoid(scores)}
    return attach(keras.Model(image, outputs, name="several_baseline"))


def labels_of(model, record):
    """What a picture of a loaded model has, by its record or by its layers."""
    for layer in model.layers:
        if isinstance(layer, Named):
            return layer.labels
    return record.get("labels", "one")


def check_labels(model, record, path, data):
    """Raises UserError where a loaded model's pictures have other labels."""
    known = labels_of(model, record)
    if known != data.labels:
        raise UserError(
            f"{path!r} was trained on pictures with {CALLED[known]}, got "
            f"{data.name!r} with {CALLED[data.labels]}; choose another "
            "--dataset"
        )
