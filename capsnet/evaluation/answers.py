"""The test where a picture has several labels: pairs, or rows of 0 and 1.

An answer is **exact** where all classes of a picture are named and no other.
Of a pair the two longest capsules are named; elsewhere all above 0.5, and
beside that, the k longest for the k labels that the picture has.
"""

import os

import numpy as np

import utils
from capsnet.data.pairs import VERSIONS
from capsnet.devices import alone
from capsnet.evaluation.figures import (
    SHOWN,
    class_figures,
    ending,
    joined,
    of_mistakes,
    replace_test,
    spread,
)
from capsnet.evaluation.prediction import write_test_table
from capsnet.files import MODEL, whole_file
from capsnet.fonts import drawable_names
from capsnet.messages import shorten
from capsnet.models.inference import (
    PREDICT_BATCH,
    lengths_model,
    longest,
    named_classes,
    predict_batches,
)
from capsnet.models.networks import attach
from capsnet.models.saving import load_model

# Pairs that are drawn at most.
PAIRS_SHOWN = 36
CAPTION = (
    "picture; its two digits in orange and blue; what the two longest capsules "
    "draw, in the same colours.    true classes -> predicted classes"
)
SETS_CAPTION = "file or row; the true classes; -> those of capsules above 0.5"


def test(eval_models, data, save_dir, weights=()):
    """As `capsulenet.test`, for pairs, all of them, or several labels."""
    batches = all_batches(data)
    lengths = mean_lengths(eval_models, batches)
    counts = {
        "dataset": data.name,
        "weights": list(weights),
        **test_figures(lengths, batches.answers, data),
    }
    replace_test(save_dir, counts)
    if not data.pairs:
        write_test_table(data, lengths, save_dir)
    draw = draw_pairs if data.pairs else draw_sets
    draw(eval_models[0], data, batches, lengths, save_dir)
    return counts


@alone()
def last_test(save_dir, data):
    """What `run.json` says of the model that a training kept, if anything.

    After each epoch one pair was tested for each test picture; here all are.
    """
    if data.labels == "one":
        return {}
    batches = all_batches(data)
    model, _ = load_model(os.path.join(save_dir, MODEL))
    lengths = mean_lengths([model], batches)
    figures = test_figures(lengths, batches.answers, data)
    del figures["classes"]
    return figures


def all_batches(data):
    """Batches of the test part, of all its pairs."""
    more = {"versions": VERSIONS} if data.pairs else {}
    return data.test_batches(PREDICT_BATCH, **more)


def mean_lengths(eval_models, batches):
    """Lengths of the capsules, the mean of all models: `(n, n_class)`."""
    lengths = [
        predict_batches(lengths_model(model), batches) for model in eval_models
    ]
    return sum(lengths) / len(lengths)


def test_figures(lengths, answers, data):
    """The figures of `test.json`, errors in percent.

    Args:
        lengths: Array of shape `(n, n_class)`.
        answers: The right classes, booleans of the same shape.
        data: A `Dataset`.

    Returns:
        Dictionary; `test_error` in it is the exact error of all pairs, or by
        the lengths above 0.5.
    """
    named = named_classes(lengths, data.labels)
    mistakes = int((named != answers).any(1).sum())
    exact = 100 * mistakes / len(answers)
    hits = (named & answers).sum(1)
    if data.pairs:
        figures = {
            "exact_error": exact,
            "error_per_digit": float(100 * (1 - hits.mean() / 2)),
            "at_least_one_right": float(100 * (hits > 0).mean()),
            "mistakes": mistakes,
            "pairs": len(answers),
        }
    else:
        top = longest(lengths, answers.sum(1, keepdims=True))
        figures = {
            "exact_error_above_half": exact,
            "exact_error_top_k": float(100 * (top != answers).any(1).mean()),
            "error_per_label": float(100 * (named != answers).mean()),
            "mistakes": mistakes,
            "pictures": len(answers),
        }
    classes = several_class_figures(named, answers, data.class_names)
    return {"test_error": exact, **figures, "classes": classes}


def several_class_figures(named, answers, class_names):
    """`figures.class_figures`, and how often a class is named wrongly."""
    missed = (answers & ~named).sum(0)
    classes = class_figures(class_names, answers.sum(0), missed)
    wrongly = (named & ~answers).sum(0).tolist()
    for each, other in zip(classes.values(), wrongly):
        each["wrongly_named"] = other
    return classes


def lines(figures):
    """What `test_figures` says, as lines for the user."""
    if "pairs" in figures:
        return [
            "Exact test error (the two longest are the two digits): "
            "{exact_error:.2f} % ({mistakes} of {pairs} pairs)".format(
                **figures
            ),
            "Error per digit: {error_per_digit:.2f} %; at least one digit "
            "right: {at_least_one_right:.2f} %".format(**figures),
        ]
    return [
        "Exact test error (those above 0.5 are the labels): "
        "{exact_error_above_half:.2f} % ({mistakes} of {pictures})".format(
            **figures
        ),
        "Exact test error (the k longest are the k labels): "
        "{exact_error_top_k:.2f} %; error per label: "
        "{error_per_label:.2f} %".format(**figures),
    ]


def draw_pairs(eval_model, data, batches, lengths, save_dir):
    """Draws pairs and mistakes as in the paper's Figure 5.

    Args:
        eval_model: The model that reconstructs, if it has a decoder.
        data: A `Dataset` of pairs, `batches` all its test pairs, and
            `lengths` what the capsules say of them.
        save_dir: Folder.
    """
    wrong = confident_mistakes(lengths, batches.answers, "pair")
    chosen = wrong[:PAIRS_SHOWN]
    files = {"mistakes.png": (chosen, of_mistakes(chosen, wrong, CAPTION))}
    if "decoder" in eval_model.output:
        some = spread(len(lengths), PAIRS_SHOWN)
        files["real_and_recon.png"] = some, CAPTION
    names = drawable_names(data.class_names)
    names = [shorten(name, 12) for name in names]
    for file, (chosen, caption) in files.items():
        if len(chosen) == 0:
            continue
        merged, digits, true = batches.pictures(chosen)
        named = in_order(lengths[chosen], true)
        groups = [utils.colours(merged / 255), utils.overlay(digits / 255)]
        if "decoder" in eval_model.output:
            label = np.eye(len(names), dtype="float32")[named]
            drawn = reconstructions(eval_model, merged, label)
            groups.append(utils.overlay(drawn))
        titles = [
            f"{names[a]} + {names[b]} -> {names[c]} + {names[d]}"
            for (a, b), (c, d) in zip(true, named)
        ]
        with whole_file(os.path.join(save_dir, file)) as path:
            utils.draw_groups(np.stack(groups, 1), titles, path, caption)


def in_order(lengths, true):
    """The two longest, `(n, 2)`: each in the place of the same true class.

    So digit and reconstruction have one colour; a class that is not there
    takes the place that is left.
    """
    named = np.argsort(-lengths, axis=-1, kind="stable")[:, :2]
    crossed = (named[:, 0] == true[:, 1]) | (named[:, 1] == true[:, 0])
    return np.where(crossed[:, None], named[:, ::-1], named)


def draw_sets(eval_model, data, batches, lengths, save_dir):
    """Draws pictures, and mistakes, of several labels; as `draw_pairs`."""
    answers, named = batches.answers, named_classes(lengths, "several")
    wrong = confident_mistakes(lengths, answers, "several")
    chosen = wrong[:SHOWN]
    with_decoder = "decoder" in eval_model.output

    def drawn(indices):
        label = label_of(lengths[indices])
        return reconstructions(eval_model, data.x_test[indices], label)

    if len(chosen):
        names = drawable_names(data.class_names)
        titles = [
            f"{ending(data.test_names[i], 20)}\n{joined(answers[i], names)}\n"
            f"-> {joined(named[i], names)}"
            for i in chosen
        ]
        caption = of_mistakes(chosen, wrong, SETS_CAPTION)
        made = drawn(chosen) if with_decoder else None
        with whole_file(os.path.join(save_dir, "mistakes.png")) as path:
            pictures = data.x_test[chosen] / 255
            utils.draw_pairs(pictures, made, titles, path, caption)
    if with_decoder:
        shown = spread(len(lengths))
        with whole_file(os.path.join(save_dir, "real_and_recon.png")) as path:
            utils.draw_reconstructions(
                data.x_test[shown] / 255, drawn(shown), path
            )


def confident_mistakes(lengths, answers, labels):
    """The pictures with a mistake, the longest capsules first, by index."""
    wrong = np.flatnonzero((named_classes(lengths, labels) != answers).any(1))
    sure = np.sort(lengths[wrong], -1)[:, -2 if labels == "pair" else -1]
    return wrong[np.argsort(-sure, kind="stable")]


def label_of(lengths):
    """What the decoder draws: those above 0.5, or else the longest."""
    named = named_classes(lengths, "several")
    alone = ~named.any(1, keepdims=True) & longest(lengths, 1)
    return (named | alone).astype("float32")


def reconstructions(eval_model, images, label):
    """What the decoder draws of the labelled capsules of uint8 pictures."""
    inputs = {"image": images / np.float32(255), "label": label}
    train_model, _, _ = attach(eval_model)
    return train_model.predict(inputs, len(images), verbose=0)["decoder"]
