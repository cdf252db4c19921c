"""The results: rows of the table x seeds, trained one after the other.

    python benchmarks/mnist.py                         all rows, one seed each
    python benchmarks/mnist.py --rows v4 --seeds 3     v4-classic and v4-paper
    python benchmarks/mnist.py --rows v4 --extra "--lr_decay 0.8"
    python benchmarks/mnist.py --report                train nothing

The rows (`--rows` takes the beginning of their names, too):

    baseline    --model baseline, the plain convolutional network
    v1          -r 1 --lam_recon 0, one round of routing, no reconstruction
    v2          -r 1
    v3          -r 3 --lam_recon 0
    v4          -r 3, the whole network
                v1-classic to v4-classic with --recipe classic,
                v1-paper to v4-paper with --recipe paper

Each run is `python capsulenet.py` in a folder of its own,
`--work_dir/ROW-SEED`, where its checkpoint and its model stay. It may be
interrupted or killed at any time: the same command goes on, with `--resume`
where there is a checkpoint, and passes over what is done. `timeout 9m python
benchmarks/mnist.py ...` therefore trains in pieces. First comes seed 0 of all
rows, then seed 1.

A finished run, one whose `run.json` lies in --work_dir or --out, is never
touched again. Where other flags or fewer epochs are asked for than a run in
ROW-SEED has, the new run takes ROW-SEED-run2, and so on. More epochs than a
finished run's go there, too, and begin with a copy of its checkpoint if
--work_dir still has it.

Written into `--out`, every file whole or not at all:

    mnist/ROW-SEED/log.csv    after each epoch
    mnist/ROW-SEED/run.json   when the run is done, without the machine's paths
    mnist.md, mnist.png       the summary of all that lies in mnist/*/

and, between the lines `<!-- mnist.md -->` and `<!-- /mnist.md -->` of the
README, the summary's table (only where `--out` is not given).

Exit status: 0, 1 when a run failed, 2 for what the user can mend, 130 after
SIGINT or SIGTERM. Linux and macOS.
"""

import argparse
import contextlib
import csv
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import processes

from capsnet.cli import options, settings
from capsnet.cli.checks import given_flags
from capsnet.cli.options import FREE_ON_RESUME, Parser, positive_int
from capsnet.cli.settings import flags_of
from capsnet.training.recipes import DEFAULT_BATCH_SIZE

VERSIONS = {
    "v1": ("-r", "1", "--lam_recon", "0"),
    "v2": ("-r", "1"),
    "v3": ("-r", "3", "--lam_recon", "0"),
    "v4": ("-r", "3"),
}
ROWS = {
    "baseline": ("--model", "baseline"),
    **{
        f"{version}-{recipe}": (*flags, "--recipe", recipe)
        for recipe in ("classic", "paper")
        for version, flags in VERSIONS.items()
    },
}
# Mean (standard deviation) of 3 trials: the paper's Table 1, and the README
# of CapsNet-Keras after 50 epochs.
PAPER = {
    "baseline": "0.39",
    "v1": "0.34 (0.032)",
    "v2": "0.29 (0.011)",
    "v3": "0.35 (0.036)",
    "v4": "0.25 (0.005)",
}
CLASSIC = {
    "v1": "0.39 (0.024)",
    "v2": "0.36 (0.009)",
    "v3": "0.40 (0.016)",
    "v4": "0.34 (0.016)",
}
HEADER = (
    "row",
    "routing",
    "reconstruction",
    "test error, %",
    "standard deviation",
    "runs, n",
    "best",
    "epochs",
    "s an epoch",
    "machine",
    "paper",
    "CapsNet-Keras",
)
RULES = (
    "Rules: the test set chooses nothing; the last epoch counts; no run is "
    "left out. Test errors are means over n seeds, beside them the standard "
    "deviation of the n (n - 1 in its denominator); seconds are the median "
    "of all epochs. Runs with other flags or epochs are lines of their own. "
    "Empty cells are not measured. The last two columns are what others "
    "report: mean (standard deviation) of 3 trials."
)
# What `--extra` may not set: the runner does, or it would break the rules.
RESERVED = {"seed", "epochs", "dataset", "save_dir", "resume", "testing"}
RESERVED |= {"digit", "weights", "val_fraction"}
# What makes no difference to a run's result.
INDIFFERENT = {*FREE_ON_RESUME, *RESERVED} - {"dataset", "epochs"}
FOLDER = re.compile(rf"({'|'.join(ROWS)})-\d+(-run\d+)?")
MARKED = re.compile(r"(<!-- mnist\.md -->\n).*?(<!-- /mnist\.md -->)", re.S)
DEFAULT_OUT = processes.ROOT / "result"
# Longer runs get a logarithmic axis, or else the short ones would not show.
LINEAR_EPOCHS = 100
POLL_SECONDS = 1
# How often a run is asked to end, and how long it may take each time.
ATTEMPTS, PATIENCE_SECONDS = 6, 5
# A runner that is killed outright takes its run with it: PR_SET_PDEATHSIG.
DIE_WITH_PARENT = (
    functools.partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL)
    if sys.platform == "linux"
    else None
)


class RunnerError(RuntimeError):
    """What the user can mend; the message is one line."""


@dataclasses.dataclass
class Run:
    """A folder in `result/mnist`: what a finished or unfinished run left."""

    name: str
    row: str
    record: dict | None
    errors: list  # Test error in percent, for each epoch.


def row_names(text):
    """An argparse type: the rows whose names begin with `text`."""
    found = [row for row in ROWS if row.startswith(text)]
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(ROWS)}, or the beginning of some; "
            f"got {text!r}"
        )
    return found


def build_parser():
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--rows",
        nargs="+",
        type=row_names,
        default=[list(ROWS)],
        metavar="ROW",
        help="rows, or beginnings of their names (default: all)",
    )
    for name, kind, default, text in (
        ("seeds", positive_int, 1, "number of seeds"),
        ("first_seed", options.number(int, 0, 2**32 - 1), 0, "the first one"),
        ("epochs", positive_int, 50, "epochs of each run"),
    ):
        text += " (default: %(default)s)"
        add(f"--{name}", type=kind, default=default, metavar="N", help=text)
    add(
        "--dataset",
        default="mnist",
        metavar="NAME|PATH",
        help="as in capsulenet.py; what has a / or a suffix is a path "
        "(default: %(default)s)",
    )
    add(
        "--extra",
        type=shlex.split,
        default=[],
        metavar="FLAGS",
        help="further flags of capsulenet.py for all runs, in one word: "
        '--extra="--lr_decay 0.8" (default: none)',
    )
    add(
        "--work_dir",
        default=os.path.join("~", ".cache", "capsnet-mnist"),
        metavar="FOLDER",
        help="checkpoints and models (default: %(default)s)",
    )
    add(
        "--out",
        default=str(DEFAULT_OUT),
        metavar="FOLDER",
        help="logs, records and summary (default: the repository's result)",
    )
    add("--report", action="store_true", help="rebuild the summary, no more")
    return parser


def parse_args(argv=None):
    parser = build_parser()
    args = parser.parse_args(argv)
    args.rows = list(dict.fromkeys(itertools.chain(*args.rows)))
    args.work_dir = Path(args.work_dir).expanduser().resolve()
    args.out = Path(args.out).resolve()
    for row in args.rows:
        clash = given(args.extra) & (RESERVED | given(ROWS[row]))
        if clash:
            parser.error(
                f"--extra cannot set --{min(clash)}: row {row} or the runner "
                "does, or it would break the rules of the table"
            )
    return args


def given(argv):
    """The names of the flags in a command line of capsulenet.py."""
    return set(given_flags(options.build_parser(""), argv))


def dataset_from_root(dataset):
    """The same data set for a process that runs in the repository's root."""
    path = Path(dataset).expanduser()
    is_path = path.suffix or Path(dataset).name != dataset
    if not is_path or (processes.ROOT / path).resolve() == path.resolve():
        return dataset
    return str(path.resolve())


def flags_for(row, seed, args):
    """The command line of a run, but for its folder and `--resume`."""
    dataset = dataset_from_root(args.dataset)
    flags = [*ROWS[row], "--seed", str(seed), "--epochs", str(args.epochs)]
    return [*flags, "--dataset", dataset, *args.extra]


def parsed(argv):
    """What `run.json` will say of a command line, comparable."""
    return comparable(flags_of(settings.parse_args(list(argv))))


def without_path(value):
    """The last part of a path; other values as they are."""
    if isinstance(value, str) and ("/" in value or os.sep in value):
        return Path(value).name
    return value


def comparable(flags):
    """Recorded flags without what makes no difference, defaults filled in."""
    defaults = flags_of(options.build_parser("").parse_args([]))
    flags = {**defaults, **flags}
    flags["batch_size"] = flags["batch_size"] or DEFAULT_BATCH_SIZE
    return {
        name: without_path(value)
        for name, value in sorted(flags.items())
        if name not in INDIFFERENT
    }


def read_json(path):
    """A JSON object, or None where there is no such file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["flags"]["epochs"] += 0
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunnerError(
            f"cannot read {str(path)!r} ({error}); restore or remove it"
        ) from error
    return content


def compare(record, wanted):
    """Compares epochs with those wanted: -1, 0, 1; None for other flags."""
    flags = comparable(record["flags"])
    if {**flags, "epochs": 0} != {**wanted, "epochs": 0}:
        return None
    ours, theirs = flags["epochs"], wanted["epochs"]
    return (ours > theirs) - (ours < theirs)


def choose_folder(row, seed, wanted, work_dir, out):
    """Where a run belongs.

    Returns:
        The folder's name, whether the run is done, and the name of a
        finished run with fewer epochs, or None.
    """
    shorter = None
    for number in itertools.count(1):
        name = f"{row}-{seed}" + (f"-run{number}" if number > 1 else "")
        records = [
            record
            for folder in (work_dir / name, out / "mnist" / name)
            if (record := read_json(folder / "run.json"))
        ]
        state = read_json(work_dir / name / "checkpoint" / "state.json")
        results = [compare(record, wanted) for record in records]
        if 0 in results:
            return name, True, None
        if records:
            if state and compare(state, wanted) == -1:
                shorter = name
        elif state is None or compare(state, wanted) in (-1, 0):
            return name, False, shorter


def copy_checkpoint(source, target):
    """Lets a longer run begin where a finished one ended."""
    partial = target / ".checkpoint"
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source / "checkpoint", partial)
    shutil.copyfile(source / "log.csv", target / "log.csv")
    partial.rename(target / "checkpoint")


def published(record, target):
    """A run's record without the paths of the machine."""
    flags = {key: without_path(v) for key, v in record["flags"].items()}
    save_dir = "/".join(["result", *target.parts[-2:]])
    return {**record, "flags": {**flags, "save_dir": save_dir}}


def collect(folder, target, wanted):
    """Copies what a run has written so far to the folder `target`."""
    try:
        log = (folder / "log.csv").read_bytes()
        log = log[: log.rfind(b"\n") + 1]  # Whole lines.
    except FileNotFoundError:
        return
    path = target / "log.csv"
    if log and not (path.exists() and path.read_bytes() == log):
        with processes.whole_file(path) as temporary:
            temporary.write_bytes(log)
    record = read_json(folder / "run.json")
    if record and compare(record, wanted) == 0:
        processes.write_json(target / "run.json", published(record, target))


def stop(child):
    """Ends a run by SIGINT, or else outright: its checkpoint survives."""
    for _ in range(ATTEMPTS):
        # Repeated, because libraries swallow it while they are imported.
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(PATIENCE_SECONDS)
            return
    child.kill()
    child.wait()


def train(folder, flags, watch):
    """Runs capsulenet.py in `folder`; returns its exit status.

    Args:
        folder: Where the run keeps its checkpoint and its model.
        flags: What `flags_for` returns.
        watch: Function that is called now and then.
    """
    command = [sys.executable, str(processes.ROOT / "capsulenet.py"), *flags]
    command += ["--save_dir", str(folder)]
    if (folder / "checkpoint" / "state.json").exists():
        command.append("--resume")
    child = subprocess.Popen(
        command,
        cwd=processes.ROOT,
        env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
        # Ctrl-C reaches the run once, by way of the runner.
        start_new_session=True,
        preexec_fn=DIE_WITH_PARENT,
    )
    try:
        while True:
            try:
                return child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                watch()
    finally:
        if child.poll() is None:
            stop(child)
        watch()


def run_one(row, seed, args):
    """Trains a run unless it is done; returns an exit status."""
    flags = flags_for(row, seed, args)
    wanted = parsed(flags)
    name, done, shorter = choose_folder(
        row, seed, wanted, args.work_dir, args.out
    )
    folder = args.work_dir / name
    target = args.out / "mnist" / name
    watch = functools.partial(collect, folder, target, wanted)
    if done:
        print(f"{name}: done before", flush=True)
        if not (target / "run.json").exists():
            watch()
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if shorter:
        copy_checkpoint(args.work_dir / shorter, folder)
    print(f"{name}: {shlex.join(flags)}", flush=True)
    status = train(folder, flags, watch)
    if status == 0:
        report(args.out)
        return 0
    print(f"mnist.py: {name} ended with status {status}", file=sys.stderr)
    return 2 if status == 2 else 1


def read_runs(out):
    """All runs in `out`/mnist, in the order of the rows."""
    runs = []
    for folder in sorted((out / "mnist").glob("*/")):
        match = FOLDER.fullmatch(folder.name)
        if match is None or not (folder / "log.csv").exists():
            continue
        with open(folder / "log.csv", newline="", encoding="utf-8") as file:
            errors = [float(row["test_error"]) for row in csv.DictReader(file)]
        record = read_json(folder / "run.json")
        runs.append(Run(folder.name, match[1], record, errors))
    rank = list(ROWS).index
    return sorted(runs, key=lambda run: (rank(run.row), natural(run.name)))


def natural(name):
    """Sort key by which seed 2 comes before seed 10."""
    return [int(part) for part in re.findall(r"\d+", name)]


def group(runs):
    """Finished runs of the same row, flags and epochs, together."""
    lines = {}
    for run in runs:
        if run.record:
            key = json.dumps(comparable(run.record["flags"]))
            lines.setdefault((run.row, key), []).append(run)
    return list(lines.values())


def further_flags(run):
    """The flags in which a run differs from its row, as one would type."""
    usual = parsed(ROWS[run.row])
    words = []
    for name, value in comparable(run.record["flags"]).items():
        if name != "epochs" and value != usual.get(name):
            words += [f"--{name}"] + ([] if value is True else [str(value)])
    return words


def command_of(run):
    """The command line of a finished run."""
    flags, backend = run.record["flags"], run.record["environment"]["backend"]
    words = ["python", "capsulenet.py", *ROWS[run.row], *further_flags(run)]
    words += ["--epochs", str(flags["epochs"]), "--seed", str(flags["seed"])]
    chosen = "" if backend == "tensorflow" else f"KERAS_BACKEND={backend} "
    return chosen + shlex.join(words)


def machine(environment):
    """Processor, cores, backend, and the accelerator where it is recorded."""
    parts = [environment.get("accelerator"), environment["processor"]]
    parts += [f"{environment['cores']} cores", environment["backend"]]
    return ", ".join(filter(None, parts)).replace("|", "/")


def line_cells(runs):
    """A line of the table from the runs that it stands for."""
    errors = [run.record["test_error"] for run in runs]
    seconds = [s for run in runs for s in run.record["seconds_per_epoch"]]
    n = len(errors)
    machines = dict.fromkeys(machine(run.record["environment"]) for run in runs)
    return [
        f"{statistics.mean(errors):.{2 if n == 1 else 3}f}",
        f"{statistics.stdev(errors):.3f}" if n > 1 else "",
        n,
        f"{min(errors):.2f}",
        runs[0].record["flags"]["epochs"],
        processes.digits(statistics.median(seconds) if seconds else None),
        "; ".join(machines),
    ]


def table(runs):
    """The table of all rows; those without a finished run stay empty."""
    lines = group(runs)
    rows = []
    for row in ROWS:
        version = row.split("-")[0]
        found = [line for line in lines if line[0].row == row]
        for line in found or [None]:
            label, flags, cells = row, parsed(ROWS[row]), [""] * 7
            if line:
                label = " ".join([row, *further_flags(line[0])])
                flags, cells = line[0].record["flags"], line_cells(line)
            others = [PAPER[version], CLASSIC.get(version, "")]
            if "--dataset" in label.split():
                others = ["", ""]  # Theirs are MNIST's.
            capsules = ["", ""]
            if flags.get("model") != "baseline":
                capsules = [flags["routings"]]
                capsules += ["yes" if flags["lam_recon"] != 0 else "no"]
            rows.append([label, *capsules, *cells, *others])
    return processes.table(HEADER, rows)


def unfinished(runs):
    """A line that names the runs that are not done, if there are any."""
    named = [
        f"{run.name} ({len(run.errors)} epochs done)"
        for run in runs
        if not run.record
    ]
    return f"Unfinished: {', '.join(named)}." if named else ""


def commands(runs):
    """The command and the logs of each line of the table."""
    items = []
    for line in group(runs):
        logs = ", ".join(
            f"[{run.record['flags']['seed']}](mnist/{run.name}/log.csv)"
            for run in line
        )
        unique = dict.fromkeys(
            re.sub(r"--seed \d+$", "--seed SEED", command_of(run))
            for run in line
        )
        text = ", ".join(f"`{command}`" for command in unique)
        items.append(f"- {line[0].row}, logs of seed {logs}: {text}")
    return "\n".join(items)


def summary(runs):
    """The parts of `mnist.md`: table, unfinished runs, rules, commands."""
    parts = [table(runs), unfinished(runs), RULES]
    if group(runs):
        parts += ["Each line's command:", commands(runs)]
    return [part for part in parts if part]


def insert(readme, text):
    """Puts `text` between the markers of a README, if it has them."""
    if not readme.exists():
        return
    with open(readme, newline="", encoding="utf-8") as file:
        old = file.read()
    new = MARKED.sub(lambda found: f"{found[1]}{text}\n{found[2]}", old)
    if new != old:
        processes.write_text(readme, new)


def draw(runs, path):
    """Test error against epoch: mean over the seeds, smallest to largest."""
    import matplotlib

    matplotlib.use("Agg")  # Pictures are files; no window ever opens.
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    figure, axis = plt.subplots(figsize=(9, 5), dpi=120)
    axis.set(xlabel="epoch", ylabel="test error, %")
    versions, drawn = ["baseline", *VERSIONS], []
    for line in group(runs):
        row = line[0].row
        version, _, recipe = row.partition("-")
        epochs = line[0].record["flags"]["epochs"]
        columns = list(zip(*(run.errors[:epochs] for run in line)))
        label = " ".join([row, *further_flags(line[0])])
        style = {
            "color": ["black", "C0", "C1", "C2", "C3"][versions.index(version)],
            "linestyle": "--" if recipe == "paper" else "-",
            "marker": ".sx^v"[drawn.count(row) % 5],
            "markersize": 4,
            "markevery": max(1, len(columns) // 12),
            "linewidth": 1.2,
        }
        drawn.append(row)
        x = range(1, len(columns) + 1)
        axis.plot(
            x,
            [statistics.mean(column) for column in columns],
            label=f"{label}, {epochs} epochs, n = {len(line)}",
            **style,
        )
        low, high = ([f(c) for c in columns] for f in (min, max))
        axis.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if axis.dataLim.x1 > LINEAR_EPOCHS:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if axis.dataLim.y1 > 0:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_formatter("{x:g}")
        scale.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    # Beside the panel, where no line can run.
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)


def report(out):
    """Writes `mnist.md` and `mnist.png`, and the README's table."""
    runs = read_runs(out)
    parts = summary(runs)
    processes.write_text(out / "mnist.md", "\n\n".join(parts) + "\n")
    if group(runs):
        with processes.whole_file(out / "mnist.png") as temporary:
            draw(runs, temporary)
    if out == DEFAULT_OUT:
        more = "Commands and logs: [result/mnist.md](result/mnist.md)."
        text = "\n\n".join([*parts[: parts.index(RULES) + 1], more])
        insert(processes.ROOT / "README.md", text)


def listen(handler):
    """Has `handler` called for SIGINT and SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def interrupt(*_):
    """Ends the runner in order, which a second signal would disturb."""
    listen(signal.SIG_IGN)
    raise KeyboardInterrupt


def run_all(args):
    """Trains what is missing and reports; returns an exit status."""
    # A job in the background is born deaf to SIGINT; this one listens.
    listen(interrupt)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    statuses = [0]
    try:
        for seed, row in itertools.product(seeds, args.rows):
            statuses.append(run_one(row, seed, args))
            if statuses[-1] == 2:
                break
    finally:
        report(args.out)
    return max(statuses)


def supervised(work, script):
    """What `work` returns; what stops it becomes one line and a status."""
    try:
        return work()
    except KeyboardInterrupt:
        print(
            f"{script}: interrupted; the same command goes on", file=sys.stderr
        )
        return 130
    except RunnerError as error:
        print(f"{script}: {error}", file=sys.stderr)
    except OSError as error:
        name = error.filename or ""
        print(f"{script}: {error.strerror or error}: {name}", file=sys.stderr)
    return 2


def work(args):
    """Trains and reports, or only reports; returns the exit status."""
    status = 0
    if args.report:
        report(args.out)
    else:
        status = run_all(args)
    print(f"Written: {args.out / 'mnist.md'}")
    return status


def main(argv=None):
    args = parse_args(argv)
    return supervised(functools.partial(work, args), "mnist.py")


if __name__ == "__main__":
    sys.exit(main())
