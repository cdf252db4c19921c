"""The learning rate of each step of a run."""

import keras
from keras import ops


def schedule(
    epochs,
    steps,
    lr=0.001,
    lr_schedule="step",
    lr_decay=0.9,
    lr_decay_steps=0,
    warmup=0.0,
):
    """The learning rate as a function of the steps that are done.

    After a warm-up of W steps, step s of N, counted from 0, has the rate

        step    lr * lr_decay ** epoch, or ** (s / lr_decay_steps)
        cosine  lr * (1 + cos(pi * (s - W) / (N - W))) / 2

    The first W steps have (s + 1) / (W + 1) of it, the cosine's of `lr`.

    Args:
        epochs: Positive integer, `steps` the number of steps of each.
        lr: Float, the rate to fall from.
        lr_schedule: `"step"` or `"cosine"`.
        lr_decay: Float, the factor of `"step"` after each epoch.
        lr_decay_steps: 0, or in how many steps the rate falls by `lr_decay`,
            continuously.
        warmup: Float, epochs of the warm-up, at most `epochs`.

    Returns:
        A `LearningRateSchedule` of Keras.
    """
    warm = warmup_steps(warmup, steps)
    if lr_schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            lr / (warm + 1),
            # At least one, where all of a run is the warm-up.
            max(1, epochs * steps - warm),
            warmup_target=lr if warm else None,
            warmup_steps=warm,
        )
    decay = lr, lr_decay_steps or steps, lr_decay, not lr_decay_steps
    return Decay(*decay, warmup_steps=warm)


def warmup_steps(warmup, steps):
    """How many steps the warm-up has, of `steps` an epoch."""
    return int(warmup * steps)


class Decay(keras.optimizers.schedules.ExponentialDecay):
    """An `ExponentialDecay` whose first steps, if any, are smaller.

    Args:
        warmup_steps: Integer, step s of them has (s + 1) / (warmup_steps + 1)
            of its rate.
    """

    def __init__(self, *args, warmup_steps, **kwargs):
        super().__init__(*args, **kwargs)
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        part = (step + 1) / (self.warmup_steps + 1)
        # On a GPU 600 / 600 may be just under 1. With half a step more the
        # first step of an epoch has the rate of that epoch everywhere.
        rate = super().__call__(step + 0.5 if self.staircase else step)
        return rate * ops.minimum(part, 1.0)

    def get_config(self):
        return {**super().get_config(), "warmup_steps": self.warmup_steps}
