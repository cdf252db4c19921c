"""What precision, compilation and the backend of Keras do to the speed.

    python benchmarks/settings.py               about ten minutes on two cores
    python benchmarks/settings.py --quick       a try, its figures mean nothing
    python benchmarks/settings.py --gpu --backends jax      for a GPU

The network of `capsulenet.py` with one setting changed at a time; with `--gpu`
the classic network, ours with direct convolutions and ours, each in two
precisions and two sizes of batch. Writes `settings.json`, and the table into
`README.md` beside it, where the rules of measuring are, too.
"""

import contextlib
import importlib.util
import itertools
import math
import shutil
import statistics
import subprocess
import sys
import threading

import processes

from capsnet.messages import UserError

# The changes to the defaults of worker.py, for each backend. XLA with a direct
# convolution, which is also what JAX does with one, is not among them: on a
# CPU a step of it takes half a minute.
ON_CPU = {
    "tensorflow": (
        {},
        {"jit_compile": "on"},
        {"jit_compile": "off"},
        {"steps_per_execution": 10},
        {"network": "direct"},
        {"dtype_policy": "mixed_bfloat16"},
        {"dtype_policy": "mixed_float16"},
    ),
    "jax": ({},),
    "torch": ({}, {"network": "direct"}),
}
ON_GPU = [
    {"network": network, "dtype_policy": policy, "batch_size": batch}
    for network, policy, batch in itertools.product(
        ("classic", "direct", "ours"),
        ("float32", "mixed_bfloat16"),
        (128, 1024),
    )
]
QUICK = {"batch_size": 2, "seconds": 1, "passes": 1, "predict_pictures": 4}
MAX_STEPS = 100
TRAINING, PREDICT = "train_pictures_per_second", "predict_pictures_per_second"
HEADER = ("setting", "training, pictures/s", "ratio", "predict, pictures/s")
HEADER += ("ratio", "peak memory, MB", "GPU, %")
QUESTION = ("--query-gpu=utilization.gpu", "--format=csv,noheader,nounits")


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("batch_size", 100, "pictures of a training step"),
            ("seconds", 8, "length of a pass in training"),
            ("passes", 3, "times that all settings are measured"),
            ("predict_pictures", 1000, "pictures of a pass in predict"),
        ),
        backends=ON_CPU,
    )
    text = "the settings for a GPU (default: those for a CPU)"
    processes.adder(parser)("--gpu", False, text)
    return processes.parse(parser, argv, QUICK)


@contextlib.contextmanager
def watched_gpu(seconds=0.5):
    """Yields a list that grows by the GPU's utilisation in percent."""
    found, over = [], threading.Event()
    command = shutil.which("nvidia-smi")

    def watch():
        while command and not over.wait(seconds):
            asked = subprocess.run(
                [command, *QUESTION], capture_output=True, text=True
            )
            with contextlib.suppress(ValueError, IndexError):
                found.append(float(asked.stdout.split()[0]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def measure_setting(args, row):
    """One process: pictures a second, memory, versions."""
    setting = {"batch_size": args.batch_size, **row["changed"]}
    with processes.Worker(backend=row["backend"], **setting) as worker:
        # `fit` calls the compiled function for so many steps at once.
        chunk = setting.get("steps_per_execution", 1)
        worker.ask("fit", steps=chunk)
        about = worker.ask("fit", steps=chunk)
        steps = min(MAX_STEPS, math.ceil(args.seconds / about / chunk) * chunk)
        with watched_gpu() as utilisation:
            seconds = worker.ask("fit", steps=steps)
        memory = worker.ask("memory")
        predict = {"pictures": args.predict_pictures, "batch_size": 250}
        _, predicted = (worker.ask("predict", **predict) for _ in range(2))
        return {
            "median_seconds": seconds,
            TRAINING: setting["batch_size"] / seconds,
            PREDICT: predicted,
            "peak_memory_bytes": memory,
            "gpu_percent": utilisation,
            "environment": worker.ask("facts")["environment"],
        }


def measure(args):
    """All settings of all installed backends; the record of the file."""
    backends = [name for name in ON_CPU if name in args.backends]
    missing = [name for name in backends if not importlib.util.find_spec(name)]
    rows = [
        {"backend": backend, "changed": changed}
        for backend in backends
        if backend not in missing
        for changed in (ON_GPU if args.gpu else ON_CPU[backend])
    ]
    if not rows:
        raise UserError(f"not installed: {', '.join(missing)}")
    found = processes.fastest(
        rows, args.passes, lambda row: measure_setting(args, row)
    )
    rows = [{**row, **measured} for row, measured in zip(rows, found)]
    return {"missing": missing, "rows": rows}


def label(row):
    """`torch, --conv direct`"""
    changed = dict(row["changed"])
    network = {"direct": "--conv direct", "classic": "classic"}
    words = [row["backend"], network.get(changed.pop("network", ""))]
    words += [f"--{name} {value}" for name, value in changed.items()]
    return ", ".join(filter(None, words))


def cells(row, first):
    """A row of the table; its ratios are to the `first`."""
    if "error" in row:
        return [label(row), "failed", *[""] * 5]
    speeds = [
        processes.digits(value)
        for key in (TRAINING, PREDICT)
        for value in (row[key], row[key] / first.get(key, math.nan))
    ]
    busy = row.get("gpu_percent")  # None was measured on a CPU.
    busy = processes.digits(statistics.mean(busy)) if busy else ""
    memory = processes.megabytes(row["peak_memory_bytes"])
    return [label(row), *speeds, memory, busy]


def describe(record):
    """The machine and the table."""
    rows, parts = record["rows"], []
    measured = [row for row in rows if "error" not in row]
    machines = {row["backend"]: row["environment"] for row in measured}
    parts.append(processes.machine_line(*machines.values()))
    if record["missing"]:
        parts.append(f"Not installed: {', '.join(record['missing'])}.")
    busy = any(row.get("gpu_percent") for row in rows)
    columns = len(HEADER) if busy else len(HEADER) - 1
    shown = [cells(row, rows[0])[:columns] for row in rows]
    return [*parts, processes.table(HEADER[:columns], shown)]


def main(argv=None):
    return processes.benchmark("settings", argv, parse_args, measure, describe)


if __name__ == "__main__":
    sys.exit(main())
