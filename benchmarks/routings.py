"""What each kind of routing costs.

    python benchmarks/routings.py               about five minutes on two cores
    python benchmarks/routings.py --quick       a try, its figures mean nothing
    python benchmarks/routings.py --kinds dynamic attention

The network of `capsulenet.py` with each kind of `--routing`, three rounds of
those that have rounds, and with one round of dynamic routing. Writes
`routings.json`, and the table into `README.md` beside it, where the rules of
measuring are, too; with a backend other than TensorFlow its name is added:
`routings-jax.json`.
"""

import sys

import processes
import speed

# Changes to the defaults of worker.py. What the others are compared with is
# the first.
KINDS = {
    "dynamic": {},
    "dynamic-1": {"routings": 1},
    "leaky": {"routing": "leaky"},
    "max_min": {"routing": "max_min"},
    "attention": {"routing": "attention", "routings": None},
}
HEADER = ("routing", "training, pictures/s", "ratio", "predict, pictures/s")
HEADER += ("ratio", "peak memory, MB")


def parse_args(argv=None):
    parser = processes.make_parser(
        __doc__, speed.NUMBERS, computing=True, kinds=KINDS
    )
    return processes.parse(parser, argv, speed.QUICK)


def measure(args):
    """Runs everything; returns the record that becomes `routings.json`."""
    specs = {name: KINDS[name] for name in KINDS if name in args.kinds}
    with speed.started(args, specs) as workers:
        return speed.take_turns(args, workers)


def describe(record):
    """The machine and the table; its ratios are to dynamic routing."""
    rows = []
    for name, measured in record["contenders"].items():
        cells = [name]
        for key in (speed.TRAINING, speed.PREDICT):
            pair = key, name, "dynamic"
            ratio = speed.ratios(record["contenders"], *pair)
            cells += map(processes.spread, (measured[key], ratio))
        memory = processes.megabytes(measured["peak_memory_bytes"])
        rows.append([*cells, memory])
    machine = processes.machine_line(record["environment"])
    return [machine, processes.table(HEADER, rows)]


def main(argv=None):
    return processes.benchmark("routings", argv, parse_args, measure, describe)


if __name__ == "__main__":
    sys.exit(main())
