"""What `--dataset` names, as one `Dataset`.

`load` takes a name or a path:

    digits                         drawn on the spot, needs no network
    mnist, fashion_mnist, cifar10  downloaded once by Keras
    FILE.npz                       x_train, y_train, x_test, y_test
    FOLDER of these four as .npy   or as idx files, named as MNIST's
    FILE.csv                       a label and the pixels of a square in a row
    FOLDER/train/CLASS/*.png       pictures, and FOLDER/test/CLASS/*.png
    FOLDER/CLASS/*.png             pictures, a part of them kept for the test
    pairs:ONE OF THESE             two of its pictures in each

Names are read as people write them (`Training`, `val`, `X_test`), see
`parts`, and a folder may be packed into another.
"""

import contextlib
import dataclasses
import os

import keras
import numpy as np

from capsnet.data import arrays
from capsnet.data.datasets import Dataset
from capsnet.data.digits import DIGIT_NAMES, draw_digits
from capsnet.data.folders import count_classes, load_pictures
from capsnet.data.labels import index_labels
from capsnet.data.layouts import locate
from capsnet.data.parts import complete
from capsnet.data.pictures import adapt
from capsnet.data.trees import scan
from capsnet.data.values import check_parts
from capsnet.files import split_pairs
from capsnet.messages import UserError, counted

KERAS_DATASETS = {
    "mnist": DIGIT_NAMES,
    "fashion_mnist": (
        "T-shirt/top,Trouser,Pullover,Dress,Coat,"
        "Sandal,Shirt,Sneaker,Bag,Ankle boot"
    ).split(","),
    "cifar10": (
        "airplane,automobile,bird,cat,deer,dog,frog,horse,ship,truck"
    ).split(","),
}
BUILT_IN = ("digits", *KERAS_DATASETS)
ACCEPTED = (
    "digits, mnist, fashion_mnist, cifar10, an .npz or .csv file, a folder "
    "with .npy files or the four idx files of MNIST, or a folder of pictures "
    "(train/CLASS and test/CLASS, or CLASS alone), or one of these after pairs:"
)
PACKED = (".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".rar", ".7z")
# How the files and folders of each kind are read.
READERS = {
    "npz": arrays.load_npz,
    "npy": arrays.load_npy,
    "idx": arrays.load_idx,
    "csv": arrays.load_csv,
}


def load(
    name,
    image_size=None,
    grayscale=False,
    test_fraction=None,
    skip_unreadable=False,
    seed=0,
    usual_fraction=None,
):
    """Loads a data set, as a `Dataset`.

    Args:
        name: One of the names or paths in the module's docstring.
        image_size: `(height, width)` that all pictures are resized to.
        grayscale: Boolean, turn colour into grey (ITU-R 601-2 luma).
        test_fraction: Float in (0, 1), the part of each class that is kept
            where there is no test part; `usual_fraction`, or else 0.2, if
            `None`. It is refused where there is one.
        skip_unreadable: Boolean, leave out what cannot be read in a folder.
        seed: Integer, draws the digits of `"digits"`, and nothing else.

    Raises:
        UserError: If the data set is missing, broken or not usable.
    """
    pairs, name = split_pairs(str(name))
    with _faults(name):
        kind, place = _find(name)
        _check_test_fraction(name, kind, test_fraction)
        if kind == "pictures":
            asked = image_size, 1 if grayscale else None, skip_unreadable
            read = load_pictures(place, *asked)
        else:
            read = _load_arrays(name, kind, place, seed)
        parts, class_names, files, within, notes = read
        parts, scaled = check_parts(name, parts)
        parts = _with_names(parts, files)
        parts, chosen = complete(
            name, parts, within, test_fraction, usual_fraction
        )
        notes = notes + scaled + chosen
        labels = {part: y for part, (_, y, _) in parts.items()}
        if kind == "pictures":
            notes += count_classes(name, labels, class_names)
        labels, class_names = index_labels(name, labels, class_names)
        if pairs:
            _check_pairs(name, labels)
        own = {
            part: (adapt(x, image_size, grayscale), labels[part])
            for part, (x, _, _) in parts.items()
        }
    return Dataset(
        *(*own["train"], *own["test"], class_names),
        name=pairs + name,
        notes=notes,
        pairs=bool(pairs),
        validation=own.get("val"),
        test_names=parts["test"][2].tolist(),
    )


def _with_names(parts, files):
    """Parts `(x, y, names)`: of each picture its file, or its row."""
    return {
        part: (x, y, np.array(files.get(part) or range(len(y)), dtype=str))
        for part, (x, y) in parts.items()
    }


@contextlib.contextmanager
def _faults(name):
    """What the machine cannot do becomes a `UserError`."""
    try:
        yield
    except MemoryError:
        raise UserError(
            f"expected pictures that fit in memory, received {name!r}: use "
            "fewer pictures or a smaller --image_size"
        ) from None
    except OSError as error:
        raise UserError(
            "expected files that can be read, received "
            f"{str(error.filename or name)!r} ({error.strerror or error}): "
            "check the permissions and the disk"
        ) from None


def is_downloaded(name):
    """Whether a data set comes from the network, once."""
    return split_pairs(name)[1] in KERAS_DATASETS


def _load_arrays(name, kind, place, seed):
    """As `load_pictures`, without files, the class names perhaps `None`."""
    if kind in READERS:
        parts, names, notes = READERS[kind](place)
        return parts, names, {}, None, notes
    if kind == "digits":
        train, test = draw_digits(seed)
    else:
        train, test = _load_keras(name)
    names = KERAS_DATASETS.get(name, DIGIT_NAMES)
    return {"train": train, "test": test}, names, {}, None, []


def hold_out(dataset, fraction, seed):
    """Takes a part of the training pictures away for validation.

    Every class keeps at least one training picture; `seed` decides which
    ones are taken. Those that are held out make pairs of their own.

    Returns:
        The `Dataset` without them, their pictures, their labels.

    Raises:
        UserError: If no picture would be held out, or all of a class; or of
            pairs pictures of one class only.
    """
    y = dataset.y_train
    count = round(fraction * len(y)) if 0 < fraction < 1 else 0
    order = np.random.default_rng(seed).permutation(len(y))
    # The first of each class in the order comes before all the others, so
    # that the end of the order, which is held out, never takes a whole class.
    if y.ndim == 1:
        first = np.unique(y[order], return_index=True)[1]
    else:
        first = np.unique(y[order].argmax(0))
    order = np.concatenate([order[first], np.delete(order, first)])
    if not 1 <= count <= len(y) - len(first):
        raise UserError(
            f"expected --val_fraction to hold out 1 to {len(y) - len(first)} "
            f"of {counted(len(y), 'training picture')}, received {fraction}, "
            f"which is {count}: choose another fraction"
        )
    kept, held = np.sort(order[:-count]), np.sort(order[-count:])
    if dataset.pairs and np.all(y[held] == y[held[0]]):
        raise UserError(
            "expected --val_fraction to hold out two classes, to make pairs "
            f"of, received {fraction}, which is {counted(count, 'picture')} of "
            "one: choose a larger fraction"
        )
    remaining = dataclasses.replace(
        dataset, x_train=dataset.x_train[kept], y_train=y[kept]
    )
    return remaining, dataset.x_train[held], y[held]


def reorder(dataset, class_names):
    """The same data set, its classes in the order of `class_names`."""
    place = np.array([class_names.index(name) for name in dataset.class_names])
    validation = dataset.validation or (None, dataset.y_test)
    labels = [
        place[y] if y.ndim == 1 else y[:, np.argsort(place)]
        for y in (dataset.y_train, dataset.y_test, validation[1])
    ]
    return dataclasses.replace(
        dataset,
        y_train=labels[0],
        y_test=labels[1],
        class_names=list(class_names),
        validation=dataset.validation and (validation[0], labels[2]),
    )


def _check_pairs(name, labels):
    """Raises UserError where there are no two classes to make pairs of."""
    if labels["train"].ndim == 2:
        raise UserError(
            f"expected pictures with one label each after pairs:, received "
            f"{name!r} with several a picture: leave pairs: out"
        )
    for part, y in labels.items():
        if len(np.unique(y)) < 2:
            raise UserError(
                f"expected two classes at least in the {part} part, to make "
                f"pairs of, received {name!r} with one: add pictures of another"
            )


def _find(name):
    """What a name or path is, and the path or `layouts.Folder` to read."""
    path = os.path.expanduser(name)
    if name in BUILT_IN:
        return name, None
    if os.path.isdir(path):
        return locate(scan(path))
    suffix = os.path.splitext(path)[1].lower()
    if os.path.isfile(path) and suffix in (".npz", ".csv"):
        return suffix[1:], path
    if os.path.isfile(path):
        advice = f"store the pictures and labels {arrays.IN_NPZ}"
        if suffix in PACKED:
            advice = "unpack it, and give the folder"
        raise UserError(
            f"expected an .npz or .csv file, received {name!r}: {advice}"
        )
    raise UserError(
        f"expected --dataset to be {ACCEPTED}, received {name!r}: check the "
        "name or the path"
    )


def _check_test_fraction(name, kind, test_fraction):
    """Raises UserError for what is no fraction, and where none is kept.

    Where only the parts tell, `parts.complete` does.
    """
    if test_fraction is None:
        return
    if kind in BUILT_IN or not 0 < test_fraction < 1:
        raise UserError(
            "expected --test_fraction between 0 and 1, with data that have no "
            f"test part, received {test_fraction} with {name!r}: give 0.2 for "
            "example, or leave it out"
        )


def _load_keras(name):
    try:
        return getattr(keras.datasets, name).load_data()
    except MemoryError:
        raise
    # Keras raises a plain Exception when a download fails.
    except Exception as error:
        cause = str(error).strip() or type(error).__name__
        raise UserError(
            f"expected to download {name}, received {cause!r}: "
            "without a network use --dataset digits, or --dataset PATH with "
            "an .npz file or a folder of the idx files"
        ) from None
