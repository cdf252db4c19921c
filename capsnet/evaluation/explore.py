"""A page in which one turns the dimensions of a capsule: one HTML file.

`explore.html`, `explore.css` and `SCRIPTS` beside this file are its sources.
What belongs to a model goes in as one block of JSON: the decoder's weights,
some pictures of the test and their capsules, what is usual in each dimension,
and a small network's encoder.
"""

import collections
import json
import os
import string
from pathlib import Path

import keras
import numpy as np

from capsnet.data.looks import borders
from capsnet.evaluation.answers import confident_mistakes
from capsnet.evaluation.figures import spread
from capsnet.evaluation.packing import dense_layers, encoded, encoder_of
from capsnet.files import EXPLORED, split_pairs, write_text
from capsnet.messages import cross, printable
from capsnet.models.inference import (
    PREDICT_BATCH,
    Predictor,
    named_classes,
    predict_batches,
)

SOURCES = Path(__file__).parent
# Each uses those before it.
SCRIPTS = (
    "network.js content.js canvas.js drawing.js pad.js explore.js"
).split()
# Pictures that are answered rightly, over all classes, and mistakes.
RIGHT, MISTAKES = 30, 10


def write_page(eval_model, data, weights, save_dir):
    """Writes `explore.html`.

    Args:
        eval_model: An evaluation model of `CapsNet`, with a decoder.
        data: A `sources.Dataset`.
        weights: The model's file, to be named in the page.
        save_dir: Folder.

    Returns:
        The name of the file.

    Raises:
        UserError: If the decoder has other layers than dense ones.
    """
    content = content_of(eval_model, data, os.path.basename(weights))
    path = os.path.join(save_dir, EXPLORED)
    write_text(path, page(content))
    return path


def page(content):
    """The sources and a dictionary as one HTML document."""

    def source(name):
        return (SOURCES / name).read_text(encoding="utf-8")

    return string.Template(source("explore.html")).substitute(
        style=source("explore.css"),
        # No name in it can end the block: JSON may write "<" like this.
        content=json.dumps(content).replace("<", "\\u003c"),
        scripts="\n".join(map(source, SCRIPTS)),
    )


def content_of(eval_model, data, model_name):
    """What the page is told of a model and its data, for JSON."""
    decoder = dense_layers(eval_model.get_layer("decoder"))
    encoder, reason = encoder_of(eval_model)
    batches = data.test_batches(PREDICT_BATCH)
    capsules = predict_batches(capsules_model(eval_model), batches)
    capsules = capsules.astype("float32")  # They may have 16 bits.
    answers = batches.answers
    chosen = choose(capsules, answers, data.labels)
    if data.pairs:
        pictures = batches.pictures(chosen)[0]
    else:
        pictures = data.x_test[chosen]
    means, spreads = usual(capsules, answers)
    pairs, dataset = split_pairs(data.name)
    facts = (
        model_name,
        pairs + os.path.basename(os.path.normpath(dataset)),
        f"pictures of {cross(data.input_shape)}",
        f"{len(data.class_names)} classes",
        f"capsules of {capsules.shape[-1]} dimensions",
    )
    return {
        "about": printable(" · ".join(facts)),
        "names": [printable(name) for name in data.class_names],
        "labels": data.labels,
        "shape": list(data.input_shape),
        "dimensions": capsules.shape[-1],
        "pixels": encoded(pictures, "u1"),
        "truth": [np.flatnonzero(row).tolist() for row in answers[chosen]],
        "capsules": encoded(capsules[chosen], "<f4"),
        "means": encoded(means, "<f4"),
        "spreads": encoded(spreads, "<f4"),
        "decoder": decoder,
        "encoder": encoder,
        "no_encoder": reason,
        "light": bool(borders(pictures).mean() > 0.5),
    }


def capsules_model(eval_model):
    """From pictures to the class capsules, `(batch, n_class, dim_capsule)`."""
    digitcaps = eval_model.get_layer("digitcaps").output
    model = keras.Model(eval_model.input, digitcaps)
    model.jit_compile = eval_model.jit_compile
    return Predictor(model)


def choose(capsules, answers, labels):
    """Some pictures of each class, right ones where there are; then mistakes.

    Args:
        capsules: Array of shape `(n, n_class, dim_capsule)`.
        answers: The right classes, booleans of shape `(n, n_class)`.
        labels: What a picture has, as in `Dataset.labels`.

    Returns:
        List of indices.
    """
    lengths = np.linalg.norm(capsules, axis=-1)
    wrong = (named_classes(lengths, labels) != answers).any(1)
    n_class = answers.shape[1]
    chosen = []
    for number in spread(n_class, RIGHT):
        of_class = np.flatnonzero(answers[:, number])
        of_class = of_class[np.argsort(wrong[of_class], kind="stable")]
        others = [index for index in of_class if index not in chosen]
        chosen += others[: max(1, RIGHT // n_class)]
    # The surest of each class before the second surest.
    mistakes, places = [], collections.Counter()
    for index in confident_mistakes(lengths, answers, labels):
        label = tuple(answers[index])
        mistakes.append((places[label], index))
        places[label] += 1
    mistakes.sort(key=lambda mistake: mistake[0])
    others = [index for _, index in mistakes if index not in chosen]
    return chosen + others[:MISTAKES]


def usual(capsules, answers):
    """Mean and standard deviation of each dimension of each class's capsule.

    Over the pictures of the class; where it has none, over all of them.

    Returns:
        Two arrays of shape `(n_class, dim_capsule)`.
    """
    parts = []
    for number, of_class in enumerate(answers.T):
        capsule = capsules[:, number]
        parts.append(capsule[of_class] if of_class.any() else capsule)
    return np.stack([np.stack((p.mean(0), p.std(0))) for p in parts], axis=1)
