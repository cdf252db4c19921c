"""The arguments of layers: checked, and as JSON can hold them."""

import numbers

import keras


def positive(**argument):
    """The one argument as Python's integer; NumPy's are welcome."""
    ((name, value),) = argument.items()
    if not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"Expected {name} to be a positive integer. "
            f"Received: {name}={value!r}"
        )
    return int(value)


def one_of(choices, **argument):
    """The one argument, which has to be one of the choices."""
    ((name, value),) = argument.items()
    if value not in choices:
        raise ValueError(
            f"Expected {name} to be one of {', '.join(map(repr, choices))}. "
            f"Received: {name}={value!r}"
        )
    return value


def refuse_inputs(name, positional, named):
    """Raises TypeError where a layer is made as CapsNet-Keras's functions.

    Called from `__new__`, before Python finds an argument too many.
    """
    inputs = positional[0] if positional else named.get("inputs")
    if getattr(inputs, "shape", ()):
        raise TypeError(
            f"{name} is a layer, which is made and then called, for instance "
            "PrimaryCap(8, 32, 9, strides=2)(inputs). Received: inputs of "
            f"shape {tuple(inputs.shape)}"
        )


def config_of(layer, names):
    """A layer's arguments as JSON can hold them, initializers included."""
    return {
        name: keras.saving.serialize_keras_object(getattr(layer, name))
        for name in names.split()
    }
