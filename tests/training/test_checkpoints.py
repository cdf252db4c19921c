"""Tests of checkpoints.py: a run's folder at any moment."""

import json
import os

import keras
import numpy as np
import pytest

from capsnet.files import OF_MODEL, read_state
from capsnet.messages import UserError
from capsnet.training import checkpoints

LOG = ["epoch,loss,test_error\n", "0,0.5,9\n", "1,0.25,8\n", "2,0.125,7\n"]


def dense_model(units=4):
    """A small compiled model, and a step that changes it."""
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(units, name="dense")]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    x = np.arange(6, dtype="float32").reshape(2, 3)

    def step():
        return model.train_on_batch(x, np.ones((2, units), "float32"))

    return model, step


def same(model, arrays):
    return all(map(np.array_equal, model.get_weights(), arrays))


@pytest.fixture
def saved(tmp_path):
    """A run's folder after one epoch, its model and the step that trains."""
    model, step = dense_model()
    step()
    checkpoints.keep(tmp_path, model, {"epochs_done": 1, "flags": {}})
    (tmp_path / "log.csv").write_text("".join(LOG[:2]))
    return tmp_path, model, step


def test_checkpoint_brings_weights_and_optimizer_back(saved):
    folder, model, step = saved
    other, other_step = dense_model()
    checkpoints.go_on(folder, other, read_state(folder))
    # Adam's moments and step count are there, or the paths would part.
    for _ in range(3):
        assert step() == other_step()
    assert same(other, model.get_weights())


def test_checkpoint_keeps_one_file_of_weights(saved):
    folder, model, step = saved
    step()
    (folder / "checkpoint" / "best.pt").write_bytes(b"the user's")
    checkpoints.keep(folder, model, {"epochs_done": 2, "flags": {"x": "y"}})
    # The older checkpoint is gone, and what is not ours is left alone.
    ours = ["epoch-0002.weights.h5", "state.json"]
    assert sorted(os.listdir(folder / "checkpoint")) == ["best.pt", *ours]
    state = read_state(folder)
    assert state["file"] == "epoch-0002.weights.h5"
    assert (state["epochs_done"], state["flags"]) == (2, {"x": "y"})


def test_crash_before_the_state_leaves_the_old_checkpoint(saved):
    folder, model, step = saved
    before = model.get_weights()
    step()
    with pytest.raises(TypeError):  # JSON cannot hold it.
        state = {"epochs_done": 2, "flags": {}, "x": object()}
        checkpoints.keep(folder, model, state)
    assert not same(model, before)
    state = read_state(folder)
    assert state["epochs_done"] == 1
    checkpoints.go_on(folder, model, state)
    assert same(model, before)


def test_checkpoint_of_another_model_is_refused(saved):
    folder, _, _ = saved
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoints.go_on(folder, dense_model(5)[0], read_state(folder))


ROWS = [{"epoch": n, "loss": 0.5, "test_error": 0.1 + n} for n in range(2)]


@pytest.mark.parametrize("content", (None, "", "".join(LOG), "edited"))
def test_log_that_is_lost_comes_from_the_checkpoint(saved, content):
    folder, model, _ = saved
    checkpoints.keep(
        folder, model, {"epochs_done": 2, "flags": {}, "log": ROWS}
    )
    (folder / "log.csv").unlink()
    if content is not None:
        (folder / "log.csv").write_text(content)
    assert checkpoints.go_on(folder, model, read_state(folder)) == ROWS
    expected = "epoch,loss,test_error\n0,0.5,0.1\n1,0.5,1.1\n"
    assert (folder / "log.csv").read_text() == expected


@pytest.mark.parametrize("rows", (1, 2, 3))
def test_log_is_cut_to_the_epochs_of_the_checkpoint(saved, rows):
    folder, model, _ = saved
    (folder / "log.csv").write_text("".join(LOG[: rows + 1]))
    checkpoints.go_on(folder, model, read_state(folder))
    assert (folder / "log.csv").read_text() == "".join(LOG[:2])


@pytest.mark.parametrize("content", (None, "", LOG[0]))
def test_log_with_too_few_rows_is_refused(saved, content):
    folder, model, _ = saved
    (folder / "log.csv").unlink()
    if content is not None:
        (folder / "log.csv").write_text(content)
    with pytest.raises(UserError, match="expected rows of epochs 1 to 1"):
        checkpoints.go_on(folder, model, read_state(folder))


def test_model_of_the_best_epoch_has_to_be_there(saved):
    folder, model, _ = saved
    best = {"score": [0.5, -1.0], "epoch": 1, "test_error": 9.0}
    checkpoints.keep(folder, model, {**read_state(folder), "best": best})
    with pytest.raises(UserError, match="the model of epoch 1, the best"):
        checkpoints.go_on(folder, model, read_state(folder))
    (folder / "trained_model.keras").touch()
    checkpoints.go_on(folder, model, read_state(folder))


def test_new_run_removes_what_tells_of_the_old_one(saved):
    folder, _, _ = saved
    kept = ["trained_model.keras", "test.json", "notes.txt", "log.csv"]
    for name in ("run.json", "log.png", *kept):
        (folder / name).touch()
    checkpoints.begin(folder)
    assert sorted(os.listdir(folder)) == sorted(["checkpoint", *kept])
    with pytest.raises(UserError, match="no checkpoint"):
        read_state(folder)
    # Those beside it go with the old model.
    assert "test.json" in OF_MODEL


def test_finished_run_is_drawn_and_recorded(saved):
    folder, _, _ = saved
    checkpoints.finish(folder, {"test_error": 9.0})
    assert json.loads((folder / "run.json").read_text()) == {"test_error": 9.0}
    assert (folder / "log.png").read_bytes().startswith(b"\x89PNG")
