"""Tests of --predict: the table, the files, and what is refused.

The command runs in an empty folder. References are loops.
"""

import csv
import os
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import bars
from PIL import Image
from running import NAMES, SHAPE, contents, lengths_of, message_of, run

import utils
from capsnet.evaluation.prediction import COLUMNS
from capsnet.files import locked
from capsnet.models.saving import save_model
from capsulenet import CapsNet


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The empty folder in which the command runs."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(path, pixels, **kwargs):
    """Writes a picture; returns its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels, "uint8")
    pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    Image.fromarray(pixels).save(path, **kwargs)
    return str(path)


@pytest.fixture
def picture(tmp_path):
    """The path of one picture."""
    return write(tmp_path / "one.png", bars(1, SHAPE)[0][0])


def table_of(out):
    """Rows of the printed table, cut where the heading's columns begin."""
    heading, *lines = out.splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", heading)]
    rows = [
        [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None])]
        for line in lines
    ]
    for row in rows:
        row[-1] = row[-1].removesuffix("unsure").strip()
    return [row for row in rows if row[1] in NAMES and row[3] in NAMES]


def expected_row(lengths):
    """Class, length, runner-up and its length."""
    first, second = sorted(range(3), key=lambda label: -lengths[label])[:2]
    row = NAMES[first], lengths[first], NAMES[second], lengths[second]
    return [v if isinstance(v, str) else f"{v:.3f}" for v in row]


def predicted(path, *argv):
    """Runs --predict with a model; the table's rows, and the run."""
    done = run("--predict", *argv, "-w", path)
    assert done.status == 0, done.err
    return table_of(done.out), done


def test_table_holds_the_predictions(named, tmp_path):
    path, model = named
    x, _ = bars(7, SHAPE, seed=3)
    files = [write(tmp_path / f"{i}.png", x[i]) for i in range(7)]
    expected = list(map(expected_row, lengths_of(model, x)))
    rows, done = predicted(path, *files)
    assert rows == [[file, *row] for file, row in zip(files, expected)]
    assert len({row[1] for row in rows}) > 1
    assert len(done.out.splitlines()) == 8
    assert contents(".") == {}  # Nothing was written.
    # A single picture, and the same twice.
    for single in ([files[0]], [files[0]] * 2):
        rows, _ = predicted(path, *single)
        assert [row[0::2] for row in rows] == [
            [file, *expected[0][1::2]] for file in single
        ]


def test_folders_are_searched_with_all_their_folders(named, tmp_path):
    x, _ = bars(6, SHAPE, seed=3)
    paths = ["b/2.PNG", "b/deep/er/1.bmp", "a/3.tif", "a.gif"]
    for path, pixels in zip(paths, x):
        write(tmp_path / "in" / path, pixels)
    single = write(tmp_path / "single.any", x[4], format="png")
    for path in (".hidden.png", ".git/4.png", "a/notes.txt"):
        write(tmp_path / "in" / path, x[5], format="png")
    rows, _ = predicted(named[0], single, tmp_path / "in")
    order = ["a/3.tif", "a.gif", "b/2.PNG", "b/deep/er/1.bmp"]
    assert [row[0] for row in rows] == [
        single,
        *(str(tmp_path / "in" / name) for name in order),
    ]


def test_pictures_are_seen_upright_grey_and_on_white(named, tmp_path):
    path, model = named
    grey = bars(1, SHAPE)[0][0]
    exif = Image.Exif()
    exif[0x0112] = 6  # To be seen, it has to be turned clockwise.
    rgb = np.repeat(grey, 3, axis=2)
    alpha = np.full_like(grey, 255)
    alpha[:4] = 0
    on_white = np.where(alpha == 0, 255, grey)
    rgba = np.concatenate([rgb, alpha], axis=2)
    rows, _ = predicted(
        path,
        write(tmp_path / "grey.png", grey),
        write(tmp_path / "rgb.png", rgb),
        write(tmp_path / "turned.png", np.rot90(grey), exif=exif),
        write(tmp_path / "white.png", on_white),
        write(tmp_path / "rgba.png", rgba),
    )
    seen = [expected_row(row) for row in lengths_of(model, [grey, on_white])]
    assert seen[0] != seen[1]
    assert [row[1:] for row in rows] == [*[seen[0]] * 3, *[seen[1]] * 2]


def test_grey_becomes_colour_for_a_colour_model(colour, tmp_path):
    path, model = colour
    grey = bars(1, SHAPE)[0][0]
    rgb = bars(1, (17, 17, 3), seed=1)[0][0]
    files = [write(tmp_path / "g.png", grey), write(tmp_path / "c.png", rgb)]
    rows, _ = predicted(path, *files, "--save_dir", "out")
    lengths = lengths_of(model, [np.repeat(grey, 3, axis=2), rgb])
    assert [row[1:] for row in rows] == list(map(expected_row, lengths))
    # Without a decoder the pictures are drawn alone.
    with Image.open("out/predictions.png") as drawn:
        drawn.load()


def test_pictures_of_other_sizes_are_resized_and_counted(named, tmp_path):
    path, model = named
    generator = np.random.default_rng(0)
    files, resized = [], []
    for height, width in ((17, 17), (34, 34), (17, 40), (5, 3)):
        pixels = generator.integers(0, 256, (height, width, 1), dtype="uint8")
        files.append(write(tmp_path / f"{height}-{width}.png", pixels))
        image = Image.fromarray(pixels[..., 0])
        image = image.resize((17, 17), Image.Resampling.LANCZOS)
        resized.append(np.asarray(image))
    rows, done = predicted(path, *files)
    lengths = lengths_of(model, resized)
    assert [row[1:] for row in rows] == list(map(expected_row, lengths))
    line = "Resized to 17x17 (height x width): 3 of 4 pictures"
    assert done.out.splitlines()[-1] == line
    assert "width): 1 of 1 picture\n" in predicted(path, files[1])[1].out


def test_all_unreadable_files_are_named_and_nothing_is_predicted(
    named, tmp_path
):
    x, _ = bars(3, SHAPE)
    good = [write(tmp_path / f"{i}.png", x[i]) for i in range(3)]
    cut, empty = tmp_path / "cut.png", tmp_path / "empty.jpg"
    cut.write_bytes(Path(good[0]).read_bytes()[:60])
    empty.write_bytes(b"")
    files = [good[0], cut, *good[1:], empty]
    done = run("--predict", *files, "-w", named[0])
    message = message_of(done)
    assert done.out == "" and good[0] not in message
    for part in (str(cut), str(empty), "2 of 5", "--skip_unreadable"):
        assert part in message

    rows, done = predicted(named[0], *files, "--skip_unreadable")
    assert [row[0] for row in rows] == good
    line = f"Left out, cannot be read: 2 ({cut}, {empty}: an empty file)"
    assert done.out.splitlines()[-1] == line

    argv = cut, empty, "--skip_unreadable", "-w", named[0]
    done = run("--predict", *argv)
    message = message_of(done)
    assert done.out == "" and "2 of 2" in message
    assert message.endswith(": replace them\n")

    (tmp_path / "none").mkdir()
    message = message_of(run("--predict", tmp_path / "none", "-w", named[0]))
    assert str(tmp_path / "none") in message


def test_short_capsules_are_called_unsure(named, tmp_path):
    path, model = named
    x = np.concatenate([bars(3, SHAPE, seed=3)[0], np.zeros((1, *SHAPE))])
    files = [write(tmp_path / f"{i}.png", x[i]) for i in range(4)]
    lines = predicted(path, *files)[1].out.splitlines()[1:]
    longest = lengths_of(model, x).max(-1)
    assert min(longest) < 0.5 < max(longest)
    for line, length in zip(lines, longest):
        assert line.endswith(" unsure") == (length < 0.5)


def test_dark_on_light_is_noted_and_turned(named, tmp_path):
    path = str(tmp_path / "dark.keras")
    record = {"class_names": NAMES, "border": [0.1, 0.05]}
    save_model(named[1], path, record)
    x, _ = bars(2, SHAPE, seed=3)
    slate = write(tmp_path / "slate.png", x[0])
    paper = write(tmp_path / "paper.png", 255 - x[0])
    rows, done = predicted(path, slate, paper)
    assert f"1 of 2 pictures ({paper}); --invert turns all" in done.out
    turned, done = predicted(path, paper, "--invert")
    assert turned[0][1:] == rows[0][1:] and "Dark on light" not in done.out
    done = predicted(path, slate, "--invert")[1]
    assert f"1 of 1 picture ({slate}); leave out --invert" in done.out


def test_csv_and_picture_are_written_where_save_dir_says(
    named, tmp_path, figures
):
    path, model = named
    x, _ = bars(53, SHAPE, seed=3)
    for number, pixels in enumerate(x):
        write(tmp_path / "in" / f"{number:02d}, 1.png", pixels)
    _, done = predicted(path, tmp_path / "in", "--save_dir", "out/new")
    assert "out/new: predictions.csv" in done.out
    with open("out/new/predictions.csv", newline="", encoding="utf-8") as file:
        heading, *rows = csv.reader(file)
    assert tuple(heading) == COLUMNS["one"] and len(rows) == 53
    for number, (row, lengths) in enumerate(zip(rows, lengths_of(model, x))):
        assert row[0] == str(tmp_path / "in" / f"{number:02d}, 1.png")
        first, second = sorted(range(3), key=lambda label: -lengths[label])[:2]
        assert (row[1], row[3]) == (NAMES[first], NAMES[second])
        for written, label in ((row[2], first), (row[4], second)):
            assert float(written) == pytest.approx(lengths[label], abs=2e-6)
    # The first 50 beside their reconstructions.
    axes = [axis for axis in figures[0].axes if axis.get_images()]
    assert len(axes) == 50
    made = model.predict(x[:50] / 255, verbose=0)["decoder"]
    for axis, *pair in zip(axes, x / 255, made):
        expected = utils.combine_images(pair, 2)[..., 0].astype(int)
        shown = axis.get_images()[0].get_array()
        np.testing.assert_allclose(shown, expected, atol=1)
    title = f"00, 1.png {rows[0][1]} ({float(rows[0][2]):.2f})"
    assert axes[0].get_title().replace("\n", " ") == title


def test_hundreds_of_files_keep_their_order(named, tmp_path):
    path, model = named
    x, _ = bars(620, SHAPE, seed=3)
    for number, pixels in enumerate(x):
        write(tmp_path / "in" / f"{number:03d}.png", pixels)
    rows, done = predicted(path, tmp_path / "in")
    assert len(rows) == 620 and len(done.out.splitlines()) == 621
    labels = lengths_of(model, x).argmax(-1)
    assert [row[1] for row in rows] == [NAMES[label] for label in labels]
    assert done.err == ""  # Progress is for terminals.


def test_names_that_no_terminal_can_show_keep_the_table_in_shape(
    named, tmp_path
):
    file = write(tmp_path / "in" / "a\nb\x1b[2J.png", bars(1, SHAPE)[0][0])
    raw = os.fsencode(tmp_path / "in" / "raw-") + b"\xff.png"
    Path(os.fsdecode(raw)).write_bytes(Path(file).read_bytes())
    rows, _ = predicted(named[0], tmp_path / "in", "--save_dir", "out")
    assert [Path(row[0]).name for row in rows] == [
        r"a\nb\x1b[2J.png",
        r"raw-\udcff.png",
    ]
    with open("out/predictions.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) == 3


def test_several_models_predict_with_the_mean_of_their_lengths(named, tmp_path):
    path, model = named
    keras.utils.set_random_seed(5)
    other = CapsNet(SHAPE, 3, primary_scale=16.0)[1]
    save_model(other, str(tmp_path / "other.keras"), {"class_names": NAMES})
    x, _ = bars(5, SHAPE, seed=3)
    files = [write(tmp_path / "in" / f"{i}.png", x[i]) for i in range(5)]
    done = run("--predict", *files, "-w", path, tmp_path / "other.keras")
    assert done.status == 0 and "2 models" in done.out
    lengths = (lengths_of(model, x) + lengths_of(other, x)) / 2
    assert [row[1:] for row in table_of(done.out)] == list(
        map(expected_row, lengths)
    )


def test_models_of_different_pictures_or_classes_are_refused(
    named, colour, picture, tmp_path
):
    renamed = str(tmp_path / "renamed.keras")
    save_model(named[1], renamed, {"class_names": ["x", "y", "z"]})
    for other in (colour[0], renamed):
        done = run("--predict", picture, "-w", named[0], other)
        message = message_of(done)
        assert done.out == "" and "differ" in message
        assert named[0] in message and other in message


def test_busy_save_dir_is_refused(named, picture):
    argv = ["--predict", picture, "-w", named[0]]
    with locked("busy"):
        message = message_of(run(*argv, "--save_dir", "busy"))
        assert "another run" in message
    with locked("result"):  # Not written to, so not asked for.
        assert run(*argv).status == 0


WRONG = """
--predict a.png                           --predict needs a model: -w FILE
--export out                              --export needs a model: -w FILE
--predict -w m.keras                      expected at least one argument
--export -w m.keras                       expected one argument
--predict a.png -w m.keras old.h5         'old.h5'
--export out -w old.h5                    'old.h5'
--predict a.png -w no.keras               'no.keras', which is not
--export out -w m.keras n.keras           --export takes one model
--export m.onnx -w m.keras                or a .keras file, got 'm.onnx'
--predict a.png b.png -w m.keras          'b.png', which is not there
--predict a.png -t -w m.keras             exclude each other
--predict a.png --digit 1 -w m.keras      exclude each other
--predict a.png --export out -w m.keras   exclude each other
--predict a.png --resume -w m.keras       --resume has no effect with --predict
--predict a.png -w m.keras --dataset x    --dataset has no effect with
--export out -w m.keras --grayscale       --grayscale has no effect with
--export out -w m.keras --save_dir x      --save_dir has no effect with
--export full -w m.keras                  new or empty folder, got 'full'
--export a.png -w m.keras                 new or empty folder, got 'a.png'
--export '' -w m.keras                    got ''
--predict '' -w m.keras                   --predict expects
--predict a.png -w m.keras --save_dir m.keras  --save_dir expects
"""


@pytest.mark.parametrize("line", WRONG.strip().splitlines())
def test_wrong_command_lines_tell_what_to_do(here, line):
    (here / "full").mkdir()
    for name in ("a.png", "m.keras", "n.keras", "old.h5", "full/file"):
        Path(name).write_bytes(b"")
    argv, expected = re.split("  +", line)
    done = run(*shlex.split(argv))
    assert expected in message_of(done) and done.out == ""
