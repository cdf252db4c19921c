"""Tests of loading.py: models, and the data that they are tested on."""

import keras
import numpy as np
import pytest
from conftest import bars, write_bars
from PIL import Image
from running import SHAPE, lengths_of

import capsulenet
from capsnet.data.parts import TEST_FRACTION
from capsnet.data.sources import Dataset
from capsnet.evaluation import loading
from capsnet.evaluation.loading import (
    class_number,
    load_data,
    load_for_testing,
    order_classes,
    start_picture,
    trained_elsewhere,
    unseen_fraction,
)
from capsnet.messages import UserError
from capsnet.models.saving import save_model


@pytest.fixture(autouse=True)
def dtype_policy():
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    # Scaled, an untrained model has capsules of some length.
    return capsulenet.CapsNet(SHAPE, 3, decoder=False, primary_scale=16.0)[1]


@pytest.fixture
def saved(tmp_path, model):
    """Saves the model with a record of flags and class names."""

    def save(class_names=None, **flags):
        path = str(tmp_path / "saved.keras")
        record = {"flags": {"lam_recon": 0, "primary_scale": 16.0, **flags}}
        if class_names:
            record["class_names"] = class_names
        save_model(model, path, record)
        return path

    return save


def test_model_without_a_record_computes_as_it_is(tmp_path, model, tiny):
    path = str(tmp_path / "own.keras")
    save_model(model, path, {})
    assert loaded([path], dataset=tiny)[0][0][1] is not None
    with pytest.raises(UserError, match="test on with --dataset"):
        loaded([path])
    for flag, value in (("routings", 1), ("conv", "direct")):
        with pytest.raises(UserError, match="as it is: leave -r, --conv"):
            loaded([path], dataset=tiny, **{flag: value})


def loaded(paths, **asked):
    return load_for_testing(paths, asked, capsulenet.build)


def test_record_decides_where_nothing_is_asked_for(saved, tiny):
    path = saved(dataset=tiny)
    (models,), data, records = loaded([path])
    assert data.name == tiny and records[path]["flags"]["dataset"] == tiny
    assert models[2] is None
    flags = {"image_size": [20, 21], "grayscale": True, "dataset": tiny}
    records = {"weights.h5": {}, "model.keras": {"flags": flags}}
    assert load_data(records, {}).x_test.shape == (12, 20, 21, 1)
    found = load_data(records, {"image_size": (18, 18)})
    assert found.x_test.shape == (12, 18, 18, 1)


def test_seed_of_the_run_draws_the_digits(monkeypatch):
    records = {"model.keras": {"flags": {"dataset": "digits", "seed": 7}}}
    drawn = []
    monkeypatch.setattr(
        loading, "load", lambda name, seed, **kwargs: drawn.append((name, seed))
    )
    for asked in ({}, {"seed": 3}):
        load_data(records, asked)
    assert drawn == [("digits", 7), ("digits", 3)]


def test_data_that_are_gone_are_asked_for(saved, tmp_path, tiny):
    path = saved(dataset=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="not there; .* with --dataset") as told:
        loaded([path])
    assert path in str(told.value)
    assert loaded([path], dataset=tiny)[1].name == tiny


@pytest.mark.parametrize(
    "kwargs, received",
    (({"shape": (20, 20, 1)}, "20x20x1 and 3"), ({"n_class": 4}, "1 and 4")),
)
def test_data_of_another_shape_or_kind_are_refused(
    saved, tmp_path, kwargs, received
):
    path = write_bars(tmp_path / "other.npz", **kwargs)
    # The names are no reason: a model of other classes does not know them.
    with pytest.raises(UserError, match=f"{received}; .*another --dataset"):
        loaded([saved(["1", "2", "3"])], dataset=path)


# Which pictures no model was trained on.


def record(fraction, dataset="/data/own"):
    return {"flags": {"test_fraction": fraction, "dataset": dataset}}


@pytest.mark.parametrize(
    "fractions, expected",
    (
        ([None], None),  # A set with a test part of its own, or the default.
        ([0.5], 0.5),
        ([0.3, None], TEST_FRACTION),
        ([None, 0.1], 0.1),
    ),
)
def test_only_what_no_model_was_trained_on_is_tested(fractions, expected):
    records = dict(enumerate(map(record, fractions)))
    assert unseen_fraction(None, records, "/data/own") == expected
    records["other"] = record(0.01, "/data/other")
    assert unseen_fraction(None, records, "/data/own") == expected
    smallest = expected or TEST_FRACTION
    with pytest.raises(UserError, match=f"at most {smallest:g}"):
        unseen_fraction(0.6, records, "/data/own")
    assert unseen_fraction(0.6, records, "/data/new") == 0.6


def test_what_was_kept_does_not_matter_where_there_is_a_test_part(tmp_path):
    path = write_bars(tmp_path / "own.npz")
    records = {"model.keras": record(0.3, "/data/own.npz")}
    assert len(load_data(records, {"dataset": path}).x_test) == 12
    with pytest.raises(UserError, match="expected --test_fraction"):
        load_data(records, {"dataset": path, "test_fraction": 0.3})


def test_no_name_is_no_data_set():
    with pytest.raises(UserError, match="expected --dataset to be .*''"):
        load_data({}, {"dataset": ""})


def test_picture_is_found_by_its_name_in_the_table(tmp_path):
    data = classes("a", "b", "c")
    data.test_names = ["+/0.png", "b/0.png", "'+/1.png"]
    for name, number in (("+/0.png", 0), ("'+/0.png", 0), ("'+/1.png", 2)):
        found = start_picture(name, data, 0, 0)
        np.testing.assert_array_equal(found, data.x_test[number])


def test_picture_in_a_file_is_inverted_like_the_test_part(tmp_path):
    data = classes("a", "b", "c")
    path = str(tmp_path / "a.png")
    Image.fromarray(255 - data.x_test[1][..., 0]).save(path)
    found = start_picture(path, data, 0, 0, invert=True)
    np.testing.assert_array_equal(found, data.x_test[1])


@pytest.mark.parametrize("name", ("own", "own/", "./own", "link"))
def test_a_folder_is_known_by_all_its_names(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "link").symlink_to("own")
    records = {"model.keras": record(0.1, str(tmp_path / "own"))}
    assert unseen_fraction(None, records, name) == 0.1


@pytest.mark.parametrize(
    "flags, name",
    (({"test_fraction": 0.1}, "."), ({"dataset": "mnist"}, "./mnist")),
)
def test_a_model_of_elsewhere_kept_nothing_here(
    tmp_path, monkeypatch, flags, name
):
    """It tells of no data set, or of the one that is called `mnist`."""
    monkeypatch.chdir(tmp_path)
    records = {"model.keras": {"flags": flags}}
    assert unseen_fraction(0.5, records, name) == 0.5


# The order of the classes.


def classes(*names, name="own"):
    """A set whose pictures' labels are 0, 1, 2."""
    x, y = bars(3, SHAPE)
    return Dataset(x, y, x, y, list(names), name)


def named(*orders):
    return {
        f"{n}.keras": {"class_names": names} for n, names in enumerate(orders)
    }


def test_classes_are_found_by_their_names():
    records = named(["ant", "bee", "cow"])
    data = order_classes(classes("cow", "ant", "bee"), records)
    assert data.class_names == ["ant", "bee", "cow"]
    assert data.y_test.tolist() == data.y_train.tolist() == [2, 0, 1]
    assert list(trained_elsewhere(records, data)) == []


def test_other_classes_are_compared_in_their_order_and_said_so():
    records = {**named(["ant", "bee", "cow"]), "1.keras": {}}
    data = order_classes(classes("0", "1", "2"), records)
    assert data.y_test.tolist() == [0, 1, 2]
    assert list(trained_elsewhere(records, data)) == [
        "0.keras knows other classes, which are compared in their order: "
        "ant, bee, cow with 0, 1, 2"
    ]


@pytest.mark.parametrize(
    "orders, told",
    (
        ([["ant", "0", "1"]], "'0' would be taken for another one"),
        ([["0", "1", "2"], ["1", "0", "2"]], "classes in the same order"),
    ),
)
def test_classes_at_other_places_are_refused(orders, told):
    with pytest.raises(UserError, match=told):
        order_classes(classes("0", "1", "2"), named(*orders))


def test_models_of_another_data_set_are_named():
    for mine, theirs in (
        ("mnist", "/data/mnist"),  # As Keras's, in files.
        ("/data/own/", "/data/own"),
        ("own/", "/data/own"),
        ("/data/own", None),
    ):
        records = {"m.keras": {"flags": {"dataset": theirs}}}
        assert not list(trained_elsewhere(records, classes(name=mine)))
    (line,) = trained_elsewhere(records | {"n": record(0, "/x/y")}, classes())
    assert line == "n was trained on /x/y"


def test_inverted_test_pictures_are_noted_and_turned(tmp_path):
    path = write_bars(tmp_path / "own.npz")  # Their borders are dark.
    plain = load_data({}, {"dataset": path})
    turned = load_data({}, {"dataset": path, "invert": True})
    np.testing.assert_array_equal(turned.x_test, 255 - plain.x_test)
    records = {"a": {"border": [0.1, 0.05]}, "b": {}}
    assert loading.inverted(records, plain, {}) == []
    (line,) = loading.inverted(records, turned, {"invert": True})
    assert "12 of 12 pictures; leave out --invert" in line
    records["b"] = {"border": [0.9, 0.05]}
    (line,) = loading.inverted(records, plain, {})
    assert "12 of 12 pictures; --invert turns all" in line


def test_class_is_chosen_by_name_or_else_by_number():
    data = classes("cat", "2", "1")
    for name, expected in (("cat", 0), ("2", 1), ("1", 2), ("0", 0)):
        assert class_number(name, data) == expected


# How the models compute.


def test_flags_say_how_a_model_computes(saved, tiny, model, monkeypatch):
    # An earlier test may have asked for deterministic operations.
    supports = "keras.src.trainers.trainer.model_supports_jit"
    monkeypatch.setattr(supports, lambda model: True)
    path = saved(dataset=tiny)
    (recorded,), data, _ = loaded([path])
    (asked,), _, _ = loaded(
        [path], dtype_policy="mixed_bfloat16", conv="fast", jit_compile=True
    )
    expected = lengths_of(model, data.x_test)
    assert expected.max() > 0.2
    for models, dtype, method, compiled, atol in (
        (recorded, "float32", "auto", model.jit_compile, 1e-6),
        (asked, "bfloat16", "fast", True, 0.05),
    ):
        eval_model = models[1]
        layer = eval_model.get_layer("digitcaps")
        assert (layer.compute_dtype, layer.routings) == (dtype, 3)
        assert eval_model.get_layer("primarycap").conv.method == method
        assert eval_model.jit_compile is compiled
        found = lengths_of(eval_model, data.x_test)
        np.testing.assert_allclose(found, expected, atol=atol)


def test_rounds_of_routing_may_be_changed_for_the_test(saved, tiny, model):
    (models,), data, _ = loaded([saved(dataset=tiny)], routings=1)
    assert models[1].get_layer("digitcaps").routings == 1
    found = lengths_of(models[1], data.x_test)
    expected = lengths_of(model, data.x_test)
    assert np.abs(found - expected).max() > 1e-3


def test_weights_alone_get_the_network_that_is_asked_for(tmp_path, tiny, model):
    path = str(tmp_path / "alone.weights.h5")
    model.save_weights(path)
    asked = {"dataset": tiny, "lam_recon": 0, "primary_scale": 16.0}
    (models,), data, records = loaded([path], **asked)
    assert records == {path: {}}
    found = lengths_of(models[1], data.x_test)
    np.testing.assert_allclose(found, lengths_of(model, data.x_test), atol=1e-6)


def test_a_folder_that_was_moved_is_tested_on_what_was_kept():
    records = {"model.keras": record(0.1, "/data/own")}
    assert unseen_fraction(None, records, "/elsewhere/own") == 0.1
    assert unseen_fraction(None, records, "/elsewhere/other") is None
