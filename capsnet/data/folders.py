"""folders."""

import hashlib
import os
from pathlib import Path

import numpy as np

from capsnet.data.pictures import from_array, is_picture, read_picture, to_array
from capsnet.messages import UserError, counted, listed

# Of each class, where a folder has no test part of its own.
TEST_FRACTION = 0.2


def picture_files(folder):
    """Sorted paths of the pictures in a folder and the folders in it."""
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if is_picture(path)
        and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        )
    )


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


def subfolders(folder):
    return sorted(
        child
        for child in folder.glob("*")
        if child.is_dir() and not child.name.startswith(".")
    )


def has_parts(folder):
    """Whether a folder has the parts `train` and `test`, with classes."""
    present = [part for part in ("train", "test") if subfolders(folder / part)]
    if len(present) == 1:
        raise UserError(
            f"expected train/CLASS and test/CLASS in {str(folder)!r}, "
            f"received {present[0]} alone: add the other, or give the folder "
            f"{str(folder / present[0])!r}"
        )
    return len(present) == 2


def load_pictures(folder, image_size, channels, test_fraction, skip_unreadable):
    in_parts = has_parts(folder)
    class_folders = [
        (part, class_folder)
        for part in (("train", "test") if in_parts else ("",))
        for class_folder in subfolders(folder / part)
    ]
    found = [
        (part, class_folder, path)
        for part, class_folder in class_folders
        for path in picture_files(class_folder)
    ]
    if not found and any(map(is_picture, Path(folder).iterdir())):
        raise UserError(
            f"expected a folder for each class in {str(folder)!r}, received "
            "pictures that lie directly in it: name the folder above, if this "
            "is one class, or sort them into CLASS/"
        )
    if not found:
        raise UserError(
            f"expected a folder for each class in {str(folder)!r}, received "
            "none with pictures: put the pictures in CLASS/ or in train/CLASS/ "
            "and test/CLASS/"
        )
    pictures, notes = read_folder(
        folder,
        [path for _, _, path in found],
        image_size,
        channels,
        skip_unreadable,
    )
    found = [entry for entry in found if entry[2] in pictures]
    class_names = sorted({each.name for _, each in class_folders})
    y = np.array([class_names.index(entry[1].name) for entry in found])
    if in_parts:
        is_test = np.array([entry[0] == "test" for entry in found])
    else:
        names = [path.relative_to(each).as_posix() for _, each, path in found]
        is_test = choose_test(y, names, test_fraction)
    notes += count_classes(folder, y, is_test, class_names)
    x = stack(pictures.values())
    return [(x[c], y[c]) for c in (~is_test, is_test)], class_names, notes


def count_classes(folder, y, is_test, class_names):
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


def read_folder(folder, paths, image_size, channels, skip_unreadable):
    """Reads files; returns a dict from path to pixels, and notes."""
    pictures, unreadable = {}, []
    for path in paths:
        try:
            pixels = read_picture(path, image_size, channels)
        except UserError:
            unreadable.append(str(path.relative_to(folder)))
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


def stack(pictures):
    """One array, with as many channels as the picture that has most."""
    channels = max(pixels.shape[2] for pixels in pictures)
    return np.stack(
        [to_array(from_array(pixels), None, channels) for pixels in pictures]
    )


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
