"""Section 4's numbers for any size of picture, and the table of a network."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from capsnet.messages import UserError
from capsnet.models.geometry import (
    choose_geometry,
    describe,
    fit_geometry,
    map_sizes,
    training_memory,
)
from capsnet.models.networks import Baseline, attach
from capsulelayers import CapsuleLayer, Length
from capsulenet import CapsNet

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("size", (28, 32, 36))
def test_the_papers_kernels_at_the_papers_sizes(size):
    chosen = choose_geometry(size, size)
    assert chosen == ((9, 9), (1, 1), (9, 9), (2, 2))


def test_every_size_has_a_moderate_grid():
    sizes = list(range(12, 400))
    for height, width in zip(sizes, reversed(sizes)):
        chosen = choose_geometry(height, width)
        feature_map, grid = map_sizes(chosen, (height, width))
        assert all(10 <= side <= 28 for side in feature_map)
        assert all(4 <= side <= 10 for side in grid)
        # No pixel is passed over.
        assert all(
            kernel >= stride
            for kernel, stride in zip(chosen.conv_kernel, chosen.conv_strides)
        )


def test_each_side_has_its_own_kernel():
    chosen = choose_geometry(12, 64)
    assert chosen == ((3, 9), (1, 2), (3, 9), (2, 2))


@pytest.mark.parametrize("size", [(11, 12), (12, 11), (1, 1)])
def test_too_small_pictures_are_refused(size):
    with pytest.raises(UserError, match="at least 12x12"):
        fit_geometry(*size)


def test_tiny_pictures_with_all_four_numbers_given():
    strides = {"conv_strides": 1, "primary_strides": [2, 2]}
    given = fit_geometry(5, 8, conv_kernel=2, primary_kernel=(2, 3), **strides)
    assert given == ((2, 2), (1, 1), (2, 3), (2, 2))
    assert map_sizes(given, (5, 8)) == [(4, 7), (2, 3)]


@pytest.mark.parametrize(
    "given, advice",
    [
        ({"conv_kernel": 29}, "lower --conv_kernel"),
        ({"conv_kernel": (28, 29)}, "lower --conv_kernel"),
        ({"conv_kernel": (29, 28)}, "lower --conv_kernel"),
        ({"primary_kernel": 21}, "lower --primary_kernel, --conv_kernel or"),
        ({"conv_strides": 3}, "lower --primary_kernel, --conv_kernel or"),
    ],
)
def test_a_kernel_that_leaves_nothing_is_refused(given, advice):
    with pytest.raises(UserError, match=advice):
        fit_geometry(28, 28, **given)


# What was built


def table(model, batch_size=20, **sizes):
    """The rows of a table; of equal names the last one."""
    lines = describe(model, batch_size, **sizes).splitlines()
    return {line[:18].strip(): line[18:] for line in lines}


def test_table_of_the_papers_network():
    rows = table(CapsNet((28, 28, 1), 10)[0], 100, test_batch=250)
    memory = rows.pop("memory")
    assert memory.startswith("about ") and memory.endswith("batches of 100")
    assert rows == {
        "picture": "28x28x1 (height x width x channels)",
        "feature map": "20x20x256, conv1 9x9 with strides 1x1",
        "primary grid": "6x6, primarycap 9x9 with strides 2x2",
        "primary capsules": "1,152 of 8 dimensions",
        "class capsules": "10 of 16 dimensions",
        "weights": "8,215,568",
    }


@pytest.mark.parametrize(
    "shape, arguments",
    [
        ((12, 25, 3), {"capsule_bias": 0.1}),
        ((20, 20, 1), {"conv_kernel": 7, "primary_strides": 1}),
        ((17, 22, 3), {"primary_kernel": (3, 4), "decoder": False}),
    ],
)
def test_table_is_that_of_the_model_at_any_size(shape, arguments):
    model, eval_model, _ = CapsNet(shape, 3, **arguments)
    rows = table(model)
    number, dimensions = eval_model.get_layer("primarycap").output.shape[1:]
    feature_map = eval_model.get_layer("conv1").output.shape[1:]
    height, width = map(int, rows["primary grid"].split(",")[0].split("x"))
    assert 32 * height * width == number and dimensions == 8
    assert rows["primary capsules"] == f"{number:,} of 8 dimensions"
    assert rows["feature map"].startswith("x".join(map(str, feature_map)))
    weights = sum(np.size(w) for w in eval_model.get_weights())
    assert rows["weights"] == f"{weights:,}"


def test_a_layer_more_is_counted():
    """The table was of a network of its own; it was 925,696 weights short."""
    _, model, _ = CapsNet((17, 17, 1), 3, decoder=False)
    primary = model.get_layer("primarycap").output
    hidden = CapsuleLayer(8, 16, name="hidden")(primary)
    digitcaps = CapsuleLayer(3, 16, name="digitcaps")(hidden)
    lengths = {"capsnet": Length(name="capsnet")(digitcaps)}
    deeper = attach(keras.Model(model.input, lengths))[0]
    rows, before = table(deeper), table(model)
    weights = sum(np.size(w) for w in deeper.get_weights())
    assert rows["weights"] == f"{weights:,}" != before["weights"]
    assert rows["hidden capsules"] == "8 of 16 dimensions"
    assert rows["class capsules"] == "3 of 16 dimensions"
    assert training_memory(deeper, 20) > training_memory(model, 20)


def test_table_of_the_baseline_has_no_capsules():
    rows = table(Baseline((28, 28, 1), 10)[0])
    assert list(rows) == ["picture", "feature map", "weights", "memory"]
    assert rows["feature map"] == "28x28x128, conv3 5x5 with strides 1x1"
    assert rows["weights"] == "35,445,522"


def test_memory_grows_with_everything():
    model = CapsNet((28, 28, 1), 10)[0]
    memory = training_memory(model, 100)
    for sizes in (
        {"test_batch": 1000},
        {"pictures": 60_000},
        {"replicas": 2},
    ):
        assert training_memory(model, 100, **sizes) > memory
    assert training_memory(model, 200) > memory
    for other in (CapsNet((28, 28, 1), 20)[0], CapsNet((32, 32, 1), 10)[0]):
        assert training_memory(other, 100) > memory


# Of this process alone: `ru_maxrss` begins with what its parent had.
MEASURE = """
import re, sys, tempfile
import keras, numpy as np
import capsulenet
from capsnet.data.batches import ShiftedBatches, pipeline
from capsnet.models.geometry import training_memory
from capsnet.models.inference import lengths_model, predict
size, channels, n_class, batch_size = map(int, sys.argv[1:])
shape = size, size, channels
x = np.zeros((3 * batch_size, *shape), "uint8")
y = np.arange(len(x)) % n_class
train_model, eval_model, _ = capsulenet.CapsNet(shape, n_class)
loss = {"capsnet": capsulenet.margin_loss, "decoder": "mse"}
train_model.compile("adam", loss)
train_model.fit(pipeline(ShiftedBatches(x, y, n_class, batch_size)), verbose=0)
predict(lengths_model(eval_model), x)
with open("/proc/self/status") as file:
    measured = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", file.read())[1])
test_batch = min(250, len(x))
print(measured, training_memory(train_model, batch_size, test_batch, len(x)))
"""


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or sys.platform != "linux",
    reason="fitted to TensorFlow, and measured in /proc",
)
@pytest.mark.parametrize(
    "size, channels, n_class, batch_size",
    [(28, 1, 10, 100), (64, 3, 10, 20), (12, 3, 10, 50), (28, 1, 196, 25)],
)
def test_memory_estimate_is_near_the_peak(size, channels, n_class, batch_size):
    argv = [sys.executable, "-c", MEASURE, size, channels, n_class, batch_size]
    printed = subprocess.run(
        list(map(str, argv)), cwd=ROOT, check=True, capture_output=True
    ).stdout
    measured, estimate = map(float, printed.split()[-2:])
    assert 0.7 < estimate / measured < 1.4, (measured, estimate)
