"""Tests of utils.py. References are plain Python loops."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import utils

LOG = """epoch,loss,capsnet_accuracy,decoder_loss,learning_rate,test_error
0,0.5,0.75,0.0625,0.001,12.5
1,0.25,1.0,0.03125,0.0009,0.0
"""


def random_pictures(n, height=4, width=5, channels=1, seed=0):
    generator = np.random.default_rng(seed)
    return generator.uniform(size=(n, height, width, channels))


def reference_grid(images, columns, gap):
    """Pixel by pixel; white where no picture is."""
    n, height, width, channels = images.shape
    rows = (n + columns - 1) // columns
    size = rows * (height + gap) - gap, columns * (width + gap) - gap
    grid = np.full((*size, channels), 255, "uint8")
    for number in range(n):
        row, column = divmod(number, columns)
        for y in range(height):
            for x in range(width):
                place = row * (height + gap) + y, column * (width + gap) + x
                grid[place] = np.floor(255 * images[number, y, x] + 0.5)
    return grid


def assert_is_png(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()


def labels_of(ticks):
    return [label.get_text() for label in ticks]


def shown_pixels(axis):
    """The pixels of the picture in some axes."""
    return np.asarray(axis.get_images()[0].get_array())


@pytest.mark.parametrize(
    "n, columns, gap, channels",
    ((6, 3, 1, 1), (7, 3, 1, 3), (1, 4, 2, 4), (5, 5, 0, 1), (3, 1, 0, 3)),
)
def test_grid_holds_every_picture_in_its_place(n, columns, gap, channels):
    images = random_pictures(n, channels=channels)
    grid = utils.combine_images(images, columns, gap)
    assert grid.dtype == np.uint8
    np.testing.assert_array_equal(grid, reference_grid(images, columns, gap))


def test_grid_clips_what_is_out_of_range():
    images = np.array([-1.0, 0.0, 1.0, 2.0]).reshape(4, 1, 1, 1)
    grid = utils.combine_images(images, 4, gap=0)
    assert grid.ravel().tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("channels", (1, 3, 4))
@pytest.mark.parametrize("n", (1, 7))
def test_real_pictures_stand_above_their_reconstructions(
    tmp_path, figures, n, channels
):
    real = random_pictures(n, channels=channels)
    made = random_pictures(n, channels=channels, seed=1)
    path = tmp_path / "picture.png"
    utils.draw_reconstructions(real, made, path, columns=5)
    assert_is_png(path)
    above, below = figures[0].axes
    assert (above.get_title(), below.get_title()) == ("real", "reconstructed")
    assert above.get_position().y0 > below.get_position().y0
    for axis, images in ((above, real), (below, made)):
        expected = utils.combine_images(images, min(n, 5)).squeeze()
        np.testing.assert_array_equal(shown_pixels(axis), expected)


@pytest.mark.parametrize("channels", (1, 3, 4))
def test_manipulations_tell_what_rows_and_columns_are(
    tmp_path, figures, channels
):
    images = random_pictures(6, 4, 5, channels)
    images = images.reshape(2, 3, 4, 5, channels)
    path = tmp_path / "picture.png"
    start = images[0, 1]
    utils.draw_manipulations(start, images, [-0.25, 0, 0.25], "class 5", path)
    assert_is_png(path)
    above, axis = figures[0].axes
    assert above.get_title() == "the picture"
    expected = np.round(255 * start).squeeze()
    np.testing.assert_array_equal(shown_pixels(above), expected)
    assert axis.get_title() == "class 5"
    assert labels_of(axis.get_xticklabels()) == ["-0.25", "+0.00", "+0.25"]
    assert labels_of(axis.get_yticklabels()) == ["1", "2"]
    # A label stands at the middle of its pictures, 5 wide and 4 high.
    np.testing.assert_allclose(axis.get_xticks(), [2, 7, 12])
    np.testing.assert_allclose(axis.get_yticks(), [1.5, 5.5])
    assert axis.get_xlabel() == "added to the dimension"
    assert axis.get_ylabel() == "dimension of the capsule"
    pixels = shown_pixels(axis)
    for dimension in range(2):
        for column in range(3):
            part = pixels[4 * dimension :, 5 * column :][:4, :5]
            expected = np.round(255 * images[dimension, column]).squeeze()
            np.testing.assert_array_equal(part, expected)


def test_long_name_makes_no_title_wider_than_its_picture(tmp_path, figures):
    images = random_pictures(6, 4, 5).reshape(2, 3, 4, 5, 1)
    title = "reconstructions of class " + "W_" * 40
    path = tmp_path / "one.png"
    utils.draw_manipulations(images[0, 0], images, [-1, 0, 1], title, path)
    _, axis = figures[0].axes
    figures[0].draw_without_rendering()
    assert axis.get_title().startswith("reconstructions of class W_W_W_")
    assert len(axis.get_title()) <= 52


def test_two_pictures_over_each_other_are_orange_and_blue():
    two = np.array([[[1, 0, 1, 0]], [[0, 1, 1, 0]]], float)[None, ..., None]
    for channels in (1, 3):
        mixed = utils.overlay(np.repeat(two, channels, -1))
        assert mixed.shape == (1, 1, 4, 3)
        expected = [[1, 0.5, 0], [0, 0.5, 1], [1, 1, 1], [0, 0, 0]]
        np.testing.assert_allclose(mixed[0, 0], expected)


@pytest.mark.parametrize("channels", (1, 3, 4))
def test_versions_stand_in_the_row_of_their_picture(
    tmp_path, figures, channels
):
    images = random_pictures(3, channels=channels)
    versions = random_pictures(6, channels=channels, seed=1)
    versions = versions.reshape(3, 2, 4, 5, channels)
    path = tmp_path / "picture.png"
    utils.draw_versions(images, versions, path)
    assert_is_png(path)
    (axis,) = figures[0].axes
    pixels = shown_pixels(axis)
    for row in range(3):
        part = pixels[5 * row :][:4]
        # From the left the picture, and up to the right its versions.
        cells = part[:, :5], part[:, -11:-6], part[:, -5:]
        for cell, image in zip(cells, (images[row], *versions[row])):
            np.testing.assert_array_equal(cell, np.round(255 * image).squeeze())
    assert pixels.shape[1] >= 3 * 5 + 3  # The picture stands apart.
    expected = ["picture", "versions of it in training"]
    assert labels_of(axis.get_xticklabels()) == expected


@pytest.fixture
def log(tmp_path):
    """The path of a `log.csv` with two epochs."""
    path = tmp_path / "log.csv"
    path.write_text(LOG)
    return path


def test_log_is_read_by_columns(log):
    columns = utils.read_log(log)
    assert list(columns) == LOG.splitlines()[0].split(",")
    assert columns["epoch"].tolist() == [0, 1]
    assert columns["test_error"].tolist() == [12.5, 0.0]
    log.write_text(LOG.splitlines()[0] + "\n")
    assert utils.read_log(log) == {}


def test_plot_shows_losses_and_errors_in_percent(log, figures):
    utils.draw_log(log, log.with_suffix(".png"))
    left, right = figures[0].axes
    curves = {
        line.get_label(): (line.get_xdata().tolist(), list(line.get_ydata()))
        for axis in (left, right)
        for line in axis.get_lines()
    }
    assert curves == {
        "loss": ([1, 2], [0.5, 0.25]),
        "decoder loss": ([1, 2], [0.0625, 0.03125]),
        "training error": ([1, 2], [25.0, 0.0]),
        "test error": ([1, 2], [12.5, 0.0]),
    }


def test_held_out_curves_are_the_dashed_ones_of_their_colour(log, figures):
    names, *rows = LOG.split()
    names = names + ",val_loss,val_capsnet_accuracy"
    log.write_text("\n".join([names, *(f"{row},0.5,0.5" for row in rows)]))
    utils.draw_log(log, log.with_suffix(".png"))
    left, right = (
        {line.get_label(): line for line in axis.get_lines()}
        for axis in figures[0].axes
    )
    for lines, name, other in (
        (left, "loss", "held-out loss"),
        (right, "training error", "held-out error"),
    ):
        assert lines[name].get_color() == lines[other].get_color()
        styles = lines[name].get_linestyle(), lines[other].get_linestyle()
        assert styles == ("-", "--")
    # All others differ in colour and in marker.
    for lines in (left, right):
        solid = [each for each in lines.values() if each.get_linestyle() == "-"]
        assert len({each.get_color() for each in solid}) == len(solid) == 2
        assert len({each.get_marker() for each in solid}) == 2


def test_plot_of_one_epoch_is_a_picture_and_no_window(log):
    log.write_text("\n".join(LOG.splitlines()[:2]))
    utils.draw_log(log, log.with_suffix(".png"))
    assert_is_png(log.with_suffix(".png"))
    assert plt.get_fignums() == []
    assert plt.get_backend().lower() == "agg"


@pytest.mark.parametrize("made", (True, False))
@pytest.mark.parametrize("n", (1, 13))
def test_captions_are_large_and_cover_nothing(tmp_path, figures, n, made):
    images = random_pictures(n, 8, 8)
    titles = [f"{'Ankle boot ' * (k % 3)}-> automobile" for k in range(n)]
    titles[-1:] = ["Ankle boot IMG_2024_12345678.png\nSandal\nShirt (0.93)"]
    made = images if made else None
    path = tmp_path / "pairs.png"
    utils.draw_pairs(images, made, titles, path, "What all of them show")
    (figure,) = figures
    figure.draw_without_rendering()
    axes = figure.axes[:n]
    captions = [axis.title.get_window_extent() for axis in axes]
    assert axes[-1].get_title().splitlines()[1:] == ["Sandal", "Shirt (0.93)"]
    above = figure._suptitle
    assert above.get_text() == "What all of them show\n"
    captions.append(above.get_window_extent())
    for axis, caption, title in zip(axes, captions, titles):
        assert axis.title.get_fontsize() >= 10
        first = " ".join(title.split())
        assert axis.get_title().replace("\n", " ")[:12] == first[:12]
        others = [a.get_window_extent() for a in figure.axes]
        others += [other for other in captions if other is not caption]
        assert not any(caption.overlaps(other) for other in others)


@pytest.mark.parametrize("n_class", (2, 20, 21, 120))
def test_confusion_is_drawn_for_any_number_of_classes(
    n_class, tmp_path, figures
):
    confusion = np.diag(np.full(n_class, 900))
    confusion[0, 1] = 1
    names = [f"class ${number}" for number in range(n_class)]
    utils.draw_confusion(confusion, names, tmp_path / "confusion.png")
    assert_is_png(tmp_path / "confusion.png")
    axis, *scales = figures[0].axes
    assert len(scales) == (n_class > 20)
    assert axis.get_title() == f"1 of {confusion.sum()} pictures wrong"
    # True classes are rows: the mistake stands right of the corner.
    counts = {text.get_position(): text.get_text() for text in axis.texts}
    drawn = {(k, k): "900" for k in range(n_class)} | {(1, 0): "1"}
    assert counts == (drawn if n_class <= 20 else {})
    labels = labels_of(axis.get_yticklabels())
    assert labels == names[:: 2 if n_class == 120 else 1]
    # One mistake among 900 is neither white nor dark.
    image = axis.images[0]
    shades = image.cmap(image.norm(np.ma.masked_equal(confusion, 0)))
    assert 0.5 < shades[0, 1, 0] < 0.95 and shades[0, 0, 0] < 0.1
