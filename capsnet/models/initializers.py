"""With which numbers the weights begin."""

import keras

CAPSULE_NORMAL = "capsnet>CapsuleNormal"


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleNormal(keras.initializers.Initializer):
    """Normal matrices with which vectors keep their length at the start.

    In the first routing round an output capsule is the sum of
    `input_num_capsule` votes divided by `num_capsule`. For random inputs of
    length one its expected squared length is one when the standard deviation
    is `num_capsule / sqrt(input_num_capsule * dim_capsule)`: 0.074 for the
    digit capsules of MNIST. Layers of any size can then be stacked; with a
    fixed deviation small ones die out, since squash squares what is short.

    Args:
        seed: Integer or None, as in Keras's initializers.
    """

    def __init__(self, seed=None):
        self._init_seed = seed
        self.seed = keras.random.SeedGenerator(seed) if seed is None else seed

    def __call__(self, shape, dtype=None):
        """Shape `(num_capsule, input_num_capsule, dim_capsule, input_dim)`."""
        num_capsule, input_num_capsule, dim_capsule, _ = shape
        stddev = num_capsule / (input_num_capsule * dim_capsule) ** 0.5
        return keras.random.normal(shape, 0.0, stddev, dtype, self.seed)

    def get_config(self):
        return {"seed": self._init_seed}


def initializers(init, capsule_bias):
    """Initializers of each layer: conv1, primary, capsules, decoder.

    Biases of primary capsules begin as in the classic code: one layer above
    them needs no others.
    """
    if init == "authors":
        normal = keras.initializers.TruncatedNormal
        bias = keras.initializers.Constant(0.1)
        kernels = normal(stddev=0.05), *(normal(stddev=0.1) for _ in range(3))
    else:
        bias = "zeros"
        capsules = "glorot_uniform" if init == "glorot" else CAPSULE_NORMAL
        kernels = "glorot_uniform", "glorot_uniform", capsules, "glorot_uniform"
    of_capsules = keras.initializers.Constant(capsule_bias or 0.0)
    biases = bias, of_capsules, of_capsules, bias
    return [
        {"kernel_initializer": kernel, "bias_initializer": bias}
        for kernel, bias in zip(kernels, biases)
    ]
