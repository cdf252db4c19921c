"""Tests of benchmarks/mnist.py: runs, their folders, and the summary."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_bars

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import mnist  # noqa: E402

from capsnet.cli import settings  # noqa: E402
from capsnet.training.recipes import DEFAULT_BATCH_SIZE  # noqa: E402

ENVIRONMENT = {
    "python": "3",
    "versions": {},
    "backend": "tensorflow",
    "system": "Linux x86_64",
    "processor": "Some CPU",
    "cores": 2,
}


def record_of(row, seed, epochs, error, *extra, dataset="mnist", **changes):
    argv = [*mnist.ROWS[row], "--seed", str(seed), "--epochs", str(epochs)]
    argv += ["--dataset", dataset, "--save_dir", "/home/someone/work", *extra]
    flags = settings.flags_of(settings.parse_args(argv))
    flags["batch_size"] = flags["batch_size"] or DEFAULT_BATCH_SIZE
    return {
        "flags": flags,
        "environment": {**ENVIRONMENT, **changes},
        "epoch": epochs,
        "test_error": error,
        "seconds_per_epoch": [10.0 + seed] * epochs,
    }


def write_log(folder, errors):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{epoch},0.1,{error}\r\n" for epoch, error in enumerate(errors)]
    text = "".join(["epoch,loss,test_error\r\n", *rows])
    (folder / "log.csv").write_bytes(text.encode())


def write_run(folder, record):
    """A finished run as capsulenet.py leaves it."""
    epochs, last = record["epoch"], record["test_error"]
    write_log(folder, [last + epochs - 1 - e for e in range(epochs)])
    (folder / "run.json").write_text(json.dumps(record))


def write_state(folder, record, epochs_done):
    """An unfinished run as capsulenet.py leaves it."""
    write_log(folder, range(epochs_done, 0, -1))
    (folder / "checkpoint").mkdir()
    state = {"flags": record["flags"], "epochs_done": epochs_done}
    (folder / "checkpoint" / "state.json").write_text(json.dumps(state))


def summary_of(out):
    mnist.report(out)
    return (out / "mnist.md").read_text()


def lines_of(text, row):
    """The cells of the table's lines that begin with a row's name."""
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    return [line for line in cells if line[0].split(" ")[0] == row]


def run(*argv, **options):
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "mnist.py"), *argv],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def folder_for(row, seed, tmp_path, *argv):
    args = mnist.parse_args(
        ["--work_dir", str(tmp_path / "work"), "--out", str(tmp_path), *argv]
    )
    wanted = mnist.parsed(mnist.flags_for(row, seed, args))
    return mnist.choose_folder(row, seed, wanted, args.work_dir, args.out)


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
    args = mnist.parse_args(["--epochs", "7", "--extra", "--lr_decay 0.8"])
    expected += " --seed 2 --epochs 7 --dataset mnist --lr_decay 0.8"
    assert mnist.flags_for(row, 2, args) == expected.split()
    assert len(mnist.ROWS) == 9


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["v4"], ["v4-classic", "v4-paper"]),
        (["v3-p", "base", "v3"], ["v3-paper", "baseline", "v3-classic"]),
        ([], list(mnist.ROWS)),
    ],
)
def test_rows_are_named_by_their_beginnings(given, expected):
    argv = ["--rows", *given] if given else []
    assert mnist.parse_args(argv).rows == expected


def test_unknown_row_names_the_rows_before_anything_heavy_is_imported():
    start = time.perf_counter()
    ended = run("--rows", "v4", "v9")
    assert time.perf_counter() - start < 3
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert all(row in ended.stderr for row in mnist.ROWS)
    assert "'v9'" in ended.stderr


def test_keras_is_not_imported():
    code = "import sys, mnist; sys.exit('keras' in sys.modules)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", check=False
    )
    assert ended.returncode == 0


@pytest.mark.parametrize(
    ("rows", "extra", "said"),
    [
        ("v4", "--seed 3", "--seed"),
        ("v4", "--val_fraction 0.1", "--val_fraction"),
        ("v4", "--routings 2", "--routings"),
        ("v3", "--lam_recon 0.392", "--lam_recon"),
        ("v4", "--no_such_flag 1", "--no_such_flag"),
    ],
)
def test_extra_flags_that_would_change_the_rules_are_refused(
    capsys, rows, extra, said
):
    with pytest.raises(SystemExit) as ended:
        mnist.parse_args(["--rows", rows, "--extra", extra])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_mean_and_standard_deviation_of_a_row(tmp_path):
    # Mean 0.34; deviations -0.04, 0.01, 0.03: sqrt(0.0026 / 2) = 0.036.
    for seed, error in enumerate((0.30, 0.35, 0.37)):
        record = record_of("v4-classic", seed, 2, error)
        write_run(tmp_path / "mnist" / f"v4-classic-{seed}", record)
    text = summary_of(tmp_path)
    machine = "Some CPU, 2 cores, tensorflow"
    expected = "v4-classic,3,yes,0.340,0.036,3,0.30,2,11.0".split(",")
    expected += [machine, "0.25 (0.005)", "0.34 (0.016)"]
    assert lines_of(text, "v4-classic") == [expected]
    command = (
        "`python capsulenet.py -r 3 --recipe classic --epochs 2 --seed SEED`"
    )
    assert command in text
    assert "[2](mnist/v4-classic-2/log.csv)" in text
    assert "the test set chooses nothing; the last epoch counts" in text
    picture = (tmp_path / "mnist.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


def test_one_run_has_no_standard_deviation(tmp_path):
    record = record_of("v3-paper", 0, 1, 0.5)
    write_run(tmp_path / "mnist" / "v3-paper-0", record)
    expected = "v3-paper,3,no,0.50,,1,0.50,1,10.0".split(",")
    assert lines_of(summary_of(tmp_path), "v3-paper")[0][:9] == expected


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_runs_without_any_error_are_drawn_too(tmp_path, error):
    record = record_of("v4-paper", 0, 1, error)
    write_run(tmp_path / "mnist" / "v4-paper-0", record)
    summary_of(tmp_path)
    assert (tmp_path / "mnist.png").exists()


def test_rows_without_runs_stay_empty(tmp_path):
    text = summary_of(tmp_path)
    for row in mnist.ROWS:
        (cells,) = lines_of(text, row)
        assert cells[3:10] == [""] * 7
    baseline = ["baseline", *[""] * 9, "0.39", ""]
    assert lines_of(text, "baseline") == [baseline]
    assert lines_of(text, "v1-paper")[0][-2:] == [
        "0.34 (0.032)",
        "0.39 (0.024)",
    ]
    assert not (tmp_path / "mnist.png").exists()


def test_every_rule_below_the_header_has_a_dash(tmp_path):
    rule = summary_of(tmp_path).splitlines()[1]
    assert all(re.fullmatch(r"-+:?", r.strip()) for r in rule[1:-1].split("|"))


def test_other_epochs_and_flags_are_lines_of_their_own(tmp_path):
    runs = tmp_path / "mnist"
    decay = ("--lr_decay", "0.8")
    write_run(runs / "v4-classic-0", record_of("v4-classic", 0, 2, 0.4))
    write_run(runs / "v4-classic-1", record_of("v4-classic", 1, 3, 0.3))
    write_run(
        runs / "v4-classic-0-run2", record_of("v4-classic", 0, 2, 0.2, *decay)
    )
    text = summary_of(tmp_path)
    lines = lines_of(text, "v4-classic")
    assert {(c[0], c[3], c[5], c[7]) for c in lines} == {
        ("v4-classic", "0.40", "1", "2"),
        ("v4-classic", "0.30", "1", "3"),
        ("v4-classic --lr_decay 0.8", "0.20", "1", "2"),
    }
    assert "--recipe classic --lr_decay 0.8 --epochs 2 --seed SEED`" in text


def test_machines_and_backends_are_all_named(tmp_path):
    for seed, backend in enumerate(("tensorflow", "jax")):
        record = record_of("v2-paper", seed, 1, 0.4, backend=backend)
        write_run(tmp_path / "mnist" / f"v2-paper-{seed}", record)
    text = summary_of(tmp_path)
    machines = "Some CPU, 2 cores, tensorflow; Some CPU, 2 cores, jax"
    assert lines_of(text, "v2-paper")[0][9] == machines
    assert "`KERAS_BACKEND=jax python capsulenet.py -r 1" in text


def test_unfinished_runs_are_listed_and_not_averaged(tmp_path):
    runs = tmp_path / "mnist"
    write_run(runs / "v4-classic-0", record_of("v4-classic", 0, 2, 0.4))
    write_log(runs / "v4-classic-1", [3, 2, 0.1])
    text = summary_of(tmp_path)
    assert lines_of(text, "v4-classic")[0][3:6] == ["0.40", "", "1"]
    assert "Unfinished: v4-classic-1 (3 epochs done)." in text


def test_command_of_a_run_gives_its_flags(tmp_path):
    extra = ("--lam_recon", "0.392", "--batch_size", "50", "--ema", "0.99")
    record = record_of("v4-paper", 5, 3, 0.4, *extra)
    folder = tmp_path / "mnist" / "v4-paper-5"
    write_run(folder, record)
    (run,) = mnist.read_runs(tmp_path)
    words = mnist.command_of(run).split()
    assert words[:2] == ["python", "capsulenet.py"]
    flags = settings.flags_of(settings.parse_args(words[2:]))
    assert {**flags, "save_dir": ""} == {**record["flags"], "save_dir": ""}


def test_published_files_carry_no_path_of_the_machine(tmp_path):
    data = tmp_path / "secret" / "tiny.npz"
    folder, out = tmp_path / "work" / "v4-classic-0", tmp_path / "out"
    record = record_of("v4-classic", 0, 1, 0.4, dataset=str(data))
    write_run(folder, record)
    wanted = mnist.comparable(record["flags"])
    target = out / "mnist" / "v4-classic-0"
    mnist.collect(folder, target, wanted)
    flags = json.loads((target / "run.json").read_text())["flags"]
    assert flags["save_dir"] == "result/mnist/v4-classic-0"
    assert flags["dataset"] == "tiny.npz"
    written = "".join(p.read_text() for p in target.iterdir())
    written += summary_of(out)
    assert "secret" not in written and "someone" not in written
    assert "--dataset tiny.npz" in written


def test_log_is_copied_as_far_as_its_last_whole_line(tmp_path):
    folder, out = tmp_path / "work" / "v4-paper-0", tmp_path / "out"
    write_log(folder, [2, 1])
    whole = (folder / "log.csv").read_bytes()
    (folder / "log.csv").write_bytes(whole + b"2,0.")
    target = out / "mnist" / "v4-paper-0"
    mnist.collect(folder, target, {})
    assert (target / "log.csv").read_bytes() == whole
    assert os.listdir(target) == ["log.csv"]


def test_a_run_that_is_done_is_not_trained_again(tmp_path):
    record = record_of("v4-paper", 0, 5, 0.4)
    write_run(tmp_path / "work" / "v4-paper-0", record)
    found = folder_for("v4-paper", 0, tmp_path, "--epochs", "5")
    assert found == ("v4-paper-0", True, None)
    write_run(tmp_path / "mnist" / "v4-paper-1", record)
    found = folder_for("v4-paper", 1, tmp_path, "--epochs", "5")
    assert found == ("v4-paper-1", True, None)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--epochs", "5"], "v4-paper-0"),
        (["--epochs", "9"], "v4-paper-0"),
        (["--epochs", "3"], "v4-paper-0-run2"),
        (["--epochs", "5", "--extra", "--lr 0.01"], "v4-paper-0-run2"),
    ],
)
def test_an_unfinished_run_goes_on_with_its_own_flags(tmp_path, argv, expected):
    record = record_of("v4-paper", 0, 5, 0.4)
    write_state(tmp_path / "work" / "v4-paper-0", record, 2)
    found = folder_for("v4-paper", 0, tmp_path, *argv)
    assert found == (expected, False, None)


def test_a_finished_run_is_kept_and_a_longer_one_begins_with_it(tmp_path):
    record = record_of("v4-paper", 0, 5, 0.4)
    finished = tmp_path / "work" / "v4-paper-0"
    write_state(finished, record, 5)
    write_run(finished, record)
    found = folder_for("v4-paper", 0, tmp_path, "--epochs", "9")
    assert found == ("v4-paper-0-run2", False, "v4-paper-0")
    longer = tmp_path / "work" / "v4-paper-0-run2"
    longer.mkdir()
    mnist.copy_checkpoint(finished, longer)
    assert sorted(os.listdir(longer)) == ["checkpoint", "log.csv"]
    assert folder_for("v4-paper", 0, tmp_path, "--epochs", "9")[:2] == (
        "v4-paper-0-run2",
        False,
    )
    found = folder_for("v4-paper", 0, tmp_path, "--epochs", "3")
    assert found[0] == "v4-paper-0-run3"


def test_damaged_record_is_one_line(tmp_path, capsys):
    write_log(tmp_path / "mnist" / "v4-paper-0", [1])
    (tmp_path / "mnist" / "v4-paper-0" / "run.json").write_text("{")
    assert mnist.main(["--report", "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.json" in line


def test_table_is_inserted_between_the_markers_of_a_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# A\n\n<!-- mnist.md -->\nold\n<!-- /mnist.md -->\n\nend\n"
    )
    expected = (
        "# A\n\n<!-- mnist.md -->\n| new \\1 |\n<!-- /mnist.md -->\n\nend\n"
    )
    for _ in range(2):
        mnist.insert(readme, "| new \\1 |")
        assert readme.read_text() == expected
    readme.write_text("# B\n")
    mnist.insert(readme, "| new |")
    assert readme.read_text() == "# B\n"
    mnist.insert(tmp_path / "none.md", "| new |")
    assert not (tmp_path / "none.md").exists()


def test_report_of_the_repository_renews_its_readme(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist.processes, "ROOT", tmp_path)
    monkeypatch.setattr(mnist, "DEFAULT_OUT", tmp_path / "result")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- mnist.md -->\n<!-- /mnist.md -->\n")
    assert mnist.main(["--report", "--out", str(tmp_path / "result")]) == 0
    table = (tmp_path / "result" / "mnist.md").read_text().split("\n\n")[0]
    assert table in readme.read_text()
    assert "(result/mnist.md)" in readme.read_text()


@pytest.mark.parametrize("deaf", [1, 100])
def test_a_run_that_misses_a_signal_is_ended_nevertheless(monkeypatch, deaf):
    monkeypatch.setattr(mnist, "PATIENCE_SECONDS", 0.3)
    code = f"""
import signal, sys, time
count = 0
def handler(*_):
    global count
    count += 1
    if count > {deaf}:
        sys.exit(130)
signal.signal(signal.SIGINT, handler)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        mnist.stop(child)
        expected = 130 if deaf < mnist.ATTEMPTS else -signal.SIGKILL
        assert child.returncode == expected


def train_argv(folder, data):
    flags = "--rows v1-c v4-c --epochs 2 --extra".split()
    return [
        *(*flags, "--batch_size 50 --jit_compile off"),
        *("--dataset", data, "--work_dir", str(folder / "work")),
        *("--out", str(folder)),
    ]


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "ended too early"
        assert time.monotonic() < end
        time.sleep(0.02)


def start(*argv):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "mnist.py"), *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def child_of(process):
    path = f"/proc/{process.pid}/task/{process.pid}/children"
    return int(Path(path).read_text().split()[0])


def is_alive(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_killed_and_interrupted_runs_end_like_uninterrupted_ones(tmp_path):
    data = write_bars(tmp_path / "tiny.npz", train=1500)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    names = ["v1-classic-0", "v4-classic-0"]
    states = [killed / "work" / n / "checkpoint" / "state.json" for n in names]

    # Killed outright in the middle of the first run, which dies with it.
    runner = start(*train_argv(killed, data))
    wait_for(states[0].exists, runner)
    child = child_of(runner)
    runner.kill()
    runner.communicate()
    end = time.monotonic() + 30
    while is_alive(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_alive(child)

    # Interrupted in the middle of the second run.
    runner = start(*train_argv(killed, data))
    wait_for(states[1].exists, runner)
    child = child_of(runner)
    runner.send_signal(signal.SIGINT)
    _, errors = runner.communicate(timeout=120)
    assert runner.returncode == 130, errors
    assert "the same command goes on" in errors
    assert not is_alive(child)

    for folder in (killed, whole):
        ended = run(*train_argv(folder, data))
        assert ended.returncode == 0, ended.stderr
    again = run(*train_argv(killed, data))
    assert [line for line in again.stdout.splitlines() if "done" in line] == [
        f"{name}: done before" for name in names
    ]
    for name in names:
        logs = [f / "mnist" / name / "log.csv" for f in (killed, whole)]
        assert logs[0].read_bytes() == logs[1].read_bytes()
        assert len(logs[0].read_text().splitlines()) == 3
    assert str(tmp_path) not in (whole / "mnist.md").read_text()
    tables = [summary_of(folder) for folder in (killed, whole)]
    for row in ("v1-classic", "v4-classic"):
        # All but the seconds.
        ours, theirs = (lines_of(text, row)[0] for text in tables)
        assert ours[:8] == theirs[:8]
        assert ours[3] != ""
