"""Tests of benchmarks/dimensions.py: the words, and the table of a model."""

import dimensions
import numpy as np
import pytest

from capsnet.models.saving import save_model
from capsulenet import CapsNet


def stroke(width=2.0, height=8.0, shear=0.0, x=14.0, y=14.0, ink=1.0):
    """A smooth blob of 28x28 whose moments are those that are named."""
    rows, columns = np.indices((28, 28))
    up = y - rows
    across = columns - x - shear * up
    blob = np.exp(-0.5 * ((across / width) ** 2 + (up / height) ** 2))
    return (ink * blob / blob.sum())[..., None]


@pytest.mark.parametrize(
    "changed, words",
    [
        ({}, "a detail"),
        ({"ink": 1.3}, "thicker"),
        ({"ink": 0.7}, "thinner"),
        ({"shear": 0.2}, "leans right"),
        ({"shear": -0.2}, "leans left"),
        ({"width": 2.3}, "wider"),
        ({"height": 3.0, "y": 16.0}, "shorter, moves down"),
        ({"x": 16.0, "ink": 3.0}, "thicker, moves right"),
        # Just below what counts.
        ({"ink": 1.19, "x": 14.9}, "a detail"),
    ],
)
def test_dimensions_are_described_by_what_changes(changed, words):
    after = stroke(**{"height": 4.0, **changed})
    assert dimensions.describe(stroke(height=4.0), after).startswith(words)


def test_dimension_that_leaves_nothing():
    assert "narrower" in dimensions.describe(stroke(), stroke(ink=0.0))


def test_dimensions_of_a_small_model(tiny, tmp_path, capsys):
    for decoder in (True, False):
        eval_model = CapsNet((17, 17, 1), 3, 1, decoder=decoder)[1]
        path = tmp_path / f"{decoder}.keras"
        save_model(eval_model, path, {"class_names": list("012")})
    out = tmp_path / "dimensions.md"
    argv = ["--dataset", tiny, "--out", str(out), "-w"]
    assert dimensions.main([*argv, str(tmp_path / "True.keras")]) == 0
    lines = out.read_text().splitlines()
    header = next(n for n, line in enumerate(lines) if "| dimension" in line)
    assert "| 0 " in lines[header] and len(lines) == header + 18
    assert all(line.count("|") == 5 for line in lines[header:])
    # Without a decoder there is nothing to draw, without a file nothing at all.
    for name, said in (("False", "no decoder"), ("missing", "missing.keras")):
        assert dimensions.main([*argv, str(tmp_path / f"{name}.keras")]) == 2
        assert said in capsys.readouterr().err
