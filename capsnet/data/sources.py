"""What `--dataset` names, as one `Dataset`.

`load` takes a name or a path:

    digits                         drawn on the spot, needs no network
    mnist, fashion_mnist, cifar10  downloaded once by Keras
    FILE.npz                       x_train, y_train, x_test, y_test
    FOLDER of four idx files       train-images-idx3-ubyte.gz, ...
    FOLDER/train/CLASS/*.png       pictures, and FOLDER/test/CLASS/*.png
    FOLDER/CLASS/*.png             pictures, a part of them kept for the test
    pairs:ONE OF THESE             two of its pictures in each
"""

import dataclasses
import os
from pathlib import Path

import keras
import numpy as np

from capsnet.data.arrays import (
    check_parts,
    idx_files,
    index_labels,
    load_idx,
    load_npz,
)
from capsnet.data.datasets import Dataset
from capsnet.data.digits import DIGIT_NAMES, draw_digits
from capsnet.data.folders import TEST_FRACTION, has_parts, load_pictures
from capsnet.data.pictures import adapt
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
    "digits, mnist, fashion_mnist, cifar10, an .npz file, a folder with the "
    "four idx files of MNIST, or a folder of pictures (train/CLASS and "
    "test/CLASS, or CLASS alone), or one of these after pairs:"
)


def load(
    name,
    image_size=None,
    grayscale=False,
    test_fraction=None,
    skip_unreadable=False,
    seed=0,
):
    """Loads a data set, as a `Dataset`.

    Args:
        name: One of the names or paths in the module's docstring.
        image_size: `(height, width)` that all pictures are resized to.
        grayscale: Boolean, turn colour into grey (ITU-R 601-2 luma).
        test_fraction: Float in (0, 1), the part of each class that a folder
            without `train` and `test` keeps for the test; 0.2 if `None`.
        skip_unreadable: Boolean, leave out what cannot be read in a folder.
        seed: Integer, draws the digits of `"digits"`, and nothing else.

    Raises:
        UserError: If the data set is missing, broken or not usable.
    """
    pairs, name = split_pairs(str(name))
    fraction = test_fraction or TEST_FRACTION
    try:
        kind = _kind(name)
        if test_fraction is not None:
            _check_test_fraction(name, kind, test_fraction)
        if kind == "pictures":
            parts, class_names, notes = load_pictures(
                Path(name).expanduser(),
                image_size,
                1 if grayscale else None,
                fraction,
                skip_unreadable,
            )
        else:
            (parts, class_names), notes = _load_arrays(name, kind, seed), []
        pictures, labels = check_parts(name, *parts)
        labels, class_names = index_labels(name, *labels, class_names)
        x_train, x_test = (adapt(x, image_size, grayscale) for x in pictures)
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
    if pairs:
        _check_pairs(name, *labels)
    return Dataset(
        *(x_train, labels[0], x_test, labels[1], class_names),
        name=pairs + name,
        notes=notes,
        pairs=bool(pairs),
    )


def is_downloaded(name):
    """Whether a data set comes from the network, once."""
    return split_pairs(name)[1] in KERAS_DATASETS


def _load_arrays(name, kind, seed):
    """Both parts as pictures and labels, and class names or `None`."""
    path = os.path.expanduser(name)
    if kind == "idx":
        return load_idx(path), None
    if kind == "npz":
        return load_npz(path)
    if kind == "digits":
        return draw_digits(seed), DIGIT_NAMES
    return _load_keras(name), KERAS_DATASETS[name]


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
    labels = [
        place[y] if y.ndim == 1 else y[:, np.argsort(place)]
        for y in (dataset.y_train, dataset.y_test)
    ]
    return dataclasses.replace(
        dataset,
        y_train=labels[0],
        y_test=labels[1],
        class_names=list(class_names),
    )


def _check_pairs(name, y_train, y_test):
    """Raises UserError where there are no two classes to make pairs of."""
    if y_train.ndim == 2:
        raise UserError(
            f"expected pictures with one label each after pairs:, received "
            f"{name!r} with several a picture: leave pairs: out"
        )
    if len(np.unique(y_test)) < 2:
        raise UserError(
            "expected two classes at least in the test part, to make pairs "
            f"of, received {name!r} with one: add test pictures of another"
        )


def _kind(name):
    """One of `BUILT_IN`, or what a path holds: "idx", "pictures", "npz"."""
    path = os.path.expanduser(name)
    if name in BUILT_IN:
        return name
    if os.path.isdir(path):
        return "idx" if idx_files(path) else "pictures"
    if os.path.isfile(path) and path.lower().endswith(".npz"):
        return "npz"
    raise UserError(
        f"expected --dataset to be {ACCEPTED}, received {name!r}: check the "
        "name or the path"
    )


def _check_test_fraction(name, kind, test_fraction):
    folder = Path(name).expanduser()
    is_one_part = kind == "pictures" and not has_parts(folder)
    if not (is_one_part and 0 < test_fraction < 1):
        raise UserError(
            "expected --test_fraction between 0 and 1, with a folder of "
            f"class folders only, received {test_fraction} with {name!r}: give "
            "0.2 for example, or leave it out"
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
