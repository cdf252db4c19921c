"""What a training tells the user before it begins, and when it is stopped."""

import os
import sys

from capsnet.cli.settings import Training
from capsnet.devices import machine_memory, runs_on_cpu
from capsnet.files import STATE, read_state
from capsnet.messages import UserError, command, counted, cross, gigabytes
from capsnet.models.geometry import describe, training_memory
from capsnet.models.inference import PREDICT_BATCH


def tell_network(train_model, data, batch_size, replicas):
    """Prints the network that was built, and whether its memory is there."""
    sizes = {
        # One batch may be larger than the whole set.
        "batch_size": min(batch_size, len(data.x_train)),
        "test_batch": min(PREDICT_BATCH, len(data.x_test)),
        "pictures": len(data.x_train) + len(data.x_test),
        "replicas": replicas,
    }
    print(describe(train_model, **sizes), flush=True)
    available = machine_memory() if runs_on_cpu() else None
    needed = training_memory(train_model, **sizes)
    if available is not None and needed > available:
        print(
            f"Warning: training may need {gigabytes(needed)} of memory, and "
            f"there are {gigabytes(available)}: if it fails, lower "
            "--batch_size or --image_size"
        )


def tell_compilation(task):
    """Warns where XLA would be far slower than no compilation."""
    direct = task.network.conv == "direct" or task.dtype_policy != "float32"
    if task.jit_compile is True and direct and runs_on_cpu():
        print(
            "Warning: with direct convolutions (--conv direct, or 16 bits) "
            "--jit_compile on makes a CPU about twenty times slower"
        )


def tell_run(task, data, record):
    """Prints what is trained, how far the rate falls, and what is replaced."""
    epochs, resumed = task.arguments["epochs"], task.resumed
    if resumed and resumed["epochs_done"] >= epochs:
        print(
            f"The run is finished: {resumed['epochs_done']} of "
            f"{counted(epochs, 'epoch')}; a larger --epochs goes on"
        )
        return
    pictures = len(data.x_train)
    print(
        f"Training on {counted(pictures, 'picture')} of "
        f"{cross(record['input_shape'])}, {len(data.class_names)} classes; "
        f"{record['parameters']:,} weights"
    )
    lr, decay, decay_steps = (
        task.arguments[name] for name in ("lr", "lr_decay", "lr_decay_steps")
    )
    steps = -(-pictures // record["batch_size"])
    falls = epochs - 1
    if decay_steps:
        falls = (steps * epochs - 1) / decay_steps
    last = lr * decay**falls
    print(f"Learning rate {lr:.3g}, in the last step {last:.3g}")
    if not resumed:
        tell_replaced(task.save_dir)


def tell_replaced(save_dir):
    """Says which run a new one in its folder replaces."""
    try:
        state = read_state(save_dir)
    except UserError:
        return  # There is none that could have gone on.
    done = state["epochs_done"]
    epochs = state["flags"].get("epochs", 0)
    if done < epochs:
        print(
            f"Replacing the unfinished run in {save_dir} ({done} of "
            f"{counted(epochs, 'epoch')} done), with which --resume would "
            "have gone on"
        )
    else:
        print(
            f"Replacing the finished run in {save_dir} "
            f"({counted(done, 'epoch')})"
        )


def interrupted(task):
    """What to say after Ctrl-C."""
    if not isinstance(task, Training):
        return "interrupted"
    if not os.path.exists(os.path.join(task.save_dir, STATE)):
        return "interrupted before the first epoch's end; nothing is saved yet"
    go_on = command(os.path.basename(sys.argv[0]), *task.again)
    return f"interrupted; the finished epochs are saved. Go on: {go_on}"
