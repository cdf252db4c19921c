"""Data sets that are files of arrays: `.npz`, and MNIST's idx files.

Files are not trusted: no array is unpickled, a broken file, whatever is wrong
with it, is a `UserError`, and none makes the program allocate more than its
own bytes, unpacked, need.
"""

import gzip
import io
import math
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from capsnet.data.pictures import PICTURE_MODES
from capsnet.messages import UserError, plain

PARTS = ("x_train", "y_train", "x_test", "y_test")


def check_parts(name, train, test):
    """The two parts, each `(x, y)`, as uint8 pictures and integer labels.

    Returns:
        Pictures of shape `(n, height, width, channels)` of both parts, and
        their labels of shape `(n,)`, or `(n, n_class)` where a picture may
        have several: uint8 rows of zeros and ones.
    """
    pictures, labels = [], []
    for part, (x, y) in (("train", train), ("test", test)):
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or x.shape[3] not in PICTURE_MODES or 0 in x.shape:
            raise UserError(
                f"expected x_{part} of shape (n, height, width) or (n, height, "
                f"width, channels), with 1, 3 or 4 channels and nothing empty, "
                f"received {x.shape} in {name!r}: reshape it"
            )
        pictures.append(x)
        labels.append(_check_labels(name, part, len(x), y))
    if pictures[0].shape[1:] != pictures[1].shape[1:]:
        raise UserError(
            "expected training and test pictures of one shape, received "
            f"{pictures[0].shape[1:]} and {pictures[1].shape[1:]} in {name!r}: "
            "store them in one shape"
        )
    if labels[0].shape[1:] != labels[1].shape[1:]:
        raise UserError(
            "expected y_train and y_test of one kind, received shapes "
            f"{labels[0].shape} and {labels[1].shape} in {name!r}: store "
            "integers, or rows of as many zeros and ones"
        )
    if labels[0].ndim == 2 and all((y.sum(1) == 1).all() for y in labels):
        labels = [y.argmax(1) for y in labels]  # One-hot.
    return _to_uint8(name, pictures), labels


def _check_labels(name, part, count, y):
    """Integers of shape `(count,)`, or rows of zeros and ones as uint8."""
    if y.dtype.kind in "iu" and y.shape in ((count,), (count, 1)):
        return y.reshape(-1)
    if y.ndim == 2 and len(y) == count and y.shape[1] > 1:
        if np.isin(y, (0, 1)).all():
            return y.astype(np.uint8)
    raise UserError(
        f"expected y_{part} to be {count} integers, one a picture, or {count} "
        f"rows of zeros and ones, received {y.dtype} of shape {y.shape} in "
        f"{name!r}: store the class of each picture, or a row with a one for "
        "each of its classes"
    )


def index_labels(name, y_train, y_test, class_names=None):
    """Labels counted from 0, and the name of each class.

    The `class_names`, if not `None`, are in the order of the labels, which
    stay as they are where they are rows of zeros and ones.
    """
    rows = y_train.ndim == 2
    classes = np.unique(np.nonzero(y_train)[1] if rows else y_train)
    received = np.unique(np.nonzero(y_test)[1] if rows else y_test)
    unknown = np.setdiff1d(received, classes)
    if len(unknown):
        raise UserError(
            "expected every class of the test part in the training part, "
            f"received {name!r} with class {unknown[0]} in the test part "
            "only: add training pictures or remove the test ones"
        )
    if len(classes) < 2:
        raise UserError(
            f"expected at least two classes, received {name!r} with one: add "
            "another"
        )
    if rows:
        classes = np.arange(y_train.shape[1])
    if class_names is None:
        class_names = classes.astype(str).tolist()
    elif not rows and 0 <= classes[0] and classes[-1] < len(class_names):
        classes = np.arange(len(class_names))
    elif len(classes) != len(class_names):
        raise UserError(
            f"expected {len(classes)} class names, received "
            f"{len(class_names)} in {name!r}: correct class_names"
        )
    class_names = [plain(each) for each in class_names]
    # Names that a reader cannot tell apart are equal, too.
    shown = [" ".join(each.split()) for each in class_names]
    twice = [each for each in shown if shown.count(each) > 1]
    if twice:
        raise UserError(
            "expected class names that differ by more than spaces, received "
            f"{twice[0]!r} twice in {name!r}: rename one"
        )
    labels = y_train, y_test
    if not rows:
        labels = [np.searchsorted(classes, y).astype(np.int64) for y in labels]
    return labels, class_names


def load_npz(path):
    """The training part, `(x, y)`, the test part, class names or `None`."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                names = set(archive.namelist())
                missing = [key for key in PARTS if f"{key}.npy" not in names]
                if missing:
                    raise UserError(
                        f"expected the arrays {', '.join(PARTS)} in {path!r}, "
                        f"received none called {', '.join(missing)}: add them"
                    )
                arrays = [_read_member(archive, key, "biuf") for key in PARTS]
                class_names = None
                if "class_names.npy" in names:
                    class_names = _read_member(archive, "class_names", "U")
                    class_names = class_names.ravel().tolist()
        except (UserError, MemoryError):
            raise
        # A broken zip or header raises nearly everything, even SyntaxError.
        except Exception:
            raise UserError(
                f"expected an .npz file, received {path!r}, which is broken: "
                "copy or write it again"
            ) from None
    return (arrays[:2], arrays[2:]), class_names


def idx_files(folder):
    """The four idx files of a folder, as far as they are there, by role."""
    pattern = re.compile(
        r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?", re.ASCII
    )
    found = {}
    for path in sorted(Path(folder).iterdir()):
        match = pattern.fullmatch(path.name)
        if match and path.is_file():
            found[match[1], match[2]] = str(path)
    return found


def load_idx(folder):
    """The training part, `(x, y)`, and the test part."""
    files, arrays = idx_files(folder), []
    for part in ("train", "t10k"):
        for role, ranks in (("images", (3, 4)), ("labels", (1,))):
            if (part, role) not in files:
                raise UserError(
                    f"expected four idx files in {folder!r}, received none "
                    f"called {part}-{role}-idx{ranks[0]}-ubyte: add it"
                )
            arrays.append(_read_idx(files[part, role], ranks))
    return arrays[:2], arrays[2:]


def _to_uint8(name, pictures):
    """Values up to 255 stay; where none is above 1 they count as 0 to 1."""
    low = min(float(x.min()) for x in pictures)
    tops = [float(x.max()) for x in pictures]
    # Written so that not-a-number fails too.
    if not (low >= 0 and max(tops) <= 255):
        raise UserError(
            "expected pictures with values from 0 to 255 (or from 0 to 1), "
            f"received values from {low:g} to {max(tops):g} in {name!r}: store "
            "them as uint8"
        )
    # A black part has any scale. Parts up to 1 and up to 255 are only clear
    # where the types tell them apart: fractions or booleans, and integers.
    kinds = {top > 1: x.dtype.kind for x, top in zip(pictures, tops) if top}
    if len(kinds) == 2 and kinds[False] + kinds[True] not in (
        "fi fu bi bu bf".split()
    ):
        raise UserError(
            "expected one scale, from 0 to 255 or from 0 to 1, received "
            f"x_train up to {tops[0]:g} and x_test up to {tops[1]:g} in "
            f"{name!r}: store both as uint8"
        )
    scaled = []
    for x, top in zip(pictures, tops):
        if top <= 1:
            x = x * np.float32(255)
        if x.dtype.kind == "f":
            x = np.rint(x)
        scaled.append(x.astype(np.uint8, copy=False))
    return scaled


def _read_member(archive, key, kinds):
    """Reads one array; what its header claims has to be there."""
    member = archive.getinfo(f"{key}.npy")
    is_known = member.compress_type in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    )
    if not is_known or member.compress_size > os.path.getsize(archive.filename):
        raise ValueError("compression")
    content = archive.read(member)
    # NumPy refuses headers of more than 10,000 bytes.
    head = io.BytesIO(content[:16_384])
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(head)]
    shape, is_fortran, dtype = read_header(head)
    if dtype.kind not in kinds:
        wanted = "strings" if kinds == "U" else "numbers"
        raise UserError(
            f"expected {wanted} in {key}, received {dtype} in "
            f"{archive.filename!r}: store {wanted}"
        )
    if head.tell() + math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError("size")
    order = "F" if is_fortran else "C"
    return np.ndarray(shape, dtype, content, head.tell(), order=order)


def _read_idx(path, ranks):
    """Reads 0, 0, type 8 (uint8), the rank, the sizes, then the values."""
    content = Path(path).read_bytes()
    try:
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        zeros, code, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
        start = 4 + 4 * rank
        is_whole = len(content) == start + math.prod(shape)
        if zeros == 0 and code == 8 and rank in ranks and is_whole:
            return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except (OSError, EOFError, struct.error, zlib.error):
        pass
    raise UserError(
        f"expected an idx file of {' or '.join(map(str, ranks))} dimensions "
        f"of bytes, received {path!r}, which is broken or something else: "
        "copy it again"
    )
