"""What surrounds a command: moved pictures, Keras's settings, backends."""

import json
from pathlib import Path

import pytest

from capsnet.cli.checks import parse_args
from capsnet.files import state_sha256


def test_pictures_of_a_resumed_run_may_have_been_moved(started, error_of, here):
    resume = started("--epochs", "5", "--dataset", "a.npz")
    message = error_of(*resume)
    assert f"pictures in {str(here / 'a.npz')!r} are not there" in message
    assert "name the place with --dataset" in message
    # An older run has no digest to compare with.
    assert "--resume: the run was started with" in error_of(
        *resume, "--dataset", "b.npz"
    )
    state = Path(resume[-1], "checkpoint", "state.json")
    content = json.loads(state.read_text()) | {"data_sha256": "00"}
    content["state_sha256"] = state_sha256(content)
    state.write_text(json.dumps(content))
    assert parse_args([*resume, "--dataset", "b.npz"]).dataset == "b.npz"
    (here / "a.npz").touch()
    assert parse_args(resume).dataset == str(here / "a.npz")


def test_run_of_a_program_is_not_resumed_by_the_command(started, error_of):
    resume = started()
    state = Path(resume[-1], "checkpoint", "state.json")
    content = json.loads(state.read_text())
    del content["flags"]
    content["state_sha256"] = state_sha256(content)
    state.write_text(json.dumps(content))
    assert "was started by a program" in error_of(*resume)


@pytest.mark.parametrize(
    "content, expected",
    (
        ('{"floatx": "int8"}', "floatx expects float32, float16, float64, got"),
        ('{"image_data_format": 1}', "expects channels_last, channels_first,"),
        ("[]", "expects an object"),
        ('{"backend": "pytorch"}', "tensorflow, jax, torch, got 'pytorch'"),
    ),
)
def test_settings_that_keras_refuses_are_told(
    error_of, tmp_path, monkeypatch, content, expected
):
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    (tmp_path / "keras.json").write_text(content)
    assert expected in error_of()


@pytest.mark.parametrize("name", ("pytorch", "Jax", "tf", "numpy", "openvino"))
def test_other_backends_are_refused_with_the_three_that_work(
    error_of, monkeypatch, name
):
    monkeypatch.setenv("KERAS_BACKEND", name)
    expected = f"KERAS_BACKEND expects tensorflow, jax, torch, got {name!r}"
    assert expected in error_of()


def test_export_does_not_replace_the_current_folder(
    here, error_of, monkeypatch
):
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    message = error_of("--export", ".", "-w", "../m.keras")
    assert "expects a new or empty folder, got '.'" in message
    (here / "empty" / "inner").mkdir()
    assert parse_args(["--export", "inner", "-w", "../m.keras"])
