"""Files that survive: whole-or-nothing writes, a lock, a run's files.

Every file is written beside its name and renamed when it is complete, so
that a crash or a full disk leaves the previous one.
"""

import contextlib
import fnmatch
import glob
import hashlib
import json
import os
import shutil

from capsnet.messages import UserError, reason_of

try:
    import fcntl
except ImportError:  # Windows has no flock; there, runs are not locked.
    fcntl = None

MODEL, RECORD, LOG, PLOT = (
    "trained_model.keras run.json log.csv log.png".split()
)
CHECKPOINT = "checkpoint"
# In each folder that a command writes to.
LOCK = ".lock"
# Before the name of a data set: two of its pictures in one.
PAIRS = "pairs:"
AUGMENTED = "augment.png"
BATCH = "batch.png"
AFFINE = "affine.png"
EXPLORED = "explore.html"
STATE = os.path.join(CHECKPOINT, "state.json")
# What tells of a run how it went.
OF_RUN = (STATE, RECORD, PLOT, BATCH, "tensorboard/*/events.out.tfevents.*")
# All that a test writes, whatever its models; --digit adds its own.
TEST_TABLE, PREDICTIONS = "test.csv", "predictions.csv"
TEST_FILES = ["test.json", TEST_TABLE, "confusion.png", "mistakes.png"]
TEST_FILES.append("real_and_recon.png")
# What tells of a model what it does.
OF_MODEL = [*TEST_FILES, AFFINE, EXPLORED, "manipulate-*.png"]
OF_MODEL += [PREDICTIONS, "predictions.png"]
# All that may be left half written; nothing else is ours to remove.
WRITTEN = (MODEL, RECORD, LOG, PLOT, BATCH, "epoch-*.weights.h5", "state.json")
WRITTEN += (AUGMENTED, *OF_MODEL)
LONGEST_NAME = 230  # Bytes, to which a process's number is added.
LEFTOVERS = [f".[0-9]*-{name}" for name in WRITTEN]  # Of `whole_file`.


def split_pairs(dataset):
    """`("pairs:", "mnist")` of `"pairs:mnist"`, `("", "mnist")` of that."""
    name = dataset.removeprefix(PAIRS)
    return dataset[: len(dataset) - len(name)], name


@contextlib.contextmanager
def writing(path):
    """Names the file where writing it fails: a full disk names none."""
    try:
        yield
    except OSError as error:
        # What h5py says of a full disk has several lines.
        reason = os.strerror(error.errno) if error.errno else reason_of(error)
        raise UserError(
            f"cannot write {os.fspath(path)!r} ({reason}); make room there, "
            "or choose another --save_dir"
        ) from error


def beside(path):
    """A name to write to before it becomes `path`; what was killed is removed.

    Only processes that are not there any more are killed ones.
    """
    folder, name = os.path.split(os.path.abspath(path))
    # No system takes names of more than 255 bytes.
    name = os.fsdecode(os.fsencode(name)[-LONGEST_NAME:])
    for other in glob.glob(f".[0-9]*-{glob.escape(name)}", root_dir=folder):
        if not is_running(other[1:].partition("-")[0]):
            with contextlib.suppress(OSError):
                remove_whole(os.path.join(folder, other))
    return os.path.join(folder, f".{os.getpid()}-{name}")


def is_running(process):
    """Whether there is a process of this number, a string.

    Where that cannot be asked, it may be.
    """
    if os.name != "posix":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True  # Another user's, or no number.
    return True


def remove_whole(path):
    """Removes a file, or a folder with all that is in it."""
    shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)


@contextlib.contextmanager
def whole_file(path):
    """Yields a name to write to; it becomes `path` when all went well.

    The temporary name ends like `path`, since Keras and matplotlib look at
    the suffix.

    Args:
        path: Where the file is to appear.

    Raises:
        UserError: If the file cannot be written; the old one stays.
    """
    temporary = beside(path)
    try:
        with writing(path):
            os.makedirs(os.path.dirname(temporary), exist_ok=True)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.remove(temporary)


def write_text(path, text):
    """Writes `text` in UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            file.write(text)


def write_json(path, content):
    """Writes `content` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def found(folder, patterns):
    """Paths of the files of a folder that match patterns of names."""
    for pattern in patterns:
        yield from glob.glob(os.path.join(glob.escape(folder), pattern))


def remove(folder, patterns):
    """Removes the files of a folder that match patterns of names.

    Raises:
        UserError: If one cannot be removed.
    """
    for path in found(folder, patterns):
        with writing(path):
            os.remove(path)


def sha256(path):
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_ours(name):
    """Whether a file has a name that commands write to `--save_dir`."""
    return any(fnmatch.fnmatch(name, pattern) for pattern in WRITTEN)


def refuse_tables(folder):
    """Raises `UserError` where a table would be replaced that is not ours.

    Many data sets have a `test.csv`. All tables of ours begin alike.
    """
    for name in (TEST_TABLE, PREDICTIONS):
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if file.read(5) not in (b"file,", b""):
                    raise UserError(
                        f"{path!r} is no table of results, and would be "
                        "replaced by one; choose another --save_dir"
                    )


@contextlib.contextmanager
def locked(folder):
    """Holds `folder` for this process; released even by SIGKILL.

    What a killed run left half written in it is removed.

    Raises:
        UserError: If another run holds it, or it cannot be written to.
    """
    with writing(folder):
        os.makedirs(folder, exist_ok=True)
        # At once: a pipe of this name would wait for its reader for ever.
        flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY
        flags |= getattr(os, "O_NONBLOCK", 0)
        path = os.path.join(folder, LOCK)
        file = open(os.open(path, flags, 0o666), "a", encoding="utf-8")
    with file:
        if is_alone(file, folder):
            for place in (folder, os.path.join(folder, CHECKPOINT)):
                # They do no harm where they stay.
                with contextlib.suppress(UserError):
                    remove(place, LEFTOVERS)
        yield


def is_alone(file, folder):
    """Locks an open file; False where the system cannot lock.

    Raises:
        UserError: If another run holds it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another run is writing to {folder!r}; wait for it, or "
            "choose another --save_dir"
        ) from None
    except OSError:  # Some network file systems have no locks.
        return False
    return True


def state_sha256(state):
    """Hexadecimal SHA-256 of a state, its own digest left out."""
    rest = {key: state[key] for key in state if key != "state_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_state(save_dir):
    """The state of a run's checkpoint, checked against its digests.

    Args:
        save_dir: The run's folder.

    Returns:
        Dictionary: the run's record, and `epochs_done`, `file` and `sha256`
        of its weights.

    Raises:
        UserError: If there is none, or it or its file is missing or damaged.
    """
    path = os.path.join(save_dir, STATE)
    advice = "restore the folder, or start again without --resume"
    if not os.path.exists(path):
        raise UserError(
            f"found no checkpoint in {save_dir!r}; start the run without "
            "--resume, or name its folder with --save_dir"
        )
    try:
        with open(path, encoding="utf-8") as file:
            state = json.load(file)
        name = os.path.basename(state["file"])
        weights = os.path.join(os.path.dirname(path), name)
        is_whole = state_sha256(state) == state["state_sha256"]
        is_intact = sha256(weights) == state["sha256"]
        int(state["epochs_done"]), dict(state.get("flags", {}))
    # JSON of a stranger raises nearly anything.
    except Exception as error:
        raise UserError(f"cannot read {path!r} ({error}); {advice}") from error
    if not is_whole:
        raise UserError(f"{path!r} is damaged; {advice}")
    if not is_intact:
        raise UserError(f"{weights!r} is damaged; {advice}")
    return state
