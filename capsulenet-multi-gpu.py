"""CapsNet on several GPUs: `capsulenet.py` under `MirroredStrategy`.

    python capsulenet-multi-gpu.py --gpus 2               two GPUs
    python capsulenet-multi-gpu.py --gpus 2 --device cpu  try it without any

Every flag of `capsulenet.py` works the same. `--batch_size` is the whole
batch, of which each GPU takes its part; its default is 100 for each GPU, and
for a small set a hundredth of its training pictures, at least 10. A last batch
that the GPUs do not divide is filled up with blank pictures that weigh nothing,
so that two GPUs train like one and no picture is left out.
"""

import sys

from capsnet.cli import checks

if __name__ == "__main__":
    # -h and a wrong flag answer before TensorFlow is imported.
    args = checks.start(__doc__, multi_gpu=True)

import keras

from capsnet.cli import commands
from capsnet.messages import UserError, counted, fail
from capsulenet import SCRIPT


def make_strategy(gpus, device):
    """`MirroredStrategy` over the devices that were asked for.

    Args:
        gpus: Positive integer, or None for all GPUs there are.
        device: `"gpu"`, or `"cpu"` to split the CPU into `gpus` devices.

    Returns:
        A `tf.distribute.MirroredStrategy`.

    Raises:
        UserError: If there are fewer GPUs, or Keras runs on another
            backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            "MirroredStrategy needs the TensorFlow backend, got "
            f"{keras.backend.backend()!r}; unset KERAS_BACKEND, or run "
            "capsulenet.py on one device"
        )
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
    return tf.distribute.MirroredStrategy(names)


def run(args):
    """Does what checked flags ask for; returns the exit status."""
    if args.task is not None:  # Only a training is divided.
        return commands.run(args, SCRIPT)
    try:
        strategy = make_strategy(args.gpus, args.device)
    except UserError as error:
        return fail(str(error), 2)
    replicas = strategy.num_replicas_in_sync
    print(f"Training on {counted(replicas, 'device')}")
    return commands.run(args, SCRIPT, strategy.scope, replicas)


def main(argv=None):
    """Parses a command line and runs it; returns the exit status."""
    return run(checks.parse_args(argv, __doc__, multi_gpu=True))


if __name__ == "__main__":
    sys.exit(run(args))
