"""How fast the network is, beside the formulation that others use.

    python benchmarks/speed.py                  about ten minutes on two cores
    python benchmarks/speed.py --quick          a try, its figures mean nothing
    KERAS_BACKEND=jax python benchmarks/speed.py

The contenders:

    classic   tiled inputs, votes sample by sample (benchmarks/classic.py)
    direct    our network with direct convolutions (`--conv direct`)
    ours      our network (`--conv auto`)
    ours-1    the same with one round of routing
    small     the small network (`--model efficient`), fed affine pictures
    small-16  the same in 16 bits (`--dtype_policy mixed_bfloat16`)

Writes `speed.json`, and the tables into `README.md` beside it, where the rules
of measuring are, too; with a backend other than TensorFlow its name is added:
`speed-jax.json`.
"""

import contextlib
import functools
import statistics
import subprocess
import sys
import time

import processes

from capsnet.messages import UserError

SMALL = {"network": "small", "augment": "affine"}
# Changes to the defaults of worker.py.
CONTENDERS = {
    "classic": {"network": "classic"},
    "direct": {"network": "direct"},
    "ours": {},
    "ours-1": {"routings": 1},
    "small": SMALL,
    "small-16": {**SMALL, "dtype_policy": "mixed_bfloat16"},
}
NUMBERS = (
    ("batch_size", 100, "pictures of a training step"),
    ("repeats", 11, "turns of each contender"),
    ("steps", 5, "training steps of a repeat"),
    ("predict_batch", 250, "pictures of a step of predict"),
    ("predict_pictures", 2500, "pictures of a repeat of predict"),
)
QUICK = {
    "batch_size": 2,
    "repeats": 2,
    "steps": 1,
    "predict_batch": 2,
    "predict_pictures": 4,
}
TRAINING, PREDICT = "train_pictures_per_second", "predict_pictures_per_second"
LOW, HIGH = "at least", "at most"
WORDS = {True: "yes", False: "no", None: ""}
HEADER = ("network", "training, pictures/s", "predict, pictures/s")
HEADER += ("peak memory, MB", "start to first step, s")


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__,
        (
            *NUMBERS,
            ("routings", 3, "rounds of routing, but for ours-1 and small"),
            ("feed_pictures", 60000, "pictures from which batches are drawn"),
        ),
        computing=True,
        contenders=CONTENDERS,
    )
    return processes.parse(parser, argv, {**QUICK, "feed_pictures": 100})


def command_seconds(*argv, status=0, repeats=3):
    """Median seconds of `python capsulenet.py` with these arguments."""
    command = [sys.executable, str(processes.ROOT / "capsulenet.py"), *argv]
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, check=False)
        seconds.append(time.perf_counter() - start)
        if ended.returncode != status:
            raise UserError(
                f"capsulenet.py {' '.join(argv)} was expected to end with "
                f"status {status}, and ended with {ended.returncode}"
            )
    return statistics.median(seconds)


@contextlib.contextmanager
def started(args, specs):
    """Yields a running worker for each of `specs`, by name."""
    if not args.quick:
        # Loads the libraries from the disk, at no contender's cost.
        command = [sys.executable, "-c", "import capsulenet"]
        subprocess.run(command, cwd=processes.ROOT, capture_output=True)
    workers = {}
    names = "batch_size", "dtype_policy", "jit_compile"
    common = {name: getattr(args, name) for name in names}
    with contextlib.ExitStack() as stack:
        for name, spec in specs.items():
            worker = processes.Worker(**{**common, **spec})
            workers[name] = stack.enter_context(worker)
            seconds = worker.start_seconds
            print(f"{name}: first step after {seconds:.1f} s", flush=True)
        yield workers


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
        said = ", ".join(f"{name} {answers[name][-1]:.3g}" for name in names)
        turn = f"{question['do']}: turn {repeat + 1} of {repeats}"
        print(f"{turn}, {said}", flush=True)
    return answers


def take_turns(args, workers):
    """Trains, then predicts, in turn.

    Returns:
        Dictionary: the `environment`, and the figures of all `contenders`.
    """
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
    return {
        "environment": next(iter(facts.values()))["environment"],
        "contenders": {
            name: {
                "weights": facts[name]["weights"],
                "seconds_per_step": train[name],
                TRAINING: [args.batch_size / s for s in train[name]],
                PREDICT: predicted[name],
                "peak_memory_bytes": memory[name],
                "start_seconds": worker.start_seconds,
            }
            for name, worker in workers.items()
        },
    }


def measure(args):
    """Runs everything; returns the record that becomes `speed.json`."""
    specs = {
        name: {"routings": args.routings, **changed}
        for name, changed in CONTENDERS.items()
        if name in args.contenders
    }
    with started(args, specs) as workers:
        record = take_turns(args, workers)
        record["feed_seconds_per_batch"] = {
            name: workers[name].ask("feed", pictures=args.feed_pictures)
            for name in ("ours", "small")
            if name in workers
        }
    record["help_seconds"] = command_seconds("-h")
    record["wrong_flag_seconds"] = command_seconds("--no_such_flag", status=2)
    return {**record, "goals": goals(record, args.routings)}


def ratios(contenders, key, one, other):
    """Ratio of two contenders in each turn; empty where one is missing."""
    pair = [contenders.get(name, {}).get(key) for name in (one, other)]
    if None in pair:
        return []
    pair = [each if isinstance(each, list) else [each] for each in pair]
    return [a / b for a, b in zip(*pair)]


def feeding(record, name):
    """Percent of a contender's step, in a list; empty where it is missing."""
    if name not in record["contenders"]:
        return []
    step = statistics.median(record["contenders"][name]["seconds_per_step"])
    return [100 * record["feed_seconds_per_batch"][name] / step]


def goals(record, routings):
    """The goals, and what was measured of each.

    Returns:
        List of dictionaries: `what`, `values` (one for each turn, or a
        single one), their `median`, `bound` ("at least" or "at most"),
        `goal`, and whether it is `met` (None: not measured).
    """
    contenders = record["contenders"]
    ratio = functools.partial(ratios, contenders)
    training = functools.partial(ratio, TRAINING)
    step, memory = "seconds_per_step", "peak_memory_bytes"
    rounds = ratio(step, "ours", "ours-1")
    of_ours, of_small = feeding(record, "ours"), feeding(record, "small")
    ours = contenders.get("ours")
    start = [ours["start_seconds"]] if ours else []
    rows = (
        ("training, ours / classic", training("ours", "classic"), LOW, 4.5),
        ("training, ours / direct", training("ours", "direct"), LOW, 3.0),
        ("training, small / classic", training("small", "classic"), LOW, 10),
        ("training, small / ours", training("small", "ours"), LOW, 2),
        ("predict, ours / classic", ratio(PREDICT, "ours", "classic"), LOW, 4),
        ("memory, ours / classic", ratio(memory, "ours", "classic"), HIGH, 1.0),
        (f"step, {routings} routings / 1", rounds, HIGH, 1.15),
        ("feeding, % of a step of ours", of_ours, HIGH, 5),
        ("feeding affine, % of a step of small", of_small, HIGH, 5),
        ("start to first step of ours, s", start, HIGH, 15),
        ("capsulenet.py -h, s", [record["help_seconds"]], HIGH, 1),
        ("a wrong flag, s", [record["wrong_flag_seconds"]], HIGH, 1),
    )
    result = []
    for what, values, bound, goal in rows:
        median = met = None
        if values:
            median = statistics.median(values)
            met = median >= goal if bound == LOW else median <= goal
        row = {"what": what, "values": values, "median": median}
        result.append({**row, "bound": bound, "goal": goal, "met": met})
    return result


def describe(record):
    """The machine and the two tables."""
    contenders = [
        (
            name,
            processes.spread(measured[TRAINING]),
            processes.spread(measured[PREDICT]),
            processes.megabytes(measured["peak_memory_bytes"]),
            f"{measured['start_seconds']:.1f}",
        )
        for name, measured in record["contenders"].items()
    ]
    reached = [
        (
            row["what"],
            processes.spread(row["values"]),
            f"{row['bound']} {row['goal']:g}",
            WORDS[row["met"]],
        )
        for row in record["goals"]
    ]
    return [
        processes.machine_line(record["environment"]),
        processes.table(HEADER, contenders),
        processes.table(("goal", "measured", "bound", "met"), reached),
    ]


def main(argv=None):
    return processes.benchmark("speed", argv, parse_args, measure, describe)


if __name__ == "__main__":
    sys.exit(main())
