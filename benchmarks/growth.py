"""How the cost of training grows with each of four sizes.

    python benchmarks/growth.py                 about six minutes on two cores
    python benchmarks/growth.py --quick         a try, its figures mean nothing
    python benchmarks/growth.py --axes routings --conv direct

One size changes at a time: the batch, the side of the picture, the number of
classes, the rounds of routing. Writes `growth.json`, `growth.png`, and the
tables into `README.md` beside them, where the rules of measuring are, too; with
a backend other than TensorFlow its name is added: `growth-jax.json`.

Dashed lines in the plot have the slope of the multiplications done and go
through the shared values (the largest, for the batch). What is not a product,
the passes over the coupling of `classes x primary capsules x rounds`, is not in
them.
"""

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
HEADER = ("step, s", "ms a picture", "peak memory, MB", "G written")
HEADER += ("ms / G written", "G done", "ms / G done")


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("batch_size", 100, "pictures of a step along the rounds"),
            ("small_batch", 20, "the same along picture's side and classes"),
            ("steps", 5, "measured steps of a point in a pass"),
            ("passes", 3, "times that all points are measured"),
        ),
        computing=True,
        axes=AXES,
    )
    add, text = processes.adder(parser), "as in capsulenet.py"
    add("--conv", "auto", text, choices=("auto", "direct"))
    return processes.parse(parser, argv, QUICK)


def points(args, axis):
    """The arguments of the worker at each value of an axis."""
    small = axis in ("size", "n_class")
    common = {
        **SHARED,
        "batch_size": args.small_batch if small else args.batch_size,
        "network": "direct" if args.conv == "direct" else "ours",
        "dtype_policy": args.dtype_policy,
        "jit_compile": args.jit_compile,
    }
    values = QUICK_VALUES[axis] if args.quick else AXES[axis][1]
    return [{**common, axis: value} for value in values]


def measure_point(spec, steps):
    """One process: median seconds of a step, peak memory, work."""
    with processes.Worker(**spec) as worker:
        worker.ask("train", steps=1)
        seconds = [worker.ask("train", steps=1) for _ in range(steps)]
        return {
            "seconds": seconds,
            "median_seconds": statistics.median(seconds),
            "peak_memory_bytes": worker.ask("memory"),
            "multiplications": worker.ask("work"),
            "environment": worker.ask("facts")["environment"],
        }


def measure(args):
    """All points of all axes; returns the record for `growth.json`."""
    axes = {axis: points(args, axis) for axis in AXES if axis in args.axes}
    specs = []  # Some points are on several axes.
    for series in axes.values():
        specs += [spec for spec in series if spec not in specs]
    found = processes.fastest(
        specs, args.passes, lambda spec: measure_point(spec, args.steps)
    )
    environments = [each.pop("environment", None) for each in found]
    measured = [{**spec, **each} for spec, each in zip(specs, found)]
    return {
        "environment": next(filter(None, environments)),
        "axes": {
            axis: [measured[specs.index(spec)] for spec in series]
            for axis, series in axes.items()
        },
    }


def rows(axis, series):
    """The rows of an axis's table."""
    for point in series:
        if "error" in point:
            yield (point[axis], "failed", *[""] * 6)
            continue
        seconds = point["median_seconds"]
        figures = [seconds, 1000 * seconds / point["batch_size"]]
        for counted in ("written", "done"):
            billions = point["multiplications"][counted] / 1e9
            figures += [billions, 1000 * seconds / billions]
        cells = list(map(processes.digits, figures))
        cells.insert(2, processes.megabytes(point["peak_memory_bytes"]))
        yield point[axis], *cells


def describe(record):
    """The machine and a table for each axis."""
    parts = [processes.machine_line(record["environment"])]
    for axis, series in record["axes"].items():
        title = AXES[axis][0]
        if axis != "batch_size":
            parts.append(f"By {title}, batches of {series[0]['batch_size']}:")
        parts.append(processes.table((title, *HEADER), rows(axis, series)))
    return parts


def draw_axis(panels, axis, series):
    """One column of the plot: step time above, peak memory below."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if not series:
        return
    values = [point[axis] for point in series]
    work = [point["multiplications"]["done"] for point in series]
    # The point that is on other axes too.
    shared = values.index(SHARED[axis]) if SHARED.get(axis) in values else -1
    seconds = [point["median_seconds"] for point in series]
    memory = [(point["peak_memory_bytes"] or 0) / 1e9 for point in series]
    slope = [seconds[shared] * each / work[shared] for each in work]
    for panel, measured in zip(panels, (seconds, memory)):
        if not all(measured):
            continue  # Windows does not tell the memory.
        panel.loglog(values, measured, marker="o", label="measured")
        panel.set_ylim(min(measured) / 1.6, max(measured) * 1.6)
        panel.set_xticks(values, map(str, values), fontsize=8)
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    text = "slope of the work done"
    panels[0].plot(values, slope, linestyle="--", color="gray", label=text)
    title = f"batches of {series[0]['batch_size']}"
    title = "by batch" if axis == "batch_size" else title
    panels[0].set_title(title, fontsize=10)
    panels[1].set_xlabel(AXES[axis][0])


def draw(record, path):
    """`growth.png`: a column for each axis, both of its scales logarithmic."""
    # Here, so that flags are answered at once and workers start alone.
    import matplotlib

    matplotlib.use("Agg")  # Pictures are files; no window ever opens.
    import matplotlib.pyplot as plt

    shown = record["axes"]
    size = (1 + 3.4 * len(shown), 6.4)
    figure, axes = plt.subplots(
        2, len(shown), figsize=size, dpi=120, squeeze=False
    )
    for panels, (axis, series) in zip(axes.T, shown.items()):
        draw_axis(panels, axis, [p for p in series if "error" not in p])
    axes[0, 0].set_ylabel("training step, s")
    axes[1, 0].set_ylabel("peak memory, GB")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right")
    # Room for the legend above the panels.
    figure.tight_layout(rect=(0, 0, 1, 0.91))
    figure.savefig(path)
    plt.close(figure)


def main(argv=None):
    return processes.benchmark(
        "growth", argv, parse_args, measure, describe, draw
    )


if __name__ == "__main__":
    sys.exit(main())
