"""The parts of a data set: what people call them, and what is tested.

`part_of` understands the name of a folder or a file (`Training`, `seg_test`,
`valid`), `array_of` that of an array (`X_train`, `test_labels`) or of a file
that holds one (`emnist-letters-train-images-idx3-ubyte.gz`). Where there is
no test part, `complete` finds one.
"""

import hashlib
import os
import re

import numpy as np

from capsnet.messages import UserError, counted, listed

# Of each class, where a data set has no test part of its own.
TEST_FRACTION = 0.2
# The only part of a data set that has but one.
ALL = "all"
PARTS = ("train", "test", "val")
PART = re.compile(
    r"(?<![a-z])(?:(train(?:ing)?)|(test(?:ing)?|t10k)|(val(?:id(?:ation)?)?))"
    r"(?:[^a-z]?sets?|data)?(?![a-z])"
)
ROLES = {
    "x": "x features images image imgs img pictures data".split(),
    "y": "y labels label targets target classes class".split(),
}
# Between the words of trainX, TestImages and Xtrain.
BORDER = re.compile(
    r"(?<=[a-z0-9])(?=[A-Z])|(?<=^[xyXY])(?=[Tt]rain|[Tt]est|[Vv]al)"
)


def part_of(name):
    """The part that a name tells, or `None`, and the rest of the name.

    `"seg_test"` is `("test", "seg")`, `"test_tube_train"` no part.
    """
    words = BORDER.sub("_", name).casefold()
    found = list(PART.finditer(words))
    part = None
    if len(found) == 1:
        part = PARTS[found[0].lastindex - 1]
        start, end = found[0].span()
        words = f"{words[:start]} {words[end:]}"
    return part, " ".join(re.findall("[a-z0-9]+", words))


def array_of(name):
    """Of which set, which part and what an array is, by its name.

    `"emnist-letters-train-images"` is `("emnist letters", "train", "x")`;
    of a name without a part the part is `ALL`. `None` for another name.
    """
    part, rest = part_of(name)
    words = rest.split()
    roles = {role for role in ROLES if set(ROLES[role]) & set(words)}
    if len(roles) != 1:
        return None
    (role,) = roles
    others = [word for word in words if word not in ROLES[role]]
    return " ".join(others), part or ALL, role


def choose_arrays(names, where, wanted="x_train, y_train, x_test, y_test"):
    """Which arrays are the pictures and the labels of each part.

    Args:
        names: The names of all arrays that are there.
        where: Path of what holds them, and
        wanted: what they should be called, for the error.

    Returns:
        Pairs of names by part, and what else the names of their set say.

    Raises:
        UserError: If none, or not one set alone, has all that is needed.
    """
    sets = {}
    for name in names:
        if described := array_of(name):
            prefix, part, role = described
            parts = sets.setdefault(prefix, {})
            parts.setdefault(part, {}).setdefault(role, []).append(name)
    whole = {}
    for prefix, parts in sets.items():
        pairs = {
            part: (roles["x"][0], roles["y"][0])
            for part, roles in parts.items()
            if sorted(map(len, roles.values())) == [1, 1]
        }
        if list(parts) != [ALL]:
            pairs.pop(ALL, None)
        if has_test(pairs) or ALL in pairs:
            whole[prefix] = pairs
    whole = {k: pairs for k, pairs in whole.items() if has_test(pairs)} or whole
    if len(whole) == 1:
        return next((pairs, prefix) for prefix, pairs in whole.items())
    received = listed(sorted(names)) or "none"
    advice = "add what is missing, or rename what is there"
    if whole:
        advice = "keep one set in a file or folder of its own"
    raise UserError(
        f"expected the arrays {wanted} once in {str(where)!r}, received "
        f"{received}: {advice}"
    )


def has_test(parts):
    """Whether one can train on a part and test on another one."""
    return "train" in parts and len(parts) > 1


def complete(name, parts, names, fraction, usual=None):
    """The parts with one that is tested, and notes.

    Args:
        name: The data set's name, for the error.
        parts: Arrays `(x, y)` by part, and whatever else each picture has.
        names: For each picture of the part `ALL` a name, which decides
            whether it is tested; `None` for its place.
        fraction: None, or the part of each class that is kept for the test.
        usual: None, or what is kept where no fraction is given.

    Raises:
        UserError: If a fraction is given where there is a test part.
    """
    if ALL in parts:
        y = parts[ALL][1]
        names = names or list(map(str, range(len(y))))
        fraction = fraction or usual or TEST_FRACTION
        is_test = choose_test(y, names, fraction)
        if not is_test.any():
            raise UserError(
                "expected two pictures of a class at least, one of them for "
                f"the test, received {name!r} with one of each: add some"
            )
        kept = {"train": ~is_test, "test": is_test}
        parts = {
            part: tuple(each[own] for each in parts[ALL])
            for part, own in kept.items()
        }
        return parts, []
    if fraction is not None:
        raise UserError(
            "expected --test_fraction with data that have no test part, "
            f"received {fraction} with {name!r}: leave it out"
        )
    if "test" not in parts:
        parts = {**parts, "test": parts["val"]}
        del parts["val"]
        return parts, ["No test part: the validation part is used for the test"]
    if "val" not in parts:
        return parts, []
    held_out = counted(len(parts["val"][1]), "validation picture")
    return parts, [f"Held out: {held_out}; the best epoch on them is kept"]


def choose_test(y, names, test_fraction):
    """Which pictures are for the test: of each class at least one.

    The names alone decide, by their digests, and no seed: models of several
    seeds keep the same pictures for the test, so that none of an ensemble was
    trained on them, and where a picture is added or removed, one other at
    most changes its part.
    """
    digests = np.array(
        [hashlib.sha256(os.fsencode(n)).hexdigest() for n in names]
    )
    if y.ndim == 2:
        y = y.argmax(1)
    is_test = np.zeros(len(y), bool)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        members = members[np.argsort(digests[members])]
        count = max(1, round(test_fraction * len(members)))
        is_test[members[: min(count, len(members) - 1)]] = True
    return is_test
