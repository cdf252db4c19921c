"""What a new run does to the folder of an old one."""

import json
import shutil

import pytest
from PIL import Image
from running import command, contents, message_of, train

from capsnet.files import state_sha256
from capsnet.training import callbacks, checkpoints

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.


def stop(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.fixture
def unfinished(tmp_path, trained):
    """A copy of `trained`'s folder, as if it were to have nine epochs."""
    folder = tmp_path / "unfinished"
    shutil.copytree(trained.folder, folder)
    path = folder / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    state["flags"]["epochs"] = 9
    state["state_sha256"] = state_sha256(state)
    path.write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    "owner, name",
    (
        # Before the first of the old run's files is opened, at the first row
        # of the log, and between the first weights and their state.
        (callbacks.Log, "on_train_begin"),
        (callbacks, "keep"),
        (checkpoints, "state_sha256"),
    ),
)
def test_new_run_that_is_stopped_leaves_no_mixture(
    unfinished, data, monkeypatch, owner, name
):
    old = (unfinished / "log.csv").read_bytes()
    (unfinished / "tensorboard" / "train").mkdir(parents=True)
    events = unfinished / "tensorboard" / "train" / "events.out.tfevents.1"
    events.touch()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop)
        run = train(unfinished, data, "-r", 1, "--lam_recon", 0)
    assert "nothing is saved yet" in message_of(run, status=130)
    assert (
        f"Replacing the unfinished run in {unfinished} (4 of 9 epochs done), "
        "with which --resume would have gone on\n"
    ) in run.out
    for old_file in ("run.json", "log.png", "checkpoint/state.json"):
        assert not (unfinished / old_file).exists()
    assert not events.exists()
    # It tells its own record, and there is no other one yet.
    assert (unfinished / "trained_model.keras").exists()
    log = (unfinished / "log.csv").read_bytes()
    assert (log == old) == (name == "on_train_begin")
    message = message_of(command(unfinished, "--resume"))
    assert "found no checkpoint" in message


def test_new_run_that_cannot_start_leaves_the_old_one(unfinished, data):
    before = contents(unfinished)
    run = train(unfinished, data, "--conv_kernel", 99)
    assert "expected a conv_kernel" in message_of(run)
    assert "Replacing" not in run.out
    assert contents(unfinished) == before


def test_new_run_says_that_it_replaces_a_finished_one(
    tmp_path, data, trained, monkeypatch
):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    monkeypatch.setattr(callbacks.Log, "on_train_begin", stop)
    run = train(folder, data, "--epochs", 2, "-r", 1)
    assert run.status == 130
    line = f"Replacing the finished run in {folder} (4 epochs), with its "
    assert f"{line}pictures and pages\n" in run.out
    assert "--resume" not in run.out


def test_new_run_says_which_pictures_it_replaces(
    tmp_path, data, trained, monkeypatch
):
    model = trained.folder / "trained_model.keras"
    folder = tmp_path / "run"
    assert command(folder, "--explore", "-w", model).status == 0
    monkeypatch.setattr(callbacks.Log, "on_train_begin", stop)
    run = train(folder, data)
    assert f"Replacing in {folder}: explore.html\n" in run.out
    (folder / "explore.html").unlink()
    run = train(folder, data)
    assert run.status == 130  # It came as far as to tell.
    assert "Replacing" not in run.out


def test_nothing_of_an_old_model_stays_beside_a_new_one(
    tmp_path, data, trained
):
    folder = tmp_path / "run"
    shutil.copytree(trained.folder, folder)
    model = folder / "trained_model.keras"
    Image.new("L", (17, 17)).save(tmp_path / "a.png")
    picture = tmp_path / "a.png"
    for argv in (["-t", "--digit", 1], ["--explore"], ["--predict", picture]):
        assert command(folder, *argv, "-w", model).status == 0
    tested = {str(path) for path in contents(folder)}
    assert tested - {str(path) for path in contents(trained.folder)} == {
        *("test.json", "test.csv", "confusion.png", "mistakes.png"),
        "real_and_recon.png",
        *("manipulate-1.png", "predictions.csv", "predictions.png"),
        "explore.html",
    }
    (folder / "notes.txt").touch()  # The user's own.
    # The model is the same, and so is what tells of it.
    assert command(folder, "--resume").status == 0
    assert {str(path) for path in contents(folder)} == {*tested, "notes.txt"}
    flags = "--epochs", 1, "-r", 1, "--lam_recon", 0
    assert train(folder, data, *flags).status == 0
    assert {path.name for path in contents(folder)} == {
        *("log.csv", "log.png", "run.json", "trained_model.keras"),
        "batch.png",
        *("epoch-0001.weights.h5", "state.json", "notes.txt"),
    }
