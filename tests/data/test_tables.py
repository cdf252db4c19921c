"""Arrays by the names that people give them, and tables of pixels."""

import numpy as np
import pytest
from samples import PARTS, arrays, message_of, random_pictures

from capsnet.data.sources import load

# Names


@pytest.mark.parametrize(
    "names",
    [
        "X_train Y_train X_test Y_test",
        "train_images train_labels test_images test_labels",
        "trainX trainY testX testY",
        "train_set_x train_set_y test_set_x test_set_y",
        "kmnist-train-imgs kmnist-train-labels kmnist-t10k-imgs kmnist-t10k-y",
        "x_train y_train x_val y_val",
    ],
)
@pytest.mark.parametrize("kind", ["npz", "folder", "folder of npz"])
def test_arrays_are_found_by_their_usual_names(tmp_path, names, kind):
    values = dict(zip(names.split(), arrays().values()))
    path = tmp_path / "set.npz"
    if kind == "npz":
        np.savez(
            path, **values, other=np.zeros(3), x=np.zeros((2, 9, 9)), y=[0, 1]
        )
    else:
        path = tmp_path / "set"
        path.mkdir()
        save = np.save if kind == "folder" else np.savez_compressed
        for name, array in values.items():
            save(path / name, array)
    dataset = load(path)
    for key, values in arrays().items():
        np.testing.assert_array_equal(getattr(dataset, key), values)


def test_medmnist_has_a_part_that_is_held_out(tmp_path):
    values = arrays()
    names = ("x_train", "train_images"), ("y_train", "train_labels")
    names += ("x_test", "test_images"), ("y_test", "test_labels")
    path = tmp_path / "pneumoniamnist.npz"
    parts = {other: values[own] for own, other in names}
    x, y = random_pictures(6, (6, 5, 1), 5), np.arange(6)[:, None] % 2
    np.savez(path, **parts, val_images=x, val_labels=y)
    dataset = load(path)
    np.testing.assert_array_equal(dataset.x_test, values["x_test"])
    np.testing.assert_array_equal(dataset.validation[0], x)
    assert dataset.validation[1].tolist() == y.ravel().tolist()


def test_a_fifth_of_arrays_without_a_test_part_is_kept(tmp_path):
    path = tmp_path / "set.npz"
    x = random_pictures(20, (6, 5, 1))
    np.savez(path, images=x, labels=np.arange(20) % 2)
    dataset = load(path)
    assert np.bincount(dataset.y_train).tolist() == [8, 8]
    assert np.bincount(dataset.y_test).tolist() == [2, 2]
    both = np.concatenate([dataset.x_train, dataset.x_test])
    assert sorted(map(bytes, both)) == sorted(map(bytes, x))
    np.testing.assert_array_equal(dataset.x_test, load(path, seed=7).x_test)
    assert len(load(path, test_fraction=0.5).y_test) == 10


# Tables


def write_table(path, values, part, heading="", place=0):
    x = values[f"x_{part}"].reshape(len(values[f"x_{part}"]), -1)
    table = np.insert(x.astype(int), place, values[f"y_{part}"], axis=1)
    lines = [",".join(map(str, row)) for row in table]
    # As spreadsheets write it.
    path.write_text(heading + "\n".join(lines) + "\n", "utf-8-sig")
    return path


PIXELS = ",".join(f"pixel{i}" for i in range(81))


@pytest.mark.parametrize(
    "heading, place",
    [
        ("", 0),
        (f"label,{PIXELS}\n", 0),
        (f'"{PIXELS.replace(",", chr(34) + "," + chr(34))}","class"\n', 81),
        ("label," + ",".join(map(str, range(81))) + "\n", 0),
    ],
)
def test_tables_of_pixels_are_read(tmp_path, heading, place):
    values = arrays(shape=(9, 9, 1))
    for part in ("train", "test"):
        path = tmp_path / f"mnist_{part}.csv"
        write_table(path, values, part, heading, place)
    dataset = load(tmp_path)
    for key in PARTS:
        np.testing.assert_array_equal(getattr(dataset, key), values[key])
    # One table: a fifth of it is kept for the test.
    dataset = load(tmp_path / "mnist_train.csv")
    assert (len(dataset.x_train), len(dataset.x_test)) == (6, 2)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("label,pixel0,pixel1\n1,0,255\n", "3 columns (label, pixel0, pixel1)"),
        ("a,b,c,d,e\n1,2,3,4,5\n", "with 5 columns"),
        ("1,2,3,4,5\n1,2,3\n", "a table of numbers"),
        ("label,a,b,c,d\ncat,1,2,3,4\n", "'cat'"),
        ("a,b,c,d,label\n", "no data"),
        ("label,a,b,c,d\n1,2,3,4,5,6\n", "rows of 6 numbers"),
        ("", "a column label"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, expected):
    path = tmp_path / "train.csv"
    path.write_text(text)
    message = message_of(load, path)
    assert expected in message and "np.savez" in message


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_emnist_as_a_table_is_turned_upright(tmp_path, kind):
    x = random_pictures(20, (6, 6, 1))
    y = np.arange(20) % 2
    lying = x[..., 0].swapaxes(1, 2).reshape(20, -1)
    rows = np.column_stack([y, lying])
    path = tmp_path / "emnist-letters-train.csv"
    np.savetxt(path, rows, "%d", ",")
    if kind == "folder":
        test = tmp_path / "emnist-letters-test.csv"
        np.savetxt(test, rows, "%d", ",")
    data = load(path if kind == "file" else tmp_path)
    assert "turned upright" in data.notes[0]
    pictures = np.concatenate([data.x_train, data.x_test])
    found = {each.tobytes() for each in pictures}
    assert found == {each.tobytes() for each in x}


def test_names_of_classes_may_lie_beside_arrays(tmp_path):
    for name, array in arrays().items():
        np.save(tmp_path / name, array)
    assert load(tmp_path).class_names == ["0", "1"]
    np.save(tmp_path / "class_names", np.array(["cat", "dog"]))
    assert load(tmp_path).class_names == ["cat", "dog"]


def test_one_picture_of_each_class_leaves_none_for_the_test(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, x=random_pictures(2), y=[0, 1])
    message = message_of(load, path)
    assert "two pictures of a class at least" in message
    assert "with one of each: add some" in message
