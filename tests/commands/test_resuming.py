"""Runs that were interrupted go on, and end like those that were not."""

import hashlib
import json
import math
import shlex
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from running import (
    command,
    contents,
    message_of,
    run,
    same,
    stopped_in_epoch,
    train,
    weights_of,
)

from capsnet.files import read_state, state_sha256
from capsnet.models.saving import load_model

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, data):
    """A stopped run of four epochs, and its log then."""
    folder = tmp_path_factory.mktemp("runs") / "an interrupted run's"
    stopped = stopped_in_epoch(3, folder, data, "--epochs", 4)
    return stopped, stopped.log()


@pytest.fixture(scope="module")
def resumed(interrupted):
    """Goes on with the very command that the interrupted run printed."""
    advice = message_of(interrupted[0], status=130).split("Go on: ")[1]
    words = shlex.split(advice)
    words = words[words.index("python") + 1 :]
    assert Path(words[0]).name == "capsulenet.py"
    return run(*words[1:], folder=interrupted[0].folder)


@pytest.fixture
def copy(tmp_path, trained):
    """A finished run that the test may change."""
    shutil.copytree(trained.folder, tmp_path / "copy")
    return tmp_path / "copy"


def change_state(folder, change):
    """Changes a checkpoint's state, and makes its digest fit."""
    path = folder / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    change(state)
    state["state_sha256"] = state_sha256(state)
    path.write_text(json.dumps(state))


def test_same_seed_gives_the_same_log(trained, interrupted):
    log = interrupted[1]
    # One row more than there are epochs in the checkpoint.
    assert log["epoch"].tolist() == [0, 1, 2]
    for name, values in trained.log().items():
        assert values[:3].tolist() == log[name].tolist(), name


def test_another_seed_gives_another_log(tmp_path, data, trained):
    log = train(tmp_path, data, "--epochs", 1, "--seed", 1).log()
    for name in ("loss", "capsnet_loss", "decoder_loss"):
        assert log[name][0] != trained.log()[name][0]


def test_resumed_run_is_the_uninterrupted_one(trained, resumed):
    assert resumed.status == 0, resumed.err
    log = (resumed.folder / "log.csv").read_bytes()
    assert log == (trained.folder / "log.csv").read_bytes()
    assert same(weights_of(trained.model()), weights_of(resumed.model()))
    line = "Going on after epoch 2 of 4"
    assert line in resumed.out.splitlines() and line not in trained.out
    # Epochs 1 and 2 were not run again.
    assert "Epoch 2:" not in resumed.out and "Epoch 3:" in resumed.out
    record, expected = resumed.record(), trained.record()
    assert len(record["seconds_per_epoch"]) == 4
    for each in (record, expected):
        for name in ("seconds_per_epoch", "flags"):
            del each[name]
    assert record == expected


def test_resumed_run_has_its_cosine_and_its_average(tmp_path, data):
    flags = "--lr_schedule", "cosine", "--warmup", 1.5, "--ema", 0.9
    flags += "--epochs", 4, "--batch_size", 10, "-r", 1
    never, folder = train(tmp_path / "never", data, *flags), tmp_path / "often"
    assert never.status == 0, never.err
    assert message_of(stopped_in_epoch(3, folder, data, *flags), status=130)
    resumed = command(folder, "--resume")
    assert resumed.status == 0, resumed.err
    log = (folder / "log.csv").read_bytes()
    assert log == (never.folder / "log.csv").read_bytes()
    assert same(weights_of(never.model()), weights_of(resumed.model()))
    # 16 steps, of which 6 warm up: 10 are left for the half wave.
    wave = [(1 + math.cos(math.pi * done)) / 2 for done in (0.2, 0.6, 0.9)]
    found, expected = never.log()["learning_rate"], [1 / 7, 5 / 7, *wave[:2]]
    np.testing.assert_allclose(found, np.multiply(0.001, expected), rtol=1e-5)
    line = "Learning rate 0.000143, in step 7 0.001, in the last step"
    line = f"{line} {0.001 * wave[-1]:.3g}"
    for run_ in (never, resumed):
        assert line in run_.out.splitlines()
        assert "momentum 0.375, not 0.9: a memory of 2 steps, of 16" in run_.out
        assert run_.record()["ema"] == 0.375
    # Nothing is left of the curve for more epochs.
    before = contents(folder)
    message = message_of(command(folder, "--resume", "--epochs", 5))
    assert "cosine of the learning rate ends with the run's 4 epochs" in message
    assert contents(folder) == before
    again = command(folder, "--resume")
    assert "The run is finished: 4 of 4 epochs" in again.out.splitlines()


@pytest.mark.parametrize("kept", (False, True))
def test_stopped_at_its_end_a_run_has_its_own_model_not_an_older_one(
    tmp_path, data, kept
):
    flags = "-r", 1, "--lam_recon", 0, "--epochs", 2
    never = train(tmp_path / "never", data, *flags, "--seed", 7)
    folder = tmp_path / "often"
    older = weights_of(train(folder, data, *flags).model())
    stopped = stopped_in_epoch(2, folder, data, *flags, "--seed", 7, kept=kept)
    assert message_of(stopped, status=130)
    again = command(folder, "--resume")
    assert again.status == 0, again.err
    assert ("Epoch 2:" in again.out) != kept
    found = weights_of(again.model())
    assert same(found, weights_of(never.model())) and not same(found, older)
    assert again.record()["test_error"] == never.record()["test_error"]


def test_run_stopped_at_the_end_of_more_epochs_has_their_model(copy, data):
    flags = "--resume", "--epochs", 5
    assert message_of(
        stopped_in_epoch(5, copy, data, *flags, kept=True), status=130
    )
    before = contents(copy)
    again = command(copy, "--resume")
    assert again.status == 0, again.err
    after = contents(copy)
    model = Path("trained_model.keras")
    assert after[model] == before[model]
    assert load_model(copy / model)[1]["epoch"] == 5


def test_resuming_a_finished_run_says_that_it_is_finished(copy):
    before = contents(copy / "checkpoint")
    (copy / "run.json").unlink()  # As if killed just before it.
    again = command(copy, "--resume")
    assert again.status == 0, again.err
    expected = "The run is finished: 4 of 4 epochs; a larger --epochs goes on"
    assert expected in again.out.splitlines()
    assert "Training on" not in again.out and "Epoch" not in again.out
    assert again.record()["epoch"] == 4
    assert contents(copy / "checkpoint") == before


def test_finished_run_goes_on_to_more_epochs(copy, trained, monkeypatch):
    hashed, digest = [], hashlib.file_digest

    def watch(file, name):
        hashed.append(Path(file.name).suffix)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", watch)
    more = command(copy, "--resume", "--epochs", 5)
    assert more.status == 0, more.err
    # Each file of weights once: hundreds of megabytes for large pictures.
    assert hashed == [".h5", ".h5"]
    log = more.log()
    assert log["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert log["loss"][:4].tolist() == trained.log()["loss"].tolist()
    assert log["learning_rate"][4] == pytest.approx(0.001 * 0.9**4)
    assert more.record()["epoch"] == 5


def test_resume_with_another_flag_is_refused(trained):
    before = contents(trained.folder)
    again = command(trained.folder, "--resume", "--lr", 0.1)
    assert "--lr 0.001, got 0.1" in message_of(again)
    assert contents(trained.folder) == before


def test_resume_under_another_backend_is_refused(copy, monkeypatch):
    backend = keras.backend.backend()
    other = "jax" if backend == "tensorflow" else "tensorflow"
    pytest.importorskip(other)
    change_state(copy, lambda state: state["environment"].update(backend=other))
    before = contents(copy)
    message = message_of(command(copy, "--resume", "--epochs", 5))
    assert f"started with KERAS_BACKEND={other}, got {backend};" in message
    assert f"put KERAS_BACKEND={other} before the command" in message
    assert contents(copy) == before


@pytest.mark.parametrize("recipe, most", (("classic", 100), ("paper", 128)))
def test_batches_of_a_small_set_are_printed_recorded_and_kept(
    tmp_path, data, recipe, most
):
    argv = ["--recipe", recipe, "-r", 1, "--lam_recon", 0, "--epochs", 1]
    first = command(tmp_path, "--dataset", data, *argv)
    assert first.status == 0, first.err
    line = f"Batches of 10, not {most}, for 40 training pictures: 4 steps an"
    assert line in first.out
    assert "on a CPU, in batches of 10\n" in first.out
    record = first.record()
    assert record["batch_size"] == 10
    # As it was given: the flags tell what was asked for.
    assert record["flags"]["batch_size"] == (128 if most == 128 else None)
    state = read_state(tmp_path)
    again = command(tmp_path, "--resume", "--epochs", 2)
    assert again.status == 0, again.err
    assert again.record()["batch_size"] == 10 == state["batch_size"]
    kept = read_state(tmp_path)["flags"]["batch_size"]
    assert kept == record["flags"]["batch_size"]


def test_batch_size_that_is_given_holds_also_for_older_runs(tmp_path, data):
    argv = ["--batch_size", 30, "-r", 1, "--lam_recon", 0, "--epochs", 1]
    first = command(tmp_path, "--dataset", data, *argv)
    assert first.record()["batch_size"] == 30
    assert "Batches of" not in first.out
    # Runs of before recorded only the flag.
    change_state(tmp_path, lambda state: state.pop("batch_size"))
    again = command(tmp_path, "--resume", "--epochs", 2)
    assert again.status == 0, again.err
    assert again.record()["batch_size"] == 30
