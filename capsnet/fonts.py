"""Names in any script, in pictures: by a font of this machine, or a number."""

import functools
import textwrap

import matplotlib.pyplot as plt
from matplotlib import font_manager, ft2font

from capsnet.messages import listed, shorten

# In this order: matplotlib's own, and what other letters need.
FONTS = ["DejaVu Sans"]


def drawable(text):
    """The text with `?` for letters that no font of this machine has.

    matplotlib's own font has no Chinese, for instance; where another one has
    the letters, it is used from now on.
    """
    return "".join(
        letter if letter.isspace() or has_font(letter) else "?"
        for letter in text
    )


def fitted(title, width):
    """A title in lines of so many characters: its own lines, or else two."""
    title = drawable(title)
    if "\n" in title:
        return "\n".join(shorten(line, width) for line in title.splitlines())
    return textwrap.fill(title, width, max_lines=2, placeholder="…")


def drawable_names(class_names):
    """Names of classes in pictures: their numbers where a font is missing."""
    return [
        name if drawable(name) == name else str(number)
        for number, name in enumerate(class_names)
    ]


@functools.cache
def has_font(letter):
    """Whether some font has a letter; it joins those that are used."""
    paths = [font_manager.findfont(name) for name in FONTS]
    if any(ord(letter) in letters_of(path) for path in paths):
        return True
    for font in font_manager.fontManager.ttflist:
        # The last resort has a box for every letter.
        is_last = "Last Resort" in font.name
        if not is_last and ord(letter) in letters_of(font.fname):
            FONTS.append(font.name)
            plt.rcParams["font.family"] = FONTS
            return True
    return False


@functools.cache
def letters_of(path):
    """The letters, as numbers, that a font file has."""
    return frozenset(ft2font.FT2Font(path).get_charmap())


def legend(class_names):
    """A line for the user on the names that pictures have as numbers."""
    pairs = zip(drawable_names(class_names), class_names)
    numbers = [f"{number} {name}" for number, name in pairs if number != name]
    if not numbers:
        return []
    return [
        "No font here has the letters of some classes; in the pictures they "
        f"are numbers: {listed(numbers)}"
    ]
