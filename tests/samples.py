"""Small data sets, in every form that `--dataset` takes."""

import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from capsnet.messages import UserError

PARTS = ("x_train", "y_train", "x_test", "y_test")


def random_pictures(n=12, shape=(6, 5, 1), seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(1, 256, (n, *shape), dtype=np.uint8)


def arrays(n_train=8, n_test=4, shape=(6, 5, 1), n_class=2):
    return {
        "x_train": random_pictures(n_train, shape, 1),
        "y_train": np.arange(n_train) % n_class,
        "x_test": random_pictures(n_test, shape, 2),
        "y_test": np.arange(n_test) % n_class,
    }


def write_npz(path, compressed=False, **changes):
    """Writes `arrays()`, some of them changed or, if `None`, left out."""
    contents = {**arrays(), **changes}
    contents = {k: v for k, v in contents.items() if v is not None}
    (np.savez_compressed if compressed else np.savez)(path, **contents)
    return path


def idx_bytes(values):
    header = struct.pack(">HBB", 0, 8, values.ndim)
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return header + sizes + values.astype(np.uint8).tobytes()


def write_idx(folder, parts=None, name="{}-{}-idx{}-ubyte", pack=bytes):
    for key, values in (parts or arrays(shape=(6, 5))).items():
        file_name = name.format(
            {"train": "train", "test": "t10k"}[key[2:]],
            {"x": "images", "y": "labels"}[key[0]],
            values.ndim,
        )
        folder.mkdir(exist_ok=True)
        (folder / file_name).write_bytes(pack(idx_bytes(values)))
    return folder


def save_picture(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    Image.fromarray(pixels).save(path, **options)
    return path


def write_folder(folder, counts, shape=(6, 5, 3)):
    """Pictures under folder/KEY/0.png, ... for each key of `counts`."""
    for seed, (key, count) in enumerate(counts.items()):
        for i, pixels in enumerate(random_pictures(count, shape, seed)):
            save_picture(folder / key / f"{i}.png", pixels)
    return folder


def message_of(function, *args, **kwargs):
    """The message of the `UserError`, which has to be one line."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message and "received" in message
    return message


def peak_memory(function, *args):
    """Bytes that a call which ends in a `UserError` takes at most."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
