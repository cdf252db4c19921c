"""Tests of benchmarks/compare.py: the mistakes of two networks."""

import itertools

import compare
import mnist
import pytest
from conftest import write_bars
from PIL import Image
from published import add, cells_of

# What three pictures of a class each are taken for, and what is true.
TRUE = "0 0 0 1 1 1 2 2 2".split()


def publish(out, row, seed, found, epochs=2, **changes):
    """A finished run and its answers; a name has a space in it."""
    wrong = sum(map(str.__ne__, found.split(), TRUE))
    name = f"{row}-{seed}-{epochs:08}"
    error = 100 * wrong / len(TRUE)
    add(out, mnist.STUDY, row, seed, epochs, error, name=name, **changes)
    lines = [
        f"a {each}" if each == true else f"a {each}\ta {true}"
        for each, true in zip(found.split(), TRUE)
    ]
    path = out / "mnist" / name / "predictions.txt"
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("one", "other"), [(0, 0), (3, 3), (1, 6), (9, 2)])
def test_probability_is_that_of_all_throws_of_a_coin(one, other):
    n, gap = one + other, abs(one - other)
    throws = list(itertools.product((-1, 1), repeat=n))
    as_large = sum(abs(sum(each)) >= gap for each in throws)
    found = compare.probability(one, other)
    assert found == pytest.approx(as_large / len(throws), rel=1e-12)


def test_rows_are_compared_seed_by_seed(tmp_path):
    publish(tmp_path, "v1-classic", 0, "0 0 1 1 1 1 2 2 1")
    publish(tmp_path, "v1-classic", 1, "0 0 0 1 1 1 2 2 2")
    publish(tmp_path, "small", 0, "1 1 1 0 0 0 2 2 2")
    publish(tmp_path, "small", 1, "0 0 0 1 1 1 0 2 2")
    publish(tmp_path, "small", 2, "0 0 0 1 1 1 0 2 2")
    add(tmp_path, mnist.STUDY, "v2-classic", 0, 2, 0.5)  # Not tested.
    digits = "1 1 1 1 1 1 1 1 1"  # On other pictures.
    publish(tmp_path, "v2-classic", 1, digits, dataset="digits")
    assert compare.main(["--report", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    names = ["v1-classic, 2 epochs", "small, 2 epochs"]
    # Of the first seeds' mistakes, 2 and 6, one is common: 1 and 5 of 6 throws,
    # 2 * (1 + 6) / 64. One mistake says nothing.
    figures = ["0, 1", "1, 0", "5, 1", "1, 0", "0.22, 1"]
    assert cells_of(text)[1:] == [names + figures]


def test_what_all_get_wrong_is_drawn(tmp_path, capsys):
    data = write_bars(tmp_path / "bars.npz", test=9)
    here = {"dataset": "bars.npz"}
    publish(tmp_path, "v4-classic", 0, "0 1 2 0 1 1 2 2 2", **here)
    publish(tmp_path, "small", 0, "0 1 1 1 1 1 2 2 2", **here)
    # Other rows do not count, nor shorter runs of the same.
    publish(tmp_path, "v3-classic", 0, "0 0 0 1 1 1 2 2 2", **here)
    publish(tmp_path, "small", 0, "0 0 0 1 1 1 2 2 2", epochs=1, **here)
    argv = ["--dataset", data, "--work_dir", str(tmp_path / "none")]
    assert compare.main([*argv, "--out", str(tmp_path)]) == 0
    assert "Wrong in 2 models: 2 pictures" in capsys.readouterr().out
    with Image.open(tmp_path / "common-mistakes.png") as picture:
        assert picture.width > 1.3 * picture.height
