"""Networks for several labels a picture: weights, outputs, metrics, loss."""

import keras
import numpy as np
import pytest
from conftest import bars

from capsnet.models.inference import longest, named_classes
from capsnet.models.networks import Network, reconstruction_weight
from capsnet.models.saving import load_models, save_model
from capsnet.models.several import Named, labels_of, pair_is_exact, set_is_exact
from capsulenet import build, compile_model

SHAPE, N_CLASS = (17, 17, 1), 4
# Lengths, and the two that are named: of equal ones the lower class.
LENGTHS = {
    (0.1, 0.9, 0.2, 0.8): (1, 3),
    (0.8, 0.2, 0.9, 0.1): (2, 0),
    (0.5, 0.5, 0.5, 0.5): (0, 1),
    (0.2, 0.7, 0.3, 0.3): (1, 2),
    (0.0, 0.0, 0.0, 0.4): (3, 0),
}


@pytest.fixture(scope="module")
def models():
    """By the labels that a picture has; scaled, so that lengths differ."""
    keras.utils.set_random_seed(3)
    network = Network(routings=1, primary_scale=16.0)
    return {
        labels: build(network, SHAPE, N_CLASS, labels)
        for labels in ("one", "pair", "several")
    }


def pictures(count=5):
    return bars(count, SHAPE, N_CLASS)[0].astype("float32") / 255


def test_networks_for_pairs_have_exactly_these_weights():
    shape = 36, 36, 1
    for network, expected in (
        (Network(), 11_361_808),
        (Network(model="baseline"), 24_563_978),
        (Network(decoder=False), 9_425_664),
    ):
        train_model, eval_model, _ = build(network, shape, 10, "pair")
        for model in (train_model, eval_model):
            assert model.count_params() == expected


def test_baseline_for_pairs_is_that_of_section_6():
    model = build(Network(model="baseline"), (8, 6, 1), 3, "pair")[1]
    kinds = [type(layer).__name__ for layer in model.layers]
    assert " ".join(kinds[1:6]) == (
        "FastConv2D MaxPooling2D FastConv2D MaxPooling2D Flatten"
    ).replace("FastConv2D", type(model.get_layer("conv1")).__name__)
    shapes = [model.get_layer(f"conv{n}").kernel.shape for n in (1, 2)]
    assert shapes == [(9, 9, 1, 512), (5, 5, 512, 256)]
    assert model.get_layer("dense1").kernel.shape == (2 * 1 * 256, 1024)
    x = np.random.default_rng(0).uniform(size=(2, 8, 6, 1)).astype("float32")
    both = keras.Model(model.input, [model.get_layer("scores").output])
    scores = both.predict(x, verbose=0)
    expected = 1 / (1 + np.exp(-np.asarray(scores)))
    received = model.predict(x, verbose=0)["capsnet"]
    np.testing.assert_allclose(received, np.squeeze(expected), atol=1e-6)


@pytest.mark.parametrize("model", ("capsnet", "efficient"))
@pytest.mark.parametrize("labels", ("pair", "several"))
def test_models_take_and_draw_what_a_picture_has(model, labels):
    two = [2] if labels == "pair" else []
    network = Network(model=model)
    train_model, eval_model, manipulate_model = build(
        network, SHAPE, N_CLASS, labels
    )
    lengths, drawn = (None, N_CLASS), (None, *two, *SHAPE)
    inputs = {x.name: x.shape for x in train_model.inputs}
    assert inputs == {"image": (None, *SHAPE), "label": (None, *two, N_CLASS)}
    for each in (train_model, eval_model):
        shapes = {name: x.shape for name, x in each.output.items()}
        assert shapes == {"capsnet": lengths, "decoder": drawn}
    # One label, one picture.
    inputs = {x.name: x.shape for x in manipulate_model.inputs}
    assert inputs["label"] == lengths
    assert manipulate_model.output["decoder"].shape == (None, *SHAPE)


def drawn_by_hand(model, x, kept):
    """What the decoder draws when only some capsules are kept."""
    digitcaps = model.get_layer("digitcaps").output
    capsules = keras.Model(model.input, digitcaps).predict(x, verbose=0)
    masked = np.zeros_like(capsules)
    for sample, numbers in enumerate(kept):
        for number in numbers:
            masked[sample, number] = capsules[sample, number]
    decoder = model.get_layer("decoder")
    return decoder.predict(masked.reshape(len(x), -1), verbose=0)


def test_the_one_decoder_draws_each_of_two_labels(models):
    train_model, eval_model, _ = models["pair"]
    x = pictures()
    outputs = eval_model.predict(x, verbose=0)
    order = np.argsort(-outputs["capsnet"], axis=1)
    label = np.eye(N_CLASS, dtype="float32")[order[:, 2:]]
    trained = train_model.predict({"image": x, "label": label}, verbose=0)
    for drawn, classes in (
        (outputs["decoder"], order[:, :2]),
        (trained["decoder"], order[:, 2:]),
    ):
        for row in range(2):
            expected = drawn_by_hand(eval_model, x, classes[:, row : row + 1])
            np.testing.assert_allclose(drawn[:, row], expected, atol=1e-5)
    assert np.ptp(drawn) > 1e-3  # They are not all alike.


def test_all_of_several_labels_are_drawn_at_once(models):
    train_model, eval_model, _ = models["several"]
    x = pictures()
    kept = [(0, 2), (1,), (), (0, 1, 2, 3), (3,)]
    label = np.zeros((5, N_CLASS), "float32")
    for row, numbers in zip(label, kept):
        row[list(numbers)] = 1
    trained = train_model.predict({"image": x, "label": label}, verbose=0)
    expected = drawn_by_hand(eval_model, x, kept)
    np.testing.assert_allclose(trained["decoder"], expected, atol=1e-5)
    outputs = eval_model.predict(x, verbose=0)
    named = [
        np.flatnonzero(row > 0.5) if row.max() > 0.5 else [row.argmax()]
        for row in outputs["capsnet"]
    ]
    expected = drawn_by_hand(eval_model, x, named)
    np.testing.assert_allclose(outputs["decoder"], expected, atol=1e-5)


def test_loss_is_eq_4_and_0_0005_times_both_sums_of_squared_errors(models):
    train_model = models["pair"][0]
    generator = np.random.default_rng(0)
    weight = reconstruction_weight("classic", (2, *SHAPE), N_CLASS)
    compile_model(train_model, 0.001, weight, labels="pair")
    x, target = pictures(3), generator.uniform(size=(3, 2, *SHAPE))
    label = np.eye(N_CLASS, dtype="float32")[[[0, 1], [3, 1], [2, 0]]]
    inputs = {"image": x, "label": label}
    truth = {"capsnet": label.sum(1), "decoder": target.astype("float32")}
    losses = train_model.evaluate(inputs, truth, verbose=0, return_dict=True)
    made = train_model.predict(inputs, verbose=0)
    expected = 0.0
    for sample in range(3):
        for number, length in enumerate(made["capsnet"][sample]):
            if label[sample, :, number].any():
                expected += max(0, 0.9 - length) ** 2
            else:
                expected += 0.5 * max(0, length - 0.1) ** 2
        for row in range(2):
            errors = made["decoder"][sample, row] - target[sample, row]
            expected += 0.0005 * np.sum(np.square(errors))
    assert losses["loss"] == pytest.approx(expected / 3, rel=1e-4)


def test_two_longest_are_named_and_of_equal_ones_the_lower_class():
    lengths = np.array(list(LENGTHS), "float32")
    drawn = np.asarray(Named("pair")(lengths))
    named = named_classes(lengths, "pair")
    for row, other, (first, second) in zip(drawn, named, LENGTHS.values()):
        assert row.argmax(-1).tolist() == [first, second]
        assert row.sum() == 2
        assert np.flatnonzero(other).tolist() == sorted((first, second))
    # As NumPy's argmax.
    assert longest(lengths, 1).argmax(1).tolist() == (
        lengths.argmax(1).tolist()
    )
    assert longest(lengths, np.arange(5)[:, None]).sum(1).tolist() == [
        0,
        *(1, 2, 3, 4),
    ]


@pytest.mark.parametrize(
    "true, expected",
    (
        ((1, 3), [1, 0, 0, 0, 0]),
        ((3, 1), [1, 0, 0, 0, 0]),  # In the other order.
        ((0, 1), [0, 0, 1, 0, 0]),  # A tie.
        ((0, 2), [0, 1, 0, 0, 0]),
        ((0, 3), [0, 0, 0, 0, 1]),
    ),
)
def test_a_pair_is_right_if_both_labels_are(true, expected):
    lengths = np.array(list(LENGTHS), "float32")
    two_hot = np.eye(N_CLASS, dtype="float32")[list(true)].sum(0)
    exact = np.asarray(pair_is_exact(np.tile(two_hot, (5, 1)), lengths))
    assert exact.tolist() == [bool(each) for each in expected]


def test_several_labels_are_right_if_those_above_half_are_all():
    lengths = np.array([[0.6, 0.5, 0.9], [0.4, 0.3, 0.2]], "float32")
    for row, expected in (
        ((1, 0, 1), [True, False]),
        ((1, 1, 1), [False, False]),
        ((0, 0, 1), [False, False]),
        ((0, 0, 0), [False, True]),
    ):
        true = np.array([row, row], "float32")
        assert np.asarray(set_is_exact(true, lengths)).tolist() == expected


@pytest.mark.parametrize("labels", ("pair", "several"))
def test_saved_model_is_known_by_itself_and_draws_the_same(
    models, tmp_path, labels
):
    path = str(tmp_path / "model.keras")
    save_model(models[labels][1], path, {})
    (model,), _, record = load_models([path])
    assert labels_of(model, record) == labels and record == {}
    x = pictures()
    for name, values in model.predict(x, verbose=0).items():
        expected = models[labels][1].predict(x, verbose=0)[name]
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_model_without_a_decoder_is_known_by_its_record(models):
    model = models["one"][1]
    assert labels_of(model, {}) == "one"
    assert labels_of(model, {"labels": "pair"}) == "pair"
