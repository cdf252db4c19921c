"""Tests of devices.py: what a record says of the machine."""

import importlib
import importlib.metadata
import platform
import types

import keras
import numpy as np
import pytest

from capsnet import devices
from capsnet.devices import environment


def test_environment_names_versions_and_backend():
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["backend"] == keras.backend.backend()
    assert found["versions"]["keras"] == keras.__version__
    assert found["versions"]["numpy"] == np.__version__
    for name, version in found["versions"].items():
        assert importlib.metadata.version(name) == version
    assert found["processor"] and found["cores"] >= 1


def test_environment_leaves_out_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(devices, "PACKAGES", ("numpy", "no-such-package"))
    assert list(environment()["versions"]) == ["numpy"]


@pytest.mark.parametrize("present", [True, False])
def test_accelerator_is_named(present, monkeypatch):
    backend = keras.backend.backend()
    module = importlib.import_module(backend)
    if backend == "tensorflow":
        config = module.config
        found = ["GPU:0", "GPU:1"] if present else []
        details = {"device_name": "Some GPU"}
        monkeypatch.setattr(config, "get_visible_devices", lambda _: found)
        monkeypatch.setattr(
            config.experimental, "get_device_details", lambda _: details
        )
    elif backend == "jax":
        kind = "gpu" if present else "cpu"
        device = types.SimpleNamespace(platform=kind, device_kind="Some GPU")
        monkeypatch.setattr(module, "devices", lambda: [device])
    else:
        cuda = module.cuda
        monkeypatch.setattr(cuda, "is_available", lambda: present)
        monkeypatch.setattr(cuda, "get_device_name", lambda _: "Some GPU")
    expected = "Some GPU" if present else None
    assert environment()["accelerator"] == expected
