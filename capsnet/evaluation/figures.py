"""The numbers and pictures of a test, and what becomes of older ones."""

import contextlib
import glob
import json
import os
import re

import numpy as np

import utils
from capsnet.files import whole_file
from capsnet.messages import shorten
from capsnet.models.inference import predict

# Pictures that are drawn at most.
SHOWN = 50
# All that a test writes, whatever its models; --digit adds its own.
TEST_FILES = (
    "test.json",
    "confusion.png",
    "mistakes.png",
    "real_and_recon.png",
)


def drop_test(save_dir, weights):
    """Removes an earlier test, so that none of it passes for the next one's.

    The pictures of `--digit` stay if they are of the same model.

    Args:
        save_dir: Folder of both tests.
        weights: Files of the models that are tested next.
    """
    test, *others = (os.path.join(save_dir, name) for name in TEST_FILES)
    drawn = glob.glob(os.path.join(glob.escape(save_dir), "manipulate-*.png"))
    try:
        with open(test, encoding="utf-8") as file:
            tested = json.load(file)["weights"][0]
        is_same = os.path.samefile(tested, weights[0])
        if is_same and os.path.getmtime(tested) <= os.path.getmtime(test):
            drawn = []
    except (OSError, ValueError, LookupError, TypeError):
        pass  # There was no test, or it does not tell of what.
    for path in (test, *others, *drawn):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def manipulation_path(save_dir, class_names, class_number):
    """`manipulate-CLASS.png`, another file for each of the classes.

    CLASS is the name with dashes for what some system takes in no file's
    name. Where two classes would share a file, if only on systems that
    ignore case, `~` and the class's number follow.
    """
    refused = r'[\x00-\x1f"*/:<>?\\|~]'
    names = [re.sub(refused, "-", name)[:50] for name in class_names]
    folded = [name.casefold() for name in names]
    name = names[class_number]
    if folded.count(folded[class_number]) > 1:
        name += f"~{class_number}"
    return os.path.join(save_dir, f"manipulate-{name}.png")


def spread(count, most=SHOWN):
    """At most `most` of `count` indices, evenly from the first on.

    Folders of pictures are sorted by class, and other sets may be.
    """
    shown = min(count, most)
    return np.arange(shown) * count // shown


def test_figures(confusion, class_names):
    """The figures of `test.json`, from counts of true and predicted classes.

    Args:
        confusion: Integer array, rows are true classes, columns predicted.
        class_names: List of strings.

    Returns:
        Dictionary as `test` returns it.
    """
    counts = confusion.sum(axis=1).tolist()
    mistakes = (confusion.sum(axis=1) - confusion.diagonal()).tolist()
    return {
        "accuracy": 1 - sum(mistakes) / sum(counts),
        "test_error": 100 * sum(mistakes) / sum(counts),
        "mistakes": sum(mistakes),
        "pictures": sum(counts),
        "classes": {
            name: {
                "pictures": count,
                "mistakes": wrong,
                # A class may have no picture in the test part.
                "error": 100 * wrong / count if count else None,
            }
            for name, count, wrong in zip(class_names, counts, mistakes)
        },
        "confusion": confusion.tolist(),
    }


def draw_mistakes(eval_model, data, lengths, save_dir):
    """Draws `mistakes.png`, the most confident mistakes first.

    Args:
        eval_model: The model that reconstructs, if it has a decoder.
        data: A `sources.Dataset`.
        lengths: Array of shape `(n, n_class)` for its test part.
        save_dir: Folder.
    """
    predicted = lengths.argmax(-1)
    wrong = np.flatnonzero(predicted != data.y_test)
    if len(wrong) == 0:
        return
    order = np.argsort(-lengths.max(-1)[wrong], kind="stable")
    worst = wrong[order[:SHOWN]]
    names = [shorten(name, 18) for name in data.class_names]
    titles = [
        f"{names[data.y_test[index]]} -> {names[predicted[index]]}"
        for index in worst
    ]
    path = os.path.join(save_dir, "mistakes.png")
    draw_pictures(eval_model, data.x_test[worst], titles, path)


def draw_pictures(eval_model, images, titles, path):
    """Draws pictures, beside their reconstructions if there is a decoder."""
    reconstructions = None
    if "decoder" in eval_model.output:
        reconstructions = predict(eval_model, images)["decoder"]
    with whole_file(path) as temporary:
        utils.draw_pairs(images / 255, reconstructions, titles, temporary)


def worst_classes(classes, named=3):
    """A line that names the classes with the largest error.

    Args:
        classes: `figures["classes"]` of `test`.
        named: How many of those with the same error are named.
    """
    errors = {name: each["error"] or 0 for name, each in classes.items()}
    largest = max(errors.values())
    worst = [name for name in errors if errors[name] == largest]
    if len(worst) == 1:
        counts = "{mistakes} of {pictures}".format(**classes[worst[0]])
        return f"Worst class: {worst[0]}, {largest:.2f} % ({counts})"
    listed = ", ".join(worst[:named])
    more = f" and {len(worst) - named} more" if len(worst) > named else ""
    return f"Worst classes: {listed}{more}, {largest:.2f} % each"
