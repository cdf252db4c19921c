"""A folder and what is in it: pictures, other folders, and what is not read.

A folder is looked through once, with linked ones, as a `Folder` with the
`Folder`s in it. What is hidden, and what is a run of ours, is no data; it is
counted, as is all that is no picture.
"""

import collections
import dataclasses
import os
from pathlib import Path

from capsnet.data.pictures import PICTURE_SUFFIXES
from capsnet.files import LOCK, RECORD, is_ours
from capsnet.messages import UserError, counted, listed

# What systems put among the folders of their users.
SYSTEM = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found"}
# A kind of what is left out, in the singular.
A_RUN = "run's folder"
DEEPEST = 100


@dataclasses.dataclass
class Folder:
    """A folder, and what is in it."""

    path: Path
    pictures: list  # Paths of the pictures that lie right in it.
    folders: list  # The `Folder`s in it that are looked through.
    others: list  # Paths of other files.
    hidden: collections.Counter  # What is not looked at, by kind.

    def inside(self):
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.inside()

    def all_pictures(self):
        """Sorted paths of the pictures in it and below it."""
        return sorted(p for each in self.inside() for p in each.pictures)

    def filled(self):
        """The folders in it with a picture, or with one below."""
        return [each for each in self.folders if any_picture(each)]

    def left_out(self):
        """Counts of what is no picture in it and below it, by kind."""
        kinds = collections.Counter()
        for folder in self.inside():
            kinds += folder.hidden
            kinds.update(
                f"{path.suffix.lower() or 'other'} file"
                for path in folder.others
            )
        return kinds


def any_picture(folder):
    return any(each.pictures for each in folder.inside())


def is_run(path):
    """Whether a folder is a run's own, which holds no data.

    Where somebody had a table written beside his pictures it is none.
    """
    if not os.path.exists(os.path.join(path, LOCK)):
        return os.path.exists(os.path.join(path, RECORD))
    names = os.listdir(path)
    return RECORD in names or all(map(is_ours, filter(is_picture, names)))


def is_picture(name):
    return os.path.splitext(name)[1].lower() in PICTURE_SUFFIXES


def scan(path, above=()):
    """Looks through a folder, linked ones too, and returns a `Folder`.

    Raises:
        OSError: If one of the folders cannot be listed.
        UserError: If more folders lie in each other than people make.
    """
    if len(above) > DEEPEST:
        raise UserError(
            f"expected at most {DEEPEST} folders in each other, received more "
            f"in {above[0]!r}: give one that is further down"
        )
    found = Folder(Path(path), [], [], [], collections.Counter())
    above = (*above, os.path.realpath(path))
    with os.scandir(path) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    results = any(entry.name == LOCK for entry in entries)
    for entry in entries:
        is_folder = entry.is_dir()
        if entry.name.startswith(".") or entry.name in SYSTEM:
            found.hidden["hidden folder" if is_folder else "hidden file"] += 1
        elif is_folder and is_run(entry.path):
            found.hidden[A_RUN] += 1
        elif is_folder and os.path.realpath(entry.path) in above:
            found.hidden["linked folder above it"] += 1
        elif is_folder:
            found.folders.append(scan(entry.path, above))
        elif results and is_picture(entry.name) and is_ours(entry.name):
            found.hidden["result's picture"] += 1
        elif is_picture(entry.name):
            found.pictures.append(Path(entry.path))
        else:
            found.others.append(Path(entry.path))
    return found


def of_runs(folder):
    """Whether there are runs in a folder, and nothing else."""
    kinds = folder.left_out()
    return set(kinds) == {A_RUN} and not any_picture(folder)


def by_kind(kinds):
    """`["2 .heic files", "1 hidden folder"]` of counts by kind."""
    return [counted(count, kind) for kind, count in sorted(kinds.items())]


def note_left_out(kinds, beside=()):
    """A note in a list, or none, on what is not read.

    Args:
        kinds: Counts by kind.
        beside: Counts of pictures by the folder that they lie in.
    """
    parts = [
        f"{counted(beside[name], 'picture')} right in "
        f"{'the folder' if name == '.' else name}"
        for name in beside
    ]
    parts += by_kind(kinds)
    return [f"Left out: {listed(parts)}"] if parts else []
