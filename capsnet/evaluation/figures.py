"""The numbers and pictures of a test, and what becomes of older ones."""

import json
import os
import re

import numpy as np

import utils
from capsnet.files import (
    AFFINE,
    BATCH,
    EXPLORED,
    MODEL,
    TEST_FILES,
    remove,
    whole_file,
    write_json,
)
from capsnet.fonts import drawable_names
from capsnet.messages import printable, shorten
from capsnet.models.inference import lengths_model, predict

# Pictures that are drawn at most, and of a training's first batch.
SHOWN = 50
OF_BATCH = 30
# Times as many pictures as the smallest class; then classes count alike, too.
UNEQUAL = 2
MISTAKES = "file or row (length of the capsule), true class -> predicted class"


def replace_test(save_dir, counts):
    """Writes `test.json`, and removes the pictures of an earlier test.

    None of it must pass for the new one's. Those of `--digit` and `--explore`
    stay if the files in `counts["weights"]` begin with the same model, and at
    the first test of the folder's own one: its training left none of others.
    """
    path = os.path.join(save_dir, TEST_FILES[0])
    own = os.path.realpath(os.path.join(save_dir, MODEL))
    is_own = own in map(os.path.realpath, counts["weights"][:1])
    is_first = not os.path.exists(path)
    try:
        with open(path, encoding="utf-8") as file:
            tested = json.load(file)["weights"][0]
        is_same = os.path.samefile(tested, counts["weights"][0])
        is_newer = os.path.getmtime(path) >= os.path.getmtime(tested)
    except (OSError, ValueError, LookupError, TypeError):
        is_same = is_newer = False  # No test, or it does not tell of what.
    stays = (is_same and is_newer) or (is_first and is_own)
    drawn = [] if stays else ["manipulate-*.png", EXPLORED]
    write_json(path, counts)
    remove(save_dir, (*TEST_FILES[1:], AFFINE, *drawn))


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


def example(data, class_number, seed=0):
    """A picture of the test part that is of a class, uint8.

    Args:
        data: A `Dataset`.
        class_number: Integer, index of the class.
        seed: Integer that chooses the picture.
    """
    chosen = np.random.default_rng(seed).choice(data.tested(class_number))
    return data.test_picture(chosen)


def ending(path, length):
    """A file's name; of a long one its end, which tells it from others."""
    name = printable(os.path.basename(path))
    return name if len(name) <= length else "…" + name[1 - length :]


def spread(count, most=SHOWN):
    """At most `most` of `count` indices: the set may be sorted by class."""
    shown = min(count, most)
    return np.arange(shown) * count // shown


def count_answers(eval_models, images, labels, n_class):
    """What models take pictures for, and how often it is what they are.

    Args:
        eval_models: List of evaluation models.
        images: uint8 array of shape `(n, height, width, channels)`.
        labels: Integers of shape `(n,)`, the true classes.
        n_class: Integer, number of classes.

    Returns:
        The lengths of the capsules, the mean of the models, `(n, n_class)`;
        and the confusion, as in `test_figures`.
    """
    lengths = sum(predict(lengths_model(each), images) for each in eval_models)
    lengths = lengths / len(eval_models)
    confusion = np.zeros((n_class, n_class), "int64")
    np.add.at(confusion, (labels, lengths.argmax(-1)), 1)
    return lengths, confusion


def test_figures(confusion, class_names):
    """The figures of `test.json`, as `test` describes them.

    Args:
        confusion: Integer array, rows are true classes, columns predicted.
        class_names: List of strings.
    """
    counts = confusion.sum(axis=1)
    mistakes = counts - confusion.diagonal()
    wrong, total = int(mistakes.sum()), int(counts.sum())
    return {
        "accuracy": 1 - wrong / total,
        "balanced_accuracy": balanced_accuracy(counts, mistakes),
        "test_error": 100 * wrong / total,
        "mistakes": wrong,
        "pictures": total,
        "classes": class_figures(class_names, counts, mistakes),
        "confusion": confusion.tolist(),
    }


def class_figures(class_names, counts, mistakes):
    """Of each class: its pictures, the mistakes, and the error in percent."""
    return {
        name: {
            "pictures": int(count),
            "mistakes": int(wrong),
            # A class may have no picture in the test part.
            "error": float(100 * wrong / count) if count else None,
        }
        for name, count, wrong in zip(class_names, counts, mistakes)
    }


def balanced_accuracy(counts, mistakes):
    """The mean of the classes' accuracies, of those that have pictures."""
    has_any = counts > 0
    return float(1 - np.mean(mistakes[has_any] / counts[has_any]))


def draw_test(eval_model, data, lengths, confusion, save_dir):
    """Draws `confusion.png`, `mistakes.png` and `real_and_recon.png`.

    The second only where there are mistakes, the third where there is a
    decoder.

    Args:
        eval_model: The model that reconstructs, if it has a decoder.
        data: A `sources.Dataset`.
        lengths: Array of shape `(n, n_class)` for its test part.
        confusion: As in `test_figures`.
        save_dir: Folder.
    """
    with whole_file(os.path.join(save_dir, "confusion.png")) as path:
        utils.draw_confusion(confusion, data.class_names, path)
    draw_mistakes(eval_model, data, lengths, save_dir)
    if "decoder" in eval_model.output:
        shown = data.x_test[spread(len(data.x_test))]
        reconstructions = predict(eval_model, shown)["decoder"]
        with whole_file(os.path.join(save_dir, "real_and_recon.png")) as path:
            utils.draw_reconstructions(shown / 255, reconstructions, path)


def draw_batch(batch, class_names, save_dir):
    """Draws `batch.png`: pictures as a network sees them in training.

    Args:
        batch: One of `Batches`.
        class_names: List of strings.
        save_dir: Folder.
    """
    inputs, targets = batch[:2]
    images = inputs["image"] if isinstance(inputs, dict) else inputs
    rows = targets["capsnet"][:OF_BATCH]
    names = drawable_names(class_names)
    titles = [joined(row, names) for row in rows]
    with whole_file(os.path.join(save_dir, BATCH)) as path:
        utils.draw_pairs(images[:OF_BATCH], None, titles, path)


def joined(row, class_names):
    """The names of the classes in a row of booleans, or of 0 and 1."""
    names = [shorten(class_names[i], 12) for i in np.flatnonzero(row)]
    return ", ".join(names) or "none"


def of_mistakes(shown, wrong, caption):
    """The caption of `mistakes.png`: how many there are, and what one sees."""
    return f"{len(shown)} of {len(wrong)} mistakes: {caption}"


def draw_mistakes(eval_model, data, lengths, save_dir):
    """Draws `mistakes.png`, the most confident mistakes first, if any.

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
    names = drawable_names(data.class_names)
    names = [shorten(name, 18) for name in names]
    titles = [
        f"{ending(data.test_names[index], 16)} ({lengths[index].max():.2f})\n"
        f"{names[data.y_test[index]]} -> {names[predicted[index]]}"
        for index in worst
    ]
    path = os.path.join(save_dir, "mistakes.png")
    caption = of_mistakes(worst, wrong, MISTAKES)
    draw_pictures(eval_model, data.x_test[worst], titles, path, caption)


def draw_pictures(eval_model, images, titles, path, caption):
    """Draws pictures, beside their reconstructions if there is a decoder.

    Those of the two digits of a pair lie over each other, in orange and blue.
    """
    shown, reconstructions = images / 255, None
    if "decoder" in eval_model.output:
        reconstructions = predict(eval_model, images)["decoder"]
        if reconstructions.ndim == 5:
            shown = utils.colours(shown)
            reconstructions = utils.overlay(reconstructions)
    with whole_file(path) as temporary:
        utils.draw_pairs(shown, reconstructions, titles, temporary, caption)


def class_lines(classes):
    """What there is to say of the `classes` of `test_figures`."""
    counts = np.array([each["pictures"] for each in classes.values()])
    mistakes = np.array([each["mistakes"] for each in classes.values()])
    lines = [worst_classes(classes)] if mistakes.any() else []
    if counts.max() > UNEQUAL * counts.min():
        mean = 100 * balanced_accuracy(counts, mistakes)
        lines.append(f"Balanced accuracy, the classes' mean: {mean:.2f} %")
    return lines


def worst_classes(classes, named=3):
    """A line on the `classes` of `test_figures` with the largest error."""
    errors = {name: each["error"] or 0 for name, each in classes.items()}
    largest = max(errors.values())
    worst = [name for name in errors if errors[name] == largest]
    if len(worst) == 1:
        counts = "{mistakes} of {pictures}".format(**classes[worst[0]])
        return f"Worst class: {worst[0]}, {largest:.2f} % ({counts})"
    listed = ", ".join(worst[:named])
    more = f" and {len(worst) - named} more" if len(worst) > named else ""
    return f"Worst classes: {listed}{more}, {largest:.2f} % each"
