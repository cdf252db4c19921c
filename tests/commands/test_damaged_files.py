"""Damaged files are read right, or refused with one line; never worse."""

import gzip
import random
import struct
import time

import numpy as np
import pytest
from PIL import Image

from capsnet.data import sources
from capsnet.data.pictures import MAX_UNPROVEN_PIXELS, read_picture
from capsnet.files import read_state
from capsnet.messages import UserError
from capsnet.models.saving import load_model, save_model
from capsnet.training import checkpoints
from commands.test_full_disk import small_model

PARTS = ("x_train", "y_train", "x_test", "y_test")


def damage(content, rng):
    """The bytes cut off somewhere, or with one to four bits turned."""
    content = bytearray(content)
    if rng.random() < 0.3:
        return bytes(content[: rng.randrange(len(content))])
    # The places of the headers are tried more often.
    ends = (len(content), len(content), min(64, len(content)))
    for _ in range(rng.choice((1, 1, 2, 4))):
        content[rng.randrange(rng.choice(ends))] ^= 1 << rng.randrange(8)
    return bytes(content)


def try_damaged(path, load, is_right, rounds):
    """Damages a file many times; returns how often it was refused.

    Args:
        path: A good file; it is good again in the end.
        load: Function without arguments. `UserError` is the only exception
            it may raise, with a message of one line.
        is_right: Function of what `load` returned for the good file, and for
            the damaged one.
        rounds: How many times.
    """
    rng = random.Random(path.name)
    good, expected = path.read_bytes(), load()
    refused = 0
    for number in range(rounds):
        path.write_bytes(damage(good, rng))
        start = time.monotonic()
        try:
            received = load()
        except UserError as error:
            assert str(error) and "\n" not in str(error), number
            refused += 1
        else:
            assert is_right(expected, received), number
        assert time.monotonic() - start < 20, number
    path.write_bytes(good)
    assert is_right(expected, load())
    print(f"{path.name}: {rounds} mutations, {refused} refused")
    return refused


def arrays_of(data):
    return [getattr(data, name) for name in PARTS]


def same_data(expected, received):
    """Whether two data sets are equal; for files with a checksum."""
    return all(map(np.array_equal, arrays_of(expected), arrays_of(received)))


def same_shapes(expected, received):
    """Whether two data sets have the same shapes; for files without one."""
    return all(
        (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        for ours, theirs in zip(arrays_of(expected), arrays_of(received))
    )


def is_picture(expected, received):
    """Whether an array can be a picture of the size of its file."""
    assert received.dtype == np.uint8 and received.ndim == 3
    assert received.shape[2] in (1, 3, 4)
    return 0 < received.size <= 4 * MAX_UNPROVEN_PIXELS


def same_model(expected, received):
    weights = [model.get_weights() for model, _ in (expected, received)]
    return all(map(np.array_equal, *weights)) and expected[1] == received[1]


def damage_arrays(folder, kind, rounds):
    """Damages an `.npz` file, plain or compressed."""
    generator = np.random.default_rng(0)
    labels = np.arange(8) % 2
    pictures = generator.integers(0, 256, (12, 5, 4), "uint8")
    values = pictures[:8], labels, pictures[8:], labels[:4]
    save = np.savez_compressed if kind == "compressed" else np.savez
    path = folder / "a.npz"
    save(path, **dict(zip(PARTS, values)))
    return try_damaged(path, lambda: sources.load(str(path)), same_data, rounds)


def damage_idx(folder, kind, rounds):
    """Damages the four idx files in turn, plain or compressed."""
    for name, values in (
        ("train-images-idx3-ubyte", np.arange(8 * 20).reshape(8, 5, 4)),
        ("train-labels-idx1-ubyte", np.arange(8) % 2),
        ("t10k-images-idx3-ubyte", np.arange(4 * 20).reshape(4, 5, 4)),
        ("t10k-labels-idx1-ubyte", np.arange(4) % 2),
    ):
        header = struct.pack(">HBB", 0, 8, values.ndim)
        header += struct.pack(f">{values.ndim}I", *values.shape)
        content = header + values.astype(np.uint8).tobytes()
        packed = gzip.compress(content) if kind == "gz" else content
        (folder / name).write_bytes(packed)
    is_right = same_data if kind == "gz" else same_shapes
    return sum(
        try_damaged(
            path, lambda: sources.load(str(folder)), is_right, rounds // 4
        )
        for path in sorted(folder.iterdir())
    )


def damage_picture(folder, suffix, rounds):
    """Damages a picture; PNG alone has a checksum."""
    path = folder / f"a.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), "uint8")
    Image.fromarray(pixels).save(path)
    is_right = np.array_equal if suffix == "png" else is_picture
    return try_damaged(
        path, lambda: read_picture(path, None, None), is_right, rounds
    )


def damage_model(folder, suffix, rounds):
    """Damages a `.keras` file, whose archive has checksums."""
    path = folder / f"a.{suffix}"
    save_model(small_model(), path, {"class_names": ["a", "b"]})
    return try_damaged(path, lambda: load_model(str(path)), same_model, rounds)


def damage_checkpoint(folder, name, rounds):
    """Damages one of the two files of a checkpoint."""
    state = {"epochs_done": 1, "flags": {"epochs": 3, "lr": 0.001}}
    checkpoints.keep(folder, small_model(), state)
    return try_damaged(
        folder / "checkpoint" / name,
        lambda: read_state(folder),
        lambda expected, received: expected == received,
        rounds,
    )


# How to damage a kind of file, and how often: quickly, and in the slow tests.
DAMAGES = (
    (damage_arrays, "plain", 60, 1500),
    (damage_arrays, "compressed", 60, 1500),
    (damage_idx, "plain", 60, 1000),
    (damage_idx, "gz", 60, 1000),
    (damage_picture, "png", 60, 1500),
    (damage_picture, "jpg", 40, 1000),
    (damage_picture, "bmp", 40, 500),
    (damage_picture, "gif", 40, 500),
    (damage_picture, "tif", 40, 500),
    (damage_picture, "webp", 40, 500),
    (damage_model, "keras", 20, 400),
    (damage_checkpoint, "state.json", 60, 1000),
    (damage_checkpoint, "epoch-0001.weights.h5", 60, 500),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage_file, kind, rounds, _", DAMAGES)
def test_damaged_file_is_right_or_refused(
    tmp_path, damage_file, kind, rounds, _
):
    assert damage_file(tmp_path, kind, rounds) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("damage_file, kind, _, rounds", DAMAGES)
def test_file_damaged_in_ten_thousand_ways_is_right_or_refused(
    tmp_path, damage_file, kind, _, rounds
):
    assert sum(entry[3] for entry in DAMAGES) >= 10_000
    assert damage_file(tmp_path, kind, rounds) > 0
