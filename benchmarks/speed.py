"""How fast the network is, beside the formulation that others use.

    python benchmarks/speed.py                  about ten minutes on two cores
    python benchmarks/speed.py --quick          a try, its figures mean nothing
    KERAS_BACKEND=jax python benchmarks/speed.py

The contenders:

    classic   tiled inputs, votes sample by sample (benchmarks/classic.py)
    direct    our network with direct convolutions (`--conv direct`)
    ours      our network (`--conv auto`)
    ours-1    the same with one round of routing

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

CONTENDERS = ("classic", "direct", "ours", "ours-1")
QUICK = {
    "batch_size": 2,
    "repeats": 2,
    "steps": 1,
    "predict_batch": 2,
    "predict_pictures": 4,
    "feed_pictures": 100,
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
            ("batch_size", 100, "pictures of a training step"),
            ("routings", 3, "rounds of routing, but for ours-1"),
            ("repeats", 11, "turns of each contender"),
            ("steps", 5, "training steps of a repeat"),
            ("predict_batch", 250, "pictures of a step of predict"),
            ("predict_pictures", 2500, "pictures of a repeat of predict"),
            ("feed_pictures", 60000, "pictures from which batches are drawn"),
        ),
        computing=True,
        contenders=CONTENDERS,
    )
    return processes.parse(parser, argv, QUICK)


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


def start_workers(args, stack):
    """The running workers by name; `stack` ends them."""
    if not args.quick:
        # Loads the libraries from the disk, at no contender's cost.
        command = [sys.executable, "-c", "import capsulenet"]
        subprocess.run(command, cwd=processes.ROOT, capture_output=True)
    workers = {}
    for name in CONTENDERS:
        if name not in args.contenders:
            continue
        worker = processes.Worker(
            network="ours" if name == "ours-1" else name,
            batch_size=args.batch_size,
            routings=1 if name == "ours-1" else args.routings,
            dtype_policy=args.dtype_policy,
            jit_compile=args.jit_compile,
        )
        workers[name] = stack.enter_context(worker)
        seconds = worker.start_seconds
        print(f"{name}: first step after {seconds:.1f} s", flush=True)
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
        said = ", ".join(f"{name} {answers[name][-1]:.3g}" for name in names)
        turn = f"{question['do']}: turn {repeat + 1} of {repeats}"
        print(f"{turn}, {said}", flush=True)
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
    record = {
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
        "feed_seconds_per_batch": feed,
        "help_seconds": command_seconds("-h"),
        "wrong_flag_seconds": command_seconds("--no_such_flag", status=2),
    }
    return {**record, "goals": goals(record, args.routings)}


def ratios(contenders, key, other):
    """Ratio of `ours` to another in each turn; empty where one is missing."""
    pair = [contenders.get(name, {}).get(key) for name in ("ours", other)]
    if None in pair:
        return []
    pair = [each if isinstance(each, list) else [each] for each in pair]
    return [a / b for a, b in zip(*pair)]


def goals(record, routings):
    """The goals, and what was measured of each.

    Returns:
        List of dictionaries: `what`, `values` (one for each turn, or a
        single one), their `median`, `bound` ("at least" or "at most"),
        `goal`, and whether it is `met` (None: not measured).
    """
    contenders = record["contenders"]
    feeding, start = [], []
    if ours := contenders.get("ours"):
        median = statistics.median(ours["seconds_per_step"])
        feeding = [100 * record["feed_seconds_per_batch"] / median]
        start = [ours["start_seconds"]]
    ratio = functools.partial(ratios, contenders)
    step, memory = "seconds_per_step", "peak_memory_bytes"
    rows = (
        ("training, ours / classic", ratio(TRAINING, "classic"), LOW, 4.5),
        ("training, ours / direct", ratio(TRAINING, "direct"), LOW, 3.0),
        ("predict, ours / classic", ratio(PREDICT, "classic"), LOW, 4),
        ("memory, ours / classic", ratio(memory, "classic"), HIGH, 1.0),
        (f"step, {routings} routings / 1", ratio(step, "ours-1"), HIGH, 1.15),
        ("feeding, % of a step of ours", feeding, HIGH, 5),
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
