"""CapsNet on several devices: `capsulenet.py` on the GPUs of one host or more.

    python capsulenet-multi-gpu.py --gpus 2               two GPUs
    python capsulenet-multi-gpu.py --gpus 2 --device cpu  try it without any

TensorFlow uses `MirroredStrategy`; JAX, with `KERAS_BACKEND=jax` before the
command, `keras.distribution`, which also takes several hosts:

    srun python capsulenet-multi-gpu.py ...
    mpirun python capsulenet-multi-gpu.py ...
    python capsulenet-multi-gpu.py --hosts HOST:PORT --processes 2 --process 0
    python capsulenet-multi-gpu.py --hosts HOST:PORT --processes 2 --process 1

The last two are for one host each; HOST is that of process 0, and PORT is free
there. Process 0 alone prints, tests and writes; all read the data set, and
with `--resume` the checkpoint. When one is lost, all end.

Every flag of `capsulenet.py` works the same. `--batch_size` is the whole
batch, of which each device takes its part; its default is 100 for each, and
for a small set a hundredth of its training pictures, at least 10. A last batch
that the devices do not divide is filled up with blank pictures that weigh
nothing, so that two devices train like one and no picture is left out.
"""

import sys

from capsnet.cli import checks, hosts, watching

if __name__ == "__main__":
    # -h and a wrong flag answer before TensorFlow is imported.
    args = checks.start(__doc__, multi_gpu=True)
    if args.task is None:
        watching.watch(args.group)

import keras

from capsnet.cli import commands
from capsnet.messages import UserError, counted, fail
from capsnet.training import sharing
from capsulenet import SCRIPT


def mirrored(gpus, device):
    """GPUs of this host that share a training by `MirroredStrategy`.

    Args:
        gpus: Positive integer, or None for all GPUs there are.
        device: `"gpu"`, or `"cpu"` to split the CPU into `gpus` devices.

    Returns:
        A `sharing.Sharing`.

    Raises:
        UserError: If there are fewer GPUs.
    """
    import tensorflow as tf

    if device == "cpu":
        count = gpus or 1
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_visible_devices([], "GPU")
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
        names = [f"CPU:{number}" for number in range(count)]
    else:
        found = len(tf.config.list_physical_devices("GPU"))
        count = gpus or found
        if found < count or found == 0:
            asked = counted(gpus or "all", "GPU")
            raise UserError(
                f"--gpus asks for {asked}, and TensorFlow sees "
                f"{found}; ask for fewer, or try --device cpu"
            )
        names = [f"GPU:{number}" for number in range(count)]
    strategy = tf.distribute.MirroredStrategy(names)
    return sharing.Sharing(strategy.scope, strategy.num_replicas_in_sync)


def share(args):
    """The devices that checked flags name, as a `sharing.Sharing`."""
    name = keras.backend.backend()
    if name == "tensorflow":
        return mirrored(args.gpus, args.device)
    if name == "jax":
        visible = args.group and hosts.devices(args.group, args.gpus)
        return sharing.data_parallel(
            args.group, args.gpus, args.device, visible
        )
    raise UserError(
        f"several devices need KERAS_BACKEND=jax or tensorflow, got {name!r}: "
        f"{hosts.ONE_PROCESS[name]}; or run capsulenet.py on one device"
    )


def run(args):
    """Does what checked flags ask for; returns the exit status."""
    if args.task is not None:  # Only a training is divided.
        is_other = args.group is not None and args.group.number > 0
        return 0 if is_other else commands.run(args, SCRIPT)
    try:
        shared = share(args)
    except UserError as error:
        return fail(str(error), 2)
    count = shared.process[1]
    of = f" of {count} processes" if count > 1 else ""
    print(f"Training on {counted(shared.replicas, 'device')}{of}")
    return commands.run(args, SCRIPT, shared)


def main(argv=None):
    """Parses a command line and runs it; returns the exit status."""
    return run(checks.parse_args(argv, __doc__, multi_gpu=True))


if __name__ == "__main__":
    is_shared = args.group is not None and args.task is None
    sys.exit(sharing.together(lambda: run(args)) if is_shared else run(args))
