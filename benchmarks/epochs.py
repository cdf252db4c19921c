"""Seconds that an epoch of MNIST's 60,000 pictures takes, above all on a GPU.

    KERAS_BACKEND=jax python benchmarks/epochs.py
    KERAS_BACKEND=jax python benchmarks/epochs.py --networks ours
    python benchmarks/epochs.py --quick         a try on any machine

Each network (speed.py has their names), batch size and precision is trained in
a process of its own by `fit`, on random pictures that are shifted and shuffled
as in training: one epoch that compiles and does not count, then `--epochs`,
each a call of `fit`. A figure is their mean. Where there is `nvidia-smi`, it is
asked every half second of those epochs for the utilisation of the first GPU:
the part of the time at which it was computing at all.

Writes `epochs.md` and `epochs.json` into `--out`; with a backend other than
TensorFlow its name is added: `epochs-jax.md`.
"""

import contextlib
import itertools
import math
import shutil
import statistics
import subprocess
import sys
import threading

import processes

from capsnet.cli.options import positive_int

NETWORKS = ("classic", "direct", "ours")
POLICIES = ("float32", "mixed_bfloat16")
QUICK = {"pictures": 6, "batch_sizes": [2], "epochs": 1}
HEADER = ("network", "batch", "precision", "s an epoch", "pictures/s", "GPU, %")
QUESTION = "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("--pictures", 60000, "pictures of an epoch"),
            ("--epochs", 5, "epochs that count"),
            ("--routings", 3, "rounds of routing"),
        ),
    )
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        default=list(NETWORKS),
        help="(default: all)",
    )
    parser.add_argument(
        "--batch_sizes",
        nargs="+",
        type=positive_int,
        default=[128, 1024],
        metavar="N",
        help="(default: 128 1024)",
    )
    parser.add_argument(
        "--dtype_policies",
        nargs="+",
        choices=POLICIES,
        default=list(POLICIES),
        help="(default: all)",
    )
    return processes.parse(parser, argv, QUICK)


@contextlib.contextmanager
def watched_gpu(seconds=0.5):
    """Yields a list that grows by the GPU's utilisation in percent."""
    found, over = [], threading.Event()
    command = shutil.which("nvidia-smi")

    def watch():
        while not over.wait(seconds):
            asked = subprocess.run(
                [command, *QUESTION], capture_output=True, text=True
            )
            with contextlib.suppress(ValueError, IndexError):
                found.append(float(asked.stdout.split()[0]))

    thread = threading.Thread(target=watch) if command else None
    if thread:
        thread.start()
    try:
        yield found
    finally:
        over.set()
        if thread:
            thread.join()


def measure_one(args, network, batch_size, policy):
    """The seconds of each epoch, and the environment, of one setting."""
    steps = math.ceil(args.pictures / batch_size)
    with processes.Worker(
        network=network,
        batch_size=batch_size,
        size=28,
        n_class=10,
        routings=args.routings,
        dtype_policy=policy,
        jit_compile="auto",
    ) as worker:
        worker.ask("fit", steps=steps)
        with watched_gpu() as utilisation:
            seconds = [
                steps * worker.ask("fit", steps=steps)
                for _ in range(args.epochs)
            ]
        environment = worker.ask("facts")["environment"]
    return {
        "network": network,
        "batch_size": batch_size,
        "dtype_policy": policy,
        "pictures": steps * batch_size,
        "seconds_per_epoch": seconds,
        "gpu_percent": utilisation,
        "environment": environment,
    }


def measure(args):
    """All settings, one after the other."""
    rows = []
    for setting in itertools.product(
        args.networks, args.batch_sizes, args.dtype_policies
    ):
        rows.append(measure_one(args, *setting))
        mean = statistics.mean(rows[-1]["seconds_per_epoch"])
        print(*setting, f"{mean:.3g} s an epoch", flush=True)
    return rows


def table_rows(rows):
    for row in rows:
        mean = statistics.mean(row["seconds_per_epoch"])
        busy = row["gpu_percent"]
        yield (
            row["network"],
            row["batch_size"],
            row["dtype_policy"],
            processes.digits(mean),
            processes.digits(row["pictures"] / mean),
            processes.digits(statistics.mean(busy)) if busy else "",
        )


def markdown(record):
    """`epochs.md`: what was run, on what, and the table."""
    rows, settings = record["rows"], record["settings"]
    environment = rows[0]["environment"]
    parts = ["# Epochs"]
    if settings["quick"]:
        parts.append("**A try with tiny settings: the figures mean nothing.**")
    parts += [
        f"`{record['command']}`",
        f"{environment['accelerator'] or 'No GPU'}, "
        f"{processes.machine_line(environment)}.",
        f"Epochs of {settings['pictures']} pictures of 28x28x1, 10 classes, "
        f"{settings['routings']} routings, with decoder; mean of "
        f"{settings['epochs']} after one that compiles.",
        processes.table(HEADER, table_rows(rows)),
    ]
    return "\n\n".join(parts) + "\n"


def main(argv=None):
    """Measures, prints the table and writes it; returns the status."""
    args = parse_args(argv)
    rows, status = processes.measured(lambda: measure(args), "epochs.py")
    if status:
        return status
    record = {
        "command": processes.command_line("epochs.py", argv),
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "rows": rows,
    }
    backend = rows[0]["environment"]["backend"]
    text = markdown(record)
    path = processes.out_name(args.out, "epochs", backend, "md")
    processes.write_text(path, text)
    processes.write_json(path.with_suffix(".json"), record)
    print(f"\n{text}\nWritten: {path}, {path.stem}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
