"""Whether rows of the results differ: their mistakes on the same pictures.

    python benchmarks/compare.py             test what is not yet, and compare
    python benchmarks/compare.py --report    test nothing

Each finished run of mnist.py whose model still is in `--work_dir` is tested
again, by `capsulenet.py -t` as it is today. Its answers are published beside
its log, `mnist/RUN/predictions.txt`: a line a test picture with the class that
was found, and where that is wrong, after a tab, the true one. Runs on another
data set than `--dataset` are passed over.

Two networks are compared by the pictures that one of them alone gets wrong.
Were they equally good, each of these would be as likely the one's as the
other's: the table, in `README.md` of `--out`, has the probability p of a
difference at least as large (McNemar 1947, exact, two-sided). Runs of equal
seeds are compared, one by one.

The pictures that all runs of `--rows` get wrong, of each row those with the
flags that were run most often, are drawn into `common-mistakes.png`.

Exit status: 0, 2 for what the user can mend, 130 after SIGINT or SIGTERM.
"""

import collections
import csv
import functools
import itertools
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import mnist
import processes
import runner

from capsnet.cli.parser import Parser
from capsnet.files import whole_file, write_text
from capsnet.messages import UserError, counted

ANSWERS = "predictions.txt"
HEADER = (
    "row|another|seeds|wrong in the row alone|in the other alone|in both|p"
).split("|")


def parse_args(argv=None):
    parser = Parser(description=__doc__)
    add = processes.adder(parser)
    text = "rows whose common mistakes are drawn, or beginnings of their names"
    kind = functools.partial(processes.matching, mnist.ROWS)
    rows = [["v4-classic"], ["v4-best"], ["small"]]
    add("--rows", rows, text, nargs="+", type=kind, metavar="ROW")
    add("--dataset", "mnist", "as in capsulenet.py", metavar="NAME|PATH")
    work_dir = Path("~", ".cache", "capsnet-mnist")
    add("--work_dir", work_dir, "where models are", type=Path, metavar="DIR")
    out = processes.ROOT / "result"
    add("--out", out, "where the runs are", type=Path, metavar="DIR")
    add("--report", False, "rebuild the table, no more")
    return processes.parse_run_flags(parser, mnist.ROWS, argv)


def test(model, dataset, path):
    """Tests a model, and writes its answers into the file `path`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(processes.ROOT / "capsulenet.py"), "-t"]
        command += ["-w", str(model), "--dataset", dataset]
        if status := subprocess.call([*command, "--save_dir", folder]):
            raise UserError(f"{model} was not tested: status {status}")
        with open(Path(folder, "test.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
    pairs = [(row["class"], row["true"]) for row in rows]
    # Names may have spaces; a name alone is right.
    lines = ["\t".join(dict.fromkeys(pair)) for pair in pairs]
    write_text(path, "\n".join(lines) + "\n")


def answers_of(run):
    """Of each test picture what a run found, and what is true."""
    lines = (run.folder / ANSWERS).read_text().splitlines()
    names = [line.split("\t") for line in lines]
    return [(found[0], found[-1]) for found in names]


def wrong_of(run):
    """The numbers of the test pictures that a run gets wrong."""
    answers = enumerate(answers_of(run))
    return {number for number, (found, true) in answers if found != true}


def probability(one, other):
    """McNemar's exact test, two-sided.

    Args:
        one, other: How many pictures one network alone gets wrong.

    Returns:
        In (0, 1]: how likely a difference at least as large is between
        networks that are equally good.
    """
    n, few = one + other, min(one, other)
    tail = sum(math.comb(n, k) for k in range(few + 1))
    return min(1.0, 2 * tail / 2**n)


def compared(runs):
    """The rows of the table: all pairs of lines, figures seed by seed."""
    wrong = {run.folder: wrong_of(run) for run in runs}
    rows = []
    for line, other in itertools.combinations(runner.lines_of(runs), 2):
        figures = []
        for run, against in itertools.product(line, other):
            if run.seed == against.seed:
                first, second = wrong[run.folder], wrong[against.folder]
                alone = len(first - second), len(second - first)
                p = f"{probability(*alone):.2g}"
                figures.append((run.seed, *alone, len(first & second), p))
        if figures:
            cells = [", ".join(map(str, each)) for each in zip(*figures)]
            rows.append([mnist.title(line), mnist.title(other), *cells])
    return rows


def report(runs, out):
    """Writes the table."""
    text = processes.table(HEADER, compared(runs))
    processes.insert(out / "README.md", "compare", text, add=True)


def draw(runs, dataset, path):
    """Draws what all `runs` get wrong; returns how many pictures it is."""
    # Here, so that flags are answered at once.
    import utils
    from capsnet.data.sources import load

    numbers = sorted(set.intersection(*map(wrong_of, runs)))
    if not numbers:
        return 0
    data = load(dataset)
    every = [answers_of(run) for run in runs]
    titles = []
    for number in numbers:
        found, (true, *_) = zip(*(answers[number] for answers in every))
        counts = collections.Counter(found).most_common()
        said = ", ".join(f"{name} ({n})" for name, n in counts)
        titles.append(f"{number}\n{true} -> {said}")
    count = counted(len(runs), "model")
    caption = "number of the test picture, true class -> what it was taken for"
    caption += f" (by how many of {count})"
    with whole_file(path) as temporary:
        images = data.x_test[numbers] / 255
        utils.draw_pairs(images, None, titles, temporary, caption)
    return len(numbers)


def work(args):
    """Tests what is not yet unless asked not to, and reports."""
    dataset = runner.without_path(args.dataset)
    found = [
        run
        for run in runner.read_runs(mnist.STUDY, args.out)
        if run.record and run.pace()["dataset"] == dataset
    ]
    for run in found:
        model = args.work_dir / run.folder.name / "trained_model.keras"
        path = run.folder / ANSWERS
        wanted = model.exists() and not path.exists()
        if wanted and not args.report:
            test(model, args.dataset, path)
    runs = [run for run in found if (run.folder / ANSWERS).exists()]
    report(runs, args.out)
    wanted = [run for run in runs if run.row in args.rows]
    chosen = sum(mnist.longest(runner.lines_of(wanted)).values(), [])
    if chosen and not args.report:
        count = draw(chosen, args.dataset, args.out / "common-mistakes.png")
        said = counted(len(chosen), "model")
        print(f"Wrong in {said}: {counted(count, 'picture')}")
    print(f"Written: {args.out / 'README.md'}")
    return 0


def main(argv=None):
    """Returns an exit status."""
    return runner.in_order(work, parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
