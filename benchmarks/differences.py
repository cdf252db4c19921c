"""What each difference between the two recipes does by itself.

    python benchmarks/differences.py             all, one seed each
    python benchmarks/differences.py --rows classic bias --seeds 3
    python benchmarks/differences.py --report    train nothing

Short runs with the classic recipe, in each of which one thing is as in the
authors' code (README, 'What differs'); then the whole of the authors' recipe,
with their heavy reconstruction and with the classic one. Beside them stand
offers of Keras or the classic code: its initial matrices, averaged weights, no
decoder. All schedules fall by 0.4 an epoch (`--extra` may name another
`--lr_decay`).

The runs may be stopped at any time: the same command goes on
(benchmarks/runner.py says how). On two CPU cores an epoch of MNIST takes two
minutes. Written into `--out`: `differences/ROW-.../log.csv` and `run.json`,
and the table into `README.md` there.
"""

import itertools
import statistics
import sys

import processes
import runner

# Steps of an epoch of MNIST, in batches of 100 and of 128.
CLASSIC_STEPS, AUTHORS_STEPS = 600, 469
AUTHORS = ("--recipe", "paper", "--lr_decay_steps", str(AUTHORS_STEPS))
ROWS = {
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
SCHEDULE = ("--lr_decay", "0.4")


def mean(rows, key, otherwise=None):
    """Mean of a column over runs; None where they have no such column."""
    values = [row.get(key, row.get(otherwise)) for row in rows]
    return None if None in values else statistics.mean(values)


def row_of(line, epochs):
    """The table's row for the runs of one difference."""
    logs = [run.log for run in line]
    by_epoch = itertools.zip_longest(*logs, fillvalue={})
    errors = [f"{mean(rows, 'test_error'):.2f}" for rows in by_epoch]
    errors += [""] * (epochs - len(errors))
    last = [log[-1] for log in logs]
    # Without a decoder the margin loss is all of the loss.
    losses = [mean(last, "capsnet_loss", "loss"), mean(last, "decoder_loss")]
    flags = " ".join([*ROWS[line[0].row], *line[0].further_flags()])
    flags = f"`{flags}`" if flags else ""
    losses = map(processes.digits, losses)
    return [line[0].row, flags, *errors, *losses, len(line)]


def report(runs, out):
    """Writes the table: a line for each difference that has finished runs."""
    lines = runner.lines_of(runs)
    epochs = max((len(run.log) for line in lines for run in line), default=0)
    header = ["run", "flags"]
    header += [f"test error {number + 1}, %" for number in range(epochs)]
    header += ["margin loss", "reconstruction error", "seeds"]
    table = processes.table(header, [row_of(line, epochs) for line in lines])
    machines = dict.fromkeys(
        processes.machine(run.record["environment"])
        for line in lines
        for run in line
    )
    text = f"{table}\n\n{'; '.join(machines)}."
    processes.insert(out / "README.md", "differences", text, add=True)


STUDY = runner.Study("differences", ROWS, 3, report, SCHEDULE)


def main(argv=None):
    return runner.main(STUDY, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
