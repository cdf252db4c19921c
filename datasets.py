"""Where pictures come from, and the batches that training draws from them.

`load` takes what `--dataset` was given and returns a `Dataset`:

    digits                         drawn on the spot, needs no network
    mnist, fashion_mnist, cifar10  downloaded once by Keras
    FILE.npz                       x_train, y_train, x_test, y_test
    FOLDER of four idx files       train-images-idx3-ubyte.gz, ...
    FOLDER/train/CLASS/*.png       pictures, and FOLDER/test/CLASS/*.png
    FOLDER/CLASS/*.png             pictures, a part of them kept for the test

Files are not trusted: a broken one, whatever is wrong with it, is a
`DatasetError` of one line, and no file makes the program allocate more than
its own size allows.
"""

import dataclasses
import gzip
import hashlib
import io
import math
import os
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import keras
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

DIGIT_NAMES = [str(digit) for digit in range(10)]
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
# Of each class, where a folder has no test part of its own.
TEST_FRACTION = 0.2
BUILT_IN = ("digits", *KERAS_DATASETS)
ACCEPTED = (
    "digits, mnist, fashion_mnist, cifar10, an .npz file, a folder with the "
    "four idx files of MNIST, or a folder of pictures (train/CLASS and "
    "test/CLASS, or CLASS alone)"
)
PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
PICTURE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .bmp .gif .tif .tiff .webp".split()
)
PICTURE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Deflate turns one byte into 1032 at most, so a file that claims more lies.
MAX_DEFLATE_RATIO = 1032
# A blank picture of this size is believed, whatever the size of its file.
MAX_UNPROVEN_PIXELS = 2**22
# NumPy refuses headers of more than 10,000 bytes.
MAX_HEADER = 16_384

# The fonts that matplotlib ships and that have ten plain digits. No family of
# the test digits is among those of the training digits.
TRAIN_FONTS = (
    "DejaVuSans DejaVuSans-Bold DejaVuSans-BoldOblique DejaVuSans-Oblique "
    "DejaVuSansMono DejaVuSansMono-Bold DejaVuSansMono-BoldOblique "
    "DejaVuSansMono-Oblique DejaVuSerif DejaVuSerif-Bold "
    "DejaVuSerif-BoldItalic DejaVuSerif-Italic cmb10 cmr10 cmti10 cmtt10"
).split()
TEST_FONTS = (
    "STIXGeneral STIXGeneralBol STIXGeneralBolIta STIXGeneralItalic cmss10"
).split()
TRAIN_DIGITS, TEST_DIGITS = 10_000, 2_000
DIGIT_SIZE = 28
# Digits are drawn this many times larger, then averaged down.
OVERSAMPLING = 3


class DatasetError(ValueError):
    """A data set that cannot be used, told in one line."""

    def __init__(self, message):
        # A file name may hold a line break.
        super().__init__(" ".join(message.splitlines()))


@dataclasses.dataclass
class Dataset:
    """Pictures and labels, in a training and a test part.

    Args:
        x_train: uint8 array of shape `(n, height, width, channels)`.
        y_train: int64 array of shape `(n,)`, indices into `class_names`.
        x_test: Like `x_train`.
        y_test: Like `y_train`.
        class_names: List of strings, one a class.
        name: What `--dataset` was.
        notes: Lines for the user.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: list[str]
    name: str
    notes: list[str] = dataclasses.field(default_factory=list)


def load(
    name,
    image_size=None,
    grayscale=False,
    test_fraction=None,
    skip_unreadable=False,
    seed=0,
):
    """Loads a data set.

    Args:
        name: One of the names or paths in the module's docstring.
        image_size: `(height, width)` that all pictures are resized to.
        grayscale: Boolean, turn colour into grey (ITU-R 601-2 luma).
        test_fraction: Float in (0, 1), the part of each class that a folder
            without `train` and `test` keeps for the test; 0.2 if `None`.
        skip_unreadable: Boolean, leave out the pictures of a folder that
            cannot be read instead of stopping.
        seed: Integer, draws the digits of `"digits"`. The test pictures of
            `test_fraction` do not depend on it.

    Returns:
        A `Dataset`.

    Raises:
        DatasetError: If the data set is missing, broken or not usable.
    """
    name = str(name)
    path = os.path.expanduser(name)
    try:
        _check_test_fraction(name, path, test_fraction)
        if name not in BUILT_IN and _kind(path) == "pictures":
            parts, class_names, notes = _load_pictures(
                Path(path),
                image_size,
                1 if grayscale else None,
                test_fraction or TEST_FRACTION,
                skip_unreadable,
            )
        else:
            parts, class_names = _load_arrays(name, path, seed)
            notes = []
        pictures, labels = _check_parts(name, *parts)
        labels, class_names = _index_labels(name, *labels, class_names)
        x_train, x_test = (_adapt(x, image_size, grayscale) for x in pictures)
    except MemoryError:
        raise DatasetError(
            f"expected pictures that fit in memory, received {name!r}: use "
            "fewer pictures or a smaller --image_size"
        ) from None
    except OSError as error:
        raise DatasetError(
            f"expected files that can be read, received {name!r} "
            f"({error.strerror}): check its permissions"
        ) from None
    return Dataset(
        x_train, labels[0], x_test, labels[1], class_names, name, notes
    )


def counted(count, noun):
    """`1 picture`, `2 pictures`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def hold_out(dataset, fraction, seed):
    """Takes a part of the training pictures away for validation.

    Every class keeps at least one training picture.

    Args:
        dataset: A `Dataset`; it is left as it is.
        fraction: Float, the part of the training pictures to hold out.
        seed: Integer, decides which ones.

    Returns:
        The `Dataset` without them, their pictures, their labels.

    Raises:
        DatasetError: If no picture would be held out, or all of a class.
    """
    y = dataset.y_train
    count = round(fraction * len(y)) if math.isfinite(fraction) else 0
    order = np.random.default_rng(seed).permutation(len(y))
    # The first of each class in the order comes before all the others, so
    # that the end of the order, which is held out, never takes a whole class.
    first = np.unique(y[order], return_index=True)[1]
    order = np.concatenate([order[first], np.delete(order, first)])
    if not 1 <= count <= len(y) - len(first):
        raise DatasetError(
            f"expected --val_fraction to hold out 1 to {len(y) - len(first)} "
            f"of {counted(len(y), 'training picture')}, received {fraction}, "
            f"which is {count}: choose another fraction"
        )
    kept, held = np.sort(order[:-count]), np.sort(order[-count:])
    remaining = dataclasses.replace(
        dataset, x_train=dataset.x_train[kept], y_train=y[kept]
    )
    return remaining, dataset.x_train[held], y[held]


def reorder(dataset, class_names):
    """The same data set with its classes in another order.

    Args:
        dataset: A `Dataset`; it is left as it is.
        class_names: Its class names, in any order.
    """
    place = np.array([class_names.index(name) for name in dataset.class_names])
    return dataclasses.replace(
        dataset,
        y_train=place[dataset.y_train],
        y_test=place[dataset.y_test],
        class_names=list(class_names),
    )


def max_shift(shape, shift_fraction):
    """Largest shift, in whole pixels, as `(down, right)`.

    Args:
        shape: `(height, width, ...)` of a picture.
        shift_fraction: Float, the part of each side.
    """
    return int(shift_fraction * shape[0]), int(shift_fraction * shape[1])


class ShiftedBatches(keras.utils.PyDataset):
    """Batches of randomly shifted pictures, for `fit` and `evaluate`.

    Each picture moves by its own number of whole pixels, and zeros come in
    at the edge. A batch depends on `(seed, epoch, index)` alone, not on what
    was drawn before, so that a resumed run sees the batches that the
    uninterrupted one would have seen; a callback tells the epoch by
    `set_epoch`.

    With several replicas every batch has a number of rows that they divide:
    a batch that has not is filled up with zero pictures of weight 0, and the
    real ones weigh `rows / real rows`. Keras divides a weighted loss by the
    number of rows, weighted or not, so the loss is exactly the mean over the
    real pictures: none is left out, and two replicas end with the weights of
    one. Pass metrics as `weighted_metrics`, or they count the zero pictures.

    Args:
        x: uint8 array of shape `(n, height, width, channels)`.
        y: Integer array of shape `(n,)`.
        n_class: Integer, length of the one-hot labels.
        batch_size: Integer, pictures a batch, all replicas together.
        shift: `(down, right)`, the largest shift in pixels either way.
        seed: Integer, draws the order and the shifts.
        shuffle: Boolean, whether every epoch has an order of its own.
        replicas: Integer, number of devices that share a batch.
        class_weight: Array of shape `(n_class,)` or `None`, how much a
            picture counts in the loss of `capsnet`.
        decoder: Boolean, whether the model has the output `decoder`.
        label_input: Boolean, whether the model has the input `label`.
            Without it the inputs are the pictures alone.

    Returns:
        A batch is `(inputs, targets)`, inputs `{"image", "label"}` and targets
        `{"capsnet", "decoder"}`: float32 pictures in [0, 1] and one-hot
        labels. With `class_weight` or more than one replica a third element
        follows, the weights `{"capsnet": (rows,), "decoder": (rows, 1, 1)}`.
    """

    def __init__(
        self,
        x,
        y,
        n_class,
        batch_size,
        shift=(0, 0),
        seed=0,
        shuffle=False,
        replicas=1,
        class_weight=None,
        decoder=True,
        label_input=True,
    ):
        super().__init__()
        if len(x) != len(y) or len(x) == 0 or batch_size < 1:
            raise ValueError(
                "Expected as many labels as pictures, at least one, and a "
                f"positive batch size. Received: len(x)={len(x)}, "
                f"len(y)={len(y)}, batch_size={batch_size}"
            )
        self.y = y
        self.n_class = n_class
        self.batch_size = batch_size
        self.shift = shift
        self.seed = seed
        self.shuffle = shuffle
        self.replicas = replicas
        self.class_weight = class_weight
        self.decoder = decoder
        self.label_input = label_input
        self.epoch = 0
        self._drawn = None
        self._windows = self._every_window(x)

    def __len__(self):
        return math.ceil(len(self.y) / self.batch_size)

    def set_epoch(self, epoch):
        """Chooses the epoch, counted from 0, that batches are drawn for."""
        self.epoch = epoch

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)} was asked for.")
        order, tops, lefts = self._draw()
        chosen = order[index * self.batch_size :][: self.batch_size]
        count = len(chosen)
        rows = math.ceil(count / self.replicas) * self.replicas
        crops = self._windows[chosen, tops[chosen], lefts[chosen]]
        image = np.zeros((rows, *crops.shape[1:]), np.float32)
        np.divide(crops, np.float32(255), out=image[:count])
        one_hot = np.zeros((rows, self.n_class), np.float32)
        one_hot[np.arange(count), self.y[chosen]] = 1.0

        # Copies: TensorFlow takes over the memory of an array, and of two
        # tensors in the same memory one may be overwritten while the other
        # is still read (measured with two replicas).
        inputs, targets = image, {"capsnet": one_hot}
        if self.label_input:
            inputs = {"image": image, "label": one_hot.copy()}
        if self.decoder:
            targets["decoder"] = image.copy()
        if self.class_weight is None and self.replicas == 1:
            return inputs, targets
        return inputs, targets, self._weigh(chosen, rows)

    def _every_window(self, x):
        """A view of all the crops, `(n, top, left, height, width, channels)`.

        Only the padded pictures take memory.
        """
        (down, right), (height, width) = self.shift, x.shape[1:3]
        if down or right:
            x = np.pad(x, ((0, 0), (down, down), (right, right), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(
            x, (height, width), axis=(1, 2)
        )
        return np.moveaxis(windows, 3, -1)

    def _draw(self):
        """The epoch's order, and where each picture's crop begins."""
        epoch, drawn = self.epoch, self._drawn
        if drawn is None or drawn[0] != epoch:
            n = len(self.y)
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(n) if self.shuffle else np.arange(n)
            down, right = self.shift
            tops = generator.integers(0, 2 * down + 1, n)
            lefts = generator.integers(0, 2 * right + 1, n)
            # Stored whole: `fit` draws batches in other threads.
            self._drawn = drawn = epoch, (order, tops, lefts)
        return drawn[1]

    def _weigh(self, chosen, rows):
        scale = np.zeros(rows, np.float32)
        scale[: len(chosen)] = rows / len(chosen)
        weights = {"capsnet": scale}
        if self.class_weight is not None:
            weights["capsnet"] = scale.copy()
            weights["capsnet"][: len(chosen)] *= np.asarray(
                self.class_weight, np.float32
            )[self.y[chosen]]
        if self.decoder:
            # Keras's mse keeps (rows, height, width).
            weights["decoder"] = scale[:, None, None]
        return weights


def picture_files(folder):
    """Sorted paths of the pictures in a folder and the folders in it."""
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if _is_picture(path)
        and not any(
            part.startswith(".") for part in path.relative_to(folder).parts
        )
    )


def find_pictures(paths):
    """The files among `paths`, and the pictures in the folders among them.

    Raises:
        DatasetError: If a folder holds no picture.
    """
    files = []
    for path in paths:
        found = picture_files(path) if os.path.isdir(path) else [path]
        if not found:
            raise DatasetError(
                f"expected pictures in {path!r} or in its folders, received "
                "none: PNG, JPEG, BMP, GIF, TIFF and WebP files are read"
            )
        files += map(str, found)
    return files


def read_pictures(files, input_shape):
    """Reads pictures in a model's size and channels.

    Args:
        files: Paths.
        input_shape: `(height, width, channels)`.

    Returns:
        Pairs of a path and its pixels, the paths that cannot be read, and
        how many pictures were resized.
    """
    pictures, unreadable, resized = [], [], 0
    for path in files:
        try:
            pixels = read_picture(path, None, input_shape[2])
        except DatasetError:
            unreadable.append(path)
            continue
        if pixels.shape != tuple(input_shape):
            pixels = _to_array(_from_array(pixels), input_shape[:2], None)
            resized += 1
        pictures.append((path, pixels))
    return pictures, unreadable, resized


def unreadable_error(where, unreadable, total, skip_unreadable):
    """A `DatasetError` that names the pictures that cannot be read."""
    advice = "replace them"
    if not skip_unreadable:
        advice += ", or leave them out with --skip_unreadable"
    return DatasetError(
        f"expected pictures{where}, received {len(unreadable)} of {total} "
        f"that cannot be read ({listed(unreadable)}): {advice}"
    )


def listed(names, most=10):
    """Names in one line, the first ones if there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_picture(path, image_size, channels):
    """Reads one picture, turned as its EXIF data say.

    Args:
        path: Path of a PNG, JPEG, BMP, GIF, TIFF or WebP file.
        image_size: `(height, width)` to resize to, or `None`.
        channels: 1 for grey, 3 for colour, 4 for colour and transparency,
            or `None` for what the file has.

    Returns:
        uint8 array of shape `(height, width, channels)`. Without a channel
        for transparency, what is transparent is white.

    Raises:
        DatasetError: If the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=PICTURE_FORMATS) as opened:
                limit = MAX_DEFLATE_RATIO * os.path.getsize(path)
                if math.prod(opened.size) > max(limit, MAX_UNPROVEN_PIXELS):
                    raise ValueError("more pixels than the file can hold")
                if opened.format == "PNG":
                    # Decoding alone does not look at the checksums.
                    with Image.open(path, formats=["PNG"]) as twin:
                        twin.verify()
                picture = _eight_bit(ImageOps.exif_transpose(opened))
        return _to_array(picture, image_size, channels)
    # Broken bytes make Pillow's decoders raise nearly everything.
    except Exception as error:
        reason = getattr(error, "strerror", None) or "broken or no picture"
        raise DatasetError(
            f"expected a picture, received {str(path)!r}, which cannot be "
            f"read ({reason}): replace or remove it"
        ) from None


def _is_picture(path):
    return (
        path.suffix.lower() in PICTURE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def _eight_bit(picture):
    """The same picture in mode L, RGB or RGBA."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("more than 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating point")
    has_alpha = picture.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if has_alpha or "transparency" in picture.info:
        picture_with_alpha = picture.convert("RGBA")
        # Many GIFs name a transparent colour and use it nowhere.
        if has_alpha or picture_with_alpha.getextrema()[3][0] < 255:
            return picture_with_alpha
    if picture.mode in ("1", "L"):
        return picture.convert("L")
    colour = picture.convert("RGB")
    if picture.mode == "P":
        red, green, blue = colour.split()
        if red == green == blue:
            return red
    return colour


def _to_array(picture, image_size, channels):
    if channels and channels < 4 and picture.mode == "RGBA":
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    if channels:
        picture = picture.convert(PICTURE_MODES[channels])
    if image_size and picture.size != (image_size[1], image_size[0]):
        picture = picture.resize(
            (image_size[1], image_size[0]), Image.Resampling.LANCZOS
        )
    pixels = np.asarray(picture)
    return pixels.reshape(*pixels.shape[:2], -1)


def _from_array(pixels):
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _adapt(x, image_size, grayscale):
    """Resizes and greys the pictures of one part."""
    channels = 1 if grayscale else x.shape[3]
    image_size = image_size or x.shape[1:3]
    if x.shape[1:] == (*image_size, channels):
        return x
    adapted = np.empty((len(x), *image_size, channels), np.uint8)
    for index, pixels in enumerate(x):
        adapted[index] = _to_array(_from_array(pixels), image_size, channels)
    return adapted


def _kind(path):
    """What a path holds: "idx", "pictures", "npz" or `None`."""
    if os.path.isdir(path):
        return "idx" if _idx_files(path) else "pictures"
    is_npz = os.path.isfile(path) and path.lower().endswith(".npz")
    return "npz" if is_npz else None


def _check_test_fraction(name, path, test_fraction):
    if test_fraction is None:
        return
    if not 0 < test_fraction < 1:
        raise DatasetError(
            "expected --test_fraction between 0 and 1, received "
            f"{test_fraction}: give for example 0.2"
        )
    if name in BUILT_IN or _kind(path) != "pictures" or _has_parts(Path(path)):
        raise DatasetError(
            "expected --test_fraction with a folder of class folders only, "
            f"received it with {name!r}: leave it out"
        )


def _load_arrays(name, path, seed):
    """Training and test part as arrays, and class names or `None`."""
    if name == "digits":
        return _draw_digits(seed), DIGIT_NAMES
    if name in KERAS_DATASETS:
        return _load_keras(name), KERAS_DATASETS[name]
    kind = _kind(path)
    if kind == "idx":
        return _load_idx(path), None
    if kind == "npz":
        return _load_npz(path)
    raise DatasetError(
        f"expected --dataset to be {ACCEPTED}, received {name!r}: check the "
        "name or the path"
    )


def _check_parts(name, train, test):
    """Pictures as uint8 and labels as int64, or an error."""
    pictures, labels = [], []
    for part, (x, y) in (("train", train), ("test", test)):
        if x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or x.shape[3] not in PICTURE_MODES or 0 in x.shape:
            raise DatasetError(
                f"expected x_{part} of shape (n, height, width) or (n, height, "
                f"width, channels), with 1, 3 or 4 channels and nothing empty, "
                f"received {x.shape} in {name!r}: reshape it"
            )
        if y.ndim == 2 and y.shape[1] > 1:
            raise DatasetError(
                f"expected y_{part} of shape (n,), received {y.shape} in "
                f"{name!r}: if the labels are one-hot, store their argmax"
            )
        if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
            raise DatasetError(
                f"expected y_{part} to be {len(x)} integers, one a picture, "
                f"received {y.dtype} of shape {y.shape} in {name!r}: store "
                "the class of each picture"
            )
        pictures.append(x)
        labels.append(y.reshape(-1))
    if pictures[0].shape[1:] != pictures[1].shape[1:]:
        raise DatasetError(
            "expected training and test pictures of one shape, "
            "(height, width, channels), received "
            f"{pictures[0].shape[1:]} and {pictures[1].shape[1:]} in {name!r}: "
            "store them in one shape"
        )
    return _to_uint8(name, pictures), labels


def _to_uint8(name, pictures):
    """Values up to 255 stay; where none is above 1 they count as 0 to 1."""
    if any(x.dtype.kind not in "buif" for x in pictures):
        raise DatasetError(
            "expected pictures of numbers, received "
            f"{pictures[0].dtype} and {pictures[1].dtype} in {name!r}: store "
            "them as uint8"
        )
    low = min(float(x.min()) for x in pictures)
    high = max(float(x.max()) for x in pictures)
    # Written so that not-a-number fails too.
    if not (low >= 0 and high <= 255):
        raise DatasetError(
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


def _index_labels(name, y_train, y_test, class_names):
    """Labels counted from 0, and the name of each class."""
    classes = np.unique(y_train)
    unknown = np.setdiff1d(y_test, classes)
    if len(unknown):
        raise DatasetError(
            "expected every class of the test part in the training part, "
            f"received {name!r} with class {unknown[0]} in the test part "
            "only: add training pictures or remove the test ones"
        )
    if len(classes) < 2:
        raise DatasetError(
            f"expected at least two classes, received {name!r} with one: add "
            "pictures of another class"
        )
    if class_names is None:
        class_names = [str(label) for label in classes]
    elif 0 <= classes[0] and classes[-1] < len(class_names):
        classes = np.arange(len(class_names))
    elif len(classes) != len(class_names):
        raise DatasetError(
            f"expected a class name for each of {len(classes)} classes, "
            f"received {len(class_names)} names in {name!r}: correct "
            "class_names"
        )
    labels = [
        np.searchsorted(classes, y).astype(np.int64) for y in (y_train, y_test)
    ]
    return labels, list(class_names)


def _load_keras(name):
    try:
        return getattr(keras.datasets, name).load_data()
    # Keras raises a plain Exception when a download fails.
    except Exception as error:
        cause = str(error).strip() or type(error).__name__
        raise DatasetError(
            f"expected to download {name}, received {cause!r}: "
            "without a network use --dataset digits, or --dataset PATH with "
            "an .npz file or a folder of the idx files"
        ) from None


def _load_npz(path):
    """Reads the arrays of an .npz file, never unpickling one."""
    keys = ["x_train", "y_train", "x_test", "y_test"]
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            missing = [key for key in keys if f"{key}.npy" not in names]
            if missing:
                raise DatasetError(
                    f"expected the arrays {', '.join(keys)} in {path!r}, "
                    f"received none called {', '.join(missing)}: add them"
                )
            arrays = [_read_member(archive, key) for key in keys]
            class_names = None
            if "class_names.npy" in names:
                class_names = _read_member(archive, "class_names")
    except (DatasetError, MemoryError):
        raise
    # A broken zip or header raises nearly everything, SyntaxError included.
    except Exception:
        raise DatasetError(
            f"expected an .npz file, received {path!r}, which is broken: "
            "copy or write it again"
        ) from None
    if class_names is not None:
        if class_names.ndim != 1 or class_names.dtype.kind != "U":
            raise DatasetError(
                "expected class_names to be a list of strings, received "
                f"{class_names.dtype} of shape {class_names.shape} in "
                f"{path!r}: write them as strings"
            )
        class_names = class_names.tolist()
    return (arrays[:2], arrays[2:]), class_names


def _read_member(archive, key):
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
        raise DatasetError(
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


def _idx_files(folder):
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


def _load_idx(folder):
    files = _idx_files(folder)
    arrays = []
    for part in ("train", "t10k"):
        for kind, ranks in (("images", (3, 4)), ("labels", (1,))):
            if (part, kind) not in files:
                raise DatasetError(
                    f"expected four idx files in {folder!r}, received none "
                    f"called {part}-{kind}-idx{ranks[0]}-ubyte: add it"
                )
            arrays.append(_read_idx(files[part, kind], ranks))
    return arrays[:2], arrays[2:]


def _read_idx(path, ranks):
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
    raise DatasetError(
        f"expected an idx file of {' or '.join(map(str, ranks))} dimensions "
        f"of bytes, received {path!r}, which is broken or something else: "
        "copy it again"
    )


def _subfolders(folder):
    return sorted(
        child
        for child in folder.glob("*")
        if child.is_dir() and not child.name.startswith(".")
    )


def _has_parts(folder):
    """Whether a folder has the parts `train` and `test`, with classes."""
    present = [part for part in ("train", "test") if _subfolders(folder / part)]
    if len(present) == 1:
        raise DatasetError(
            f"expected train/CLASS and test/CLASS in {str(folder)!r}, "
            f"received {present[0]} alone: add the other, or give the folder "
            f"{str(folder / present[0])!r}"
        )
    return len(present) == 2


def _load_pictures(
    folder, image_size, channels, test_fraction, skip_unreadable
):
    has_parts = _has_parts(folder)
    class_folders = [
        (part, class_folder)
        for part in (("train", "test") if has_parts else ("",))
        for class_folder in _subfolders(folder / part)
    ]
    found = [
        (part, class_folder, path)
        for part, class_folder in class_folders
        for path in picture_files(class_folder)
    ]
    if not found and any(map(_is_picture, Path(folder).iterdir())):
        raise DatasetError(
            f"expected a folder for each class in {str(folder)!r}, received "
            "pictures that lie directly in it: name the folder above, if this "
            "is one class, or sort them into CLASS/"
        )
    if not found:
        raise DatasetError(
            f"expected a folder for each class in {str(folder)!r}, received "
            "none with pictures: put the pictures in CLASS/ or in train/CLASS/ "
            "and test/CLASS/"
        )
    pictures, notes = _read_folder(
        folder,
        [path for _, _, path in found],
        image_size,
        channels,
        skip_unreadable,
    )
    found = [entry for entry in found if entry[2] in pictures]
    class_names = sorted({each.name for _, each in class_folders})
    y = np.array([class_names.index(entry[1].name) for entry in found])
    if has_parts:
        is_test = np.array([entry[0] == "test" for entry in found])
    else:
        names = [path.relative_to(each).as_posix() for _, each, path in found]
        is_test = _choose_test(y, names, test_fraction)
    notes += _count_classes(folder, y, is_test, class_names)
    x = _stack(pictures.values())
    return [(x[c], y[c]) for c in (~is_test, is_test)], class_names, notes


def _count_classes(folder, y, is_test, class_names):
    """A note for each part, or an error if a class is missing in one."""
    notes = []
    for part, chosen in (("training", ~is_test), ("test", is_test)):
        counts = np.bincount(y[chosen], minlength=len(class_names))
        if not counts.all():
            raise DatasetError(
                f"expected {part} pictures of every class, received none of "
                f"{class_names[counts.argmin()]!r} in {str(folder)!r}: add "
                "some (each class needs two pictures at least), or remove the "
                "class"
            )
        each = ", ".join(map("{} {}".format, class_names, counts))
        notes.append(f"{counted(chosen.sum(), f'{part} picture')}: {each}")
    return notes


def _read_folder(folder, paths, image_size, channels, skip_unreadable):
    """Reads files; returns a dict from path to pixels, and notes."""
    pictures, unreadable = {}, []
    for path in paths:
        try:
            pixels = read_picture(path, image_size, channels)
        except DatasetError:
            unreadable.append(str(path.relative_to(folder)))
            continue
        pictures[path] = pixels
        first_path, first = next(iter(pictures.items()))
        if pixels.shape[:2] != first.shape[:2]:
            raise DatasetError(
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


def _stack(pictures):
    """One array, with as many channels as the picture that has most."""
    channels = max(pixels.shape[2] for pixels in pictures)
    return np.stack(
        [_to_array(_from_array(pixels), None, channels) for pixels in pictures]
    )


def _choose_test(y, names, test_fraction):
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


def _draw_digits(seed):
    """Digits in random fonts, strokes, shapes and places."""
    import matplotlib

    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    generator = np.random.default_rng(seed)
    return [
        _draw_part([folder / f"{font}.ttf" for font in fonts], n, generator)
        for fonts, n in ((TRAIN_FONTS, TRAIN_DIGITS), (TEST_FONTS, TEST_DIGITS))
    ]


def _draw_part(fonts, n, generator):
    y = generator.permutation(np.arange(n) % 10)
    glyphs = {}
    x = np.empty((n, DIGIT_SIZE, DIGIT_SIZE, 1), np.uint8)
    for index, digit in enumerate(y):
        key = (
            fonts[generator.integers(len(fonts))],
            str(digit),
            int(generator.integers(4)),
        )
        if key not in glyphs:
            glyphs[key] = _draw_glyph(*key)
        x[index, ..., 0] = _distort(glyphs[key], generator)
    return x, y


def _draw_glyph(font, character, stroke_width):
    """White on black, cut to what is drawn, with an edge for the filter."""
    # The basic layout is the one that every build of Pillow has.
    face = ImageFont.truetype(
        str(font), 80, layout_engine=ImageFont.Layout.BASIC
    )
    canvas = Image.new("L", (160, 160))
    ImageDraw.Draw(canvas).text(
        (40, 30), character, fill=255, font=face, stroke_width=stroke_width
    )
    return ImageOps.expand(canvas.crop(canvas.getbbox()), 4)


def _distort(glyph, generator):
    """Places a glyph, by a random affine map, on a blurred small picture."""
    side = DIGIT_SIZE * OVERSAMPLING
    angle = np.deg2rad(generator.uniform(-15, 15))
    shear = generator.uniform(-0.2, 0.2)
    height = generator.uniform(16, 21) * OVERSAMPLING / glyph.height
    width = height * generator.uniform(0.85, 1.15)
    rotation = np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    inverse = np.linalg.inv(
        rotation @ [[1, shear], [0, 1]] @ np.diag([width, height])
    )
    centre = side / 2 + generator.uniform(-2, 2, 2) * OVERSAMPLING
    offset = np.array([glyph.width, glyph.height]) / 2 - inverse @ centre
    drawn = glyph.transform(
        (side, side),
        Image.Transform.AFFINE,
        (*inverse[0], offset[0], *inverse[1], offset[1]),
        Image.Resampling.BILINEAR,
    )
    blur = ImageFilter.GaussianBlur(generator.uniform(0, 0.6))
    return np.asarray(drawn.reduce(OVERSAMPLING).filter(blur))
