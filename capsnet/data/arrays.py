"""Data sets that are arrays: `.npz`, `.npy`, MNIST's idx files, and `.csv`.

Files are not trusted: no array is unpickled, a broken file, whatever is wrong
with it, is a `UserError`, and none makes the program allocate more than its
own bytes, unpacked, need, or than the machine has.
"""

import contextlib
import gzip
import io
import math
import os
import re
import struct
import warnings
import zipfile
import zlib

import numpy as np

from capsnet.data.layouts import array_files, tables
from capsnet.data.parts import ALL, ROLES, choose_arrays
from capsnet.devices import require_memory
from capsnet.messages import UserError, counted, listed, reason_of, shorten

CLASS_NAMES = "class_names"
# Kinds of NumPy's types that pictures, labels and names may have.
X_KINDS, Y_KINDS, NAME_KINDS = "biuf", "biufUS", "U"
IN_NPZ = "in an .npz file (np.savez) as x_train, y_train, x_test, y_test"
LONGEST_LINE = 2**24
IDX_NAMES = "train-images, train-labels, t10k-images, t10k-labels"
# The types of idx files, by the code in their heads.
IDX_TYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
# NumPy refuses headers of more than 10,000 bytes.
LONGEST_HEADER = 16_384
# Deflate turns one byte into 1032 at most, so a file that claims more lies.
MAX_DEFLATE_RATIO = 1032
PIECE = 2**20
# EMNIST stores the columns of its pictures as rows.
EMNIST = "EMNIST stores its pictures transposed: turned upright"


def load_npz(path):
    """Pairs `(x, y)` by part, class names or `None`, and notes."""
    with opened_npz(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        arrays = [name for name in names if name != CLASS_NAMES]
        pairs, _ = choose_arrays(arrays, path)
        chosen = [name for pair in pairs.values() for name in pair]
        require_memory(
            sum(archive.getinfo(f"{name}.npy").file_size for name in chosen)
        )
        parts = {
            part: (
                read_member(archive, x, X_KINDS),
                read_member(archive, y, Y_KINDS),
            )
            for part, (x, y) in pairs.items()
        }
        class_names = None
        if CLASS_NAMES in names:
            class_names = read_member(archive, CLASS_NAMES, NAME_KINDS)
            class_names = class_names.ravel().tolist()
    return parts, class_names, []


def load_npy(folder):
    """The same of a `Folder` with a file for each array."""
    files = array_files(folder, "npy")
    class_names = files.pop(CLASS_NAMES, None)
    if class_names is not None:
        class_names = read_file(class_names, NAME_KINDS).ravel().tolist()
    pairs, _ = choose_arrays(files, folder.path)
    parts = {
        part: (read_file(files[x], X_KINDS), read_file(files[y], Y_KINDS))
        for part, (x, y) in pairs.items()
    }
    return parts, class_names, []


def load_idx(folder):
    """The same of a `Folder` with idx files, named as MNIST's.

    EMNIST's and QMNIST's names have something before that.
    """
    files = array_files(folder, "idx")
    pairs, of_set = choose_arrays(files, folder.path, IDX_NAMES)
    parts = {
        part: (read_idx(files[x], (3, 4)), read_idx(files[y], (1, 2)))
        for part, (x, y) in pairs.items()
    }
    for part, (x, y) in parts.items():
        if y.ndim == 2:
            # The class comes first of what QMNIST knows of a digit.
            parts[part] = x, y[:, 0]
    return upright(of_set, parts)


def load_csv(place):
    """The same of a `.csv` file, or of a `Folder` with one for each part."""
    if isinstance(place, str):
        paths = {ALL: place}
    else:
        paths, *others = tables(place)
        if others:
            names = [paths["train"].name, *(o["train"].name for o in others)]
            raise UserError(
                f"expected one data set in {str(place.path)!r}, received "
                f"{listed(names)}: keep one in a folder of its own"
            )
    parts = {part: read_table(path) for part, path in paths.items()}
    first = next(iter(paths.values()))
    return upright(os.path.basename(first), parts)


def upright(of_set, parts):
    """EMNIST's pictures as they are to be seen; others as they are."""
    if not of_set.casefold().startswith("emnist"):
        return parts, None, []
    parts = {part: (x.swapaxes(1, 2), y) for part, (x, y) in parts.items()}
    return parts, None, [EMNIST]


@contextlib.contextmanager
def opened_npz(path):
    """A zip file; what is wrong with it is a `UserError` that names it."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except (UserError, MemoryError):
            raise
        # A broken zip or header raises nearly everything, even SyntaxError.
        except Exception:
            raise UserError(
                f"expected an .npz file, received {str(path)!r}, which is "
                "broken: copy or write it again"
            ) from None


def read_member(archive, key, kinds):
    """One array of a zip file, and nothing that packs better than deflate."""
    member = archive.getinfo(f"{key}.npy")
    packed = min(member.compress_size, os.path.getsize(archive.filename))
    is_known = member.compress_type in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
    )
    if not is_known or member.file_size > MAX_DEFLATE_RATIO * packed:
        raise ValueError("compression")
    with archive.open(member) as file:
        return read_array(file, member.file_size, kinds, key, archive.filename)


def read_file(path, kinds):
    """The array of an `.npy` file, or of an `.npz` file with only one."""
    if path.suffix == ".npz":
        with opened_npz(path) as archive:
            (name,) = archive.namelist()
            return read_member(archive, name.removesuffix(".npy"), kinds)
    try:
        with open(path, "rb") as file:
            size = os.path.getsize(path)
            return read_array(file, size, kinds, path.stem, str(path))
    except (UserError, MemoryError, OSError):
        raise
    except Exception:
        raise UserError(
            f"expected an .npy file, received {str(path)!r}, which is broken: "
            "copy or write it again"
        ) from None


def read_array(file, size, kinds, key, path):
    """Reads an array in NumPy's format; what its header claims is there."""
    start = file.read(LONGEST_HEADER)
    head = io.BytesIO(start)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[np.lib.format.read_magic(head)]
    shape, is_fortran, dtype = read_header(head)
    if dtype.kind not in kinds:
        wanted = {X_KINDS: "numbers", NAME_KINDS: "strings"}.get(
            kinds, "numbers or strings"
        )
        raise UserError(
            f"expected {wanted} in {key}, received {dtype} in {str(path)!r}: "
            f"store {wanted}"
        )
    if head.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("size")
    content = read_pieces(file, size, start)
    order = "F" if is_fortran else "C"
    return np.ndarray(shape, dtype, content, head.tell(), order=order)


def read_pieces(file, size, start=b""):
    """So many bytes, of which the first are read; they may not be there."""
    require_memory(size)
    content = bytearray(start)
    while len(content) < size:
        piece = file.read(min(PIECE, size - len(content)))
        if not piece:
            raise EOFError
        content += piece
    return content


def read_idx(path, ranks):
    """Reads 0, 0, the type, the rank, the sizes, then the values."""
    try:
        with open(path, "rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if is_packed else raw
            zeros, code, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            dtype = np.dtype(IDX_TYPES[code])
            size = math.prod(shape) * dtype.itemsize
            most = os.path.getsize(path) * (MAX_DEFLATE_RATIO**is_packed)
            if zeros == 0 and rank in ranks and size <= most:
                content = read_pieces(file, size)
                if not file.read(1):
                    return np.frombuffer(content, dtype).reshape(shape)
    except OSError as error:
        if error.errno:  # Not of gzip.
            raise
    except (EOFError, KeyError, struct.error, zlib.error):
        pass
    raise UserError(
        f"expected an idx file of {' or '.join(map(str, ranks))} dimensions, "
        f"received {str(path)!r}, which is broken or something else: copy it "
        "again"
    )


def read_table(path):
    """Pictures and labels from a table: a label and a square in each row.

    The label stands where the heading says so; without one it comes first.
    """
    require_memory(2 * os.path.getsize(path))
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        heads = file.readline(LONGEST_LINE).casefold().strip().split(",")
    heads = [head.strip(' "') for head in heads]
    is_named = not all(re.fullmatch(r"[-+.e\d]+", head) for head in heads)
    places = [i for i, head in enumerate(heads) if head in ROLES["y"]]
    place = (places or [None])[0] if is_named else 0
    side = math.isqrt(len(heads) - 1)
    if place is None or side < 2 or side * side != len(heads) - 1:
        shown = listed([shorten(head, 20) for head in heads], 5)
        raise UserError(
            "expected a table with a column label and one for each pixel of "
            f"square pictures, received {str(path)!r} with "
            f"{counted(len(heads), 'column')} ({shown}): name one that has, or "
            f"store the pictures and labels {IN_NPZ}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # No rows.
            values = np.loadtxt(
                path,
                np.float32,
                delimiter=",",
                skiprows=int(is_named),
                ndmin=2,
                encoding="utf-8-sig",
            )
        if values.shape[1] != len(heads):
            raise ValueError(f"rows of {values.shape[1]} numbers")
    except (ValueError, UserWarning) as error:
        raise UserError(
            f"expected a table of numbers, received {str(path)!r} "
            f"({reason_of(error)}): store the pictures and labels {IN_NPZ}"
        ) from None
    x = np.delete(values, place, axis=1).reshape(-1, side, side)
    return x, values[:, place]
