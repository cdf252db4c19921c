"""Robustness to affine changes, as in section 5.2 of the paper.

    python benchmarks/robustness.py                 three networks, one seed
    python benchmarks/robustness.py --epochs 10     the curves beyond the stop
    python benchmarks/robustness.py --report        train nothing

The networks (`--rows`):

    capsnet    CapsNet, --conv_strides 1: 13,475,648 weights
    cnn        a convolutional network of as many, with max-pooling, dropout
    small      the small network, --model efficient

They are trained on MNIST digits at random whole-pixel places of a black 40x40
canvas, and on nothing else: Adam, 0.001 x 0.9 each epoch. Every `--checks`
steps, and at each epoch's end, a check tests all 10,000 digits of the shifted
test set and a fixed 2,000 pictures of the affNIST-like set
(capsnet/evaluation/robustness.py). All 10,000, because the first check that
reaches `--stop` decides: of 2,000 one in five would be wrong by a quarter of a
percent. The network of that check is tested on the whole affNIST-like set,
320,000 pictures. There its training ends, or goes on to `--epochs`.

A run may be killed at any time, which costs a check at most: the same command
goes on and ends with the same log. Models stay in `--work_dir`. Written into
`--out`: `robustness/ROW-SEED/log.csv`, as far as the run is, and `run.json`;
`robustness.png`, affNIST-like against shifted accuracy; `robustness-set.png`,
some of the set; and the table in `README.md`.

Exit status: 0, 2 for what the user can mend, 130 after SIGINT or SIGTERM.
"""

import functools
import statistics
import sys

import processes
import runner

from capsnet.cli.parser import Parser, number
from capsnet.files import locked, whole_file

ROWS = {"capsnet": (), "cnn": (), "small": ()}
# Accuracy in % on shifted MNIST and affNIST, as the paper has it.
PAPER = {"capsnet": ("99.23", "79"), "cnn": ("99.22", "66")}
HEADER = (
    "network|weights|epochs to the stop|shifted MNIST, %|affNIST-like, %|"
    "runs, n|paper: shifted MNIST|affNIST"
).split("|")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    text = "epochs of each run (default: to the stop, 30 at most)"
    add = processes.add_run_flags(parser, "robustness", ROWS, None, text)
    whole = processes.positive_int
    add("--checks", 100, "steps between checks", type=whole, metavar="N")
    text = "accuracy on shifted MNIST at which a network is stopped"
    add("--stop", 0.992, text, type=number(float, 0, 1), metavar="X")
    add("--batch_size", 100, "pictures of a step", type=whole, metavar="N")
    return processes.parse_run_flags(parser, ROWS, argv)


def label(run):
    """The row, and the flags in which the run differs from the default."""
    usual, words = vars(parse_args([])), [run.row]
    for name, value in run.record["flags"].items():
        if name in usual and name != "epochs" and value != usual[name]:
            words.append(f"--{name} {value}")
    return " ".join(words)


def lines_of(runs):
    """The finished runs, those of one row and setting together."""
    lines = {}
    for run in runs:
        if run.record:
            lines.setdefault(label(run), []).append(run)
    return lines


def mean(values):
    """Mean, and standard deviation where there is one, as text."""
    values = list(values)
    text = f"{statistics.mean(values):.2f}"
    if len(values) > 1:
        text += f" ({statistics.stdev(values):.2f})"
    return text


def affine_of(stopped):
    return 100 * stopped["right"] / stopped["pictures"]


def row_of(name, line):
    """A row of the table: how the stopped networks of a line did."""
    records = [run.record for run in line if run.record["stopped"]]
    stopped = [record["stopped"] for record in records]
    cells = ["not reached", "", ""]
    if stopped:
        epochs = [r["stopped"]["step"] / r["steps_per_epoch"] for r in records]
        shifted = [100 * each["shifted_accuracy"] for each in stopped]
        cells = [mean(epochs), mean(shifted), mean(map(affine_of, stopped))]
    weights = f"{line[0].record['parameters']:,}"
    paper = PAPER.get(line[0].row, ("", ""))
    return [name, weights, *cells, len(stopped), *paper]


def goals(lines):
    """The rows of the table of goals, as far as there are figures."""
    found = {
        name: statistics.mean(affine_of(run.record["stopped"]) for run in line)
        for name, line in lines.items()
        if name in PAPER and all(run.record["stopped"] for run in line)
    }
    measured = []
    if "capsnet" in found:
        name = "CapsNet on the affNIST-like set, %"
        measured.append((name, found["capsnet"], 79))
    if len(found) == 2:
        name = "CapsNet beyond the CNN, points"
        measured.append((name, found["capsnet"] - found["cnn"], 10))
    rows = []
    for name, value, bound in measured:
        met = "yes" if value >= bound else "no"
        rows.append([name, f"{value:.2f}", f"at least {bound}", met])
    return rows


def describe(runs, lines):
    """The paragraphs about the runs that there are."""
    if not lines:
        return "No run is finished yet."
    table = processes.table(HEADER, [row_of(*each) for each in lines.items()])
    met = processes.table(["goal", "measured", "bound", "met"], goals(lines))
    logs = ", ".join(
        f"[{run.folder.name}](robustness/{run.folder.name}/log.csv)"
        for run in runs
    )
    finished = [run.record for line in lines.values() for run in line]
    machines = dict.fromkeys(
        processes.machine(record["environment"]) for record in finished
    )
    sums = dict.fromkeys(record["set_sha256"] for record in finished)
    said = [
        f"{'; '.join(machines)}. Logs: {logs}.",
        f"SHA-256 of the affNIST-like set: {', '.join(sums)}.",
    ]
    return "\n\n".join([table, *([met] if goals(lines) else []), *said])


def draw(runs, path):
    """`robustness.png`: affNIST-like against shifted accuracy, by check."""
    # Here, so that flags are answered at once.
    import matplotlib

    matplotlib.use("Agg")  # Pictures are files; no window ever opens.
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    figure, axis = plt.subplots(figsize=(8, 5), dpi=120)
    axis.set(xlabel="error on shifted MNIST, %")
    axis.set(ylabel="accuracy on the affNIST-like set, %, of 2,000 pictures")
    named = set()
    for run in runs:
        # What is wrong in no picture has no place on the axis.
        log = [row for row in run.log if row["shifted_accuracy"] < 1]
        x, y = (
            [100 * row[f"{name}_accuracy"] for row in log]
            for name in ("shifted", "affine")
        )
        colour = f"C{list(ROWS).index(run.row)}"
        style = {"color": colour, "linewidth": 0.7, "markersize": 3}
        x = [100 - value for value in x]
        # The runs of a network are one line of the legend.
        name = label(run) if run.record else run.folder.name
        text = "_" if name in named else name
        named.add(name)
        axis.plot(x, y, marker=".", label=text, **style)
        if run.record and (stopped := run.record["stopped"]):
            place = 100 - 100 * stopped["shifted_accuracy"], affine_of(stopped)
            axis.plot(*place, marker="*", color=colour, markersize=14)
    axis.set_title("Stars: where it was stopped, on the whole set", fontsize=9)
    axis.set_xscale("log")
    axis.invert_xaxis()
    ticks = matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5, 7))
    axis.xaxis.set_major_locator(ticks)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def report(runs, out):
    """Writes the table, and `robustness.png` where there is a log."""
    text = describe(runs, lines_of(runs))
    processes.insert(out / "README.md", "robustness", text, add=True)
    if runs:
        with whole_file(out / "robustness.png") as path:
            draw(runs, path)


STUDY = runner.Study("robustness", ROWS, epochs=0, report=report)


def work(args):
    """Trains what is missing unless asked not to, and reports."""
    if args.report:
        report(runner.read_runs(STUDY, args.out), args.out)
    else:
        train(args)
    print(f"Written: {args.out / 'README.md'}")
    return 0


def train(args):
    """Trains what is missing, and reports after each run."""
    # Here, so that flags are answered at once.
    import shifted

    from capsnet.data.sources import load
    from capsnet.devices import make_deterministic

    make_deterministic()
    data = load(args.dataset)
    with whole_file(args.out / "robustness-set.png") as path:
        shifted.draw_set(data, path)
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for row in args.rows:
            name = f"{row}-{seed}"
            folder, target = args.work_dir / name, args.out / STUDY.name / name
            publish = functools.partial(runner.collect, folder, target)
            with locked(folder):
                shifted.train(row, seed, args, data, folder, publish)
            report(runner.read_runs(STUDY, args.out), args.out)


def main(argv=None):
    """Returns an exit status."""
    return runner.in_order(work, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
