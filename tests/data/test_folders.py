"""Folders of pictures: parts, classes, and what cannot be read."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import (
    message_of,
    random_pictures,
    save_picture,
    write_folder,
    write_idx,
    write_npz,
)

from capsnet.data.folders import find_pictures
from capsnet.data.parts import choose_test
from capsnet.data.pictures import read_picture, read_pictures
from capsnet.data.sources import load
from capsnet.data.trees import scan
from capsnet.messages import UserError

TWO_PARTS = {"train/b": 3, "train/a": 2, "test/a": 1, "test/b": 2}
GREY = Image.fromarray(random_pictures(1, (6, 5))[0])
COLOUR = Image.fromarray(random_pictures(1, (6, 5, 3))[0])
ALPHA = Image.fromarray(random_pictures(1, (6, 5, 4))[0])


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
        "Left out: 1 .txt file, 1 hidden file, 1 hidden folder",
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


def test_the_test_part_is_a_lasting_choice_of_names():
    # Another choice would test models on pictures that they were trained on.
    names = [f"{i:02}.png" for i in range(40)]
    chosen = np.flatnonzero(choose_test(np.zeros(40, int), names, 0.2))
    assert chosen.tolist() == [2, 3, 4, 6, 18, 33, 34, 38]


def test_pictures_in_folders_of_a_class_folder_belong_to_the_class(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 2})
    write_folder(tmp_path / "a", {"more": 4, ".hidden": 3})
    dataset = load(tmp_path)
    assert dataset.class_names == ["a", "b"]
    y = np.concatenate([dataset.y_train, dataset.y_test])
    assert np.bincount(y).tolist() == [6, 2]


@pytest.mark.parametrize(
    ("counts", "part_of_message"),
    [
        ({}, "a folder for each class"),
        ({"train/a": 1, "train/b": 1, "test/a": 1}, "test pictures of every"),
        ({"train/a": 1, "test/a": 1, "test/b": 1}, "none of 'b'"),
        ({"a": 1, "b": 3}, "none of 'a'"),
        ({"a": 2, "b": 2, "c": 0}, "none of 'c'"),
        ({"a": 3}, "two classes"),
        ({"train/a": 3, "test/a": 3}, "two classes"),
        ({"train/a": 3, "train/b": 3}, "received train alone"),
        ({".": 3}, "lie directly in it: name the folder above"),
        ({"a": 2, "a ": 2, "b": 2}, "'a' twice"),
    ],
)
def test_folders_that_lack_something(tmp_path, counts, part_of_message):
    for name in counts:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    write_folder(tmp_path, counts)
    assert part_of_message in message_of(load, tmp_path)


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


@pytest.mark.parametrize(
    ("pictures", "channels"),
    [
        ([GREY, GREY], 1),
        ([GREY, GREY.convert("1")], 1),
        ([GREY, GREY.convert("P")], 1),
        ([GREY, COLOUR], 3),
        ([COLOUR.convert("P"), GREY], 3),
        ([COLOUR, ALPHA], 4),
        # Nowhere transparent.
        ([GREY, GREY.convert("LA")], 1),
        ([COLOUR, GREY.convert("RGBA")], 3),
    ],
)
def test_channels_are_those_of_the_whole_data_set(tmp_path, pictures, channels):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index, picture in enumerate(pictures):
            picture.save(tmp_path / name / f"{index}.png")
    dataset = load(tmp_path)
    assert dataset.x_train.shape[1:] == (6, 5, channels)
    for path in scan(tmp_path).all_pictures():
        again = read_picture(path, None, channels)
        parts = [*dataset.x_train, *dataset.x_test]
        assert any(np.array_equal(again, x) for x in parts)
    assert load(tmp_path, grayscale=True).x_train.shape[1:] == (6, 5, 1)


# What cannot be read


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
    assert dataset.notes[0] == (
        "1 picture left out: train/a/bad11.png: no picture, or of another "
        "format"
    )


def test_special_reasons_are_named_with_the_picture(tmp_path):
    write_folder(tmp_path, TWO_PARTS)
    path = tmp_path / "train" / "a" / "large.png"
    Image.new("1", (3000, 3000)).save(path)
    message = message_of(load, tmp_path)
    assert "train/a/large.png: more pixels than" in message
    dataset = load(tmp_path, skip_unreadable=True)
    assert "train/a/large.png: more pixels than" in dataset.notes[0]
    _, unreadable, _ = read_pictures([str(path)], (28, 28, 1))
    assert unreadable[0].startswith(f"{path}: more pixels than")


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


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a/0.png", "a/0.png: Permission denied"),
        ("a", "(Permission denied)"),
        ("a/more", "(Permission denied)"),
        ("set.npz", "(Permission denied)"),
        ("idx/train-images-idx3-ubyte", "(Permission denied)"),
    ],
)
def test_what_is_forbidden_is_not_called_broken_or_missing(name, expected):
    with tempfile.TemporaryDirectory() as folder:
        folder, target = Path(folder), Path(folder, name)
        write_folder(folder, {"a": 2, "b": 2, "a/more": 1})
        write_npz(folder / "set.npz")
        write_idx(folder / "idx")
        os.chmod(folder, 0o755)
        mode = target.stat().st_mode
        os.chmod(target, 0)
        user = os.geteuid()
        # Nothing is forbidden to root.
        os.seteuid(user or 65534)
        try:
            loaded = {"a": folder, "idx": folder / "idx"}
            message = message_of(load, loaded.get(Path(name).parts[0], target))
        finally:
            os.seteuid(user)
            os.chmod(target, mode)
    assert expected in message and name in message
    assert "broken" not in message


# Finding pictures


def test_pictures_are_sorted_known_and_not_hidden(tmp_path):
    names = ["b.png", "a.JPG", "sub/c.gif", ".d.png", ".sub/e.png", "f.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    folder = scan(tmp_path)
    found = [str(p.relative_to(tmp_path)) for p in folder.all_pictures()]
    assert found == ["a.JPG", "b.png", str(Path("sub", "c.gif"))]
    expected = {"hidden file": 1, "hidden folder": 1, ".txt file": 1}
    assert folder.left_out() == expected


def test_pictures_are_found_in_files_and_folders(tmp_path):
    write_folder(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "a" / "one.heic").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    asked = [str(tmp_path / "gone.png"), str(tmp_path / "a")]
    found = find_pictures(asked)
    files = [asked[0], *(f"{asked[1]}/{i}.png" for i in range(2))]
    assert found == (files, ["Left out: 1 .heic file"])
    with pytest.raises(UserError, match="received none: PNG, JPEG, BMP, GIF"):
        find_pictures([*asked, str(tmp_path / "empty")])
    (tmp_path / "empty" / "one.heic").write_bytes(b"")
    with pytest.raises(UserError, match="received 1 .heic file: PNG, JPEG"):
        find_pictures([str(tmp_path / "empty")])


def test_names_in_two_normal_forms_are_one_class(tmp_path):
    """One part was unpacked on a Mac."""
    counts = {"train/caf\u00e9": 2, "train/tea": 2}
    counts |= {"test/cafe\u0301": 1, "test/tea": 2}
    dataset = load(str(write_folder(tmp_path, counts)))
    assert dataset.class_names == ["caf\u00e9", "tea"]
    assert dataset.y_train.tolist() == [0, 0, 1, 1]
    assert dataset.y_test.tolist() == [0, 1, 1]


def test_class_names_steer_no_terminal(tmp_path):
    dataset = load(str(write_folder(tmp_path, {"a\x1b[2J": 2, "b\nc": 2})))
    assert dataset.class_names == [r"a\x1b[2J", r"b\nc"]
