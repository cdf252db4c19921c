"""How a folder is laid out: which part, which class, or files of arrays.

`locate` finds what there is to read in a `trees.Folder`, `find_classes` the
pictures of each class of each part. What is read as if it were something else
would be the worst: a layout that is not clear is refused.
"""

import collections
import re

from capsnet.data.parts import ALL, PARTS, array_of, has_test, part_of
from capsnet.data.trees import any_picture, by_kind, note_left_out, of_runs
from capsnet.messages import UserError, counted, listed, plain

IDX = re.compile(r"(.+)[-.]idx\d-(?:ubyte|int)(?:\.gz)?", re.ASCII)
# Files of arrays, by the kind of data set that several of them make.
ARRAYS = {"idx": IDX, "npy": re.compile(r"(.+)\.np[yz]")}
TABLE = re.compile(r"(.+)\.csv", re.IGNORECASE)


def locate(root):
    """What there is to read in a folder, and in which one below it.

    Args:
        root: A `Folder`.

    Returns:
        `"idx"`, `"npy"`, `"csv"` or `"pictures"`, and a `Folder`.

    Raises:
        UserError: If several folders have arrays.
    """
    found = [
        (kind, folder)
        for folder in root.inside()
        if (kind := kind_of_arrays(folder))
    ]
    if any_picture(root):
        # Arrays and tables beside pictures tell of them.
        found = [each for each in found if each == ("idx", root)]
    if len(found) == 1 or found and found[0][1] is root:
        return found[0]
    if found:
        names = listed([repr(str(folder.path)) for _, folder in found])
        raise UserError(
            f"expected one data set in {str(root.path)!r}, received several, "
            f"in {names}: give one of these folders, or put the files of one "
            "data set into one folder"
        )
    return "pictures", root


def kind_of_arrays(folder):
    """`"idx"`, `"npy"` or `"csv"` of a folder with such files, else `None`."""
    for kind in ARRAYS:
        if any(map(array_of, array_files(folder, kind))):
            return kind
    return "csv" if tables(folder) else None


def array_files(folder, kind):
    """The files of a folder that hold one array, by the name of the array."""
    matches = [(ARRAYS[kind].fullmatch(p.name), p) for p in folder.others]
    # A file comes before its own .gz, which sorts after it.
    return {m[1]: path for m, path in reversed(matches) if m and path.is_file()}


def tables(folder):
    """The .csv files of a folder by part, in a dictionary for each set."""
    groups = {}
    for path in folder.others:
        match = TABLE.fullmatch(path.name)
        part, rest = part_of(match[1]) if match else (None, "")
        if part and path.is_file():
            groups.setdefault(rest, {})[part] = path
    return [group for group in groups.values() if has_test(group)]


def class_name(folder):
    """A folder's name as a class: one form of letters that look equal."""
    return plain(folder.path.name)


def find_classes(root):
    """The pictures of each class of each part.

    Args:
        root: A `Folder`.

    Returns:
        The class folders by part (`ALL` where there are no parts), and notes
        on where they are.

    Raises:
        UserError: If there are no class folders, or the parts are not clear.
    """
    place = root
    while not (parts := parts_in(place)):
        check_lonely(root, place)
        if not (inner := only_folder(place)):
            break
        place = inner
    notes = [f"Read from {str(place.path)!r}"] if place is not root else []
    classes = {}
    for part, folder in (parts or {ALL: place}).items():
        while inner := only_folder(folder):
            folder = inner
        if not folder.filled():
            raise no_classes(root, folder, parts)
        classes[part] = [each for each in folder.folders if not of_runs(each)]
    for folders in classes.values():
        check_inner_parts(root, folders)
    return classes, notes


def only_folder(folder):
    """The one folder that holds the data: all classes, not one of them."""
    filled = folder.filled()
    is_above = len(filled) == 1 and not folder.pictures and filled[0].filled()
    return filled[0] if is_above else None


def parts_in(folder):
    """The folders in it that are parts: training, and test or validation.

    What their names say else is the same: `seg_train` and `seg_test`.
    """
    groups = {}
    for each in folder.filled():
        part, rest = part_of(each.path.name)
        if part:
            groups.setdefault(rest, {}).setdefault(part, each)
    found = next(filter(has_test, groups.values()), {})
    return {part: found[part] for part in PARTS if part in found}


def check_lonely(root, place):
    """Raises UserError where one part alone would be taken for a class."""
    filled = place.filled()
    for folder in filled:
        part, rest = part_of(folder.path.name)
        has_classes = bool(folder.filled())
        # A class may be called train, but hardly test.
        is_part = has_classes or part == "test" and len(filled) > 1
        if rest or part not in ("train", "test") or not is_part:
            continue
        advice = "add the other, or give the folder "
        advice += repr(str(folder.path))
        if not has_classes:
            advice = "move the classes into a folder train, or rename "
            advice += f"{folder.path.name!r} if it is a class"
        raise UserError(
            f"expected train/CLASS and test/CLASS in {str(root.path)!r}, "
            f"received {folder.path.name} alone: {advice}"
        )


def check_inner_parts(root, classes):
    """Raises UserError where the classes hold the parts, or are parts."""
    inner = [sorted(map(class_name, each.filled())) for each in classes]
    if len(inner) > 1 and all(len(each) > 1 for each in inner):
        # Folds, or parts in another language: all have the same classes.
        if all(each == inner[0] for each in inner):
            received = listed(list(map(class_name, classes)))
            raise UserError(
                f"expected a folder for each class in {str(root.path)!r}, "
                f"received {received}, of which each has the folders "
                f"{listed(inner[0])}: call the parts train and test, or put "
                "the pictures right into the class folders"
            )
    for folder in classes:
        if parts := parts_in(folder):
            inner = " and ".join(
                f"{folder.path.name}/{each.path.name}"
                for each in parts.values()
            )
            raise UserError(
                f"expected train/CLASS and test/CLASS in {str(root.path)!r}, "
                f"received {inner}: put the classes into the parts"
            )


def no_classes(root, folder, parts):
    """The `UserError` for a folder without class folders, one of `parts`."""
    kinds = by_kind(root.left_out())
    if not any_picture(folder):
        received = "none with pictures"
        advice = "put the pictures in CLASS/ or in train/CLASS/ and test/CLASS/"
        if kinds:
            received += f", but {listed(kinds)}"
            advice += ", or name a file of arrays"
    else:
        received = "pictures that lie directly in it"
        advice = "name the folder above, if this is one class, or sort them "
        advice += "into CLASS/"
        if parts:
            name = folder.path.name
            advice = f"sort them into {name}/CLASS/"
            train = parts["train"]
            if train.filled():
                advice += f", or give the folder {str(train.path)!r} alone"
    return UserError(
        f"expected a folder for each class in {str(folder.path)!r}, received "
        f"{received}: {advice}"
    )


def count_rest(root, classes):
    """Notes on what is read from deeper folders, and on what is not read."""
    used = [c for folders in classes.values() for c in folders]
    deeper = sum(len(c.all_pictures()) - len(c.pictures) for c in used)
    notes = []
    if deeper:
        notes.append(
            f"{counted(deeper, 'picture')} in folders within the class "
            "folders, read as of the class"
        )
    read = {path for each in used for path in each.all_pictures()}
    beside = collections.Counter()
    for path in root.all_pictures():
        if path not in read:
            beside[path.parent.relative_to(root.path).as_posix()] += 1
    return notes + note_left_out(root.left_out(), beside)
