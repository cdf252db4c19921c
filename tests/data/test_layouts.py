"""Layouts as people have them: understood, or refused by their names."""

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from samples import message_of, random_pictures, write_folder

from capsnet.data.folders import find_pictures
from capsnet.data.parts import array_of, part_of
from capsnet.data.sources import load


def counts(dataset):
    """Training and test pictures of each class, by the class's name."""
    return {
        name: (
            int((dataset.y_train == number).sum()),
            int((dataset.y_test == number).sum()),
        )
        for number, name in enumerate(dataset.class_names)
    }


def parts(train, test, train_count=5, test_count=2):
    """What `write_folder` takes, of classes a and b."""
    return {
        f"{part}/{name}": count
        for part, count in ((train, train_count), (test, test_count))
        for name in "ab"
    }


@pytest.mark.parametrize(
    "train, test",
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("Training", "Test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("Final_Training/Images", "Final_Test/Images"),
        ("train2017", "test2017"),
        ("TrainSet", "TestSet"),
        ("trainingData", "testData"),
    ],
)
@pytest.mark.parametrize("above", [".", "archive", "archive/archive"])
def test_parts_are_understood_as_people_call_them(tmp_path, train, test, above):
    """Never a network that tells Training from Testing."""
    write_folder(tmp_path / above, parts(train, test))
    dataset = load(tmp_path)
    assert counts(dataset) == {"a": (5, 2), "b": (5, 2)}
    read_from = f"Read from {str(tmp_path / above)!r}"
    assert (read_from in dataset.notes) == (above != ".")


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "val_set"])
def test_validation_is_the_test_part_where_there_is_no_other(tmp_path, val):
    write_folder(tmp_path, parts("train", val))
    dataset = load(tmp_path)
    assert counts(dataset) == {"a": (5, 2), "b": (5, 2)}
    assert dataset.validation is None
    assert "validation part is used for the test" in " ".join(dataset.notes)


def test_the_validation_part_of_three_is_held_out(tmp_path):
    write_folder(tmp_path, parts("train", "test"))
    write_folder(tmp_path, {"valid/b": 3})
    dataset = load(tmp_path)
    assert counts(dataset) == {"a": (5, 2), "b": (5, 2)}
    x, y = dataset.validation
    assert y.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(x, random_pictures(3, (6, 5, 3), 0))
    assert "3 validation pictures: a 0, b 3" in dataset.notes
    assert dataset.notes[0].startswith("Held out: 3 validation pictures")


def test_a_class_may_be_called_as_a_part(tmp_path):
    vehicles = {"train": 5, "bus": 5, "car": 5}
    assert set(counts(load(write_folder(tmp_path / "v", vehicles)))) == {
        *vehicles
    }
    tickets = {"valid": 5, "invalid": 5}
    assert set(counts(load(write_folder(tmp_path / "t", tickets)))) == {
        *tickets
    }
    things = {"freight_train": 5, "test_tube": 5}
    assert set(counts(load(write_folder(tmp_path / "f", things)))) == {*things}


@pytest.mark.parametrize(
    "layout, expected",
    [
        # The labels are in the names of the files.
        ({"train": 6, "test": 4}, "sort them into train/CLASS/"),
        ({"train": 6, "val": 4}, "sort them into train/CLASS/"),
        ({"train/a": 2, "train/b": 2, "test": 3}, "'{}/train' alone"),
        ({"0": 2, "1": 2, "test": 3}, "received test alone: move the classes"),
        ({"0": 2, "1": 2, "test/0": 3}, "received test alone: add the other"),
        ({"test/a": 2, "test/b": 2}, "received test alone: add the other"),
        ({"train/a": 2, "train/b": 2}, "received train alone: add the other"),
        # Folds, or parts in another language.
        ({"1/a": 2, "1/b": 2, "2/a": 2, "2/b": 2}, "1, 2, of which each has"),
        ({"cup/train": 2, "cup/test": 2, "can": 2}, "cup/train and cup/test"),
        ({"one/a": 0}, "received none with pictures"),
    ],
)
def test_layouts_that_are_not_clear_are_refused(tmp_path, layout, expected):
    write_folder(tmp_path, layout)
    assert expected.format(tmp_path) in message_of(load, tmp_path)


@pytest.mark.parametrize("folder", ["dataset", "a/b/c"])
def test_a_folder_above_the_classes_is_understood(tmp_path, folder):
    write_folder(tmp_path / folder, {"cats": 5, "dogs": 5})
    dataset = load(tmp_path)
    assert counts(dataset) == {"cats": (4, 1), "dogs": (4, 1)}
    assert dataset.notes[0] == f"Read from {str(tmp_path / folder)!r}"
    # The same pictures are tested, wherever they are read from.
    np.testing.assert_array_equal(
        dataset.x_test, load(tmp_path / folder).x_test
    )


def test_one_class_in_folders_is_not_taken_for_its_folders(tmp_path):
    write_folder(tmp_path, {"cats": 3, "cats/old": 3})
    assert "two classes" in message_of(load, tmp_path)


def test_what_systems_and_runs_leave_is_no_class(tmp_path):
    write_folder(tmp_path, {"cats": 5, "dogs": 5, "__MACOSX/cats": 2})
    write_folder(tmp_path, {"result": 1, "runs/one": 1, "dogs/run": 1})
    for run in ("result", "runs/one"):
        (tmp_path / run / ".lock").touch()
        (tmp_path / run / "0.png").rename(tmp_path / run / "mistakes.png")
    (tmp_path / "dogs" / "run" / "run.json").write_text("{}")
    dataset = load(tmp_path)
    assert counts(dataset) == {"cats": (4, 1), "dogs": (4, 1)}
    line = "Left out: 1 hidden folder, 3 run's folders"
    assert line in dataset.notes


def test_a_class_with_a_table_beside_its_pictures_is_one(tmp_path):
    write_folder(tmp_path, {"cats": 5, "dogs": 5})
    results = "predictions.csv", "predictions.png", "mistakes.png"
    for name in (".lock", *results):
        (tmp_path / "cats" / name).write_bytes(b"")
    dataset = load(tmp_path)
    assert counts(dataset) == {"cats": (4, 1), "dogs": (4, 1)}
    assert "2 result's pictures" in " ".join(dataset.notes)
    files, _ = find_pictures([tmp_path / "cats"])
    assert [Path(file).stem for file in files] == list("01234")


def test_what_is_left_out_is_counted(tmp_path):
    write_folder(tmp_path, {**parts("train", "test"), "more/a": 4, ".": 1})
    write_folder(tmp_path, {"train": 2, "train/a/deep": 3})
    for name in ("train/a/0.heic", "train/b/1.HEIC", "README"):
        (tmp_path / name).write_bytes(b"")
    os.symlink(tmp_path / "train", tmp_path / "train" / "b" / "round")
    dataset = load(tmp_path)
    assert counts(dataset) == {"a": (8, 2), "b": (5, 2)}
    assert dataset.notes[:2] == [
        "3 pictures in folders within the class folders, read as of the class",
        "Left out: 1 picture right in the folder, 4 pictures right in more/a, "
        "2 pictures right in train, 2 .heic files, 1 linked folder above it, "
        "1 other file",
    ]


def test_tables_beside_pictures_only_tell_of_them(tmp_path):
    write_folder(tmp_path, parts("Train", "Test"))
    for name in ("Train.csv", "Test.csv"):
        (tmp_path / name).write_text("Width,Height,ClassId,Path\n")
    dataset = load(tmp_path)
    assert counts(dataset) == {"a": (5, 2), "b": (5, 2)}
    assert dataset.notes[0] == "Left out: 2 .csv files"


def test_a_class_without_pictures_is_refused_by_what_it_holds(tmp_path):
    write_folder(tmp_path, {"cats": 3, "dogs": 3})
    (tmp_path / "cows").mkdir()
    for name in ("0.heic", "1.HEIC", "notes.txt"):
        (tmp_path / "cows" / name).touch()
    message = message_of(load, tmp_path)
    assert "none of 'cows' but 2 .heic files, 1 .txt file: add some" in message


def test_folders_in_folders_without_end_are_refused(tmp_path):
    (tmp_path / "/".join("a" * 300)).mkdir(parents=True)
    assert "further down" in message_of(load, tmp_path)


def test_linked_folders_are_read(tmp_path):
    write_folder(tmp_path / "own", {"a": 5, "b": 2})
    write_folder(tmp_path, {"elsewhere": 3, "other": 5})
    os.symlink(tmp_path / "elsewhere", tmp_path / "own" / "b" / "more")
    os.symlink(tmp_path / "other", tmp_path / "own" / "c")
    dataset = load(tmp_path / "own")
    assert counts(dataset) == {"a": (4, 1), "b": (4, 1), "c": (4, 1)}


@pytest.mark.parametrize("make", ["link", "pipe"])
def test_pictures_that_are_no_files_are_named(tmp_path, make):
    """A pipe would be waited for, for ever."""
    write_folder(tmp_path, {"a": 3, "b": 3})
    path = tmp_path / "a" / "x.png"
    if make == "link":
        os.symlink("/nowhere/1.png", path)
    else:
        os.mkfifo(path)
    reason = {"link": "No such file or directory", "pipe": "no regular file"}[
        make
    ]
    assert f"a/x.png: {reason}" in message_of(load, tmp_path)
    dataset = load(tmp_path, skip_unreadable=True)
    assert dataset.notes[0] == f"1 picture left out: a/x.png: {reason}"


def test_class_names_of_a_mac_and_of_linux_are_the_same(tmp_path):
    nfc = "caf\u00e9"
    nfd = unicodedata.normalize("NFD", nfc)
    layout = {f"train/{nfc}": 3, "train/b": 3, f"test/{nfd}": 2, "test/b": 2}
    dataset = load(write_folder(tmp_path / "both", layout))
    assert counts(dataset) == {"b": (3, 2), nfc: (3, 2)}
    write_folder(tmp_path / "twice", {nfc: 2, nfd: 2, "b": 2})
    assert f"{nfc!r} twice" in message_of(load, tmp_path / "twice")


@pytest.mark.parametrize(
    "name, expected",
    [
        ("contest", (None, "contest")),
        ("latest", (None, "latest")),
        ("trains", (None, "trains")),
        ("train_test_split", (None, "train test split")),
        ("x-valid.2", ("val", "x 2")),
    ],
)
def test_a_part_is_a_word_of_the_name(name, expected):
    assert part_of(name) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("X_train", ("", "train", "x")),
        ("Ytest", ("", "test", "y")),
        ("trainX", ("", "train", "x")),
        ("test_labels", ("", "test", "y")),
        ("val_images", ("", "val", "x")),
        ("train_set_y", ("", "train", "y")),
        ("emnist-letters-t10k-images", ("emnist letters", "test", "x")),
        ("data", ("", "all", "x")),
        ("arr_0", None),
        ("train", None),
    ],
)
def test_arrays_are_known_by_their_names(name, expected):
    assert array_of(name) == expected
