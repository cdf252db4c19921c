"""Pictures of results: grids and plots."""

import csv
import math
import textwrap

import matplotlib

matplotlib.use("Agg")  # Pictures are files; no window ever opens.

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import ticker  # noqa: E402

from capsnet.fonts import drawable_names, fitted  # noqa: E402
from capsnet.messages import shorten  # noqa: E402

# Okabe and Ito's colours, which colour-blind people can tell apart.
STYLES = (
    {"color": "black", "marker": ".", "markersize": 5},
    {"color": "#0072B2", "marker": "^", "markersize": 4},
    {"color": "#E69F00", "marker": "s", "markersize": 3},
)


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
    cells = np.ones((rows * columns, height + gap, width + gap, channels))
    cells[:n, :height, :width] = np.clip(images, 0, 1)
    height, width = rows * (height + gap), columns * (width + gap)
    # Rows of cells into rows of pixels.
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(height, width, channels)[: height - gap, : width - gap]
    return np.round(grid * 255).astype("uint8")


def colours(images):
    """Pictures of 1, 3 or 4 channels in red, green and blue."""
    is_grey = images.shape[-1] == 1
    return np.repeat(images, 3, -1) if is_grey else images[..., :3]


def overlay(two):
    """Two pictures over each other, the first one orange, the second blue.

    Colour-blind people can tell these apart; where both are light, it is
    white. From `(n, 2, height, width, channels)` to `(n, height, width, 3)`.
    """
    first, second = np.moveaxis(colours(two).mean(-1), 1, 0)
    return np.stack([first, (first + second) / 2, second], axis=-1)


def show(axes, pixels):
    """Draws a uint8 picture of any number of channels, without ticks."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])


def draw_reconstructions(images, reconstructions, path, columns=10):
    """Real pictures above their reconstructions, labelled.

    Args:
        images, reconstructions: Arrays of shape `(n, h, w, channels)` in
            [0, 1].
        path: Picture file to write.
        columns: Pictures in a row.
    """
    columns = min(columns, len(images))
    grids = [
        combine_images(part, columns) for part in (images, reconstructions)
    ]
    height, width = grids[0].shape[:2]
    inches = max(0.7 * columns, 1.4)
    figure, axes = plt.subplots(
        2, 1, figsize=(inches, 2 * inches * height / width + 0.8), dpi=120
    )
    for axis, grid, title in zip(axes, grids, ("real", "reconstructed")):
        show(axis, grid)
        axis.set_title(title)
        axis.spines[:].set_visible(False)
    save_figure(figure, path)


def draw_manipulations(image, images, values, title, path):
    """What each dimension of a capsule does to the reconstruction.

    Args:
        image: The picture that it begins with, `(h, w, channels)` in [0, 1].
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
    tall = 5.4 * grid.shape[0] / grid.shape[1]  # Labels take the rest.
    figure, (above, axis) = plt.subplots(
        2,
        figsize=(6.0, tall + 1.9),
        height_ratios=(0.7, tall),
        dpi=120,
    )
    show(above, combine_images(image[None], 1))
    above.set_title("the picture", fontsize=8)
    show(axis, grid)
    middles = (np.arange(columns) + 0.5) * width - 0.5
    axis.set_xticks(middles, [f"{v:+.2f}" for v in values], fontsize=7)
    middles = (np.arange(dimensions) + 0.5) * height - 0.5
    axis.set_yticks(middles, range(1, dimensions + 1), fontsize=7)
    axis.tick_params(length=0)
    axis.set(xlabel="added to the dimension", ylabel="dimension of the capsule")
    axis.set_title(shorten(title, 52), parse_math=False)
    save_figure(figure, path)


def draw_versions(images, versions, path):
    """Pictures on the left, and in each one's row some versions of it.

    Args:
        images: Array of shape `(n, h, w, channels)` in [0, 1].
        versions: Array of shape `(n, count, h, w, channels)`.
        path: Picture file to write.
    """
    n, count, height, width, channels = versions.shape
    versions = versions.reshape(-1, height, width, channels)
    grids = combine_images(images, 1), combine_images(versions, count)
    gap = np.full((len(grids[0]), 2 + width // 8, channels), 255, "uint8")
    grid = np.concatenate([grids[0], gap, grids[1]], axis=1)
    inches = 8.0
    figure, axis = plt.subplots(
        figsize=(inches, inches * grid.shape[0] / grid.shape[1] + 0.4), dpi=120
    )
    show(axis, grid)
    middles = width / 2, (grid.shape[1] + width + gap.shape[1]) / 2
    axis.set_xticks(middles, ("picture", "versions of it in training"))
    axis.tick_params(length=0, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    save_figure(figure, path)


def draw_pairs(images, reconstructions, titles, path, caption=None):
    """Pictures, each beside its reconstruction and under a title of its own.

    Args:
        images: Array of shape `(n, h, w, channels)` in [0, 1].
        reconstructions: Like `images`, or `None` for the pictures alone.
        titles, path, caption: As in `draw_groups`.
    """
    groups = images[:, None]
    if reconstructions is not None:
        groups = np.stack([images, reconstructions], axis=1)
    draw_groups(groups, titles, path, caption)


def draw_groups(groups, titles, path, caption=None):
    """Some pictures beside each other under a title, and so on in a grid.

    Args:
        groups: Array of shape `(n, count, h, w, channels)` in [0, 1], up to
            three pictures a title.
        titles: List of `n` strings, of lines that are cut where they are too
            long, or of one that is wrapped.
        path: Picture file to write.
        caption: Text above all of them, or `None`.
    """
    n, count, high, wide, _ = groups.shape
    columns = min(7 - count, n)
    rows = math.ceil(n / columns)
    width = 2.0 if count == 1 else 1.2 * count  # Inches.
    titles = [fitted(each, round(10 * width)) for each in titles]
    lines = 1 + max(title.count("\n") for title in titles)
    height = width / count * high / wide + 0.2 * (lines + 1)
    size = width * columns, height * rows + (0.5 if caption else 0)
    figure, axes = plt.subplots(
        rows, columns, figsize=size, dpi=120, squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for group, axis, title in zip(groups, axes.flat, titles):
        show(axis, combine_images(group, columns=count))
        axis.set_title(title, fontsize=10, parse_math=False)
    if caption:
        wrapped = textwrap.fill(caption, round(12 * width * columns))
        # The empty line keeps it away from the first titles.
        figure.suptitle(f"{wrapped}\n", fontsize=9, color="dimgrey")
    save_figure(figure, path)


def draw_confusion(confusion, class_names, path):
    """How often each class was taken for each: true in rows, predicted below.

    The colours are on a log scale, so that one mistake shows beside
    thousands of right answers. Up to 20 classes have counts, more a scale.

    Args:
        confusion: Integer array of shape `(n_class, n_class)`.
        class_names: List of strings.
        path: Picture file to write.
    """
    n_class = len(class_names)
    side = 2 + 0.45 * n_class if n_class <= 20 else min(5 + 0.2 * n_class, 16)
    figure, axis = plt.subplots(figsize=(side, side), dpi=120)
    # The lower bound makes a single mistake stand out from none, white.
    scale = matplotlib.colors.LogNorm(0.3, max(confusion.max(), 1))
    cells = np.ma.masked_equal(confusion, 0)
    image = axis.imshow(cells, cmap="Blues", norm=scale)
    if n_class <= 20:
        style = {"ha": "center", "va": "center", "fontsize": 7}
        for row, column in zip(*np.nonzero(confusion)):
            count = confusion[row, column]
            style["color"] = "white" if scale(count) > 0.75 else "black"
            axis.text(column, row, count, **style)
    else:
        bar = figure.colorbar(image, shrink=0.6, label="pictures")
        bar.ax.yaxis.set_major_formatter("{x:g}")
    # Of very many classes only some are named.
    ticks = np.arange(0, n_class, math.ceil(n_class / 100))
    names = drawable_names(class_names)
    labels = [shorten(names[tick], 20) for tick in ticks]
    rotation = 0 if max(map(len, labels)) <= 2 else 90
    text = {"fontsize": 8 if n_class <= 40 else 6, "parse_math": False}
    axis.set_xticks(ticks, labels, rotation=rotation, **text)
    axis.set_yticks(ticks, labels, **text)
    axis.set(xlabel="predicted class", ylabel="true class")
    wrong, total = confusion.sum() - confusion.trace(), confusion.sum()
    axis.set_title(f"{wrong} of {total} pictures wrong", fontsize=10)
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
    curves = {left: {}, right: {"test error": log["test_error"]}}
    for name, values in log.items():
        kind = name.removeprefix("val_")
        part = "" if kind == name else "held-out "
        if name.endswith("loss"):
            curves[left][f"{part}{kind.replace('_', ' ')}"] = values
        elif name.endswith("_accuracy"):
            curves[right][f"{part or 'training '}error"] = 100 * (1 - values)
    for axis, drawn in curves.items():
        styles = {}  # What is held out is dashed, and else as in training.
        for label, values in drawn.items():
            kind = label.removeprefix("held-out ").removeprefix("training ")
            style = styles.setdefault(kind, STYLES[len(styles) % 3])
            line = "--" if label.startswith("held-out") else "-"
            axis.plot(epochs, values, line, label=label, **style)
    left.set(title="losses", xlabel="epoch", ylabel="loss", yscale="log")
    right.set(title="errors", xlabel="epoch", ylabel="error, %")
    errors = np.concatenate([line.get_ydata() for line in right.lines])
    if errors.min() > 0:  # A logarithmic axis has no place for zero.
        right.set_yscale("log")
    for axis in (left, right):
        if axis.get_yscale() == "log":
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3, which="both")
        axis.legend()
        axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        whole = ticker.MaxNLocator(integer=True, min_n_ticks=1)
        axis.xaxis.set_major_locator(whole)
    save_figure(figure, path)


def save_figure(figure, path):
    """Writes a figure in the format of the suffix, and closes it."""
    try:
        figure.tight_layout()
        figure.savefig(path, bbox_inches="tight")
    finally:  # matplotlib keeps open figures, a full disk or not.
        plt.close(figure)
