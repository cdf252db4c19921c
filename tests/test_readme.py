"""The README: its commands work, its code runs, its links lead somewhere."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import write_bars
from running import lengths_of, run

from capsnet.cli import checks
from capsnet.data.sources import load
from capsnet.models.saving import load_model

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Indented by four: what one types, and what it prints.
COMMANDS = [
    part.strip().removeprefix("python ")
    for line in re.findall(r"^    (.+)$", README, re.MULTILINE)
    for part in line.split("&&")
    if part.strip().startswith("python ")
]
CODE = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_task_is_shown():
    shown = " ".join(COMMANDS)
    for flag in (
        "--dataset digits",
        "-t -w",
        "--digit",
        "--predict",
        "--explore",
        "--gpus",
    ):
        assert flag in shown
    assert "-m pytest" in shown


@pytest.mark.parametrize(
    "command", [line for line in COMMANDS if line.startswith("capsulenet")]
)
def test_commands_have_known_flags(command, tmp_path, monkeypatch):
    script, *argv = shlex.split(command)
    assert (ROOT / script).exists()
    monkeypatch.chdir(tmp_path)
    # What the commands before it, or the user, would have left.
    for name in argv:
        if name.endswith((".keras", ".png")) and not name.startswith("-"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()
    Path("more_pictures").mkdir()
    args = checks.parse_args(argv, multi_gpu="multi" in script)
    assert args.epochs >= 1


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+?)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    headings = re.findall(r"^## (.+)$", README, re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#(.+?)\)", README)) <= anchors


def test_layers_in_five_lines_learn():
    (code,) = [each for each in CODE if "margin_loss" in each]
    names = {}
    exec(code, names)
    images = np.random.default_rng(0).random((2, 28, 28, 1), "float32")
    labels = np.eye(10)[[3, 5]]
    fit = names["model"].fit
    losses = fit(images, labels, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_training_is_a_call_of_a_program(tmp_path, monkeypatch, capsys):
    (code,) = [each for each in CODE if "capsulenet.train(" in each]
    monkeypatch.chdir(tmp_path)
    small = load(write_bars(tmp_path / "bars.npz"))
    monkeypatch.setattr("capsnet.data.sources.load", lambda name: small)
    exec(code, {})
    error = float(capsys.readouterr().out.splitlines()[-1])
    folder = tmp_path / "result" / "mine"
    names = "trained_model.keras log.csv run.json batch.png test.csv".split()
    assert set(names) <= set(os.listdir(folder))
    model, record = load_model(folder / "trained_model.keras")
    assert record["class_names"] == small.class_names
    right = small.y_test == lengths_of(model, small.x_test).argmax(-1)
    assert error == pytest.approx(100 * (1 - right.mean()))


@pytest.mark.slow
def test_model_can_be_used_in_a_program(tmp_path, monkeypatch, capsys):
    """The first command, what it prints, and the snippet with its model."""
    first = next(line for line in COMMANDS if "--epochs" in line)
    assert first == "capsulenet.py --dataset digits --epochs 3"
    monkeypatch.chdir(tmp_path)
    shortened = "--epochs", 1, "--image_size", 16, 16
    done = run(*shlex.split(first)[1:], *shortened)
    assert done.status == 0, done.err
    assert "Written to result: trained_model.keras" in done.out
    error = float(done.out.split("Test error: ")[-1].split()[0])
    assert error < 10  # In fonts that training never saw; chance is 90 %.
    from PIL import Image

    Image.new("L", (40, 30), 0).save("picture.png")
    (code,) = [each for each in CODE if "load_model" in each]
    exec(code, {})
    name, length = capsys.readouterr().out.split()
    assert name in "0123456789" and 0 <= float(length) < 1
