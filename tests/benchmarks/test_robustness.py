"""Tests of benchmarks/robustness.py and shifted.py, with tiny sizes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import robustness
import runner
import shifted
from conftest import write_bars
from PIL import Image
from published import ENVIRONMENT, cells_of

from capsnet.data.sources import load
from capsnet.evaluation.robustness import checksum, take
from capsnet.evaluation.robustness import shifted as shifted_set
from capsnet.models.geometry import parameters

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "benchmarks" / "robustness.py")
TINY = "--checks 3 --batch_size 20 --stop 0.5".split()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """100 and 30 pictures of 12x12: five steps an epoch in batches of 20."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    return write_bars(path, train=100, test=30, shape=(12, 12, 1))


def argv_of(folder, digits, *argv):
    folders = ["--work_dir", str(folder / "work"), "--out", str(folder / "out")]
    return [*TINY, "--dataset", digits, *folders, *argv]


def train(folder, digits, row, *argv):
    """Trains a run in this process; returns its log and its record."""
    args = robustness.parse_args(argv_of(folder, digits, *argv))
    work = folder / "work" / f"{row}-0"
    work.mkdir(parents=True, exist_ok=True)
    published = []
    shifted.train(row, 0, args, load(digits), work, lambda: published.append(1))
    record = json.loads((work / "run.json").read_text())
    log = runner.read_log(work / "log.csv")
    return log, record, len(published)


def test_networks_have_as_many_weights():
    counts = {
        row: parameters(shifted.build(row, (40, 40, 1), 10)[0])
        for row in robustness.ROWS
    }
    assert counts["capsnet"] == 13_475_648
    assert counts["cnn"] == 13_472_010
    # Without the decoder it has 161,824 at 28x28.
    assert counts["small"] == 2_428_000


def test_cnn_pools_and_drops_out():
    model = shifted.CNN((40, 40, 1), 10)[0]
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("MaxPooling2D") == 3 and kinds.count("Dropout") == 2
    scores = model(np.random.default_rng(0).random((2, 40, 40, 1), "float32"))
    np.testing.assert_allclose(scores["capsnet"].numpy().sum(-1), 1, rtol=1e-5)


def test_checks_are_those_of_whole_sets(digits):
    data = load(digits)
    models = shifted.build("small", (24, 24, 1), 3)
    checks = shifted.Checks(data, models[1])

    def accuracy(images, labels):
        x = images.astype("float32") / 255
        lengths = models[1].predict(x, verbose=0)["capsnet"]
        return np.mean(lengths.argmax(-1) == labels)

    every = take(data.x_test, np.arange(30 * 32))
    assert checks.accuracies() == pytest.approx(
        (
            accuracy(shifted_set(data.x_test), data.y_test),
            accuracy(every, np.repeat(data.y_test, 32)),
        )
    )


def test_whole_set_is_tested_in_parts_that_go_on(digits, tmp_path, monkeypatch):
    data = load(digits)
    checks = shifted.Checks(data, shifted.build("small", (24, 24, 1), 3)[1])
    whole, parts = tmp_path / "whole.json", tmp_path / "parts.json"
    checks.test_all(whole)
    count = {"pictures": 960}
    assert count.items() <= json.loads(whole.read_text()).items()
    monkeypatch.setattr(shifted, "BLOCK", 100)
    tested, right = [], checks.right

    def interrupted(images, labels):
        if len(tested) == 4:
            tested.append(None)
            raise KeyboardInterrupt
        tested.append(len(images))
        return right(images, labels)

    checks.right = interrupted
    with pytest.raises(KeyboardInterrupt):
        checks.test_all(parts)
    assert json.loads(parts.read_text())["pictures"] == 400
    checks.test_all(parts)
    assert parts.read_text() == whole.read_text()
    assert tested == [100] * 4 + [None] + [100] * 5 + [60]


@pytest.mark.slow
def test_training_ends_at_the_first_check_that_reaches_the_stop(
    digits, tmp_path
):
    log, record, published = train(tmp_path, digits, "small")
    assert published == len(log) + 1
    accuracies = [row["shifted_accuracy"] for row in log]
    assert accuracies[-1] >= 0.5 and max([0, *accuracies[:-1]]) < 0.5
    stopped = record["stopped"]
    assert log[-1].items() <= stopped.items() and stopped["pictures"] == 960
    # All of this small set is in each check.
    share = stopped["right"] / stopped["pictures"]
    assert share == pytest.approx(log[-1]["affine_accuracy"])
    assert record["set_sha256"] == checksum(load(digits).x_test)
    # It goes on to the end of an epoch, and tells of the same stop.
    longer, again, _ = train(tmp_path, digits, "small", "--epochs", "4")
    assert longer[: len(log)] == log and again["stopped"] == stopped
    assert [row["step"] for row in longer] == [3, 5, 8, 10, 13, 15, 18, 20]
    assert (again["flags"]["epochs"], again["steps_per_epoch"]) == (4, 5)
    assert longer[-1]["loss"] < longer[0]["loss"]
    with pytest.raises(runner.UserError, match="--stop 0.5, got 0.9"):
        train(tmp_path, digits, "small", "--stop", "0.9")


def test_some_of_the_set_are_drawn_beside_their_digits(digits, tmp_path):
    data = load(digits)
    with open(tmp_path / "set.png", "wb") as file:
        shifted.draw_set(data, file)
    with Image.open(tmp_path / "set.png") as picture:
        pixels = np.asarray(picture)[::2, ::2]
    assert pixels.shape == (10 * 25 - 1, 10 * 25 - 1)
    for row, digit in enumerate(range(0, 30, 3)):
        cells = pixels[25 * row :][:24]
        np.testing.assert_array_equal(
            cells[6:18, 6:18], data.x_test[digit, ..., 0]
        )
        versions = take(data.x_test, 32 * digit + np.arange(9) * 32 // 9)
        for column, version in enumerate(versions[..., 0], 1):
            found = cells[:, 25 * column :][:, :24]
            np.testing.assert_array_equal(found, version)


def publish(out, row, seed, shifted_accuracy, right, checks=100):
    """A finished run as `train` and `runner.collect` leave it."""
    folder = out / "robustness" / f"{row}-{seed}"
    folder.mkdir(parents=True)
    lines = ["check,step,loss,shifted_accuracy,affine_accuracy"]
    lines += ["1,100,0.5,0.95,0.4", f"2,200,0.4,{shifted_accuracy},0.6"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    stopped = {"step": 900.0, "shifted_accuracy": shifted_accuracy}
    stopped |= {"pictures": 320_000, "right": right}
    flags = {"row": row, "seed": seed, "epochs": 1.5, "checks": checks}
    record = {
        "flags": {**flags, "dataset": "mnist", "stop": 0.992},
        "parameters": 13_475_648,
        "environment": ENVIRONMENT,
        "steps_per_epoch": 600,
        "stopped": stopped if right else None,
        "set_sha256": "abc",
    }
    (folder / "run.json").write_text(json.dumps(record))


def test_table_has_means_and_what_the_goals_ask(tmp_path):
    publish(tmp_path, "capsnet", 0, 0.992, 240_000)  # 75 %
    publish(tmp_path, "capsnet", 1, 0.994, 256_000)  # 80 %
    publish(tmp_path, "cnn", 0, 0.993, 208_000)  # 65 %
    publish(tmp_path, "small", 0, 0.991, None)
    publish(tmp_path, "small", 1, 0.993, 160_000, checks=50)
    assert robustness.main(["--report", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "README.md").read_text()
    cells = cells_of(text)
    weights = "13,475,648"
    expected = ["capsnet", weights, "1.50 (0.00)", "99.30 (0.14)"]
    assert cells[1] == [*expected, "77.50 (3.54)", "2", "99.23", "79"]
    expected = ["cnn", weights, "1.50", "99.30", "65.00", "1", "99.22", "66"]
    assert cells[2] == expected
    assert cells[3] == ["small", weights, "not reached", "", "", "0", "", ""]
    assert cells[4][:5] == [
        *("small --checks 50", weights, "1.50", "99.30", "50.00"),
    ]
    goals = [line[1:] for line in cells[6:]]
    assert goals == [
        ["77.50", "at least 79", "no"],
        ["12.50", "at least 10", "yes"],
    ]
    assert "[cnn-0](robustness/cnn-0/log.csv)" in text and "abc." in text
    with Image.open(tmp_path / "robustness.png") as picture:
        picture.load()


def test_without_a_run_the_table_says_so(tmp_path):
    assert robustness.main(["--report", "--out", str(tmp_path)]) == 0
    assert "No run is finished yet." in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "robustness.png").exists()


def test_unknown_row_names_the_rows_before_anything_heavy_is_imported():
    start = time.perf_counter()
    command = [sys.executable, SCRIPT, "--rows", "big"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert time.perf_counter() - start < 3 and ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "'big'" in line and all(row in line for row in robustness.ROWS)


@pytest.mark.slow
def test_killed_run_ends_with_the_log_of_an_unbroken_one(digits, tmp_path):
    """With dropout, whose random numbers are in no file of weights."""
    logs, flags = [], "--rows cnn --epochs 2".split()
    for name in ("killed", "whole"):
        folder = tmp_path / name
        command = [sys.executable, SCRIPT, *argv_of(folder, digits, *flags)]
        log = folder / "out" / "robustness" / "cnn-0" / "log.csv"
        if name == "killed":
            with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
                end = time.monotonic() + 300
                while not log.exists():
                    assert process.poll() is None and time.monotonic() < end
                    time.sleep(0.05)
                process.kill()
                process.communicate()
            assert len(log.read_text().splitlines()) < 5
        subprocess.run(command, check=True, capture_output=True)
        logs.append(log.read_bytes())
    assert logs[0] == logs[1] and len(logs[0].splitlines()) == 5
