"""What a recipe gains by each of its parts, on held-out training pictures.

    python benchmarks/recipes.py                 all that was tried, one seed
    python benchmarks/recipes.py --rows small    of the small network only
    python benchmarks/recipes.py --report        train nothing

The recipes `laptop` and `best` were chosen by this table. A third of the
training pictures, 20,000 of MNIST, is held out and tells which run is better;
the test set says nothing here. Each row changes one thing of the base of its
network; all have the same five epochs, by default.

The runs may be stopped at any time: the same command goes on
(benchmarks/runner.py says how). On two CPU cores an epoch of small takes two
minutes. Written into `--out`: `recipes/ROW-.../log.csv` and `run.json`, and the
table into `README.md` there.
"""

import sys

import processes
import runner

AFFINE = ("--augment", "affine", "--shift_fraction", "0.07")
WEAK = ("--rotation", "8", "--scale", "0.06", "--shear", "0.08")
STRONG = ("--rotation", "25", "--scale", "0.2", "--shear", "0.25")
# The flags of each base: what a row changes is replaced, the rest stays.
BASES = {
    "small": {
        "model": ("--model", "efficient"),
        "augment": AFFINE,
        "schedule": ("--lr_schedule", "cosine", "--warmup", "1"),
        "rate": ("--lr", "0.002"),
        "average": ("--ema", "0.999"),
    },
}
# The same for the paper's network, at its usual learning rate.
BASES["v4"] = {
    name: BASES["small"][name] for name in ("augment", "schedule", "average")
}
# What the paper's network has without all that.
BASES["classic"] = {"recipe": ("--recipe", "classic")}
CHANGES = {
    "small-base": {},
    "small-unchanged": {"augment": ("--augment", "none")},
    "small-shift": {"augment": ()},
    "small-weak": {"augment": (*AFFINE, *WEAK)},
    "small-strong": {
        "augment": ("--augment", "affine", "--shift_fraction", "0.1", *STRONG)
    },
    "small-weights": {"average": ()},
    "small-steps": {"schedule": ("--lr_decay", "0.4", "--warmup", "1")},
    "small-batch": {"batch": ("--batch_size", "50")},
    "small-rate": {"rate": ("--lr", "0.004")},
    "small-no-decoder": {"decoder": ("--lam_recon", "0")},
    "small-dynamic-1": {"routing": ("--routing", "dynamic", "-r", "1")},
    "small-dynamic-3": {"routing": ("--routing", "dynamic", "-r", "3")},
    "v4-base": {},
    "v4-shift": {"augment": ()},
    "classic-base": {},
    "v4-long": {"length": ("--primary_scale", "4")},
}
HELD_OUT = ("--val_fraction", "0.33333333")


def flags_of(row):
    """The flags of a row: those of its base, some of them replaced."""
    base = BASES[row.split("-")[0]]
    parts = {**base, **CHANGES[row]}
    return sum(parts.values(), ())


def change_of(row):
    """What a row replaces, as one would type it."""
    flags = sum(CHANGES[row].values(), ())
    gone = [name for name, value in CHANGES[row].items() if not value]
    words = [" ".join(flags)] if flags else []
    return ", ".join(words + [f"no {name}" for name in gone])


def row_of(line):
    """The table's row for the runs of one change; each figure is a mean."""
    last = [run.log[-1] for run in line]
    held_out = [100 * (1 - row["val_capsnet_accuracy"]) for row in last]
    losses = [row.get("val_capsnet_loss", row.get("val_loss")) for row in last]
    trained = [100 * row["capsnet_accuracy"] for row in last]
    means = (sum(values) / len(line) for values in (held_out, losses, trained))
    error, loss, accuracy = means
    more = " ".join(line[0].further_flags())
    change = ", ".join(filter(None, [change_of(line[0].row), more]))
    return [
        line[0].row,
        f"`{change}`" if change else "",
        line[0].record["flags"]["epochs"],
        f"{error:.3f}",
        f"{loss:.5f}",
        f"{accuracy:.2f}",
        len(line),
    ]


def report(runs, out):
    """Writes the bases' flags, and a line for each run that is done."""
    lines = runner.lines_of(runs)
    header = ["run", "change", "epochs", "held-out error, %"]
    header += ["held-out margin loss", "training accuracy, %", "seeds"]
    texts = [
        f"Base of {name}: `{' '.join(flags_of(f'{name}-base'))}`."
        for name in BASES
    ]
    texts.append(processes.table(header, list(map(row_of, lines))))
    processes.insert(out / "README.md", "recipes", "\n\n".join(texts), add=True)


ROWS = {row: flags_of(row) for row in CHANGES}
STUDY = runner.Study("recipes", ROWS, 5, report, HELD_OUT)


def main(argv=None):
    return runner.main(STUDY, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
