"""Several devices and several processes on JAX, on this machine alone.

An epoch is two batches, of 4 and of 3 pictures or of 1: two devices do not
divide the second.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import bars
from running import SHAPE, Run, contents, weights_of

pytest.importorskip("jax")
pytestmark = pytest.mark.slow  # Minutes in all.

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "capsulenet-multi-gpu.py")
# Seconds in which a run ends that has lost a process: README.
STATED = 60
# Of each kind of training: its flags, and how far its log's figures may differ,
# as a part of them: what rounding makes of tiny gradients, Adam lets grow, and
# statistics of some pictures more so.
KINDS = {
    "capsnet": ("--epochs 8 -r 1", 1e-4),
    "small": (
        "--model efficient --lam_recon 0 --epochs 8 --ema 0.9 "
        "--lr_schedule cosine --warmup 1",
        2e-3,
    ),
    "pairs": ("--epochs 1 -r 1", 1e-4),
}
# A script in a process that has no TensorFlow: JAX needs none, and without it
# a process starts sooner.
ALONE = """
import runpy, sys
sys.modules["tensorflow"] = None
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Several commands in one process, on one device or on two.
CODE = """
import importlib.util, json, sys
sys.modules["tensorflow"] = None
spec = importlib.util.spec_from_file_location("script", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
shared = None
for argv in json.loads(sys.argv[2]):
    args = script.checks.parse_args(argv, multi_gpu=True)
    shared = shared or script.share(args)
    status = script.commands.run(args, script.SCRIPT, shared)
    assert status == 0, status
"""


def environment(**variables):
    """This one, without what a launcher may have left in it."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "OMPI_"))
    }
    # What is compiled once and runs for a moment need not be fast.
    quick = {"KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**kept, **quick, **variables}


def free_port():
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


def by_hand(count):
    """Flags and variables of each process."""
    hosts = f"localhost:{free_port()}"
    flags = f"--hosts {hosts} --processes {count} --process".split()
    return [([*flags, str(number)], {}) for number in range(count)]


def by_slurm(count):
    """The same as `srun` would have them."""
    common = {
        "SLURM_JOB_ID": str(random.randrange(2**20)),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_STEP_NUM_TASKS": str(count),
    }
    names = "SLURM_PROCID", "SLURM_LOCALID"
    return [
        ([], common | dict.fromkeys(names, str(number)))
        for number in range(count)
    ]


def by_open_mpi(count):
    """The same as the `mpirun` of Open MPI 5 would have them."""
    common = {
        "PMIX_NAMESPACE": f"prterun-test-{os.getpid()}@1",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(count),
    }
    names = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"
    return [
        ([], common | dict.fromkeys(names, str(number)))
        for number in range(count)
    ]


def by_open_mpi_4(count):
    """The same as that of Open MPI 4 would have them, which JAX knows."""
    job = random.randrange(2**16) * 2**12
    more = {"OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:34911"}
    return [([], variables | more) for _, variables in by_open_mpi(count)]


def start(folder, launched, *argv, own=()):
    """Starts processes; `own` has flags for each, the last ones of all."""
    script = [sys.executable, "-c", ALONE, SCRIPT]
    folder.mkdir(exist_ok=True)
    processes = []
    for number, (flags, variables) in enumerate(launched):
        more = own[number] if own else []
        words = [*argv, "--save_dir", folder / "run", *flags, *more]
        processes.append(
            subprocess.Popen(
                [*script, "--device", "cpu", *map(str, words)],
                env=environment(**variables),
                cwd=ROOT,
                stdout=open(folder / f"{number}.out", "w"),
                stderr=open(folder / f"{number}.err", "w"),
            )
        )
    return processes


def ends(folder, processes):
    """Waits for processes; each as a `Run`."""
    found = []
    try:
        for number, process in enumerate(processes):
            status = process.wait(timeout=500)
            said = (folder / f"{number}.{name}" for name in ("out", "err"))
            found.append(
                Run(folder / "run", status, *(p.read_text() for p in said))
            )
    finally:
        for process in processes:
            process.kill()
    return found


def last_line(run):
    return run.err.splitlines()[-1]


def flags_of(kind, data):
    flags, _ = KINDS[kind]
    prefix = "pairs:" if kind == "pairs" else ""
    data = f"--dataset {prefix}{data} --batch_size 4"
    return [*data.split(), *flags.split()]


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Files of 7 pictures, for `pairs` of 5; labels by chance to test."""
    paths = {}
    for kind, count in (("capsnet", 7), ("small", 7), ("pairs", 5)):
        path = paths[kind] = tmp_path_factory.mktemp("data") / "data.npz"
        x_train, y_train = bars(count, SHAPE)
        x_test, _ = bars(9, SHAPE, seed=1)
        y_test = np.random.default_rng(2).permutation(9) % 3
        train = {"x_train": x_train, "y_train": y_train}
        np.savez(path, **train, x_test=x_test, y_test=y_test)
    return paths


def in_one_process(folder, odd, gpus):
    """All kinds of trainings, on so many devices: their folders."""
    commands = [
        [*flags_of(kind, odd[kind]), "--save_dir", str(folder / kind)]
        + ["--gpus", str(gpus), "--device", "cpu"]
        for kind in KINDS
    ]
    done = subprocess.run(
        [sys.executable, "-c", CODE, SCRIPT, json.dumps(commands)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return {kind: Run(folder / kind, 0, "", "") for kind in KINDS}


@pytest.fixture(scope="module")
def one(tmp_path_factory, odd):
    """One process with one device."""
    return in_one_process(tmp_path_factory.mktemp("one"), odd, 1)


@pytest.fixture(scope="module")
def split(tmp_path_factory, odd):
    """One process with two devices."""
    return in_one_process(tmp_path_factory.mktemp("split"), odd, 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory, odd):
    """Two processes with one device each, of each kind, started so or so."""
    found = {}
    launchers = by_hand, by_slurm, by_open_mpi
    for kind, launcher in zip(KINDS, launchers):
        folder = tmp_path_factory.mktemp(kind)
        processes = start(folder, launcher(2), *flags_of(kind, odd[kind]))
        found[kind] = ends(folder, processes)
    return found


def assert_equal(run, expected, tolerance):
    """The log to `tolerance`, the test error exactly, and the weights.

    Statistics that belong to a part of the batch would differ by a tenth.
    """
    ours, theirs = expected.log(), run.log()
    assert list(ours) == list(theirs) and len(ours["loss"]) > 0
    for name in ours:
        np.testing.assert_allclose(theirs[name], ours[name], tolerance, 1e-6)
    np.testing.assert_array_equal(theirs["test_error"], ours["test_error"])
    ours, theirs = (weights_of(each.model()) for each in (expected, run))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        if "moving" in name:
            np.testing.assert_allclose(theirs[name], weight, 2e-2, 1e-3)
            continue
        np.testing.assert_allclose(theirs[name], weight, atol=2e-3)
        assert np.sqrt(np.square(theirs[name] - weight).mean()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_of_a_process_train_like_one(kind, one, split):
    assert_equal(split[kind], one[kind], KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_like_one(kind, one, two):
    first, second = two[kind]
    assert first.status == second.status == 0, first.err + second.err
    assert_equal(first, one[kind], KINDS[kind][1])
    assert "Training on 2 devices of 2 processes" in first.out
    assert f"Written to {first.folder}: trained_model.keras" in first.out
    # One of them alone is heard.
    assert second.out == second.err == ""
    names = {path.name for path in contents(one[kind].folder)}
    assert {path.name for path in contents(first.folder)} == names


def wait_for(processes, happened):
    """Looks until something has happened, or a process has ended."""
    end = time.monotonic() + 400
    while not happened():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < end, "nothing happened for long"
        time.sleep(0.01)


@pytest.mark.parametrize("lost", (1, 0))
def test_run_that_lost_a_process_ends_and_goes_on(tmp_path, odd, two, lost):
    state = tmp_path / "run" / "checkpoint" / "state.json"
    processes = start(
        tmp_path, by_hand(2), *flags_of("capsnet", odd["capsnet"])
    )
    wait_for(
        processes,
        lambda: state.exists() and b'epochs_done": 2' in state.read_bytes(),
    )
    time.sleep(random.uniform(0, 0.5))
    processes[lost].send_signal(signal.SIGKILL)
    begin = time.monotonic()
    runs = ends(tmp_path, processes)
    assert time.monotonic() - begin < STATED
    assert runs[lost].status == -signal.SIGKILL
    assert runs[1 - lost].status == 1
    message = last_line(runs[1 - lost])
    assert f"(process {1 - lost} of 2): process {lost} ended, or" in message
    assert "again with --resume" in message
    assert 2 <= json.loads(state.read_text())["epochs_done"] < 8
    # The same number of processes, or another one.
    launched = by_hand(2) if lost else [([], {})]
    runs = ends(tmp_path, start(tmp_path, launched, "--resume"))
    assert {run.status for run in runs} == {0}, runs[0].err
    never = two["capsnet"][0]
    if lost:
        ours, theirs = (run.folder / "log.csv" for run in (runs[0], never))
        assert ours.read_bytes() == theirs.read_bytes()
    else:
        assert_equal(runs[0], never, 1e-2)


def test_processes_that_differ_are_told_in_what(tmp_path, odd):
    own = [["--lr", 0.1, "--dataset", odd["capsnet"]]]
    own += [["--lr", 0.2, "--dataset", odd["pairs"]]]
    runs = ends(tmp_path, start(tmp_path, by_open_mpi_4(2), own=own))
    for number, run in enumerate(runs):
        assert run.status == 2
        message = last_line(run)
        expected = f"(process {number} of 2): process 1 differs from process 0:"
        assert expected in message and "--lr 0.2, not 0.1" in message
        assert "data " in message and "same flags" in message
    assert contents(tmp_path / "run") == {}


def test_processes_that_do_not_come_are_waited_for_so_long(tmp_path):
    code = "from capsnet.cli import hosts; hosts.WAIT = 3" + ALONE
    words = [*by_hand(2)[0][0], "--device", "cpu", "--save_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, SCRIPT, *words],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=STATED,
    )
    message = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert "2 processes did not come together within 3 s; start" in message
    assert list(tmp_path.iterdir()) == []
