"""A training that several devices share, in one process or in several: JAX.

`keras.distribution` does the work. Every process feeds its own rows of each
batch; weights are the same everywhere, so that one process alone tests and
writes.
"""

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable

import keras
import numpy as np

from capsnet.devices import backend_module
from capsnet.messages import HUSH, UserError, counted, listed, reason_of

# Seconds without a sign of life after which a process counts as lost, and all
# others end.
LIFE = 30
# Seconds from a failure, which all may find at once, to the end.
GRACE = 2


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Who shares a training.

    Args:
        scope: Function that returns the context to build and train in.
        replicas: By how many devices a batch is divided.
        process: Pair, which of how many processes this is.
    """

    scope: Callable = contextlib.nullcontext
    replicas: int = 1
    process: tuple = (0, 1)

    @property
    def leads(self):
        """Whether this process writes, prints and tests."""
        return self.process[0] == 0

    @contextlib.contextmanager
    def in_turn(self, needed=True):
        """Within it process 0 is first, and then the others are."""
        if needed and not self.leads:
            gather("")
        yield
        if needed and self.leads and self.process[1] > 1:
            gather("")

    def agree(self, what):
        """Raises `UserError` where processes differ in what they are to do.

        Args:
            what: Dictionary of plain values, by their names for the user.
        """
        if self.process[1] == 1:
            return
        first, *others = map(json.loads, gather(json.dumps(what)))
        for number, other in enumerate(others, 1):
            differing = [
                f"{name} {other.get(name)}, not {first[name]}"
                for name in first
                if other.get(name) != first[name]
            ]
            if differing:
                raise UserError(
                    f"process {number} differs from process 0: "
                    f"{listed(differing)}; start all with the same flags, on "
                    "the same data"
                )


def data_parallel(group, gpus, device, visible):
    """Devices that share a training by `keras.distribution.DataParallel`.

    To be called before anything is computed.

    Args:
        group: A `hosts.Group`, or None for one process.
        gpus: Devices of each process, None for all there are.
        device: `"gpu"`, or `"cpu"` to split the CPU into `gpus` devices.
        visible: None, or a list of the numbers of GPUs that a process of a
            group may use.

    Returns:
        A `Sharing`.

    Raises:
        UserError: If there are fewer devices, or processes cannot meet.
    """
    jax = backend_module()
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", gpus or 1)
    if group is not None:
        connect(group, visible)
    own = jax.local_devices()
    found = 0 if own[0].platform == "cpu" != device else len(own)
    if found < (gpus or 1):
        raise UserError(
            f"--gpus asks for {counted(gpus or 'all', 'GPU')}, and JAX sees "
            f"{found}; ask for fewer, or try --device cpu"
        )
    if jax.device_count() != jax.process_count() * found:
        raise UserError(
            f"each process needs as many devices as the others, got {found} "
            f"here and {jax.device_count()} in all; name the same --gpus for "
            "each"
        )
    names = keras.distribution.list_devices()
    if group is None:
        names = names[:gpus]
    if len(names) == 1:
        return Sharing()  # A mesh of one would be compiled twice.
    shared = keras.distribution.DataParallel(
        devices=names, auto_shard_dataset=False
    )
    process = (group.number, group.count) if group else (0, 1)
    return Sharing(shared.scope, len(names), process)


def connect(group, visible):
    """Joins the processes of a group; `keras.distribution.initialize`.

    That one sets no limits of time.
    """
    HUSH.end()  # A parent reads why the runtime ends this process.
    try:
        backend_module().distributed.initialize(
            group.address,
            group.count,
            group.number,
            visible,
            initialization_timeout=group.wait,
            heartbeat_timeout_seconds=LIFE,
        )
    except Exception as error:
        raise UserError(
            f"the {group.count} processes cannot meet: {reason_of(error)}"
        ) from error


def gather(text):
    """What each process has to say, in their order: a list of texts."""
    from jax.experimental import multihost_utils

    said = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(said)))
    rows = np.zeros(sizes.max(), np.uint8)
    rows[: len(said)] = said
    rows = multihost_utils.process_allgather(rows)
    return [bytes(row[:n]).decode() for row, n in zip(rows, sizes)]


def together(run):
    """`run()` as one of several processes; the exit status that it returns.

    A process that failed does not wait for the others, or they would all
    wait for each other. One that lost another waits for JAX's runtime to end
    it, which names the lost one.
    """
    try:
        status = run()
        if status == 0:
            gather("")  # Process 0 has more to do than the others.
    except Exception:
        text = traceback.format_exc()
        if re.search("gloo|nccl", text, re.IGNORECASE):
            time.sleep(2 * LIFE)
        print(text, end="", file=sys.stderr)
        status = 1
    if status:
        sys.stdout.flush()
        # Without process 0 the others end at once; they may have to say why.
        time.sleep(GRACE)
        os._exit(status)
    return status
