"""The axes and the values of arrays of pictures, as people have them."""

import tracemalloc

import numpy as np
import pytest
from PIL import Image
from samples import arrays, message_of, random_pictures, write_folder, write_npz

from capsnet.data.sources import load

# The scale of the pictures


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


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_npz_integers_of_zero_and_one_are_black_and_white(tmp_path, dtype):
    values = arrays()
    parts = {key: values[key] > 100 for key in ("x_train", "x_test")}
    path = tmp_path / "set.npz"
    dataset = load(
        write_npz(path, **{k: x.astype(dtype) for k, x in parts.items()})
    )
    np.testing.assert_array_equal(dataset.x_train, parts["x_train"] * 255)
    np.testing.assert_array_equal(dataset.x_test, parts["x_test"] * 255)


UNITS = {
    "fractions": lambda x: x / 255,
    "booleans": lambda x: x > 100,
    "ones": lambda x: (x > 100).astype(np.uint8),
    "black": lambda x: x * 0,
    "black floats": lambda x: x * 0.0,
}
BYTES = {
    "uint8": lambda x: x,
    "int64": lambda x: x.astype(np.int64),
    "float": lambda x: x.astype(np.float32),
}
CLEAR = [("fractions", "uint8"), ("fractions", "int64")] + [
    (small, large)
    for small in ("booleans", "black", "black floats")
    for large in BYTES
]


@pytest.mark.parametrize("large", BYTES)
@pytest.mark.parametrize("small", UNITS)
@pytest.mark.parametrize("first", ["x_train", "x_test"])
def test_parts_up_to_1_and_up_to_255_are_scaled_or_refused(
    tmp_path, small, large, first
):
    """Never one part 255 times as bright as the other."""
    second = {"x_train": "x_test", "x_test": "x_train"}[first]
    values = arrays()
    parts = {
        first: UNITS[small](values[first]),
        second: BYTES[large](values[second]),
    }
    path = write_npz(tmp_path / "set.npz", **parts)
    if (small, large) not in CLEAR:
        message = message_of(load, path)
        assert "one scale" in message and "up to 2" in message
        return
    dataset = load(path)
    np.testing.assert_array_equal(getattr(dataset, second), values[second])
    np.testing.assert_array_equal(
        getattr(dataset, first), np.rint(parts[first] * 255.0)
    )


@pytest.mark.parametrize("white", [1, 255])
def test_values_a_little_beyond_the_scale_are_cut(tmp_path, white):
    """Cubic resizing overshoots; rounded, all would be 0 or 1 of 255."""
    values = arrays()
    x = values["x_train"] / 255 * white
    x[0, 0, 0], x[0, 0, 1] = 1.004 * white, -0.02 * white
    path = write_npz(
        tmp_path / "set.npz", x_train=x, x_test=values["x_test"] / 255 * white
    )
    dataset = load(path)
    expected = values["x_train"].copy()
    expected[0, 0, :2] = [[255], [0]]
    np.testing.assert_array_equal(dataset.x_train, expected)
    low, top = f"{-0.02 * white:g}", f"{1.004 * white:g}"
    line = f"x_train has values from {low} to {top}, cut to 0 to {white}"
    assert dataset.notes == [line]


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda x: x / 255 * 2 - 1, "x_train from -0.984314 to 1"),
        (lambda x: (x / 255 - 0.5) / 0.25, "x_train from -1.96863 to 2"),
        (lambda x: x / 16, "nearly black"),  # 16 grey levels.
        (lambda x: x // 16, "nearly black"),
        (lambda x: x / 255 / 255, "nearly black"),  # Scaled twice.
        (lambda x: x * 0, "nearly black"),
        (lambda x: x.astype(np.uint16) * 257, "divide by 257"),
    ],
)
def test_values_of_another_scale_are_refused(tmp_path, change, expected):
    """Never black pictures in silence."""
    values = arrays()
    parts = {key: change(values[key]) for key in ("x_train", "x_test")}
    message = message_of(load, write_npz(tmp_path / "set.npz", **parts))
    assert expected in message and "received x_train" in message


def test_dark_pictures_are_read_and_called_so(tmp_path):
    values = arrays()
    parts = {key: values[key] // 4 for key in ("x_train", "x_test")}
    dataset = load(write_npz(tmp_path / "set.npz", **parts))
    np.testing.assert_array_equal(dataset.x_train, parts["x_train"])
    assert dataset.notes == ["Dark pictures: the brightest value is 63 of 255"]


def test_dark_files_are_refused_like_dark_arrays(tmp_path):
    """12 bits in files of 16 are that."""
    write_folder(tmp_path, {"a": 3, "b": 3})
    for path in tmp_path.rglob("*.png"):
        pixels = random_pictures(1, (6, 5))[0].astype(np.uint16) * 16
        Image.fromarray(pixels).save(path)
    assert "x from 1 to 15" in message_of(load, tmp_path)


@pytest.mark.parametrize("part", ["x_train", "x_test"])
def test_one_value_that_is_no_number_is_refused(tmp_path, part):
    """The least of 0 and NaN is 0, for Python."""
    values = {k: v / 255 for k, v in arrays().items() if k[0] == "x"}
    values[part][1, 2, 3] = np.nan
    message = message_of(load, write_npz(tmp_path / "set.npz", **values))
    assert f"{part} from nan to nan" in message and "no number" in message


@pytest.mark.parametrize("most", [1, 255])
def test_scaling_takes_no_multiple_of_the_memory(tmp_path, most):
    x = random_pictures(20_000, (16, 16))
    x = x if most == 255 else x % 2
    parts = {"x_train": x, "y_train": np.arange(len(x)) % 2}
    path = write_npz(tmp_path / "set.npz", **parts, x_test=x[:4])
    tracemalloc.start()
    dataset = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dataset.x_train.max() == 255
    # The file's bytes, and the pictures.
    assert peak < 4 * x.nbytes


# Axes


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_axes_that_are_unmistakable_are_put_in_order(tmp_path, channels):
    values = arrays(n_test=6, shape=(6, 5, channels))
    y = {key: values[key] for key in ("y_train", "y_test")}
    for name, first, last in (("first", -1, 1), ("last", 0, -1)):
        changed = {
            key: np.moveaxis(values[key], first, last)
            for key in ("x_train", "x_test")
        }
        dataset = load(write_npz(tmp_path / f"{name}.npz", **changed, **y))
        np.testing.assert_array_equal(dataset.x_train, values["x_train"])
        np.testing.assert_array_equal(dataset.x_test, values["x_test"])
        shape = changed["x_test"].shape
        note = f"x_test of shape {shape}, read as 6 of 6x5x{channels}"
        assert note in dataset.notes


def test_squares_in_rows_are_pictures(tmp_path):
    values = arrays(shape=(9, 9, 1))
    rows = {k: values[k].reshape(-1, 81) for k in ("x_train", "x_test")}
    dataset = load(write_npz(tmp_path / "set.npz", **rows))
    np.testing.assert_array_equal(dataset.x_train, values["x_train"])
    colours = {k: np.repeat(v, 3, 1) for k, v in rows.items()}
    message = message_of(load, write_npz(tmp_path / "c.npz", **colours))
    assert "(8, 243)" in message and "scramble" in message
