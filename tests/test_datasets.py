"""Tests of datasets.py. References are plain Python loops."""

import gzip
import io
import math
import shutil
import struct
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from capsnet.data import digits as digits_room  # noqa: E402
from capsnet.data.batches import ShiftedBatches, max_shift
from capsnet.data.digits import TEST_FONTS, TRAIN_FONTS, draw_glyph
from capsnet.data.folders import choose_test, picture_files
from capsnet.data.pictures import PICTURE_SUFFIXES, read_picture
from capsnet.data.sources import Dataset, hold_out, load
from capsnet.messages import UserError, counted

sys.path.insert(0, str(Path(__file__).parents[1]))


DATA = Path(__file__).parents[1].parent / "shared" / "data"
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
    contents = {**arrays(), **changes}
    contents = {k: v for k, v in contents.items() if v is not None}
    (np.savez_compressed if compressed else np.savez)(path, **contents)
    return path


def message_of(function, *args, **kwargs):
    """The message of the DatasetError, which has to be one line."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert "expected" in message and "received" in message
    return message


def peak_memory(function, *args):
    """Bytes that a call which ends in a DatasetError takes at most."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            function(*args)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def idx_bytes(values):
    header = struct.pack(">HBB", 0, 8, values.ndim)
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return header + sizes + values.astype(np.uint8).tobytes()


def write_idx(folder, parts=None, name="{}-{}-idx{}-ubyte", pack=bytes):
    parts = parts or arrays(shape=(6, 5))
    folder.mkdir(exist_ok=True)
    for key, values in parts.items():
        file_name = name.format(
            {"train": "train", "test": "t10k"}[key[2:]],
            {"x": "images", "y": "labels"}[key[0]],
            values.ndim,
        )
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


TWO_PARTS = {"train/b": 3, "train/a": 2, "test/a": 1, "test/b": 2}


# Batches


def shifted_by_loops(picture, down, right):
    height, width, channels = picture.shape
    shifted = np.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                from_row, from_column = row - down, column - right
                if 0 <= from_row < height and 0 <= from_column < width:
                    shifted[row, column, channel] = picture[
                        from_row, from_column, channel
                    ]
    return shifted


def collect(batches):
    collected = [batches[index] for index in range(len(batches))]
    image = np.concatenate([batch[0]["image"] for batch in collected])
    target = np.concatenate([batch[1]["capsnet"] for batch in collected])
    return image, target.argmax(axis=1)


def shift_of(image, picture, shift):
    """The shifts that turn `picture` into `image`."""
    return [
        (down, right)
        for down in range(-shift[0], shift[0] + 1)
        for right in range(-shift[1], shift[1] + 1)
        if np.array_equal(
            image,
            (shifted_by_loops(picture, down, right) / 255).astype(np.float32),
        )
    ]


@pytest.mark.parametrize("shape", [(6, 5, 1), (17, 17, 4)])
def test_every_picture_is_shifted_by_whole_pixels_with_zero_fill(shape):
    x, shift = random_pictures(30, shape), (2, 1)
    batches = ShiftedBatches(x, np.arange(30), 30, 7, shift=shift, seed=3)
    image, labels = collect(batches)
    assert labels.tolist() == list(range(30))
    shifts = [shift_of(image[i], x[i], shift) for i in range(30)]
    assert all(len(found) == 1 for found in shifts)
    down, right = zip(*(found[0] for found in shifts))
    assert set(down) == {-2, -1, 0, 1, 2}
    assert set(right) == {-1, 0, 1}


def test_without_a_shift_pictures_are_only_scaled():
    x = random_pictures()
    image, _ = collect(ShiftedBatches(x, np.zeros(12, int), 2, 5))
    np.testing.assert_array_equal(image, x.astype(np.float32) / 255)
    assert image.dtype == np.float32


def test_the_target_of_the_decoder_is_the_shifted_picture():
    x = random_pictures()
    batches = ShiftedBatches(x, np.zeros(12, int), 2, 12, shift=(2, 2))
    inputs, targets = batches[0]
    np.testing.assert_array_equal(inputs["image"], targets["decoder"])
    np.testing.assert_array_equal(inputs["label"], targets["capsnet"])


def test_a_batch_depends_on_seed_epoch_and_index_alone():
    x, y = random_pictures(20), np.arange(20)

    def batches(seed=1):
        return ShiftedBatches(
            x, y, 20, 6, shift=(2, 2), seed=seed, shuffle=True
        )

    straight = batches()
    expected = {}
    for epoch in range(3):
        straight.set_epoch(epoch)
        for index in range(len(straight)):
            expected[epoch, index] = straight[index][0]
    wandering = batches()
    for epoch, index in [(2, 3), (0, 1), (2, 0), (1, 2), (0, 0)]:
        wandering.set_epoch(epoch)
        assert wandering.epoch == epoch
        wandering.on_epoch_end()
        again = wandering[index][0]
        for key in ("image", "label"):
            np.testing.assert_array_equal(
                again[key], expected[epoch, index][key]
            )
    first, second = expected[0, 0]["image"], expected[1, 0]["image"]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batches(seed=2)[0][0]["image"])


def test_an_epoch_covers_every_picture_once_in_an_order_of_its_own():
    x, y = random_pictures(23), np.arange(23)
    batches = ShiftedBatches(x, y, 23, 5, shuffle=True, seed=4)
    assert len(batches) == 5
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        orders.append(collect(batches)[1].tolist())
        assert sorted(orders[-1]) == list(range(23))
        drawn = np.random.default_rng([4, epoch]).permutation(23)
        assert orders[-1] == drawn.tolist()
    assert orders[0] != orders[1]


def test_outputs_follow_the_model():
    x, y = random_pictures(4), np.array([0, 1, 2, 1])
    inputs, targets = ShiftedBatches(x, y, 3, 4)[0]
    assert set(inputs) == {"image", "label"}
    assert set(targets) == {"capsnet", "decoder"}
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert targets["capsnet"].tolist() == expected
    assert targets["capsnet"].dtype == np.float32
    inputs, targets, weights = ShiftedBatches(
        x, y, 3, 4, decoder=False, label_input=False, replicas=2
    )[0]
    assert inputs.shape[0] == 4  # The pictures alone.
    assert set(targets) == set(weights) == {"capsnet"}


def test_class_weights_reach_the_margin_loss_only():
    x, y = random_pictures(4), np.array([0, 1, 2, 1])
    class_weight = np.array([0.5, 2.0, 3.0])
    weights = ShiftedBatches(x, y, 3, 3, class_weight=class_weight)[0][2]
    assert weights["capsnet"].tolist() == [0.5, 2.0, 3.0]
    assert weights["decoder"].shape == (3, 1, 1)
    assert weights["decoder"].ravel().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("n", "batch_size", "replicas"),
    [(7, 4, 2), (9, 4, 4), (3, 5, 2), (1, 1, 3)],
)
@pytest.mark.parametrize("class_weight", [None, np.array([0.5, 4.0])])
def test_padded_batches_have_the_mean_of_the_real_pictures(
    n, batch_size, replicas, class_weight
):
    x, y = random_pictures(n), np.arange(n) % 2
    padded = ShiftedBatches(
        x, y, 2, batch_size, replicas=replicas, class_weight=class_weight
    )
    plain = ShiftedBatches(x, y, 2, batch_size, class_weight=np.ones(2))
    assert len(padded) == math.ceil(n / batch_size)
    for index in range(len(padded)):
        inputs, targets, weights = padded[index]
        real = len(plain[index][0]["image"])
        rows = len(inputs["image"])
        assert rows % replicas == 0 and 0 <= rows - real < replicas
        assert not inputs["image"][real:].any()
        assert not inputs["label"][real:].any()
        assert not weights["capsnet"][real:].any()
        assert not weights["decoder"][real:].any()
        np.testing.assert_array_equal(
            inputs["image"][:real], plain[index][0]["image"]
        )
        loss = np.arange(1.0, rows + 1)
        label = targets["capsnet"][:real].argmax(axis=1)
        counts = np.ones(2) if class_weight is None else class_weight
        np.testing.assert_allclose(
            (loss * weights["capsnet"]).mean(),
            (loss[:real] * counts[label]).mean(),
            rtol=1e-6,
        )
        np.testing.assert_allclose(
            (loss * weights["decoder"].ravel()).mean(),
            loss[:real].mean(),
            rtol=1e-6,
        )


def test_keras_computes_the_same_losses_from_a_padded_batch():
    image = keras.Input((6, 5, 1), name="image")
    label = keras.Input((2,), name="label")
    flat = keras.layers.Flatten()(image)
    joined = keras.layers.Concatenate()([flat, label])
    model = keras.Model(
        {"image": image, "label": label},
        {
            "capsnet": keras.layers.Dense(2, name="capsnet")(flat),
            "decoder": keras.layers.Reshape((6, 5, 1), name="decoder")(
                keras.layers.Dense(30)(joined)
            ),
        },
    )
    model.compile(loss={"capsnet": "mse", "decoder": "mse"})
    x, y = random_pictures(3), np.array([0, 1, 1])
    options = {"batch_size": 3, "class_weight": np.array([3.0, 0.5])}
    plain = ShiftedBatches(x, y, 2, **options)
    padded = ShiftedBatches(x, y, 2, replicas=2, **options)
    assert len(padded[0][0]["image"]) == 4
    expected = model.evaluate(plain, verbose=0, return_dict=True)
    actual = model.evaluate(padded, verbose=0, return_dict=True)
    assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_one_picture_and_batches_of_one():
    x = random_pictures(2, (17, 17, 4))
    batches = ShiftedBatches(x, np.array([0, 1]), 2, 1, shift=(3, 3))
    assert len(batches) == 2
    assert batches[1][0]["image"].shape == (1, 17, 17, 4)
    alone = ShiftedBatches(x[:1], np.array([1]), 2, 100, shuffle=True)
    assert len(alone) == 1
    assert alone[0][1]["capsnet"].tolist() == [[0, 1]]
    with pytest.raises(IndexError):
        alone[1]


def test_batches_refuse_what_cannot_be_batched():
    x = random_pictures(3)
    for y, batch_size in ((np.zeros(2, int), 1), (np.zeros(3, int), 0)):
        with pytest.raises(ValueError, match="Received"):
            ShiftedBatches(x, y, 2, batch_size)
    with pytest.raises(ValueError, match="Received"):
        ShiftedBatches(x[:0], np.zeros(0, int), 2, 1)


def test_a_batch_of_100_takes_less_than_two_milliseconds():
    x = random_pictures(2000, (28, 28, 1))
    batches = ShiftedBatches(
        x, np.zeros(2000, int), 10, 100, shift=(2, 2), shuffle=True
    )
    seconds = []
    for index in range(len(batches)):
        start = time.perf_counter()
        batches[index]
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.002


def test_max_shift_is_in_whole_pixels():
    assert max_shift((28, 30, 1), 0.1) == (2, 3)
    assert max_shift((28, 28, 1), 0) == (0, 0)


# Held-out pictures


def small_dataset(n=20, n_class=4):
    x, y = random_pictures(n), np.arange(n) % n_class
    return Dataset(x, y, x[:2], y[:2], list("abcd")[:n_class], "small", [])


def test_hold_out_splits_the_training_pictures_by_seed():
    dataset = small_dataset()
    remaining, x_val, y_val = hold_out(dataset, 0.25, seed=1)
    assert len(x_val) == len(y_val) == 5
    together = np.concatenate([remaining.x_train, x_val])
    assert sorted(map(bytes, together)) == sorted(map(bytes, dataset.x_train))
    label_of = {bytes(x): y for x, y in zip(dataset.x_train, dataset.y_train)}
    assert [label_of[bytes(x)] for x in x_val] == y_val.tolist()
    assert [
        label_of[bytes(x)] for x in remaining.x_train
    ] == remaining.y_train.tolist()
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


# Names


def keras_parts(shape):
    values = arrays(shape=shape, n_class=4)
    y_test = values["y_test"][:, None]
    return (values["x_train"], values["y_train"]), (values["x_test"], y_test)


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
    module = getattr(keras.datasets, name)
    monkeypatch.setattr(module, "load_data", lambda: keras_parts(shape))
    dataset = load(name)
    assert dataset.x_train.shape == (8, *shape, 1)[:4]
    assert dataset.y_train.tolist() == [0, 1, 2, 3] * 2
    assert dataset.y_test.shape == (4,)
    assert dataset.y_test.dtype == dataset.y_train.dtype == np.int64
    assert len(dataset.class_names) == 10
    assert dataset.class_names[0] == first
    assert dataset.name == name


def test_a_failing_download_names_the_ways_on(monkeypatch):
    def fail():
        raise Exception("URL fetch failure on https://...:\nNone -- no route")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    message = message_of(load, "mnist")
    assert "--dataset digits" in message and ".npz" in message
    # The cause, not what the exception is called.
    assert "URL fetch failure on https://" in message and "no route" in message
    assert "received Exception" not in message


def test_a_failing_download_without_a_message_names_the_exception(monkeypatch):
    def fail():
        raise TimeoutError

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    assert "received 'TimeoutError'" in message_of(load, "mnist")


def test_one_is_singular():
    counts = [counted(count, "picture") for count in (0, 1, 2, "all")]
    assert counts == ["0 pictures", "1 picture", "2 pictures", "all pictures"]


@pytest.mark.parametrize("name", ["emnist", "nowhere/at/all", "", "a\nb"])
def test_an_unknown_name_lists_what_is_accepted(name):
    message = message_of(load, name)
    for accepted in (
        "digits",
        "mnist",
        "cifar10",
        ".npz",
        "idx",
        "train/CLASS",
    ):
        assert accepted in message


def test_another_kind_of_file_lists_what_is_accepted(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("1,2")
    assert "an .npz file" in message_of(load, path)


# The built-in digits


@pytest.fixture(scope="module")
def digits():
    start = time.process_time()
    dataset = load("digits")
    return dataset, time.process_time() - start


def test_digits_are_drawn_in_seconds(digits):
    dataset, seconds = digits
    assert seconds < 20
    assert dataset.x_train.shape == (10_000, 28, 28, 1)
    assert dataset.x_test.shape == (2_000, 28, 28, 1)
    assert dataset.x_train.dtype == np.uint8
    assert np.bincount(dataset.y_train).tolist() == [1_000] * 10
    assert np.bincount(dataset.y_test).tolist() == [200] * 10
    assert dataset.class_names == list("0123456789")


def test_digits_depend_on_the_seed_alone(digits, monkeypatch):
    monkeypatch.setattr(digits_room, "TRAIN_DIGITS", 50)
    monkeypatch.setattr(digits_room, "TEST_DIGITS", 10)
    first, again, other = load("digits"), load("digits"), load("digits", seed=1)
    for part in PARTS:
        np.testing.assert_array_equal(
            getattr(first, part), getattr(again, part)
        )
    assert not np.array_equal(first.x_train, other.x_train)


def test_test_digits_come_from_other_font_families():
    def family(font):
        return font.split("-")[0].removesuffix("Mono").removesuffix("Serif")

    train = {family(font) for font in TRAIN_FONTS}
    test = {family(font) for font in TEST_FONTS}
    assert train == {
        "DejaVuSans",
        "DejaVu",
        "cmb10",
        "cmr10",
        "cmti10",
        "cmtt10",
    }
    assert not train & test


def test_every_font_has_ten_different_digits():
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    for font in TRAIN_FONTS + TEST_FONTS:
        glyphs = [
            draw_glyph(folder / f"{font}.ttf", digit, 0)
            for digit in "0123456789"
        ]
        assert all(glyph.height > 40 for glyph in glyphs), font
        assert len({glyph.tobytes() for glyph in glyphs}) == 10, font


def test_every_digit_is_bright_varied_and_inside_the_picture(digits):
    x = digits[0].x_train[..., 0].astype(float) / 255
    assert x.max(axis=(1, 2)).min() > 0.3
    edge = x.copy()
    edge[:, 1:-1, 1:-1] = 0
    assert edge.sum() < 0.01 * x.sum()
    assert len({picture.tobytes() for picture in x}) == 10_000


# .npz


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (9, 9, 3), (17, 17, 4)])
def test_npz_round_trip(tmp_path, shape, compressed):
    values = arrays(shape=shape)
    path = write_npz(tmp_path / "set.npz", compressed, **values)
    dataset = load(path)
    expected_shape = shape if len(shape) == 3 else (*shape, 1)
    for part in ("x_train", "x_test"):
        pictures = getattr(dataset, part)
        assert pictures.dtype == np.uint8
        np.testing.assert_array_equal(
            pictures, values[part].reshape(-1, *expected_shape)
        )
    for part in ("y_train", "y_test"):
        assert getattr(dataset, part).dtype == np.int64
        np.testing.assert_array_equal(getattr(dataset, part), values[part])
    assert dataset.class_names == ["0", "1"]
    assert dataset.name == str(path)


def test_npz_labels_may_start_anywhere(tmp_path):
    labels = np.array([5, 1, 2, 3, 4, 1, 2, 3], np.uint8)[:, None]
    path = write_npz(
        tmp_path / "set.npz", y_train=labels, y_test=np.array([1, 5, 2, 3])
    )
    dataset = load(path)
    assert dataset.y_train.tolist() == [4, 0, 1, 2, 3, 0, 1, 2]
    assert dataset.y_test.tolist() == [0, 4, 1, 2]
    assert dataset.class_names == ["1", "2", "3", "4", "5"]


def test_npz_class_names_are_kept(tmp_path):
    path = tmp_path / "set.npz"
    dataset = load(write_npz(path, class_names=np.array(["cat", "dog"])))
    assert dataset.class_names == ["cat", "dog"]
    dataset = load(
        write_npz(
            path,
            y_train=np.array([1, 2] * 4),
            y_test=np.array([1, 2] * 2),
            class_names=np.array(["cat", "dog"]),
        )
    )
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.y_train.tolist() == [0, 1] * 4
    dataset = load(write_npz(path, class_names=np.array(["a", "b", "c"])))
    assert dataset.class_names == ["a", "b", "c"]
    for wrong in (np.array(["one"]), np.array([1, 2]), np.array([["a", "b"]])):
        message = message_of(load, write_npz(path, class_names=wrong))
        assert "class_names" in message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("scale", [1, 255])
def test_npz_floats_become_uint8(tmp_path, dtype, scale):
    values = arrays()
    floats = {
        part: (values[part] / (255 / scale)).astype(dtype)
        for part in ("x_train", "x_test")
    }
    dataset = load(write_npz(tmp_path / "set.npz", **floats))
    np.testing.assert_array_equal(dataset.x_train, values["x_train"])
    np.testing.assert_array_equal(dataset.x_test, values["x_test"])


def test_npz_integers_of_other_types_become_uint8(tmp_path):
    values = arrays()
    path = write_npz(
        tmp_path / "set.npz",
        x_train=values["x_train"].astype(np.int64),
        x_test=values["x_test"] > 100,
    )
    dataset = load(path)
    np.testing.assert_array_equal(dataset.x_train, values["x_train"])
    np.testing.assert_array_equal(
        dataset.x_test, np.where(values["x_test"] > 100, 255, 0)
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_npz_integers_of_zero_and_one_are_black_and_white(tmp_path, dtype):
    values = arrays()
    parts = {
        part: (values[part] > 100).astype(dtype)
        for part in ("x_train", "x_test")
    }
    dataset = load(write_npz(tmp_path / "set.npz", **parts))
    np.testing.assert_array_equal(dataset.x_train, parts["x_train"] * 255)
    np.testing.assert_array_equal(dataset.x_test, parts["x_test"] * 255)


X, Y = arrays()["x_train"], arrays()["y_train"]


@pytest.mark.parametrize(
    ("changes", "part_of_message"),
    [
        ({"x_test": None, "y_test": None}, "none called x_test, y_test"),
        ({"x_train": X[:5]}, "5 integers"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "nothing empty"),
        ({"x_train": X[..., :0]}, "nothing empty"),
        ({"x_train": X[..., [0, 0]]}, "1, 3 or 4 channels"),
        ({"x_train": X.reshape(8, -1)}, "(8, 30)"),
        ({"x_train": X[:, 1:]}, "(5, 5, 1) and (6, 5, 1)"),
        ({"x_train": np.full(X.shape, np.nan)}, "nan"),
        ({"x_train": X + np.inf}, "inf"),
        ({"x_train": X.astype(int) * 300}, "from 0 to 255"),
        ({"x_train": -X.astype(float)}, "from 0 to 255"),
        ({"x_train": X.astype(complex)}, "complex128"),
        ({"x_train": X.astype("U3")}, "expected pictures of numbers"),
        ({"y_train": np.eye(8)[:, :2]}, "one-hot"),
        ({"y_train": Y.astype(float)}, "8 integers"),
        ({"y_train": Y * 0, "y_test": Y[:4] * 0}, "two classes"),
        ({"y_test": np.array([0, 1, 7, 0])}, "class 7"),
        ({"x_train": np.array([None, {}])}, "object"),
    ],
)
def test_npz_errors_say_what_is_wrong(tmp_path, changes, part_of_message):
    path = write_npz(tmp_path / "set.npz", **changes)
    message = message_of(load, path)
    assert part_of_message in message
    assert str(path) in message


def npz_with_member(path, content, key="x_train", **options):
    """An .npz in which the bytes of one member are `content`."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for part, values in arrays().items():
            buffer = io.BytesIO()
            np.save(buffer, values)
            stored = content if part == key else buffer.getvalue()
            archive.writestr(f"{part}.npy", stored)
    return path


def npy_header(shape, dtype="|u1"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy_header((10**12,)) + b"\0" * 50,
        npy_header((2**62, 2**62, 28)) + b"\0" * 50,
        npy_header((-2, -3, 5)) + b"\0" * 30,
        npy_header((10**12,), "<U0"),
        npy_header((10**6, 1000, 1000)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00{",
        npy_header((8, 6, 5, 1)) + b"\0" * 239,
        npy_header((8, 6, 5, 1)) + b"\0" * 241,
        b"",
        b"not an array",
    ],
)
def test_npz_that_claims_too_much_is_refused(tmp_path, content):
    path = npz_with_member(tmp_path / "set.npz", content)
    assert "broken" in message_of(load, path)
    assert peak_memory(load, path) < 2**22


def test_npz_whose_directory_lies_too_is_refused(tmp_path):
    header = npy_header((2**28,))
    content = header + b"\0" * 50
    path = npz_with_member(tmp_path / "set.npz", content)
    claimed = len(header) + 2**28
    # Once in the member's own header, once in the directory at the end.
    parts = path.read_bytes().split(struct.pack("<I", len(content)))
    assert len(parts) == 5
    parts[2] = struct.pack("<I", claimed) + parts[2]
    parts[4] = struct.pack("<I", claimed) + parts[4]
    size = struct.pack("<I", len(content))
    path.write_bytes(
        parts[0] + size + parts[1] + parts[2] + size + parts[3] + parts[4]
    )
    assert zipfile.ZipFile(path).getinfo("x_train.npy").file_size == claimed
    assert "broken" in message_of(load, path)
    assert peak_memory(load, path) < 2**22


def test_npz_whose_header_is_a_bomb_is_refused(tmp_path):
    content = b"\x93NUMPY\x02\x00\x00\x00\x00\x04" + b" " * 2**26
    path = npz_with_member(
        tmp_path / "set.npz", content, compression=zipfile.ZIP_DEFLATED
    )
    assert "broken" in message_of(load, path)
    assert peak_memory(load, path) < 2**22


def test_npz_with_another_compression_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, X)
    path = npz_with_member(
        tmp_path / "set.npz",
        buffer.getvalue(),
        compression=zipfile.ZIP_BZIP2,
    )
    assert "broken" in message_of(load, path)


def check_damage(path, load_it, rng, rounds):
    """Right or DatasetError, whatever happens to the bytes of a file.

    Returns how often it was refused.
    """
    original = path.read_bytes()
    refused = 0
    for _ in range(rounds):
        damaged = bytearray(original)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        else:
            for _ in range(rng.integers(1, 4)):
                position = rng.integers(len(damaged))
                damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            load_it()
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    path.write_bytes(original)
    return refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_npz_is_right_or_refused(tmp_path, compressed):
    path = write_npz(tmp_path / "set.npz", compressed)
    expected = load(path)

    def load_it():
        dataset = load(path)
        for part in PARTS:
            np.testing.assert_array_equal(
                getattr(dataset, part), getattr(expected, part)
            )

    refused = check_damage(path, load_it, np.random.default_rng(0), 300)
    assert refused > 150


# idx files


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("name", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte"])
@pytest.mark.parametrize("shape", [(6, 5), (17, 17, 4)])
def test_idx_round_trip(tmp_path, shape, name, suffix, pack):
    parts = arrays(shape=shape)
    dataset = load(write_idx(tmp_path, parts, name + suffix, pack))
    for part in PARTS:
        values = getattr(dataset, part)
        np.testing.assert_array_equal(values, parts[part].reshape(values.shape))
    assert dataset.x_train.shape[1:] == (*shape, 1)[:3]
    assert dataset.class_names == ["0", "1"]


def test_idx_file_that_is_missing_is_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte" in message_of(load, tmp_path)


def test_idx_counts_have_to_agree(tmp_path):
    parts = arrays(shape=(6, 5))
    parts["y_train"] = parts["y_train"][:-1]
    assert "8 integers" in message_of(load, write_idx(tmp_path, parts))


GOOD_IDX = idx_bytes(random_pictures(8, (6, 5)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD_IDX[:3],
        GOOD_IDX[:10],
        GOOD_IDX[:-1],
        GOOD_IDX + b"\0",
        b"\1" + GOOD_IDX[1:],
        GOOD_IDX[:2] + b"\x0d" + GOOD_IDX[3:],
        idx_bytes(np.zeros((8, 30), np.uint8)),
        struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3) + b"\0" * 50,
        b"\0\0\x08\xff" + b"\xff" * 2000,
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_broken_idx_is_refused(tmp_path, content, pack):
    path = write_idx(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(pack(content))
    assert str(path) in message_of(load, tmp_path)
    assert peak_memory(load, tmp_path) < 2**22


def test_damaged_idx_is_right_or_refused(tmp_path):
    write_idx(tmp_path, pack=gzip.compress)
    expected = load(tmp_path)

    def load_it():
        dataset = load(tmp_path)
        np.testing.assert_array_equal(dataset.x_train, expected.x_train)
        np.testing.assert_array_equal(dataset.y_train, expected.y_train)

    for path in sorted(tmp_path.iterdir()):
        rng = np.random.default_rng(1)
        assert check_damage(path, load_it, rng, 80) > 30


# Folders of pictures


def test_folder_with_train_and_test(tmp_path):
    write_folder(tmp_path, TWO_PARTS)
    (tmp_path / "train" / "a" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "train" / "a" / "notes.txt").write_text("x")
    (tmp_path / "train" / ".cache").mkdir()
    dataset = load(tmp_path)
    assert dataset.class_names == ["a", "b"]
    assert dataset.y_train.tolist() == [0, 0, 1, 1, 1]
    assert dataset.y_test.tolist() == [0, 1, 1]
    assert dataset.x_train.shape == (5, 6, 5, 3)
    np.testing.assert_array_equal(
        dataset.x_train[2:], random_pictures(3, (6, 5, 3), 0)
    )
    assert dataset.notes == [
        "5 training pictures: a 2, b 3",
        "3 test pictures: a 1, b 2",
    ]


def test_folder_of_classes_keeps_a_part_of_each_for_the_test(tmp_path):
    write_folder(tmp_path, {"a": 10, "b": 2, "c": 5})
    dataset = load(tmp_path)
    assert np.bincount(dataset.y_train).tolist() == [8, 1, 4]
    assert np.bincount(dataset.y_test).tolist() == [2, 1, 1]
    train, test = (
        {x.tobytes() for x in part}
        for part in (dataset.x_train, dataset.x_test)
    )
    assert len(train) + len(test) == len(train | test) == 17
    half = load(tmp_path, test_fraction=0.5)
    assert np.bincount(half.y_test).tolist() == [5, 1, 2]
    most = load(tmp_path, test_fraction=0.99)
    assert np.bincount(most.y_train).tolist() == [1, 1, 1]


def test_no_seed_and_hardly_a_new_picture_changes_the_test_part(tmp_path):
    """Or a model would be tested on pictures that it was trained on."""

    def parts():
        dataset = load(tmp_path, seed=len(list(tmp_path.rglob("*.png"))))
        return [
            {x.tobytes() for x in part}
            for part in (dataset.x_train, dataset.x_test)
        ]

    write_folder(tmp_path, {"a": 40, "b": 30})
    train, test = parts()
    shutil.move(tmp_path / "a" / "0.png", tmp_path / "a" / "renamed.png")
    assert [len(train), len(test)] == [len(part) for part in parts()]
    shutil.copy(tmp_path / "a" / "1.png", tmp_path / "b" / "new.png")
    (tmp_path / "a" / "2.png").unlink()
    later_train, later_test = parts()
    assert len(test & later_train) <= 3 and len(train & later_test) <= 3
    # Not simply the first or the last of them.
    y = np.zeros(40, int)
    chosen = np.flatnonzero(
        choose_test(y, [f"{i:02}.png" for i in range(40)], 0.2)
    )
    assert len(chosen) == 8 and chosen.min() < 16 and chosen.max() > 24


def test_pictures_in_folders_of_a_class_folder_belong_to_the_class(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    write_folder(tmp_path / "a", {"more": 4, ".hidden": 3})
    dataset = load(tmp_path)
    assert dataset.class_names == ["a", "b"]
    y = np.concatenate([dataset.y_train, dataset.y_test])
    assert np.bincount(y).tolist() == [6, 2]


@pytest.mark.parametrize("fraction", [0, 1, -1, 2, math.nan])
def test_test_fraction_has_to_be_a_fraction(tmp_path, fraction):
    write_folder(tmp_path, {"a": 2, "b": 2})
    message = message_of(load, tmp_path, test_fraction=fraction)
    assert "between 0 and 1" in message


def test_test_fraction_is_refused_where_there_is_a_test_part(tmp_path):
    write_folder(tmp_path / "folder", TWO_PARTS)
    write_idx(tmp_path / "idx")
    npz = write_npz(tmp_path / "set.npz")
    for name in ("digits", "mnist", tmp_path / "folder", tmp_path / "idx", npz):
        message = message_of(load, name, test_fraction=0.1)
        assert "leave it out" in message


@pytest.mark.parametrize(
    ("counts", "part_of_message"),
    [
        ({"train/a": 1, "train/b": 1, "test/a": 1}, "test pictures of every"),
        ({"train/a": 1, "test/a": 1, "test/b": 1}, "none of 'b'"),
        ({"a": 1, "b": 3}, "none of 'a'"),
        ({"a": 3}, "two classes"),
        ({"train/a": 3, "test/a": 3}, "two classes"),
        ({"train/a": 3, "train/b": 3}, "received train alone"),
        ({".": 3}, "a folder for each class"),
    ],
)
def test_folders_that_lack_something(tmp_path, counts, part_of_message):
    write_folder(tmp_path, counts)
    assert part_of_message in message_of(load, tmp_path)


def test_empty_folders(tmp_path):
    assert "a folder for each class" in message_of(load, tmp_path)
    write_folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "c").mkdir()
    assert "none of 'c'" in message_of(load, tmp_path)


def test_pictures_of_two_sizes_need_an_image_size(tmp_path):
    write_folder(tmp_path, TWO_PARTS)
    save_picture(
        tmp_path / "train" / "b" / "9.png", random_pictures(1, (4, 7, 3))[0]
    )
    message = message_of(load, tmp_path)
    assert "(height x width)" in message
    assert "6x5" in message and "4x7" in message
    assert "--image_size H W" in message
    dataset = load(tmp_path, image_size=(8, 3))
    assert dataset.x_train.shape == (6, 8, 3, 3)


def test_unreadable_pictures_are_named_all_at_once(tmp_path):
    write_folder(tmp_path, TWO_PARTS)
    for index in range(12):
        path = tmp_path / "train" / "a" / f"bad{index:02}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    message = message_of(load, tmp_path)
    assert "12 of 20 that cannot be read" in message
    assert all(f"bad{index:02}.png" in message for index in range(10))
    assert "bad10" not in message and "and 2 more" in message
    assert "--skip_unreadable" in message
    dataset = load(tmp_path, skip_unreadable=True)
    assert dataset.y_train.tolist() == [0, 0, 1, 1, 1]
    assert "12 pictures left out" in dataset.notes[0]
    for index in range(11):
        (tmp_path / "train" / "a" / f"bad{index:02}.png").unlink()
    dataset = load(tmp_path, skip_unreadable=True)
    assert dataset.notes[0] == "1 picture left out: train/a/bad11.png"


def test_a_file_name_with_a_line_break_leaves_the_error_one_line(tmp_path):
    write_folder(tmp_path, TWO_PARTS)
    (tmp_path / "train" / "a" / "bad\nname.png").write_bytes(b"broken")
    assert "bad name.png" in message_of(load, tmp_path)


def test_a_folder_of_nothing_readable_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(b"broken")
    message = message_of(load, tmp_path, skip_unreadable=True)
    assert "2 of 2 that cannot be read" in message
    assert message.endswith(": replace them")


def folder_of(tmp_path, *pictures):
    """A data set that has `pictures` in one class and in another."""
    for name in ("a", "b"):
        for index, (picture, suffix, options) in enumerate(pictures):
            path = tmp_path / name / f"{index}{suffix}"
            path.parent.mkdir(exist_ok=True)
            picture.save(path, **options)
    return tmp_path


GREY = Image.fromarray(random_pictures(1, (6, 5))[0])
COLOUR = Image.fromarray(random_pictures(1, (6, 5, 3))[0])
ALPHA = Image.fromarray(random_pictures(1, (6, 5, 4))[0])


@pytest.mark.parametrize(
    ("pictures", "channels"),
    [
        ([GREY, GREY], 1),
        ([GREY, GREY.convert("1")], 1),
        ([GREY, GREY.convert("P")], 1),
        ([GREY, COLOUR], 3),
        ([COLOUR.convert("P"), GREY], 3),
        ([COLOUR, ALPHA], 4),
        ([GREY, GREY.convert("LA")], 4),
    ],
)
def test_channels_are_those_of_the_whole_data_set(tmp_path, pictures, channels):
    folder_of(tmp_path, *((picture, ".png", {}) for picture in pictures))
    dataset = load(tmp_path)
    assert dataset.x_train.shape[1:] == (6, 5, channels)
    for path in picture_files(tmp_path):
        again = read_picture(path, None, channels)
        parts = [*dataset.x_train, *dataset.x_test]
        assert any(np.array_equal(again, x) for x in parts)
    assert load(tmp_path, grayscale=True).x_train.shape[1:] == (6, 5, 1)


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_every_format_is_read(tmp_path, suffix):
    path = tmp_path / f"0{suffix.upper()}"
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    Image.fromarray(pixels).save(path)
    assert picture_files(tmp_path) == [path]
    difference = read_picture(path, None, 3).astype(int) - pixels
    assert abs(difference).max() <= 4


def test_transparency_that_is_used_makes_four_channels(tmp_path):
    palette = COLOUR.convert("P")
    colours = set(np.asarray(palette).ravel().tolist())
    unused = next(index for index in range(256) if index not in colours)
    palette.save(tmp_path / "unused.png", transparency=unused)
    assert "transparency" in Image.open(tmp_path / "unused.png").info
    used = palette.getpixel((0, 0))
    palette.save(tmp_path / "used.png", transparency=used)
    assert read_picture(tmp_path / "unused.png", None, None).shape[2] == 3
    with_alpha = read_picture(tmp_path / "used.png", None, None)
    assert with_alpha.shape[2] == 4 and with_alpha[0, 0, 3] == 0
    without = read_picture(tmp_path / "used.png", None, 3)
    assert without[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_become_eight(tmp_path):
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    for name in ("0.png", "0.tif"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = read_picture(tmp_path / name, None, None)
        assert pixels.shape == (16, 16, 1)
        assert pixels.ravel().tolist() == list(range(256))


def test_floating_point_pictures_are_refused(tmp_path):
    path = tmp_path / "0.tif"
    Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    assert str(path) in message_of(read_picture, path, None, 1)


def test_exif_rotation_is_honoured(tmp_path):
    path = tmp_path / "0.png"
    pixels = random_pictures(1, (6, 5))[0]
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(
        read_picture(path, None, 1)[..., 0], np.rot90(pixels, -1)
    )


def test_first_frame_of_a_gif(tmp_path):
    path = tmp_path / "0.gif"
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert (read_picture(path, None, 1) == 10).all()


def test_grey_is_itu_luma_and_resizing_averages(tmp_path):
    path = save_picture(
        tmp_path / "0.png", np.full((4, 4, 3), (255, 0, 0), np.uint8)
    )
    assert (read_picture(path, None, 1) == 76).all()
    board = np.indices((20, 20)).sum(axis=0) % 2 * 200
    path = save_picture(tmp_path / "1.png", board.astype(np.uint8)[..., None])
    small = read_picture(path, (5, 4), 1)
    assert small.shape == (5, 4, 1)
    assert abs(small.astype(int) - 100).max() < 15


def test_decompression_bombs_are_refused(tmp_path, monkeypatch):
    path = save_picture(tmp_path / "0.png", random_pictures(1)[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "cannot be read" in message_of(read_picture, path, None, 1)


def test_small_files_that_claim_many_pixels_are_refused(tmp_path):
    path = tmp_path / "0.png"
    Image.new("1", (2000, 2000)).save(path)
    assert read_picture(path, (4, 4), 1).shape == (4, 4, 1)
    Image.new("1", (3000, 3000)).save(path)
    assert "cannot be read" in message_of(read_picture, path, None, 1)


def test_a_picture_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "0.png"
    assert "No such file" in message_of(read_picture, path, None, 1)


def test_picture_files_are_sorted_known_and_not_hidden(tmp_path):
    names = ["b.png", "a.JPG", "sub/c.gif", ".d.png", ".sub/e.png", "f.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    found = [str(p.relative_to(tmp_path)) for p in picture_files(tmp_path)]
    assert found == ["a.JPG", "b.png", str(Path("sub", "c.gif"))]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".gif", ".tif"])
def test_damaged_pictures_are_read_or_refused(tmp_path, suffix):
    path = tmp_path / f"0{suffix}"
    Image.fromarray(random_pictures(1, (16, 16, 3))[0]).save(path)

    def load_it():
        pixels = read_picture(path, (8, 8), 3)
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8

    check_damage(path, load_it, np.random.default_rng(2), 100)
    path.write_bytes(path.read_bytes()[:10])
    assert str(path) in message_of(read_picture, path, None, 3)


# --image_size and --grayscale for the other kinds


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


# Real data


def real(name):
    return pytest.mark.skipif(
        not (DATA / name).is_dir(), reason=f"no {name} beside the repository"
    )


@real("mnist")
def test_real_mnist():
    dataset = load(DATA / "mnist")
    assert dataset.x_train.shape == (60_000, 28, 28, 1)
    assert dataset.x_test.shape == (10_000, 28, 28, 1)
    assert dataset.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert dataset.class_names == list("0123456789")


@real("photos")
def test_real_photos():
    dataset = load(DATA / "photos")
    assert dataset.x_train.shape == (1_000, 32, 32, 3)
    assert np.bincount(dataset.y_test).tolist() == [20] * 10
    assert len(dataset.class_names) == 10
