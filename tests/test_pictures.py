"""Pictures of the user's own: any size, any classes, and what it will cost."""

import json
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import bars
from PIL import Image

import capsulenet
import utils
from capsnet.data.batches import ShiftedBatches, balanced_weights
from capsnet.devices import machine_memory
from capsnet.messages import UserError
from capsnet.models.geometry import (
    check_memory,
    choose_geometry,
    fit_geometry,
    make_plan,
    map_sizes,
)
from capsnet.models.inference import predict
from capsnet.models.saving import load_model

ROOT = Path(__file__).parents[1]
# The smallest network that trains: few weights, so little time.
SMALL = (
    "--epochs 1 --batch_size 6 --conv_kernel 3 --conv_strides 2 "
    "--primary_kernel 3 --primary_strides 2"
).split()


def write_folder(folder, counts, size=(12, 12), parts=("train", "test")):
    """Writes `counts[class]` pictures of a colour for each class and part."""
    generator = np.random.default_rng(0)
    for part in parts:
        for number, (name, count) in enumerate(counts.items()):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = generator.integers(0, 60, (*size, 3), dtype="uint8")
                pixels[..., number % 3] += 150
                path = folder / part / name / f"{index}.png"
                Image.fromarray(pixels).save(path)
    return str(folder)


def run(capsys, *argv):
    """Exit status, standard output and standard error of a command."""
    try:
        status = capsulenet.main([str(each) for each in argv])
    except SystemExit as caught:
        status = caught.code
    out, err = capsys.readouterr()
    return status, out, err


def error_of(capsys, *argv):
    """The one line with which a wrong command ends, at status 2."""
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.count("\n") == 1 and "Traceback" not in err
    return err


# Geometry


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


@pytest.mark.parametrize("shape", [(11, 12, 1), (12, 11, 1), (1, 1, 3)])
def test_too_small_pictures_are_refused(shape):
    with pytest.raises(UserError, match="at least 12x12"):
        capsulenet.CapsNet(shape, 2)


def test_tiny_pictures_with_all_four_numbers_given():
    plan = make_plan(
        (5, 8, 1),
        2,
        conv_kernel=2,
        conv_strides=1,
        primary_kernel=(2, 3),
        primary_strides=2,
    )
    assert plan.feature_map == (4, 7, 256) and plan.grid == (2, 3)


@pytest.mark.parametrize(
    "given, advice",
    [
        ({"conv_kernel": 29}, "lower --conv_kernel"),
        ({"primary_kernel": 21}, "lower --primary_kernel, --conv_kernel or"),
        ({"conv_strides": 3}, "lower --primary_kernel, --conv_kernel or"),
    ],
)
def test_a_kernel_that_leaves_nothing_is_refused(given, advice):
    with pytest.raises(UserError, match=advice):
        fit_geometry(28, 28, **given)


@pytest.mark.parametrize(
    "shape, n_class",
    [
        ((12, 12, 1), 2),
        ((13, 13, 3), 12),
        ((17, 17, 4), 2),
        ((21, 21, 1), 12),
        ((12, 30, 3), 2),
        ((40, 15, 1), 2),
    ],
)
def test_small_sizes_train(shape, n_class):
    keras.utils.set_random_seed(0)
    x, _ = bars(2 * n_class, shape, n_class=2)
    batches = ShiftedBatches(x, np.arange(len(x)) % n_class, n_class, len(x))
    train_model, _, _ = capsulenet.CapsNet(shape, n_class, routings=2)
    capsulenet.compile_model(train_model, 0.001, 0.4)
    losses = [train_model.train_on_batch(*batches[0])[0] for _ in range(3)]
    # The third step may be too long: Adam's are, at the start.
    assert np.isfinite(losses).all() and min(losses[1:]) < losses[0]
    assert train_model.output["decoder"].shape[1:] == shape


@pytest.mark.parametrize(
    "shape, n_class",
    [
        ((28, 28, 4), 12),
        ((32, 32, 3), 2),
        ((36, 36, 1), 2),
        ((48, 48, 3), 2),
        ((64, 64, 4), 2),
        ((64, 20, 3), 2),
    ],
)
def test_larger_sizes_predict(shape, n_class):
    _, eval_model, _ = capsulenet.CapsNet(shape, n_class)
    x = np.zeros((2, *shape), "uint8")
    outputs = predict(eval_model, x)
    assert outputs["capsnet"].shape == (2, n_class)
    assert outputs["decoder"].shape == x.shape


# What comes, before it is built


@pytest.mark.parametrize(
    "shape, n_class, arguments",
    [
        ((28, 28, 1), 10, {}),
        ((36, 36, 1), 10, {"decoder": False}),
        ((12, 25, 3), 2, {"capsule_bias": 0.1}),
        ((64, 37, 4), 3, {"capsule_bias": 0.0, "decoder": False}),
        ((20, 20, 1), 5, {"conv_kernel": 7, "primary_strides": 1}),
        ((30, 22, 3), 4, {"primary_kernel": (3, 4), "conv_strides": 2}),
    ],
)
def test_weights_are_counted_exactly(shape, n_class, arguments):
    plan = make_plan(shape, n_class, **arguments)
    train_model, _, _ = capsulenet.CapsNet(shape, n_class, **arguments)
    assert plan.weights == train_model.count_params()
    primary = train_model.get_layer("primarycap")
    assert plan.primary == primary.output.shape[1:]
    assert train_model.get_layer("conv1").output.shape[1:] == plan.feature_map


def test_the_papers_network_is_counted_without_building_it():
    assert make_plan((28, 28, 1), 10).weights == 8_215_568
    assert make_plan((36, 36, 1), 10).weights == 11_361_808


def test_planning_changes_no_random_number_of_the_network():
    state = random.getstate()
    make_plan((28, 28, 1), 10).memory(100)
    assert random.getstate() == state


def test_memory_grows_with_everything():
    def memory(size=28, n_class=10, batch_size=100, **sizes):
        plan = make_plan((size, size, 1), n_class)
        return plan.memory(batch_size, **sizes)

    assert memory() < memory(batch_size=200) < memory(batch_size=400)
    assert memory() < memory(n_class=20)
    assert memory() < memory(size=32) < memory(size=36)
    assert memory() < memory(test_batch=400)
    assert memory() < memory(pictures=60_000)
    assert memory() < memory(replicas=2)


def test_a_huge_picture_is_planned_at_once():
    plan = make_plan((6000, 8000, 3), 2)
    assert plan.memory(1) > 16 * plan.weights > 1e12


def small_plan(shape):
    return make_plan(shape, 2)


@pytest.mark.parametrize("largest", (1, 7, 99))
def test_too_large_a_batch_is_refused_with_the_largest_that_fits(largest):
    available = small_plan((28, 28, 1)).memory(largest)
    with pytest.raises(UserError, match=f"use --batch_size {largest} or less"):
        check_memory(small_plan, (28, 28, 1), 100, available)
    check_memory(small_plan, (28, 28, 1), largest, available)
    check_memory(small_plan, (28, 28, 1), 100, None)


def test_too_large_a_picture_is_refused_with_the_largest_that_fits():
    available = small_plan((30, 60, 1)).memory(4)
    with pytest.raises(UserError) as caught:
        check_memory(small_plan, (500, 1000, 1), 4, available)
    height, width = map(int, str(caught.value).split()[-2:])
    assert height >= 30 and abs(width - 2 * height) <= 1
    check_memory(small_plan, (height, width, 1), 4, available)
    with pytest.raises(UserError, match="no size"):
        check_memory(small_plan, (500, 1000, 1), 4, 1e6)


def test_too_little_memory_ends_before_anything_is_built(
    tmp_path, tiny, capsys, monkeypatch
):
    plan = make_plan((17, 17, 1), 3)
    available = plan.memory(20, test_batch=12, pictures=52)
    monkeypatch.setattr(utils, "machine_memory", lambda: available)
    monkeypatch.setattr(capsulenet, "CapsNet", None)
    argv = ("--dataset", tiny, "--save_dir", tmp_path / "run")
    err = error_of(capsys, *argv, "--batch_size", 40)
    assert "use --batch_size 20 or less" in err
    # On a GPU this machine's memory says nothing.
    monkeypatch.setattr(capsulenet, "runs_on_cpu", lambda: False)
    with pytest.raises(TypeError, match="not callable"):
        capsulenet.main([*map(str, argv), "--batch_size", "40"])


def test_machine_memory_is_plausible():
    available = machine_memory()
    assert available is None or 2**28 < available < 2**50


# Of this process alone: `ru_maxrss` begins with what its parent had.
MEASURE = """
import re, sys, tempfile
import numpy as np
import capsulenet, datasets
size, channels, batch_size = map(int, sys.argv[1:])
shape = size, size, channels
x = np.zeros((3 * batch_size, *shape), "uint8")
y = np.arange(len(x)) % 10
names = [str(label) for label in range(10)]
data = datasets.Dataset(x, y, x, y, names, "measured")
with tempfile.TemporaryDirectory() as folder:
    models = capsulenet.CapsNet(shape, 10)
    capsulenet.train(
        models, data, folder, epochs=1, batch_size=batch_size, verbose=0
    )
with open("/proc/self/status") as file:
    measured = 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", file.read())[1])
test_batch = min(capsulenet.PREDICT_BATCH, len(x))
plan = capsulenet.make_plan(shape, 10)
estimate = plan.memory(batch_size, test_batch, 2 * len(x))
print(measured, estimate)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow" or sys.platform != "linux",
    reason="fitted to TensorFlow, and measured in /proc",
)
@pytest.mark.parametrize(
    "size, channels, batch_size",
    [(28, 1, 100), (28, 1, 20), (64, 3, 20), (12, 3, 50)],
)
def test_memory_estimate_is_within_one_and_a_half(size, channels, batch_size):
    argv = [sys.executable, "-c", MEASURE, size, channels, batch_size]
    printed = subprocess.run(
        list(map(str, argv)), cwd=ROOT, check=True, capture_output=True
    ).stdout
    measured, estimate = map(float, printed.split()[-2:])
    assert 1 / 1.5 < estimate / measured < 1.5, (measured, estimate)


# Weights of the classes


def test_balanced_weights_are_inverse_to_the_counts():
    weights = balanced_weights(np.array([0, 0, 0, 1, 2, 2]), 3)
    np.testing.assert_allclose(weights, [6 / 9, 6 / 3, 6 / 6])


def test_class_weights_reach_the_class_loss_alone():
    x, _ = bars(4, (12, 12, 1))
    y = np.array([0, 0, 0, 1])
    train_model, _, _ = capsulenet.CapsNet((12, 12, 1), 2)
    capsulenet.compile_model(train_model, 0.001, 0.5)
    weights = balanced_weights(y, 2)
    batches = ShiftedBatches(x, y, 2, 4, class_weight=weights)
    inputs, targets, _ = batches[0]
    predictions = train_model.predict(inputs, verbose=0)
    # By hand: Eq. 4 for each picture, times n / (n_class * count).
    margin = []
    for label, lengths in zip(targets["capsnet"], predictions["capsnet"]):
        present = label * np.maximum(0, 0.9 - lengths) ** 2
        absent = (1 - label) * np.maximum(0, lengths - 0.1) ** 2
        margin.append(np.sum(present + 0.5 * absent))
    by_hand = np.mean(np.array([2 / 3, 2 / 3, 2 / 3, 2]) * margin)
    error = np.mean((predictions["decoder"] - targets["decoder"]) ** 2)
    figures = train_model.evaluate(batches, verbose=0, return_dict=True)
    np.testing.assert_allclose(figures["capsnet_loss"], by_hand, rtol=1e-5)
    np.testing.assert_allclose(figures["decoder_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(
        figures["loss"], by_hand + 0.5 * error, rtol=1e-5
    )


# The command line


def test_a_folder_of_pictures_from_the_flags_to_the_test(tmp_path, capsys):
    folder = write_folder(tmp_path / "own", {"cat": 9, "dog": 3}, (20, 16))
    argv = ("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    flags = ("--image_size", 12, 14, "--class_weight", "balanced")
    status, out, err = run(capsys, *argv, *flags)
    assert status == 0, err
    assert "12 training pictures: cat 9, dog 3\n" in out
    assert "12 test pictures: cat 9, dog 3\n" in out
    assert "Class weights: cat 0.667, dog 2\n" in out
    size = "picture           12x14x3 (height x width x channels)\n"
    assert size in out.split("Epoch")[0]
    assert "primary capsules" in out and "memory" in out
    model_path = str(tmp_path / "run" / "trained_model.keras")
    model, record = load_model(model_path)
    assert model.input.shape[1:] == (12, 14, 3)
    assert record["class_names"] == ["cat", "dog"]
    assert record["flags"]["image_size"] == [12, 14]
    run_record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert f"weights           {run_record['parameters']:,}\n" in out
    # The test takes the pictures as the training did.
    status, out, err = run(
        capsys, "--digit", "dog", "-w", model_path, "--save_dir", tmp_path
    )
    assert status == 0, err
    assert f"manipulate-{'dog'}.png" in out
    assert "of 12)" in out
    status, _, err = run(
        capsys, *argv, "--resume", "--save_dir", tmp_path / "run"
    )
    assert status == 0, err


def test_one_level_of_classes_in_grey(tmp_path, capsys):
    folder = write_folder(tmp_path / "own", {"cat": 8, "dog": 6}, parts=("",))
    save_dir = tmp_path / "run"
    flags = ("--test_fraction", 0.5, "--grayscale", "--dataset", folder)
    status, out, err = run(capsys, *flags, "--save_dir", save_dir, *SMALL)
    assert status == 0, err
    assert "7 test pictures: cat 4, dog 3\n" in out
    assert "12x12x1" in out
    model_path = save_dir / "trained_model.keras"
    argv = ("-t", "-w", model_path, "--save_dir", tmp_path)
    status, out, err = run(capsys, *argv)
    assert status == 0 and "of 7)" in out, err
    # A folder with both parts: the recorded fraction does not apply.
    other = write_folder(tmp_path / "both", {"cat": 2, "dog": 2})
    status, out, err = run(capsys, *argv, "--dataset", other)
    assert status == 0 and "of 4)" in out, err
    status, out, err = run(capsys, *argv, "--test_fraction", 0.25)
    assert status == 0 and "of 4)" in out, err


def test_unreadable_pictures_are_named_or_skipped(tmp_path, capsys):
    folder = write_folder(tmp_path / "own", {"cat": 4, "dog": 4})
    for name in ("train/cat/1.png", "test/dog/2.png"):
        (tmp_path / "own" / name).write_bytes(b"no picture")
    argv = ("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    err = error_of(capsys, *argv)
    assert "train/cat/1.png" in err and "test/dog/2.png" in err
    assert "--skip_unreadable" in err
    status, out, err = run(capsys, *argv, "--skip_unreadable")
    assert status == 0, err
    assert "2 pictures left out" in out
    assert "7 training pictures: cat 3, dog 4\n" in out


@pytest.mark.parametrize("part", ("train", "test"))
def test_a_missing_class_is_refused(tmp_path, capsys, part):
    folder = write_folder(tmp_path / "own", {"cat": 2, "dog": 2})
    for path in (tmp_path / "own" / part / "dog").iterdir():
        path.unlink()
    err = error_of(
        capsys, "--dataset", folder, "--save_dir", tmp_path / "run", *SMALL
    )
    assert "none of 'dog'" in err


def test_pictures_of_several_sizes_need_image_size(tmp_path, capsys):
    folder = write_folder(tmp_path / "own", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "own", {"cat": 1}, size=(14, 12))
    err = error_of(
        capsys, "--dataset", folder, "--save_dir", tmp_path / "run", *SMALL
    )
    assert "--image_size H W" in err


@pytest.mark.parametrize(
    "flags, phrase",
    [
        ("--image_size 11 40", "at least 12x12"),
        ("--conv_kernel 18", "lower --conv_kernel"),
        ("--primary_kernel 17", "lower --primary_kernel"),
        ("--conv_kernel 0", "an integer at least 1"),
        ("--image_size 20", "expected 2 arguments"),
        ("--image_size 20 0", "an integer at least 1"),
        ("--test_fraction 0", "a number above 0"),
        ("--test_fraction 0.5", "leave it out"),
        ("--class_weight heavy", "invalid choice"),
        ("--model baseline --conv_kernel 3", "--model baseline has none"),
        ("--model baseline --image_size 12 12", "at least 13x13"),
    ],
)
def test_wrong_flags_end_with_a_line(tmp_path, tiny, capsys, flags, phrase):
    save_dir = tmp_path / "run"
    argv = ("--dataset", tiny, "--save_dir", save_dir, *flags.split())
    assert phrase in error_of(capsys, *argv)
    # Nothing of an earlier run would have been overwritten.
    assert not list(save_dir.glob("[!.]*"))
