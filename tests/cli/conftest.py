"""What the tests of the command line share."""

import json

import pytest

from capsnet.cli.checks import flags_of, parse_args
from capsnet.files import state_sha256


@pytest.fixture
def error_of(capsys):
    """The one line with which a wrong command line ends, at status 2."""

    def run(*argv, **kwargs):
        with pytest.raises(SystemExit) as caught:
            parse_args(list(argv), **kwargs)
        printed, message = capsys.readouterr()
        assert (caught.value.code, printed) == (2, "")
        assert message.endswith("\n") and message.count("\n") == 1
        return message

    return run


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of files that are there, as far as the flags are concerned."""
    monkeypatch.chdir(tmp_path)
    for name in ("m.keras", "n.keras", "w.h5", "a.png"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def started(here):
    """Writes the checkpoint of a run with flags; returns its folder."""

    def write(*argv, **changes):
        flags = {**flags_of(parse_args(list(argv))), **changes}
        weights = here / "run" / "checkpoint" / "epoch-0002.weights.h5"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(b"")
        empty = "e3b0c44298fc1c149afbf4c8996fb924"
        state = {
            "epochs_done": 2,
            "flags": flags,
            "file": weights.name,
            "sha256": empty + "27ae41e4649b934ca495991b7852b855",
            "environment": {"backend": "tensorflow"},
        }
        state["state_sha256"] = state_sha256(state)
        (weights.parent / "state.json").write_text(json.dumps(state))
        return ["--resume", "--save_dir", str(here / "run")]

    return write
