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

A batch may have any size but 0. Any backend of Keras 3 will do.
"""

import math

import keras
from keras import ops

import capsnet.models.normalization  # noqa: F401 (registers its layers)
from capsnet.models.arguments import config_of, one_of, positive, refuse_inputs
from capsnet.models.fastconv import CoveringConv2D, FastConv2D
from capsnet.models.initializers import CAPSULE_NORMAL
from capsnet.models.routings import COUPLINGS, attention
from capsnet.models.vectors import lengths_of, norms, precise, shortened

SQUASHES = ("paper", "exponential")
ROUTINGS = ("dynamic", "attention", *COUPLINGS)


def squash(vectors, axis=-1, kind="paper"):
    """Shrinks vectors to a length below one and keeps their direction.

    Eq. 1 of the paper, `|s|^2 / (1 + |s|^2) * s / |s|`: short vectors become
    nearly zero, long ones nearly one. The length is computed in float32 at
    least; the result has the shape and the dtype of the vectors, which lie
    along `axis`. The `"exponential"` kind, `(1 - exp(-|s|)) * s / |s|`, keeps
    short vectors as they are (Mazzia et al., *Efficient-CapsNet*, Eq. 2).
    """
    vectors = ops.convert_to_tensor(vectors)
    # What was longer is still so long that its result has length 1.
    short, _ = shortened(vectors, axis)
    norm = norms(short, axis)
    if kind == "exponential":
        scale = -ops.expm1(-norm) / norm
    else:
        scale = norm / (1.0 + ops.square(norm))
    dtype = keras.backend.result_type(vectors.dtype, float)
    return ops.cast(short * scale, dtype)


@keras.saving.register_keras_serializable(package="capsnet")
class Length(keras.layers.Layer):
    """Length of each capsule: how likely it is that its entity is there.

    Section 3 of the paper. The gradient is a unit vector for capsules down to
    a length of 1e-14, and zero for the zero vector.

    Input shape:
        3D tensor with shape `(batch_size, num_capsule, dim_capsule)`.

    Output shape:
        2D tensor with shape `(batch_size, num_capsule)`.
    """

    def call(self, inputs):
        return ops.cast(lengths_of(inputs), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return tuple(input_shape[:-1])


@keras.saving.register_keras_serializable(package="capsnet")
class Mask(keras.layers.Layer):
    """Sets all capsules to zero but one, and flattens them for the decoder.

    Section 4.1 of the paper. In training the capsule of the true label is
    kept; without labels the longest one.

    Input shape:
        3D tensor with shape `(batch_size, num_capsule, dim_capsule)`, or a
        list of it and a mask of shape `(batch_size, num_capsule)`, usually
        one-hot labels. With several ones several capsules are kept.

    Output shape:
        2D tensor with shape `(batch_size, num_capsule * dim_capsule)`.

    Raises:
        ValueError: If the shapes of the capsules and the mask do not fit.
    """

    def build(self, input_shape):
        is_pair = isinstance(input_shape[0], (list, tuple))
        capsules = input_shape[0] if is_pair else input_shape
        if len(capsules) != 3 or None in capsules[1:]:
            raise ValueError(
                "Expected capsules of shape (batch_size, num_capsule, "
                f"dim_capsule). Received: input_shape={input_shape}"
            )

    def call(self, inputs):
        if isinstance(inputs, (list, tuple)):
            capsules, mask = inputs
            if (received := tuple(mask.shape))[1:] != (capsules.shape[1],):
                expected = f"(batch_size, {capsules.shape[1]})"
                raise ValueError(
                    f"Expected a mask of shape {expected}. Received: {received}"
                )
        else:
            capsules, lengths = inputs, lengths_of(inputs)
            mask = ops.one_hot(ops.argmax(lengths, axis=-1), lengths.shape[-1])
        masked = capsules * ops.cast(mask, capsules.dtype)[..., None]
        return ops.reshape(masked, (-1, math.prod(capsules.shape[1:])))

    def compute_output_shape(self, input_shape):
        is_pair = isinstance(input_shape[0], (list, tuple))
        batch, *capsules = input_shape[0] if is_pair else input_shape
        return (batch, math.prod(capsules))


@keras.saving.register_keras_serializable(package="capsnet")
class PrimaryCap(keras.layers.Layer):
    """Convolutional capsules, the lowest layer of capsules.

    Section 4 of the paper: a convolution whose channels are grouped into
    `n_channels` capsules for each cell of its output grid, then `squash`. A
    capsule is `dim_capsule` neighbouring *channels of one cell*, never
    neighbouring cells of a channel.

    Args:
        dim_capsule, n_channels: Positive integers, the length of a capsule
            and the types of capsules in a cell.
        kernel_size: As in `Conv2D`, or None for one depthwise kernel over
            the whole input (Mazzia et al.): each input channel is summed by
            weights of its own, and one cell comes out.
        strides, padding: As in `Conv2D`, where there is a kernel size.
        scale: Float, by which the convolution is multiplied before the bias
            is added. The authors' code divides by `n_channels`: `scale=1/32`.
        method: How the convolution is computed, see `FastConv2D`.
        kernel_initializer, bias_initializer: As in `Conv2D`, but biases begin
            with 0.15: with zeros capsules of 8 dimensions begin 0.007 long
            above digits, and a third layer of capsules never learns.
        squash: `"paper"` or `"exponential"`, the kind of `squash`.
        kernel_regularizer, kernel_constraint, data_format: As in `Conv2D`,
            but channels come last.

    Input shape:
        4D tensor, `(batch_size, height, width, channels)`, of a known size.

    Output shape:
        3D tensor, `(batch_size, rows * columns * n_channels, dim_capsule)`.

    Raises:
        ValueError: If a number is not positive, the picture too small, or
            the channels come first.
        TypeError: If it is called as a function, as in CapsNet-Keras.
    """

    def __new__(cls, *args, **kwargs):
        refuse_inputs(cls.__name__, args, kwargs)
        return super().__new__(cls, *args, **kwargs)

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
        bias_initializer=keras.initializers.Constant(0.15),
        squash="paper",
        kernel_regularizer=None,
        kernel_constraint=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.data_format = one_of(
            ("channels_last",),
            data_format=data_format or keras.config.image_data_format(),
        )
        self.dim_capsule = positive(dim_capsule=dim_capsule)
        self.n_channels = positive(n_channels=n_channels)
        self.scale = scale
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.squash = one_of(SQUASHES, squash=squash)
        filters = self.dim_capsule * self.n_channels
        common = {
            "kernel_initializer": kernel_initializer,
            "kernel_regularizer": kernel_regularizer,
            "kernel_constraint": kernel_constraint,
            "dtype": self.dtype_policy,
            "name": "conv",
        }
        if kernel_size is None:
            self.conv = CoveringConv2D(filters, **common)
        else:
            self.conv = FastConv2D(
                filters,
                kernel_size,
                strides,
                padding,
                use_bias=False,
                method=method,
                **common,
            )

    def build(self, input_shape):
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                "Expected pictures of shape (batch_size, height, width, "
                f"channels) of a known size. Received: {tuple(input_shape)}"
            )
        # The reshape in `call` holds for this size only.
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        self.conv.build(input_shape)
        _, self.num_capsule, _ = self.compute_output_shape(input_shape)
        self.bias = self.add_weight(
            (self.conv.filters,), self.bias_initializer, name="bias"
        )

    def call(self, inputs):
        inputs = ops.cast(inputs, self.compute_dtype)
        features = self.conv(inputs)  # (batch, grid, grid, types * dim)
        if self.scale != 1.0:
            features = features * self.scale
        features = features + ops.cast(self.bias, features.dtype)
        shape = (-1, self.num_capsule, self.dim_capsule)
        return squash(ops.reshape(features, shape), kind=self.squash)

    def compute_output_shape(self, input_shape):
        grid = self.conv.compute_output_shape(input_shape)
        num_capsule = grid[1] * grid[2] * self.n_channels
        return (input_shape[0], num_capsule, self.dim_capsule)

    def get_config(self):
        conv = {"kernel_size": None, **self.conv.get_config()}
        names = "kernel_size strides padding method kernel_initializer "
        names += "kernel_regularizer kernel_constraint"
        own = "dim_capsule n_channels scale bias_initializer squash data_format"
        return {
            **super().get_config(),
            **{name: conv[name] for name in names.split() if name in conv},
            **config_of(self, own),
        }


@keras.saving.register_keras_serializable(package="capsnet")
class CapsuleLayer(keras.layers.Layer):
    """Capsules that listen to all capsules below, by routing.

    Section 2 of the paper, Eq. 2 and 3 and Procedure 1. Each input capsule i
    votes for the pose of each output capsule j with a matrix of its own; in
    `routings` rounds the votes that agree win.

    Args:
        num_capsule: Positive integer, number of output capsules.
        dim_capsule: Positive integer, length of an output vector.
        routings: Positive integer, rounds of routing; None means 3. With one
            round the coupling is uniform. Attention has no rounds.
        routing: `"dynamic"` (the paper's), `"leaky"`, `"max_min"` or
            `"attention"`, see capsnet/models/routings.py.
        use_bias: Whether a bias is added to the sum of the votes in every
            round. The paper has none, its authors' code one of 0.1.
        squash: `"paper"` or `"exponential"`, the kind of `squash`.
        kernel_initializer, bias_initializer: As in Keras's layers. The
            classic `"glorot_uniform"` takes the 4D shape for a convolution's:
            its deviation for MNIST is 0.0027, and learning starts late. The
            authors' is `TruncatedNormal(stddev=0.1)`.
        kernel_regularizer, kernel_constraint: As in Keras's layers.

    Input shape:
        3D tensor, `(batch_size, input_num_capsule, input_dim_capsule)`.

    Output shape:
        3D tensor with shape `(batch_size, num_capsule, dim_capsule)`.

    Raises:
        ValueError: If a number is not positive, a kind or a shape not known,
            or attention is given a number of rounds.
    """

    def __init__(
        self,
        num_capsule,
        dim_capsule,
        routings=None,
        use_bias=False,
        kernel_initializer=CAPSULE_NORMAL,
        bias_initializer="zeros",
        routing="dynamic",
        squash="paper",
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_capsule = positive(num_capsule=num_capsule)
        self.dim_capsule = positive(dim_capsule=dim_capsule)
        self.routing = one_of(ROUTINGS, routing=routing)
        self.squash = one_of(SQUASHES, squash=squash)
        if routing == "attention":
            self.routings = one_of((None,), routings=routings)
        else:
            self.routings = positive(
                routings=3 if routings is None else routings
            )
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)

    def build(self, input_shape):
        if len(input_shape) != 3 or None in input_shape[1:]:
            raise ValueError(
                "Expected inputs of shape (batch_size, input_num_capsule, "
                f"input_dim_capsule). Received: {tuple(input_shape)}"
            )
        _, self.input_num_capsule, self.input_dim_capsule = input_shape
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        pairs = self.num_capsule, self.input_num_capsule
        matrix = self.dim_capsule, self.input_dim_capsule
        self.kernel = self.add_weight(
            (*pairs, *matrix),
            self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            name="kernel",
        )
        if self.use_bias:
            shape = self.num_capsule, self.dim_capsule
            self.bias = self.add_weight(
                shape, self.bias_initializer, name="bias"
            )
        if self.routing == "attention":
            self.prior = self.add_weight((*pairs, 1), "zeros", name="prior")

    def call(self, inputs):
        return self.route(inputs)[0]

    def route(self, inputs):
        """Procedure 1, and the coupling of its last round.

        The votes are `input_num_capsule` times larger than what comes out of
        them, and a CPU spends its time on moving them. Both uses of them are
        matrix products with the kernel too, so they are never written down.
        And since the logits only ever gather the agreement of the same votes
        with one output after the other, they are the agreement with the sum
        of all outputs so far.

        Returns:
            Outputs, shape `(batch, num_capsule, dim_capsule)`, and coupling in
            float32 at least, `(batch, num_capsule, input_num_capsule)`.
        """
        inputs, kernel = self._slices(inputs)
        if self.routing == "attention":
            total = self.weighted_sum(ops.ones((1, 1, 1)), inputs, kernel)
            agreement = self.agreement(total, inputs, kernel)
            coupling = attention(agreement, self.dim_capsule, self.prior)
            outputs = self.outputs(coupling, inputs, kernel)
        else:
            normalized = COUPLINGS.get(self.routing, couple)
            # Zero logits: in the first round all output capsules share alike.
            zeros = ops.zeros((self.num_capsule, 1, 1), self.compute_dtype)
            coupling = normalized(precise(zeros))[:1]
            outputs = outputs_so_far = self.outputs(coupling, inputs, kernel)
            for _ in range(self.routings - 1):
                agreement = self.agreement(outputs_so_far, inputs, kernel)
                coupling = normalized(agreement)
                outputs = self.outputs(coupling, inputs, kernel)
                outputs_so_far = outputs_so_far + outputs
        shape = (self.num_capsule, *ops.shape(inputs[0]))
        return (
            ops.transpose(ops.cast(outputs, self.compute_dtype), (1, 0, 2)),
            ops.transpose(ops.broadcast_to(coupling, shape), (1, 0, 2)),
        )

    def outputs(self, coupling, inputs, kernel):
        """`v_j`, the squashed sum of the votes and the bias."""
        total = self.weighted_sum(coupling, inputs, kernel)
        if self.use_bias:
            total = total + precise(self.bias)[:, None]
        return squash(total, kind=self.squash)

    def weighted_sum(self, coupling, inputs, kernel):
        """Eq. 2: `s_j`, the sum over i of `c_ij u_hat_ji`.

        From a coupling that broadcasts to `(num_capsule, batch,
        input_num_capsule)` to `(num_capsule, batch, dim_capsule)`, precise.
        """
        coupling = ops.cast(coupling, self.compute_dtype)
        total = sum(ops.matmul(coupling * u, w) for u, w in zip(inputs, kernel))
        return precise(total)

    def agreement(self, outputs, inputs, kernel):
        """The scalar products `u_hat_ji . v_j`, in Procedure 1's last line.

        From outputs of shape `(num_capsule, batch, dim_capsule)` to
        `(num_capsule, batch, input_num_capsule)`, precise.
        """
        outputs = ops.cast(outputs, self.compute_dtype)
        return sum(
            precise(ops.matmul(outputs, ops.swapaxes(w, 1, 2)) * u)
            for u, w in zip(inputs, kernel)
        )

    def _slices(self, inputs):
        """Inputs and kernel, cut along the dimensions of an input capsule.

        A product of two slices, of shapes `(batch, input_num_capsule)` and
        `(num_capsule, input_num_capsule, dim_capsule)`, fits into the cache;
        one of the whole tensors does not.
        """
        inputs = ops.cast(inputs, self.compute_dtype)
        inputs = ops.transpose(inputs, (2, 0, 1))
        kernel = ops.transpose(self.kernel, (3, 0, 1, 2))
        kernel = ops.cast(kernel, self.compute_dtype)
        return ops.unstack(inputs), ops.unstack(kernel)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.num_capsule, self.dim_capsule)

    def get_config(self):
        plain = "num_capsule dim_capsule routings use_bias routing squash "
        others = "kernel_initializer bias_initializer kernel_regularizer "
        names = plain + others + "kernel_constraint"
        return {**super().get_config(), **config_of(self, names)}


def couple(logits):
    """Eq. 3: the softmax over the output capsules, which are the first axis.

    Written out, because on TensorFlow `ops.softmax` moves that axis to the
    end and back, which more than doubles its time.
    """
    # The largest logit cancels out; without it `exp` could overflow.
    largest = ops.stop_gradient(ops.max(logits, axis=0, keepdims=True))
    exponentials = ops.exp(logits - largest)
    return exponentials * (1.0 / ops.sum(exponentials, axis=0, keepdims=True))
