"""Commands on pairs of digits, and on several labels a picture."""

import csv
import json

import keras
import numpy as np
import pytest
from conftest import bars
from PIL import Image
from running import command, lengths_of, message_of, run, same, weights_of

from capsnet.data.sources import load
from capsnet.training.callbacks import EpochClock

pytestmark = pytest.mark.slow  # Seconds each.

N_CLASS, SMALL = 4, (12, 12, 1)
FLAGS = ("-r", 1, "--batch_size", 20, "--epochs", 2)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """40 and 12 pictures of 12x12, of which pairs have 20x20."""
    x_train, y_train = bars(40, SMALL, N_CLASS)
    x_test, y_test = bars(12, SMALL, N_CLASS, seed=1)
    path = tmp_path_factory.mktemp("data") / "bars.npz"
    arrays = {"x_train": x_train, "y_train": y_train}
    np.savez(path, **arrays, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, path):
    folder = tmp_path_factory.mktemp("trained")
    return command(folder, "--dataset", f"pairs:{path}", *FLAGS)


def lengths_by_keras(model, data, versions):
    batches = data.test_batches(1000, versions=versions)
    lengths = model.predict(batches[0][0], verbose=0)["capsnet"]
    return lengths, batches.answers


def exact_error(lengths, answers):
    """In percent, pair by pair."""
    wrong = 0
    for row, right in zip(lengths, answers):
        two = set(np.argsort(-row, kind="stable")[:2])
        wrong += two != set(np.flatnonzero(right))
    return 100 * wrong / len(answers)


def test_pairs_are_trained_and_tested(trained, path, tmp_path):
    assert trained.status == 0, trained.err
    assert "Training on 40 pairs of 20x20x1, 4 classes" in trained.out
    assert "Epoch 2: exact test error" in trained.out
    record, log = trained.record(), trained.log()
    assert record["labels"] == "pair"
    assert record["lam_recon"] == pytest.approx(0.0005 * 2 * 20 * 20)
    data, model = load(f"pairs:{path}"), trained.model()
    expected = exact_error(*lengths_by_keras(model, data, 1))
    assert log["test_error"][-1] == pytest.approx(expected)
    lengths, answers = lengths_by_keras(model, data, 10)
    expected = exact_error(lengths, answers)
    assert (record["pairs"], record["epoch"]) == (120, 2)
    # The model needs no other flag.
    done = command(tmp_path, "-t", "-w", trained.model_path())
    assert done.status == 0, done.err
    assert "confusion" not in done.out
    figures = done.figures()
    for found in (record, figures):
        assert found["test_error"] == found["exact_error"]
        assert found["exact_error"] == pytest.approx(expected)
        hits = np.argsort(-lengths, axis=1, kind="stable")[:, :2]
        hits = np.take_along_axis(answers, hits, 1).sum(1)
        wrong = 100 * (1 - hits.sum() / 240)
        assert found["error_per_digit"] == pytest.approx(wrong)
        some = 100 * np.mean(hits > 0)
        assert found["at_least_one_right"] == pytest.approx(some)
    for printed in (done.out, trained.out):
        assert f"{expected:.2f} % ({figures['mistakes']} of 120" in printed
        assert f"Error per digit: {wrong:.2f} %; at least one" in printed
    names = {file.name for file in tmp_path.iterdir()}
    assert names >= {"test.json", "real_and_recon.png"}
    assert "confusion.png" not in names


def test_a_digit_is_drawn_and_two_are_predicted(trained, path, tmp_path):
    flags = "-w", trained.model_path()
    done = command(tmp_path, "--digit", 2, *flags)
    assert done.status == 0, done.err
    assert (tmp_path / "manipulate-2.png").exists()
    data = load(f"pairs:{path}")
    file, pair = tmp_path / "pair.png", data.test_picture(3)
    Image.fromarray(pair[..., 0]).save(file)
    done = command(tmp_path, "--predict", file, *flags)
    assert done.status == 0, done.err
    model = keras.models.load_model(trained.model_path())
    lengths = model.predict(pair[None] / 255, verbose=0)["capsnet"][0]
    first, second = np.argsort(-lengths)[:2]
    heading, row = done.out.splitlines()[:2]
    assert heading.split() == ["file", "class", "length", "class", "length"]
    expected = [str(first), f"{lengths[first]:.3f}"]
    expected += [str(second), f"{lengths[second]:.3f}"]
    assert row.split()[1:] == expected
    with open(tmp_path / "predictions.csv", newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert (row["class_1"], row["class_2"]) == (str(first), str(second))
    assert (tmp_path / "predictions.png").exists()
    served = tmp_path / "half.keras"
    done = run("--export", served, *flags)
    assert done.status == 0, done.err
    again = command(tmp_path / "half", "-t", "-w", served)
    assert again.status == 0, again.err


def test_resumed_run_ends_as_the_uninterrupted_one(
    trained, path, tmp_path, monkeypatch
):
    begin = EpochClock.on_epoch_begin

    def interrupt(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(EpochClock, "on_epoch_begin", interrupt)
        cut = command(tmp_path, "--dataset", f"pairs:{path}", *FLAGS)
    assert cut.status == 130
    resumed = command(tmp_path, "--resume")
    assert resumed.status == 0, resumed.err
    for name, values in trained.log().items():
        assert resumed.log()[name].tolist() == values.tolist()
    models = resumed.model(), trained.model()
    assert same(*map(weights_of, models))
    assert resumed.record()["exact_error"] == trained.record()["exact_error"]


@pytest.mark.parametrize(
    "flags",
    (
        ("--model", "baseline", "--val_fraction", 0.3),
        ("--model", "efficient", "--routing", "dynamic", "-r", 2),
        ("--recipe", "paper", "--lam_recon", 0, "-r", 1, "--ema", 0.9),
    ),
)
def test_every_network_learns_pairs(path, tmp_path, flags):
    argv = "--dataset", f"pairs:{path}", "--epochs", 1, "--batch_size", 20
    done = command(tmp_path, *argv, *flags)
    assert done.status == 0, done.err
    assert done.record()["pairs"] == 120
    again = command(tmp_path, "-t", "-w", done.model_path())
    assert again.status == 0, again.err
    assert again.figures()["test_error"] == done.record()["test_error"]


def test_models_are_refused_where_pictures_have_other_labels(
    trained, path, tmp_path
):
    flags = "--dataset", path, "--image_size", 20, 20
    done = command(tmp_path, "-t", "-w", trained.model_path(), *flags)
    message = message_of(done)
    assert "two digits each, got" in message and "one label each" in message
    flags = "--dataset", f"pairs:{path}", "--image_size", 14, 12
    done = command(tmp_path, "-t", "-w", trained.model_path(), *flags)
    assert "add --image_size 12 12" in message_of(done)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Pictures with any of three bars, none included."""
    generator = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 40), ("test", 12)):
        y = generator.integers(0, 2, (count, 3))
        y[:4] = [[0, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]]
        x = generator.integers(0, 60, (count, 15, 15), dtype="uint8")
        for picture, row in zip(x, y):
            for number in np.flatnonzero(row):
                picture[number * 5 + 1 : number * 5 + 4, 3:-3] = 220
        arrays |= {f"x_{part}": x, f"y_{part}": y}
    path = tmp_path_factory.mktemp("rows") / "rows.npz"
    np.savez(path, **arrays, class_names=["low", "middle", "top"])
    return path


@pytest.fixture(scope="module")
def trained_on_rows(tmp_path_factory, rows):
    """A training on the rows."""
    flags = "--dataset", rows, "-r", 1, "--batch_size", 10, "--epochs", 12
    return command(tmp_path_factory.mktemp("done"), *flags)


def test_several_labels_are_trained_and_tested(trained_on_rows, rows, tmp_path):
    assert trained_on_rows.status == 0, trained_on_rows.err
    assert "3 classes, several a picture" in trained_on_rows.out
    record = trained_on_rows.record()
    assert record["labels"] == "several"
    data, model = load(rows), trained_on_rows.model()
    lengths = lengths_of(model, data.x_test)
    above = ((lengths > 0.5) != data.y_test).any(1)
    top = []
    for row, right in zip(lengths, data.y_test):
        ranked = np.argsort(-row, kind="stable")[: right.sum()]
        top.append(set(ranked) != set(np.flatnonzero(right)))
    log = trained_on_rows.log()
    assert log["test_error"][-1] == pytest.approx(100 * above.mean())
    assert log["capsnet_loss"][-1] < log["capsnet_loss"][0]
    tested = command(tmp_path, "-t", "-w", trained_on_rows.model_path())
    assert tested.status == 0, tested.err
    for found in (record, tested.figures()):
        assert found["test_error"] == pytest.approx(100 * above.mean())
        assert found["exact_error_top_k"] == pytest.approx(100 * np.mean(top))
    assert "those above 0.5" in tested.out and "k longest" in tested.out
    with open(tmp_path / "test.csv", newline="") as opened:
        table = list(csv.DictReader(opened))
    sets = [
        [set(row[n].split("; ")) for n in ("true", "classes")] for row in table
    ]
    assert [true != named for true, named in sets] == above.tolist()
    assert json.loads((tmp_path / "test.json").read_text())["pictures"] == 12


def test_several_labels_are_drawn_and_predicted(
    trained_on_rows, rows, tmp_path
):
    flags = "-w", trained_on_rows.model_path()
    drawn = command(tmp_path, "--digit", "top", *flags)
    assert drawn.status == 0, drawn.err
    data, file = load(rows), tmp_path / "picture.png"
    Image.fromarray(data.x_test[3, ..., 0]).save(file)
    said = command(tmp_path, "--predict", file, *flags)
    assert said.status == 0, said.err
    (lengths,) = lengths_of(trained_on_rows.model(), data.x_test[3:4])
    named = np.flatnonzero(lengths > 0.5)
    if len(named) == 0:
        named = [lengths.argmax()]
    with open(tmp_path / "predictions.csv", newline="") as opened:
        (row,) = csv.DictReader(opened)
    expected = {data.class_names[number] for number in named}
    assert set(row["classes"].split("; ")) == expected


def test_class_weights_are_for_one_label(rows, tmp_path):
    flags = "--dataset", rows, "--class_weight", "balanced"
    message = message_of(command(tmp_path, *flags))
    assert "--class_weight is for one label a picture" in message


def test_drawn_digits_make_pairs_without_a_download(tmp_path, monkeypatch):
    """The issue's command, shortened: fewer digits, a small network."""
    monkeypatch.setattr("capsnet.data.digits.TRAIN_DIGITS", 60)
    monkeypatch.setattr("capsnet.data.digits.TEST_DIGITS", 20)
    flags = "--dataset", "pairs:digits", "--epochs", 1, "--model", "efficient"
    done = command(tmp_path, *flags, "--batch_size", 30)
    assert done.status == 0, done.err
    assert "Training on 60 pairs of 36x36x1, 10 classes" in done.out
    tested = command(tmp_path, "-t", "-w", done.model_path())
    assert tested.status == 0, tested.err
    assert tested.figures()["pairs"] == 200
