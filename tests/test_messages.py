"""Tests of messages.py: what users read, and that nobody has to."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from capsnet import messages

ROOT = Path(__file__).parents[1]


def test_error_is_one_line_whatever_the_file_is_called():
    error = messages.UserError("cannot read 'a\nb\u2028c'")
    assert str(error) == "cannot read 'a b c'"
    assert str(messages.UserError("\x1b[31mred")) == r"\x1b[31mred"


@pytest.mark.parametrize(
    "received, expected",
    (
        (messages.counted(0, "picture"), "0 pictures"),
        (messages.counted(1, "picture"), "1 picture"),
        (messages.listed("abcd", most=2), "a, b and 2 more"),
        (messages.listed("ab", most=2), "a, b"),
        (messages.shorten("abcd", 3), "ab…"),
        (messages.printable("a\x1bb\nü"), r"a\x1bb\nü"),
        (messages.printable("a\udc80"), r"a\udc80"),
        (messages.plain("cafe\u0301\n"), "caf\u00e9\\n"),
        (messages.cross((28, 28, 1)), "28x28x1"),
        (messages.gigabytes(1_540_000_000), "1.5 GB"),
        (messages.reason_of(ValueError("\na\nb")), "a"),
    ),
)
def test_words(received, expected):
    assert received == expected


def test_backend_is_the_one_that_keras_will_choose(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert messages.backend() == "tensorflow"
    for content in ('{"backend": "jax"}', "{", "[]", "{}"):
        (tmp_path / "keras.json").write_text(content)
        expected = "jax" if "jax" in content else "tensorflow"
        assert messages.backend() == expected
    for value, expected in (("", "tensorflow"), ("torch", "torch")):
        monkeypatch.setenv("KERAS_BACKEND", value)
        assert messages.backend() == expected


@pytest.mark.parametrize("backend", ("tensorflow", "jax"))
def test_command_can_be_pasted(tmp_path, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.chdir(tmp_path)
    line = messages.command("capsulenet.py", "-w", "a run/it's.keras", 3)
    words = shlex.split(line)
    prefix = [] if backend == "tensorflow" else [f"KERAS_BACKEND={backend}"]
    assert words[: len(prefix) + 1] == [*prefix, "python"]
    assert os.path.samefile(words[-4], ROOT / "capsulenet.py")
    assert words[-3:] == ["-w", "a run/it's.keras", "3"]
    monkeypatch.chdir(ROOT)
    assert "python capsulenet.py" in messages.command("capsulenet.py")


def test_command_whose_reader_is_gone_ends_well():
    process = subprocess.Popen(
        [sys.executable, "capsulenet.py", "--help_all"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_letters_that_the_output_lacks_are_written_out():
    code = r"import capsnet.messages as m; m.outlive_reader(); print('\u732b')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [rb"\u732b"]
