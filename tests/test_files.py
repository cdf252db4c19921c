"""Tests of files.py: what is on the disk is whole, or refused."""

import contextlib
import errno
import json
import os
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


@contextlib.contextmanager
def killed(code, path):
    """Within it a process is at work on a path; yields its number."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


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


def test_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "figures.json"
    files.write_json(path, {"accuracy": 0.5})
    expected = f"figures.json' .*{os.strerror(errno.ENOSPC)}.*--save_dir"
    with pytest.raises(UserError, match=expected):
        with files.whole_file(path) as temporary:
            Path(temporary).write_text("ha")
            raise OSError(errno.ENOSPC, "")
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
    with killed(HOLDER, folder):
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
    names = (
        "log.csv log.png run.json trained_model.keras test.json confusion.png "
        "mistakes.png real_and_recon.png manipulate-a-b.png predictions.csv "
        "predictions.png checkpoint/epoch-0012.weights.h5 checkpoint/state.json"
    ).split()
    kept = [".7-notes.txt", *names]
    (tmp_path / "checkpoint").mkdir()
    for name in kept:
        path = tmp_path / name
        path.touch()
        (path.parent / f".12345-{path.name}").touch()
    (tmp_path / ".12345-.7-notes.txt").unlink()
    with killed(WRITER, tmp_path / "run.json") as pid:
        assert (tmp_path / f".{pid}-run.json").exists()
    with files.locked(tmp_path):
        found = filter(Path.is_file, tmp_path.rglob("*"))
        found = {path.relative_to(tmp_path).as_posix() for path in found}
        assert found == {".lock", *kept}


def test_what_killed_writers_left_goes_with_the_next_file(tmp_path):
    """Of any name, also within folders; what lives or is another's stays."""
    path = tmp_path / "small.keras"
    with killed(WRITER, path) as gone:
        assert (tmp_path / f".{gone}-small.keras").exists()
    with killed(WRITER, path) as alive:
        assert not (tmp_path / f".{gone}-small.keras").exists()
        for name in (f".{gone}-served", f".{gone}-.{gone}-small.keras"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "weights").touch()
        for name in (".notes-small.keras", f".{gone}-small.keras"):
            (tmp_path / name).touch()
        files.write_text(path, "whole")
        found = sorted(os.listdir(tmp_path))
    kept = [f".{gone}-served", ".notes-small.keras", f".{alive}-small.keras"]
    assert found == sorted([*kept, "small.keras"])
    files.beside(tmp_path / "served")
    assert not (tmp_path / f".{gone}-served").exists()


def test_longest_name_of_a_file_can_be_written(tmp_path):
    for name in ("n" * 250 + ".json", "\u732b" * 83 + ".json"):
        files.write_text(tmp_path / name, "whole")
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()


def test_state_is_what_was_written(tmp_path):
    path = write_checkpoint(tmp_path)
    assert files.read_state(tmp_path) == json.loads(path.read_text())


def test_folder_without_a_checkpoint_tells_what_to_do(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in .* without --resume"):
        files.read_state(tmp_path)


@pytest.mark.parametrize(
    "name, content, expected",
    (
        ("state.json", "", "cannot read"),
        ("state.json", "[]", "cannot read"),
        ("state.json", '{"file": "x"}', "cannot read"),
        ("state.json", "[" * 100_000, "cannot read"),
        ("state.json", None, "state.json' is damaged"),
        ("epoch-0001.weights.h5", "other", "weights.h5' is damaged"),
        ("epoch-0001.weights.h5", None, "cannot read"),
    ),
)
def test_damaged_checkpoint_is_refused(tmp_path, name, content, expected):
    state = write_checkpoint(tmp_path)
    path = state.parent / name
    if content is None and path == state:  # Another seed.
        content = state.read_text().replace("3", "4", 1)
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="without --resume") as caught:
        files.read_state(tmp_path)
    assert expected in str(caught.value)


def test_checkpoint_names_no_file_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"weights")
    write_checkpoint(tmp_path, file="../secret")
    with pytest.raises(UserError, match="cannot read"):
        files.read_state(tmp_path)
