"""The processes that train together, on one host or on several: who they are,
and how they meet. Nothing here imports Keras."""

import dataclasses
import os
import socket
import time
import zlib

from capsnet.messages import UserError, backend

# Seconds in which all processes have to come: JAX's default.
WAIT = 300
# Of each launcher: how many processes there are, which of them this is, and
# which of those on its host. Open MPI may run within a step of SLURM.
LAUNCHERS = (
    (
        "KERAS_DISTRIBUTION_NUM_PROCESSES",
        "KERAS_DISTRIBUTION_PROCESS_ID",
        "",
    ),
    (
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    ),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
# Why Keras trains in one process only.
ONE_PROCESS = {
    "tensorflow": "on TensorFlow, Keras 3 trains on the GPUs of one host "
    "(MultiWorkerMirroredStrategy does not work with it)",
    "torch": "on PyTorch, keras.distribution comes with Keras 3.16",
}


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of a training, and which of them this is.

    Args:
        count: How many there are, at least two.
        number: This one's, from 0.
        address: `"HOST:PORT"` of process 0, or None where JAX finds it.
        local: Which of the processes on its host this is, or None.
        wait: Seconds in which all have to come.
    """

    count: int
    number: int
    address: str = None
    local: int = None
    wait: int = WAIT

    def __str__(self):
        return f"process {self.number} of {self.count}"


def find(args):
    """The processes that flags or a launcher's variables tell of.

    Args:
        args: Namespace with `hosts`, `processes`, `process` and `task`.

    Returns:
        A `Group`, or None where there is one process.

    Raises:
        UserError: If they do not fit each other, or Keras's backend.
    """
    count, number, local = args.processes, args.process, None
    for names in LAUNCHERS:
        if names[0] in os.environ and count is None:
            count, number, local = map(number_in, names)
            if count not in (None, 1) and number is None:
                raise UserError(
                    f"{names[0]} says that there are {count} processes, and "
                    f"{names[1]} not which this is: set both, or none"
                )
    if args.hosts is None and (args.processes, args.process) != (None, None):
        raise UserError(
            "--processes and --process have no effect without --hosts "
            "ADDRESS:PORT: add it, or leave them out"
        )
    if args.hosts is not None and None in (count, number):
        raise UserError(
            "--hosts needs --processes N and --process I, from 0 to N - 1, "
            "where no launcher (srun, mpirun) says them"
        )
    if count in (None, 1):
        return None
    if number >= count:
        raise UserError(
            f"--process expects a number from 0 to {count - 1}, of --processes "
            f"{count}, got {number}"
        )
    if args.task is not None:  # Only a training is divided.
        return Group(count, number)
    check_backend("--hosts" if args.hosts else f"a run of {count} processes")
    return Group(count, number, args.hosts or address(count), local, WAIT)


def number_in(variable):
    """The number in an environment variable, None where it is not set."""
    text = os.environ.get(variable)
    if text and not text.isdecimal():
        raise UserError(
            f"{variable} expects a whole number, got {text!r}: correct it"
        )
    return int(text) if text else None


def check_backend(asked):
    """Raises `UserError` where Keras trains in one process only."""
    why = ONE_PROCESS.get(backend())
    if why:
        raise UserError(f"{asked} needs KERAS_BACKEND=jax: {why}")


def address(count):
    """`"HOST:PORT"` of process 0, from variables that JAX does not read."""
    jobs = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
    if jobs:
        first = jobs.split(",")[0]
        if not is_address(first):
            raise UserError(
                "KERAS_DISTRIBUTION_JOB_ADDRESSES expects ADDRESS:PORT of "
                f"process 0 first, got {first!r}: correct it"
            )
        return first
    # Open MPI 4 and SLURM, which JAX knows.
    if (
        "OMPI_COMM_WORLD_SIZE" not in os.environ
        or "OMPI_MCA_orte_hnp_uri" in os.environ
    ):
        return None
    # Open MPI 5 names the job, and on one host that is enough.
    if os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == str(count):
        job = zlib.crc32(os.environ.get("PMIX_NAMESPACE", "").encode())
        return f"127.0.0.1:{61440 + job % 4096}"
    raise UserError(
        "Open MPI 5 does not tell where process 0 is: add --hosts "
        "ADDRESS:PORT, its host and a free port there"
    )


def devices(group, gpus):
    """The numbers of the GPUs of this process, or None for all it sees.

    A launcher may show each process its own GPUs alone, or all of the host,
    which are then divided.

    Args:
        group: A `Group`.
        gpus: `--gpus`, or None.
    """
    if group.local is None:
        return gpus and list(range(gpus))
    each = gpus or 1
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    first = 0 if visible != [""] and len(visible) <= each else group.local
    return [first * each + number for number in range(each)]


def meet(group):
    """Waits for process 0, or sees that its port is free.

    Raises:
        UserError: If it is not, if it does not come, or has no address.
    """
    if group.address is None:
        return
    host, port = split(group.address)
    if group.number == 0:
        refuse_port(port)
        return
    end = time.monotonic() + group.wait
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except (socket.gaierror, UnicodeError) as error:
            reason = getattr(error, "strerror", error)  # Two dots, say.
            raise UserError(
                f"cannot find {host!r} ({reason}); --hosts "
                "expects the name or address of process 0's host"
            ) from None
        except OSError as error:
            reason = error.strerror or error
        if time.monotonic() > end:
            raise UserError(
                f"process 0 does not answer at {group.address} for "
                f"{group.wait} s ({reason}); start it, and see whether a "
                "firewall closes the port"
            )
        time.sleep(0.2)


def is_address(text):
    """Whether a text is `ADDRESS:PORT`."""
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


def split(address):
    """`("host", 1234)` of `"host:1234"` or `"[::1]:1234"`."""
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def refuse_port(port):
    """Raises `UserError` where another program listens at a port.

    JAX's service would share it without a word.
    """
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("", port))
        except OSError as error:
            raise UserError(
                f"process 0 cannot listen at port {port} ({error.strerror}); "
                "choose another one for --hosts, in all processes"
            ) from None
