"""Labels as people have them, and the names of the classes."""

import numpy as np
import pytest
from samples import arrays, message_of, write_npz

from capsnet.data.sources import load


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


def as_type(kind, labels):
    """The labels 0 and 1 as people store them."""
    return {
        "floats": labels.astype(np.float32),
        "column": labels[:, None].astype(float),
        "names": np.array(["cat", "dog"])[labels],
        "bytes": np.array([b"cat", b"dog"])[labels],
        "one-hot": np.eye(2)[labels],
        "booleans": labels.astype(bool),
    }[kind]


@pytest.mark.parametrize(
    "kind, names",
    [
        ("floats", ["0", "1"]),
        ("column", ["0", "1"]),
        ("names", ["cat", "dog"]),
        ("bytes", ["cat", "dog"]),
        ("one-hot", ["0", "1"]),
        ("booleans", ["False", "True"]),
    ],
)
def test_labels_of_every_kind_are_counted_from_0(tmp_path, kind, names):
    values = arrays()
    changes = {key: as_type(kind, values[key]) for key in ("y_train", "y_test")}
    dataset = load(write_npz(tmp_path / "set.npz", **changes))
    for key in changes:
        found = getattr(dataset, key)
        assert found.dtype == np.int64
        assert found.tolist() == values[key].tolist()
    assert dataset.class_names == names


def test_names_in_bytes_are_utf_8(tmp_path):
    values, names = arrays(), np.array(["caf\u00e9", "th\u00e9"])
    for encoding in ("utf-8", "latin-1"):
        changes = {
            key: np.char.encode(names, encoding)[values[key]]
            for key in ("y_train", "y_test")
        }
        path = write_npz(tmp_path / f"{encoding}.npz", **changes)
        if encoding == "utf-8":
            assert load(path).class_names == names.tolist()
        else:
            assert "names in y_train in UTF-8" in message_of(load, path)


def test_names_as_labels_go_by_the_order_of_class_names(tmp_path):
    names = np.array(["dog", "cat", "cow"])
    path = write_npz(
        tmp_path / "set.npz",
        y_train=names[np.arange(8) % 2],
        y_test=names[[1, 0, 1, 0]],
        class_names=names,
    )
    dataset = load(path)
    assert dataset.class_names == names.tolist()
    assert dataset.y_train.tolist() == [0, 1] * 4
    assert dataset.y_test.tolist() == [1, 0, 1, 0]
    wrong = write_npz(
        tmp_path / "wrong.npz",
        y_train=names[np.arange(8) % 2],
        y_test=names[[1, 0, 1, 0]],
        class_names=names[1:],
    )
    assert "class_names" in message_of(load, wrong)
