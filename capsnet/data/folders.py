"""Folders of pictures: read, and counted by class and part."""

import collections
import math
import os

import numpy as np

from capsnet.data.labels import check_names
from capsnet.data.layouts import class_name, count_rest, find_classes
from capsnet.data.pictures import (
    FORMATS,
    UnreadablePicture,
    convert,
    read_picture,
)
from capsnet.data.trees import any_picture, by_kind, note_left_out, scan
from capsnet.devices import require_memory
from capsnet.messages import UserError, counted, listed

PART_NAMES = {"train": "training", "test": "test", "val": "validation"}


def find_pictures(paths):
    """The files among `paths`, the pictures in the folders among them, notes.

    Raises:
        UserError: If a folder holds no picture.
    """
    files, kinds = [], collections.Counter()
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        folder = scan(path)
        found = folder.all_pictures()
        if not found:
            received = by_kind(folder.left_out())
            raise UserError(
                f"expected pictures in {path!r} or in its folders, received "
                f"{listed(received) or 'none'}: {FORMATS} files are read"
            )
        files += map(str, found)
        kinds += folder.left_out()
    return files, note_left_out(kinds)


def unreadable_error(where, unreadable, total, skip_unreadable):
    """A `UserError` that names the pictures that cannot be read."""
    advice = "replace them"
    if not skip_unreadable:
        advice += ", or leave them out with --skip_unreadable"
    return UserError(
        f"expected pictures{where}, received {len(unreadable)} of {total} "
        f"that cannot be read ({listed(unreadable)}): {advice}"
    )


def load_pictures(root, image_size, channels, skip_unreadable):
    """Reads a folder of class folders, or of parts with them.

    Args:
        root: A `trees.Folder`.

    Returns:
        Pairs `(x, y)` by part, class names, the files of each part, for each
        picture of the part `ALL` its name within its class, and notes.
    """
    classes, notes = find_classes(root)
    found = {}
    for part, own in classes.items():
        check_names(str(root.path), list(map(class_name, own)))
        for folder in own:
            found |= dict.fromkeys(folder.all_pictures(), (part, folder))
    folders = [folder for each in classes.values() for folder in each]
    names = sorted(set(map(class_name, folders)))
    number = {each.path: names.index(class_name(each)) for each in folders}
    pictures, left_out = _read(
        root.path, list(found), image_size, channels, skip_unreadable
    )
    for folder in folders:
        if not any_picture(folder):
            raise no_pictures(root, folder)
    # As many channels as the picture that has most.
    channels = max(pixels.shape[2] for pixels in pictures.values())
    parts, files = {}, {}
    for part in classes:
        own = [path for path in pictures if found[path][0] == part]
        if not own:
            raise UserError(
                f"expected {PART_NAMES[part]} pictures in {str(root.path)!r}, "
                "received none that can be read: replace them"
            )
        x = np.stack([convert(pictures[p], None, channels) for p in own])
        y = np.array([number[found[path][1].path] for path in own])
        parts[part] = x, y
        files[part] = [p.relative_to(root.path).as_posix() for p in own]
    within = [p.relative_to(found[p][1].path).as_posix() for p in pictures]
    notes += left_out + count_rest(root, classes)
    return parts, names, files, within, notes


def no_pictures(root, folder):
    """The `UserError` for a class folder without pictures."""
    kinds = by_kind(folder.left_out())
    but = f" but {listed(kinds)}" if kinds else ""
    return UserError(
        f"expected pictures of every class in {str(root.path)!r}, received "
        f"none of {folder.path.name!r}{but}: add some ({FORMATS} files are "
        "read), or move the folder elsewhere"
    )


def _read(folder, paths, image_size, channels, skip_unreadable):
    """Reads files; returns a dict from path to pixels, and notes."""
    pictures, unreadable = {}, []
    if image_size:
        require_memory(len(paths) * math.prod(image_size) * (channels or 1))
    for path in paths:
        try:
            pixels = read_picture(path, image_size, channels)
        except UnreadablePicture as error:
            unreadable.append(error.named(str(path.relative_to(folder))))
            continue
        if not pictures:
            require_memory(len(paths) * pixels.size)
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


def count_classes(name, labels, class_names):
    """A note for each part, or an error if a class is missing in one.

    It may be missing in the validation part alone.
    """
    notes = []
    for part, y in labels.items():
        counts = np.bincount(y, minlength=len(class_names))
        if not counts.all() and part != "val":
            raise UserError(
                f"expected {PART_NAMES[part]} pictures of every class, "
                f"received none of {class_names[counts.argmin()]!r} in "
                f"{name!r}: add some (each class needs two pictures at least), "
                "or remove the class"
            )
        each = ", ".join(map("{} {}".format, class_names, counts))
        noun = f"{PART_NAMES[part]} picture"
        notes.append(f"{counted(len(y), noun)}: {each}")
    return notes
