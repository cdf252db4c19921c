"""Tests of files.py: what is on the disk is whole, or refused."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from capsnet import files
from capsnet.messages import UserError

ROOT = Path(__file__).parents[1]
# Each is killed in the middle.
HOLDER = """
import sys, time
from capsnet import files
with files.locked(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""
WRITER = """
import sys, time
from capsnet import files
with files.whole_file(sys.argv[1]) as temporary:
    open(temporary, "w").write("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def killed(code, path):
    """A process that is killed when it is ready; yields its number before."""
    argv = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def write_checkpoint(folder, content=b"weights", **changes):
    """A checkpoint after the first epoch; returns the state's path."""
    (folder / "checkpoint").mkdir()
    weights = folder / "checkpoint" / "epoch-0001.weights.h5"
    weights.write_bytes(content)
    state = {"epochs_done": 1, "flags": {"seed": 3}, "file": weights.name}
    state |= {"sha256": files.sha256(weights), **changes}
    state["state_sha256"] = files.state_sha256(state)
    path = folder / "checkpoint" / "state.json"
    path.write_text(json.dumps(state))
    return path


def test_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "new" / "figures.json"
    with files.whole_file(path) as temporary:
        assert temporary.endswith(".json")
        Path(temporary).write_text("complete")
        assert not path.exists()
    assert path.read_text() == "complete"
    assert os.listdir(path.parent) == ["figures.json"]


@pytest.mark.parametrize(
    "error, expected",
    ((OSError(errno.ENOSPC, ""), UserError), (KeyError(),) * 2),
)
def test_failing_writer_leaves_the_old_file(tmp_path, error, expected):
    path = tmp_path / "figures.json"
    files.write_json(path, {"accuracy": 0.5})
    kind = expected if isinstance(expected, type) else type(expected)
    with pytest.raises(kind) as caught:
        with files.whole_file(path) as temporary:
            Path(temporary).write_text("ha")
            raise error
    if kind is UserError:
        assert str(path) in str(caught.value)
        assert os.strerror(errno.ENOSPC) in str(caught.value)
    with pytest.raises(TypeError):
        files.write_json(path, {"accuracy": object()})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert os.listdir(tmp_path) == ["figures.json"]


def test_only_what_matches_is_removed(tmp_path):
    for name in ("a[1]/test.json", "a[1]/manipulate-5.png", "a[1]/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files.remove(tmp_path / "a[1]", files.OF_MODEL)
    assert os.listdir(tmp_path / "a[1]") == ["notes.txt"]
    (tmp_path / "test.json").mkdir()
    with pytest.raises(UserError, match="cannot write .*test.json"):
        files.remove(tmp_path, files.OF_MODEL)


def test_second_run_in_a_folder_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "run"
    for pid in killed(HOLDER, folder):
        with pytest.raises(UserError, match="another run .* --save_dir"):
            with files.locked(folder):
                pass
        with files.locked(tmp_path / "other"):
            pass
    with files.locked(folder):
        pass


def test_file_system_without_locks_can_be_used(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    half = tmp_path / ".7-log.csv"  # Perhaps of a run that is writing it.
    half.write_text("")
    with files.locked(tmp_path):
        assert half.exists()


def test_what_killed_runs_left_half_written_is_removed(tmp_path):
    names = [
        *("log.csv", "log.png", "run.json", "trained_model.keras"),
        *("test.json", "confusion.png", "mistakes.png", "real_and_recon.png"),
        *("manipulate-a-b.png", "predictions.csv", "predictions.png"),
    ]
    inner = ["epoch-0012.weights.h5", "state.json"]
    (tmp_path / "checkpoint").mkdir()
    for name in (*names, *(f"checkpoint/{name}" for name in inner)):
        path = tmp_path / name
        for pid in killed(WRITER, path) if "n.png" in name else (12345,):
            (path.parent / f".{pid}-{path.name}").touch()
        path.touch()
    (tmp_path / ".7-notes.txt").touch()
    with files.locked(tmp_path):
        kept = [".7-notes.txt", ".lock", "checkpoint", *names]
        assert sorted(os.listdir(tmp_path)) == sorted(kept)
        assert sorted(os.listdir(tmp_path / "checkpoint")) == inner


def test_state_is_what_was_written(tmp_path):
    path = write_checkpoint(tmp_path)
    assert files.read_state(tmp_path) == json.loads(path.read_text())


def test_folder_without_a_checkpoint_tells_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .* without --resume"):
        files.read_state(tmp_path)


@pytest.mark.parametrize(
    "damage, expected",
    (
        (lambda path: path.write_text(""), "cannot read"),
        (lambda path: path.write_text("[]"), "cannot read"),
        (lambda path: path.write_text('{"file": "x"}'), "cannot read"),
        (lambda path: path.write_text("[" * 100_000), "cannot read"),
        (
            lambda path: path.write_text(path.read_text().replace("3", "4", 1)),
            "state.json' is damaged",
        ),
        (
            lambda path: (path.parent / "epoch-0001.weights.h5").write_text(""),
            "epoch-0001.weights.h5' is damaged",
        ),
        (
            lambda path: (path.parent / "epoch-0001.weights.h5").unlink(),
            "cannot read",
        ),
    ),
)
def test_damaged_checkpoint_is_refused(tmp_path, damage, expected):
    damage(write_checkpoint(tmp_path))
    with pytest.raises(UserError) as caught:
        files.read_state(tmp_path)
    assert expected in str(caught.value)
    assert "without --resume" in str(caught.value)


def test_checkpoint_names_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"weights")
    write_checkpoint(tmp_path, file="../secret")
    with pytest.raises(UserError, match="cannot read"):
        files.read_state(tmp_path)
