"""The layers of a capsule network.

Sabour, Frosst and Hinton, *Dynamic Routing Between Capsules*, NIPS 2017. A
capsule is a vector: its direction says how an entity looks, its length, kept
below one, how likely it is that the entity is there.

The paper's letters, and the names used here:

| paper      | here       | what it is                               |
| ---------- | ---------- | ---------------------------------------- |
| `u_i`      | `inputs`   | output of capsule i of the layer below   |
| `W_ij`     | `kernel`   | transformation matrix of the pair i, j   |
| `u_hat_ji` | `votes`    | `W_ij u_i`, what i expects of capsule j  |
| `b_ij`     | `logits`   | how well i's votes for j agreed so far   |
| `c_ij`     | `coupling` | softmax of the logits over the outputs j |
| `s_j`      | `total`    | sum of the votes for j, weighted by c_ij |
| `v_j`      | `outputs`  | `squash(s_j)`                            |

All layers take any batch size and work with every backend of Keras 3.
"""

import numbers

import keras
from keras import ops

from capsnet.models.fastconv import FastConv2D

# Far below every square that a float32 holds to full precision. A larger
# epsilon, 1e-7 say, drowns the short vectors of an untrained network, and
# with them the gradients that would make them longer.
EPSILON = 1e-30


def safe_norm(vectors, axis=-1, keepdims=False):
    """Euclidean norm in float32 whose gradient at zero is zero, not NaN."""
    vectors = ops.cast(vectors, "float32")
    squares = ops.sum(ops.square(vectors), axis=axis, keepdims=keepdims)
    return ops.sqrt(squares + EPSILON)


def squash(vectors, axis=-1):
    """Shrinks vectors to a length below one and keeps their direction.

    Eq. 1 of the paper, `|s|^2 / (1 + |s|^2) * s / |s|`: short vectors become
    nearly zero, long ones nearly one. The length is computed in float32.

    Args:
        vectors: Tensor of any shape.
        axis: Integer, the axis along which a vector's components lie.

    Returns:
        Tensor of the same shape and dtype.
    """
    vectors = ops.convert_to_tensor(vectors)
    norm = safe_norm(vectors, axis=axis, keepdims=True)
    scale = norm / (1.0 + ops.square(norm))
    squashed = ops.cast(vectors, "float32") * scale
    return ops.cast(squashed, vectors.dtype)


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleNormal(keras.initializers.Initializer):
    """Normal matrices with which vectors keep their length at the start.

    With uniform coupling (the first routing round) an output capsule is the
    sum of `input_num_capsule` votes divided by `num_capsule`. For random
    inputs of length one its expected squared length is one when the standard
    deviation is `num_capsule / sqrt(input_num_capsule * dim_capsule)`: 0.074
    for the digit capsules of MNIST. Layers of any size can then be stacked;
    with a fixed deviation small layers die out, since squash squares what is
    short.

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
        return keras.random.normal(
            shape, stddev=stddev, dtype=dtype, seed=self.seed
        )

    def get_config(self):
        return {"seed": self._init_seed}


@keras.saving.register_keras_serializable(package="capsnet")
class Length(keras.layers.Layer):
    """Length of each capsule: how likely it is that its entity is there.

    Section 3 of the paper. The gradient is a unit vector however short the
    capsule is, and zero for the zero vector.

    Input shape:
        3D tensor with shape `(batch_size, num_capsule, dim_capsule)`.

    Output shape:
        2D tensor with shape `(batch_size, num_capsule)`, values in [0, 1)
        for squashed capsules.
    """

    def call(self, inputs):
        return ops.cast(safe_norm(inputs), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[:-1])


@keras.saving.register_keras_serializable(package="capsnet")
class Mask(keras.layers.Layer):
    """Sets all capsules to zero but one, and flattens them for the decoder.

    Section 4.1 of the paper. In training the capsule of the true label is
    kept; without labels the longest one.

    Call arguments:
        inputs: Either the capsules, or a list `[capsules, mask]` with a mask
            of shape `(batch_size, num_capsule)`, usually one-hot labels.
            With several ones in a row several capsules are kept.

    Input shape:
        3D tensor with shape `(batch_size, num_capsule, dim_capsule)`.

    Output shape:
        2D tensor with shape `(batch_size, num_capsule * dim_capsule)`.

    Raises:
        ValueError: If the shapes of the capsules and the mask do not fit.
    """

    def build(self, input_shape):
        capsules, mask = self._split(input_shape, is_shape=True)
        if len(capsules) != 3 or None in capsules[1:]:
            raise ValueError(
                "Expected capsules of shape (batch_size, num_capsule, "
                f"dim_capsule). Received: input_shape={input_shape}"
            )
        if mask is not None and tuple(mask)[1:] != (capsules[1],):
            raise ValueError(
                f"Expected a mask of shape (batch_size, {capsules[1]}). "
                f"Received: {tuple(mask)}"
            )

    def _split(self, inputs, is_shape=False):
        pair = isinstance(inputs, (list, tuple))
        if is_shape:
            pair = pair and isinstance(inputs[0], (list, tuple))
        return tuple(inputs) if pair else (inputs, None)

    def call(self, inputs):
        capsules, mask = self._split(inputs)
        if mask is None:
            lengths = safe_norm(capsules)
            mask = ops.one_hot(ops.argmax(lengths, axis=-1), lengths.shape[-1])
        mask = ops.cast(mask, capsules.dtype)
        masked = capsules * ops.expand_dims(mask, -1)
        _, num_capsule, dim_capsule = capsules.shape
        return ops.reshape(masked, (-1, num_capsule * dim_capsule))

    def compute_output_shape(self, input_shape):
        capsules, _ = self._split(input_shape, is_shape=True)
        return (capsules[0], capsules[1] * capsules[2])


@keras.saving.register_keras_serializable(package="capsnet")
class PrimaryCap(keras.layers.Layer):
    """Convolutional capsules, the lowest layer of capsules.

    Section 4 of the paper: a convolution whose channels are grouped into
    `n_channels` capsules of `dim_capsule` for each cell of its output grid,
    then `squash`. A capsule is `dim_capsule` neighbouring *channels of one
    cell*, never neighbouring cells of a channel.

    Args:
        dim_capsule: Positive integer, length of a capsule.
        n_channels: Positive integer, types of capsules in a cell.
        kernel_size: Integer or pair of integers, as in `Conv2D`.
        strides: Integer or pair of integers, as in `Conv2D`.
        padding: `"valid"` or `"same"`.
        scale: Float by which the convolution is multiplied before the bias
            is added. The authors' code routes uniformly over the one input
            type and so divides by `n_channels`: `scale=1 / 32`.
        method: How the convolution is computed, see `FastConv2D`.
        kernel_initializer, bias_initializer: As in `Conv2D`.

    Input shape:
        4D tensor with shape `(batch_size, height, width, channels)`; height
        and width must be known.

    Output shape:
        3D tensor with shape
        `(batch_size, grid_height * grid_width * n_channels, dim_capsule)`.

    Raises:
        ValueError: If a number is not positive, or the picture is smaller
            than the kernel.
    """

    def __init__(
        self,
        dim_capsule,
        n_channels,
        kernel_size,
        strides=1,
        padding="valid",
        scale=1.0,
        method="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.dim_capsule, self.n_channels = positive_integers(
            dim_capsule=dim_capsule, n_channels=n_channels
        )
        self.scale = scale
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.conv = FastConv2D(
            self.dim_capsule * self.n_channels,
            kernel_size,
            strides=strides,
            padding=padding,
            use_bias=False,
            data_format="channels_last",
            method=method,
            kernel_initializer=kernel_initializer,
            dtype=self.dtype_policy,
            name="conv",
        )

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                "Expected pictures of shape (batch_size, height, width, "
                f"channels) of a known size. Received: {tuple(input_shape)}"
            )
        # The reshape in `call` holds for this size only.
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        smallest = min(
            size - kernel + 1
            for size, kernel in zip(input_shape[1:3], self.conv.kernel_size)
        )
        if self.conv.padding == "valid" and smallest < 1:
            raise ValueError(
                f"Expected pictures of at least {self.conv.kernel_size}, the "
                f"size of the kernel. Received: {tuple(input_shape)}"
            )
        self.conv.build(input_shape)
        grid = self.conv.compute_output_shape(input_shape)
        self.num_capsule = grid[1] * grid[2] * self.n_channels
        self.bias = self.add_weight(
            name="bias",
            shape=(self.dim_capsule * self.n_channels,),
            initializer=self.bias_initializer,
        )

    def call(self, inputs):
        features = self.conv(inputs)  # (batch, grid, grid, types * dim)
        if self.scale != 1.0:
            features = features * self.scale
        features = features + ops.cast(self.bias, features.dtype)
        shape = (-1, self.num_capsule, self.dim_capsule)
        return squash(ops.reshape(features, shape))

    def compute_output_shape(self, input_shape):
        grid = self.conv.compute_output_shape(input_shape)
        num_capsule = grid[1] * grid[2] * self.n_channels
        return (input_shape[0], num_capsule, self.dim_capsule)

    def get_config(self):
        conv = self.conv.get_config()
        return {
            **super().get_config(),
            "dim_capsule": self.dim_capsule,
            "n_channels": self.n_channels,
            "scale": self.scale,
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
            **{
                key: conv[key]
                for key in (
                    "kernel_size",
                    "strides",
                    "padding",
                    "method",
                    "kernel_initializer",
                )
            },
        }


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleLayer(keras.layers.Layer):
    """Capsules that listen to all capsules below, by dynamic routing.

    Section 2 of the paper, Eq. 2 and 3 and Procedure 1. Each input capsule i
    votes for the pose of each output capsule j with a matrix of its own; in
    `routings` rounds the votes that agree win.

    Args:
        num_capsule: Positive integer, number of output capsules.
        dim_capsule: Positive integer, length of an output vector.
        routings: Positive integer, rounds of routing. With one round the
            coupling is uniform.
        use_bias: Whether each output capsule has a bias, added to the sum of
            its votes in every round. The paper has none, its authors' code
            one of 0.1.
        kernel_initializer: Initializer of the matrices. The default,
            `CapsuleNormal`, keeps the length of vectors at any number of
            capsules (its docstring has the formula). The classic Keras code
            uses `"glorot_uniform"`, which takes the 4D shape for a
            convolution and yields a standard deviation of 0.0027 for MNIST:
            the first outputs are 1e-7 long and learning starts late. The
            authors' code has `TruncatedNormal(stddev=0.1)`.
        bias_initializer: Initializer of the bias.

    Input shape:
        3D tensor with shape
        `(batch_size, input_num_capsule, input_dim_capsule)`.

    Output shape:
        3D tensor with shape `(batch_size, num_capsule, dim_capsule)`.

    Raises:
        ValueError: If a number is not positive, or the inputs are not 3D
            with known numbers of capsules and dimensions.
    """

    def __init__(
        self,
        num_capsule,
        dim_capsule,
        routings=3,
        use_bias=False,
        kernel_initializer="capsnet>CapsuleNormal",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_capsule, self.dim_capsule, self.routings = positive_integers(
            num_capsule=num_capsule, dim_capsule=dim_capsule, routings=routings
        )
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, input_shape):
        if len(input_shape) != 3 or None in input_shape[1:]:
            raise ValueError(
                "Expected inputs of shape (batch_size, input_num_capsule, "
                f"input_dim_capsule). Received: {tuple(input_shape)}"
            )
        _, self.input_num_capsule, self.input_dim_capsule = input_shape
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                self.num_capsule,
                self.input_num_capsule,
                self.dim_capsule,
                self.input_dim_capsule,
            ),
            initializer=self.kernel_initializer,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(self.num_capsule, self.dim_capsule),
                initializer=self.bias_initializer,
            )

    def votes(self, inputs):
        """Eq. 2: what each input capsule expects of each output capsule.

        Args:
            inputs: Tensor of shape
                `(batch, input_num_capsule, input_dim_capsule)`.

        Returns:
            Tensor of shape
            `(batch, num_capsule, input_num_capsule, dim_capsule)`.
        """
        return ops.einsum("bik,jidk->bjid", inputs, self.kernel)

    def call(self, inputs):
        outputs, _ = self.route(inputs)
        return outputs

    def route(self, inputs):
        """Procedure 1, and the coupling of its last round.

        The votes are `input_num_capsule` times larger than what comes out of
        them, and a CPU spends its time on moving them. Both uses of them are
        matrix products with the kernel too, so they are never written down:
        see `agreement` and `weighted_sum`. And since the logits only ever
        gather the agreement of the same votes with one output after the
        other, they are the agreement with the sum of all outputs so far.

        Args:
            inputs: Tensor of shape
                `(batch, input_num_capsule, input_dim_capsule)`.

        Returns:
            Pair of tensors: outputs, shape
            `(batch, num_capsule, dim_capsule)`, and coupling in float32,
            shape `(batch, num_capsule, input_num_capsule)`.
        """
        inputs, kernel = self._slices(inputs)
        # Zero logits: in the first round all output capsules share alike.
        coupling = ops.full((1, 1, 1), 1.0 / self.num_capsule)
        outputs = squash(self.weighted_sum(coupling, inputs, kernel))
        outputs_so_far = outputs
        for _ in range(self.routings - 1):
            logits = self.agreement(outputs_so_far, inputs, kernel)
            coupling = couple(logits)
            outputs = squash(self.weighted_sum(coupling, inputs, kernel))
            outputs_so_far = outputs_so_far + outputs
        shape = (self.num_capsule, *ops.shape(inputs[0]))
        return (
            ops.transpose(ops.cast(outputs, self.compute_dtype), (1, 0, 2)),
            ops.transpose(ops.broadcast_to(coupling, shape), (1, 0, 2)),
        )

    def weighted_sum(self, coupling, inputs, kernel):
        """Eq. 2: `s_j`, the sum over i of `c_ij u_hat_ji`, and the bias.

        Args:
            coupling: Tensor of shape `(num_capsule, batch,
                input_num_capsule)`, or one that broadcasts to it.
            inputs, kernel: What `_slices` returns.

        Returns:
            Float32 tensor of shape `(num_capsule, batch, dim_capsule)`.
        """
        coupling = ops.cast(coupling, self.compute_dtype)
        total = sum(ops.matmul(coupling * u, w) for u, w in zip(inputs, kernel))
        total = ops.cast(total, "float32")
        if self.use_bias:
            bias = ops.cast(self.bias, "float32")
            total = total + ops.expand_dims(bias, 1)
        return total

    def agreement(self, outputs, inputs, kernel):
        """The scalar products `u_hat_ji . v_j`, in Procedure 1's last line.

        Args:
            outputs: Tensor of shape `(num_capsule, batch, dim_capsule)`.
            inputs, kernel: What `_slices` returns.

        Returns:
            Float32 tensor of shape
            `(num_capsule, batch, input_num_capsule)`.
        """
        outputs = ops.cast(outputs, self.compute_dtype)
        return sum(
            ops.cast(ops.matmul(outputs, ops.swapaxes(w, 1, 2)) * u, "float32")
            for u, w in zip(inputs, kernel)
        )

    def _slices(self, inputs):
        """Inputs and kernel, cut along the dimensions of an input capsule.

        Returns:
            Two lists of `input_dim_capsule` tensors, of shapes
            `(batch, input_num_capsule)` and
            `(num_capsule, input_num_capsule, dim_capsule)`. A product of two
            slices fits into the cache, one of the whole tensors does not.
        """
        inputs = ops.transpose(inputs, (2, 0, 1))
        kernel = ops.transpose(self.kernel, (3, 0, 1, 2))
        kernel = ops.cast(kernel, self.compute_dtype)
        return ops.unstack(inputs), ops.unstack(kernel)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_capsule, self.dim_capsule)

    def get_config(self):
        return {
            **super().get_config(),
            "num_capsule": self.num_capsule,
            "dim_capsule": self.dim_capsule,
            "routings": self.routings,
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(
                self.kernel_initializer
            ),
            "bias_initializer": keras.initializers.serialize(
                self.bias_initializer
            ),
        }


def couple(logits):
    """Eq. 3: the softmax over the output capsules, which are the first axis.

    Written out, because on TensorFlow `ops.softmax` moves that axis to the
    end and back, which more than doubles its time.

    Args:
        logits: Tensor of shape `(num_capsule, batch, input_num_capsule)`.

    Returns:
        Tensor of the same shape whose sum over the first axis is 1.
    """
    # The largest logit cancels out; without it `exp` could overflow.
    largest = ops.stop_gradient(ops.max(logits, axis=0, keepdims=True))
    exponentials = ops.exp(logits - largest)
    return exponentials * (1.0 / ops.sum(exponentials, axis=0, keepdims=True))


def positive_integers(**arguments):
    """The arguments as Python's integers; NumPy's are welcome.

    Raises:
        ValueError: Unless every argument is a positive integer.
    """
    for name, value in arguments.items():
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(
                f"Expected {name} to be a positive integer. "
                f"Received: {name}={value!r}"
            )
    return map(int, arguments.values())
