"""Names and paths to data sets; held-out pictures; the real data sets."""

import gzip
import math

import keras
import numpy as np
import pytest
from conftest import real_data
from PIL import Image
from samples import (
    PARTS,
    arrays,
    message_of,
    peak_memory,
    random_pictures,
    write_folder,
    write_idx,
    write_npz,
)

from capsnet import devices
from capsnet.cli.resuming import NAMED_DATASETS
from capsnet.data.sources import BUILT_IN, Dataset, hold_out, load, reorder

# Names


def test_command_line_knows_the_same_names():
    # `options` imports nothing that imports Keras, so it has its own list.
    assert NAMED_DATASETS == BUILT_IN


@pytest.mark.parametrize(
    ("name", "shape", "first"),
    [
        ("mnist", (28, 28), "0"),
        ("fashion_mnist", (28, 28), "T-shirt/top"),
        ("cifar10", (32, 32, 3), "airplane"),
    ],
)
def test_keras_data_sets_keep_their_ten_classes(
    monkeypatch, name, shape, first
):
    values = arrays(shape=shape, n_class=4)
    x_train, y_train, x_test, y_test = (values[part] for part in PARTS)
    parts = (x_train, y_train), (x_test, y_test[:, None])
    module = getattr(keras.datasets, name)
    monkeypatch.setattr(module, "load_data", lambda: parts)
    dataset = load(name)
    assert dataset.x_train.shape == (8, *shape, 1)[:4]
    assert dataset.y_train.tolist() == [0, 1, 2, 3] * 2
    assert dataset.y_test.shape == (4,)
    assert dataset.y_test.dtype == dataset.y_train.dtype == np.int64
    assert len(dataset.class_names) == 10
    assert dataset.class_names[0] == first
    assert dataset.name == name


@pytest.mark.parametrize(
    "error, cause",
    [
        (
            Exception("URL fetch failure on https://...:\nNone -- no route"),
            "URL fetch failure on https://",
        ),
        (TimeoutError(), "received 'TimeoutError'"),
    ],
)
def test_a_failing_download_names_its_cause_and_the_ways_on(
    monkeypatch, error, cause
):
    def fail():
        raise error

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    message = message_of(load, "mnist")
    assert "--dataset digits" in message and ".npz" in message
    assert cause in message and "received Exception" not in message


def test_a_download_that_does_not_fit_in_memory_is_called_so(monkeypatch):
    def fail():
        raise MemoryError

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    assert "fit in memory" in message_of(load, "mnist")


@pytest.mark.parametrize("name", ["emnist", "nowhere/at/all", "", "a\nb", "~/"])
def test_an_unknown_name_lists_what_is_accepted(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "gone"))
    message = message_of(load, name)
    for accepted in "digits mnist cifar10 .npz idx train/CLASS".split():
        assert accepted in message


@pytest.mark.parametrize(
    "name, advice",
    [
        ("pictures.zip", "unpack it, and give the folder"),
        ("pictures.tar.gz", "unpack it, and give the folder"),
        ("train_32x32.mat", "np.savez"),
        ("x.npy", "np.savez"),
        ("usps.h5", "np.savez"),
    ],
)
def test_another_kind_of_file_gets_advice_of_its_own(tmp_path, name, advice):
    path = tmp_path / name
    path.write_bytes(b"PK")
    message = message_of(load, path)
    assert advice in message and "check the name" not in message


def test_digits_have_names_and_the_seed_that_is_asked_for():
    first, other = load("digits"), load("digits", seed=1)
    assert first.class_names == list("0123456789")
    assert first.x_train.shape == (10_000, 28, 28, 1)
    assert first.y_test.shape == (2_000,)
    assert not np.array_equal(first.x_train, other.x_train)


# What else can be asked of a data set


def test_image_size_and_grayscale_work_for_arrays(tmp_path):
    values = arrays(shape=(9, 9, 3))
    path = write_npz(tmp_path / "set.npz", **values)
    dataset = load(path, image_size=(4, 7), grayscale=True)
    assert dataset.x_train.shape == (8, 4, 7, 1)
    assert dataset.x_test.shape == (4, 4, 7, 1)
    grey = load(path, grayscale=True).x_train[0, ..., 0]
    np.testing.assert_array_equal(
        grey, np.asarray(Image.fromarray(values["x_train"][0]).convert("L"))
    )
    assert load(path, image_size=(9, 9)).x_train.shape == (8, 9, 9, 3)


@pytest.mark.parametrize("fraction", [0, 1, -1, 2, math.nan])
def test_test_fraction_has_to_be_a_fraction(tmp_path, fraction):
    write_folder(tmp_path, {"a": 2, "b": 2})
    message = message_of(load, tmp_path, test_fraction=fraction)
    assert "between 0 and 1" in message


def test_test_fraction_is_refused_where_there_is_a_test_part(tmp_path):
    parts = {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1}
    write_folder(tmp_path / "folder", parts)
    write_idx(tmp_path / "idx")
    npz = write_npz(tmp_path / "set.npz")
    for name in ("digits", "mnist", tmp_path / "folder", tmp_path / "idx", npz):
        message = message_of(load, name, test_fraction=0.1)
        assert "leave it out" in message


def test_pictures_that_do_not_fit_in_memory_are_called_so(tmp_path):
    path = write_npz(tmp_path / "set.npz")
    message = message_of(load, path, image_size=(2**30, 2**25))
    assert "fit in memory" in message and "--image_size" in message


@pytest.fixture
def little_memory(tmp_path_factory, monkeypatch):
    """A container with a megabyte."""
    limit = tmp_path_factory.mktemp("group") / "memory.max"
    limit.write_text("1000000")
    monkeypatch.setattr(devices, "MEMORY_LIMITS", (str(limit),))


BLANK = np.full((2000, 64, 64), 200, np.uint8)


@pytest.mark.parametrize("kind", ["npz", "npy", "idx", "pictures", "size"])
def test_what_unfolds_to_more_than_the_memory_is_refused_before(
    tmp_path, little_memory, kind
):
    """Eight megabytes, in a few thousand bytes where they are packed."""
    asked = {}
    values = {**arrays(), "x_train": BLANK, "y_train": np.arange(2000) % 2}
    if kind == "npz":
        path = write_npz(tmp_path / "set.npz", compressed=True, **values)
    elif kind == "npy":
        path = tmp_path
        for key, value in values.items():
            np.save(path / key, value)
    elif kind == "idx":
        values["x_test"] = BLANK[:4]
        path = write_idx(tmp_path, values, pack=gzip.compress)
    else:
        path = write_folder(tmp_path, {"a": 20, "b": 20})
        asked["image_size"] = (200, 200)
    if kind == "pictures":
        asked = {}
        for file in tmp_path.rglob("*.png"):
            Image.fromarray(BLANK[0]).resize((200, 200)).save(file)
    assert "fit in memory" in message_of(load, path, **asked)
    assert peak_memory(lambda: load(path, **asked)) < 2**21


# Held-out pictures


def small_dataset(n=20, n_class=4):
    x, y = random_pictures(n), np.arange(n) % n_class
    return Dataset(x, y, x[:2], y[:2], list("abcd")[:n_class], "small")


def test_hold_out_splits_the_training_pictures_by_seed():
    dataset = small_dataset()
    remaining, x_val, y_val = hold_out(dataset, 0.25, seed=1)
    assert len(x_val) == len(y_val) == 5
    x = np.concatenate([remaining.x_train, x_val])
    y = np.concatenate([remaining.y_train, y_val])
    pairs = sorted(zip(map(bytes, x), y))
    assert pairs == sorted(zip(map(bytes, dataset.x_train), dataset.y_train))
    assert len(dataset.x_train) == 20
    assert remaining.x_test is dataset.x_test
    np.testing.assert_array_equal(x_val, hold_out(dataset, 0.25, seed=1)[1])
    assert not np.array_equal(x_val, hold_out(dataset, 0.25, seed=2)[1])


@pytest.mark.parametrize("seed", range(20))
def test_hold_out_leaves_every_class_a_training_picture(seed):
    remaining, x_val, _ = hold_out(small_dataset(), 0.8, seed)
    assert len(x_val) == 16
    assert sorted(remaining.y_train) == [0, 1, 2, 3]


@pytest.mark.parametrize("fraction", [0, 0.01, 0.9, 1.0, -0.5, math.nan])
def test_hold_out_refuses_to_take_nothing_or_everything(fraction):
    message = message_of(hold_out, small_dataset(), fraction, 0)
    assert "--val_fraction" in message


def test_reordered_classes_keep_their_pictures():
    dataset = small_dataset()
    other = reorder(dataset, ["d", "b", "a", "c"])
    assert other.class_names == ["d", "b", "a", "c"]
    for y, again in zip(
        (dataset.y_train, dataset.y_test), (other.y_train, other.y_test)
    ):
        names = [dataset.class_names[label] for label in y]
        assert [other.class_names[label] for label in again] == names


# Real data


def test_real_mnist():
    dataset = load(real_data("mnist"))
    assert dataset.x_train.shape == (60_000, 28, 28, 1)
    assert dataset.x_test.shape == (10_000, 28, 28, 1)
    assert dataset.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.class_names == list("0123456789")


def test_real_photos():
    dataset = load(real_data("photos"))
    assert dataset.x_train.shape == (1_000, 32, 32, 3)
    assert np.bincount(dataset.y_test).tolist() == [20] * 10
    assert len(dataset.class_names) == 10


# The digest


def test_digest_tells_whether_pictures_and_labels_are_the_same(tmp_path):
    path = write_npz(tmp_path / "set.npz")
    digest = load(str(path)).digest()
    assert load(str(path)).digest() == digest and len(digest) == 64
    values = arrays()
    for part in PARTS:
        changed = values[part].copy()
        changed[-1] = 1 - changed[-1] if changed.ndim == 1 else 0
        write_npz(path, **{part: changed})
        assert load(str(path)).digest() != digest, part
    write_npz(path, class_names=np.array(["a", "b"]))
    assert load(str(path)).digest() != digest
    write_npz(tmp_path / "moved.npz")
    assert load(str(tmp_path / "moved.npz")).digest() == digest
    assert load(f"pairs:{tmp_path / 'moved.npz'}").digest() != digest
