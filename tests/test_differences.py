"""Tests of benchmarks/differences.py: flags, runs, and the table."""

import json
import sys
from pathlib import Path

import pytest
from conftest import write_bars

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import differences  # noqa: E402
import mnist  # noqa: E402

from capsnet.cli import settings  # noqa: E402
from capsnet.cli.settings import parse_args  # noqa: E402
from capsnet.training.recipes import RECIPES  # noqa: E402


def flags_of(name):
    args = differences.parse_args([])
    argv = differences.flags_for(name, 0, args)
    return settings.flags_of(parse_args(argv))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("classic", {}),
        ("reconstruction", {"lam_recon": "authors"}),
        ("init", {"init": "authors"}),
        ("bias", {"capsule_bias": 0.1}),
        ("scale", {"primary_scale": 1 / 32}),
        ("batch", {"batch_size": 128}),
        ("continuous", {"lr_decay_steps": 600}),
        ("glorot", {"init": "glorot"}),
        ("averaged", {"ema": 0.99}),
        ("no-decoder", {"lam_recon": 0.0}),
    ],
)
def test_a_run_differs_from_the_classic_one_in_one_flag(name, changed):
    classic, flags = flags_of("classic"), flags_of(name)
    assert {k for k in flags if flags[k] != classic[k]} == set(changed)
    assert {k: flags[k] for k in changed} == changed


def test_the_authors_runs_have_all_that_their_recipe_sets():
    whole, light = flags_of("authors"), flags_of("authors-light")
    recipe = dict(RECIPES["paper"])
    # The decay is compressed to the short run, an epoch of batches of 128.
    recipe.update(lr_decay=0.4, lr_decay_steps=469)
    assert {name: whole[name] for name in recipe} == recipe
    assert {k for k in whole if whole[k] != light[k]} == {"lam_recon"}
    assert light["lam_recon"] == "classic"


def write_run(folder, errors, seed=0, decoder=True):
    """What a finished run leaves in the repository."""
    columns = ["epoch", "capsnet_loss", "test_error"]
    columns += ["decoder_loss"] if decoder else []
    rows = [
        [epoch, 0.5 - 0.1 * epoch, error] + ([0.04] if decoder else [])
        for epoch, error in enumerate(errors)
    ]
    folder.mkdir(parents=True)
    lines = [",".join(map(str, row)) for row in [columns, *rows]]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    record = {
        "flags": {"epochs": len(errors), "lr_decay": 0.4, "seed": seed},
        "environment": {
            "processor": "Some CPU",
            "cores": 2,
            "backend": "tensorflow",
        },
    }
    (folder / "run.json").write_text(json.dumps(record))


def test_table_has_means_over_seeds_and_a_line_for_each_difference(tmp_path):
    folder = tmp_path / "differences"
    write_run(folder / "bias-0", [2.0, 1.0])
    write_run(folder / "bias-1", [3.0, 1.5], seed=1)
    write_run(folder / "no-decoder-0", [4.0, 2.5], decoder=False)
    (folder / "scale-0").mkdir()  # Not finished.
    assert differences.main(["--report", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "differences.md").read_text()
    assert "`--lr_decay 0.4`" in text and "Some CPU" in text
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    assert cells[2:] == [
        ["bias", "`--capsule_bias 0.1`"]
        + ["2.50", "1.25", "0.400", "0.0400", "2"],
        ["no-decoder", "`--lam_recon 0`", "4.00", "2.50", "0.400", "", "1"],
    ]


def test_nothing_to_report_is_one_line(tmp_path, capsys):
    assert differences.main(["--report", "--out", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_trained_once_and_other_flags_are_refused(tmp_path, capfd):
    data = write_bars(tmp_path / "tiny.npz")
    argv = ["--names", "bias", "no-decoder", "--epochs", "1"]
    argv += ["--dataset", data, "--work_dir", str(tmp_path / "work")]
    argv += ["--out", str(tmp_path / "out")]
    assert differences.main(argv) == 0
    record = tmp_path / "out" / "differences" / "bias-0" / "run.json"
    assert mnist.read_json(record)["flags"]["capsule_bias"] == 0.1
    text = (tmp_path / "out" / "differences.md").read_text()
    assert "| bias " in text and "| no-decoder " in text
    assert str(tmp_path) not in text + record.read_text()
    capfd.readouterr()
    assert differences.main(argv) == 0
    out, _ = capfd.readouterr()
    assert "bias-0: done before" in out and "no-decoder-0: done" in out
    assert differences.main([*argv, "--lr_decay", "0.5"]) == 2
    assert "other flags" in capfd.readouterr().err
