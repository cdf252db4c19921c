"""Tests of fonts.py: letters of any script in pictures, without a warning."""

import shutil

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

import utils
from capsnet import fonts

LAST_RESORT = "\u4e2d"  # No font that matplotlib brings has it.


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Only matplotlib's own fonts, and nothing remembered."""
    own = [
        font
        for font in font_manager.fontManager.ttflist
        if font.fname.startswith(matplotlib.get_data_path())
    ]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(fonts, "FONTS", ["DejaVu Sans"])
    fonts.has_font.cache_clear()
    with matplotlib.rc_context():
        yield
    fonts.has_font.cache_clear()


def test_names_without_letters_are_their_numbers():
    names = ["größe", f"cat {LAST_RESORT}", "é\u0301", "犬"]
    assert fonts.drawable_names(names) == ["größe", "1", "é\u0301", "3"]
    (line,) = fonts.legend(names)
    assert line.endswith(f"they are numbers: 1 cat {LAST_RESORT}, 3 犬")
    assert fonts.legend(["größe", "a"]) == []
    assert fonts.drawable(f"a {LAST_RESORT}.png\n") == "a ?.png\n"


def test_font_of_the_machine_is_used_where_it_has_the_letters(
    tmp_path, monkeypatch
):
    path = tmp_path / "other.ttf"
    shutil.copy(font_manager.findfont("DejaVu Sans"), path)
    other = font_manager.FontEntry(fname=str(path), name="Other")
    font_manager.fontManager.ttflist.append(other)
    # As if it were the only one with an A.
    letters_of = fonts.letters_of
    monkeypatch.setattr(
        fonts,
        "letters_of",
        lambda name: letters_of(name) - {name != str(path) and ord("A")},
    )
    assert fonts.drawable_names(["A", LAST_RESORT]) == ["A", "1"]
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Other"]


@pytest.mark.filterwarnings("error")
def test_pictures_with_any_names_are_drawn_without_a_warning(tmp_path, figures):
    names = [f"{LAST_RESORT}{LAST_RESORT}", "b"]
    utils.draw_confusion(np.eye(2, dtype=int), names, tmp_path / "c.png")
    ticks = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert ticks == ["0", "b"]
    images = np.zeros((1, 4, 4, 1))
    title = [f"{LAST_RESORT}.png: b"]
    utils.draw_pairs(images, None, title, tmp_path / "p.png")
    assert figures[1].axes[0].get_title() == "?.png: b"
