"""What the benchmarks share: flags, workers, tables, the files they write.

Keras is not imported here: the parent of the workers stays small and quick,
and the peak memory of a worker is its own.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT))

from capsnet.cli.options import add_computing_options  # noqa: E402
from capsnet.cli.parser import LARGEST_INTEGER, Parser, number  # noqa: E402
from capsnet.files import whole_file, write_json  # noqa: E402
from capsnet.messages import UserError, command, fail  # noqa: E402

# Not over the figures that the repository shows.
TRY = os.path.join(tempfile.gettempdir(), "capsnet-benchmarks")
# Several workers may have to share one GPU.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}
positive_int = number(int, 1, LARGEST_INTEGER)


def adder(parser):
    """`parser.add_argument` for `(*names, default, help, **more)`."""

    def add(*names_default_text, **more):
        *names, default, text = names_default_text
        if default is False:
            more["action"] = "store_true"
        parser.add_argument(*names, default=default, help=text, **more)

    return add


def matching(rows, text):
    """An argparse type: the row `text`, or those that begin with it."""
    found = [row for row in rows if row.startswith(text)]
    if not found:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(rows)}, or the beginning of some; "
            f"got {text!r}"
        )
    return [text] if text in rows else found


def add_run_flags(parser, name, rows, epochs, of_epochs="epochs of each run"):
    """The flags of every benchmark that trains; returns the `adder`.

    Args:
        parser: A `Parser`.
        name: The folder of checkpoints and models in the user's cache.
        rows: The names of the table's rows.
        epochs, of_epochs: Default and help of `--epochs`.
    """
    add = adder(parser)
    text = "rows, or beginnings of their names (default: all)"
    kind = functools.partial(matching, rows)
    add("--rows", None, text, nargs="+", type=kind, metavar="ROW")
    add("--seeds", 1, "number of seeds", type=positive_int, metavar="N")
    first = number(int, 0, 2**32 - 1)
    add("--first_seed", 0, "the first one", type=first, metavar="N")
    add("--epochs", epochs, of_epochs, type=positive_int, metavar="N")
    add("--dataset", "mnist", "as in capsulenet.py", metavar="NAME|PATH")
    work_dir = Path("~", ".cache", f"capsnet-{name}")
    add("--work_dir", work_dir, "runs, models", type=Path, metavar="DIR")
    text = "logs, records, tables and pictures"
    add("--out", ROOT / "result", text, type=Path, metavar="DIR")
    add("--report", False, "rebuild tables and pictures, no more")
    return add


def parse_run_flags(parser, rows, argv=None):
    """The flags of `add_run_flags` and others, each row once, paths whole."""
    args = parser.parse_args(argv)
    chosen = itertools.chain(*(args.rows or [rows]))
    args.rows = list(dict.fromkeys(chosen))
    args.work_dir = args.work_dir.expanduser().resolve()
    args.out = args.out.resolve()
    return args


def make_parser(description, numbers, computing=False, **choices):
    """The flags that the benchmarks of speed have.

    Args:
        description: Text above the list of flags, the script's docstring.
        numbers: Triples of name, default and help of positive integers.
        computing: Whether there are flags of precision and compilation.
        **choices: For each flag the names of which it takes some.
    """
    parser = Parser(description=description)
    add = adder(parser)
    for name, default, text in numbers:
        add(f"--{name}", default, text, type=positive_int, metavar="N")
    for name, known in choices.items():
        add(f"--{name}", list(known), "some", nargs="+", choices=list(known))
    if computing:
        add_computing_options(parser)
    add("--quick", False, f"tiny settings, for a try; writes into {TRY}")
    add("--out", str(FOLDER), "where to write", metavar="DIR")
    return parser


def parse(parser, argv, quick):
    """Parses the flags; `quick` holds the defaults that `--quick` sets."""
    defaults, given = parser.parse(argv)
    if "quick" in given:
        defaults = {**defaults, **quick, "out": TRY}
    return argparse.Namespace(**{**defaults, **given})


class Worker:
    """A running `worker.py`; `UserError` says why it ended early.

    Args:
        backend: The backend of Keras; by default the caller's.
        **spec: What `worker.py` wants to know.

    Attributes:
        start_seconds: From the start of the process to the end of its first
            training step.
    """

    def __init__(self, backend=None, **spec):
        self.spec = json.dumps(spec)
        chosen = {"KERAS_BACKEND": backend} if backend else {}
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "worker.py"), self.spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**ENVIRONMENT, **os.environ, **chosen},
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.__exit__()
            raise
        self.start_seconds = time.perf_counter() - start

    def ask(self, do, **arguments):
        """Has the worker do something, and returns its answer."""
        question = json.dumps({"do": do, **arguments})
        with contextlib.suppress(BrokenPipeError):
            print(question, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        if line := self.process.stdout.readline():
            return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or ["nothing"]
        raise UserError(
            f"the worker for {self.spec} ended with status {status} (-9: out "
            f"of memory); its last words: {said[-1]}"
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def fastest(specs, passes, measure_one):
    """Measures each of `specs`, all of them `passes` times, in turn.

    Other work of the machine only ever adds to a time: the pass with the
    least `median_seconds` counts. A spec that fails, for want of memory
    perhaps, gets an `error`, and the others are measured nevertheless.

    Returns:
        List: what `measure_one` returned for each spec.

    Raises:
        UserError: If all of them fail.
    """
    found = [[] for _ in specs]
    for turn in range(1, passes + 1):
        for spec, measured in zip(specs, found):
            try:
                measured.append(measure_one(spec))
                said = f"{measured[-1]['median_seconds']:.3g} s"
            except UserError as error:
                said = str(error)
                measured.append({"error": said})
            print(f"pass {turn}, {spec}: {said}", flush=True)
    best = [min(m, key=lambda a: a.get("median_seconds", 1e9)) for m in found]
    if all("error" in each for each in best):
        raise UserError(said)
    return best


def benchmark(name, argv, parse_args, measure, describe, draw=None):
    """Parses, measures, prints and writes: the `main` of a benchmark.

    Written into `--out` are NAME.json, NAME.png where there is `draw`, and
    the text, at its place in README.md (`insert`). Where the record has an
    `environment` whose backend is not TensorFlow, that is part of the name.

    Args:
        name: Of the script, without its suffix.
        argv: Its flags, a list; None takes the process's own.
        parse_args: Function of `argv`; returns the settings.
        measure: Function of the settings; returns a dictionary.
        describe: Function of the record; returns paragraphs of Markdown.
        draw: Function of the record and of the file to draw into.

    Returns:
        Exit status: 0, 1 after an error, 130 when the user interrupted it.
    """
    args = parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    out = Path(args.out)
    try:
        record = {
            "command": command(f"benchmarks/{name}.py", *given),
            "settings": {k: v for k, v in vars(args).items() if k != "out"},
            **measure(args),
        }
        text = block(record, describe)
        backend = record.get("environment", {}).get("backend", "tensorflow")
        name += "" if backend == "tensorflow" else f"-{backend}"
        write_json(out / f"{name}.json", record)
        insert(out / "README.md", name, text, add=True)
        if draw:
            with whole_file(out / f"{name}.png") as path:
                draw(record, path)
    except UserError as error:
        return fail(error, 1)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written", 130)
    print(f"\n{text}\n\nWritten: {out / name}.json, {out / 'README.md'}")
    return 0


def block(record, describe):
    """The text of a benchmark's record: its command and its tables."""
    parts = [f"`{record['command']}`", *describe(record)]
    if record["settings"]["quick"]:
        parts[:0] = ["**A try with tiny settings: the figures mean nothing.**"]
    return "\n\n".join(parts)


def insert(path, name, text, add=False):
    """Puts `text` between `<!-- name -->` and `<!-- /name -->` of a file.

    Where the file has no such place it is left as it is, or with `add` gets
    one at its end.
    """
    path = Path(path)
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    marked = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
    place = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
    new, found = re.subn(place, lambda _: marked, old, count=1, flags=re.S)
    if not found and add:
        new = f"{old}\n{marked}\n" if old else f"{marked}\n"
    if new != old:
        with whole_file(path) as temporary:
            Path(temporary).write_text(new, encoding="utf-8")


def machine(environment):
    """Accelerator, where there is one, processor, cores and backend."""
    parts = [environment.get("accelerator"), environment["processor"]]
    parts += [f"{environment['cores']} cores", environment["backend"]]
    return ", ".join(filter(None, parts)).replace("|", "/")


def machine_line(environment, *others):
    """The machine with its versions; of `others` the backends alone."""
    backends = [each["backend"] for each in (environment, *others)]
    versions = {"keras": "?", **dict.fromkeys(backends, "?")}
    for each in (environment, *others):
        versions.update(each["versions"])
    more = "".join(f", {name} {versions[name]}" for name in backends[1:])
    return (
        f"{machine(environment)} {versions[backends[0]]}{more}, Keras "
        f"{versions['keras']}, Python {environment['python']}, "
        f"{environment['system']}."
    )


def table(header, rows):
    """A Markdown table; the columns after the first are numbers."""
    cells = [list(map(str, row)) for row in [header, *rows]]
    # A rule of one character would be no Markdown.
    widths = [max(2, *map(len, column)) for column in zip(*cells)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |"
        for row in cells
    ]
    rules = ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]]
    return "\n".join([lines[0], f"| {' | '.join(rules)} |", *lines[1:]])


def digits(value):
    """Three significant digits, never as a power of ten."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")


def megabytes(value):
    return "" if value is None else f"{value / 1e6:.0f}"


def spread(values):
    """The median, and the smallest and largest of several, as text."""
    if not values:
        return ""
    median = digits(statistics.median(values))
    if len(values) == 1:
        return median
    return f"{median} ({digits(min(values))} to {digits(max(values))})"
