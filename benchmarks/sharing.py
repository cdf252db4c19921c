"""What it costs to train in two processes in place of one.

    python benchmarks/sharing.py          about five minutes on two cores
    python benchmarks/sharing.py --quick  a try, its figures mean nothing

`capsulenet-multi-gpu.py` on JAX, on random pictures of MNIST's size: one
process, and two that meet on the loopback device, each with a core of its own
and its own part of a batch. An epoch's time is `run.json`'s, without the
first, which compiles. The bytes are those of the loopback device, so nothing
else may use it meanwhile. Linux. Writes `sharing.json`, and the tables into
`README.md` beside it; what is arithmetic there says so.
"""

import csv
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import processes

from capsnet.messages import UserError

NETWORKS = {"ours": "capsnet", "small": "efficient"}
COUNTS = (1, 2)
QUICK = {"batch_size": 10, "steps": 2, "epochs": 2}
HEADER = ("network", "processes", "pictures/s", "ratio", "step, s")
HEADER += ("MB a step", "weights x 4 x 2, MB")
ARITHMETIC = ("network", "weights", "MB a step", "25 Gbit/s, ms")
ARITHMETIC += ("step for 80 %, ms", "25 GB/s, ms", "step for 80 %, ms")
# Bytes a second: hosts by Ethernet; GPUs of one host by PCIe 4.0 x16.
ETHERNET, PCIE = 25e9 / 8, 25e9


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("batch_size", 100, "pictures of a step, of each process"),
            ("steps", 6, "steps of an epoch"),
            ("epochs", 4, "epochs, of which the first compiles"),
        ),
        networks=NETWORKS,
    )
    return processes.parse(parser, argv, QUICK)


def write_pictures(path, count):
    """Random pictures and labels, and a few to test."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", count), ("test", 10)):
        shape = (n, 28, 28, 1)
        arrays[f"x_{part}"] = generator.integers(0, 256, shape, "uint8")
        arrays[f"y_{part}"] = np.arange(n) % 10
    np.savez(path, **arrays)


def loopback_bytes():
    """Bytes that the loopback device has carried so far."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (line,) = [line for line in lines if line.strip().startswith("lo:")]
    return int(line.split(":")[1].split()[0])


def rows_of(path):
    """How many epochs a log has."""
    if not path.exists():
        return 0
    with open(path, newline="", encoding="utf-8") as file:
        return len(list(csv.reader(file))) - 1


def start(folder, argv, count):
    """Starts processes that train together, each on a core of its own."""
    with socket.socket() as free:
        free.bind(("", 0))
        hosts = f"localhost:{free.getsockname()[1]}"
    group = ["--hosts", hosts, "--processes", str(count), "--process"]
    script = str(processes.ROOT / "capsulenet-multi-gpu.py")
    cores = sorted(os.sched_getaffinity(0))
    return [
        subprocess.Popen(
            [sys.executable, script, *argv, *group, str(number)],
            env={**os.environ, "KERAS_BACKEND": "jax"},
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"{number}.err", "w"),
            preexec_fn=lambda: os.sched_setaffinity(
                0, {cores[number % len(cores)]}
            ),
        )
        for number in range(count)
    ]


def measure_one(args, network, count):
    """One training: seconds of each step, bytes of each step, the record."""
    batch_size = args.batch_size * count
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        data, log = folder / "data.npz", folder / "run" / "log.csv"
        write_pictures(data, batch_size * args.steps)
        argv = f"--dataset {data} --save_dir {folder / 'run'} --device cpu "
        argv += f"--model {NETWORKS[network]} --epochs {args.epochs} "
        argv += f"--batch_size {batch_size}"
        running, marks = start(folder, argv.split(), count), []
        try:
            while any(process.poll() is None for process in running):
                # When the first epoch is done, and when the last one is.
                if rows_of(log) >= (args.epochs if marks else 1):
                    marks.append(loopback_bytes())
                    if len(marks) == 2:
                        break
                time.sleep(0.01)
            statuses = [process.wait() for process in running]
        finally:
            for process in running:
                process.kill()
        if any(statuses) or len(marks) < 2:
            said = (folder / "0.err").read_text().splitlines() or ["nothing"]
            raise UserError(f"a training failed: {said[-1]}")
        record = json.loads((folder / "run" / "run.json").read_text())
    seconds = [each / args.steps for each in record["seconds_per_epoch"][1:]]
    steps = args.steps * (args.epochs - 1)
    print(f"{network}, {count}: {min(seconds):.3g} s a step", flush=True)
    return {
        "network": network,
        "processes": count,
        "seconds_per_step": seconds,
        "batch_size": batch_size,
        "bytes_per_step": (marks[1] - marks[0]) / steps,
        "weights": record["parameters"],
        "environment": record["environment"],
    }


def measure(args):
    """All trainings; the record of the file."""
    chosen = [name for name in NETWORKS if name in args.networks]
    return {
        "rows": [
            measure_one(args, network, count)
            for network in chosen
            for count in COUNTS
        ]
    }


def speed(row):
    """Pictures a second, of the median step."""
    return row["batch_size"] / statistics.median(row["seconds_per_step"])


def exchanged(weights):
    """Bytes that a process sends and receives for a step: the gradients."""
    return weights * 4 * 2


def describe(record):
    """The machine, what was measured, and what follows by arithmetic."""
    measured, arithmetic = [], []
    alone = {r["network"]: r for r in record["rows"] if r["processes"] == 1}
    for row in record["rows"]:
        name, weights = row["network"], row["weights"]
        moved = exchanged(weights) * (row["processes"] > 1)
        measured.append(
            (
                name,
                row["processes"],
                processes.digits(speed(row)),
                processes.digits(speed(row) / speed(alone[name])),
                processes.spread(row["seconds_per_step"]),
                processes.digits(row["bytes_per_step"] / 1e6),
                processes.digits(moved / 1e6),
            )
        )
    for name, row in alone.items():
        moved = exchanged(row["weights"])
        cells = [name, f"{row['weights']:,}", processes.digits(moved / 1e6)]
        for rate in (ETHERNET, PCIE):
            # 80 % of the devices' speed is left where a step takes four
            # times as long as the exchange.
            cells += [processes.digits(f * moved / rate * 1e3) for f in (1, 4)]
        arithmetic.append(cells)
    machine = processes.machine_line(record["rows"][0]["environment"])
    return [
        machine,
        processes.table(HEADER, measured),
        "Arithmetic, not measured:",
        processes.table(ARITHMETIC, arithmetic),
    ]


def main(argv=None):
    return processes.benchmark("sharing", argv, parse_args, measure, describe)


if __name__ == "__main__":
    sys.exit(main())
