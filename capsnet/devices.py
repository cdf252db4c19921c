"""What Keras computes on: the device, its memory, and a record of it all.

TensorFlow is imported here and nowhere else but in the multi-GPU script.
"""

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path

import keras

from capsnet.messages import counted

try:
    import resource
except ImportError:  # Windows has no such limits.
    resource = None

PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy")
# Where a container's limit stands, by version of its control groups.
MEMORY_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)

# Options of glibc's mallopt, by their numbers in <malloc.h>, in bytes: what is
# freed stays (M_TRIM_THRESHOLD), more is taken at a time (M_TOP_PAD), and only
# a larger block is mapped by itself (M_MMAP_THRESHOLD).
MALLOC = {-1: 2**31 - 1, -2: 2**28, -3: 2**30}


def backend_module():
    """The package that Keras computes with."""
    return importlib.import_module(keras.backend.backend())


def tensorflow():
    """The package where it is Keras's backend, elsewhere None."""
    is_backend = keras.backend.backend() == "tensorflow"
    return backend_module() if is_backend else None


def forget_settings():
    """Sets Keras up as it is without a keras.json, but for the backend.

    Networks are what they are on every machine.
    """
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


@contextlib.contextmanager
def alone():
    """Within it this process computes by itself, on one device.

    What is built in it belongs to none of the devices that share a training.
    """
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def shared(rows):
    """Rows of a batch as `fit` gives them to the devices that share a batch.

    Args:
        rows: NumPy array, this process's rows.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return rows
    layout = distribution.get_data_layout(rows.shape).backend_layout
    return backend_module().make_array_from_process_local_data(layout, rows)


def make_deterministic():
    """The same operations in the same order, whatever the threads do.

    This is for TensorFlow, whose `jit_compile="auto"` Keras then turns off:
    XLA orders operations by itself. JAX on a GPU remains as it is; there two
    runs of a seed differ in the loss's fourth digit after an epoch.
    """
    if tf := tensorflow():
        tf.config.experimental.enable_op_determinism()


def create_variables(model):
    """Creates what the first step of a compiled model would: moments, metrics.

    TensorFlow traces a step twice that creates variables, for seconds each
    time. With a strategy, and on the other backends, Keras does this itself.
    """
    tf = tensorflow()
    if tf is None or tf.distribute.has_strategy():
        return
    model.optimizer.build(model.trainable_variables)
    blank = keras.tree.map_structure(
        lambda output: tf.zeros((1, *output.shape[1:])), model.output
    )
    model.compute_loss(y=blank, y_pred=blank)
    model.compute_metrics(None, blank, blank)
    model.reset_metrics()


def keep_freed_memory():
    """Lets one step compute in the memory that the step before has freed.

    As it comes, glibc hands large blocks back to the system, which has to map
    and to clear some hundred thousand pages anew in each step: a third of the
    time of CapsNet on a CPU. Other C libraries stay as they are.
    """
    with contextlib.suppress(AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, size in MALLOC.items():
            mallopt(option, size)


def runs_on_cpu():
    """Whether Keras computes on a CPU. Starts no device.

    TensorFlow's devices can only be split before they are started, so they
    are not asked for more than which of them are visible.
    """
    module = backend_module()
    if keras.backend.backend() == "tensorflow":
        return not module.config.get_visible_devices("GPU")
    if keras.backend.backend() == "jax":
        return module.default_backend() == "cpu"
    return not module.cuda.is_available()


def machine_memory():
    """Bytes of memory that there are, or `None` where that is unknown.

    In a container, or under `ulimit -v`, these are its own, not the machine's.
    """
    found = []
    if resource is not None:  # No limit is a negative number.
        found += [resource.getrlimit(resource.RLIMIT_AS)[0]]
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found += [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number.
            found.append(int(Path(path).read_text()))
    return min((size for size in found if size > 0), default=None)


def require_memory(size):
    """Raises MemoryError where so many bytes are not there to be taken."""
    free = machine_memory()
    with contextlib.suppress(OSError, TypeError):
        text = Path("/proc/meminfo").read_text("ascii")
        found = re.search(r"MemAvailable: +(\d+) kB", text)
        free = min(free, 1024 * int(found[1]))
    if free is not None and size > free:
        raise MemoryError


def is_out_of_memory(error):
    """Whether an error, of any backend, says that there is no memory left."""
    words = "RESOURCE_EXHAUSTED", "OOM when allocating", "out of memory"
    return isinstance(error, MemoryError) or any(
        word in f"{error}" for word in words
    )


def environment():
    """What a run depends on, as plain values for its record."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "python": platform.python_version(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "accelerator": accelerator_name(),
    }


def described(environment):
    """The backend and the device of a record, in words."""
    name = environment["backend"]
    version = environment["versions"].get(name, "")
    cores = counted(environment["cores"], "core")
    device = environment["accelerator"] or (
        f"the CPU, {environment['processor']}, {cores}"
    )
    return f"{name} {version} on {device}"


def accelerator_name():
    """Name of the first GPU or TPU that Keras computes on; None on a CPU."""
    module = backend_module()
    if keras.backend.backend() == "tensorflow":
        for device in module.config.get_visible_devices("GPU"):
            details = module.config.experimental.get_device_details(device)
            return details.get("device_name", "GPU")
    elif keras.backend.backend() == "jax":
        device = module.devices()[0]
        if device.platform != "cpu":
            return device.device_kind
    elif module.cuda.is_available():
        return module.cuda.get_device_name(0)
    return None


def processor_name():
    """The processor as the system calls it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
