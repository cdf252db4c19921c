"""Models and weights as files: whole, the same again, or refused."""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from model_files import (
    N_CLASS,
    SHAPE,
    before_the_move,
    capsnet,
    dense_model,
    members_of,
    message_of,
    write_members,
)

from capsnet.models import saving
from capsnet.models.networks import Baseline
from capsnet.models.saving import (
    check_model,
    class_names_of,
    load_model,
    load_models,
    save_half,
    save_model,
    signature,
)

ROOT = Path(__file__).parents[2]


def weights_of(model):
    return [weight.copy() for weight in model.get_weights()]


def same(arrays, others):
    return len(arrays) == len(others) and all(
        np.array_equal(one, other) for one, other in zip(arrays, others)
    )


# Whole models


@pytest.mark.parametrize(
    "network",
    [
        lambda: capsnet(1),
        lambda: capsnet(1, init="authors", capsule_bias=0.1, decoder=False),
        lambda: Baseline((6, 5, 3), 2)[1],
    ],
)
def test_saved_model_comes_back_with_its_record(tmp_path, network):
    path, model = str(tmp_path / "model.keras"), network()
    record = {"flags": {"dataset": "digits"}, "class_names": ["a", "b"]}
    save_model(model, path, record)
    loaded, found = load_model(path)
    assert found == record and same(weights_of(loaded), weights_of(model))
    shape = (2, *model.input.shape[1:])
    x = np.random.default_rng(0).uniform(size=shape).astype("float32")
    expected = model.predict(x, verbose=0)
    for name, values in loaded.predict(x, verbose=0).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    # Keras alone reads it, too.
    assert keras.models.load_model(path).name == model.name
    assert os.listdir(tmp_path) == ["model.keras"]


def test_committed_models_name_no_folder_of_a_machine():
    for name, weights in (("v4", 8_215_568), ("small", 1_573_168)):
        path = ROOT / "result" / "mnist" / f"{name}.keras"
        model, record = load_model(str(path))
        trained = model.trainable_weights
        assert sum(map(keras.ops.size, trained)) == weights
        assert record["parameters"] == weights
        assert record["flags"]["dataset"] == "mnist"
        assert record["flags"]["save_dir"].startswith("result/mnist/")


def test_a_model_from_before_the_move_loads(tmp_path):
    model, path = capsnet(1), str(tmp_path / "model.keras")
    save_model(model, path, {"parameters": model.count_params()})
    write_members(path, before_the_move(members_of(path)))
    loaded, record = load_model(path)
    assert loaded.count_params() == record["parameters"] > 1000
    assert same(weights_of(loaded), weights_of(model))


def test_halved_model_is_half_as_large_and_nearly_the_same(
    tmp_path, path, trained
):
    half = str(tmp_path / f"{'n' * 244}.keras")  # The longest name.
    save_half(trained, half, {"flags": {"seed": 3}})
    assert 0.45 < os.path.getsize(half) / os.path.getsize(path) < 0.55
    model, record = load_model(half)
    assert record == {"flags": {"seed": 3}}
    for weight, expected in zip(model.weights, trained.weights, strict=True):
        assert weight.dtype == expected.dtype == "float32"
        # Half a unit in the last of ten binary places, or of the smallest.
        np.testing.assert_allclose(weight, expected, rtol=2**-11, atol=2**-25)
    large = keras.models.clone_model(trained)
    bias = large.get_layer("conv1").bias
    bias.assign(np.full(bias.shape, 7e4, "float32"))
    other = tmp_path / "other.keras"
    assert "at most 65,504" in message_of(save_half, large, other, {})
    assert not other.exists()


def test_model_without_a_record_has_an_empty_one(tmp_path):
    dense_model().save(tmp_path / "model.keras")
    assert load_model(str(tmp_path / "model.keras"))[1] == {}


# What a model is for


def test_model_of_another_kind_is_refused():
    message = message_of(check_model, dense_model(), "a.keras", (3,), 4)
    assert "expected a model that capsulenet.py saved" in message
    assert "sequential" in message


@pytest.mark.parametrize(
    "shape, n_class, received, advice",
    (
        (SHAPE, 4, "17x17x1 and 4", ""),
        ((18, 17, 1), 4, "18x17x1 and 4", ""),
        ((18, 17, 1), 3, "18x17x1 and 3", ", or add --image_size 17 17"),
        ((17, 17, 3), 3, "17x17x3 and 3", ", or add --grayscale"),
        (
            (17, 9, 4),
            3,
            "17x9x4 and 3",
            ", or add --image_size 17 17 --grayscale",
        ),
    ),
)
def test_model_for_other_pictures_or_classes_is_refused(
    trained, shape, n_class, received, advice
):
    check_model(trained, "a.keras", SHAPE, N_CLASS)
    message = message_of(check_model, trained, "a.keras", shape, n_class)
    expected = "17x17x1 (height x width x channels) and 3 classes"
    assert expected in message and f"got {received}" in message
    assert message.endswith("choose another --dataset" + advice)


def test_pictures_of_pairs_are_smaller_than_pairs(trained):
    message = message_of(check_model, trained, "a.keras", (20, 18, 1), 3, 4)
    assert message.endswith("add --image_size 9 9")


def test_models_that_know_other_classes_do_not_predict_together(
    tmp_path, path, trained
):
    models, names, record = load_models([path, path])
    assert len(models) == 2 and names == ["0", "1", "2"]
    assert record == {"flags": {"seed": 3}}
    other = str(tmp_path / "other.keras")
    save_model(trained, other, {"class_names": ["x", "y", "z"]})
    message = message_of(load_models, [path, path, other])
    assert path in message and other in message and "differ" in message


@pytest.mark.parametrize("record", ({}, {"class_names": ["a"]}, {"x": 5}))
def test_model_without_class_names_numbers_its_classes(record):
    assert class_names_of(record, 3) == ["0", "1", "2"]


def model_of(outputs, shape=SHAPE):
    """A model whose `capsnet` is made from the pictures by a function."""
    image = keras.Input(shape, name="image")
    return keras.Model(image, {"capsnet": outputs(image)}, name="capsnet_model")


def test_no_flag_is_advised_that_a_model_of_colours_would_refuse_again():
    """Smaller grey pictures could be resized, but never coloured."""
    model = model_of(lambda x: keras.layers.Dense(3)(x[:, 0, 0]), (17, 17, 3))
    message = message_of(check_model, model, "a.keras", (9, 9, 1), 3)
    assert message.endswith("choose another --dataset")
    message = message_of(check_model, model, "a.keras", (9, 9, 3), 3)
    assert message.endswith("or add --image_size 17 17")


@pytest.mark.parametrize(
    "outputs",
    (
        lambda image: keras.layers.Dense(1)(keras.layers.Flatten()(image)),
        lambda image: keras.layers.Dense(3)(image),
        lambda image: [keras.layers.Dense(3)(keras.layers.Flatten()(image))],
    ),
    ids=("one class", "another rank", "a list"),
)
def test_models_with_odd_outputs_are_refused(outputs):
    message = message_of(signature, model_of(outputs), "odd.keras")
    assert "expected a model that capsulenet.py saved, got 'odd.k" in message


def test_model_of_pictures_beyond_the_memory_is_refused(monkeypatch):
    """Before a picture is read; no layer has a weight."""

    def grown(image):
        pad = keras.layers.ZeroPadding2D(5000)(image)
        return keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(pad))

    monkeypatch.setattr(saving, "machine_memory", lambda: 4e8)
    message = message_of(signature, model_of(grown), "large.keras")
    # 10,017 rows and columns of 4 bytes.
    assert "needs 0.4 GB of memory for one picture of 17x17x1" in message
    monkeypatch.setattr(saving, "machine_memory", lambda: None)
    assert signature(model_of(grown), "large.keras") == (SHAPE, 3)
    message = message_of(
        signature, model_of(grown, (5000, 17, 1)), "large.keras"
    )
    assert "expected a model that capsulenet.py saved" in message
