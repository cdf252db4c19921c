"""Tests of -t: the figures, the files, and what is refused."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import real_data, write_bars
from model_files import before_the_move, members_of, write_members
from PIL import Image
from running import command, contents, lengths_of, message_of, run

from capsnet.evaluation import robustness
from capsnet.evaluation.figures import TEST_FILES
from capsnet.models.networks import attach


def test_testing_prints_and_records_the_figures(tmp_path, trained, arrays):
    done = command(tmp_path, "-t", "-w", trained.model_path())
    assert done.status == 0, done.err
    lengths = lengths_of(trained.model(), arrays["x_test"])
    wrong = int(np.sum(lengths.argmax(-1) != arrays["y_test"]))
    assert wrong > 0
    figures = done.figures()
    assert figures["accuracy"] == pytest.approx(1 - wrong / 12)
    assert figures["test_error"] == pytest.approx(100 * wrong / 12)
    assert (figures["mistakes"], figures["pictures"]) == (wrong, 12)
    confusion = np.zeros((3, 3), int)
    for true, predicted in zip(arrays["y_test"], lengths.argmax(-1)):
        confusion[true, predicted] += 1
    assert figures["confusion"] == confusion.tolist()
    first, *lines, last = done.out.splitlines()
    assert trained.model_path() in first and len(lines) == 3
    assert f"Accuracy: {100 - 100 * wrong / 12:.2f} %" in lines
    assert f"Test error: {100 * wrong / 12:.2f} % ({wrong} of 12)" in lines
    worst = max(each["error"] for each in figures["classes"].values())
    assert lines[-1].startswith("Worst class") and f"{worst:.2f} %" in lines[-1]
    assert {*TEST_FILES, ".lock"} == set(os.listdir(tmp_path))
    for name in TEST_FILES:
        assert name in last
        if name.endswith(".png"):
            with Image.open(tmp_path / name) as picture:
                picture.load()


def test_without_a_mistake_none_is_drawn(tmp_path, trained, arrays):
    labels = lengths_of(trained.model(), arrays["x_test"]).argmax(-1)
    y = np.concatenate([[0, 1, 2], labels[3:]])
    x = arrays["x_test"].copy()
    for label in range(3):  # A picture of each class, so that all are there.
        x[label] = x[np.flatnonzero(labels == label)[0]]
    path = tmp_path / "right.npz"
    np.savez(path, **{**arrays, "x_test": x, "y_test": y})
    flags = "-t", "-w", trained.model_path(), "--dataset", path
    done = command(tmp_path / "run", *flags)
    assert done.status == 0, done.err
    assert done.figures()["mistakes"] == 0
    assert "No mistakes, so no mistakes.png" in done.out
    assert not (tmp_path / "run" / "mistakes.png").exists()


def test_other_data_set_than_the_recorded_one_can_be_tested(tmp_path, trained):
    path = write_bars(tmp_path / "other.npz", test=9)
    done = command(
        tmp_path, "-t", "-w", trained.model_path(), "--dataset", path
    )
    assert done.status == 0, done.err
    figures = done.figures()
    assert figures["pictures"] == 9
    assert os.path.basename(figures["dataset"]) == "other.npz"
    assert figures["weights"] == [trained.model_path()]
    assert f"{trained.model_path()} was trained on " in done.out


def test_several_models_vote_with_the_sum_of_their_lengths(
    tmp_path, trained, plain, arrays
):
    paths = trained.model_path(), plain.model_path()
    done = command(tmp_path, "-t", "-w", *paths)
    assert done.status == 0, done.err
    assert "2 models" in done.out
    lengths = sum(
        lengths_of(each.model(), arrays["x_test"]) for each in (trained, plain)
    )
    wrong = int(np.sum(lengths.argmax(-1) != arrays["y_test"]))
    assert done.figures()["mistakes"] == wrong


def test_affine_error_stands_beside_the_plain_one(
    tmp_path, trained, plain, arrays
):
    paths = trained.model_path(), plain.model_path()
    first = command(tmp_path, "-t", "-w", *paths)
    before = first.figures()
    done = command(tmp_path, "-t", "--affine", "-w", *paths)
    assert done.status == 0, done.err
    x, y = arrays["x_test"], arrays["y_test"]
    changed = robustness.take(x, np.arange(12), versions=1, margin=0)
    models = trained.model(), plain.model()
    lengths = sum(lengths_of(model, changed) for model in models)
    wrong = int(np.sum(lengths.argmax(-1) != y))
    figures = done.figures()
    assert figures.pop("affine")["mistakes"] == wrong > 0
    assert figures == before
    plain_part = next(s for s in first.out.splitlines() if "Test error" in s)
    both = f"{plain_part}; affinely changed {100 * wrong / 12:.2f} % "
    assert f"{both}({wrong} of 12)\n" in done.out
    assert "affine.png" in done.out.splitlines()[-1]
    with Image.open(tmp_path / "affine.png") as picture:
        picture.load()
    # Of what is not tested again nothing stays.
    again = command(tmp_path, "-t", "-w", *paths)
    assert again.figures() == figures and "affinely" not in again.out
    assert not (tmp_path / "affine.png").exists()


def test_of_an_earlier_test_nothing_stays(tmp_path, plain):
    """Without a decoder there are no reconstructions."""
    old = *TEST_FILES, "manipulate-1.png"
    for name in (*old, "mine.png"):
        (tmp_path / name).write_bytes(b"file,of an earlier model")
    done = command(tmp_path, "-t", "-w", plain.model_path())
    assert done.status == 0, done.err
    assert "No reconstructions" in done.out
    kept = set(os.listdir(tmp_path))
    assert {"test.json", "confusion.png", "mine.png"} <= kept
    assert not kept & {"real_and_recon.png", "manipulate-1.png"}
    found = contents(tmp_path).values()
    assert list(found).count(b"file,of an earlier model") == 1


@pytest.mark.parametrize("name", ("test.csv", "predictions.csv"))
def test_table_of_the_users_own_is_not_replaced(tmp_path, trained, data, name):
    (tmp_path / name).write_text("pixel0,pixel1\n0,255\n")
    before = contents(tmp_path)
    model = trained.model_path()
    for argv in (["-t", "-w", model], ["--dataset", data, "--epochs", 1]):
        message = message_of(command(tmp_path, *argv))
        assert str(tmp_path / name) in message and "--save_dir" in message
        assert contents(tmp_path) == before
    # What writes no table may write beside it.
    assert command(tmp_path, "--explore", "-w", model).status == 0
    assert (tmp_path / name).read_bytes() == before[Path(name)]


def test_test_that_is_refused_leaves_the_old_one(tmp_path, trained):
    (tmp_path / "test.json").write_text(json.dumps({"weights": ["old.keras"]}))
    before = contents(tmp_path)
    path = write_bars(tmp_path.parent / "four.npz", n_class=4)
    done = command(
        tmp_path, "-t", "-w", trained.model_path(), "--dataset", path
    )
    assert "17x17x1 and 4" in message_of(done)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ("text", "cut", "other", "training"))
def test_models_of_others_are_refused(tmp_path, trained, data, kind):
    path = tmp_path / "model.keras"
    if kind == "text":
        path.write_text("no model")
    elif kind == "cut":
        path.write_bytes(Path(trained.model_path()).read_bytes()[:-1000])
    elif kind == "other":
        layers = [keras.layers.Input((3,)), keras.layers.Dense(2)]
        keras.Sequential(layers).save(path)
    else:
        attach(trained.model())[0].save(path)
    (tmp_path / "picture.png").write_bytes(b"")
    for argv in (
        ("-t", "--dataset", data, "--save_dir", tmp_path / "run"),
        ("--predict", tmp_path / "picture.png"),
        ("--export", tmp_path / "out"),
    ):
        message = message_of(run(*argv, "-w", path))
        assert str(path) in message and "that capsulenet.py saved" in message
    assert contents(tmp_path / "run") == {} and not (tmp_path / "out").exists()


def test_model_of_an_older_version_is_tested_like_a_new_one(
    tmp_path, trained, data
):
    """Its layers had another module, its record fewer entries."""
    members = before_the_move(members_of(trained.model_path()))
    record = json.loads(members["run.json"])
    for name in ("border", "labels", "data_sha256", "ema", "batch_size"):
        del record[name]
    for name in ("augment", "routing", "lr_schedule", "explore", "picture"):
        del record["flags"][name]
    record["flags"] |= {"lr_min": 0.0, "ema": 0.0, "batch_size": 100}
    members["run.json"] = json.dumps(record)
    write_members(tmp_path / "old.keras", members)
    figures = [
        command(tmp_path / name, "-t", "-w", path, "--dataset", data).figures()
        for name, path in (
            ("old", tmp_path / "old.keras"),
            ("new", trained.model_path()),
        )
    ]
    assert figures[0].pop("weights") != figures[1].pop("weights")
    assert figures[0] == figures[1] and figures[0]["mistakes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mistakes"), [("v4", 39), ("small", 34)])
def test_committed_models_make_the_errors_of_the_readme(
    tmp_path, name, mistakes
):
    model = Path(__file__).parents[2] / "result" / "mnist" / f"{name}.keras"
    argv = "-t", "-w", model, "--dataset", real_data("mnist")
    figures = command(tmp_path, *argv).figures()
    assert (figures["mistakes"], figures["pictures"]) == (mistakes, 10_000)
