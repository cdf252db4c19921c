"""Runs that go on elsewhere: with moved pictures, a lost log, other classes."""

import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import write_bars
from running import (
    command,
    contents,
    message_of,
    same,
    stopped_in_epoch,
    train,
    weights_of,
)

pytestmark = pytest.mark.slow  # Seconds each.

QUICK = ("-r", 1, "--lam_recon", 0)


@pytest.fixture(scope="module")
def half(tmp_path_factory, data):
    """A run of two epochs that was stopped after one; its data set."""
    folder = tmp_path_factory.mktemp("half")
    path = shutil.copy(data, folder / "first.npz")
    stopped = stopped_in_epoch(2, folder / "run", path, *QUICK, "--epochs", 2)
    assert message_of(stopped, status=130)
    return folder


@pytest.fixture
def copy(half, tmp_path):
    """A copy of it, from where the data set is gone."""
    shutil.copytree(half / "run", tmp_path / "run")
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(half / "first.npz", moved / "second.npz")
    return tmp_path / "run", moved / "second.npz"


def change(path):
    """Gives some training pictures another label."""
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["y_train"][:9] = (arrays["y_train"][:9] + 1) % 3
    np.savez(path, **arrays)


def test_run_goes_on_with_pictures_that_were_moved(copy, half):
    folder, path = copy
    first = half / "first.npz"
    hidden = first.rename(half / "hidden.npz")
    try:
        message = message_of(command(folder, "--resume"))
        assert f"{str(first)!r} are not there" in message
        assert "name the place with --dataset" in message
        done = command(folder, "--resume", "--dataset", path)
    finally:
        hidden.rename(first)
    assert done.status == 0, done.err
    assert "changed" not in done.out
    assert done.record()["flags"]["dataset"] == str(path)
    assert done.log()["epoch"].tolist() == [0, 1]
    never = train(half / "never", first, *QUICK, "--epochs", 2)
    assert (folder / "log.csv").read_bytes() == (
        never.folder / "log.csv"
    ).read_bytes()
    assert same(weights_of(done.model()), weights_of(never.model()))
    assert done.record()["data_sha256"] == never.record()["data_sha256"]


def test_other_pictures_are_not_taken_for_those_of_the_run(copy):
    folder, path = copy
    change(path)
    before = contents(folder)
    message = message_of(command(folder, "--resume", "--dataset", path))
    assert f"got {str(path)!r}, which holds others" in message
    assert contents(folder) == before


def test_pictures_that_changed_under_a_run_are_noticed(copy, half):
    folder, path = copy
    first = half / "first.npz"
    content = first.read_bytes()
    change(first)
    try:
        done = command(folder, "--resume")
    finally:
        first.write_bytes(content)
    assert done.status == 0, done.err
    assert "Warning: the data set has changed since the run began" in done.out


def test_lost_log_loses_nothing(tmp_path, trained):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    log = (folder / "log.csv").read_bytes()
    for spoil in (Path.unlink, lambda path: path.write_text("edited")):
        spoil(folder / "log.csv")
        (folder / "trained_model.keras").unlink()
        done = command(folder, "--resume")
        assert done.status == 0, done.err
        assert (folder / "log.csv").read_bytes() == log
        assert done.record()["test_error"] == trained.record()["test_error"]
        assert same(weights_of(done.model()), weights_of(trained.model()))


def test_best_epoch_that_is_gone_is_told(tmp_path, plain):
    folder = tmp_path / "run"
    shutil.copytree(plain.folder, folder)
    (folder / "trained_model.keras").unlink()
    message = message_of(command(folder, "--resume"))
    assert "expected the model of epoch 2, the best one so far" in message


def test_resumed_baseline_draws_the_same_dropout(tmp_path, data):
    flags = "--model", "baseline", "--epochs", 2
    never = train(tmp_path / "never", data, *flags)
    often = tmp_path / "often"
    assert message_of(stopped_in_epoch(2, often, data, *flags), status=130)
    keras.utils.clear_session()
    done = command(often, "--resume")
    assert done.status == 0, done.err
    log = (often / "log.csv").read_bytes()
    assert log == (never.folder / "log.csv").read_bytes()
    assert same(weights_of(done.model()), weights_of(never.model()))


def test_training_starts_from_a_model_of_other_classes(tmp_path, trained):
    path = write_bars(tmp_path / "five.npz", n_class=5)
    flags = "-r", 1, "--epochs", 1, "-w", trained.model_path()
    done = train(tmp_path / "run", path, *flags)
    assert done.status == 0, done.err
    line = (
        f"Starting from {trained.model_path()}, but for layers that do not "
        "fit, which begin anew: digitcaps, dense1"
    )
    assert line in done.out.splitlines() and "Not as in" not in done.out
    assert done.model().output["capsnet"].shape == (None, 5)


def test_start_with_another_network_is_told(tmp_path, data, trained):
    flags = *QUICK, "--epochs", 1, "--primary_scale", 2
    done = train(tmp_path, data, *flags, "-w", trained.model_path())
    assert done.status == 0, done.err
    line = f"Not as in {trained.model_path()}: primarycap's scale 1.0 (here 2.0"
    assert line in done.out


def test_start_with_another_kind_names_the_layers_it_lacks(
    tmp_path, data, trained
):
    flags = "--model", "baseline", "--epochs", 1, "-w", trained.model_path()
    done = train(tmp_path, data, *flags)
    assert done.status == 0, done.err
    lacking = "primarycap (not here), digitcaps (not here), decoder (not here)"
    line = f"Not as in {trained.model_path()}: {lacking}. For the same network"
    assert line in done.out


def test_interrupted_continuation_is_told_its_flags(copy):
    folder, path = copy
    stopped = stopped_in_epoch(2, folder, path, "--resume", "--epochs", 9)
    advice = shlex.split(message_of(stopped, status=130).split("Go on: ")[1])
    flags = ["--dataset", str(path), "--epochs", "9"]
    assert advice[-7:] == ["--resume", "--save_dir", str(folder), *flags]


def test_run_goes_on_without_the_model_that_it_started_from(
    tmp_path, data, trained
):
    start = shutil.copy(trained.model_path(), tmp_path / "start.keras")
    flags = *QUICK, "--epochs", 1, "-w", start
    folder = tmp_path / "run"
    assert train(folder, data, *flags).status == 0
    start.unlink()
    done = command(folder, "--resume", "--epochs", 2)
    assert done.status == 0, done.err
    assert "Starting from" not in done.out
    assert done.log()["epoch"].tolist() == [0, 1]
