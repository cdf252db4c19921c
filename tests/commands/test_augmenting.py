"""`--augment` and `--show_augment`, from the flags to the files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import bars
from PIL import Image
from running import command, contents, same, weights_of

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """An `.npz` of pictures in colour that are wider than high."""
    x, y = bars(12, (12, 20, 3))
    path = tmp_path_factory.mktemp("data") / "colours.npz"
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y)
    return path


def drawn(folder, dataset, *flags):
    """The picture of `--show_augment`, as an array."""
    done = command(folder, "--show_augment", "--dataset", dataset, *flags)
    assert done.status == 0, done.err
    assert done.out.endswith(f"Written: {folder / 'augment.png'}\n")
    with Image.open(folder / "augment.png") as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_augmented_pictures_are_drawn_and_nothing_is_trained(
    tmp_path, data, colours
):
    grey = drawn(tmp_path, data, "--augment", "affine")
    assert [path.name for path in contents(tmp_path)] == ["augment.png"]
    assert np.ptp(grey, axis=-1).max() == 0
    pictures = drawn(tmp_path, colours, "--augment", "photo")
    assert np.ptp(pictures, axis=-1).max() > 0
    again = drawn(tmp_path, colours, "--augment", "photo")
    np.testing.assert_array_equal(again, pictures)
    for flags in (
        ["--augment", "affine"],
        ["--augment", "photo", "--rotation", 90],
        ["--augment", "photo", "--seed", 1],
        ["--augment", "photo", "--grayscale"],
    ):
        other = drawn(tmp_path, colours, *flags)
        assert other.shape != pictures.shape or (other != pictures).any()


def test_augmented_pictures_leave_a_run_as_it_is(tmp_path, data, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    before = contents(folder)
    drawn(folder, data)
    after = contents(folder)
    assert after.keys() - before.keys() == {Path("augment.png")}
    assert {name: after[name] for name in before} == before


def test_augmented_run_goes_on_as_if_it_had_not_stopped(tmp_path, data):
    plain = "--dataset", data, "-r", 1, "--batch_size", 15
    flags = *plain, "--augment", "affine", "--scale", 0.3
    whole = command(tmp_path / "whole", *flags, "--epochs", 2)
    assert whole.status == 0, whole.err
    command(tmp_path / "parts", *flags, "--epochs", 1)
    resumed = command(tmp_path / "parts", "--resume", "--epochs", 2)
    assert resumed.status == 0, resumed.err
    log = (whole.folder / "log.csv").read_bytes()
    assert (resumed.folder / "log.csv").read_bytes() == log
    assert same(weights_of(whole.model()), weights_of(resumed.model()))
    recorded = resumed.record()["flags"]
    assert (recorded["augment"], recorded["scale"]) == ("affine", 0.3)
    # Shifts alone would have given another log.
    shifted = command(tmp_path / "shifted", *plain, "--epochs", 1)
    assert shifted.log()["loss"][0] != whole.log()["loss"][0]
