"""Data sets whose pictures have several labels, or are to be pairs."""

import numpy as np
import pytest
from samples import arrays, message_of, write_npz

from capsnet.data.batches import ShiftedBatches
from capsnet.data.sources import hold_out, load, reorder

ROWS = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]] * 2)
TEST_ROWS = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 1], [0, 0, 0]])


def write_rows(path, train=ROWS, test=TEST_ROWS, **more):
    return write_npz(path, y_train=train, y_test=test, **more)


@pytest.mark.parametrize("dtype", (bool, "uint8", "int64", "float32"))
def test_rows_of_zeros_and_ones_are_several_labels(tmp_path, dtype):
    path = write_rows(
        tmp_path / "set.npz", ROWS.astype(dtype), TEST_ROWS.astype(dtype)
    )
    data = load(path)
    assert data.labels == "several"
    assert data.class_names == ["0", "1", "2"]
    np.testing.assert_array_equal(data.y_train, ROWS)
    np.testing.assert_array_equal(data.y_test, TEST_ROWS)
    assert data.tested(0).tolist() == [0, 2]
    inputs, targets = ShiftedBatches(data.x_train, data.y_train, 3, 8)[0]
    for rows in (inputs["label"], targets["capsnet"]):
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, ROWS)
    np.testing.assert_array_equal(targets["decoder"], inputs["image"])


def test_rows_with_one_one_each_are_single_labels(tmp_path):
    labels = arrays(n_class=3)
    eye = np.eye(3)
    path = write_rows(
        tmp_path / "set.npz",
        *(eye[labels[key]] for key in ("y_train", "y_test")),
        class_names=np.array(["a", "b", "c"]),
    )
    data = load(path)
    assert data.labels == "one" and data.class_names == ["a", "b", "c"]
    for key in ("y_train", "y_test"):
        assert getattr(data, key).tolist() == labels[key].tolist()
        assert getattr(data, key).dtype == np.int64
    # One row with two is enough.
    test = eye[labels["y_test"]]
    test[3] = 1
    both = write_rows(tmp_path / "both.npz", eye[labels["y_train"]], test)
    assert load(both).labels == "several"


@pytest.mark.parametrize(
    "more, expected",
    (
        ({"class_names": np.array(["a", "b"])}, "3 class names, received 2"),
        ({"class_names": np.array(list("abcd"))}, "3 class names, received 4"),
        ({"class_names": np.array(["a", "b", "a"])}, "'a' twice"),
        ({"train": ROWS * [1, 1, 0]}, "class 2 in the test part only"),
        ({"train": ROWS * [1, 0, 0], "test": TEST_ROWS * 0}, "two classes"),
        ({"test": TEST_ROWS[:, :2]}, "(8, 3) and (4, 2)"),
    ),
)
def test_wrong_rows_are_told(tmp_path, more, expected):
    path = write_rows(tmp_path / "set.npz", **more)
    assert expected in message_of(load, path)


def test_reordered_rows_name_the_same_classes(tmp_path):
    names = np.array(["a", "b", "c"])
    data = load(write_rows(tmp_path / "set.npz", class_names=names))
    other = reorder(data, ["c", "a", "b"])
    for old, new in zip(data.y_train, other.y_train):
        assert {data.class_names[k] for k in np.flatnonzero(old)} == {
            other.class_names[k] for k in np.flatnonzero(new)
        }


@pytest.mark.parametrize("seed", range(5))
def test_held_out_rows_leave_every_class_a_picture(tmp_path, seed):
    data = load(write_rows(tmp_path / "set.npz"))
    kept, x, y = hold_out(data, 0.5, seed)
    assert len(x) == len(y) == len(kept.x_train) == 4
    assert kept.y_train.any(0).all()
    both = np.concatenate([kept.y_train, y])
    assert sorted(both.tolist()) == sorted(ROWS.tolist())


def test_pairs_of_a_path_keep_its_pictures_and_name(tmp_path):
    path = write_npz(tmp_path / "set.npz")
    single, pairs = load(path), load(f"pairs:{path}")
    assert (single.labels, pairs.labels) == ("one", "pair")
    assert pairs.name == f"pairs:{path}"
    assert single.input_shape == (6, 5, 1) and pairs.input_shape == (14, 13, 1)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        values = getattr(single, key)
        np.testing.assert_array_equal(getattr(pairs, key), values)


def test_pairs_need_single_labels_of_two_classes(tmp_path):
    path = write_rows(tmp_path / "rows.npz")
    assert "leave pairs: out" in message_of(load, f"pairs:{path}")
    path = write_npz(tmp_path / "one.npz", y_test=np.zeros(4, int))
    assert "two classes at least" in message_of(load, f"pairs:{path}")
    data = load(f"pairs:{write_npz(tmp_path / 'set.npz')}")
    assert "two classes, to make" in message_of(hold_out, data, 0.1, 0)
    kept, x, y = hold_out(data, 0.5, 0)
    assert len(x) == 4 and len(set(y)) == 2


def test_only_known_names_come_after_pairs():
    assert "received 'nothing'" in message_of(load, "pairs:nothing")
    assert "received ''" in message_of(load, "pairs:")


def test_digest_of_a_data_set_tells_each_of_its_parts(tmp_path):
    def digest(name=None):
        data = load(write_rows(tmp_path / "set.npz"))
        if name == "class_names":
            data.class_names[0] = "other"
        elif name:
            array = getattr(data, name).copy()
            array[-1] = 1 - array[-1]
            setattr(data, name, array)
        return data.digest()

    same = digest()
    assert digest() == same and len(same) == 64
    names = "x_train", "y_train", "x_test", "y_test", "class_names"
    assert len({same, *map(digest, names)}) == 6
