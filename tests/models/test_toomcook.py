"""The matrices of the fast convolution, in fractions."""

from fractions import Fraction

import numpy as np
import pytest

from capsnet.models.toomcook import (
    MAX_POINTS,
    balanced_toom_cook,
    plan,
    saving,
    toom_cook,
)

TRANSFORMS = [
    (m, r) for m in range(1, 11) for r in range(1, 11) if m + r - 1 <= 10
]


@pytest.mark.parametrize("m, r", TRANSFORMS)
def test_transform_is_exact_in_fractions(m, r):
    """For each pair of unit vectors, and so for all pictures and kernels."""
    output, kernel, data = toom_cook(m, r)
    n = m + r - 1
    for tap in range(r):
        for position in range(n):
            products = [kernel[j][tap] * data[j][position] for j in range(n)]
            for i in range(m):
                value = sum(output[i][j] * products[j] for j in range(n))
                assert type(value) is Fraction
                assert value == (position == i + tap)


@pytest.mark.parametrize("m, r", TRANSFORMS)
def test_balancing_equals_the_norms_and_keeps_the_result(m, r):
    exact = [np.array(matrix, dtype="float64") for matrix in toom_cook(m, r)]
    output, kernel, data = balanced = balanced_toom_cook(m, r)
    for j in range(m + r - 1):
        np.testing.assert_allclose(
            np.einsum("a,b,c", output[:, j], kernel[j], data[j]),
            np.einsum("a,b,c", exact[0][:, j], exact[1][j], exact[2][j]),
            rtol=1e-12,
        )
        norms = [np.linalg.norm(output[:, j])]
        norms += [np.linalg.norm(matrix[j]) for matrix in balanced[1:]]
        np.testing.assert_allclose(norms, norms[0], rtol=1e-12)


def test_transform_refuses_too_many_points():
    assert MAX_POINTS == 10
    with pytest.raises(ValueError, match="Received: m=6, r=6"):
        toom_cook(6, 6)


def test_primary_capsules_need_less_than_a_third_of_the_products():
    geometry = (20, 20), (9, 9), (2, 2), "valid"
    assert saving(*geometry, 256, 256) > 3.5
    axes, _ = plan(*geometry)
    assert [(axis.m, axis.n) for axis in axes] == [(6, 19), (6, 19)]
    assert axes[0].parts == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
