"""Tests of benchmarks/: that it measures what it says, not how fast it is."""

import collections
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
sys.path[:0] = [str(ROOT), str(BENCHMARKS)]

import dimensions  # noqa: E402
import epochs  # noqa: E402
import growth  # noqa: E402
import processes  # noqa: E402
import settings  # noqa: E402
import speed  # noqa: E402
import worker  # noqa: E402
from classic import ClassicCapsNet  # noqa: E402

from capsnet.models.saving import save_model  # noqa: E402
from capsulenet import CapsNet, compile_model  # noqa: E402

SHAPE, N_CLASS = (20, 20, 1), 3
SPEC = {
    "size": 20,
    "n_class": N_CLASS,
    "batch_size": 4,
    "routings": 3,
    "dtype_policy": "float32",
    "jit_compile": "auto",
}


def run(script, *argv):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *argv],
        capture_output=True,
        text=True,
        check=False,
    )


def arrays_of(layer):
    # Copies: JAX gives a model's own buffers away when it trains or predicts.
    return [np.array(weight) for weight in layer.get_weights()]


def twins(conv="direct", routings=3):
    """Ours and the classic network, with the same weights.

    The weights are scaled so that lengths and coupling differ.
    """
    keras.utils.set_random_seed(1)
    paper = {"conv_kernel": 9, "primary_kernel": 9}
    ours, _, _ = CapsNet(SHAPE, N_CLASS, routings, conv=conv, **paper)
    classic, _, _ = ClassicCapsNet(SHAPE, N_CLASS, routings)
    primary = ours.get_layer("primarycap")
    primary.conv.kernel.assign(4 * primary.conv.kernel)
    capsules = ours.get_layer("digitcaps")
    capsules.kernel.assign(12 * capsules.kernel)
    bias = np.array(keras.ops.convert_to_numpy(primary.bias))
    classic.get_layer("primarycap_conv2d").set_weights(
        [*arrays_of(primary.conv), bias]
    )
    for name in ("conv1", "digitcaps", "decoder"):
        classic.get_layer(name).set_weights(arrays_of(ours.get_layer(name)))
    return ours, classic


@pytest.mark.parametrize("conv", ["direct", "fast"])
@pytest.mark.parametrize("routings", [1, 3])
def test_classic_formulation_gives_the_same_numbers(conv, routings):
    ours, classic = twins(conv, routings)
    x, _ = worker.batches_of(SPEC, 4)[0]
    expected = classic.predict(x, verbose=0)
    received = ours.predict(x, verbose=0)
    lengths = expected["capsnet"]
    assert 0.05 < lengths.min() and lengths.max() < 0.98
    assert np.ptp(lengths) > 0.05
    for name in ("capsnet", "decoder"):
        np.testing.assert_allclose(received[name], expected[name], atol=1e-5)


def test_routing_matters_to_the_twins():
    x, _ = worker.batches_of(SPEC, 4)[0]
    once, thrice = (
        twins(routings=routings)[1].predict(x, verbose=0)["capsnet"]
        for routings in (1, 3)
    )
    assert np.abs(once - thrice).max() > 1e-2


def test_classic_formulation_trains_alike():
    x, y = worker.batches_of(SPEC, 4)[0]
    losses = []
    for model in twins():
        compile_model(model, 1e-5, 0.2)
        losses.append([model.train_on_batch(x, y)[0] for _ in range(3)])
    assert losses[0][0] > losses[0][2]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("conv", ["auto", "direct"])
def test_work_is_what_the_shapes_say(conv):
    model, _, _ = CapsNet((28, 28, 1), 10, 3, conv=conv)
    conv1 = 2 * 20 * 20 * 256 * 81
    primary = 3 * 6 * 6 * 256 * 81 * 256
    decoder = 3 * (160 * 512 + 512 * 1024 + 1024 * 784)
    votes, use = 3 * 1152 * 10 * 16 * 8, 3 * 1152 * 10 * 16
    counted = worker.work(model, 100)
    # Votes once, and 3 sums and 2 agreements of them.
    assert counted["written"] == 100 * (
        conv1 + primary + decoder + votes + 5 * use
    )
    others = 100 * (conv1 + decoder + 5 * votes)
    if conv == "direct":
        assert counted["done"] == others + 100 * primary
    else:
        # Parts of 5 and 4 taps: 10 + 9 points along either axis. Rows, then
        # columns of the pictures, columns, then rows of the kernel.
        products = 19 * 19 * 256 * 256
        of_input = (19 * 20 * 20 + 19 * 19 * 20) * 256
        of_output = 36 * 19 * 19 * 256
        of_kernel = (9 * 9 * 19 + 9 * 19 * 19) * 256 * 256
        transforms = 100 * (of_input + of_output) + of_kernel
        assert counted["done"] == others + 300 * products + 2 * transforms


def test_ratio_is_the_median_over_turns_not_the_ratio_of_medians():
    steps = {"ours": [1.0, 2.0, 9.0], "ours-1": [1.0, 1.0, 3.0]}
    record = {
        "contenders": {n: {"seconds_per_step": s} for n, s in steps.items()}
    }
    ratios = speed.ratios(record, "seconds_per_step", "ours", "ours-1")
    assert ratios == [1.0, 2.0, 3.0]
    assert speed.ratios(record, "seconds_per_step", "ours", "classic") == []


@pytest.mark.parametrize(
    "script", ["speed.py", "growth.py", "settings.py", "dimensions.py"]
)
@pytest.mark.parametrize(
    "argv, status",
    [(["-h"], 0), (["--no_such_flag"], 2), (["--steps", "0"], 2)],
)
def test_command_line_answers_at_once(script, argv, status):
    start = time.perf_counter()
    ended = run(script, *argv)
    assert time.perf_counter() - start < 1
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr


def test_parents_do_not_import_keras():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); "
        "import growth, settings, speed; growth.parse_args([]); "
        "settings.parse_args([]); speed.parse_args([]); "
        "sys.exit('keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_try_does_not_overwrite_the_figures(tmp_path):
    for script in (speed, growth, settings, epochs):
        assert script.parse_args(["--quick"]).out == processes.TRY
        assert script.parse_args([]).out == str(ROOT / "benchmarks")
        given = script.parse_args(["--quick", "--out", str(tmp_path)])
        assert given.out == str(tmp_path)


def test_explicit_flags_win_over_quick():
    args = speed.parse_args(["--quick", "--batch_size", "7"])
    assert (args.batch_size, args.steps) == (7, speed.QUICK["steps"])
    assert speed.parse_args([]).batch_size == 100


def test_backend_is_part_of_the_name_unless_it_is_the_default():
    names = [
        processes.out_name("out", "speed", backend, "md").name
        for backend in ("tensorflow", "jax")
    ]
    assert names == ["speed.md", "speed-jax.md"]


def test_every_rule_of_a_table_is_markdown():
    lines = processes.table(["a", "n"], [["b", 1], ["long", 2]]).splitlines()
    assert lines == ["| a    | n  |", "| ---- | -: |", *lines[2:]]
    assert lines[2:] == ["| b    | 1  |", "| long | 2  |"]


def test_worker_that_fails_says_why_and_leaves_no_process():
    with pytest.raises(processes.WorkerError, match="status 1.*PlanError"):
        processes.Worker(network="ours", **{**SPEC, "size": 12})


def speed_run(folder, *argv):
    """A quick run: the record, the table, and what was printed."""
    ended = run("speed.py", "--quick", "--out", str(folder), *argv)
    assert ended.returncode == 0, ended.stderr
    backend = keras.backend.backend()
    name = processes.out_name(folder, "speed", backend, "json")
    assert {path.name for path in folder.iterdir()} == {
        name.name,
        name.with_suffix(".md").name,
    }
    return json.loads(name.read_text()), name.with_suffix(".md").read_text()


def check_speed(record, text, names):
    assert list(record["contenders"]) == list(names)
    for name, measured in record["contenders"].items():
        assert f"| {name} " in text
        for key in ("train", "predict"):
            rates = measured[f"{key}_pictures_per_second"]
            assert len(rates) == 2 and min(rates) > 0
        assert measured["peak_memory_bytes"] > 1e8
        assert 0 < measured["start_seconds"] < 600
        assert measured["weights"] == 8215568
    assert len(record["goals"]) == 9
    for row in record["goals"]:
        assert f"| {row['what']} " in text
    assert record["command"].endswith(f"--out {record['out']}")
    assert record["command"] in text
    assert record["environment"]["processor"] in text


def test_speed_writes_what_was_measured_without_the_others(tmp_path):
    record, text = speed_run(tmp_path, "--contenders", "ours")
    record["out"] = f"{tmp_path} --contenders ours"
    check_speed(record, text, ["ours"])
    met = {row["what"]: row["met"] for row in record["goals"]}
    assert met["training, ours / classic"] is None
    assert met["a wrong flag, s"] is not None


@pytest.mark.slow
def test_speed_writes_every_row(tmp_path):
    record, text = speed_run(tmp_path)
    record["out"] = tmp_path
    check_speed(record, text, speed.CONTENDERS)
    for row in record["goals"]:
        assert isinstance(row["met"], bool), row


def growth_run(folder, *argv):
    ended = run("growth.py", "--quick", "--out", str(folder), *argv)
    assert ended.returncode == 0, ended.stderr
    backend = keras.backend.backend()
    path = processes.out_name(folder, "growth", backend, "json")
    record = json.loads(path.read_text())
    text = path.with_suffix(".md").read_text()
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for axis, series in record["axes"].items():
        assert growth.AXES[axis][0] in text
        assert [p[axis] for p in series] == list(growth.QUICK_VALUES[axis])
        assert all(p["median_seconds"] > 0 for p in series)
        assert all(p["peak_memory_bytes"] > 1e8 for p in series)
        work = [p["multiplications"]["written"] for p in series]
        assert work == sorted(set(work))
    return record


def test_growth_writes_its_files(tmp_path):
    record = growth_run(tmp_path, "--axes", "routings")
    assert list(record["axes"]) == ["routings"]


@pytest.mark.slow
def test_growth_measures_every_axis(tmp_path):
    record = growth_run(tmp_path)
    assert list(record["axes"]) == list(growth.AXES)


def test_growth_keeps_the_points_that_were_measured(monkeypatch, tmp_path):
    steps_seconds = itertools.chain([3.0], itertools.repeat(5.0))

    def measure_point(spec, steps):
        if spec["size"] == 64:
            return {**spec, "error": "out of memory"}
        seconds = next(steps_seconds)
        return {
            **spec,
            "seconds": [seconds] * steps,
            "median_seconds": seconds,
            "peak_memory_bytes": None,
            "multiplications": {"written": 2 * 10**9, "done": 10**9},
            "environment": {
                "processor": "p",
                "cores": 1,
                "system": "s",
                "python": "3",
                "backend": "jax",
                "versions": {},
            },
        }

    monkeypatch.setattr(growth, "measure_point", measure_point)
    assert growth.main(["--out", str(tmp_path)]) == 0
    text = (tmp_path / "growth-jax.md").read_text()
    assert "| 64 " in text and "failed" in text
    record = json.loads((tmp_path / "growth-jax.json").read_text())
    batches = [p["median_seconds"] for p in record["axes"]["batch_size"]]
    # The first pass was the fastest for the first point alone.
    assert batches == [3.0] + [5.0] * (len(batches) - 1)
    assert os.path.getsize(tmp_path / "growth-jax.png") > 0


def fake_setting(args, backend, changed):
    """Each pass is faster than the one before; so is JAX, and bfloat16."""
    fake_setting.passes[backend, str(changed)] += 1
    speed = 10.0 * fake_setting.passes[backend, str(changed)]
    speed *= 2 if backend == "jax" or "dtype_policy" in changed else 1
    return {
        "train_pictures_per_second": speed,
        "predict_pictures_per_second": 100 / speed,
        "peak_memory_bytes": None,
        "environment": {
            "processor": "p",
            "cores": 1,
            "system": "s",
            "python": "3",
            "backend": backend,
            "versions": {backend: "1.0"},
        },
    }


def test_settings_keep_the_fastest_pass(monkeypatch, tmp_path, capsys):
    fake_setting.passes = collections.Counter()
    monkeypatch.setattr(settings, "measure_setting", fake_setting)
    monkeypatch.setattr(
        settings.importlib.util,
        "find_spec",
        lambda name: None if name == "torch" else name,
    )
    argv = ["--passes", "2", "--out", str(tmp_path)]
    assert settings.main(argv) == 0
    text = (tmp_path / "settings.md").read_text()
    assert "Not installed: torch" in text and "torch, " not in text
    assert "tensorflow 1.0, jax 1.0." in text
    cells = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[1:]
        for line in text.splitlines()
    }
    # The second pass trains faster, the first one predicts faster.
    assert [c.strip() for c in cells["tensorflow"][:4]] == [
        "20.0",
        "1.00",
        "10.0",
        "1.00",
    ]
    assert cells["jax"][0].strip() == "40.0"
    assert cells["jax"][1].strip() == "2.00"
    assert "tensorflow, --dtype_policy mixed_bfloat16" in cells
    record = json.loads((tmp_path / "settings.json").read_text())
    assert record["command"].endswith(" ".join(argv))


def test_settings_without_any_backend(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    assert settings.main(["--backends", "torch", "--out", str(tmp_path)]) == 1
    assert "not installed: torch" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_worker_builds_what_a_setting_says():
    spec = {**SPEC, "network": "ours", "steps_per_execution": 5}
    model, _ = worker.build(spec)
    assert model.steps_per_execution == 5


def test_a_setting_is_measured_in_training_and_predict(tmp_path):
    args = settings.parse_args(["--quick"])
    found = settings.measure_setting(
        args, keras.backend.backend(), {"steps_per_execution": 5}
    )
    assert found["train_pictures_per_second"] > 0
    assert found["predict_pictures_per_second"] > 0
    assert found["environment"]["backend"] == keras.backend.backend()


def stroke(width=2.0, height=8.0, shear=0.0, x=14.0, y=14.0, ink=1.0):
    """A smooth blob of 28x28 whose moments are those that are named."""
    rows, columns = np.indices((28, 28))
    up = y - rows
    across = columns - x - shear * up
    blob = np.exp(-0.5 * ((across / width) ** 2 + (up / height) ** 2))
    return (ink * blob / blob.sum())[..., None]


@pytest.mark.parametrize(
    "changed, words",
    [
        ({}, "a detail"),
        ({"ink": 1.3}, "thicker"),
        ({"ink": 0.7}, "thinner"),
        ({"shear": 0.2}, "leans right"),
        ({"shear": -0.2}, "leans left"),
        ({"width": 2.3}, "wider"),
        ({"height": 3.0, "y": 16.0}, "shorter, moves down"),
        ({"x": 16.0, "ink": 3.0}, "thicker, moves right"),
        # Just below what counts.
        ({"ink": 1.19, "x": 14.9}, "a detail"),
    ],
)
def test_dimensions_are_described_by_what_changes(changed, words):
    height = {"height": 4.0, **changed}
    described = dimensions.describe(stroke(height=4.0), stroke(**height))
    assert described.startswith(words)


def test_dimension_that_leaves_nothing():
    assert "narrower" in dimensions.describe(stroke(), stroke(ink=0.0))


def test_dimensions_of_a_small_model(tiny, tmp_path, capsys):
    for lam_recon in (0.1, 0.0):
        eval_model = CapsNet((17, 17, 1), N_CLASS, 1, decoder=lam_recon > 0)[1]
        path = tmp_path / f"{lam_recon}.keras"
        save_model(eval_model, path, {"class_names": list("012")})
    out = tmp_path / "dimensions.md"
    argv = ["--dataset", tiny, "--out", str(out), "-w"]
    assert dimensions.main([*argv, str(tmp_path / "0.1.keras")]) == 0
    lines = out.read_text().splitlines()
    header = next(n for n, line in enumerate(lines) if "| dimension" in line)
    assert "| 0 " in lines[header] and len(lines) == header + 18
    assert all(line.count("|") == 5 for line in lines[header:])
    # Without a decoder there is nothing to draw, without a file nothing at all.
    assert dimensions.main([*argv, str(tmp_path / "0.0.keras")]) == 2
    assert "no decoder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        dimensions.main([*argv, str(tmp_path / "missing.keras")])


@pytest.mark.slow
def test_epochs_are_measured_for_each_setting(tmp_path):
    argv = ["--quick", "--networks", "ours", "--batch_sizes", "2", "3"]
    argv += ["--dtype_policies", "float32", "--out", str(tmp_path)]
    ended = run("epochs.py", *argv)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "epochs.json").read_text())
    assert [row["batch_size"] for row in record["rows"]] == [2, 3]
    for row in record["rows"]:
        assert row["pictures"] == 6
        assert len(row["seconds_per_epoch"]) == 1
        assert 0 < row["seconds_per_epoch"][0] < 60
    text = (tmp_path / "epochs.md").read_text()
    assert "mean nothing" in text and text in ended.stdout
    assert text.count("| ours ") == 2


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
def test_utilisation_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 37\necho 12\n")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    with epochs.watched_gpu(seconds=0.01) as found:
        end = time.monotonic() + 10
        while not found and time.monotonic() < end:
            time.sleep(0.01)
    assert set(found) == {37.0}
    monkeypatch.setattr(epochs.shutil, "which", lambda _: None)
    with epochs.watched_gpu(seconds=0.01) as found:
        time.sleep(0.05)
    assert found == []
