"""Tests of --export, and of the model as a file for other programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import bars
from running import NAMES, SHAPE, contents, lengths_of, message_of, run

from capsnet.models.networks import Baseline, Efficient
from capsnet.models.saving import load_model, save_model
from capsulenet import CapsNet, compile_model

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

ROOT = Path(__file__).parents[2]
# Prints of each model what it is, and whether the script was imported.
LOAD = """
import sys
import capsulelayers, keras
for path in sys.argv[1:]:
    model = keras.models.load_model(path, safe_mode=True)
    print(model.name, sorted(model.output), getattr(model, "optimizer", None))
print("capsulenet" in sys.modules)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The empty folder in which the command runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=("named", "colour"))
def model(request):
    """A model's path and the model: one with a decoder, one without."""
    return request.getfixturevalue(request.param)


def test_exported_model_computes_the_same(model):
    if keras.backend.backend() == "torch":
        pytest.skip("a SavedModel needs TensorFlow or JAX")
    tensorflow = pytest.importorskip("tensorflow")
    path, expected_model = model
    if "decoder" not in expected_model.output:
        Path("out").mkdir()  # An empty folder is taken.
    done = run("--export", "out", "-w", path)
    assert done.status == 0, done.err
    assert "saved_model.load('out')" in done.out
    shape = ", ".join(map(str, expected_model.input.shape[1:]))
    outputs = " and ".join(expected_model.output)
    assert f"(n, {shape}), float32 in [0, 1], gives {outputs}\n" in done.out
    assert os.listdir() == ["out"]
    record = json.loads(Path("out/assets.extra/run.json").read_text())
    assert record["class_names"] == NAMES
    served = tensorflow.saved_model.load("out")
    for count in (1, 5):
        x = bars(count, expected_model.input.shape[1:])[0] / np.float32(255)
        expected = expected_model.predict(x, verbose=0)
        outputs = served.serve(x)
        assert outputs.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(outputs[key], value, atol=1e-5)
    if keras.backend.backend() == "tensorflow":
        layer = keras.layers.TFSMLayer("out", call_endpoint="serve")
        for key, value in layer(x).items():
            np.testing.assert_allclose(value, expected[key], atol=1e-5)


def test_export_in_16_bits_is_half_as_large(model):
    path, expected_model = model
    done = run("--export", "half.keras", "-w", path)
    assert done.status == 0, done.err
    assert "capsulenet.py -t -w half.keras\n" in done.out
    assert os.listdir() == ["half.keras"]
    half = os.path.getsize("half.keras") / os.path.getsize(path)
    assert 0.45 < half < 0.6
    loaded, record = load_model("half.keras")
    assert record == load_model(path)[1]
    x = bars(5, expected_model.input.shape[1:])[0]
    found, expected = lengths_of(loaded, x), lengths_of(expected_model, x)
    np.testing.assert_allclose(found, expected, atol=5e-3)
    assert not np.array_equal(found, expected)
    # An old file is not overwritten.
    message = message_of(run("--export", "half.keras", "-w", path))
    assert "expects a new file" in message


def test_export_into_a_link_fills_the_folder_it_leads_to(named, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def write(model, path, **kwargs):
        Path(path, "variables").mkdir(parents=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.Model, "export", write)
        done = run("--export", tmp_path / "link", "-w", named[0])
    assert done.status == 0, done.err
    assert (tmp_path / "link").is_symlink()
    found = os.listdir(tmp_path / "real")
    assert sorted(found) == ["assets.extra", "variables"]


def test_export_that_fails_leaves_nothing(named, monkeypatch):
    def fail(model, path, **kwargs):
        Path(path, "variables").mkdir(parents=True)
        raise RuntimeError("no room\nfor it")

    monkeypatch.setattr(keras.Model, "export", fail)
    message = message_of(run("--export", "out", "-w", named[0]))
    assert "'out'" in message and "no room" in message
    assert contents(".") == {} and os.listdir() == []


def test_model_loads_after_importing_the_layers_alone(named, tmp_path):
    """The baseline and a model without a decoder once took their loss along."""
    paths = [named[0]]
    for name, models in (
        ("plain", CapsNet(SHAPE, 3, decoder=False)),
        ("baseline", Baseline(SHAPE, 3)),
        ("small", Efficient(SHAPE, 3)),
    ):
        compile_model(models[0], 0.001, 0.0)
        paths.append(str(tmp_path / f"{name}.keras"))
        save_model(models[1], paths[-1], {})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [
        "capsnet_model ['capsnet', 'decoder'] None",
        "capsnet_model ['capsnet'] None",
        "baseline ['capsnet'] None",
        "efficient_model ['capsnet', 'decoder'] None",
        "False",
    ], done.stderr
