"""What the record in a model's file may hold; it may be a stranger's."""

from capsnet.limits import CHOICES, INTEGERS, NUMBERS, is_within
from capsnet.messages import UserError, shorten
from capsnet.models.archive import OURS

# Numbers of which there may be one for each axis.
PAIRS = {"conv_kernel", "conv_strides", "primary_kernel", "primary_strides"}
# Flags that may be null: then they are as where they are not there.
OPTIONAL = {"dataset", "image_size", "test_fraction", "routing", "routings"}
OPTIONAL |= {"capsule_bias", *PAIRS}
# Other numbers that something is made of; the rest only tells.
USED = {"seed", "primary_scale", "lam_recon", *OPTIONAL}
LABELS = ("one", "pair", "several")


def check_record(record, path):
    """Raises UserError unless a record holds what `save_model` was given.

    Args:
        record: What JSON made of it.
        path: The model's file.
    """
    if not isinstance(record, dict):
        raise unexpected("record", record, path)
    flags = record.get("flags", {})
    if not isinstance(flags, dict):
        raise unexpected("flags", flags, path)
    for name, value in flags.items():
        if not (value is None and name in OPTIONAL or may_hold(name, value)):
            raise unexpected(name, value, path)
    names = record.get("class_names")
    if names is not None and not is_list_of(str, names):
        raise unexpected("class_names", names, path)
    if record.get("labels", "one") not in LABELS:
        raise unexpected("labels", record["labels"], path)


def may_hold(name, value):
    """Whether a flag may have this value; any that is not used by loading."""
    if name == "dataset":
        return isinstance(value, str)
    if name in ("grayscale", "skip_unreadable"):
        return isinstance(value, bool)
    if name == "lam_recon" and value in ("classic", "authors"):
        return True
    if name == "image_size" or (name in PAIRS and isinstance(value, list)):
        is_pair = is_list_of(int, value) and len(value) == 2
        return is_pair and all(is_within(side, name) for side in value)
    if name in CHOICES:
        return value in CHOICES[name]
    if name in USED and (name in INTEGERS or name in NUMBERS):
        return is_within(value, name)
    return True


def is_list_of(kind, value):
    """Whether it is a list whose parts all are of a kind."""
    return isinstance(value, list) and all(type(v) is kind for v in value)


def unexpected(name, value, path):
    """The error for what is in a record and cannot be."""
    received = shorten(repr(value), 60)
    return UserError(
        f"the record in {path!r} has {name} {received}, which cannot be; {OURS}"
    )
