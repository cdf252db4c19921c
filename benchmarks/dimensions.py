"""The changes that the 16 dimensions of each class's capsule make, as a table.

    python benchmarks/dimensions.py -w result/mnist/v4.keras

For each class one test picture, the same as in `capsulenet.py --digit`, is
decoded with -0.15 and with +0.15 added to one dimension of its capsule. The
moments of the two drawings say what changed on the way from the first to the
second (`WORDS`). The two that change most are named; where none changes
enough, a detail may: a loop, a tail, an end of a stroke. The pictures show
which (`--digit`). Writes Markdown into `--out`.
"""

import math
import sys
from pathlib import Path

import numpy as np
import processes

from capsnet.cli.parser import Parser
from capsnet.files import whole_file
from capsnet.messages import UserError, command, fail

# What grows and what shrinks, and the change that counts: of the ink, the slant
# (the shear of the second moments), the spread across, the slant taken out, and
# down, and the centre of gravity in pixels.
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
    parser = Parser(description=__doc__)
    add = processes.adder(parser)
    text = "a .keras file"
    add("-w", "--weights", None, text, required=True, metavar="FILE")
    text = "as in capsulenet.py (default: what the model was trained on)"
    add("--dataset", None, text, metavar="NAME|PATH")
    out = processes.ROOT / "result" / "mnist" / "dimensions.md"
    add("--out", str(out), "where to write", metavar="FILE")
    return parser.parse_args(argv)


def moments(image):
    """Six numbers of a drawing, in the order and the units of `WORDS`.

    Args:
        image: Array of shape `(height, width, channels)`, at least 0.
    """
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


def write(args):
    """Decodes, measures and writes the table."""
    # Here, so that flags are answered before what takes seconds.
    import capsulenet
    from capsnet.evaluation.figures import example
    from capsnet.evaluation.loading import load_for_testing

    asked = {"dataset": args.dataset} if args.dataset else {}
    models, data, _ = load_for_testing([args.weights], asked, capsulenet.build)
    manipulate_model = models[0][2]
    if manipulate_model is None:
        raise UserError(f"{args.weights!r} has no decoder; name another model")
    low, high = (abs(capsulenet.NOISE - n).argmin() for n in (-STEP, STEP))
    columns = []
    for number in range(len(data.class_names)):
        start = example(data, number)
        images = capsulenet.manipulations(manipulate_model, start, number)
        columns.append([describe(row[low], row[high]) for row in images])
    rows = [(number, *row) for number, row in enumerate(zip(*columns), 1)]
    table = processes.table(("dimension", *data.class_names), rows)
    # By its last name: a folder mnist holds what mnist would download.
    dataset = ["--dataset", Path(args.dataset).name] if args.dataset else []
    words = command("benchmarks/dimensions.py", "-w", args.weights, *dataset)
    text = (
        f"What {STEP:+} instead of {-STEP:+} in one dimension of a class's "
        f"capsule does to the drawing of it, measured by `{words}`.\n\n"
        f"{table}\n"
    )
    with whole_file(args.out) as path:
        Path(path).write_text(text, encoding="utf-8")
    print(f"{text}\nWritten: {args.out}")


def main(argv=None):
    args = parse_args(argv)
    try:
        write(args)
    except (UserError, OSError) as error:
        return fail(error, 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
