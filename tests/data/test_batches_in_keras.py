"""Batches as Keras gets them: losses of blank pictures, order, memory."""

import platform
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from samples import random_pictures

from capsnet.data.augment import Affine
from capsnet.data.batches import ShiftedBatches, pipeline

ROOT = Path(__file__).parents[2]


def test_keras_computes_the_same_losses_from_a_padded_batch():
    image = keras.Input((6, 5, 1), name="image")
    label = keras.Input((2,), name="label")
    flat = keras.layers.Flatten()(image)
    joined = keras.layers.Concatenate()([flat, label])
    model = keras.Model(
        {"image": image, "label": label},
        {
            "capsnet": keras.layers.Dense(2, name="capsnet")(flat),
            "decoder": keras.layers.Reshape((6, 5, 1), name="decoder")(
                keras.layers.Dense(30)(joined)
            ),
        },
    )
    model.compile(loss={"capsnet": "mse", "decoder": "mse"})
    x, y = random_pictures(3), np.array([0, 1, 1])
    options = {"batch_size": 3, "class_weight": np.array([3.0, 0.5])}
    plain = ShiftedBatches(x, y, 2, **options)
    padded = ShiftedBatches(x, y, 2, replicas=2, **options)
    assert len(padded[0][0]["image"]) == 4
    expected = model.evaluate(plain, verbose=0, return_dict=True)
    actual = model.evaluate(padded, verbose=0, return_dict=True)
    assert actual["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_keras_gets_each_epochs_batches_in_order():
    batches = ShiftedBatches(
        random_pictures(40),
        np.arange(40),
        40,
        15,
        augment=Affine(),
        shuffle=True,
    )
    dataset = pipeline(batches)
    assert len(dataset) == len(batches) == 3
    seen = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        received = [keras.tree.flatten(batch) for batch in dataset]
        for index, ours in enumerate(received):
            wanted = keras.tree.flatten(batches[index])
            for value, expected in zip(ours, wanted, strict=True):
                np.testing.assert_array_equal(np.asarray(value), expected)
        seen.append(np.asarray(received[0][0]))
    assert np.any(seen[0] != seen[1])


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own thread"
)
def test_no_epoch_waits_for_a_tuning_thread():
    batches = ShiftedBatches(random_pictures(40), np.arange(40), 40, 15)
    assert pipeline(batches).options().autotune.enabled is False


KEEPS = """
import resource
import numpy as np
from capsnet.data.batches import ShiftedBatches, pipeline
labels = np.zeros(2, int)
for _ in pipeline(ShiftedBatches(np.zeros((2, 9, 9, 1)), labels, 1, 1)):
    faults = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = bytearray(b"1") * 2**26
        del block
        after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        faults.append(after - before)
    assert faults[1] < 1000, faults
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="others keep what they like"
)
def test_memory_of_a_step_serves_the_next_one():
    """Pages of 4 KiB that are mapped anew; 64 MiB have 16,384 of them."""
    subprocess.run([sys.executable, "-c", KEEPS], cwd=ROOT, check=True)
