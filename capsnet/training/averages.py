"""Averaged weights: their memory, and the statistics that belong to them."""

import keras

# Keras's own, for the statistics of batches.
STATISTICS_MOMENTUM = 0.99


def bounded_momentum(ema, steps):
    """The momentum of averaged weights in a run of so many steps.

    A momentum m remembers 1 / (1 - m) steps, here at most a tenth of the
    run's: with a longer memory the first steps would weigh to the end.

    Args:
        ema: Float, the momentum that is asked for.
        steps: Positive integer, steps of the whole run.

    Returns:
        Float between 0 and `ema`.
    """
    return min(ema, max(0.0, 1 - 10 / steps))


def average_statistics(model, ema, steps, batches=None):
    """Averages the statistics of batches over what the run can remember.

    Keras averages trainable weights only. Moving means and variances of the
    same memory belong to the averaged weights, and those alone are tested
    and saved. Keras's average begins at the weights after the first step,
    so the statistics begin at the first batch's. From 0 and 1 they would
    spoil the first third of a run: with three normalized convolutions, 15
    epochs of 80 steps, the second epoch had a test error of 29 % in place
    of 22 %, which is that of statistics estimated anew.

    Without averaged weights the statistics have Keras's own memory of 100
    steps, or less in a short run.

    Args:
        model: A model that no `fit` has traced yet: the momentum is read
            then.
        ema: Float, the momentum of the averaged weights, 0 for none.
        steps: Positive integer, steps of the whole run.
        batches: None, or what a new run begins with, as for `fit`.
    """
    momentum = ema or bounded_momentum(STATISTICS_MOMENTUM, steps)
    normalizations = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if normalizations and batches is not None:
        for layer in normalizations:
            layer.momentum = 0.0
        model(batches[0][0], training=True)
    for layer in normalizations:
        layer.momentum = momentum
