"""Tests of --predict and --export, and of what testing says of each class.

One model is trained, on a folder of grey 17x17 pictures of three named
classes. The command runs in this process, in an empty folder.
"""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from conftest import bars
from PIL import Image

import capsulenet
import utils
from capsnet.cli.checks import is_training
from capsnet.cli.settings import parse_args
from capsnet.data.sources import Dataset
from capsnet.evaluation.figures import test_figures, worst_classes
from capsnet.evaluation.prediction import COLUMNS
from capsnet.files import locked
from capsnet.models import inference
from capsnet.models.networks import Baseline, attach
from capsnet.models.saving import class_names_of, load_model, save_model

ROOT = Path(__file__).parents[1]
NAMES = ["bottom $1", "middle", "top"]
SHAPE = (17, 17, 1)


class Model(NamedTuple):
    """A model's file and the model in it."""

    path: str
    model: keras.Model

    def lengths(self, x):
        x = np.asarray(x, "float32").reshape(-1, *self.model.input.shape[1:])
        return self.model.predict(x / 255, verbose=0)["capsnet"]


def save(folder, model, names=NAMES):
    """Saves a model as a training would."""
    path = str(folder / "trained_model.keras")
    save_model(model, path, {"class_names": names})
    return Model(path, model)


def write(path, pixels, **kwargs):
    """Writes a picture; returns its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels, "uint8")
    utils.to_pillow(pixels).save(path, **kwargs)
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that was trained for an epoch, by the command."""
    folder = tmp_path_factory.mktemp("trained")
    for part, count, seed in (("train", 45, 0), ("test", 12, 1)):
        x, y = bars(count, SHAPE, seed=seed)
        for number, (pixels, label) in enumerate(zip(x, y)):
            name = f"{number}.png"
            write(folder / "data" / part / NAMES[label] / name, pixels)
    argv = ["--dataset", folder / "data", "--save_dir", folder / "run"]
    argv += ["--epochs", 1, "--batch_size", 15]
    assert capsulenet.main(list(map(str, argv))) == 0
    path = str(folder / "run" / "trained_model.keras")
    return Model(path, keras.models.load_model(path))


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """An untrained model for pictures in colour, without a decoder."""
    keras.utils.set_random_seed(0)
    models = capsulenet.CapsNet((17, 17, 3), 3, decoder=False)
    return save(tmp_path_factory.mktemp("colour"), models[1])


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in an empty folder: status, stdout, stderr."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def command(*argv):
        capsys.readouterr()
        try:
            status = capsulenet.main(list(map(str, argv)))
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return command


def table_of(out, names=NAMES):
    """Rows of the printed table, cut where the heading's columns begin."""
    heading, *lines = out.splitlines()
    starts = [0]
    for title in ("class", "length", "runner-up", "length"):
        starts.append(heading.index(title, starts[-1] + 1))
    ends = [*starts[1:], None]
    rows = [
        [line[start:end].strip() for start, end in zip(starts, ends)]
        for line in lines
    ]
    return [row for row in rows if row[1] in names and row[3] in names]


def expected_row(lengths, names=NAMES):
    """Class, length, runner-up and its length, found by a loop."""
    best = second = None
    for number, length in enumerate(lengths):
        if best is None or length > lengths[best]:
            best, second = number, best
        elif second is None or length > lengths[second]:
            second = number
    return [
        names[best],
        f"{lengths[best]:.3f}",
        names[second],
        f"{lengths[second]:.3f}",
    ]


# Figures of a test.


def test_figures_of_each_class_are_read_off_the_confusion():
    confusion = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    assert test_figures(confusion, ["a", "b", "c"]) == {
        "accuracy": 0.875,
        "test_error": 12.5,
        "mistakes": 1,
        "pictures": 8,
        "classes": {
            "a": {"pictures": 4, "mistakes": 1, "error": 25.0},
            "b": {"pictures": 4, "mistakes": 0, "error": 0.0},
            "c": {"pictures": 0, "mistakes": 0, "error": None},
        },
        "confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]],
    }


def mislabelled(model, count=20, wrong=(3, 5, 8, 13)):
    """Pictures with the classes a model gives them, but for some."""
    x, _ = bars(count, model.model.input.shape[1:], seed=2)
    lengths = model.lengths(x)
    y = lengths.argmax(-1)
    y[list(wrong)] = (y[list(wrong)] + 1) % 3
    return Dataset(x, y, x, y, NAMES, "bars"), lengths


@pytest.fixture
def drawn(monkeypatch):
    """The arguments of all calls of `utils.draw_pairs`, which draws, too."""
    calls, draw = [], utils.draw_pairs

    def watch(*args):
        calls.append(args)
        draw(*args)

    monkeypatch.setattr(utils, "draw_pairs", watch)
    return calls


@pytest.mark.parametrize("name", ("trained", "colour"))
def test_worst_mistakes_are_drawn_first(name, request, tmp_path, drawn):
    model = request.getfixturevalue(name)
    data, lengths = mislabelled(model)
    figures = capsulenet.test([model.model], data, str(tmp_path))
    order = sorted((3, 5, 8, 13), key=lambda i: -lengths[i].max())
    ((images, reconstructions, titles, _),) = drawn
    np.testing.assert_allclose(images, data.x_test[order] / 255)
    assert titles == [
        f"{NAMES[data.y_test[i]]} -> {NAMES[lengths[i].argmax()]}"
        for i in order
    ]
    if name == "colour":
        assert reconstructions is None
    else:
        x = data.x_test[order].astype("float32") / 255
        expected = model.model.predict(x, verbose=0)["decoder"]
        np.testing.assert_allclose(reconstructions, expected, atol=1e-5)
    confusion = np.zeros((3, 3), int)
    for true, predicted in zip(data.y_test, lengths.argmax(-1)):
        confusion[true, predicted] += 1
    assert figures["confusion"] == confusion.tolist()
    assert json.loads((tmp_path / "test.json").read_text()) == figures
    for picture in ("mistakes.png", "confusion.png"):
        with Image.open(tmp_path / picture) as opened:
            opened.load()


def test_at_most_50_mistakes_are_drawn(trained, tmp_path, monkeypatch):
    data, _ = mislabelled(trained, 60, range(60))
    drawn = []
    monkeypatch.setattr(
        utils,
        "draw_pairs",
        lambda images, made, titles, path: (
            drawn.append((len(images), len(made), len(titles))),
            Path(path).write_bytes(b""),
        ),
    )
    assert capsulenet.test([trained.model], data, str(tmp_path))["mistakes"]
    assert drawn == [(50, 50, 50)]


def test_without_a_mistake_no_old_picture_of_mistakes_stays(trained, tmp_path):
    data, _ = mislabelled(trained, wrong=())
    (tmp_path / "mistakes.png").write_bytes(b"of an earlier model")
    figures = capsulenet.test([trained.model], data, str(tmp_path))
    assert figures["mistakes"] == 0
    assert not (tmp_path / "mistakes.png").exists()


def counts(*mistakes):
    """`figures["classes"]` of classes a, b, c, ... of 20 pictures each."""
    return {
        name: {"pictures": 20, "mistakes": wrong, "error": 5.0 * wrong}
        for name, wrong in zip("abcdefgh", mistakes)
    }


@pytest.mark.parametrize(
    "classes, line",
    [
        (counts(1, 2, 0), "Worst class: b, 10.00 % (2 of 20)"),
        (counts(3, 1, 3), "Worst classes: a, c, 15.00 % each"),
        (counts(*[20] * 8), "Worst classes: a, b, c and 5 more, 100.00 % each"),
        (
            {**counts(1), "z": {"pictures": 0, "mistakes": 0, "error": None}},
            "Worst class: a, 5.00 % (1 of 20)",
        ),
    ],
)
def test_worst_classes_are_named(classes, line):
    assert worst_classes(classes) == line


def test_printed_test_names_the_worst_class(trained, run):
    status, out, _ = run("-t", "-w", trained.path, "--save_dir", "t")
    assert status == 0
    figures = json.loads(Path("t/test.json").read_text())
    written = sorted(path.name for path in Path("t").glob("[!.]*"))
    if figures["mistakes"]:
        worst = max(each["error"] for each in figures["classes"].values())
        assert f"{worst:.2f} %" in out and "\nWorst class" in out
        assert "mistakes.png" in written
    else:
        assert "No mistakes, so no mistakes.png" in out
    for name in written:
        assert name in out.splitlines()[-1]
    assert str(trained.path) in out.splitlines()[0]
    assert len(out.splitlines()) <= 5


@pytest.mark.parametrize("n_class", (2, 20, 21, 120))
def test_confusion_is_drawn_for_any_number_of_classes(
    n_class, tmp_path, monkeypatch
):
    figures = []
    monkeypatch.setattr(utils, "save_figure", lambda f, _: figures.append(f))
    confusion = np.diag(np.full(n_class, 900))
    confusion[0, 1] = 1
    names = [f"class ${number}" for number in range(n_class)]
    utils.draw_confusion(confusion, names, tmp_path / "confusion.png")
    (axis,) = figures[0].axes
    counts = sorted(text.get_text() for text in axis.texts)
    drawn = ["1", *["900"] * n_class] if n_class <= 20 else []
    assert counts == drawn
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels == names[:: 2 if n_class == 120 else 1]
    # One mistake among 900 is neither white nor dark.
    image = axis.images[0]
    shades = image.cmap(image.norm(np.ma.masked_equal(confusion, 0)))
    assert 0.5 < shades[0, 1, 0] < 0.95 and shades[0, 0, 0] < 0.1
    figures[0].canvas.draw()
    utils.plt.close(figures[0])


# Predictions.


def test_table_holds_what_the_model_predicts(trained, run, tmp_path):
    x, _ = bars(7, SHAPE, seed=3)
    files = [write(tmp_path / f"{i}.png", x[i]) for i in range(7)]
    status, out, _ = run("--predict", *files, "-w", trained.path)
    assert status == 0
    assert table_of(out) == [
        [file, *expected_row(lengths)]
        for file, lengths in zip(files, trained.lengths(x))
    ]
    assert len(out.splitlines()) == 8
    assert list(Path().iterdir()) == []  # Nothing was written.


def test_one_picture_and_the_same_twice(trained, run, tmp_path):
    file = write(tmp_path / "one.png", bars(1, SHAPE)[0][0])
    once = table_of(run("--predict", file, "-w", trained.path)[1])
    assert len(once) == 1
    twice = table_of(run("--predict", file, file, "-w", trained.path)[1])
    assert [row[0::2] for row in twice] == [row[0::2] for row in once * 2]


def test_folders_are_searched_with_all_their_folders(trained, run, tmp_path):
    x, _ = bars(6, SHAPE, seed=3)
    paths = ["b/2.PNG", "b/deep/er/1.bmp", "a/3.tif", "a.gif", "single.any"]
    for path, pixels in zip(paths[:4], x):
        write(tmp_path / "in" / path, pixels)
    single = write(tmp_path / paths[4], x[4], format="png")
    for path in (".hidden.png", ".git/4.png", "a/notes.txt"):
        write(tmp_path / "in" / path, x[5], format="png")
    status, out, _ = run(
        "--predict", single, tmp_path / "in", "-w", trained.path
    )
    assert status == 0
    order = ["single.any", "in/a/3.tif", "in/a.gif", "in/b/2.PNG"]
    order.append("in/b/deep/er/1.bmp")
    assert [row[0] for row in table_of(out)] == [
        str(tmp_path / name) for name in order
    ]


def test_turned_picture_is_seen_upright(trained, run, tmp_path):
    pixels = bars(1, SHAPE)[0][0]
    exif = Image.Exif()
    exif[0x0112] = 6  # To be seen, it has to be turned clockwise.
    upright = write(tmp_path / "upright.png", pixels)
    turned = write(tmp_path / "turned.png", np.rot90(pixels), exif=exif)
    status, out, _ = run("--predict", upright, turned, "-w", trained.path)
    assert status == 0
    first, second = table_of(out)
    assert first[1:] == second[1:]


def test_colour_and_transparency_become_grey_for_a_grey_model(
    trained, run, tmp_path
):
    grey = bars(1, SHAPE)[0][0]
    alpha = np.full_like(grey, 255)
    alpha[:4] = 0  # What is transparent is white.
    on_white = np.where(alpha == 0, 255, grey)
    files = [
        write(tmp_path / "grey.png", grey),
        write(tmp_path / "rgb.png", np.repeat(grey, 3, axis=2)),
        write(tmp_path / "white.png", on_white),
        write(
            tmp_path / "rgba.png",
            np.concatenate([np.repeat(grey, 3, axis=2), alpha], axis=2),
        ),
    ]
    status, out, _ = run("--predict", *files, "-w", trained.path)
    assert status == 0
    rows = [row[1:] for row in table_of(out)]
    assert rows[0] == rows[1] == expected_row(trained.lengths(grey)[0])
    assert rows[2] == rows[3] == expected_row(trained.lengths(on_white)[0])


def test_grey_becomes_colour_for_a_colour_model(colour, run, tmp_path):
    grey = bars(1, SHAPE)[0][0]
    rgb = bars(1, (17, 17, 3), seed=1)[0][0]
    files = [write(tmp_path / "g.png", grey), write(tmp_path / "c.png", rgb)]
    argv = ["--predict", *files, "-w", colour.path, "--save_dir", "out"]
    status, out, _ = run(*argv)
    assert status == 0
    lengths = colour.lengths([np.repeat(grey, 3, axis=2), rgb])
    assert [row[1:] for row in table_of(out)] == list(
        map(expected_row, lengths)
    )
    # Without a decoder the pictures are drawn alone.
    with Image.open("out/predictions.png") as picture:
        picture.load()


def test_pictures_of_other_sizes_are_resized_and_counted(
    trained, run, tmp_path
):
    generator = np.random.default_rng(0)
    sizes = ((17, 17), (34, 34), (17, 40), (5, 3))
    files, resized = [], []
    for height, width in sizes:
        pixels = generator.integers(0, 256, (height, width, 1), dtype="uint8")
        files.append(write(tmp_path / f"{height}-{width}.png", pixels))
        picture = utils.to_pillow(pixels)
        picture = picture.resize((17, 17), Image.Resampling.LANCZOS)
        resized.append(np.asarray(picture))
    status, out, _ = run("--predict", *files, "-w", trained.path)
    assert status == 0
    assert [row[1:] for row in table_of(out)] == list(
        map(expected_row, trained.lengths(resized))
    )
    size = "17x17 (height x width)"
    assert out.splitlines()[-1] == f"Resized to {size}: 3 of 4 pictures"
    status, out, _ = run("--predict", files[1], "-w", trained.path)
    assert out.splitlines()[-1] == f"Resized to {size}: 1 of 1 picture"


def test_all_unreadable_files_are_named_and_nothing_is_predicted(
    trained, run, tmp_path
):
    x, _ = bars(3, SHAPE)
    good = [write(tmp_path / f"{i}.png", x[i]) for i in range(3)]
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(good[0]).read_bytes()[:60])
    empty = tmp_path / "empty.jpg"
    empty.write_bytes(b"")
    argv = ["--predict", good[0], cut, *good[1:], empty, "-w", trained.path]
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert str(cut) in err and str(empty) in err and good[0] not in err
    assert "2 of 5" in err and "--skip_unreadable" in err
    assert err.count("\n") == 1

    status, out, err = run(*argv, "--skip_unreadable")
    assert status == 0
    assert [row[0] for row in table_of(out)] == good
    assert out.splitlines()[-1] == (
        f"Left out, cannot be read: 2 ({cut}, {empty})"
    )

    status, out, err = run(
        "--predict", cut, empty, "-w", trained.path, "--skip_unreadable"
    )
    assert (status, out) == (2, "") and "2 of 2" in err
    assert err.endswith(": replace them\n") and "--skip_unreadable" not in err


def test_csv_and_picture_are_written_where_save_dir_says(
    trained, run, tmp_path, drawn
):
    x, _ = bars(53, SHAPE, seed=3)
    for number, pixels in enumerate(x):
        write(tmp_path / "in" / f"{number:02d}, 1.png", pixels)
    argv = ["--predict", tmp_path / "in", "-w", trained.path]
    status, out, _ = run(*argv, "--save_dir", "out/new")
    assert status == 0 and "out/new: predictions.csv" in out
    with open("out/new/predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 53
    for number, (row, lengths) in enumerate(zip(rows, trained.lengths(x))):
        assert row["file"] == str(tmp_path / "in" / f"{number:02d}, 1.png")
        ordered = sorted(range(3), key=lambda label: -lengths[label])
        assert row["class"] == NAMES[ordered[0]]
        assert row["runner_up"] == NAMES[ordered[1]]
        for key, label in zip(("length", "runner_up_length"), ordered):
            assert float(row[key]) == pytest.approx(lengths[label], abs=2e-6)
    ((images, reconstructions, titles, _),) = drawn
    np.testing.assert_allclose(images, x[:50] / 255)
    expected = trained.model.predict(x[:50] / 255, verbose=0)["decoder"]
    np.testing.assert_allclose(reconstructions, expected, atol=1e-5)
    length = f"({float(rows[0]['length']):.2f})"
    assert titles[0] == f"00, 1.png: {rows[0]['class']} {length}"
    assert len(titles) == 50
    with Image.open("out/new/predictions.png") as picture:
        picture.load()


def test_hundreds_of_files_are_read_in_batches_with_a_bar(
    trained, run, tmp_path, monkeypatch
):
    x, _ = bars(620, SHAPE, seed=3)
    for number, pixels in enumerate(x):
        write(tmp_path / "in" / f"{number:03d}.png", pixels)
    sizes = []
    predict = inference.predict

    def watch(model, pictures):
        sizes.append(len(pictures))
        return predict(model, pictures)

    monkeypatch.setattr(capsulenet, "predict", watch)
    status, out, err = run("--predict", tmp_path / "in", "-w", trained.path)
    assert status == 0
    assert sizes == [250, 250, 120]
    rows = table_of(out)
    assert len(rows) == 620 and len(out.splitlines()) == 621
    assert [row[1] for row in rows] == [
        NAMES[label] for label in trained.lengths(x).argmax(-1)
    ]
    assert "620/620" in err and "620/620" not in out


def test_names_that_no_terminal_can_show_keep_the_table_in_shape(
    trained, run, tmp_path
):
    file = write(tmp_path / "a\nb\x1b[2J.png", bars(1, SHAPE)[0][0])
    raw = os.fsencode(tmp_path / "raw-") + b"\xff.png"
    Path(os.fsdecode(raw)).write_bytes(Path(file).read_bytes())
    argv = ["--predict", tmp_path, "-w", trained.path, "--save_dir", "out"]
    status, out, _ = run(*argv)
    assert status == 0
    assert [Path(row[0]).name for row in table_of(out)] == [
        "a?b?[2J.png",
        "raw-?.png",
    ]
    with open("out/predictions.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 3


def test_several_models_predict_with_the_mean_of_their_lengths(
    trained, run, tmp_path
):
    keras.utils.set_random_seed(5)
    other = save(tmp_path, capsulenet.CapsNet(SHAPE, 3)[1])
    x, _ = bars(5, SHAPE, seed=3)
    files = [write(tmp_path / "in" / f"{i}.png", x[i]) for i in range(5)]
    argv = ["--predict", *files, "-w", trained.path, other.path]
    status, out, _ = run(*argv)
    assert status == 0 and "2 models" in out
    lengths = (trained.lengths(x) + other.lengths(x)) / 2
    assert [row[1:] for row in table_of(out)] == list(
        map(expected_row, lengths)
    )


def test_models_of_different_pictures_or_classes_are_refused(
    trained, colour, run, tmp_path
):
    file = write(tmp_path / "1.png", bars(1, SHAPE)[0][0])
    renamed = save(tmp_path, trained.model, ["x", "y", "z"])
    for other in (colour, renamed):
        status, out, err = run(
            "--predict", file, "-w", trained.path, other.path
        )
        assert (status, out) == (2, "")
        assert trained.path in err and other.path in err and "differ" in err


def test_model_without_class_names_numbers_its_classes():
    for record in ({}, {"class_names": ["a"]}, {"class_names": 5}):
        assert class_names_of(record, 3) == ["0", "1", "2"]


def test_models_of_others_are_refused(trained, run, tmp_path):
    file = write(tmp_path / "1.png", bars(1, SHAPE)[0][0])
    path = str(tmp_path / "other.keras")
    models = [
        keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)]),
        attach(trained.model)[0],
    ]
    for model in models:
        model.save(path)
        for argv in (["--predict", file], ["--export", "out"]):
            status, out, err = run(*argv, "-w", path)
            assert (status, out) == (2, "") and err.count("\n") == 1
            assert path in err and "capsulenet.py" in err
    Path(path).write_bytes(Path(trained.path).read_bytes()[:-1000])
    status, _, err = run("--predict", file, "-w", path)
    assert status == 2 and path in err


def test_folder_without_pictures_is_named(trained, run, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    status, out, err = run("--predict", empty, "-w", trained.path)
    assert (status, out) == (2, "") and str(empty) in err and "none" in err


def test_busy_save_dir_is_refused(trained, run, tmp_path):
    file = write(tmp_path / "1.png", bars(1, SHAPE)[0][0])
    argv = ["--predict", file, "-w", trained.path]
    with locked(str(tmp_path / "busy")):
        status, out, err = run(*argv, "--save_dir", tmp_path / "busy")
        assert (status, out) == (2, "") and "another run" in err
    with locked("result"):  # Not written to, so not asked for.
        assert run(*argv)[0] == 0


# Export.


@pytest.mark.parametrize("name", ("trained", "colour"))
def test_exported_model_computes_the_same(name, request, run):
    if keras.backend.backend() == "torch":
        pytest.skip("a SavedModel needs TensorFlow or JAX")
    tensorflow = pytest.importorskip("tensorflow")
    model = request.getfixturevalue(name)
    if name == "colour":
        Path("out").mkdir()  # An empty folder is taken.
    status, out, _ = run("--export", "out", "-w", model.path)
    assert status == 0 and "saved_model.load('out')" in out
    assert [path.name for path in Path().iterdir()] == ["out"]
    record = json.loads(Path("out/assets.extra/run.json").read_text())
    assert record["class_names"] == NAMES
    served = tensorflow.saved_model.load("out")
    for count in (1, 5):
        x = bars(count, model.model.input.shape[1:])[0] / np.float32(255)
        expected = model.model.predict(x, verbose=0)
        outputs = served.serve(x)
        assert outputs.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[key], value, atol=1e-5)
    if keras.backend.backend() == "tensorflow":
        layer = keras.layers.TFSMLayer("out", call_endpoint="serve")
        for key, value in layer(x).items():
            np.testing.assert_allclose(value, expected[key], atol=1e-5)


@pytest.mark.parametrize("name", ("trained", "colour"))
def test_export_in_16_bits_is_half_as_large(name, request, run):
    model = request.getfixturevalue(name)
    status, out, _ = run("--export", "half.keras", "-w", model.path)
    assert status == 0 and "python capsulenet.py -t -w half.keras" in out
    assert [path.name for path in Path().iterdir()] == ["half.keras"]
    size = os.path.getsize("half.keras")
    assert 0.45 < size / os.path.getsize(model.path) < 0.6
    loaded, record = load_model("half.keras")
    assert record == load_model(str(model.path))[1]
    pairs = zip(loaded.weights, model.model.weights, strict=True)
    for weight, expected in pairs:
        assert weight.dtype == expected.dtype
        # Half a unit in the last of ten binary places, or of the smallest.
        np.testing.assert_allclose(weight, expected, rtol=2**-11, atol=2**-25)
    x = bars(5, model.model.input.shape[1:])[0] / np.float32(255)
    expected = model.model.predict(x, verbose=0)["capsnet"]
    lengths = loaded.predict(x, verbose=0)["capsnet"]
    np.testing.assert_allclose(lengths, expected, atol=5e-3)
    assert not np.array_equal(lengths, expected)
    # What is there is not overwritten.
    status, out, err = run("--export", "half.keras", "-w", model.path)
    assert (status, out) == (2, "") and "expects a new file" in err


def test_weights_too_large_for_16_bits_are_refused(trained, run, tmp_path):
    model, record = load_model(str(trained.path))
    model.get_layer("conv1").bias.assign_add(
        np.full(model.get_layer("conv1").bias.shape, 7e4, "float32")
    )
    path = str(tmp_path / "large.keras")
    save_model(model, path, record)
    status, out, err = run("--export", "half.keras", "-w", path)
    assert (status, out) == (2, "") and "65,504" in err
    assert err.count("\n") == 1 and not Path("half.keras").exists()


def test_export_that_fails_leaves_nothing(trained, run, monkeypatch):
    def fail(model, path, **kwargs):
        Path(path, "variables").mkdir(parents=True)
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr(keras.Model, "export", fail)
    status, out, err = run("--export", "out", "-w", trained.path)
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert "'out'" in err and "no room" in err
    assert list(Path().iterdir()) == []


# The model as a file.

LOAD = """
import sys
import capsulelayers, keras
for path in sys.argv[1:]:
    model = keras.models.load_model(path, safe_mode=True)
    print(model.name, sorted(model.output), getattr(model, "optimizer", None))
print("capsulenet" in sys.modules)
"""


def test_model_loads_after_importing_the_layers_alone(trained, tmp_path):
    """The baseline and a model without a decoder once took their loss along."""
    paths = [trained.path]
    for name, models in (
        ("plain", capsulenet.CapsNet(SHAPE, 3, decoder=False)),
        ("baseline", Baseline(SHAPE, 3)),
    ):
        schedule = capsulenet.Decay(0.001, 2, 0.9)
        capsulenet.compile_model(models[0], schedule, 0.0)
        folder = tmp_path / name
        folder.mkdir()
        paths.append(save(folder, models[1]).path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "capsnet_model ['capsnet', 'decoder'] None",
        "capsnet_model ['capsnet'] None",
        "baseline ['capsnet'] None",
        "False",
    ], done.stderr


def test_readme_shows_how_to_use_the_model(
    trained, tmp_path, monkeypatch, capsys
):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Use the model in your own program")[1]
    code = section.split("```python\n")[1].split("```")[0]
    lines = [line for line in code.splitlines() if line]
    assert len([line for line in lines if "import" not in line]) == 5
    (tmp_path / "result").mkdir()
    os.link(trained.path, tmp_path / "result" / "trained_model.keras")
    x, _ = bars(1, SHAPE)
    write(tmp_path / "picture.png", x[0])
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    name = NAMES[trained.lengths(x)[0].argmax()]
    assert name in capsys.readouterr().out


# Wrong command lines.


def message_of(capsys, *argv):
    with pytest.raises(SystemExit) as caught:
        parse_args(list(map(str, argv)))
    assert caught.value.code == 2
    printed, message = capsys.readouterr()
    assert printed == "" and message.count("\n") == 1
    return message


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Names of files that are there, as far as the flags are concerned."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "m.keras", "n.keras", "old.h5", "full/file"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")


@pytest.mark.parametrize(
    "argv, expected",
    (
        ("--predict a.png", "--predict needs a model: -w FILE"),
        ("--export out", "--export needs a model: -w FILE"),
        ("--predict -w m.keras", "expected at least one argument"),
        ("--export -w m.keras", "expected one argument"),
        ("--predict a.png -w old.h5", "a .keras file, got 'old.h5'"),
        ("--predict a.png -w m.keras old.h5", "got 'old.h5'"),
        ("--export out -w old.h5", "a .keras file, got 'old.h5'"),
        ("--predict a.png -w no.keras", "'no.keras', which is not a file"),
        ("--export out -w no.keras", "'no.keras', which is not a file"),
        ("--export out -w m.keras n.keras", "--export takes one model"),
        ("--predict b.png a.png c -w m.keras", "not there: b.png, c "),
        ("--predict a.png -t -w m.keras", "-t and --predict exclude"),
        ("--predict a.png --digit 1 -w m.keras", "--digit and --predict"),
        ("--export out -t -w m.keras", "-t and --export exclude"),
        ("--predict a.png --export out -w m.keras", "--predict and --export"),
        ("--predict a.png --resume -w m.keras", "leave --predict out"),
        ("--export out --resume -w m.keras", "leave --export out"),
        ("--predict a.png -w m.keras --dataset digits", "--dataset out"),
        ("--predict a.png -w m.keras --grayscale", "--grayscale out"),
        ("--export out -w m.keras --image_size 9 9", "--image_size out"),
        ("--export out -w m.keras --save_dir x", "leave --save_dir out"),
        ("--export full -w m.keras", "new or empty folder, got 'full'"),
        ("--export a.png -w m.keras", "new or empty folder, got 'a.png'"),
        ("--predict a.png -w m.keras --save_dir m.keras", "--save_dir expects"),
    ),
)
def test_wrong_command_lines_tell_what_to_do(capsys, files, argv, expected):
    assert expected in message_of(capsys, *argv.split())


def test_names_of_nothing_are_refused(capsys, files):
    assert "''" in message_of(capsys, "--export", "", "-w", "m.keras")
    assert "--predict expects" in message_of(
        capsys, "--predict", "", "-w", "m.keras"
    )


def test_predict_and_export_are_no_training(files):
    for argv in (["--predict", "a.png"], ["--export", "out"]):
        args = parse_args([*argv, "-w", "m.keras"])
        assert not is_training(args)
        assert args.dataset is None
    assert is_training(parse_args([]))
    assert not is_training(parse_args(["--digit", "1", "-w", "m.keras"]))
