"""Labels: read as people have them, counted from 0, each class named."""

import numpy as np

from capsnet.messages import UserError, plain

# Whole numbers above it are not all different as floats.
LARGEST_FLOAT = 2**53


def check_labels(name, key, count, y):
    """Labels of shape `(count,)`, or rows of zeros and ones as uint8.

    Integers, booleans and strings stay; whole numbers that are stored as
    floats become integers.
    """
    if y.shape in ((count,), (count, 1)):
        y, kind = y.reshape(-1), y.dtype.kind
        if kind in "iub":
            return y
        if kind == "U":
            return y
        if kind == "S":
            return decoded(name, key, y)
        if kind == "f" and (y == np.rint(y)).all():
            if np.abs(y).max(initial=0) < LARGEST_FLOAT:
                return y.astype(np.int64)
    elif y.ndim == 2 and len(y) == count and y.shape[1] > 1:
        if y.dtype.kind in "iubf" and np.isin(y, (0, 1)).all():
            return y.astype(np.uint8)
    raise UserError(
        f"expected {key} to be {count} whole numbers or names, one a picture, "
        f"or {count} rows of zeros and ones, received {y.dtype} of shape "
        f"{y.shape} in {name!r}: store the class of each picture, or a row "
        "with a one for each of its classes"
    )


def decoded(name, key, y):
    """Names that are stored as bytes, as strings."""
    try:
        return np.char.decode(y, "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected the names in {key} in UTF-8, received {name!r} "
            f"({error}): store them as strings"
        ) from None


def same_kind(name, labels):
    """Labels by part, rows with a single one each as their numbers.

    Raises:
        UserError: If some parts have rows or names, and others not.
    """
    kinds = {(y.shape[1:], y.dtype.kind == "U") for y in labels.values()}
    if len(kinds) > 1:
        shapes = " and ".join(str(y.shape) for y in labels.values())
        shapes += f" of {' and '.join(str(y.dtype) for y in labels.values())}"
        raise UserError(
            "expected the labels of all parts to be of one kind, received "
            f"shapes {shapes} in {name!r}: store integers, or names, or rows "
            "of as many zeros and ones"
        )
    rows = all(y.ndim == 2 for y in labels.values())
    if rows and all((y.sum(1) == 1).all() for y in labels.values()):
        return {part: y.argmax(1) for part, y in labels.items()}  # One-hot.
    return labels


def index_labels(name, labels, class_names=None):
    """Labels counted from 0, by part, and the name of each class.

    The `class_names`, if not `None`, are in the order of the labels, which
    stay as they are where they are rows of zeros and ones.
    """
    rows = labels["train"].ndim == 2
    present = {
        part: np.unique(np.nonzero(y)[1] if rows else y)
        for part, y in labels.items()
    }
    classes = present["train"]
    for part, found in present.items():
        unknown = np.setdiff1d(found, classes)
        if len(unknown):
            raise UserError(
                f"expected every class of the {part} part in the training "
                f"part, received {name!r} with class {unknown[0]} in the "
                f"{part} part only: add training pictures or remove the "
                f"{part} ones"
            )
    if len(classes) < 2:
        raise UserError(
            f"expected at least two classes, received {name!r} with one: add "
            "another"
        )
    if rows:
        classes = np.arange(labels["train"].shape[1])
    if class_names is None:
        class_names = classes.astype(str).tolist()
    places = _places(name, classes, class_names, rows)
    class_names = [plain(each) for each in class_names]
    check_names(name, class_names)
    if not rows:
        labels = {
            part: places[np.searchsorted(classes, y)]
            for part, y in labels.items()
        }
    return labels, class_names


def _places(name, classes, class_names, rows):
    """The place of each class in `class_names`, int64.

    Names may be those of more classes than there are, but not in `rows`.
    """
    count = len(class_names)
    if classes.dtype.kind == "U" and np.isin(classes, class_names).all():
        places = [class_names.index(each) for each in classes]
    elif classes.dtype.kind != "U" and len(classes) == count:
        places = range(count)
    elif (
        not rows
        and classes.dtype.kind in "iu"
        and 0 <= classes[0] <= classes[-1] < count
    ):
        places = classes
    else:
        raise UserError(
            f"expected {len(classes)} class names, received {count} in "
            f"{name!r}: correct class_names"
        )
    return np.array(places, dtype=np.int64)


def check_names(name, class_names):
    """Raises UserError where a reader cannot tell two of the names apart."""
    shown = [" ".join(plain(each).split()) for each in class_names]
    twice = [each for each in shown if shown.count(each) > 1]
    if twice:
        raise UserError(
            "expected class names that differ by more than spaces, received "
            f"{twice[0]!r} twice in {name!r}: rename one"
        )
