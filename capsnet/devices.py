"""devices."""

import importlib
import importlib.metadata
import os
import platform

import keras

from_packages = ("keras", "tensorflow", "jax", "torch", "numpy")


def runs_on_cpu():
    """Whether Keras computes on a CPU. Starts no device.

    TensorFlow's devices can only be split before they are started, so they
    are not asked for more than which of them are visible.
    """
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    if backend == "tensorflow":
        return not module.config.get_visible_devices("GPU")
    if backend == "jax":
        return module.default_backend() == "cpu"
    return not module.cuda.is_available()


def machine_memory():
    """Bytes of memory of this machine, or `None` where that is unknown."""
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    return pages * size if pages > 0 and size > 0 else None


def environment():
    """What a run depends on: versions, backend, processor, accelerator."""
    versions = {}
    for name in from_packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "versions": versions,
        "backend": keras.backend.backend(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "accelerator": accelerator_name(),
    }


def accelerator_name():
    """Name of the first GPU or TPU that Keras computes on; None on a CPU."""
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    if backend == "tensorflow":
        for device in module.config.get_visible_devices("GPU"):
            details = module.config.experimental.get_device_details(device)
            return details.get("device_name", "GPU")
    elif backend == "jax":
        device = module.devices()[0]
        if device.platform != "cpu":
            return device.device_kind
    elif module.cuda.is_available():
        return module.cuda.get_device_name(0)
    return None


def processor_name():
    """The processor as the system calls it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def tensorflow():
    """The package where it is Keras's backend, elsewhere None."""
    if keras.backend.backend() == "tensorflow":
        return importlib.import_module("tensorflow")
    return None


def make_deterministic():
    """The same operations in the same order, whatever the threads do."""
    if tf := tensorflow():
        tf.config.experimental.enable_op_determinism()
