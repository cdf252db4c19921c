"""Words for the user: one error, and how things are counted and named."""

import contextlib
import io
import json
import math
import os
import shlex
import shutil
import sys
import time
import unicodedata
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]


class UserError(ValueError):
    """What the user can mend, in one line whatever a file is called."""

    def __init__(self, message):
        super().__init__(printable(" ".join(str(message).splitlines())))


def fail(message, status):
    """Prints one line to standard error, and hands the status on."""
    program = os.path.basename(sys.argv[0])
    print(f"{program}: {printable(str(message))}", file=sys.stderr)
    return status


def keras_json():
    """The path of Keras's settings, and what they are, if not an object, too.

    Where there are none, or no JSON, which Keras passes over, they are `{}`.
    """
    file = Path(os.environ.get("KERAS_HOME", "~/.keras"), "keras.json")
    with contextlib.suppress(OSError, ValueError):
        return file, json.loads(file.expanduser().read_text())
    return file, {}


def backend():
    """The name of the backend that Keras will choose, before its import."""
    chosen = os.environ.get("KERAS_BACKEND")
    if not chosen:
        with contextlib.suppress(AttributeError):
            chosen = keras_json()[1].get("backend")
    return chosen or "tensorflow"


def command(script, *words):
    """A command line for one of our scripts, to be pasted into a shell."""
    chosen = backend()
    prefix = "" if chosen == "tensorflow" else f"KERAS_BACKEND={chosen} "
    path = os.path.relpath(SCRIPTS / script)
    return prefix + shlex.join(["python", path, *map(str, words)])


def reason_of(error):
    """The first line of what Keras, h5py or zipfile say."""
    return str(error).strip().split("\n")[0][:200]


def counted(count, noun):
    """`1 picture`, `2 pictures`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names, most=10):
    """Names in one line, the first ones if there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shorten(text, length):
    """The text in one line, cut to a length with an ellipsis at its end."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def printable(text):
    """The text in one line without what would steer a terminal: `\\x1b`."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plain(name):
    """A name that everybody writes in the same way, and that is printable.

    A Mac stores `é` as two characters, others as one.
    """
    return printable(unicodedata.normalize("NFC", name))


def cross(sizes):
    """`(28, 28, 1)` as `28x28x1`."""
    return "x".join(map(str, sizes))


def duration(seconds):
    """`0:07`, `12:30`, `1:05:00`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}"


def gigabytes(count):
    """Bytes as `1.5 GB`."""
    return f"{count / 1e9:.1f} GB"


class StatusLine:
    """A line of a terminal that is written again and again; elsewhere none.

    It is cut to the terminal's width, and changes ten times a second at most.
    """

    def __init__(self):
        self.width, self.shown = 0, -math.inf

    def show(self, text):
        """Puts a text in place of the last one."""
        now = time.monotonic()
        if now - self.shown < 0.1 or not sys.stdout.isatty():
            return
        text = text[: shutil.get_terminal_size().columns - 1]
        print(f"\r{text.ljust(self.width)}", end="", flush=True)
        self.width, self.shown = len(text), now

    def clear(self):
        """Leaves an empty line for what comes."""
        if self.width:
            print(f"\r{' ' * self.width}\r", end="", flush=True)
            self.width = 0


class Hush:
    """Keeps from the screen what libraries print while they are imported.

    TensorFlow tells of a GPU that is not there, for instance. Only what is
    written past Python is kept back; errors of Python's are shown.
    """

    screen = None

    def begin(self):
        self.screen = os.dup(2)
        # Python's own stream goes on to the screen.
        sys.stderr = open(
            self.screen, "w", 1, sys.stderr.encoding, "backslashreplace"
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)

    def end(self):
        if self.screen is not None:
            os.dup2(self.screen, 2)


HUSH = Hush()


class Unread(io.FileIO):
    """A stream that nobody has to read: `head` may close it."""

    def write(self, data):
        try:
            return super().write(data)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return len(data)


def outlive_reader():
    """Lets a command go on to its end when nobody reads its output.

    Its lines come at once, in order with those of standard error; a letter
    that the output's encoding lacks is written like `\\u732b`.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # Or the first files that are opened would take its place, and
            # what libraries say would be written into them.
            null = os.open(os.devnull, os.O_RDWR)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(null, mode, closefd=False))
    out = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(Unread(1, "wb", closefd=False)),
        out.encoding,
        "backslashreplace",
        line_buffering=True,
    )
