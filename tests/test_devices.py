"""Tests of devices.py: what Keras computes on, and its memory."""

import importlib.metadata
import os
import platform
import types

import keras
import numpy as np
import pytest

from capsnet import devices


def test_environment_names_versions_and_backend(monkeypatch):
    found = devices.environment()
    assert found["python"] == platform.python_version()
    assert found["backend"] == keras.backend.backend()
    assert found["versions"]["keras"] == keras.__version__
    assert found["versions"]["numpy"] == np.__version__
    for name, version in found["versions"].items():
        assert importlib.metadata.version(name) == version
    assert found["processor"] and found["cores"] >= 1
    monkeypatch.setattr(devices, "PACKAGES", ("numpy", "no-such-package"))
    assert list(devices.environment()["versions"]) == ["numpy"]


@pytest.mark.parametrize("present", (True, False))
def test_accelerator_is_named(present, monkeypatch):
    module = devices.backend_module()
    if keras.backend.backend() == "tensorflow":
        config = module.config
        found = ["GPU:0", "GPU:1"] if present else []
        details = {"device_name": "Some GPU"}
        monkeypatch.setattr(config, "get_visible_devices", lambda _: found)
        monkeypatch.setattr(
            config.experimental, "get_device_details", lambda _: details
        )
    elif keras.backend.backend() == "jax":
        kind = "gpu" if present else "cpu"
        device = types.SimpleNamespace(platform=kind, device_kind="Some GPU")
        monkeypatch.setattr(module, "devices", lambda: [device])
        monkeypatch.setattr(module, "default_backend", lambda: kind)
    else:
        cuda = module.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: present)
        monkeypatch.setattr(cuda, "get_device_name", lambda _: "Some GPU")
    expected = "Some GPU" if present else None
    assert devices.environment()["accelerator"] == expected
    assert devices.runs_on_cpu() is not present


def test_memory_is_that_of_the_limit_of_the_process(monkeypatch):
    whole = devices.machine_memory()
    for limit, expected in (
        (1_000_000_000, 1_000_000_000),
        (devices.resource.RLIM_INFINITY, whole),
    ):
        limits = (limit, limit)
        monkeypatch.setattr(devices.resource, "getrlimit", lambda _: limits)
        assert devices.machine_memory() == expected


@pytest.mark.parametrize(
    "error, expected",
    (
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while"), True),
        (RuntimeError("Graph execution error:\nOOM when allocating"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("shapes (2, 3) and (4,) differ"), False),
    ),
)
def test_errors_of_memory_are_known_on_every_backend(error, expected):
    assert devices.is_out_of_memory(error) == expected


def test_settings_of_keras_are_forgotten():
    keras.config.set_floatx("float64")
    keras.config.set_epsilon(1e-3)
    keras.config.set_image_data_format("channels_first")
    devices.forget_settings()
    assert keras.config.floatx() == "float32"
    assert keras.config.epsilon() == 1e-7
    assert keras.config.image_data_format() == "channels_last"


def test_memory_is_the_containers_where_it_has_less(tmp_path, monkeypatch):
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = tmp_path / "memory.max"
    files = (str(tmp_path / "missing"), str(limit))
    monkeypatch.setattr(devices, "MEMORY_LIMITS", files)
    for text, expected in (
        ("max\n", whole),
        ("3000000000\n", min(whole, 3_000_000_000)),
        # What version 1 says of no limit.
        ("9223372036854771712\n", whole),
    ):
        limit.write_text(text)
        assert devices.machine_memory() == expected
    monkeypatch.delattr(os, "sysconf")  # As on Windows.
    limit.write_text("max\n")
    assert devices.machine_memory() is None
