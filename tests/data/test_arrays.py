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


# What is wrong with the arrays


@pytest.mark.parametrize(
    ("changes", "part_of_message"),
    [
        ({"x_test": None, "y_test": None}, "received x_train, y_train: add"),
        ({"x_train": X[:5]}, "5 whole numbers"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "nothing empty"),
        ({"x_train": X[..., :0]}, "nothing empty"),
        ({"x_train": X[..., [0, 0]]}, "1, 3 or 4 channels"),
        ({"x_train": X.reshape(8, -1)}, "(8, 30)"),
        ({"x_train": X.reshape(8, 6, 1, 5)}, "np.transpose"),
        ({"x_train": X[:, 1:]}, "(5, 5, 1) and (6, 5, 1)"),
        ({"x_train": np.full(X.shape, np.nan)}, "nan"),
        ({"x_train": X + np.inf}, "inf"),
        ({"x_train": X.astype(int) * 300}, "from 0 to 255"),
        ({"x_train": np.full(X.shape, 256)}, "from 0 to 255"),
        ({"x_train": -X.astype(float)}, "from 0 to 255"),
        ({"x_train": X.astype(complex)}, "complex128"),
        ({"x_train": X.astype("U3")}, "expected numbers in x_train"),
        ({"y_train": np.eye(8)[:, :2] * 2}, "rows of zeros and ones"),
        ({"y_train": np.eye(8)}, "(8, 8) and (4,)"),
        ({"y_train": np.eye(8), "y_test": np.eye(4)}, "(8, 8) and (4, 4)"),
        ({"y_train": np.eye(8) * np.nan}, "rows of zeros and ones"),
        ({"y_train": Y + 0.5}, "8 whole numbers"),
        ({"y_train": np.array(0)}, "int64 of shape ()"),
        ({"y_train": Y * np.nan}, "8 whole numbers"),
        ({"y_train": Y * np.inf}, "8 whole numbers"),
        ({"y_train": Y.astype(str)}, "of one kind"),
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
    message = message_of(load, tmp_path)
    assert "received t10k-images, train-images, train-labels: add" in message


def test_idx_counts_have_to_agree(tmp_path):
    parts = arrays(shape=(6, 5))
    parts["y_train"] = parts["y_train"][:-1]
    assert "8 whole numbers" in message_of(load, write_idx(tmp_path, parts))


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


@pytest.mark.parametrize("folder", ["MNIST/raw", "FashionMNIST/raw"])
def test_idx_files_are_found_below_a_root(tmp_path, folder):
    parts = arrays(shape=(6, 5))
    inner = tmp_path / folder
    inner.mkdir(parents=True)
    write_idx(inner, parts)
    write_idx(inner, parts, "{}-{}-idx{}-ubyte.gz", gzip.compress)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.x_train[..., 0], parts["x_train"])
    write_idx(tmp_path / "other", parts)
    message = message_of(load, tmp_path)
    assert "received several" in message and str(inner) in message


def write_emnist(folder, prefix="emnist-letters", first=1):
    """EMNIST's files: letters count from 1, pictures lie on their sides."""
    parts = arrays(shape=(6, 5))
    for key in parts:
        if key[0] == "x":
            parts[key] = parts[key].swapaxes(1, 2)
        else:
            parts[key] = parts[key] + first
    return write_idx(folder, parts, prefix + "-{}-{}-idx{}-ubyte")


def test_emnist_is_turned_upright(tmp_path):
    dataset = load(write_emnist(tmp_path))
    expected = arrays(shape=(6, 5))
    np.testing.assert_array_equal(dataset.x_train[..., 0], expected["x_train"])
    assert dataset.class_names == ["1", "2"]
    assert dataset.y_train.tolist() == expected["y_train"].tolist()
    assert "turned upright" in dataset.notes[0]
    message = message_of(load, write_emnist(tmp_path, "emnist-digits", 0))
    assert "keep one set" in message and "emnist-digits-t10k" in message


def test_qmnist_has_the_class_first_of_several_numbers(tmp_path):
    parts = arrays(shape=(6, 5))
    names = {"train": "train", "test": "test"}
    for part, name in names.items():
        images = tmp_path / f"qmnist-{name}-images-idx3-ubyte"
        images.write_bytes(idx_bytes(parts[f"x_{part}"]))
        y = np.full((len(parts[f"y_{part}"]), 8), 70_000, ">i4")
        y[:, 0] = parts[f"y_{part}"]
        head = struct.pack(">HBB2I", 0, 12, 2, *y.shape)
        labels = tmp_path / f"qmnist-{name}-labels-idx2-int.gz"
        labels.write_bytes(gzip.compress(head + y.tobytes()))
    dataset = load(tmp_path)
    for key in PARTS:
        values = getattr(dataset, key)
        np.testing.assert_array_equal(values, parts[key].reshape(values.shape))
