"""Files of arrays, `.npz` and idx: what is read, and what is refused."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from samples import (
    PARTS,
    arrays,
    idx_bytes,
    message_of,
    peak_memory,
    random_pictures,
    write_idx,
    write_npz,
)

from capsnet.data.sources import load

X, Y = arrays()["x_train"], arrays()["y_train"]


# .npz


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (9, 9, 3), (17, 17, 4)])
def test_npz_round_trip(tmp_path, shape, compressed):
    values = arrays(shape=shape)
    # Fortran's order is a part of the format, too.
    values["x_test"] = np.asfortranarray(values["x_test"])
    path = write_npz(tmp_path / "set.npz", compressed, **values)
    dataset = load(path)
    for part in PARTS:
        received, expected = getattr(dataset, part), values[part]
        assert received.dtype == (np.uint8 if part[0] == "x" else np.int64)
        if part[0] == "x":
            expected = expected.reshape(-1, *(*shape, 1)[:3])
        np.testing.assert_array_equal(received, expected)
    assert dataset.class_names == ["0", "1"]
    assert dataset.name == str(path)


def test_npz_labels_may_start_anywhere(tmp_path):
    labels = np.array([5, 1, 2, 3, 4, 1, 2, 3], np.uint8)[:, None]
    path = tmp_path / "set.npz"
    dataset = load(
        write_npz(path, y_train=labels, y_test=np.array([1, 5, 2, 3]))
    )
    assert dataset.y_train.tolist() == [4, 0, 1, 2, 3, 0, 1, 2]
    assert dataset.y_test.tolist() == [0, 4, 1, 2]
    assert dataset.class_names == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    "names, labels",
    [
        (["cat", "dog"], [0, 1]),
        (["cat", "dog"], [1, 2]),  # Two names for two labels.
        (["a", "b", "c"], [0, 1]),  # A class without pictures.
    ],
)
def test_npz_class_names_are_kept(tmp_path, names, labels):
    path = write_npz(
        tmp_path / "set.npz",
        y_train=np.array(labels * 4),
        y_test=np.array(labels * 2),
        class_names=np.array(names),
    )
    dataset = load(path)
    assert dataset.class_names == names
    assert dataset.y_train.tolist() == [0, 1] * 4


@pytest.mark.parametrize("names", [["one"], [1, 2], [["a", "b"]], [None]])
def test_npz_class_names_have_to_be_a_name_for_each_class(tmp_path, names):
    labels = np.arange(2, 6)
    path = write_npz(
        tmp_path / "set.npz",
        y_train=np.tile(labels, 2),
        y_test=labels,
        class_names=np.array(names),
    )
    assert "class_names" in message_of(load, path)


@pytest.mark.parametrize(
    "names",
    [
        ["a", "a", "b"],
        ["b", "a", "a "],
        ["a  b", "c", "a b"],
        ["caf\u00e9", "b", "cafe\u0301"],
        ["", "b", " "],
    ],
)
def test_class_names_that_look_equal_are_refused(tmp_path, names):
    """Or classes are taken for each other where they go by their names."""
    path = write_npz(
        tmp_path / "set.npz",
        y_train=np.arange(8) % 3,
        y_test=np.arange(4) % 3,
        class_names=np.array(names),
    )
    message = message_of(load, path)
    assert "twice" in message and str(path) in message


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


# What is wrong with the arrays


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
        ({"x_train": np.full(X.shape, 256)}, "from 0 to 255"),
        ({"x_train": -X.astype(float)}, "from 0 to 255"),
        ({"x_train": X.astype(complex)}, "complex128"),
        ({"x_train": X.astype("U3")}, "expected numbers in x_train"),
        ({"y_train": np.eye(8)[:, :2] * 2}, "rows of zeros and ones"),
        ({"y_train": np.eye(8)[:, :1]}, "rows of zeros and ones"),
        ({"y_train": np.eye(8)}, "(8, 8) and (4,)"),
        ({"y_train": np.eye(8), "y_test": np.eye(4)}, "(8, 8) and (4, 4)"),
        ({"y_train": np.eye(8) * np.nan}, "rows of zeros and ones"),
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


# Files that lie


def npz_with_member(path, content, compression=zipfile.ZIP_STORED):
    """An .npz in which the bytes of `x_train` are `content`."""
    write_npz(path, x_train=None)
    with zipfile.ZipFile(path, "a", compression) as archive:
        archive.writestr("x_train.npy", content)
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
    message = message_of(load, path)
    assert "broken" in message or "numbers" in message
    assert peak_memory(load, path) < 2**22


@pytest.mark.parametrize("lies", [(1, 3), (0, 1, 2, 3)])
def test_npz_whose_directory_lies_too_is_refused(tmp_path, lies):
    header = npy_header((2**28,))
    content = header + b"\0" * 50
    path = npz_with_member(tmp_path / "set.npz", content)
    claimed = len(header) + 2**28
    # The packed and the unpacked size, in the member's own header and in the
    # directory at the end.
    sizes = [struct.pack("<I", len(content))] * 4
    for place in lies:
        sizes[place] = struct.pack("<I", claimed)
    pieces = path.read_bytes().split(struct.pack("<I", len(content)))
    assert len(pieces) == 5
    path.write_bytes(b"".join(map(bytes.__add__, pieces, [*sizes, b""])))
    assert zipfile.ZipFile(path).getinfo("x_train.npy").file_size == claimed
    assert "broken" in message_of(load, path)
    assert peak_memory(load, path) < 2**22


def test_npz_whose_header_is_a_bomb_is_refused(tmp_path):
    content = b"\x93NUMPY\x02\x00\x00\x00\x00\x04" + b" " * 2**26
    path = npz_with_member(tmp_path / "set.npz", content, zipfile.ZIP_DEFLATED)
    assert "broken" in message_of(load, path)
    # Pictures of one colour may be packed as well as that.
    assert peak_memory(load, path) < 3 * len(content)


def test_npz_with_another_compression_is_refused(tmp_path):
    """Bzip2 packs much better, so that a small file would be a bomb."""
    content = npy_header(X.shape) + X.tobytes()
    path = npz_with_member(tmp_path / "set.npz", content)
    assert len(load(path).x_train) == 8
    path = npz_with_member(tmp_path / "set.npz", content, zipfile.ZIP_BZIP2)
    assert "broken" in message_of(load, path)


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
