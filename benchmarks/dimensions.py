"""What the 16 dimensions of each class's capsule do, as a table.

    python benchmarks/dimensions.py -w result/mnist/v4.keras

For each class one test picture, the same as in `capsulenet.py --digit`, is
decoded with -0.15 and with +0.15 added to one dimension of its capsule. The
moments of the two drawings say what changed on the way from the first to the
second:

| word              | what is measured                       | counts from |
| ----------------- | -------------------------------------- | ----------: |
| thicker, thinner  | ink, the sum of all pixels             | 20 %        |
| leans right, left | slant, the shear of the second moments | 4 degrees   |
| wider, narrower   | spread across, the slant taken out     | 7 %         |
| taller, shorter   | spread up and down                     | 7 %         |
| moves right, left | centre of gravity                      | 1 pixel     |
| moves up, down    | centre of gravity                      | 1 pixel     |

The two that change most are named, each measured in the unit of its last
column; where none does, a detail may: a loop, a tail, an end of a stroke.
The pictures show which (`--digit`). Writes Markdown into `--out`.
"""

import argparse
import math
import sys
from pathlib import Path

import processes

from capsnet.cli import settings
from capsnet.evaluation.loading import load_for_testing

# What grows and what shrinks, and the change that counts.
WORDS = (
    ("thicker", "thinner", math.log(1.2)),
    ("leans right", "leans left", math.radians(4)),
    ("wider", "narrower", math.log(1.07)),
    ("taller", "shorter", math.log(1.07)),
    ("moves right", "moves left", 1.0),
    ("moves up", "moves down", 1.0),
)
STEP = 0.15
NAMED = 2


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-w", "--weights", required=True, metavar="FILE", help="a .keras file")
    add(
        "--dataset",
        help="as in capsulenet.py (default: what the model was trained on)",
    )
    add(
        "--out",
        default=str(processes.ROOT / "result" / "mnist" / "dimensions.md"),
        metavar="FILE",
        help="where to write (default: result/mnist/dimensions.md)",
    )
    return parser.parse_args(argv)


def moments(image):
    """Six numbers of a drawing, in the order and the units of `WORDS`.

    Args:
        image: Array of shape `(height, width, channels)`, at least 0.
    """
    import numpy as np

    ink = image.sum(axis=-1, dtype="float64")
    total = ink.sum() + 1e-9
    y, x = np.indices(ink.shape)
    x_centre, y_centre = (ink * x).sum() / total, (ink * y).sum() / total
    x, y = x - x_centre, y - y_centre
    xx, yy, xy = (
        (ink * product).sum() / total + 1e-9
        for product in (x * x, y * y, x * y)
    )
    return np.array(
        [
            math.log(total),
            math.atan(-xy / yy),  # Rows count downwards.
            0.5 * math.log(max(xx - xy**2 / yy, 1e-9)),
            0.5 * math.log(yy),
            x_centre,
            -y_centre,
        ]
    )


def describe(before, after):
    """The words for what differs most between two drawings."""
    units = [unit for *_, unit in WORDS]
    change = (moments(after) - moments(before)) / units
    order = sorted(range(len(WORDS)), key=lambda n: -abs(change[n]))
    words = [
        WORDS[n][0 if change[n] > 0 else 1]
        for n in order[:NAMED]
        if abs(change[n]) >= 1
    ]
    return ", ".join(words) or "a detail"


def main(argv=None):
    """Writes the table; returns the status."""
    args = parse_args(argv)
    given = ["-t", "-w", args.weights]
    given += ["--dataset", args.dataset] if args.dataset else []
    flags = settings.parse_args(given)

    import numpy as np

    import capsulenet

    try:
        models, data, _ = load_for_testing(flags)
    except (capsulenet.checkpoints.FileError, OSError, ValueError) as error:
        print(f"dimensions.py: {error}", file=sys.stderr)
        return 2
    manipulate_model = models[0][2]
    if manipulate_model is None:
        print("dimensions.py: the model has no decoder", file=sys.stderr)
        return 2
    low, high = (np.abs(capsulenet.NOISE - n).argmin() for n in (-STEP, STEP))
    columns = []
    for number in range(len(data.class_names)):
        images = capsulenet.manipulations(manipulate_model, data, number)
        columns.append([describe(row[low], row[high]) for row in images])
    rows = [(number, *row) for number, row in enumerate(zip(*columns), 1)]
    table = processes.table(("dimension", *data.class_names), rows)
    command = f"python benchmarks/dimensions.py -w {args.weights}"
    if args.dataset:
        # By its last name: a folder mnist holds what mnist would download.
        command += f" --dataset {Path(args.dataset).name}"
    text = (
        f"What {STEP:+} instead of {-STEP:+} in one dimension of a class's "
        f"capsule does to the drawing of it, measured by `{command}`.\n\n"
        f"{table}\n"
    )
    processes.write_text(Path(args.out), text)
    print(f"{text}\nWritten: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
