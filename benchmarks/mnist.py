"""The results: the rows of the paper's Table 1, trained on MNIST.

    python benchmarks/mnist.py                         all rows, one seed each
    python benchmarks/mnist.py --rows v4 --seeds 3     all rows of v4
    python benchmarks/mnist.py --rows v4 --extra "--lr_decay 0.8"
    python benchmarks/mnist.py --report                train nothing

The rows (`--rows` takes the beginning of their names, too):

    baseline    --model baseline, the plain convolutional network
    v1          -r 1 --lam_recon 0, one round of routing, no reconstruction
    v2          -r 1
    v3          -r 3 --lam_recon 0
    v4          -r 3, the whole network
                v1-classic to v4-classic with --recipe classic,
                v1-paper to v4-paper with --recipe paper
    v4-best     -r 3 --recipe best
    small       --recipe laptop, the small network

The runs may be stopped at any time: the same command goes on
(benchmarks/runner.py says how). Written into `--out`: `mnist/ROW-.../log.csv`
and `run.json`; the table into `README.md` there; `mnist.png`, the test error
by epoch and by minutes; and a short table into the README.md one folder up,
where that has a place for it (`<!-- results -->` to `<!-- /results -->`).

Minutes are epochs times the median seconds of an epoch that a row takes with
nothing else running, measured on a CPU, and on a GPU for `alone-gpu`, by

    python benchmarks/mnist.py --rows v4-classic small --epochs 3 \
        --out result/alone-cpu
"""

import re
import shlex
import statistics
import sys

import processes
import runner

from capsnet.files import whole_file
from capsnet.messages import counted

VERSIONS = {
    "v1": ("-r", "1", "--lam_recon", "0"),
    "v2": ("-r", "1"),
    "v3": ("-r", "3", "--lam_recon", "0"),
    "v4": ("-r", "3"),
}
ROWS = {
    "baseline": ("--model", "baseline"),
    **{
        f"{version}-{recipe}": (*flags, "--recipe", recipe)
        for recipe in ("classic", "paper")
        for version, flags in VERSIONS.items()
    },
    "v4-best": (*VERSIONS["v4"], "--recipe", "best"),
    "small": ("--recipe", "laptop"),
}
# Mean (standard deviation) of 3 trials: the paper's Table 1, and the README
# of CapsNet-Keras after 50 epochs.
OTHERS = {
    "baseline": ("0.39", ""),
    "v1": ("0.34 (0.032)", "0.39 (0.024)"),
    "v2": ("0.29 (0.011)", "0.36 (0.009)"),
    "v3": ("0.35 (0.036)", "0.40 (0.016)"),
    "v4": ("0.25 (0.005)", "0.34 (0.016)"),
    "small": ("", ""),
}
HEADER = (
    "row|routing|reconstruction|test error, %|standard deviation|runs, n|least|"
    "epochs|minutes, CPU|minutes, GPU|trained on|paper|CapsNet-Keras"
).split("|")
SHORT = [*HEADER[:4], HEADER[5], *HEADER[7:]]
COLOURS = dict(zip([*OTHERS, "v4-best"], "k C0 C1 C2 C3 C4 C5".split()))
# In `--out`: the runs of a few epochs with nothing else running.
ALONE = "alone-*"
LINEAR_EPOCHS = 100


def flags_of(line):
    return line[0].record["flags"]


def label(line):
    """The row, and the flags in which its runs differ from it."""
    return " ".join([line[0].row, *line[0].further_flags()])


def title(line):
    """The label, and how many epochs."""
    return f"{label(line)}, {counted(flags_of(line)['epochs'], 'epoch')}"


def errors_of(line):
    return [run.record["test_error"] for run in line]


def has_gpu(run):
    return bool(run.record["environment"].get("accelerator"))


def device_of(line):
    return ", ".join(sorted({"GPU" if has_gpu(run) else "CPU" for run in line}))


def alone_runs(out):
    """The runs that had a machine for themselves."""
    folders = sorted(out.glob(ALONE))
    runs = sum((runner.read_runs(STUDY, folder) for folder in folders), [])
    return [run for run in runs if run.record]


def machines_line(lines, alone):
    """What a CPU and a GPU are in the columns; those of `alone` come first."""
    found = {}
    for run in sum(lines, alone):
        name = processes.machine(run.record["environment"])
        found.setdefault(device_of([run]), {})[name] = None
    named = [f"{each}: {'; '.join(found[each])}." for each in sorted(found)]
    several = any(len(names) > 1 for names in found.values())
    first = " of the first named," if several else ""
    named.append(f"Minutes are those{first} with nothing else running.")
    return " ".join(named)


def epoch_minutes(line, alone, gpu=False):
    """What an epoch takes with nothing else running, or None."""
    pace = line[0].pace()
    alone = [run for run in alone if run.pace() == pace]
    times = [r.record["seconds_per_epoch"] for r in alone if has_gpu(r) == gpu]
    return statistics.median(sum(times, [])) / 60 if times else None


def minutes_of(line, alone):
    """What all epochs take with nothing else running: the two cells."""
    minutes = [epoch_minutes(line, alone, gpu) for gpu in (False, True)]
    epochs = flags_of(line)["epochs"]
    return [processes.digits(each and epochs * each) for each in minutes]


def capsules_of(line):
    """The cells of routing and reconstruction; empty without capsules."""
    flags = flags_of(line)
    if flags.get("model") == "baseline":
        return ["", ""]
    routing = flags.get("routing", "dynamic")
    rounds = flags["routings"] if routing == "dynamic" else routing
    return [rounds, "yes" if flags["lam_recon"] != 0 else "no"]


def table(lines, alone):
    """The table of all rows that have finished runs."""
    rows = []
    for line in lines:
        errors, name = errors_of(line), label(line)
        n = len(errors)
        others = OTHERS[line[0].row.split("-")[0]]
        if "--dataset" in name.split():
            others = ["", ""]  # Theirs are MNIST's.
        figures = [
            runner.mean_of(errors),
            f"{statistics.stdev(errors):.3f}" if n > 1 else "",
            n,
            f"{min(errors):.2f}",
            flags_of(line)["epochs"],
            *minutes_of(line, alone),
            device_of(line),
        ]
        rows.append([name, *capsules_of(line), *figures, *others])
    return processes.table(HEADER, rows)


def words_of(run):
    """The flags of a finished run, but for its seed."""
    epochs = str(run.record["flags"]["epochs"])
    return [*ROWS[run.row], *run.further_flags(), "--epochs", epochs]


def command_of(run):
    """The command line of a finished run."""
    flags, backend = run.record["flags"], run.record["environment"]["backend"]
    words = ["python", "capsulenet.py", *words_of(run)]
    words += ["--seed", str(flags["seed"])]
    chosen = "" if backend == "tensorflow" else f"KERAS_BACKEND={backend} "
    return chosen + shlex.join(words)


def commands(lines):
    """The command and the logs of each line of the table."""
    items = []
    for line in lines:
        logs = [f"[{r.seed}](mnist/{r.folder.name}/log.csv)" for r in line]
        texts = [re.sub(r"\d+$", "SEED", command_of(run)) for run in line]
        text = ", ".join(f"`{each}`" for each in dict.fromkeys(texts))
        items.append(f"- {line[0].row}, logs of seed {', '.join(logs)}: {text}")
    return "\n".join(items)


def unfinished(runs):
    """A line that names the runs that are not done, if there are any."""
    named = [
        f"{run.folder.name} ({counted(len(run.log), 'epoch')} done)"
        for run in runs
        if not run.record
    ]
    return [f"Unfinished: {', '.join(named)}."] if named else []


def size_of(line):
    return len(line), flags_of(line)["epochs"]


def longest(lines):
    """By the row, its line of most runs, then of most epochs."""
    rows = {}
    for line in lines:
        rows.setdefault(line[0].row, []).append(line)
    return {row: max(several, key=size_of) for row, several in rows.items()}


def short_table(lines, alone):
    """v1 to v4 and small, and a line with the rest; None without runs.

    v1 to v4 are of one recipe: the one that has most of these rows, then most
    runs. Of each row it is the `longest` line. No error chooses.
    """
    usual = [x for x in lines if "--dataset" not in x[0].further_flags()]
    recipes = {}
    for row, line in longest(usual).items():
        version, _, recipe = row.partition("-")
        if recipe:
            recipes.setdefault(recipe, {})[version] = line
    if not recipes:
        return None
    chosen = max(
        recipes.values(), key=lambda c: (len(c), len(sum(c.values(), [])))
    )
    chosen |= longest(line for line in lines if label(line) == "small")
    rows, texts = [], []
    for version, line in chosen.items():
        errors = errors_of(line)
        error = runner.mean_of(errors)
        if len(errors) > 1:
            error += f" ({statistics.stdev(errors):.3f})"
        cells = [error, len(errors), flags_of(line)["epochs"]]
        cells += [*minutes_of(line, alone), device_of(line), *OTHERS[version]]
        rows.append([version, *capsules_of(line), *cells])
        texts.append(f"{version}: `{shlex.join(words_of(line[0]))}`")
    paragraphs = [processes.table(SHORT, rows), "; ".join(texts) + "."]
    return "\n\n".join([*paragraphs, machines_line(chosen.values(), alone)])


def plot(axis, lines, steps):
    """Draws test errors, mean and extremes over the seeds, on one axis.

    Args:
        axis: The matplotlib axis.
        lines, steps: What to draw, and what an epoch of each is on the
            horizontal axis, or None where it is not drawn.
    """
    for number, (line, step) in enumerate(zip(lines, steps)):
        if not step:
            continue
        version, _, recipe = line[0].row.partition("-")
        epochs = flags_of(line)["epochs"]
        logs = [[row["test_error"] for row in run.log[:epochs]] for run in line]
        columns = list(zip(*logs))
        functions = statistics.mean, min, max
        mean, low, high = (list(map(f, columns)) for f in functions)
        style = {
            "color": COLOURS.get(line[0].row, COLOURS[version]),
            "linestyle": "--" if recipe == "paper" else "-",
            "marker": ".sx^v"[number % 5],
            "markevery": max(1, epochs // 12),
            "label": f"{title(line)}, n = {len(line)}",
        }
        x = [step * epoch for epoch in range(1, len(columns) + 1)]
        axis.plot(x, mean, markersize=4, linewidth=1.2, **style)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    if axis.dataLim.y1 > 0:
        axis.set_yscale("log")
        # A first epoch that learns little would squeeze all that matters.
        top = min(axis.get_ylim()[1], 15 * axis.dataLim.minposy)
        axis.set_ylim(top=top)
    axis.set_ylabel("test error, %")
    axis.grid(alpha=0.3)
    # Beside the panel, where no line can run.
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)


def draw(lines, alone, path):
    """`mnist.png`: test error by epoch, and by minutes where they are known."""
    # Here, so that flags are answered at once.
    import matplotlib

    matplotlib.use("Agg")  # Pictures are files; no window ever opens.
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    minutes = [epoch_minutes(line, alone) for line in lines]
    panels = 2 if any(minutes) else 1
    size = {"figsize": (9, 5 * panels), "dpi": 120}
    figure, axes = plt.subplots(panels, squeeze=False, **size)
    axes = axes[:, 0]
    axes[0].set(xlabel="epoch")
    plot(axes[0], lines, [1] * len(lines))
    # Beside long runs short ones would not show.
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    if axes[0].dataLim.x1 > LINEAR_EPOCHS:
        axes[0].set_xscale("log")
    for axis in axes[1:]:
        plot(axis, lines, minutes)
        axis.set(xlabel="minutes on a CPU, nothing else running", xscale="log")
    for axis in axes:
        axis.xaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        # All nine of a decade would run into each other.
        if axis.get_xscale() == "log":
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_minor_formatter("")
        if axis.get_yscale() == "log":
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6)))
            axis.yaxis.set_minor_formatter("")
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def report(runs, out):
    """Writes the tables and `mnist.png`."""
    lines, alone = runner.lines_of(runs), alone_runs(out)
    parts = [table(lines, alone), machines_line(lines, alone)]
    parts += [*unfinished(runs), commands(lines)]
    processes.insert(out / "README.md", "mnist", "\n\n".join(parts), add=True)
    if lines:
        with whole_file(out / "mnist.png") as temporary:
            draw(lines, alone, temporary)
    if short := short_table(lines, alone):
        processes.insert(out.parent / "README.md", "results", short)


STUDY = runner.Study("mnist", ROWS, epochs=50, report=report)


def main(argv=None):
    return runner.main(STUDY, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
