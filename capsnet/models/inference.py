"""From pictures to lengths, in large batches; from lengths to classes."""

import keras
import numpy as np

from capsnet.data.batches import ShiftedBatches, pipeline
from capsnet.messages import StatusLine
from capsnet.models.fastconv import FastConv2D

# Pictures of one step of prediction; larger steps gain nothing more.
PREDICT_BATCH = 250


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
        # Else JAX computes the first batch operation by operation, and compiles
        # each by itself.
        self.built = True

    def call(self, inputs):
        for layer, transformed in zip(self.convolutions, self.transformed):
            layer.transformed = transformed.value
        try:
            return self.model(inputs, training=False)
        finally:
            for layer in self.convolutions:
                layer.transformed = None

    def predict(self, *args, **kwargs):
        for layer, transformed in zip(self.convolutions, self.transformed):
            transformed.assign(layer.transform_kernel())
        return super().predict(*args, **kwargs)


def lengths_model(eval_model):
    """From pictures to the lengths of the capsules, without the decoder."""
    lengths = keras.Model(eval_model.input, eval_model.output["capsnet"])
    lengths.jit_compile = eval_model.jit_compile
    return Predictor(lengths)


def predict(model, x, batch_size=PREDICT_BATCH):
    """`model.predict` for uint8 pictures, in large batches."""
    labels = np.zeros(len(x), dtype="int64")
    batches = ShiftedBatches(x, labels, 1, batch_size, decoder=False)
    return predict_batches(model, batches)


def predict_batches(model, batches):
    """`model.predict` for batches of the test; a terminal shows how far.

    Raises:
        FloatingPointError: If a length is no number.
    """
    watch = Watch(len(batches))
    outputs = model.predict(pipeline(batches), verbose=0, callbacks=[watch])
    watch.line.clear()
    if not all(map(np.all, map(np.isfinite, keras.tree.flatten(outputs)))):
        raise FloatingPointError(
            "the model's outputs are no numbers; its weights are damaged, or "
            "its training went astray"
        )
    return outputs


class Watch(keras.callbacks.Callback):
    """Shows how many of the pictures are done, in percent."""

    def __init__(self, steps):
        super().__init__()
        self.line, self.steps = StatusLine(), steps

    def on_predict_batch_end(self, batch, logs=None):
        if self.steps > 1:
            done = 100 * (batch + 1) // self.steps
            self.line.show(f"{done} % of the pictures read")


def longest(lengths, counts):
    """The longest capsules of each picture, as booleans `(n, n_class)`.

    Of equal lengths the class of the lower number counts as the longer.

    Args:
        lengths: Array of shape `(n, n_class)`.
        counts: How many, one integer or integers of shape `(n, 1)`.
    """
    order = np.argsort(-lengths, axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1)
    return ranks < counts


def named_classes(lengths, labels="one"):
    """The classes that lengths stand for, as booleans `(n, n_class)`.

    Args:
        lengths: Array of shape `(n, n_class)`.
        labels: What a picture has: `"one"` label (the longest capsule), a
            `"pair"` (the two longest) or `"several"` (all above 0.5).
    """
    if labels == "several":
        return lengths > 0.5
    return longest(lengths, 2 if labels == "pair" else 1)
