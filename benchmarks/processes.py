"""What the benchmarks share: flags, workers, and the files they write.

Keras is not imported here: the parent of the workers stays small and quick,
and the peak memory of a worker is its own.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
sys.path.insert(0, str(ROOT))

from capsnet.cli.options import add_computing_options, positive_int  # noqa: E402

TRY = os.path.join(tempfile.gettempdir(), "capsnet-benchmarks")
# Several workers may have to share one GPU.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
}


def make_parser(description, numbers, computing=False):
    """The flags that all benchmarks of speed have.

    Args:
        description: Text above the list of flags, the script's docstring.
        numbers: Triples of flag, default and help of positive integers.
        computing: Whether there are flags of precision and compilation.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for flag, default, text in numbers:
        parser.add_argument(
            flag,
            type=positive_int,
            default=default,
            help=text + " (default: %(default)s)",
        )
    if computing:
        add_computing_options(parser)
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"tiny settings, for a try; writes into {TRY}",
    )
    parser.add_argument(
        "--out",
        default=str(FOLDER),
        metavar="FOLDER",
        help="where to write (default: the script's folder)",
    )
    return parser


def parse(parser, argv, quick):
    """Parses the flags; `quick` holds the defaults that `--quick` sets."""
    args = parser.parse_args(argv)
    if args.quick:
        # Not over the figures that the repository shows.
        parser.set_defaults(**quick, out=TRY)
        args = parser.parse_args(argv)
    return args


class WorkerError(RuntimeError):
    """A worker that ended early; the message is one line."""


class Worker:
    """A running `worker.py`.

    Args:
        backend: What Keras computes with; by default the caller's.
        **spec: What `worker.py` wants to know.

    Attributes:
        start_seconds: From the start of the process to the end of its first
            training step.
    """

    def __init__(self, backend=None, **spec):
        self.spec = spec
        chosen = {"KERAS_BACKEND": backend} if backend else {}
        self.errors = tempfile.TemporaryFile("w+", errors="replace")
        start = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "worker.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**ENVIRONMENT, **os.environ, **chosen},
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - start

    def ask(self, do, **arguments):
        """Has the worker do something, and returns what came of it."""
        with contextlib.suppress(BrokenPipeError):
            print(
                json.dumps({"do": do, **arguments}),
                file=self.process.stdin,
                flush=True,
            )
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        status = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or ["nothing"]
        raise WorkerError(
            f"the worker for {json.dumps(self.spec)} ended with status "
            f"{status} (-9: out of memory); its last words: {said[-1]}"
        )

    def close(self):
        """Ends the worker, at once if something went wrong."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def measured(measure, script):
    """Calls `measure`, and says in one line why it ended early.

    Returns:
        Pair: what it returned, or None; and the exit status of the script, 0,
        1 when a worker failed, or 130 when the user interrupted it.
    """
    try:
        return measure(), 0
    except WorkerError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return None, 1
    except KeyboardInterrupt:
        print(f"{script}: interrupted; nothing was written", file=sys.stderr)
        return None, 130


@contextlib.contextmanager
def whole_file(path):
    """Yields a name to write to; it becomes `path` when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, content):
    write_text(path, json.dumps(content, indent=2) + "\n")


def out_name(folder, stem, backend, suffix):
    """`speed.md`, or `speed-jax.md` where the backend is not the default."""
    backend = "" if backend == "tensorflow" else f"-{backend}"
    return Path(folder) / f"{stem}{backend}.{suffix}"


def command_line(script, argv=None):
    """The command as the user gave it, with the backend if it was chosen.

    Args:
        script: Name of a file in this folder.
        argv: Its flags, a list; by default the process's own.
    """
    backend = os.environ.get("KERAS_BACKEND")
    chosen = [f"KERAS_BACKEND={backend}"] if backend else []
    given = sys.argv[1:] if argv is None else argv
    return " ".join([*chosen, "python", f"benchmarks/{script}", *given])


def machine_line(environment):
    """Processor, cores, system and versions in one line."""
    backend = environment["backend"]
    versions = environment["versions"]
    return (
        f"{environment['processor']}, {environment['cores']} cores, "
        f"{environment['system']}, Python {environment['python']}, "
        f"Keras {versions.get('keras', '?')}, "
        f"{backend} {versions.get(backend, '?')}"
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


def spread(values):
    """The median, and the smallest and largest value, as text."""
    if not values:
        return ""
    median = digits(statistics.median(values))
    return f"{median} ({digits(min(values))} to {digits(max(values))})"
