"""Pictures and records: grids, plots, tables, a run's plan and record."""

import bisect
import contextlib
import csv
import dataclasses
import importlib
import importlib.metadata
import math
import os
import platform
import re
import sys
import textwrap

import keras
import matplotlib

matplotlib.use("Agg")  # Pictures are files; no window ever opens.

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from_packages = ("keras", "tensorflow", "jax", "torch", "numpy")
# Of `predictions.csv`.
COLUMNS = ("file", "class", "length", "runner_up", "runner_up_length")
# Python, NumPy, Keras and TensorFlow without a network (measured).
PROGRAM_BYTES = 900e6
FLOAT_BYTES = 4


def combine_images(images, columns, gap=1):
    """One picture from many, row by row.

    Args:
        images: Array of shape `(n, height, width, channels)` in [0, 1].
        columns: Positive integer, pictures in a row.
        gap: Pixels between two pictures, white.

    Returns:
        Array of shape `(rows * (height + gap) - gap, ..., channels)`, uint8.
    """
    images = np.asarray(images)
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    grid = np.ones((rows * (height + gap), columns * (width + gap), channels))
    for number, image in enumerate(images):
        top = number // columns * (height + gap)
        left = number % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    grid = np.clip(grid[: grid.shape[0] - gap, : grid.shape[1] - gap], 0, 1)
    return np.round(grid * 255).astype("uint8")


def to_pillow(pixels):
    """A Pillow image from a uint8 array of shape `(h, w, 1, 3 or 4)`."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def show(axes, pixels):
    """Draws a uint8 picture of any number of channels, without ticks."""
    axes.imshow(to_pillow(pixels), cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_reconstructions(images, reconstructions, path, columns=10):
    """Real pictures above their reconstructions, labelled.

    Args:
        images, reconstructions: Arrays of shape `(n, h, w, channels)` in
            [0, 1].
        path: Picture file to write.
        columns: Pictures in a row.
    """
    grids = [
        combine_images(part, columns) for part in (images, reconstructions)
    ]
    height, width = grids[0].shape[:2]
    inches = 7.0
    figure, axes = plt.subplots(
        2, 1, figsize=(inches, 2 * inches * height / width + 0.8), dpi=120
    )
    for axis, grid, title in zip(axes, grids, ("real", "reconstructed")):
        show(axis, grid)
        axis.set_title(title)
    save_figure(figure, path)


def draw_manipulations(images, values, title, path):
    """What each dimension of a capsule does to the reconstruction.

    Args:
        images: Array of shape `(dimensions, len(values), h, w, channels)`
            in [0, 1].
        values: What was added to the dimension in each column.
        title: Text above the picture.
        path: Picture file to write.
    """
    dimensions, columns, height, width, channels = images.shape
    grid = combine_images(
        images.reshape(-1, height, width, channels), columns, gap=0
    )
    figure, axis = plt.subplots(
        figsize=(6.0, 6.0 * grid.shape[0] / grid.shape[1] + 1.0), dpi=120
    )
    show(axis, grid)
    axis.set_xticks((np.arange(columns) + 0.5) * width - 0.5)
    axis.set_xticklabels([f"{v:+.2f}" for v in values], fontsize=7)
    axis.set_yticks((np.arange(dimensions) + 0.5) * height - 0.5)
    axis.set_yticklabels(range(1, dimensions + 1), fontsize=7)
    axis.tick_params(length=0)
    axis.set_xlabel("added to the dimension")
    axis.set_ylabel("dimension of the capsule")
    axis.set_title(title, parse_math=False)
    save_figure(figure, path)


def draw_pairs(images, reconstructions, titles, path):
    """Pictures, each beside its reconstruction and under a title of its own.

    Args:
        images: Array of shape `(n, h, w, channels)` in [0, 1].
        reconstructions: Like `images`, or `None` for the pictures alone.
        titles: List of `n` strings.
        path: Picture file to write.
    """
    columns = min(5 if reconstructions is not None else 6, len(images))
    rows = math.ceil(len(images) / columns)
    width = 2.4 if reconstructions is not None else 2.0  # Inches.
    side = width if reconstructions is None else width / 2
    titles = [
        textwrap.fill(title, round(11 * width), max_lines=2, placeholder="…")
        for title in titles
    ]
    lines = 1 + max(title.count("\n") for title in titles)
    height = side * images.shape[1] / images.shape[2] + 0.2 * (lines + 1)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        dpi=120,
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, title) in enumerate(zip(axes.flat, titles)):
        pair = images[number : number + 1]
        if reconstructions is not None:
            pair = np.concatenate([pair, reconstructions[number][None]])
        show(axis, combine_images(pair, columns=len(pair)))
        axis.set_title(title, fontsize=10, parse_math=False)
    save_figure(figure, path)


def draw_confusion(confusion, class_names, path):
    """How often each class was taken for each: true in rows, predicted below.

    The colours are on a log scale, so that one mistake shows beside
    thousands of right answers. Up to 20 classes have their counts written.

    Args:
        confusion: Integer array of shape `(n_class, n_class)`.
        class_names: List of strings.
        path: Picture file to write.
    """
    n_class = len(class_names)
    side = min(2 + 0.45 * n_class, 16)
    figure, axis = plt.subplots(figsize=(side, side), dpi=120)
    # The lower bound makes a single mistake stand out from none, white.
    scale = matplotlib.colors.LogNorm(0.3, max(confusion.max(), 1))
    cells = np.ma.masked_equal(confusion, 0)
    axis.imshow(cells, cmap="Blues", norm=scale)
    if n_class <= 20:
        for row, column in zip(*np.nonzero(confusion)):
            count = confusion[row, column]
            axis.text(
                column,
                row,
                count,
                ha="center",
                va="center",
                fontsize=7,
                color="white" if scale(count) > 0.75 else "black",
            )
    # Of very many classes only some are named.
    ticks = np.arange(0, n_class, math.ceil(n_class / 100))
    labels = [shorten(class_names[tick], 20) for tick in ticks]
    rotation = 0 if max(map(len, labels)) <= 2 else 90
    size = 8 if n_class <= 40 else 6
    axis.set_xticks(
        ticks, labels, rotation=rotation, fontsize=size, parse_math=False
    )
    axis.set_yticks(ticks, labels, fontsize=size, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    save_figure(figure, path)


def shorten(text, length):
    """The text in one line, cut to a length with an ellipsis at its end."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def printable(text):
    """The text in one line that every terminal can show."""
    return "".join(c if c.isprintable() else "?" for c in text)


def file_name(text):
    """The text with dashes for what some system takes in no file's name."""
    return re.sub(r'[\x00-\x1f"*/:<>?\\|]', "-", text)


def in_parts(items, size):
    """Yields the items, at most `size` at once; a bar shows how far they are.

    Args:
        items: List of pictures or their names.
        size: Positive integer. As many items or fewer need no bar.
    """
    bar = None
    # Keras's bar goes to standard output, which may be sent to a file.
    if len(items) > size:
        with contextlib.redirect_stdout(sys.stderr):
            bar = keras.utils.Progbar(len(items), unit_name="picture")
    for start in range(0, len(items), size):
        yield items[start : start + size]
        if bar:
            with contextlib.redirect_stdout(sys.stderr):
                bar.update(min(start + size, len(items)))


def make_rows(files, lengths, class_names):
    """One row a file, as `COLUMNS` says: its class and the runner-up.

    Args:
        files: List of strings.
        lengths: Array of shape `(len(files), n_class)`.
        class_names: List of strings.
    """
    order = np.argsort(-lengths, axis=-1, kind="stable")
    return [
        (
            file,
            class_names[first],
            float(length[first]),
            class_names[second],
            float(length[second]),
        )
        for file, length, (first, second) in zip(files, lengths, order[:, :2])
    ]


def format_table(rows):
    """The rows of `make_rows` as aligned lines under a heading."""
    table = [("file", "class", "length", "runner-up", "length")]
    for file, name, length, runner_up, second in rows:
        table.append(
            (
                printable(file),
                printable(name),
                f"{length:.3f}",
                printable(runner_up),
                f"{second:.3f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in table
    )


def write_rows(rows, path):
    """Writes the rows of `make_rows` as `predictions.csv`."""
    # A file's name may hold any bytes.
    with open(
        path, "w", newline="", encoding="utf-8", errors="backslashreplace"
    ) as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, first, length, second, other in rows:
            writer.writerow(
                (name, first, f"{length:.6f}", second, f"{other:.6f}")
            )


def read_log(path):
    """The columns of a `log.csv`, each an array of floats."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([float(row[name]) for row in rows])
        for name in (rows[0] if rows else ())
    }


def draw_log(log_path, path):
    """Losses on the left, errors in percent on the right, by epoch."""
    log = read_log(log_path)
    epochs = log["epoch"] + 1
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), dpi=120)
    names = {"capsnet": "training", "val_capsnet": "held-out"}
    for name, values in log.items():
        if name.endswith("loss"):
            left.plot(epochs, values, marker=".", label=name.replace("_", " "))
        elif name.endswith("_accuracy"):
            label = f"{names[name.removesuffix('_accuracy')]} error"
            right.plot(epochs, 100 * (1 - values), marker=".", label=label)
    right.plot(epochs, log["test_error"], marker=".", label="test error")
    left.set(title="losses", xlabel="epoch", yscale="log")
    right.set(title="error in %", xlabel="epoch")
    errors = np.concatenate([line.get_ydata() for line in right.lines])
    if errors.min() > 0:  # A logarithmic axis has no place for zero.
        right.set_yscale("log")
        right.yaxis.set_major_locator(
            matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0))
        )
        right.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    right.yaxis.set_major_formatter("{x:g}")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
        axis.legend()
        axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axis.xaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1)
        )
    save_figure(figure, path)


def save_figure(figure, path):
    """Writes a figure in the format of the suffix, and closes it."""
    try:
        figure.tight_layout()
        figure.savefig(path, bbox_inches="tight")
    finally:  # matplotlib keeps open figures, a full disk or not.
        plt.close(figure)


class PlanError(ValueError):
    """A network that cannot be built or trained, told in one line."""


@dataclasses.dataclass
class Plan:
    """How large a capsule network will be; nothing is built.

    Args:
        input_shape: Tuple `(height, width, channels)`.
        kernels, strides: Pairs of those of conv1 and PrimaryCap.
        feature_map: Shape of conv1's output.
        grid: Rows and columns of PrimaryCap's output.
        primary: Number and dimensions of the primary capsules.
        classes: Number and dimensions of the class capsules.
        routings: Rounds of routing.
        weight_sizes: Number of values in each kernel and bias.
        transformed: Values of the fast convolutions' transforms, for each
            picture and of the kernels.
    """

    input_shape: tuple
    kernels: tuple
    strides: tuple
    feature_map: tuple
    grid: tuple
    primary: tuple
    classes: tuple
    routings: int
    weight_sizes: list
    transformed: tuple

    @property
    def weights(self):
        return sum(self.weight_sizes)

    def memory(self, batch_size, test_batch=0, pictures=0, replicas=1):
        """An estimate of the largest resident size of a training run.

        Fitted to runs with TensorFlow on a CPU: 0.9 to 1.3 times of what was
        measured from 12x12 to 160x160 pixels and with batches of 1 to 400.

        Args:
            batch_size: Integer, pictures of a training step.
            test_batch: Integer, pictures of a step of the test.
            pictures: Integer, how many the data set has.
            replicas: By how many devices a batch is divided.

        Returns:
            Float, bytes.
        """
        maps, values = math.prod(self.feature_map), math.prod(self.input_shape)
        (num_capsule, dim_capsule), (n_class, _) = self.primary, self.classes
        pairs = n_class * num_capsule
        transformed, kernels = self.transformed

        # Weights, gradients and Adam's two averages; the kernels transformed,
        # their gradients, and the copy that a transposition makes; the
        # transforms that the last test has left.
        training = replicas * (4 * self.weights + 4 * kernels)
        # For each picture: both convolutions' outputs, before and after the
        # activation, and a gradient; transforms, four of which are kept or
        # at work at once; a value for each pair of capsules and each input
        # dimension, from the agreement and from the weighted sum in each
        # round but the first; pictures, reconstructions and gradients.
        training += batch_size * (
            3 * (maps + dim_capsule * num_capsule)
            + 4 * transformed
            + 2 * dim_capsule * pairs * (self.routings - 1)
            + 6 * values
        )
        # Adam's update comes when the pictures' values are freed; it holds six
        # arrays of the size of the largest weight for a moment.
        update = replicas * (
            4 * self.weights + 6 * max(self.weight_sizes) + kernels
        )
        # A test has no gradients, and keeps only what it is working at.
        testing = replicas * (3 * self.weights + 2 * kernels)
        testing += test_batch * (
            2 * maps + 3 * transformed + 3 * pairs + 2 * values
        )
        # One byte a value, and once more with margins to shift into.
        data = 2 * pictures * values
        return (
            PROGRAM_BYTES + data + FLOAT_BYTES * max(training, update, testing)
        )

    def table(self, batch_size, **sizes):
        """What comes, as lines for the user; `sizes` as in `memory`."""
        conv, primary = (
            f"{cross(kernel)} with strides {cross(strides)}"
            for kernel, strides in zip(self.kernels, self.strides)
        )
        rows = {
            "picture": f"{cross(self.input_shape)} (height x width x channels)",
            "feature map": f"{cross(self.feature_map)}, conv1 {conv}",
            "primary grid": f"{cross(self.grid)}, primarycap {primary}",
            "primary capsules": "{:,} of {} dimensions".format(*self.primary),
            "class capsules": "{} of {} dimensions".format(*self.classes),
            "weights": f"{self.weights:,}",
            "memory": f"about {gigabytes(self.memory(batch_size, **sizes))} "
            f"on a CPU, in batches of {batch_size}",
        }
        return "\n".join(f"{name:<18}{value}" for name, value in rows.items())


def cross(sizes):
    """`(28, 28, 1)` as `28x28x1`."""
    return "x".join(map(str, sizes))


def gigabytes(count):
    return f"{count / 1e9:.1f} GB"


def machine_memory():
    """Bytes of memory of this machine, or `None` where that is unknown."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return pages * size if pages > 0 and size > 0 else None


def check_memory(make_plan, input_shape, batch_size, available, **sizes):
    """Refuses a training that needs more memory than there is.

    Args:
        make_plan: Function from an input shape to a `Plan`.
        input_shape: Tuple `(height, width, channels)`.
        batch_size: Integer, pictures of a training step.
        available: Bytes, or `None` for no check.
        **sizes: As in `Plan.memory`.

    Raises:
        PlanError: With the largest batch that fits, or the largest picture,
            where no batch does.
    """

    def fits(shape, count):
        try:
            return make_plan(shape).memory(count, **sizes) <= available
        except PlanError:  # Too small a picture, perhaps for the flags.
            return False

    if available is None or fits(input_shape, batch_size):
        return
    needed = make_plan(input_shape).memory(batch_size, **sizes)
    message = (
        f"training in batches of {batch_size} needs about {gigabytes(needed)} "
        f"of memory, and this machine has {gigabytes(available)}: "
    )
    if fits(input_shape, 1):
        # The memory grows with the batch: the first that does not fit.
        first = bisect.bisect_left(
            range(batch_size), 1, key=lambda n: not fits(input_shape, n)
        )
        raise PlanError(f"{message}use --batch_size {first - 1} or less")
    height, width, channels = input_shape
    for rows in range(height - 1, 0, -1):
        columns = round(rows * width / height)
        if fits((rows, columns, channels), batch_size):
            raise PlanError(f"{message}use --image_size {rows} {columns}")
    raise PlanError(f"{message}no size of pictures fits")


def environment():
    """What a run depends on: versions, backend, processor, accelerator."""
    versions = {}
    for name in from_packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "accelerator": accelerator_name(),
    }


def accelerator_name():
    """Name of the first GPU or TPU that Keras computes on; None on a CPU."""
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    if backend == "tensorflow":
        for device in module.config.get_visible_devices("GPU"):
            details = module.config.experimental.get_device_details(device)
            return details.get("device_name", "GPU")
    elif backend == "jax":
        device = module.devices()[0]
        if device.platform != "cpu":
            return device.device_kind
    elif module.cuda.is_available():
        return module.cuda.get_device_name(0)
    return None


def processor_name():
    """The processor as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
