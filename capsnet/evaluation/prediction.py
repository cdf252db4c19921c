"""Pictures to a table: which class each is taken for, and how surely."""

import contextlib
import csv
import os
import sys

import numpy as np

from capsnet.data import looks
from capsnet.data.folders import unreadable_error
from capsnet.data.pictures import read_pictures
from capsnet.evaluation.figures import SHOWN, draw_pictures, ending
from capsnet.files import PREDICTIONS, TEST_TABLE, whole_file
from capsnet.messages import (
    StatusLine,
    counted,
    cross,
    listed,
    printable,
    shorten,
)
from capsnet.models.inference import PREDICT_BATCH, lengths_model, predict

# How a spreadsheet's formulas begin.
FORMULAS = tuple("=+-@\t\r")
# Of `predictions.csv`, and what stands above the printed table, by the labels
# that a picture has.
COLUMNS = {
    "one": ("file", "class", "length", "runner_up", "runner_up_length"),
    "pair": ("file", "class_1", "length_1", "class_2", "length_2"),
    "several": ("file", "classes", "lengths"),
}
HEADINGS = {
    "one": ("file", "class", "length", "runner-up", "length"),
    "pair": ("file", "class", "length", "class", "length"),
    "several": COLUMNS["several"],
}


def make_rows(files, lengths, class_names, labels="one", fewest=1):
    """One row a file, as `COLUMNS` says, from lengths `(files, n_class)`.

    Of several labels all above 0.5 are named, and the longest in any case
    where `fewest` is 1, not 0.
    """
    order = np.argsort(-lengths, axis=-1, kind="stable")
    if labels == "several":
        rows = []
        for file, length, ranked in zip(files, lengths, order):
            named = [i for i in ranked if length[i] > 0.5]
            named = named or ranked[:fewest]
            names = "; ".join(class_names[i] for i in named)
            row = file, names, "; ".join(f"{length[i]:.3f}" for i in named)
            rows.append(row)
        return rows
    return [
        (
            file,
            class_names[first],
            float(length[first]),
            class_names[second],
            float(length[second]),
        )
        for file, length, (first, second) in zip(files, lengths, order[:, :2])
    ]


def is_unsure(row, labels):
    """Whether a capsule that names a class in a row is under one half."""
    if labels == "several":
        return float(row[2].split(";")[0]) < 0.5
    return row[4 if labels == "pair" else 2] < 0.5


def format_table(rows, labels="one"):
    """The rows of `make_rows` as aligned lines under a heading.

    A row that `is_unsure` says so at its end.
    """
    table = [(*HEADINGS[labels], "")]
    for row in rows:
        shown = [
            f"{v:.3f}" if isinstance(v, float) else printable(v) for v in row
        ]
        table.append([*shown, "unsure" if is_unsure(row, labels) else ""])
    widths = [max(map(len, column)) for column in zip(*table)]
    return "\n".join(
        "  ".join(map(str.ljust, row, widths)).rstrip() for row in table
    )


def predict_files(
    models,
    files,
    class_names,
    skip_unreadable=False,
    labels="one",
    record=None,
    invert=False,
):
    """Reads pictures and asks the models, some of them at a time.

    Args:
        models: Evaluation models; the lengths of their capsules are averaged.
        files: Paths of pictures.
        class_names: List of strings.
        skip_unreadable: Boolean, leave out what cannot be read.
        labels: What a picture has, as in `Dataset.labels`.
        record: The record of a model, which tells how its pictures looked.
        invert: Boolean, show the models the pictures inverted.

    Returns:
        The rows of `make_rows` in the order of the files, the first
        pictures as the models saw them (uint8), and lines for the user.

    Raises:
        UserError: If a file cannot be read, all of them at once.
    """
    input_shape = models[0].input.shape[1:]
    capsules = [lengths_model(model) for model in models]
    rows, images, unreadable, unlike, resized = [], [], [], [], 0
    # The table goes to standard output, which may be sent to a file.
    with contextlib.redirect_stdout(sys.stderr):
        line = StatusLine()
        for start in range(0, len(files), PREDICT_BATCH):
            part = files[start : start + PREDICT_BATCH]
            pictures, failed, count = read_pictures(part, input_shape)
            unreadable += map(printable, failed)
            resized += count
            # After the first unreadable file only the others are looked for.
            if pictures and (skip_unreadable or not unreadable):
                names, x = zip(*pictures)
                x = looks.invert(np.stack(x)) if invert else np.stack(x)
                images += [*x[: SHOWN - len(images)]]
                turned = np.flatnonzero(looks.unlike(x, record or {}))
                unlike += [printable(names[i]) for i in turned]
                lengths = sum(predict(model, x) for model in capsules)
                lengths /= len(models)
                rows += make_rows(names, lengths, class_names, labels)
            done = 100 * (start + len(part)) // len(files)
            line.show(f"{done} % of the pictures read")
        line.clear()
    if unreadable and not (skip_unreadable and rows):
        raise unreadable_error("", unreadable, len(files), skip_unreadable)
    notes = note_resized(resized, len(rows), input_shape)
    notes += looks.note_unlike(len(unlike), len(rows), record, invert, unlike)
    if failed := listed(unreadable):
        notes.append(f"Left out, cannot be read: {len(unreadable)} ({failed})")
    return rows, np.stack(images), notes


def note_resized(count, total, input_shape):
    """A note in a list, or none, on how many pictures had another size."""
    if not count:
        return []
    size = f"{cross(input_shape[:2])} (height x width)"
    return [f"Resized to {size}: {count} of {counted(total, 'picture')}"]


def write_predictions(eval_model, rows, images, save_dir, labels="one"):
    """Writes `predictions.csv` and, drawn by a model, `predictions.png`."""
    write_table(save_dir, PREDICTIONS, COLUMNS[labels], rows)
    titles = [
        "\n".join([ending(row[0], 20), *named_in(row, labels)])
        for row in rows[: len(images)]
    ]
    path = os.path.join(save_dir, "predictions.png")
    caption = "file, class and length of its capsule"
    draw_pictures(eval_model, images, titles, path, caption)


def write_test_table(data, lengths, save_dir):
    """Writes `test.csv`: what each test picture is, and is taken for.

    Args:
        data: A `Dataset`, not of pairs.
        lengths: Array of shape `(n, n_class)` for its test part.
        save_dir: Folder.
    """
    answers = data.test_batches(PREDICT_BATCH).answers
    # What is named here is what the test's error counts.
    rows = make_rows(
        data.test_names, lengths, data.class_names, data.labels, fewest=0
    )
    rows = [
        (file, "; ".join(data.class_names[i] for i in np.flatnonzero(answer)))
        + tuple(rest)
        for (file, *rest), answer in zip(rows, answers)
    ]
    file, *rest = COLUMNS[data.labels]
    write_table(save_dir, TEST_TABLE, (file, "true", *rest), rows)


def write_table(save_dir, name, columns, rows):
    """Writes a CSV file of texts and numbers."""
    with whole_file(os.path.join(save_dir, name)) as path:
        # A file's name may hold any bytes.
        with open(
            path, "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for row in rows:
                writer.writerow(map(cell, row))


def cell(value):
    """A value for a CSV file: a number, or a text that is no formula.

    A spreadsheet computes what begins with `=`, for instance.
    """
    if isinstance(value, float):
        return f"{value:.6f}"
    return f"'{value}" if value.startswith(FORMULAS) else value


def named_in(row, labels):
    """The classes of a row of `make_rows`, a line for each in a title."""
    if labels == "several":
        return [row[1]]
    each = list(zip(row[1::2], row[2::2]))
    named = each[: 2 if labels == "pair" else 1]
    return [f"{shorten(name, 13)} ({length:.2f})" for name, length in named]
