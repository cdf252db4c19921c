"""Other routings than the paper's: how strongly capsules are coupled.

Dynamic routing is in capsulelayers.py, in which it is read. A function here
takes the place of its softmax, Eq. 3: logits to coupling coefficients, both in
float32 and of shape `(num_capsule, batch, input_num_capsule)`. `CapsuleLayer`
does the rest of it, so that no kind ever writes the votes down.
"""

from keras import ops

# A smaller range of logits is taken for none: its reciprocal could overflow.
SMALLEST_RANGE = 1e-30


def leaky(logits):
    """Leaky routing: an input capsule may belong to none of the outputs.

    `c_ij = exp(b_ij) / (1 + sum_j' exp(b_ij'))`: a softmax with one more
    logit, 0 in every round, whose share is dropped. In the first round all
    shares are `1 / (num_capsule + 1)`. Source: `_leaky_routing` in the code
    of the paper's authors, who use it for CIFAR-10.
    """
    # The largest logit cancels out; without it `exp` could overflow.
    largest = ops.max(logits, axis=0, keepdims=True)
    largest = ops.stop_gradient(ops.maximum(largest, 0.0))
    exponentials = ops.exp(logits - largest)
    total = ops.sum(exponentials, axis=0, keepdims=True)
    return exponentials / (ops.exp(-largest) + total)


def max_min(logits):
    """Max-min routing: the outputs do not share, each gets up to all of it.

    `c_ij = (b_ij - min_j) / (max_j - min_j)`, which does not sum to one.
    Source: Zhao et al., *Capsule Networks with Max-Min Normalization*, 2019.
    Where all logits are equal, as in the first round, this is 0 / 0. There
    the coupling is 1, the upper bound: every vote counts whole. (So it is
    remembered of the source, whose text could not be read again.)
    """
    least = ops.min(logits, axis=0, keepdims=True)
    spread = ops.max(logits, axis=0, keepdims=True) - least
    differ = spread > SMALLEST_RANGE
    shares = (logits - least) / ops.where(differ, spread, 1.0)
    return ops.where(differ, shares, 1.0)


def attention(agreement, dim_capsule, prior):
    """Self-attention routing: one look at the plain sum of the votes.

    `c_ij = softmax_j(u_ij . S_j / sqrt(dim_capsule)) + p_ij`, with `S_j` the
    sum of all votes for j. Source: Mazzia et al., *Efficient-CapsNet*, 2021,
    Eq. 3 to 6, and `FCCaps` in their code, which adds the prior after the
    softmax.

    Args:
        agreement: The scalar products `u_ij . S_j`.
        dim_capsule: Integer, length of a vote.
        prior: Tensor of shape `(num_capsule, input_num_capsule, 1)`, `p`.
    """
    shares = ops.softmax(agreement / dim_capsule**0.5, axis=0)
    return shares + ops.swapaxes(ops.cast(prior, shares.dtype), 1, 2)


# By the names that `CapsuleLayer` knows them by.
COUPLINGS = {"leaky": leaky, "max_min": max_min}
