"""What flags, and the records of models, may say: the least and the most.

What nobody means is refused: it would end in an hour, in a crash, or never.
"""

# Least and most, both included.
INTEGERS = {
    "image_size": (1, 4096),
    "routings": (1, 20),
    "conv_kernel": (1, 4096),
    "conv_strides": (1, 4096),
    "primary_kernel": (1, 4096),
    "primary_strides": (1, 4096),
    "epochs": (1, 100_000),
    "batch_size": (1, 1_000_000),
    "lr_decay_steps": (0, 10**9),
    "seed": (0, 2**32 - 1),
    "steps_per_execution": (1, 10_000),
    "gpus": (1, 64),
    "processes": (1, 65_536),
    "process": (0, 65_535),
}
# The same, the least included or not.
NUMBERS = {
    "test_fraction": (0, 0.9, False),
    "val_fraction": (0, 0.9, True),
    "shift_fraction": (0, 0.5, True),
    "rotation": (0, 180, True),
    "scale": (0, 0.9, True),
    "shear": (0, 0.9, True),
    "colour": (0, 0.9, True),
    "capsule_bias": (-(10**6), 10**6, True),
    "primary_scale": (0, 10**6, False),
    "lr": (0, 100, False),
    "lr_decay": (0, 1, False),
    "warmup": (0, 100_000, True),
    "lam_recon": (0, 10**6, True),
    "ema": (0, 0.999999, True),
}
CHOICES = {
    "model": ("capsnet", "efficient", "baseline"),
    "routing": ("dynamic", "leaky", "max_min", "attention"),
    "init": ("length", "glorot", "authors"),
    "conv": ("auto", "direct", "fast"),
    "dtype_policy": ("float32", "mixed_bfloat16", "mixed_float16"),
}


def is_within(value, name):
    """Whether a number, of a flag's kind, is within the flag's limits."""
    if name in INTEGERS:
        low, high = INTEGERS[name]
        return type(value) is int and low <= value <= high
    low, high, included = NUMBERS[name]
    above = type(value) in (int, float) and (value > low or included)
    return above and low <= value <= high
