"""The commands of the README are commands that work."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import differences  # noqa: E402
import mnist  # noqa: E402

import capsulenet  # noqa: E402
import utils  # noqa: E402
from capsnet.cli.settings import parse_args  # noqa: E402


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


@pytest.mark.parametrize(
    "path",
    ["benchmarks/speed.md", "benchmarks/settings.md", "result/differences.md"],
)
def test_readme_shows_the_committed_figures(path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    name = Path(path).name
    shown = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", text, re.S)
    measured = (ROOT / path).read_text(encoding="utf-8")
    assert len(shown[1]) > 500 and shown[1] in measured


def test_readme_shows_the_table_of_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- mnist.md -->\n(.*?)\n\nCommands", text, re.S)[1]
    measured = (ROOT / "result" / "mnist.md").read_text(encoding="utf-8")
    assert measured.startswith(shown) and mnist.RULES in shown


@pytest.mark.parametrize(
    "name, report",
    (("mnist", mnist.main), ("differences", differences.main)),
)
def test_tables_are_what_the_committed_logs_say(tmp_path, name, report):
    """Regenerated from the runs alone, not written by hand."""
    shutil.copytree(ROOT / "result" / name, tmp_path / name)
    assert report(["--report", "--out", str(tmp_path)]) == 0
    made, committed = (
        (folder / f"{name}.md").read_text(encoding="utf-8")
        for folder in (tmp_path, ROOT / "result")
    )
    assert made == committed


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
