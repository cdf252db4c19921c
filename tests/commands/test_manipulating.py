"""Tests of --digit: the pictures that it draws, and what is refused."""

import os
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import write_bars
from running import N_CLASS, command, contents, message_of

import capsulenet
from capsnet.data.sources import load
from capsnet.models.networks import attach

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.


@pytest.fixture
def manipulate_model(trained):
    return attach(trained.model())[2]


def test_digit_tests_and_draws(tmp_path, trained, figures):
    run = command(tmp_path, "--digit", 2, "-w", trained.model_path())
    assert run.status == 0, run.err
    assert "Test error:" in run.out
    assert str(tmp_path / "manipulate-2.png") in run.out
    assert {"test.json", "manipulate-2.png"} <= set(os.listdir(tmp_path))
    (axis,) = figures[-1].axes
    assert axis.get_title() == "reconstructions of class 2"
    assert axis.get_images()[0].get_array().shape == (16 * 17, 11 * 17)


def test_manipulation_adds_to_one_dimension_in_each_row(
    trained, data, manipulate_model
):
    pictures = load(data)
    with mock.patch.object(
        keras.Model, "predict", autospec=True, side_effect=keras.Model.predict
    ) as predict:
        images = capsulenet.manipulations(manipulate_model, pictures, 2)
    assert predict.call_count == 1  # 176 of one picture would take a minute.
    assert images.shape == (16, 11, 17, 17, 1)
    # The layers one by one, for every picture of the class.
    model = trained.model()
    digitcaps = keras.Model(model.input, model.get_layer("digitcaps").output)
    decoder = model.get_layer("decoder")
    choices = pictures.x_test[pictures.y_test == 2] / np.float32(255)
    found = []
    for capsules in digitcaps.predict(choices, verbose=0):
        masked = np.zeros((16, 11, N_CLASS, 16), "float32")
        for row in range(16):
            for column in range(11):
                masked[row, column, 2] = capsules[2]
                masked[row, column, 2, row] += -0.25 + 0.05 * column
        made = decoder.predict(masked.reshape(16 * 11, -1), verbose=0)
        found.append(np.abs(made.reshape(images.shape) - images).max())
    assert sum(difference < 1e-5 for difference in found) == 1


def test_same_seed_manipulates_the_same_picture(
    tmp_path, data, manipulate_model
):
    drawn = [
        Path(
            capsulenet.manipulate(
                manipulate_model, load(data), 1, tmp_path / str(number), seed
            )
        ).read_bytes()
        for number, seed in enumerate((4, 4, 0, 1, 2))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_manipulated_class_may_have_any_name(tmp_path, data, manipulate_model):
    pictures = load(data)
    pictures.class_names = ["a/b", "T-shirt/top: $a$ ^$", "a:b"]
    for number in range(3):
        capsulenet.manipulate(manipulate_model, pictures, number, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [
        "manipulate-T-shirt-top- $a$ ^$.png",
        "manipulate-a-b~0.png",
        "manipulate-a-b~2.png",
    ]


def test_digits_of_one_model_stand_together(tmp_path, trained, plain):
    for digit in (0, 1):
        command(tmp_path, "--digit", digit, "-w", trained.model_path())
    drawn = {"manipulate-0.png", "manipulate-1.png"}
    assert drawn <= set(os.listdir(tmp_path))
    assert command(tmp_path, "-t", "-w", plain.model_path()).status == 0
    assert not drawn & set(os.listdir(tmp_path))


def test_without_a_decoder_digit_is_refused(tmp_path, plain):
    run = command(tmp_path, "--digit", 1, "-w", plain.model_path())
    assert "--lam_recon 0" in message_of(run)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("digit", ("3", "-1", "two", "²", "", "9" * 5000))
def test_digit_that_is_no_class_is_refused(tmp_path, trained, digit):
    run = command(tmp_path, f"--digit={digit}", "-w", trained.model_path())
    message = message_of(run)
    assert "one of 0, 1, 2" in message and repr(digit) in message
    assert contents(tmp_path) == {}


def test_class_without_a_test_picture_is_refused(tmp_path, trained):
    path = write_bars(tmp_path / "few.npz", test=2)
    flags = "--digit", 2, "-w", trained.model_path(), "--dataset", path
    run = command(tmp_path / "run", *flags)
    assert "'2' without any" in message_of(run)
    assert contents(tmp_path / "run") == {}
