"""Damaged files: what is read of them is right, or it is refused."""

import gzip
import json
import random
import time

import keras
import numpy as np
import pytest
from PIL import Image
from samples import PARTS, random_pictures, write_idx, write_npz

from capsnet.data.pictures import MAX_UNPROVEN_PIXELS, read_picture
from capsnet.data.sources import load
from capsnet.files import read_state
from capsnet.messages import UserError
from capsnet.models.saving import load_model, save_model
from capsnet.training import checkpoints

CHECKPOINT = ("state.json", "epoch-0001.weights.h5")


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


def has_checksums(suffix):
    return suffix not in ("idx", "jpg", "bmp", "gif", "tif", "webp")


def read(path, suffix):
    """All that is read from a file, as a list of arrays."""
    if suffix.startswith(("npz", "idx")):
        dataset = load(path if suffix.startswith("npz") else path.parent)
        return [getattr(dataset, part) for part in PARTS]
    if suffix == "keras":
        model, record = load_model(str(path))
        return [*model.get_weights(), np.array(json.dumps(record))]
    if suffix in CHECKPOINT:
        return [np.array(json.dumps(read_state(path.parent.parent)))]
    return [read_picture(path, None, None)]


def write(folder, suffix):
    """Writes files of a kind; returns those that are to be damaged."""
    if suffix.startswith("npz"):
        return [write_npz(folder / "a.npz", compressed=" " in suffix)]
    if suffix.startswith("idx"):
        pack = gzip.compress if suffix == "idx gz" else bytes
        return sorted(write_idx(folder, pack=pack).iterdir())
    path = folder / f"a.{suffix}"
    if suffix == "keras" or suffix in CHECKPOINT:
        layers = [keras.layers.Input((30,)), keras.layers.Dense(30)]
        model = keras.Sequential(layers)
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        if suffix == "keras":
            save_model(model, path, {"class_names": ["a", "b"]})
            return [path]
        state = {"epochs_done": 1, "flags": {"epochs": 3, "lr": 0.001}}
        checkpoints.keep(folder, model, state)
        return [folder / "checkpoint" / suffix]
    Image.fromarray(random_pictures(1, (9, 8, 3))[0]).save(path)
    return [path]


def check_damaged(folder, suffix, rounds):
    """Damages files many times; returns how often they were refused."""
    refused = 0
    paths = write(folder, suffix)
    for path in paths:
        rng, good = random.Random(1), path.read_bytes()
        expected = read(path, suffix)
        for _ in range(rounds // len(paths)):
            path.write_bytes(damage(good, rng))
            start = time.monotonic()
            try:
                received = read(path, suffix)
            except UserError as error:
                assert str(error) and "\n" not in str(error)
                refused += 1
            else:
                for ours, theirs in zip(expected, received, strict=True):
                    assert ours.dtype == theirs.dtype
                    assert 0 < theirs.size <= 4 * MAX_UNPROVEN_PIXELS
                    if has_checksums(suffix):
                        np.testing.assert_array_equal(theirs, ours)
            assert time.monotonic() - start < 20
        path.write_bytes(good)
    return refused


KINDS = "npz,npz compressed,idx,idx gz,png,jpg,bmp,gif,tif,webp,keras"
KINDS = (*KINDS.split(","), *CHECKPOINT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", KINDS)
def test_damaged_file_is_right_or_refused(tmp_path, suffix):
    assert check_damaged(tmp_path, suffix, 60) > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", KINDS)
def test_file_damaged_a_thousand_times_is_right_or_refused(tmp_path, suffix):
    assert check_damaged(tmp_path, suffix, 1000) > 0
