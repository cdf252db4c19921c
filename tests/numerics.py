"""Arrays, references and gradients that the numerical tests share.

References are NumPy loops written from the paper's equations, in float64.
"""

import keras
import numpy as np
from keras import ops


def random_normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def relative_error(value, reference):
    difference = np.linalg.norm(np.asarray(value, "float64") - reference)
    return difference / np.linalg.norm(reference)


def gradients(function, *values):
    """Gradients of a scalar function, by the backend's own means."""
    values = [ops.convert_to_tensor(value) for value in values]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(*values)
        found = tape.gradient(result, values)
    elif keras.backend.backend() == "jax":
        import jax

        # Without optimization, which takes longer than tiny shapes do.
        options = {"xla_backend_optimization_level": 0}
        gradient = jax.grad(function, tuple(range(len(values))))
        found = jax.jit(gradient, compiler_options=options)(*values)
    else:
        import torch

        values = [value.detach().requires_grad_() for value in values]
        found = torch.autograd.grad(function(*values), values)
    return [to_numpy(gradient) for gradient in found]


def reference_squash(vector, kind="paper"):
    """Eq. 1 for one vector, or Eq. 2 of Efficient-CapsNet."""
    squared = sum(float(x) ** 2 for x in vector)
    if squared == 0:
        return np.zeros(len(vector))
    direction = np.array(vector) / squared**0.5
    if kind == "exponential":
        return (1 - np.exp(-(squared**0.5))) * direction
    return squared / (1 + squared) * direction


def reference_votes(inputs, kernel):
    """Eq. 2, `u_hat[j, i] = W_ij u_i`, for the capsules of one picture."""
    num_capsule, input_num_capsule, dim_capsule, _ = kernel.shape
    votes = np.zeros((num_capsule, input_num_capsule, dim_capsule))
    for j in range(num_capsule):
        for i in range(input_num_capsule):
            votes[j, i] = kernel[j, i].astype("float64") @ inputs[i]
    return votes


def central_differences(function, values, step=1e-5):
    """Difference quotients of a float64 function, entry by entry."""
    values = values.astype("float64")
    result = np.zeros_like(values)
    for index in np.ndindex(values.shape):
        kept = values[index]
        values[index] = kept + step
        above = function(values)
        values[index] = kept - step
        below = function(values)
        values[index] = kept
        result[index] = (above - below) / (2 * step)
    return result
