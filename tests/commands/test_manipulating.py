"""Tests of --digit: the pictures that it draws, and what is refused."""

import os
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import write_bars
from PIL import Image
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
    _, axis = figures[-1].axes
    assert axis.get_title() == "reconstructions of class 2"
    assert axis.get_images()[0].get_array().shape == (16 * 17, 11 * 17)


def test_manipulation_adds_to_one_dimension_in_each_row(
    trained, data, manipulate_model
):
    pictures = load(data)
    (of_class, *_) = pictures.x_test[pictures.y_test == 2]
    with mock.patch.object(
        keras.Model, "predict", autospec=True, side_effect=keras.Model.predict
    ) as predict:
        images = capsulenet.manipulations(manipulate_model, of_class, 2)
    assert predict.call_count == 1  # 176 of one picture would take a minute.
    assert images.shape == (16, 11, 17, 17, 1)
    # The layers one by one.
    model = trained.model()
    digitcaps = keras.Model(model.input, model.get_layer("digitcaps").output)
    decoder = model.get_layer("decoder")
    (capsules,) = digitcaps.predict(of_class[None] / np.float32(255), verbose=0)
    masked = np.zeros((16, 11, N_CLASS, 16), "float32")
    for row in range(16):
        for column in range(11):
            masked[row, column, 2] = capsules[2]
            masked[row, column, 2, row] += -0.25 + 0.05 * column
    made = decoder.predict(masked.reshape(16 * 11, -1), verbose=0)
    np.testing.assert_allclose(images, made.reshape(images.shape), atol=1e-5)


def test_seed_or_name_or_file_chooses_the_picture(
    tmp_path, data, trained, figures
):
    pictures = load(data)
    image = pictures.x_test[7, ..., 0]
    Image.fromarray(image).save(tmp_path / "mine.png")
    shown = []
    for flags in (
        *(("--dataset", data, "--seed", seed) for seed in (4, 4, 0, 1, 2)),
        ("--picture", 7),
        ("--picture", tmp_path / "mine.png"),
    ):
        flags = "--digit", 1, "-w", trained.model_path(), *flags
        assert command(tmp_path / "run", *flags).status == 0
        shown.append(figures[-1].axes[0].get_images()[0].get_array())
    assert np.array_equal(shown[0], shown[1])
    assert any(not np.array_equal(shown[0], each) for each in shown[2:5])
    for each in shown[:5]:
        of_class = pictures.x_test[pictures.y_test == 1, ..., 0]
        assert any(np.array_equal(each, other) for other in of_class)
    for each in shown[5:]:
        np.testing.assert_array_equal(each, image)


def test_picture_that_is_none_is_refused(tmp_path, trained):
    (tmp_path / "note.txt").write_text("no picture")
    for name, said in (("99", "neither"), (tmp_path / "note.txt", "note.txt")):
        flags = "--digit", 1, "-w", trained.model_path(), "--picture", name
        message = message_of(command(tmp_path / "run", *flags))
        assert "--picture" in message and said in message


def test_manipulated_class_may_have_any_name(tmp_path, data, manipulate_model):
    pictures = load(data)
    pictures.class_names = ["a/b", "T-shirt/top: $a$ ^$", "a:b"]
    arguments = pictures.class_names, tmp_path
    for number in range(3):
        capsulenet.manipulate(
            manipulate_model, pictures.x_test[0], number, *arguments
        )
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
