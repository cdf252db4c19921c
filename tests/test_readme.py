"""The commands of the README are commands that work."""

import re
import shlex
from pathlib import Path

import pytest

import capsulenet
import utils
from capsnet.cli.settings import parse_args

ROOT = Path(__file__).parents[1]


def commands():
    """The command lines in the README's code blocks, without `python`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [
        line
        for language, block in blocks
        if not language
        for line in block.splitlines()
    ]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part[7:] for part in parts if part.startswith("python ")]


def test_readme_shows_every_mode():
    shown = " ".join(commands())
    for flag in ("--dataset digits", "-t -w", "--digit", "--predict", "--gpus"):
        assert flag in shown
    assert "-m pytest" in shown


@pytest.mark.parametrize(
    "command",
    [line for line in commands() if line.startswith("capsulenet")],
)
def test_readme_commands_have_known_flags(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, *argv = shlex.split(command, comments=True)
    assert (ROOT / script).exists()
    # What the commands before it would have left.
    for path in re.findall(r"-w ((?:[^-\s]\S*\s?)+)", command + " "):
        for name in path.split():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()
    Path("picture.png").touch()
    Path("more_pictures").mkdir()
    args = parse_args(argv, multi_gpu="multi" in script)
    assert args.epochs >= 1


@pytest.mark.slow
def test_first_command_of_the_readme_learns_the_digits(tmp_path, capsys):
    first = commands()[0]
    assert first == "capsulenet.py --dataset digits --epochs 3"
    argv = [*shlex.split(first)[1:], "--save_dir", str(tmp_path)]
    assert capsulenet.main(argv) == 0
    assert "Test error" in capsys.readouterr().out
    errors = utils.read_log(tmp_path / "log.csv")["test_error"]
    # In fonts that training never saw; chance is 90 %.
    assert errors[-1] < 3
