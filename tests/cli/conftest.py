"""What the tests of the command line share."""

import pytest

from capsnet.cli.checks import parse_args


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
