"""arrays."""

import gzip
import io
import math
import os
import re
import struct
import zipfile
import zlib

import numpy as np

from capsnet.data.pictures import MAX_DEFLATE_RATIO, PICTURE_MODES
from capsnet.messages import UserError

# NumPy refuses headers of more than 10,000 bytes.
MAX_HEADER = 16_384


def check_parts(name, train, test):
    """Pictures as uint8 and labels as int64, or an error."""
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
        if y.ndim == 2 and y.shape[1] > 1:
            raise UserError(
                f"expected y_{part} of shape (n,), received {y.shape} in "
                f"{name!r}: if the labels are one-hot, store their argmax"
            )
        if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
            raise UserError(
                f"expected y_{part} to be {len(x)} integers, one a picture, "
                f"received {y.dtype} of shape {y.shape} in {name!r}: store "
                "the class of each picture"
            )
        pictures.append(x)
        labels.append(y.reshape(-1))
    if pictures[0].shape[1:] != pictures[1].shape[1:]:
        raise UserError(
            "expected training and test pictures of one shape, "
            "(height, width, channels), received "
            f"{pictures[0].shape[1:]} and {pictures[1].shape[1:]} in {name!r}: "
            "store them in one shape"
        )
    return to_uint8(name, pictures), labels


def to_uint8(name, pictures):
    """Values up to 255 stay; where none is above 1 they count as 0 to 1."""
    if any(x.dtype.kind not in "buif" for x in pictures):
        raise UserError(
            "expected pictures of numbers, received "
            f"{pictures[0].dtype} and {pictures[1].dtype} in {name!r}: store "
            "them as uint8"
        )
    low = min(float(x.min()) for x in pictures)
    high = max(float(x.max()) for x in pictures)
    # Written so that not-a-number fails too.
    if not (low >= 0 and high <= 255):
        raise UserError(
            "expected pictures with values from 0 to 255 (or from 0 to 1), "
            f"received values from {low:g} to {high:g} in {name!r}: store "
            "them as uint8"
        )
    # One part may be floats up to 1, and the other integers up to 255.
    tops = {}
    for x in pictures:
        tops.setdefault(x.dtype.kind in "bf", []).append(x.max())
    scaled = []
    for x in pictures:
        if max(tops[x.dtype.kind in "bf"]) <= 1:
            x = x * np.float32(255)
        if x.dtype.kind == "f":
            x = np.rint(x)
        scaled.append(x.astype(np.uint8, copy=False))
    return scaled


def index_labels(name, y_train, y_test, class_names):
    """Labels counted from 0, and the name of each class."""
    classes = np.unique(y_train)
    unknown = np.setdiff1d(y_test, classes)
    if len(unknown):
        raise UserError(
            "expected every class of the test part in the training part, "
            f"received {name!r} with class {unknown[0]} in the test part "
            "only: add training pictures or remove the test ones"
        )
    if len(classes) < 2:
        raise UserError(
            f"expected at least two classes, received {name!r} with one: add "
            "pictures of another class"
        )
    if class_names is None:
        class_names = [str(label) for label in classes]
    elif 0 <= classes[0] and classes[-1] < len(class_names):
        classes = np.arange(len(class_names))
    elif len(classes) != len(class_names):
        raise UserError(
            f"expected a class name for each of {len(classes)} classes, "
            f"received {len(class_names)} names in {name!r}: correct "
            "class_names"
        )
    labels = [
        np.searchsorted(classes, y).astype(np.int64) for y in (y_train, y_test)
    ]
    return labels, list(class_names)


def load_npz(path):
    """Reads the arrays of an .npz file, never unpickling one."""
    keys = ["x_train", "y_train", "x_test", "y_test"]
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = [key for key in keys if f"{key}.npy" not in names]
            if missing:
                raise UserError(
                    f"expected the arrays {', '.join(keys)} in {path!r}, "
                    f"received none called {', '.join(missing)}: add them"
                )
            arrays = [read_member(archive, key) for key in keys]
            class_names = None
            if "class_names.npy" in names:
                class_names = read_member(archive, "class_names")
    except (UserError, MemoryError):
        raise
    # A broken zip or header raises nearly everything, SyntaxError included.
    except Exception:
        raise UserError(
            f"expected an .npz file, received {path!r}, which is broken: "
            "copy or write it again"
        ) from None
    if class_names is not None:
        if class_names.ndim != 1 or class_names.dtype.kind != "U":
            raise UserError(
                "expected class_names to be a list of strings, received "
                f"{class_names.dtype} of shape {class_names.shape} in "
                f"{path!r}: write them as strings"
            )
        class_names = class_names.tolist()
    return (arrays[:2], arrays[2:]), class_names


def read_member(archive, key):
    """Reads one array, if the file can hold what its header claims."""
    member = archive.getinfo(f"{key}.npy")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("compression")
    with archive.open(member) as file:
        # The length of the header is a claim too.
        head = io.BytesIO(file.read(MAX_HEADER))
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(head)]
    shape, _, dtype = read_header(head)
    if dtype.kind not in "biufU":
        raise UserError(
            f"expected numbers in {key}, received {dtype} in "
            f"{archive.filename!r}: store them as uint8 or integers"
        )
    claimed = head.tell() + math.prod(shape) * dtype.itemsize
    compressed = min(member.compress_size, os.path.getsize(archive.filename))
    if (
        dtype.itemsize == 0
        or claimed != member.file_size
        or claimed > MAX_DEFLATE_RATIO * compressed
    ):
        raise ValueError("size")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def idx_files(folder):
    """The four idx files of a folder, as far as they are there, by role."""
    pattern = re.compile(
        r"(train|t10k)-(images|labels)[-.]idx\d-ubyte(\.gz)?", re.ASCII
    )
    found = {}
    for name in sorted(os.listdir(folder)):
        match = pattern.fullmatch(name)
        if match and os.path.isfile(os.path.join(folder, name)):
            found[match[1], match[2]] = os.path.join(folder, name)
    return found


def load_idx(folder):
    files = idx_files(folder)
    arrays = []
    for part in ("train", "t10k"):
        for kind, ranks in (("images", (3, 4)), ("labels", (1,))):
            if (part, kind) not in files:
                raise UserError(
                    f"expected four idx files in {folder!r}, received none "
                    f"called {part}-{kind}-idx{ranks[0]}-ubyte: add it"
                )
            arrays.append(read_idx(files[part, kind], ranks))
    return arrays[:2], arrays[2:]


def read_idx(path, ranks):
    """Reads 0, 0, type 8 (uint8), the rank, the sizes, then the values."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    try:
        with (gzip.open if is_gzip else open)(path, "rb") as file:
            zeros, kind, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            count = math.prod(shape)
            is_idx = zeros == 0 and kind == 8 and rank in ranks
            if is_idx and count <= size * (MAX_DEFLATE_RATIO if is_gzip else 1):
                values = file.read(count + 1)
                if len(values) == count:
                    return np.frombuffer(values, np.uint8).reshape(shape)
    except (OSError, EOFError, struct.error, zlib.error):
        pass
    raise UserError(
        f"expected an idx file of {' or '.join(map(str, ranks))} dimensions "
        f"of bytes, received {path!r}, which is broken or something else: "
        "copy it again"
    )
