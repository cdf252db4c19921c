"""How fast the network is, beside the formulation that others use.

    python benchmarks/speed.py                  about ten minutes on two cores
    python benchmarks/speed.py --quick          a try, its figures mean nothing
    KERAS_BACKEND=jax python benchmarks/speed.py

The contenders:

    classic   tiled inputs, votes sample by sample (benchmarks/classic.py)
    direct    our network with direct convolutions (`--conv direct`)
    ours      our network (`--conv auto`)
    ours-1    the same with one round of routing

Each is built and warmed up in a process of its own, so that its memory is
its own. Then they take turns, one repeat each and the first one another each
time, so that what else the machine does hits all alike; only one computes at
any time. A repeat is `--steps` training steps (`train_on_batch`, see
benchmarks/worker.py), or one `predict` over `--predict_pictures` pictures, by
`capsulenet.predict` for all contenders.
The pictures are random and in memory before the clock runs.

A figure is the median of the repeats, with the smallest and largest behind
it. A ratio is the median of the ratios of the repeats that ran in the same
turn. Memory is the largest resident size of the process after training and
before `predict`, Python and libraries included (not the memory of a GPU). The
start is the time from the start of the process to the end of its first
training step, once; the libraries have been loaded before by another one.

Feeding is the time to draw one batch of shifted pictures, in the mean of an
epoch of `--feed_pictures`, against the median step of `ours`.

Writes `speed.md` and `speed.json` into `--out`; with a backend other than
TensorFlow its name is added: `speed-jax.md`.
"""

import contextlib
import functools
import statistics
import subprocess
import sys
import time

import processes

CONTENDERS = ("classic", "direct", "ours", "ours-1")
SIZE, N_CLASS = 28, 10
QUICK = {
    "batch_size": 2,
    "repeats": 2,
    "steps": 1,
    "predict_batch": 2,
    "predict_pictures": 4,
    "feed_pictures": 100,
}


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            ("--batch_size", 100, "pictures of a training step"),
            ("--routings", 3, "rounds of routing, but for ours-1"),
            ("--repeats", 11, "turns of each contender"),
            ("--steps", 5, "training steps of a repeat"),
            ("--predict_batch", 250, "pictures of a step of predict"),
            ("--predict_pictures", 2500, "pictures of a repeat of predict"),
            ("--feed_pictures", 60000, "pictures from which batches are drawn"),
        ),
        computing=True,
    )
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=CONTENDERS,
        metavar="NAME",
        help=f"some of {', '.join(CONTENDERS)} (default: all)",
    )
    args = processes.parse(parser, argv, QUICK)
    args.contenders = [c for c in CONTENDERS if c in args.contenders]
    return args


def command_seconds(*argv, status=0, repeats=3):
    """Median seconds of `python capsulenet.py` with these arguments."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, str(processes.ROOT / "capsulenet.py"), *argv],
            capture_output=True,
            check=False,
        )
        seconds.append(time.perf_counter() - start)
        if ended.returncode != status:
            raise processes.WorkerError(
                f"capsulenet.py {' '.join(argv)} was expected to end with "
                f"status {status}, and ended with {ended.returncode}"
            )
    return statistics.median(seconds)


def start_workers(args, stack):
    """The running workers by name; `stack` ends them."""
    if not args.quick:
        # Loads the libraries from the disk, at no contender's cost.
        subprocess.run(
            [sys.executable, "-c", "import capsulenet"],
            cwd=processes.ROOT,
            capture_output=True,
            check=False,
        )
    workers = {}
    for name in args.contenders:
        worker = processes.Worker(
            network="ours" if name == "ours-1" else name,
            batch_size=args.batch_size,
            size=SIZE,
            n_class=N_CLASS,
            routings=1 if name == "ours-1" else args.routings,
            dtype_policy=args.dtype_policy,
            jit_compile=args.jit_compile,
        )
        workers[name] = stack.enter_context(worker)
        print(
            f"{name}: first step after {worker.start_seconds:.1f} s", flush=True
        )
    return workers


def in_turn(workers, repeats, **question):
    """Asks all workers one after the other, `repeats` times.

    Returns:
        Dictionary of lists of answers, by name.
    """
    answers = {name: [] for name in workers}
    names = list(workers)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            answers[name].append(workers[name].ask(**question))
        print(
            f"{question['do']}: turn {repeat + 1} of {repeats}, "
            + ", ".join(f"{n} {answers[n][-1]:.3g}" for n in names),
            flush=True,
        )
    return answers


def measure(args):
    """Runs everything; returns the record that becomes `speed.json`."""
    with contextlib.ExitStack() as stack:
        workers = start_workers(args, stack)
        in_turn(workers, 1, do="train", steps=min(2, args.steps))  # Warm-up.
        train = in_turn(workers, args.repeats, do="train", steps=args.steps)
        memory = {name: w.ask("memory") for name, w in workers.items()}
        predict = {
            "do": "predict",
            "pictures": args.predict_pictures,
            "batch_size": args.predict_batch,
        }
        in_turn(workers, 1, **predict)  # Warm-up.
        predicted = in_turn(workers, args.repeats, **predict)
        facts = {name: w.ask("facts") for name, w in workers.items()}
        feed = None
        if "ours" in workers:
            feed = workers["ours"].ask("feed", pictures=args.feed_pictures)
    return {
        "settings": {
            name: value for name, value in vars(args).items() if name != "out"
        },
        "environment": facts[args.contenders[0]]["environment"],
        "contenders": {
            name: {
                "weights": facts[name]["weights"],
                "seconds_per_step": train[name],
                "train_pictures_per_second": [
                    args.batch_size / seconds for seconds in train[name]
                ],
                "predict_pictures_per_second": predicted[name],
                "peak_memory_bytes": memory[name],
                "start_seconds": worker.start_seconds,
            }
            for name, worker in workers.items()
        },
        "feed_seconds_per_batch": feed,
        "help_seconds": command_seconds("-h"),
        "wrong_flag_seconds": command_seconds("--no_such_flag", status=2),
    }


def ratios(record, key, above, below):
    """Ratio of two contenders in each turn; empty where one is missing."""
    contenders = record["contenders"]
    if above not in contenders or below not in contenders:
        return []
    pair = contenders[above][key], contenders[below][key]
    if not isinstance(pair[0], list):
        pair = [[value] for value in pair if value is not None]
    return [a / b for a, b in zip(*pair)] if len(pair) == 2 else []


def goals(record):
    """What is to be reached, and what was measured.

    Returns:
        List of dictionaries: `what`, `values` (one for each turn, or a
        single one), their `median`, `bound` ("at least" or "at most"),
        `goal`, and whether it is `met` (None: not measured).
    """
    train, predict = "train_pictures_per_second", "predict_pictures_per_second"
    memory, step = "peak_memory_bytes", "seconds_per_step"
    ours = record["contenders"].get("ours")
    feeding, start = [], []
    if ours:
        median = statistics.median(ours[step])
        feeding = [100 * record["feed_seconds_per_batch"] / median]
        start = [ours["start_seconds"]]
    ratio = functools.partial(ratios, record)
    low, high = "at least", "at most"
    rounds = f"{record['settings']['routings']} routings / 1"
    rows = [
        ("training, ours / classic", ratio(train, "ours", "classic"), low, 4.5),
        ("training, ours / direct", ratio(train, "ours", "direct"), low, 3.0),
        ("predict, ours / classic", ratio(predict, "ours", "classic"), low, 4),
        ("memory, ours / classic", ratio(memory, "ours", "classic"), high, 1.0),
        (f"step, {rounds}", ratio(step, "ours", "ours-1"), high, 1.15),
        ("feeding, % of a step of ours", feeding, high, 5),
        ("start to first step of ours, s", start, high, 15),
        ("capsulenet.py -h, s", [record["help_seconds"]], high, 1),
        ("a wrong flag, s", [record["wrong_flag_seconds"]], high, 1),
    ]
    result = []
    for what, values, bound, goal in rows:
        median = met = None
        if values:
            median = statistics.median(values)
            met = median >= goal if bound == low else median <= goal
        result.append(
            {
                "what": what,
                "values": values,
                "median": median,
                "bound": bound,
                "goal": goal,
                "met": met,
            }
        )
    return result


def contender_rows(record):
    """The rows of the first table."""
    for name, measured in record["contenders"].items():
        memory = measured["peak_memory_bytes"]
        yield (
            name,
            processes.spread(measured["train_pictures_per_second"]),
            processes.spread(measured["predict_pictures_per_second"]),
            "" if memory is None else f"{memory / 1e6:.0f}",
            f"{measured['start_seconds']:.1f}",
        )


def goal_rows(record):
    """The rows of the second table."""
    words = {True: "yes", False: "no", None: ""}
    for row in record["goals"]:
        values = row["values"]
        several = len(values) > 1
        yield (
            row["what"],
            processes.spread(values)
            if several
            else processes.digits(row["median"]),
            f"{row['bound']} {row['goal']:g}",
            words[row["met"]],
        )


def markdown(record):
    """`speed.md`: what was run, on what, and the two tables."""
    settings = record["settings"]
    quick = "**A try with tiny settings: the figures mean nothing.**\n\n"
    return (
        "# Speed\n\n"
        + (quick if settings["quick"] else "")
        + f"`{record['command']}`\n\n"
        f"{processes.machine_line(record['environment'])}.\n\n"
        f"Batches of {settings['batch_size']} in training and "
        f"{settings['predict_batch']} in predict, {SIZE}x{SIZE}x1, {N_CLASS} "
        f"classes, {settings['routings']} routings, "
        f"{settings['dtype_policy']}, jit_compile {settings['jit_compile']}; "
        f"median (smallest to largest) of {settings['repeats']} turns of "
        f"{settings['steps']} training steps, or of "
        f"{settings['predict_pictures']} pictures in predict.\n\n"
        + processes.table(
            (
                "network",
                "training, pictures/s",
                "predict, pictures/s",
                "peak memory, MB",
                "start to first step, s",
            ),
            contender_rows(record),
        )
        + "\n\n"
        + processes.table(
            ("what", "measured", "goal", "met"), goal_rows(record)
        )
        + "\n"
    )


def main(argv=None):
    """Measures, prints the tables and writes them; returns the status."""
    args = parse_args(argv)
    record, status = processes.measured(lambda: measure(args), "speed.py")
    if status:
        return status
    record["goals"] = goals(record)
    record = {"command": processes.command_line("speed.py", argv), **record}
    text = markdown(record)
    name = functools.partial(
        processes.out_name, args.out, "speed", record["environment"]["backend"]
    )
    processes.write_text(name("md"), text)
    processes.write_json(name("json"), record)
    print(f"\n{text}\nWritten: {name('md')}, {name('json')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
