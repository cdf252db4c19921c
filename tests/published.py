"""Runs as capsulenet.py and the runner leave them, for the tests of tables."""

import json
import shlex

import runner

ENVIRONMENT = {
    "python": "3",
    "versions": {},
    "backend": "tensorflow",
    "system": "Linux x86_64",
    "processor": "Some CPU",
    "cores": 2,
}


def args_of(study, *argv):
    return runner.parse(study, "", list(argv))


def record_of(study, row, seed, epochs, error, *extra, **changes):
    """The `run.json` that capsulenet.py leaves."""
    argv = ["--rows", row, "--epochs", str(epochs)]
    argv.append(f"--extra={shlex.join(extra)}")
    argv = runner.flags_for(study, row, seed, args_of(study, *argv))
    flags = dict(runner.recorded(*argv, "--save_dir", "/home/someone/work"))
    flags |= {
        name: changes.pop(name) for name in list(changes) if name in flags
    }
    return {
        "flags": flags,
        "environment": {**ENVIRONMENT, **changes},
        "epoch": epochs,
        "test_error": error,
        "seconds_per_epoch": [10.0 + seed] * epochs,
    }


def write_log(folder, errors, **columns):
    folder.mkdir(parents=True, exist_ok=True)
    columns = {"loss": 0.1, **columns}
    rows = [
        ",".join(map(str, [epoch, *columns.values(), error]))
        for epoch, error in enumerate(errors)
    ]
    header = ",".join(["epoch", *columns, "test_error"])
    text = "".join(f"{row}\r\n" for row in [header, *rows])
    (folder / "log.csv").write_bytes(text.encode())


def write_run(folder, record, **columns):
    """A finished run as capsulenet.py leaves it."""
    epochs, last = record["epoch"], record["test_error"]
    write_log(folder, [last + epochs - 1 - e for e in range(epochs)], **columns)
    (folder / "run.json").write_text(json.dumps(record))


def add(out, study, row, seed, *args, name=None, **changes):
    """A finished run in `out`."""
    folder = out / study.name / (name or f"{row}-{seed}")
    write_run(folder, record_of(study, row, seed, *args, **changes))


def cells_of(text, row=""):
    """The cells of the table's lines that begin with a row's name."""
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and "---" not in line
    ]
    return [line for line in cells if line[0].split(" ")[0].startswith(row)]


def report_of(study, out):
    study.report(runner.read_runs(study, out), out)
    return (out / "README.md").read_text()
