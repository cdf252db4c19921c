"""Tests of the benchmarks of speed: files, figures, rules."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import growth
import keras
import processes
import pytest
import routings
import settings
import speed

from capsnet.messages import UserError

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BACKEND = keras.backend.backend()
SUFFIX = "" if BACKEND == "tensorflow" else f"-{BACKEND}"
ENVIRONMENT = {
    "processor": "p",
    "cores": 1,
    "system": "s",
    "python": "3",
    "backend": "jax",
    "versions": {"jax": "1.0"},
}


def run(script, *argv):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def measured(name, folder, *argv):
    """The record and the table of a quick run."""
    ended = run(f"{name}.py", "--quick", "--out", folder, *argv)
    assert ended.returncode == 0, ended.stderr
    text = (folder / "README.md").read_text()
    record = json.loads((folder / f"{name}{SUFFIX}.json").read_text())
    assert f"<!-- {name}{SUFFIX} -->" in text and "mean nothing" in text
    assert record["command"] in text and record["command"].endswith(
        " ".join(["--out", str(folder), *argv])
    )
    assert text.split("-->\n")[1].split("\n<!--")[0] in ended.stdout
    return record, text


@pytest.mark.parametrize(
    "name", ["speed", "growth", "routings", "settings", "dimensions"]
)
@pytest.mark.parametrize(
    "argv, status",
    [(["-h"], 0), (["--no_such_flag"], 2), (["--steps", "0"], 2)],
)
def test_command_line_answers_at_once(name, argv, status):
    start = time.perf_counter()
    ended = run(f"{name}.py", *argv)
    assert time.perf_counter() - start < 3
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr


def test_parents_do_not_import_keras():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); "
        "import differences, growth, mnist, routings, settings, speed; "
        "scripts = growth, routings, settings, speed; "
        "[script.parse_args([]) for script in scripts]; "
        "sys.exit('keras' in sys.modules or 'matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("script", [speed, growth, routings, settings])
def test_a_try_does_not_overwrite_the_figures(tmp_path, script):
    assert script.parse_args(["--quick"]).out == processes.TRY
    assert script.parse_args([]).out == str(BENCHMARKS)
    given = script.parse_args(["--quick", "--out", str(tmp_path)])
    assert given.out == str(tmp_path)


def test_explicit_flags_win_over_quick():
    args = speed.parse_args(["--quick", "--batch_size", "7"])
    assert (args.batch_size, args.steps) == (7, speed.QUICK["steps"])
    assert speed.parse_args([]).batch_size == 100


def test_every_rule_of_a_table_is_markdown():
    lines = processes.table(["a", "n"], [["b", 1], ["long", 2]]).splitlines()
    assert lines == [
        "| a    | n  |",
        "| ---- | -: |",
        "| b    | 1  |",
        "| long | 2  |",
    ]


def test_text_is_put_between_its_marks_and_nowhere_else(tmp_path):
    readme = tmp_path / "README.md"
    marked = "# A\n\n<!-- speed -->\n{}\n<!-- /speed -->\n\nend\n"
    readme.write_text(marked.format("old"))
    for _ in range(2):
        processes.insert(readme, "speed", "| new \\1 |")
        assert readme.read_text() == marked.format("| new \\1 |")
    readme.write_text("# B\n")
    processes.insert(readme, "speed", "new")
    assert readme.read_text() == "# B\n"
    processes.insert(readme, "speed", "new", add=True)
    added = "# B\n\n<!-- speed -->\nnew\n<!-- /speed -->\n"
    assert readme.read_text() == added
    processes.insert(tmp_path / "none.md", "speed", "new")
    assert not (tmp_path / "none.md").exists()


def test_ratio_is_the_median_over_turns_not_the_ratio_of_medians():
    steps = {"ours": [1.0, 2.0, 9.0], "ours-1": [1.0, 1.0, 3.0]}
    contenders = {name: {"seconds_per_step": s} for name, s in steps.items()}
    found = speed.ratios(contenders, "seconds_per_step", "ours", "ours-1")
    assert found == [1.0, 2.0, 3.0]
    for pair in (("ours", "classic"), ("small", "ours")):
        assert speed.ratios(contenders, "seconds_per_step", *pair) == []


def contender(seconds, predicted):
    """Figures of steps of 100 pictures, as speed.py records them."""
    return {
        "seconds_per_step": seconds,
        speed.TRAINING: [100 / each for each in seconds],
        speed.PREDICT: predicted,
        "peak_memory_bytes": 10**9,
        "start_seconds": 4.0,
    }


def test_goals_of_the_small_network():
    record = {
        "contenders": {
            "classic": contender([8.0, 10.0, 9.0], [1.0] * 3),
            "ours": contender([2.0, 2.0, 2.0], [1.0] * 3),
            "small": contender([0.5, 1.0, 1.0], [1.0] * 3),
        },
        "feed_seconds_per_batch": {"ours": 0.01, "small": 0.06},
        "help_seconds": 0.5,
        "wrong_flag_seconds": 0.5,
    }
    rows = {row["what"]: row for row in speed.goals(record, 3)}
    small = rows["training, small / classic"]
    assert small["values"] == pytest.approx([16, 10, 9])
    assert small["met"] and small["median"] == pytest.approx(10)
    assert rows["training, small / ours"]["values"] == pytest.approx([4, 2, 2])
    fed = rows["feeding affine, % of a step of small"]
    assert fed["median"] == pytest.approx(6) and fed["met"] is False
    assert rows["feeding, % of a step of ours"]["median"] == pytest.approx(0.5)
    del record["contenders"]["small"]
    rows = {row["what"]: row for row in speed.goals(record, 3)}
    for what in (small["what"], fed["what"]):
        assert rows[what]["values"] == [] and rows[what]["met"] is None


def test_routings_are_compared_with_dynamic():
    figures = {
        "dynamic": contender([1.0, 2.0], [30.0, 60.0]),
        "attention": contender([0.5, 0.5], [60.0, 60.0]),
    }
    record = {"environment": ENVIRONMENT, "contenders": figures}

    def cells(name):
        line = next(
            line
            for line in routings.describe(record)[-1].splitlines()
            if line.startswith(f"| {name} ")
        )
        return [cell.strip() for cell in line.split("|")[2:-1]]

    assert cells("attention") == [
        "200 (200 to 200)",
        "3.00 (2.00 to 4.00)",
        "60.0 (60.0 to 60.0)",
        "1.50 (1.00 to 2.00)",
        "1000",
    ]
    del figures["dynamic"]
    assert cells("attention")[1] == cells("attention")[3] == ""


def test_the_fastest_pass_counts_and_a_failure_costs_no_other_point(capsys):
    seconds = iter([5.0, 3.0, 4.0])

    def measure(spec):
        if spec == "large":
            raise UserError("out of memory")
        return {"median_seconds": next(seconds)}

    small, large = processes.fastest(["small", "large"], 3, measure)
    assert small == {"median_seconds": 3.0}
    assert large == {"error": "out of memory"}
    assert "pass 3, large: out of memory" in capsys.readouterr().out
    with pytest.raises(UserError, match="out of memory"):
        processes.fastest(["large"], 1, measure)


@pytest.mark.parametrize("names", [["small"], list(speed.CONTENDERS)])
def test_speed_writes_what_was_measured(tmp_path, names):
    record, text = measured("speed", tmp_path, "--contenders", *names)
    assert list(record["contenders"]) == names
    for name, found in record["contenders"].items():
        assert f"| {name} " in text
        for key in (speed.TRAINING, speed.PREDICT):
            assert len(found[key]) == 2 and min(found[key]) > 0
        assert found["peak_memory_bytes"] > 1e8
        assert 0 < found["start_seconds"] < 600
        weights = 1573168 if name.startswith("small") else 8215568
        assert found["weights"] == weights
    met = {row["what"]: row["met"] for row in record["goals"]}
    assert len(met) == 12 and all(f"| {what} " in text for what in met)
    assert (met["training, ours / classic"] is None) == (len(names) == 1)
    assert isinstance(met["a wrong flag, s"], bool)
    assert record["environment"]["processor"] in text


def test_routings_writes_what_was_measured(tmp_path):
    names = ["dynamic-1", "attention"]
    record, text = measured("routings", tmp_path, "--kinds", *names)
    assert list(record["contenders"]) == names
    # A prior for each pair of a class and a primary capsule.
    for name, more in zip(names, (0, 10 * 1152)):
        found = record["contenders"][name]
        assert found["weights"] == 8215568 + more and f"| {name} " in text
        assert min(found[speed.TRAINING] + found[speed.PREDICT]) > 0


@pytest.mark.parametrize("axes", [["routings"], list(growth.AXES)])
def test_growth_writes_its_files(tmp_path, axes):
    record, text = measured("growth", tmp_path, "--axes", *axes)
    picture = tmp_path / f"growth{SUFFIX}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(record["axes"]) == axes
    for axis, series in record["axes"].items():
        assert growth.AXES[axis][0] in text
        assert [p[axis] for p in series] == list(growth.QUICK_VALUES[axis])
        assert all(p["median_seconds"] > 0 for p in series)
        assert all(p["peak_memory_bytes"] > 1e8 for p in series)
        work = [p["multiplications"]["written"] for p in series]
        assert work == sorted(set(work))


def test_growth_draws_and_tabulates_the_points_that_were_measured(tmp_path):
    point = {"batch_size": 20, "median_seconds": 3.0, "peak_memory_bytes": None}
    point["multiplications"] = {"written": 2 * 10**9, "done": 10**9}
    series = [{**point, "size": 28}, {"size": 64, "error": "out of memory"}]
    failed = [{"n_class": 10, "batch_size": 20, "error": "out of memory"}]
    record = {"environment": ENVIRONMENT}
    record["axes"] = {"size": series, "n_class": failed}
    machine, _, table, *_ = growth.describe(record)
    assert machine == "p, 1 cores, jax 1.0, Keras ?, Python 3, s."
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in table.splitlines()
    ]
    figures = ["3.00", "150", "", "2.00", "1500", "1.00", "3000"]
    assert cells[2:] == [["28", *figures], ["64", "failed", *[""] * 6]]
    growth.draw(record, tmp_path / "growth.png")
    assert os.path.getsize(tmp_path / "growth.png") > 0


def setting(backend, training, predict, **changed):
    row = {"backend": backend, "changed": changed, "peak_memory_bytes": None}
    row.update({settings.TRAINING: training, settings.PREDICT: predict})
    versions = {backend: "1.0"}
    environment = {**ENVIRONMENT, "backend": backend, "versions": versions}
    return {**row, "environment": environment}


def test_settings_are_compared_with_the_first_row():
    rows = [
        setting("tensorflow", 20.0, 10.0),
        setting("tensorflow", 40.0, 5.0, dtype_policy="mixed_bfloat16"),
        {"backend": "jax", "changed": {"network": "direct"}, "error": "killed"},
        setting("torch", 30.0, 10.0, network="classic", batch_size=128),
    ]
    record = {"rows": rows, "missing": ["jax"]}
    machine, missing, table = settings.describe(record)
    assert machine.startswith("p, 1 cores, tensorflow 1.0, torch 1.0, Keras")
    assert missing == "Not installed: jax."
    lines = [line.split("|")[1:-1] for line in table.splitlines()]
    cells = {line[0].strip(): [c.strip() for c in line[1:]] for line in lines}
    assert cells["tensorflow"] == ["20.0", "1.00", "10.0", "1.00", ""]
    assert cells["tensorflow, --dtype_policy mixed_bfloat16"][1] == "2.00"
    assert cells["jax, --conv direct"][0] == "failed"
    assert cells["torch, classic, --batch_size 128"][1] == "1.50"
    rows[1]["gpu_percent"] = [40.0, 50.0]
    table = settings.describe(record)[-1]
    assert "GPU, %" in table and "| 45.0 " in table
    # Three networks, two precisions, two sizes of batch.
    assert len({str(row) for row in settings.ON_GPU}) == 12


def test_settings_without_any_backend(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    assert settings.main(["--backends", "torch", "--out", str(tmp_path)]) == 1
    assert "not installed: torch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_setting_is_measured_in_training_and_predict():
    args = settings.parse_args(["--quick"])
    row = {"backend": BACKEND, "changed": {"steps_per_execution": 5}}
    found = settings.measure_setting(args, row)
    assert found[settings.TRAINING] > 0 and found[settings.PREDICT] > 0
    rate = args.batch_size / found["median_seconds"]
    assert found[settings.TRAINING] == pytest.approx(rate)
    assert found["environment"]["backend"] == BACKEND


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_utilisation_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 37\necho 12\n")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    with settings.watched_gpu(seconds=0.01) as found:
        end = time.monotonic() + 10
        while not found and time.monotonic() < end:
            time.sleep(0.01)
    assert set(found) == {37.0}
    monkeypatch.setattr(settings.shutil, "which", lambda _: None)
    with settings.watched_gpu(seconds=0.01) as found:
        time.sleep(0.05)
    assert found == []
