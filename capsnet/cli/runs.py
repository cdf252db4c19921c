"""What a training holds out, records, and has in common with its like."""

from capsnet.data.batches import steps_per_epoch
from capsnet.data.sources import hold_out
from capsnet.devices import environment
from capsnet.messages import UserError
from capsnet.models.geometry import parameters


def held_out(task, data):
    """The data without what is held out of them, and that, or `None`."""
    resumed = task.arguments["resumed"]
    if task.val_fraction:
        if data.validation and not resumed:
            raise UserError(
                "--val_fraction is for data without a validation part, and "
                f"{data.name!r} has one: leave it out"
            )
        data, *validation = hold_out(data, task.val_fraction, task.seed)
        return data, validation
    # A run of before has not looked at the validation part.
    is_old = resumed and "best" not in resumed
    return data, None if is_old else data.validation


def agreement(task, digest):
    """What all processes of a training have to have in common."""
    flags = {f"--{name}": task.flags[name] for name in task.flags}
    for name in ("--hosts", "--process", "--save_dir"):
        flags.pop(name, None)
    checkpoint = (task.arguments["resumed"] or {}).get("state_sha256")
    versions = environment()["versions"]
    return {**flags, **versions, "checkpoint": checkpoint, "data": digest}


def record_of(task, data, batch_size, train_model):
    """What `run.json` and the model file will say of a training."""
    n_class = len(data.class_names)
    steps = steps_per_epoch(len(data.x_train), batch_size)
    return {
        "flags": task.flags,
        **data.record(),
        "batch_size": batch_size,
        "lam_recon": task.lam_recon(data.target_shape, n_class),
        "ema": task.ema(task.arguments["epochs"] * steps),
        "parameters": parameters(train_model),
        "environment": environment(),
    }
