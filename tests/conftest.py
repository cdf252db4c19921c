"""Options and small data sets that the tests share."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib.pyplot as plt
import numpy as np
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--slow", action="store_true", help="run the slow tests, too"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


def bars(count, shape, n_class=3, seed=0):
    """Pictures of a bright bar whose place tells the class, and labels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % n_class
    pictures = generator.integers(0, 60, (count, *shape), dtype="uint8")
    height = shape[0] // n_class
    for picture, label in zip(pictures, labels):
        picture[label * height + 1 : (label + 1) * height - 1, 3:-3] = 220
    return pictures, labels


def write_bars(path, train=40, test=12, shape=(17, 17, 1), n_class=3):
    """A small `.npz` in Keras's layout; returns its path as a string."""
    x_train, y_train = bars(train, shape, n_class)
    x_test, y_test = bars(test, shape, n_class, seed=1)
    np.savez(
        path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test
    )
    return str(path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A data set of 40 and 12 pictures of 17x17."""
    return write_bars(tmp_path_factory.mktemp("data") / "tiny.npz")


def real_data(name):
    """The folder of a real data set below CAPSNET_DATA, or a skipped test."""
    folder = os.environ.get("CAPSNET_DATA")
    if not folder or not Path(folder, name).is_dir():
        pytest.skip(f"the variable CAPSNET_DATA names no folder with {name}")
    return Path(folder, name)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, still open when they are written."""
    drawn = []
    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", drawn.append)
        yield drawn
    for figure in drawn:
        plt.close(figure)
