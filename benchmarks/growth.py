"""How the cost of training grows with each of four sizes.

    python benchmarks/growth.py                 about six minutes on two cores
    python benchmarks/growth.py --quick         a try, its figures mean nothing
    python benchmarks/growth.py --axes routings --conv direct

One size changes at a time: the batch, the side of the picture, the number of
classes, the rounds of routing; the others stay at 28x28x1, 10 classes, 3
rounds and batches of `--batch_size` pictures. Along the picture's side and
the classes the batch is `--small_batch`, so that the largest points fit into
16 GB. Each point is measured in a process of its own: two steps to warm up,
then the median of `--steps` training steps (`train_on_batch`, see
benchmarks/worker.py), and the process's largest resident size, Python and
libraries included (several hundred megabytes before the first picture; and
not the memory of a GPU). All points are measured `--passes` times, one pass
after the other, and the fastest pass of a point counts: whatever else the
machine does in these minutes only ever adds to a time.

Beside them stands the work: the multiplications of a training step, counted
from the shapes (`work` in benchmarks/worker.py). Matrix products alone
count, each three times: for the output and the gradients of both factors;
those with a constant factor, and the first layer, twice. `written` is the
network as the paper writes it: direct convolutions, votes computed once.
`done` is what is computed here: convolutions with the fast path where it is
taken (fastconv.py), votes never written down but computed in each of their
uses. Where the time per billion multiplications done falls along a column,
the larger problem uses the machine better; where it rises, something else
than multiplying is growing.

Writes `growth.md`, `growth.json` and `growth.png` into `--out`; with a
backend other than TensorFlow its name is added: `growth-jax.md`. Dashed lines
in the plot have the slope of the multiplications done and go through the
shared values (the largest, for the batch). What is not a product, the passes
over the coupling of `classes x primary capsules x rounds`, is not in them.
"""

import functools
import math
import statistics
import sys

import processes

# Title and values of each axis.
AXES = {
    "batch_size": ("batch", (1, 10, 50, 100, 250, 500)),
    "size": ("side of the picture", (28, 36, 48, 64)),
    "n_class": ("classes", (10, 25, 50, 100)),
    "routings": ("rounds of routing", (1, 2, 3, 4, 5)),
}
# What the axes have where they do not change it, but for the batch.
SHARED = {"size": 28, "n_class": 10, "routings": 3}
QUICK_VALUES = {
    "batch_size": (1, 2),
    "size": (28, 30),
    "n_class": (10, 12),
    "routings": (2, 3),
}
QUICK = {"batch_size": 2, "small_batch": 2, "steps": 1, "passes": 1}


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("--batch_size", 100, "pictures of a step along the rounds"),
            ("--small_batch", 20, "the same along picture's side and classes"),
            ("--steps", 5, "measured steps of a point in a pass"),
            ("--passes", 3, "times that all points are measured"),
        ),
        computing=True,
    )
    parser.add_argument(
        "--axes",
        nargs="+",
        choices=AXES,
        default=list(AXES),
        metavar="NAME",
        help=f"some of {', '.join(AXES)} (default: all)",
    )
    parser.add_argument(
        "--conv",
        choices=("auto", "direct"),
        default="auto",
        help="as in capsulenet.py (default: %(default)s)",
    )
    args = processes.parse(parser, argv, QUICK)
    args.axes = [axis for axis in AXES if axis in args.axes]
    return args


def points(args, axis):
    """What the worker is told at each value of an axis."""
    values = (QUICK_VALUES if args.quick else {}).get(axis, AXES[axis][1])
    small = axis in ("size", "n_class")
    common = {
        **SHARED,
        "batch_size": args.small_batch if small else args.batch_size,
        "network": "direct" if args.conv == "direct" else "ours",
        "dtype_policy": args.dtype_policy,
        "jit_compile": args.jit_compile,
    }
    return [{**common, axis: value} for value in values]


def measure_point(spec, steps):
    """One process: median seconds of a step, peak memory, work.

    A point that does not fit into the memory gets an `error` instead, and
    the others are measured nevertheless.
    """
    try:
        with processes.Worker(**spec) as worker:
            worker.ask("train", steps=1)
            seconds = [worker.ask("train", steps=1) for _ in range(steps)]
            return {
                **spec,
                "seconds": seconds,
                "median_seconds": statistics.median(seconds),
                "peak_memory_bytes": worker.ask("memory"),
                "multiplications": worker.ask("work"),
                "environment": worker.ask("facts")["environment"],
            }
    except processes.WorkerError as error:
        return {**spec, "error": str(error)}


def fastest(a, b):
    """Of two measurements of a point the faster; a failed one never."""
    return min(a, b, key=lambda point: point.get("median_seconds", math.inf))


def measure(args):
    """All points of all axes; returns the record for `growth.json`."""
    specs = {axis: points(args, axis) for axis in args.axes}
    measured = {}
    for number in range(1, args.passes + 1):
        seen = set()
        for axis, spec in ((a, spec) for a in specs for spec in specs[a]):
            key = key_of(spec)
            if key in seen:
                continue
            seen.add(key)
            point = measure_point(spec, args.steps)
            said = point.get("error") or f"{point['median_seconds']:.3g} s"
            print(f"pass {number}, {axis} {spec[axis]}: {said}", flush=True)
            measured[key] = fastest(measured.get(key, point), point)
    environment = None
    for point in measured.values():
        environment = point.pop("environment", environment)
    if environment is None:
        raise processes.WorkerError(point["error"])
    return {
        "settings": {k: v for k, v in vars(args).items() if k != "out"},
        "environment": environment,
        "axes": {
            axis: [measured[key_of(spec)] for spec in specs[axis]]
            for axis in args.axes
        },
    }


def key_of(spec):
    """What tells points apart; some are on several axes."""
    return tuple(sorted(spec.items()))


def rows(axis, series):
    """The rows of an axis's table."""
    for point in series:
        if "error" in point:
            yield (point[axis], "failed", *[""] * 6)
            continue
        memory, seconds = point["peak_memory_bytes"], point["median_seconds"]
        work = point["multiplications"]
        billions = [work["written"] / 1e9, work["done"] / 1e9]
        yield (
            point[axis],
            processes.digits(seconds),
            processes.digits(1000 * seconds / point["batch_size"]),
            "" if memory is None else f"{memory / 1e6:.0f}",
            processes.digits(billions[0]),
            processes.digits(1000 * seconds / billions[0]),
            processes.digits(billions[1]),
            processes.digits(1000 * seconds / billions[1]),
        )


def markdown(record):
    """`growth.md`: what was run, on what, and a table for each axis."""
    settings = record["settings"]
    parts = ["# Growth"]
    if settings["quick"]:
        parts.append("**A try with tiny settings: the figures mean nothing.**")
    parts += [
        f"`{record['command']}`",
        f"{processes.machine_line(record['environment'])}.",
        f"Training with {settings['dtype_policy']}, conv {settings['conv']}, "
        f"jit_compile {settings['jit_compile']}; 28x28x1, 10 classes, 3 "
        "rounds of routing where nothing else is said. Median of "
        f"{settings['steps']} steps, each point in a process of its own, the "
        f"fastest pass of {settings['passes']} over all points. Billions "
        "(G) of multiplications of a training step, counted from the shapes: "
        "as the paper writes the network, and as done here (`python "
        "benchmarks/growth.py -h` says how).",
    ]
    header = ("step, s", "ms a picture", "peak memory, MB", "G written")
    header += ("ms / G written", "G done", "ms / G done")
    for axis, series in record["axes"].items():
        title = AXES[axis][0]
        batch = "" if axis == "batch_size" else series[0]["batch_size"]
        parts.append(
            f"## By {title}" + (f" (batches of {batch})" if batch else "")
        )
        parts.append(processes.table((title, *header), rows(axis, series)))
    return "\n\n".join(parts) + "\n"


def draw_axis(axes, axis, series):
    """One column of the plot: step time above, peak memory below."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    series = [point for point in series if "error" not in point]
    values = [point[axis] for point in series]
    work = [point["multiplications"]["done"] for point in series]
    # The point that is on other axes too.
    shared = values.index(SHARED[axis]) if SHARED.get(axis) in values else -1
    columns = (
        [point["median_seconds"] for point in series],
        [(point["peak_memory_bytes"] or 0) / 1e9 for point in series],
    )
    for panel, measured in zip(axes, columns):
        panel.set(xscale="log", yscale="log")
        if not all(measured):
            continue
        panel.plot(values, measured, marker="o", label="measured")
        low, high = min(measured) / 1.6, max(measured) * 1.6
        if panel is axes[0]:
            panel.plot(
                values,
                [measured[shared] * w / work[shared] for w in work],
                linestyle="--",
                color="gray",
                label="slope of the work done",
            )
        panel.set_ylim(low, high)
        panel.set_xticks(values, [str(value) for value in values], fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    axes[1].set_xlabel(AXES[axis][0])


def draw(record, path):
    """`growth.png`: a column for each axis, both of its scales logarithmic."""
    import matplotlib

    matplotlib.use("Agg")  # Pictures are files; no window ever opens.
    import matplotlib.pyplot as plt

    shown = {
        axis: series
        for axis, series in record["axes"].items()
        if any("error" not in point for point in series)
    }
    figure, axes = plt.subplots(
        2,
        len(shown),
        figsize=(1 + 3.4 * len(shown), 6.4),
        dpi=120,
        squeeze=False,
    )
    for number, (axis, series) in enumerate(shown.items()):
        draw_axis(axes[:, number], axis, series)
        batch = series[0]["batch_size"]
        axes[0, number].set_title(
            "by batch" if axis == "batch_size" else f"batches of {batch}",
            fontsize=10,
        )
    axes[0, 0].set_ylabel("training step, s")
    axes[1, 0].set_ylabel("peak memory, GB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right")
    # Room for the legend above the panels.
    figure.tight_layout(rect=(0, 0, 1, 0.91))
    figure.savefig(path)
    plt.close(figure)


def main(argv=None):
    """Measures, prints the tables and writes them; returns the status."""
    args = parse_args(argv)
    record, status = processes.measured(lambda: measure(args), "growth.py")
    if status:
        return status
    record = {"command": processes.command_line("growth.py", argv), **record}
    name = functools.partial(
        processes.out_name, args.out, "growth", record["environment"]["backend"]
    )
    text = markdown(record)
    processes.write_text(name("md"), text)
    processes.write_json(name("json"), record)
    with processes.whole_file(name("png")) as path:
        draw(record, path)
    print(f"\n{text}\nWritten: {name('md')}, {name('json')}, {name('png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
