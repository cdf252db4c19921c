"""Commands that are stopped, killed or left alone, in processes of their own.

A command that was not done never ends with status 0; the finished epochs of
a run survive whatever ends it.
"""

import contextlib
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import pytest
from running import contents, heed_ctrl_c

ROOT = Path(__file__).parents[2]
KILLS = 11
# So many that no run ends before it is killed.
EPOCHS = 40
FAST = "--batch_size 10 --seed 5 -r 1 --lam_recon 0".split()


def start(folder, *argv, stdout=subprocess.DEVNULL, words=None):
    """The command in a process of its own."""
    script = [sys.executable, str(ROOT / "capsulenet.py")]
    return subprocess.Popen(
        words or [*script, "--save_dir", str(folder), *argv],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def wait_for(process, happened):
    """Looks until something has happened, or the process has ended."""
    end = time.monotonic() + 120
    while process.poll() is None and not happened():
        assert time.monotonic() < end, "nothing happened for two minutes"
        time.sleep(0.001)


def end_of(process):
    """The exit status of a process, and what it said of errors."""
    try:
        message = process.communicate(timeout=240)[1]
    finally:
        process.kill()
    return process.returncode, message


def stamp(path):
    """When a file was written last; None while there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns


def kill_in_an_epoch(process, folder, rng):
    """SIGKILL at any time up to half a second after a checkpoint."""
    state = folder / "checkpoint" / "state.json"
    before = stamp(state)
    wait_for(process, lambda: stamp(state) != before)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()


def kill_in_a_write(process, folder, rng):
    """SIGKILL soon after a temporary file of the checkpoint appeared."""
    pattern = "checkpoint/.*-" + rng.choice(("epoch", "epoch", "state")) + "*"
    before = set(folder.glob(pattern))
    wait_for(process, lambda: set(folder.glob(pattern)) - before)
    time.sleep(rng.uniform(0, 0.02))
    process.kill()


def kill_at_once(process, folder, rng):
    """SIGKILL before there is a checkpoint of this process."""
    before = stamp(folder / "log.csv")
    wait_for(process, lambda: stamp(folder / "log.csv") != before)
    process.kill()


def saved_weights(path):
    """The weights in a `.keras` file, as bytes."""
    with zipfile.ZipFile(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    weights = {}

    def keep(name, item):
        if isinstance(item, h5py.Dataset):
            weights[name] = item[()].tobytes()

    with h5py.File(content) as file:
        file.visititems(keep)
    assert weights
    return weights


@pytest.mark.slow
def test_run_that_is_killed_again_and_again_ends_like_the_other(tmp_path, tiny):
    argv = ["--dataset", tiny, *FAST, "--epochs", str(EPOCHS)]
    never, often = tmp_path / "never", tmp_path / "often"
    state = often / "checkpoint" / "state.json"
    rng = random.Random(0)
    others = [kill_in_an_epoch] * 4 + [kill_in_a_write] * (KILLS - 6)
    rng.shuffle(others)
    torn = refused = 0
    # Twice before there is a checkpoint.
    for kill in (kill_at_once, kill_in_a_write, *others):
        process = start(often, "--resume")
        if not state.exists():
            status, message = end_of(process)
            assert status == 2 and "found no checkpoint" in message
            assert "start the run without --resume" in message
            refused += 1
            process = start(often, *argv)
        kill(process, often, rng)
        status, message = end_of(process)
        assert status == -signal.SIGKILL, message
        name = f".{process.pid}-*"
        torn += any(often.glob(f"checkpoint/{name}"))
    done = json.loads(state.read_text())["epochs_done"]
    print(f"{KILLS} kills, {torn} in a write, {refused} refused, {done} epochs")
    assert torn >= 3 and refused >= 1 and 0 < done < EPOCHS
    for process in (start(never, *argv), start(often, "--resume")):
        status, message = end_of(process)
        assert status == 0, message
    log = (never / "log.csv").read_bytes()
    assert log.count(b"\n") == EPOCHS + 1
    assert (often / "log.csv").read_bytes() == log
    model = "trained_model.keras"
    assert saved_weights(often / model) == saved_weights(never / model)
    # What the kills left half written is gone.
    assert contents(often).keys() == contents(never).keys()


@pytest.mark.slow
def test_run_that_ctrl_c_stopped_goes_on_with_the_printed_command(
    tmp_path, tiny
):
    argv = ["--dataset", tiny, *FAST, "--epochs", "12"]
    never, stopped = tmp_path / "never", tmp_path / "a stopped run's"
    process = start(stopped, *argv)
    state = stopped / "checkpoint" / "state.json"
    wait_for(process, state.exists)
    for _ in range(2):  # An impatient user.
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    status, message = end_of(process)
    assert not list(stopped.rglob(".*epoch*"))
    last = message.splitlines()[-1]
    assert status == 130 and "Traceback" not in message
    assert last.startswith("capsulenet.py: interrupted; the finished epochs")
    words = ["env", *shlex.split(last.split("Go on: ")[1])]
    words[words.index("python")] = sys.executable
    for process in (start(stopped, words=words), start(never, *argv)):
        assert end_of(process)[0] == 0
    log = (never / "log.csv").read_bytes()
    assert (stopped / "log.csv").read_bytes() == log


@pytest.mark.slow
@pytest.mark.parametrize("how", ("head", "closed"))
def test_training_whose_output_nobody_reads_goes_on(tmp_path, tiny, how):
    argv = ["--dataset", tiny, *FAST, "--epochs", "3"]
    if how == "head":
        process = start(tmp_path, *argv, stdout=subprocess.PIPE)
        for _ in range(3):
            assert process.stdout.readline()
        process.stdout.close()
        process.stdout = None
    else:
        script = shlex.join(
            [sys.executable, str(ROOT / "capsulenet.py"), *argv]
        )
        folder = shlex.quote(str(tmp_path))
        line = f"exec {script} --save_dir {folder} >&-"
        process = start(tmp_path, words=["sh", "-c", line])
    status, message = end_of(process)
    assert status == 0, message
    assert (tmp_path / "trained_model.keras").is_file()
    assert (tmp_path / "log.csv").read_bytes().count(b"\n") == 4
    assert os.listdir(tmp_path / "checkpoint")
