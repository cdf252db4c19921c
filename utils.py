"""Pictures and records: image grids, plots of the log, the run's record."""

import csv
import importlib.metadata
import math
import os
import platform

import keras
import matplotlib

matplotlib.use("Agg")  # Pictures are files; no window ever opens.

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from_packages = ("keras", "tensorflow", "jax", "torch", "numpy")


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
    axis.set_title(title)
    save_figure(figure, path)


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
    right.set(title="error in %", xlabel="epoch", yscale="log")
    for axis in (left, right):
        axis.grid(alpha=0.3, which="both")
        axis.legend()
        axis.xaxis.set_major_locator(
            matplotlib.ticker.MaxNLocator(integer=True)
        )
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter("{x:g}")
    save_figure(figure, path)


def save_figure(figure, path):
    """Writes a figure in the format of the suffix, and closes it."""
    figure.tight_layout()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def environment():
    """What a run depends on: versions, backend, processor."""
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
    }


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
