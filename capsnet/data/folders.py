"""Folders of pictures: which files, which class, which part."""

import hashlib
import os
from pathlib import Path

import numpy as np

from capsnet.data.pictures import (
    PICTURE_SUFFIXES,
    UnreadablePicture,
    convert,
    read_picture,
)
from capsnet.messages import UserError, counted, listed, plain

# Of each class, where a folder has no test part of its own.
TEST_FRACTION = 0.2


def picture_files(folder):
    """Sorted paths of the pictures in a folder and the folders in it.

    Raises:
        OSError: If one of the folders cannot be listed.
    """

    def refuse(error):
        raise error

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names]
    return sorted(filter(_is_picture, found))


def find_pictures(paths):
    """The files among `paths`, and the pictures in the folders among them.

    Raises:
        UserError: If a folder holds no picture.
    """
    files = []
    for path in paths:
        found = picture_files(path) if os.path.isdir(path) else [path]
        if not found:
            raise UserError(
                f"expected pictures in {path!r} or in its folders, received "
                "none: PNG, JPEG, BMP, GIF, TIFF and WebP files are read"
            )
        files += map(str, found)
    return files


def unreadable_error(where, unreadable, total, skip_unreadable):
    """A `UserError` that names the pictures that cannot be read."""
    advice = "replace them"
    if not skip_unreadable:
        advice += ", or leave them out with --skip_unreadable"
    return UserError(
        f"expected pictures{where}, received {len(unreadable)} of {total} "
        f"that cannot be read ({listed(unreadable)}): {advice}"
    )


def has_parts(folder):
    """Whether a folder has the parts `train` and `test`, with classes."""
    present = [part for part in ("train", "test") if _subfolders(folder / part)]
    if len(present) == 1:
        raise UserError(
            f"expected train/CLASS and test/CLASS in {str(folder)!r}, "
            f"received {present[0]} alone: add the other, or give the folder "
            f"{str(folder / present[0])!r}"
        )
    return len(present) == 2


def load_pictures(folder, image_size, channels, test_fraction, skip_unreadable):
    """Reads a folder of class folders, or of `train` and `test` with them.

    Returns:
        The training part, `(x, y)`, and the test part, class names, notes.
    """
    in_parts = has_parts(folder)
    class_folders = [
        class_folder
        for part in (("train", "test") if in_parts else ("",))
        for class_folder in _subfolders(folder / part)
    ]
    found = {
        path: class_folder
        for class_folder in class_folders
        for path in picture_files(class_folder)
    }
    if not found:
        received = "none with pictures: put the pictures in CLASS/ or in "
        received += "train/CLASS/ and test/CLASS/"
        if any(map(_is_picture, folder.iterdir())):
            received = "pictures that lie directly in it: name the folder "
            received += "above, if this is one class, or sort them into CLASS/"
        raise UserError(
            f"expected a folder for each class in {str(folder)!r}, received "
            f"{received}"
        )
    pictures, notes = _read(
        folder, found, image_size, channels, skip_unreadable
    )
    class_names = sorted({plain(each.name) for each in class_folders})
    y = np.array(
        [class_names.index(plain(found[path].name)) for path in pictures]
    )
    if in_parts:
        test = folder / "test"
        is_test = np.array([found[path].parent == test for path in pictures])
    else:
        names = [path.relative_to(found[path]).as_posix() for path in pictures]
        is_test = choose_test(y, names, test_fraction)
    notes += _count_classes(folder, y, is_test, class_names)
    # As many channels as the picture that has most.
    channels = max(pixels.shape[2] for pixels in pictures.values())
    x = np.stack([convert(each, None, channels) for each in pictures.values()])
    return [(x[c], y[c]) for c in (~is_test, is_test)], class_names, notes


def choose_test(y, names, test_fraction):
    """Which pictures are for the test: of each class at least one.

    The names alone decide, by their digests, and no seed: models of several
    seeds keep the same pictures for the test, so that none of an ensemble was
    trained on them, and where a picture is added or removed, one other at
    most changes its part.
    """
    digests = np.array(
        [hashlib.sha256(os.fsencode(n)).hexdigest() for n in names]
    )
    is_test = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        members = members[np.argsort(digests[members])]
        count = max(1, round(test_fraction * len(members)))
        is_test[members[: min(count, len(members) - 1)]] = True
    return is_test


def _is_picture(path):
    is_hidden = path.name.startswith(".")
    is_known = path.suffix.lower() in PICTURE_SUFFIXES
    return is_known and not is_hidden and path.is_file()


def _subfolders(folder):
    return sorted(
        child
        for child in (folder.iterdir() if folder.is_dir() else ())
        if child.is_dir() and not child.name.startswith(".")
    )


def _read(folder, paths, image_size, channels, skip_unreadable):
    """Reads files; returns a dict from path to pixels, and notes."""
    pictures, unreadable = {}, []
    for path in paths:
        try:
            pixels = read_picture(path, image_size, channels)
        except UnreadablePicture as error:
            unreadable.append(error.named(str(path.relative_to(folder))))
            continue
        pictures[path] = pixels
        first_path, first = next(iter(pictures.items()))
        if pixels.shape[:2] != first.shape[:2]:
            raise UserError(
                "expected pictures of one size (height x width), received {} "
                "of {}x{} and {} of {}x{}: add --image_size H W".format(
                    first_path, *first.shape[:2], path, *pixels.shape[:2]
                )
            )
    if not unreadable:
        return pictures, []
    if not (skip_unreadable and pictures):
        where = f" in {str(folder)!r}"
        raise unreadable_error(where, unreadable, len(paths), skip_unreadable)
    left_out = counted(len(unreadable), "picture")
    return pictures, [f"{left_out} left out: {listed(unreadable)}"]


def _count_classes(folder, y, is_test, class_names):
    """A note for each part, or an error if a class is missing in one."""
    notes = []
    for part, chosen in (("training", ~is_test), ("test", is_test)):
        counts = np.bincount(y[chosen], minlength=len(class_names))
        if not counts.all():
            raise UserError(
                f"expected {part} pictures of every class, received none of "
                f"{class_names[counts.argmin()]!r} in {str(folder)!r}: add "
                "some (each class needs two pictures at least), or remove the "
                "class"
            )
        each = ", ".join(map("{} {}".format, class_names, counts))
        notes.append(f"{counted(chosen.sum(), f'{part} picture')}: {each}")
    return notes
