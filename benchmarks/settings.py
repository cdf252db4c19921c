"""What precision, compilation and the backend of Keras do to the speed.

    python benchmarks/settings.py               about ten minutes on two cores
    python benchmarks/settings.py --quick       a try, its figures mean nothing
    python benchmarks/settings.py --backends tensorflow

The network of `capsulenet.py` (28x28x1, 10 classes, 3 routings, with decoder)
with one setting changed at a time. Each is measured in a process of its own:
after a warm-up `fit` over as many steps as last about `--seconds`, then
`predict` twice, of which the second counts. All settings are measured
`--passes` times, one pass after the other, and the fastest pass of a setting
counts: whatever else the machine does in these minutes only ever adds to a
time. A backend that is not installed is left out, and the table says so.

Writes `settings.md` and `settings.json` into `--out`.
"""

import importlib.util
import math
import sys

import processes

DEFAULTS = {
    "network": "ours",
    "dtype_policy": "float32",
    "jit_compile": "auto",
    "steps_per_execution": 1,
}
# What differs from the defaults, for each backend. XLA with a direct
# convolution, which is also what JAX does with one, is not among them: on a
# CPU a step of it takes half a minute.
SETTINGS = {
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
FLAGS = {"network": "--conv"}
QUICK = {"batch_size": 2, "seconds": 1, "passes": 1, "predict_pictures": 4}
MAX_STEPS = 100


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("--batch_size", 100, "pictures of a training step"),
            ("--seconds", 8, "length of a pass in training"),
            ("--passes", 3, "times that all settings are measured"),
            ("--predict_pictures", 1000, "pictures of a pass in predict"),
        ),
    )
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=SETTINGS,
        default=list(SETTINGS),
        metavar="NAME",
        help=f"some of {', '.join(SETTINGS)} (default: all)",
    )
    args = processes.parse(parser, argv, QUICK)
    args.backends = [name for name in SETTINGS if name in args.backends]
    return args


def measure_setting(args, backend, changed):
    """One process: seconds of a step, pictures a second, memory, versions."""
    with processes.Worker(
        backend=backend,
        batch_size=args.batch_size,
        size=28,
        n_class=10,
        routings=3,
        **{**DEFAULTS, **changed},
    ) as worker:
        # `fit` calls the compiled function for so many steps at once.
        chunk = {**DEFAULTS, **changed}["steps_per_execution"]
        worker.ask("fit", steps=chunk)
        about = worker.ask("fit", steps=chunk)
        steps = min(MAX_STEPS, math.ceil(args.seconds / about / chunk) * chunk)
        seconds = worker.ask("fit", steps=steps)
        memory = worker.ask("memory")
        predict = {"pictures": args.predict_pictures, "batch_size": 250}
        _, predicted = (worker.ask("predict", **predict) for _ in range(2))
        return {
            "train_pictures_per_second": args.batch_size / seconds,
            "predict_pictures_per_second": predicted,
            "peak_memory_bytes": memory,
            "environment": worker.ask("facts")["environment"],
        }


def measure(args):
    """All settings of all installed backends; the record of the file."""
    missing = [b for b in args.backends if importlib.util.find_spec(b) is None]
    rows = [
        {"backend": backend, "changed": changed}
        for backend in args.backends
        if backend not in missing
        for changed in SETTINGS[backend]
    ]
    for number in range(1, args.passes + 1):
        for row in rows:
            found = measure_setting(args, row["backend"], row["changed"])
            speed = found["train_pictures_per_second"]
            print(f"pass {number}, {label(row)}: {speed:.3g} pictures/s")
            sys.stdout.flush()
            for key, value in found.items():
                if key.endswith("per_second"):
                    row[key] = max(value, row.get(key, 0))
                else:
                    row[key] = value
    return {
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "missing": missing,
        "rows": rows,
    }


def label(row):
    """`jax, --conv direct`"""
    flags = [
        f"{FLAGS.get(name, '--' + name)} {value}"
        for name, value in row["changed"].items()
    ]
    return ", ".join([row["backend"], *flags])


def table_rows(rows):
    """The table's rows; the first one is what the others are held against."""
    for row in rows:
        memory = row["peak_memory_bytes"]
        speeds = [
            (row[key], row[key] / rows[0][key])
            for key in (
                "train_pictures_per_second",
                "predict_pictures_per_second",
            )
        ]
        yield (
            label(row),
            *(processes.digits(n) for pair in speeds for n in pair),
            "" if memory is None else f"{memory / 1e6:.0f}",
        )


def markdown(record):
    """`settings.md`: what was run, on what, and the table."""
    settings, rows = record["settings"], record["rows"]
    parts = ["# Settings"]
    if settings["quick"]:
        parts.append("**A try with tiny settings: the figures mean nothing.**")
    parts.append(f"`{record['command']}`")
    backends = {row["backend"]: row["environment"] for row in rows}
    machine, *others = map(processes.machine_line, backends.values())
    # They differ in their last word alone, the backend and its version.
    others = [line.rsplit(", ", 1)[1] for line in others]
    parts.append(f"{', '.join([machine, *others])}.")
    if record["missing"]:
        parts.append(f"Not installed: {', '.join(record['missing'])}.")
    parts.append(
        f"28x28x1, 10 classes, 3 routings, with decoder; batches of "
        f"{settings['batch_size']} in training and 250 in predict. `fit` for "
        f"{settings['seconds']} seconds, `predict` over "
        f"{settings['predict_pictures']} pictures, the fastest pass of "
        f"{settings['passes']}. 'Ratio' is to the first row."
    )
    parts.append(
        processes.table(
            (
                "setting",
                "training, pictures/s",
                "ratio",
                "predict, pictures/s",
                "ratio",
                "peak memory, MB",
            ),
            table_rows(rows),
        )
    )
    return "\n\n".join(parts) + "\n"


def main(argv=None):
    """Measures, prints the table and writes it; returns the status."""
    args = parse_args(argv)
    record, status = processes.measured(lambda: measure(args), "settings.py")
    if status:
        return status
    if not record["rows"]:
        missing = ", ".join(record["missing"])
        print(f"settings.py: not installed: {missing}", file=sys.stderr)
        return 1
    given = sys.argv[1:] if argv is None else argv
    command = " ".join(["python", "benchmarks/settings.py", *given])
    record = {"command": command, **record}
    folder = processes.Path(args.out)
    text = markdown(record)
    processes.write_text(folder / "settings.md", text)
    processes.write_json(folder / "settings.json", record)
    print(f"\n{text}\nWritten: {folder / 'settings.md'}, settings.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
