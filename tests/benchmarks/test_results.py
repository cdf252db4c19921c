"""Tests of mnist.py, differences.py and their runner: runs and tables."""

import json
import os
import re
import shlex
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

from capsnet.training.recipes import RECIPES

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "python": "3",
    "versions": {},
    "backend": "tensorflow",
    "system": "Linux x86_64",
    "processor": "Some CPU",
    "cores": 2,
}


def args_of(study, *argv):
    return runner.parse(study, "", list(argv))


def record_of(study, row, seed, epochs, error, *extra, **changes):
    """The `run.json` that capsulenet.py leaves."""
    argv = ["--rows", row, "--epochs", str(epochs)]
    argv.append(f"--extra={shlex.join(extra)}")
    argv = runner.flags_for(study, row, seed, args_of(study, *argv))
    flags = dict(runner.recorded(*argv, "--save_dir", "/home/someone/work"))
    flags |= {
        name: changes.pop(name) for name in list(changes) if name in flags
    }
    return {
        "flags": flags,
        "environment": {**ENVIRONMENT, **changes},
        "epoch": epochs,
        "test_error": error,
        "seconds_per_epoch": [10.0 + seed] * epochs,
    }


def write_log(folder, errors, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"loss": 0.1, **columns}
    rows = [
        ",".join(map(str, [epoch, *columns.values(), error]))
        for epoch, error in enumerate(errors)
    ]
    header = ",".join(["epoch", *columns, "test_error"])
    text = "".join(f"{row}\r\n" for row in [header, *rows])
    (folder / "log.csv").write_bytes(text.encode())


def write_run(folder, record, **columns):
    """A finished run as capsulenet.py leaves it."""
    epochs, last = record["epoch"], record["test_error"]
    write_log(folder, [last + epochs - 1 - e for e in range(epochs)], **columns)
    (folder / "run.json").write_text(json.dumps(record))


def add(out, study, row, seed, *args, name=None, **changes):
    """A finished run in `out`."""
    folder = out / study.name / (name or f"{row}-{seed}")
    write_run(folder, record_of(study, row, seed, *args, **changes))


def cells_of(text, row=""):
    """The cells of the table's lines that begin with a row's name."""
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    return [line for line in cells if line[0].split(" ")[0].startswith(row)]


def report_of(study, out):
    study.report(runner.read_runs(study, out), out)
    return (out / "README.md").read_text()


def run(*argv, script="mnist.py"):
    command = [sys.executable, str(ROOT / "benchmarks" / script), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("baseline", "--model baseline"),
        ("v1-classic", "-r 1 --lam_recon 0 --recipe classic"),
        ("v2-classic", "-r 1 --recipe classic"),
        ("v3-classic", "-r 3 --lam_recon 0 --recipe classic"),
        ("v4-classic", "-r 3 --recipe classic"),
        ("v1-paper", "-r 1 --lam_recon 0 --recipe paper"),
        ("v2-paper", "-r 1 --recipe paper"),
        ("v3-paper", "-r 3 --lam_recon 0 --recipe paper"),
        ("v4-paper", "-r 3 --recipe paper"),
    ],
)
def test_command_line_of_each_row(row, expected):
    args = args_of(mnist.STUDY, "--epochs", "7", "--extra", "--lr_decay 0.8")
    expected += " --lr_decay 0.8 --dataset mnist --epochs 7 --seed 2"
    assert runner.flags_for(mnist.STUDY, row, 2, args) == expected.split()
    assert len(mnist.ROWS) == 9


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
        (mnist.STUDY, ["v4"], ["v4-classic", "v4-paper"]),
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


def test_mean_and_standard_deviation_of_a_row(tmp_path):
    # Mean 0.34; deviations -0.04, 0.01, 0.03: sqrt(0.0026 / 2) = 0.036.
    for seed, error in enumerate((0.30, 0.35, 0.37)):
        add(tmp_path, mnist.STUDY, "v4-classic", seed, 2, error)
    add(tmp_path, mnist.STUDY, "v3-paper", 0, 1, 0.5)
    text = report_of(mnist.STUDY, tmp_path)
    machine = "Some CPU, 2 cores, tensorflow"
    expected = "v4-classic|3|yes|0.340|0.036|3|0.30|2|11.0".split("|")
    expected += [machine, "0.25 (0.005)", "0.34 (0.016)"]
    once = "v3-paper|3|no|0.50||1|0.50|1|10.0".split("|")
    once += [machine, "0.35 (0.036)", "0.40 (0.016)"]
    # Rows without runs are not shown.
    assert cells_of(text)[1:] == [expected, once]
    command = "-r 3 --recipe classic --epochs 2 --seed SEED`"
    assert f"`python capsulenet.py {command}" in text
    assert "[2](mnist/v4-classic-2/log.csv)" in text
    picture = (tmp_path / "mnist.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_runs_without_any_error_are_drawn_too(tmp_path, error):
    add(tmp_path, mnist.STUDY, "v4-paper", 0, 1, error)
    report_of(mnist.STUDY, tmp_path)
    assert (tmp_path / "mnist.png").exists()


def test_other_epochs_flags_and_backends_are_told_apart(tmp_path):
    decay = ("--lr_decay", "0.8", "--image_size", "20", "20")
    add(tmp_path, mnist.STUDY, "v4-classic", 0, 2, 0.4)
    add(tmp_path, mnist.STUDY, "v4-classic", 1, 3, 0.3)
    name = "v4-classic-0-0123abcd"
    add(tmp_path, mnist.STUDY, "v4-classic", 0, 2, 0.2, *decay, name=name)
    add(tmp_path, mnist.STUDY, "v4-classic", 2, 3, 0.5, backend="jax")
    # As an older record may say.
    record = record_of(mnist.STUDY, "v4-classic", 3, 2, 0.6)
    record["flags"] |= {"no_longer_a_flag": 1, "batch_size": 100}
    write_run(tmp_path / "mnist" / "v4-classic-3", record)
    text = report_of(mnist.STUDY, tmp_path)
    flags = "--image_size 20 20 --lr_decay 0.8"
    machines = "Some CPU, 2 cores, tensorflow"
    lines = {
        (c[0], c[3], c[5], c[7], c[9]) for c in cells_of(text, "v4-classic")
    }
    assert lines == {
        ("v4-classic", "0.500", "2", "2", machines),
        (
            "v4-classic",
            "0.400",
            "2",
            "3",
            f"{machines}; Some CPU, 2 cores, jax",
        ),
        (f"v4-classic {flags}", "0.20", "1", "2", machines),
    }
    assert f"--recipe classic {flags} --epochs 2 --seed SEED`" in text
    assert "`KERAS_BACKEND=jax python capsulenet.py -r 3" in text


def test_unfinished_runs_are_listed_and_not_averaged(tmp_path):
    add(tmp_path, mnist.STUDY, "v4-classic", 0, 2, 0.4)
    write_log(tmp_path / "mnist" / "v4-classic-1", [3, 2, 0.1])
    text = report_of(mnist.STUDY, tmp_path)
    assert cells_of(text, "v4-classic")[0][3:6] == ["0.40", "", "1"]
    assert "Unfinished: v4-classic-1 (3 epochs done)." in text


def test_command_of_a_run_gives_its_flags(tmp_path):
    extra = ("--lam_recon", "0.392", "--batch_size", "50", "--ema", "0.99")
    record = record_of(
        mnist.STUDY, "v4-paper", 5, 3, 0.4, *extra, "--grayscale"
    )
    write_run(tmp_path / "mnist" / "v4-paper-5", record)
    (found,) = runner.read_runs(mnist.STUDY, tmp_path)
    words = mnist.command_of(found).split()
    assert words[:2] == ["python", "capsulenet.py"]
    flags = runner.recorded(*words[2:])
    assert {**flags, "save_dir": ""} == {**record["flags"], "save_dir": ""}


@pytest.mark.parametrize("seeds", [1, 2])
def test_short_table_has_one_setting_that_no_error_chooses(tmp_path, seeds):
    out, readme = tmp_path / "result", tmp_path / "README.md"
    old = "# A\n\n<!-- results -->\nold\n<!-- /results -->\n\nend\n"
    readme.write_text(old)
    for version, error in (("v1", 0.5), ("v4", 0.4)):
        for seed in range(seeds):
            error += 0.1 * seed
            add(out, mnist.STUDY, f"{version}-classic", seed, 2, error)
    add(out, mnist.STUDY, "v4-paper", 0, 9, 0.1)
    report_of(mnist.STUDY, out)
    text = readme.read_text()
    errors = (
        ["0.50", "0.40"] if seeds == 1 else ["0.55 (0.071)", "0.45 (0.071)"]
    )
    assert cells_of(text)[1:] == [
        ["v1", "1", "no", errors[0], "0.34 (0.032)", "0.39 (0.024)"],
        ["v4", "3", "yes", errors[1], "0.25 (0.005)", "0.34 (0.016)"],
    ]
    said = f"`--recipe classic --epochs 2`; seeds a row: {seeds}; "
    assert f"{said}Some CPU, 2 cores, tensorflow." in text
    assert text.startswith("# A\n\n<!-- results -->") and text.endswith("end\n")
    readme.write_text("# A\n")
    report_of(mnist.STUDY, out)
    assert readme.read_text() == "# A\n"


def test_differences_are_means_over_seeds(tmp_path):
    folder = tmp_path / "differences"
    losses = {"capsnet_loss": 0.4, "decoder_loss": 0.04}
    for row, seed, error in (("bias", 0, 1.0), ("bias", 1, 1.5)):
        record = record_of(differences.STUDY, row, seed, 2, error)
        write_run(folder / f"{row}-{seed}", record, **losses)
    record = record_of(differences.STUDY, "no-decoder", 0, 2, 2.5)
    write_run(folder / "no-decoder-0", record)
    add(tmp_path, differences.STUDY, "classic", 0, 1, 3.0, "--lr_decay", "0.5")
    (folder / "scale-0").mkdir()  # Not finished.
    text = report_of(differences.STUDY, tmp_path)
    assert "Some CPU" in text
    assert cells_of(text)[1:] == [
        ["classic", "`--lr_decay 0.5`", "3.00", "", "0.100", "", "1"],
        ["bias", "`--capsule_bias 0.1`"]
        + ["2.25", "1.25", "0.400", "0.0400", "2"],
        ["no-decoder", "`--lam_recon 0`", "3.50", "2.50", "0.100", "", "1"],
    ]


@pytest.mark.parametrize("script", [mnist, differences])
def test_nothing_to_report_is_one_line(tmp_path, capsys, script):
    assert script.main(["--report", "--out", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_damaged_record_is_one_line(tmp_path, capsys):
    write_log(tmp_path / "mnist" / "v4-paper-0", [1])
    (tmp_path / "mnist" / "v4-paper-0" / "run.json").write_text("{")
    assert mnist.main(["--report", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.json" in line


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
    assert len({*same, *others}) == 6


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
    data = write_bars(tmp_path / "tiny.npz", train=1500)
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
