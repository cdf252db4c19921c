"""Folders of the user's own pictures, from the flags to the test."""

import json

import numpy as np
import pytest
from PIL import Image
from running import message_of, run

from capsnet.models.saving import load_model

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.

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


def test_a_folder_of_pictures_from_the_flags_to_the_test(tmp_path):
    folder = write_folder(tmp_path / "own", {"cat": 9, "dog": 3}, (20, 16))
    argv = ("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    flags = ("--image_size", 12, 14, "--class_weight", "balanced")
    done = run(*argv, *flags)
    assert done.status == 0, done.err
    assert "12 training pictures: cat 9, dog 3\n" in done.out
    assert "12 test pictures: cat 9, dog 3\n" in done.out
    assert "Class weights: cat 0.667, dog 2\n" in done.out
    size = "picture           12x14x3 (height x width x channels)\n"
    assert size in done.out.split("Epoch")[0]
    assert "primary capsules" in done.out and "memory" in done.out
    model_path = str(tmp_path / "run" / "trained_model.keras")
    model, record = load_model(model_path)
    assert model.input.shape[1:] == (12, 14, 3)
    assert record["class_names"] == ["cat", "dog"]
    assert record["flags"]["image_size"] == [12, 14]
    run_record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert f"weights           {run_record['parameters']:,}\n" in done.out
    # The test takes the pictures as the training did.
    done = run("--digit", "dog", "-w", model_path, "--save_dir", tmp_path)
    assert done.status == 0, done.err
    assert f"manipulate-{'dog'}.png" in done.out
    assert "of 12)" in done.out
    done = run(*argv, "--resume", "--save_dir", tmp_path / "run")
    assert done.status == 0, done.err


def test_a_validation_part_chooses_the_epoch(tmp_path):
    """As held-out training pictures do; the test part chooses nothing."""
    parts = ("Train", "val", "Test")
    folder = write_folder(tmp_path / "own", {"cat": 4, "dog": 4}, parts=parts)
    argv = ("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    done = run(*argv)
    assert done.status == 0, done.err
    assert "8 validation pictures: cat 4, dog 4\n" in done.out
    assert "Training on 8 pictures" in done.out
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert "val_capsnet_accuracy" in log[0] and len(log) == 2
    state = (tmp_path / "run" / "checkpoint" / "state.json").read_text()
    assert json.loads(state)["best"]["epoch"] == 1
    # The validation part is not tested.
    model_path = tmp_path / "run" / "trained_model.keras"
    done = run("-t", "-w", model_path, "--save_dir", tmp_path)
    assert done.status == 0 and "of 8)" in done.out, done.err


def test_one_level_of_classes_in_grey(tmp_path):
    folder = write_folder(tmp_path / "own", {"cat": 8, "dog": 6}, parts=("",))
    save_dir = tmp_path / "run"
    flags = ("--test_fraction", 0.5, "--grayscale", "--dataset", folder)
    done = run(*flags, "--save_dir", save_dir, *SMALL)
    assert done.status == 0, done.err
    assert "7 test pictures: cat 4, dog 3\n" in done.out
    assert "12x12x1" in done.out
    model_path = save_dir / "trained_model.keras"
    argv = ("-t", "-w", model_path, "--save_dir", tmp_path)
    done = run(*argv)
    assert done.status == 0 and "of 7)" in done.out, done.err
    # A folder with both parts: the recorded fraction does not apply.
    other = write_folder(tmp_path / "both", {"cat": 2, "dog": 2})
    done = run(*argv, "--dataset", other)
    assert done.status == 0 and "of 4)" in done.out, done.err
    done = run(*argv, "--test_fraction", 0.25)
    assert done.status == 0 and "of 4)" in done.out, done.err


def test_unreadable_pictures_are_named_or_skipped(tmp_path):
    folder = write_folder(tmp_path / "own", {"cat": 4, "dog": 4})
    for name in ("train/cat/1.png", "test/dog/2.png"):
        (tmp_path / "own" / name).write_bytes(b"no picture")
    argv = ("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    err = message_of(run(*argv))
    assert "train/cat/1.png" in err and "test/dog/2.png" in err
    assert "--skip_unreadable" in err
    done = run(*argv, "--skip_unreadable")
    assert done.status == 0, done.err
    assert "2 pictures left out" in done.out
    assert "7 training pictures: cat 3, dog 4\n" in done.out


@pytest.mark.parametrize("part", ("train", "test"))
def test_a_missing_class_is_refused(tmp_path, part):
    folder = write_folder(tmp_path / "own", {"cat": 2, "dog": 2})
    for path in (tmp_path / "own" / part / "dog").iterdir():
        path.unlink()
    err = message_of(
        run("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    )
    assert "none of 'dog'" in err


def test_pictures_of_several_sizes_need_image_size(tmp_path):
    folder = write_folder(tmp_path / "own", {"cat": 2, "dog": 2})
    write_folder(tmp_path / "own", {"cat": 1}, size=(14, 12))
    err = message_of(
        run("--dataset", folder, "--save_dir", tmp_path / "run", *SMALL)
    )
    assert "--image_size H W" in err
