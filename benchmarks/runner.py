"""Rows of a table x seeds, trained one after the other by capsulenet.py.

`mnist.py` and `differences.py` are each a `Study`: rows, each of which is some
flags. A run is `python capsulenet.py` in a folder of its own,
`--work_dir/ROW-SEED-DIGEST`, where its checkpoint and its model stay; the
digest is that of the flags, so that runs of other flags or epochs never meet.
It may be interrupted or killed at any time, which costs an epoch at most: the
same command goes on where there is a checkpoint, and passes over what is done.
`timeout 9m python benchmarks/mnist.py ...` therefore trains in pieces.

Published in `--out`, every file whole or not at all: STUDY/ROW-SEED-DIGEST/
with log.csv as far as the run is, and run.json when it is done, without the
machine's paths and with the `commit` of the code; and the table in README.md.

Exit status: 0, 1 when a run failed, 2 for what the user can mend, 130 after
SIGINT or SIGTERM. Linux and macOS.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from processes import ROOT, add_run_flags, parse_run_flags

from capsnet.cli.checks import flags_of, parse_args
from capsnet.cli.options import build_parser
from capsnet.cli.parser import Parser
from capsnet.files import split_pairs, whole_file, write_json
from capsnet.messages import UserError, fail
from capsnet.training.recipes import DEFAULT_BATCH_SIZE

# `--extra` may not set these: the runner does, or it would break the rules.
RESERVED = {"seed", "epochs", "dataset", "save_dir", "resume", "testing"}
RESERVED |= {"digit", "weights", "val_fraction", "predict", "export"}
# These make no difference to a run's result.
INDIFFERENT = RESERVED - {"epochs", "dataset"} | {"debug"}
# Nor these to the seconds of an epoch.
OF_RATE = {"epochs", "lr", "lr_schedule", "lr_decay", "lr_decay_steps"}
OF_RATE |= {"warmup"}
POLL_SECONDS = 1


@dataclasses.dataclass(frozen=True)
class Study:
    """Rows of a table, and how they become one."""

    name: str  # Of its folder in `--out`, and of its place in README.md there.
    rows: dict  # The flags of each row.
    epochs: int  # Default of `--epochs`.
    report: Callable  # Function of the runs and of `--out`; writes.
    usual: tuple = ()  # Flags of all rows, which `--extra` may replace.


@dataclasses.dataclass(frozen=True)
class Run:
    """A published run; one that is not done has no record."""

    study: Study
    folder: Path
    row: str
    seed: int
    record: dict | None
    log: list

    def further_flags(self):
        """The flags in which it differs from its row, as one would type."""
        row = self.study.rows[self.row]
        usual = comparable(recorded(*row, *self.study.usual))
        words = []
        for name, value in comparable(self.record["flags"]).items():
            if name != "epochs" and value != usual[name]:
                values = value if isinstance(value, list) else [value]
                # What is true or false takes no value.
                values = [] if isinstance(usual[name], bool) else values
                words += [f"--{name}", *map(str, values)]
        return words

    def pace(self):
        """The flags that the seconds of an epoch depend on."""
        flags = comparable(self.record["flags"])
        return {name: flags[name] for name in flags.keys() - OF_RATE}


@functools.cache
def recorded(*argv):
    """The flags that `run.json` will hold of a training's command line."""
    return flags_of(parse_args(list(argv)))


def without_path(value):
    """The last part of a path, `pairs:` before it; other values as they are."""
    is_path = isinstance(value, str) and ("/" in value or os.sep in value)
    if not is_path:
        return value
    pairs, inner = split_pairs(value)
    return pairs + Path(inner).name


def comparable(flags):
    """Recorded flags without what makes no difference, defaults filled in.

    Flags that capsulenet.py no longer has are passed over.
    """
    flags = {name: flags.get(name, usual) for name, usual in recorded().items()}
    flags["batch_size"] = flags["batch_size"] or DEFAULT_BATCH_SIZE
    return {
        name: without_path(value)
        for name, value in sorted(flags.items())
        if name not in INDIFFERENT
    }


def folder_name(row, seed, flags):
    """`v4-paper-0-1f2e3d4c`: its end stands for the flags.

    New flags of capsulenet.py change no name, since defaults do not count.
    """
    usual = comparable(recorded())
    chosen = {name: flags[name] for name in flags if flags[name] != usual[name]}
    text = json.dumps(chosen, sort_keys=True)
    return f"{row}-{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def read_record(path):
    """The content of a `run.json`, or None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["flags"]["epochs"] += 0
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read {str(path)!r} ({error}); restore or remove it"
        ) from error
    return record


def read_log(path):
    """The rows of a `log.csv`, each a dictionary of floats."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def read_runs(study, out):
    """All published runs, in the order of the rows and seeds."""
    name = re.compile(rf"({'|'.join(study.rows)})-(\d+)(-[0-9a-f]{{8}})?")
    runs = []
    for folder in sorted((out / study.name).glob("*/")):
        match = name.fullmatch(folder.name)
        if match and (folder / "log.csv").exists():
            row, seed = match[1], int(match[2])
            found = read_record(folder / "run.json")
            log = read_log(folder / "log.csv")
            runs.append(Run(study, folder, row, seed, found, log))
    rank = list(study.rows).index
    return sorted(runs, key=lambda run: (rank(run.row), run.seed))


def lines_of(runs):
    """The finished runs; those of equal row, flags and epochs together."""
    lines = {}
    for run in runs:
        if run.record:
            key = run.row, str(comparable(run.record["flags"]))
            lines.setdefault(key, []).append(run)
    return list(lines.values())


def mean_of(errors):
    """Their mean as text, with one more digit where it is of several runs."""
    return f"{statistics.mean(errors):.{2 if len(errors) == 1 else 3}f}"


@functools.cache
def commit():
    """The commit of the code, or None outside a git checkout."""
    # A repository around the folder would be another one.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(
            command, env=environment, stderr=subprocess.DEVNULL, text=True
        ).strip()
    return None


def collect(folder, target):
    """Publishes in `target` what the run in `folder` has written so far."""
    try:
        log = (folder / "log.csv").read_bytes()
    except FileNotFoundError:
        return
    log = log[: log.rfind(b"\n") + 1]  # Whole lines.
    path = target / "log.csv"
    if log and not (path.exists() and path.read_bytes() == log):
        with whole_file(path) as temporary:
            Path(temporary).write_bytes(log)
    if record := read_record(folder / "run.json"):
        flags = {key: without_path(v) for key, v in record["flags"].items()}
        flags["save_dir"] = "/".join(["result", *target.parts[-2:]])
        record = {**record, "flags": flags, "commit": commit()}
        write_json(target / "run.json", record)


def train(folder, argv, watch):
    """Runs capsulenet.py in `folder`; returns its exit status.

    Args:
        folder: Where the run keeps its checkpoint and its model.
        argv: Its command line, but for the folder and `--resume`.
        watch: Function that is called now and then.
    """
    command = [sys.executable, str(ROOT / "capsulenet.py"), *argv]
    command += ["--save_dir", str(folder)]
    if (folder / "checkpoint" / "state.json").exists():
        command.append("--resume")
    child = subprocess.Popen(command)
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(POLL_SECONDS)
            watch()
    finally:
        child.terminate()  # Its last checkpoint survives.
        child.wait()
        watch()


def flags_for(study, row, seed, args):
    """The command line of a run, but for its folder and `--resume`."""
    flags = [*study.rows[row], *study.usual, *args.extra]
    flags += ["--dataset", args.dataset]
    return [*flags, "--epochs", str(args.epochs), "--seed", str(seed)]


def run_one(study, row, seed, args):
    """Trains a run unless it is done; returns an exit status."""
    argv = flags_for(study, row, seed, args)
    flags = comparable(recorded(*argv))
    name = folder_name(row, seed, flags)
    folder, target = args.work_dir / name, args.out / study.name / name
    done = [
        run
        for run in read_runs(study, args.out)
        if run.record and (run.row, run.seed) == (row, seed)
        if comparable(run.record["flags"]) == flags
    ]
    if done or (folder / "run.json").exists():
        print(f"{done[0].folder.name if done else name}: done before")
        if not done:
            collect(folder, target)
        return 0
    print(f"{name}: {shlex.join(argv)}", flush=True)
    status = train(folder, argv, functools.partial(collect, folder, target))
    if status:
        print(f"{name} ended with status {status}", file=sys.stderr)
        return 2 if status == 2 else 1
    study.report(read_runs(study, args.out), args.out)
    return 0


def parse(study, description, argv=None):
    """Parses the flags of a study's script, `description` its manual."""
    parser = Parser(description=description)
    add = add_run_flags(parser, study.name, study.rows, study.epochs)
    text = 'further flags of all runs, in one word: --extra="--lr_decay 0.8"'
    add("--extra", None, text, type=shlex.split, metavar="FLAGS")
    args = parse_run_flags(parser, study.rows, argv)
    args.extra = args.extra or []
    for row in args.rows:
        _, given = build_parser().parse(args.extra)
        _, of_row = build_parser().parse(study.rows[row])
        if clash := given.keys() & (RESERVED | of_row.keys()):
            parser.error(
                f"--extra cannot set --{min(clash)}: row {row} or the runner "
                "does, or it would break the rules of the table"
            )
    return args


def interrupt(*_):
    """Ends the runner in order, which a second signal would disturb."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def work(study, args):
    """Trains what is missing unless asked not to, and reports."""
    statuses = [0]
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    try:
        for seed, row in itertools.product(seeds, args.rows):
            if not args.report and statuses[-1] != 2:
                statuses.append(run_one(study, row, seed, args))
    finally:
        runs = read_runs(study, args.out)
        study.report(runs, args.out)
    if args.report and not lines_of(runs):
        raise UserError(f"no finished run in {str(args.out / study.name)!r}")
    print(f"Written: {args.out / 'README.md'}")
    return max(statuses)


def main(study, description, argv=None):
    """The scripts' `main`; returns an exit status."""
    args = parse(study, description, argv)
    return in_order(functools.partial(work, study), args)


def in_order(work, args):
    """Calls `work(args)` so that it can be stopped; returns an exit status.

    Args:
        work: Function that returns an exit status.
        args: The flags; with `--report` nothing is trained.
    """
    if not args.report:
        # A job in the background is born deaf to SIGINT; this one listens.
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, interrupt)
    try:
        return work(args)
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on", 130)
    except (UserError, OSError) as error:
        return fail(error, 2)
