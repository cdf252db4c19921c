"""Tests of benchmarks/runner.py: which runs, their folders, how they end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import differences
import mnist
import pytest
import runner
from conftest import write_bars
from published import args_of, cells_of, record_of, report_of, write_run

from capsnet.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]


def run(*argv, script="mnist.py"):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line_of_each_row():
    versions = {
        "v1": "-r 1 --lam_recon 0",
        "v2": "-r 1",
        "v3": "-r 3 --lam_recon 0",
        "v4": "-r 3",
    }
    expected = {"baseline": "--model baseline"}
    for version, flags in versions.items():
        for recipe in ("classic", "paper"):
            expected[f"{version}-{recipe}"] = f"{flags} --recipe {recipe}"
    expected["v4-best"] = "-r 3 --recipe best"
    expected["small"] = "--recipe laptop"
    args = args_of(mnist.STUDY, "--epochs", "7", "--extra", "--lr 0.002")
    for row in mnist.ROWS:
        flags = expected.pop(row)
        flags += " --lr 0.002 --dataset mnist --epochs 7 --seed 2"
        assert runner.flags_for(mnist.STUDY, row, 2, args) == flags.split()
    assert not expected


def difference(row):
    args = args_of(differences.STUDY)
    argv = runner.flags_for(differences.STUDY, row, 0, args)
    return runner.recorded(*argv)


@pytest.mark.parametrize(
    ("row", "changed"),
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
def test_a_difference_is_one_flag(row, changed):
    classic, flags = difference("classic"), difference(row)
    assert {k for k in flags if flags[k] != classic[k]} == set(changed)
    assert {k: flags[k] for k in changed} == changed


def test_the_authors_runs_have_all_that_their_recipe_sets():
    whole, light = difference("authors"), difference("authors-light")
    # The decay is compressed to the short run, an epoch of batches of 128.
    recipe = {**RECIPES["paper"], "lr_decay": 0.4, "lr_decay_steps": 469}
    assert {name: whole[name] for name in recipe} == recipe
    assert {k for k in whole if whole[k] != light[k]} == {"lam_recon"}
    assert light["lam_recon"] == "classic"


@pytest.mark.parametrize(
    ("study", "given", "expected"),
    [
        (mnist.STUDY, ["v4"], ["v4-classic", "v4-paper", "v4-best"]),
        (mnist.STUDY, ["v3-p", "v3"], ["v3-paper", "v3-classic"]),
        (differences.STUDY, ["authors"], ["authors"]),
    ],
)
def test_rows_are_named_by_their_beginnings(study, given, expected):
    assert args_of(study, "--rows", *given).rows == expected
    assert args_of(study).rows == list(study.rows)


def test_unknown_row_names_the_rows_before_anything_heavy_is_imported():
    start = time.perf_counter()
    ended = run("--rows", "v4", "v9")
    assert time.perf_counter() - start < 3
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "'v9'" in line and all(row in line for row in mnist.ROWS)


@pytest.mark.parametrize(
    ("row", "extra"),
    [
        ("v4", "--seed 3"),
        ("v4", "--val_fraction 0.1"),
        ("v4", "--routings 2"),
        ("v3", "--lam_recon 0.392"),
        ("v4", "--no_such_flag 1"),
    ],
)
def test_extra_flags_that_break_the_rules_are_refused(capsys, row, extra):
    with pytest.raises(SystemExit) as ended:
        args_of(mnist.STUDY, "--rows", row, "--extra", extra)
    assert ended.value.code == 2
    assert extra.split()[0] in capsys.readouterr().err


def test_published_files_carry_the_commit_and_no_path(tmp_path):
    folder, out = tmp_path / "work", tmp_path / "out"
    target = out / "mnist" / "v4-classic-0-0123abcd"
    data = str(tmp_path / "secret" / "tiny.npz")
    record = record_of(mnist.STUDY, "v4-classic", 0, 1, 0.4, dataset=data)
    write_run(folder, record)
    whole = (folder / "log.csv").read_bytes()
    (folder / "log.csv").write_bytes(whole + b"2,0.")
    runner.collect(folder, target)
    found = json.loads((target / "run.json").read_text())
    assert found["flags"]["save_dir"] == "result/mnist/v4-classic-0-0123abcd"
    assert found["flags"]["dataset"] == "tiny.npz"
    head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    asked = subprocess.run(head, capture_output=True, text=True, check=False)
    assert found["commit"] == (asked.stdout.strip() or None)
    assert (target / "log.csv").read_bytes() == whole
    assert sorted(os.listdir(target)) == ["log.csv", "run.json"]
    written = "".join(p.read_text() for p in target.iterdir())
    written += report_of(mnist.STUDY, out)
    assert "secret" not in written and "someone" not in written
    assert "--dataset tiny.npz" in written


def test_folders_are_told_apart_by_the_flags_that_matter():
    def name(*argv, row="v4-paper", seed=0):
        args = args_of(mnist.STUDY, *argv)
        flags = runner.recorded(*runner.flags_for(mnist.STUDY, row, seed, args))
        return runner.folder_name(row, seed, runner.comparable(flags))

    assert re.fullmatch(r"v4-paper-0-[0-9a-f]{8}", name())
    same = [
        name(),
        name("--extra=--debug"),
        name("--extra=--shift_fraction 0.1"),
    ]
    assert len(set(same)) == 1
    others = [name("--epochs", "9"), name("--extra", "--lr 0.01"), name(seed=1)]
    others += [name("--dataset", "digits"), name(row="v4-classic")]
    others += [name("--dataset", "pairs:/data/mnist")]
    assert len({*same, *others}) == 7
    # A path is the same data set everywhere, and in pairs another one.
    assert name("--dataset", "/data/mnist") == name("--dataset", "/mnist")
    assert others[-1] == name("--dataset", "pairs:/mnist") != same[0]


@pytest.mark.parametrize("where", ["result", "work", "published"])
def test_a_run_that_is_done_is_not_trained_again(tmp_path, capfd, where):
    argv = ["--rows", "v4-p", "--epochs", "5", "--out", str(tmp_path)]
    args = args_of(mnist.STUDY, *argv, "--work_dir", str(tmp_path / "work"))
    record = record_of(mnist.STUDY, "v4-paper", 0, 5, 0.4)
    flags = runner.comparable(record["flags"])
    name = runner.folder_name("v4-paper", 0, flags)
    folder = {
        "result": tmp_path / "mnist" / "v4-paper-0",  # As it was once called.
        "work": tmp_path / "work" / name,
        "published": tmp_path / "mnist" / name,
    }[where]
    write_run(folder, record)
    assert runner.run_one(mnist.STUDY, "v4-paper", 0, args) == 0
    assert f"{folder.name}: done before" in capfd.readouterr().out
    assert (tmp_path / "mnist" / folder.name / "run.json").exists()


def train_argv(folder, data):
    flags = "--rows v1-c v4-c --epochs 2 --extra".split()
    return [
        *(*flags, "--batch_size 50 --jit_compile off"),
        *("--dataset", data, "--work_dir", str(folder / "work")),
        *("--out", str(folder)),
    ]


def interrupted(argv, state, how):
    """Starts the runner, and stops it when a checkpoint is there."""
    script = str(ROOT / "benchmarks" / "mnist.py")
    with subprocess.Popen(
        [sys.executable, script, *argv], stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 300
        while not list(state[0].glob(state[1])):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.slow
def test_interrupted_runs_end_like_uninterrupted_ones(tmp_path):
    data = write_bars(tmp_path / "tiny.npz", train=600)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    signals = {"v1": signal.SIGTERM, "v4": signal.SIGINT}
    for version, how in signals.items():
        state = stopped / "work", f"{version}-*/checkpoint/state.json"
        status, errors = interrupted(train_argv(stopped, data), state, how)
        assert status == 130 and "the same command goes on" in errors
        # A run that is still alive would hold its folder.
        (folder,) = (stopped / "mnist").glob(f"{version}-*")
        assert not (folder / "run.json").exists()
        assert len((folder / "log.csv").read_text().splitlines()) == 2
    for folder in (stopped, whole):
        ended = run(*train_argv(folder, data))
        assert ended.returncode == 0, ended.stderr
    again = run(*train_argv(stopped, data))
    assert again.stdout.count("done before") == 2
    logs, tables = [], []
    for folder in (stopped, whole):
        found = sorted((folder / "mnist").glob("*/log.csv"))
        logs.append([(p.parent.name, p.read_bytes()) for p in found])
        text = (folder / "README.md").read_text()
        assert str(tmp_path) not in text
        # All but the seconds.
        tables.append([line[:8] for line in cells_of(text)])
    assert logs[0] == logs[1] and len(logs[0]) == 2
    assert tables[0] == tables[1] and len(tables[0]) == 3
    # Their models are still there, and are tested.
    argv = train_argv(whole, data)[-6:]
    ended = run(*argv, script="compare.py")
    assert ended.returncode == 0, ended.stderr
    for folder in (whole / "mnist").iterdir():
        record = json.loads((folder / "run.json").read_text())
        answers = (folder / "predictions.txt").read_text().splitlines()
        errors = [100 * (" " in line) for line in answers]
        assert sum(errors) / len(errors) == pytest.approx(record["test_error"])
