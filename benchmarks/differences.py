"""What each difference between the two recipes does by itself.

    python benchmarks/differences.py             all, one seed each
    python benchmarks/differences.py --names classic bias --seeds 3
    python benchmarks/differences.py --report    train nothing

Short runs with the classic recipe, in each of which one thing is as in the
authors' code (README, 'What differs'); then the whole of the authors' recipe,
with their heavy reconstruction and with the classic one. Beside them what
Keras or the classic code offer: its initial matrices, averaged weights, no
decoder. All schedules fall by `--lr_decay` an epoch.

Each run is `python capsulenet.py` in `--work_dir/EPOCHS/NAME-SEED`. It may be
killed at any time: the same command goes on where it was, and passes over
what is done. On two CPU cores an epoch of MNIST takes two minutes.

Written into `--out`: `differences/NAME-SEED/log.csv` and `run.json`, and the
table, `differences.md`. Exit status as of mnist.py.
"""

import argparse
import csv
import functools
import itertools
import statistics
import sys
from pathlib import Path

import mnist
import processes

from capsnet.cli import options

# Steps of an epoch of MNIST, in batches of 100 and of 128.
CLASSIC_STEPS, AUTHORS_STEPS = 600, 469
AUTHORS = ("--recipe", "paper", "--lr_decay_steps", str(AUTHORS_STEPS))
DIFFERENCES = {
    "classic": (),
    "reconstruction": ("--lam_recon", "authors"),
    "init": ("--init", "authors"),
    "bias": ("--capsule_bias", "0.1"),
    "scale": ("--primary_scale", "0.03125"),
    "batch": ("--batch_size", "128"),
    "continuous": ("--lr_decay_steps", str(CLASSIC_STEPS)),
    "authors": AUTHORS,
    "authors-light": (*AUTHORS, "--lam_recon", "classic"),
    "glorot": ("--init", "glorot"),
    "averaged": ("--ema", "0.99"),
    "no-decoder": ("--lam_recon", "0"),
}


def parse_args(argv=None):
    parser = options.Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--names",
        nargs="+",
        choices=DIFFERENCES,
        default=list(DIFFERENCES),
        help="(default: all)",
    )
    positive = options.positive_int
    for flag, default, text in (
        ("--seeds", 1, "number of seeds"),
        ("--epochs", 3, "epochs of each run"),
    ):
        text += " (default: %(default)s)"
        add(flag, type=positive, default=default, metavar="N", help=text)
    add(
        "--lr_decay",
        type=options.number(float, 0, 1, low_included=False),
        default=0.4,
        help="factor on the learning rate in an epoch (default: %(default)s)",
    )
    add(
        "--dataset",
        default="mnist",
        metavar="NAME|PATH",
        help="as in capsulenet.py (default: %(default)s)",
    )
    add(
        "--work_dir",
        default="~/.cache/capsnet-differences",
        metavar="FOLDER",
        help="checkpoints and models (default: %(default)s)",
    )
    add(
        "--out",
        default=str(mnist.DEFAULT_OUT),
        metavar="FOLDER",
        help="logs, records and table (default: the repository's result)",
    )
    add("--report", action="store_true", help="rebuild the table, no more")
    args = parser.parse_args(argv)
    args.work_dir = Path(args.work_dir).expanduser().resolve()
    args.out = Path(args.out).resolve()
    return args


def flags_for(name, seed, args):
    """The command line of a run, but for its folder and `--resume`."""
    flags = [*DIFFERENCES[name], "--lr_decay", f"{args.lr_decay:g}"]
    flags += ["--seed", str(seed), "--epochs", str(args.epochs)]
    return [*flags, "--dataset", mnist.dataset_from_root(args.dataset)]


def run_one(name, seed, args):
    """Trains a run unless it is done; returns an exit status."""
    flags = flags_for(name, seed, args)
    wanted = mnist.parsed(flags)
    folder = args.work_dir / str(args.epochs) / f"{name}-{seed}"
    target = args.out / "differences" / folder.name
    watch = functools.partial(mnist.collect, folder, target, wanted)
    record = mnist.read_json(target / "run.json")
    if record is None:
        record = mnist.read_json(folder / "run.json")
        watch()
    if record:
        if mnist.compare(record, wanted) != 0:
            raise mnist.RunnerError(
                f"{folder.name} was trained with other flags or epochs; "
                "remove it, or choose another --work_dir and --out"
            )
        print(f"{folder.name}: done before", flush=True)
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{folder.name}: {' '.join(flags)}", flush=True)
    status = mnist.train(folder, flags, watch)
    if status:
        print(
            f"differences.py: {folder.name} ended with status {status}",
            file=sys.stderr,
        )
        return 2 if status == 2 else 1
    report(args.out)
    return 0


def finished_runs(out):
    """Records and logs of the finished runs, by name."""
    runs = {}
    for name in DIFFERENCES:
        for folder in sorted((out / "differences").glob(f"{name}-[0-9]*")):
            record = mnist.read_json(folder / "run.json")
            if record:
                with open(folder / "log.csv", newline="") as file:
                    log = list(csv.DictReader(file))
                runs.setdefault(name, []).append((record, log))
    return runs


def mean(log_rows, key):
    """Mean of a column over runs; None where the runs have no such column."""
    values = [float(row[key]) for row in log_rows if row.get(key)]
    return statistics.mean(values) if values else None


def table(runs):
    """The Markdown table: a line for each difference that has runs."""
    epochs = max(len(log) for found in runs.values() for _, log in found)
    rows = []
    for name, found in runs.items():
        logs = [log for _, log in found]
        errors = [
            mean(rows_of_epoch, "test_error") for rows_of_epoch in zip(*logs)
        ]
        errors = [f"{error:.2f}" for error in errors]
        last = [log[-1] for log in logs]
        flags = " ".join(DIFFERENCES[name])
        rows.append(
            [
                name,
                f"`{flags}`" if flags else "",
                *errors,
                *[""] * (epochs - len(errors)),
                processes.digits(mean(last, "capsnet_loss")),
                processes.digits(mean(last, "decoder_loss")),
                len(found),
            ]
        )
    header = [
        "run",
        "flags",
        *[f"test error {epoch}, %" for epoch in range(1, epochs + 1)],
        "margin loss",
        "reconstruction error",
        "seeds",
    ]
    return processes.table(header, rows)


def report(out):
    """Writes `differences.md`."""
    runs = finished_runs(out)
    if not runs:
        raise mnist.RunnerError(f"no finished run in {out / 'differences'}")
    record, _ = next(iter(runs.values()))[0]
    text = (
        "# What each difference does by itself\n\n"
        "`python benchmarks/differences.py`: the classic recipe with these "
        f"flags and `--lr_decay {record['flags']['lr_decay']:g}`. Test error "
        "after each epoch; margin loss and mean squared error of the "
        "reconstruction in the last epoch of training. "
        f"{mnist.machine(record['environment'])}.\n\n" + table(runs) + "\n"
    )
    processes.write_text(out / "differences.md", text)


def work(args):
    """Trains what is missing and reports; returns the exit status."""
    statuses = [0]
    if not args.report:
        mnist.listen(mnist.interrupt)
        for seed, name in itertools.product(range(args.seeds), args.names):
            statuses.append(run_one(name, seed, args))
            if statuses[-1] == 2:
                return 2
    report(args.out)
    print(f"Written: {args.out / 'differences.md'}")
    return max(statuses)


def main(argv=None):
    args = parse_args(argv)
    return mnist.supervised(functools.partial(work, args), "differences.py")


if __name__ == "__main__":
    sys.exit(main())
