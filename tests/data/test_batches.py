"""Batches: whole-pixel shifts by loops, exact means, the same draws again."""

import math
import time

import numpy as np
import pytest
from samples import random_pictures

from capsnet.data.augment import Affine, Photo, Shift
from capsnet.data.batches import (
    ShiftedBatches,
    balanced_weights,
    choose_batch_size,
)


def shifted_by_loops(picture, down, right):
    height, width, channels = picture.shape
    shifted = np.zeros_like(picture)
    for row in range(height):
        for column in range(width):
            for channel in range(channels):
                from_row, from_column = row - down, column - right
                if 0 <= from_row < height and 0 <= from_column < width:
                    shifted[row, column, channel] = picture[
                        from_row, from_column, channel
                    ]
    return shifted


def collect(batches):
    collected = [batches[index] for index in range(len(batches))]
    image = np.concatenate([batch[0]["image"] for batch in collected])
    target = np.concatenate([batch[1]["capsnet"] for batch in collected])
    return image, target.argmax(axis=1)


@pytest.mark.parametrize(
    "shape, fraction, most",
    [((6, 5, 1), 0.35, (2, 1)), ((17, 20, 4), 0.1, (1, 2))],
)
def test_every_picture_is_shifted_by_whole_pixels_with_zero_fill(
    shape, fraction, most
):
    x = random_pictures(30, shape)
    batches = ShiftedBatches(
        x, np.arange(30), 30, 7, augment=Shift(fraction), seed=3
    )
    image, labels = collect(batches)
    assert labels.tolist() == list(range(30))
    # The draws of a seed are an interface: old runs are resumed with them.
    generator = np.random.default_rng([3, 0])
    down, right = (m - generator.integers(0, 2 * m + 1, 30) for m in most)
    for moves, m in zip((down, right), most):
        assert set(moves) == set(range(-m, m + 1))
    for received, *picture in zip(image, x, down, right):
        expected = shifted_by_loops(*picture).astype(np.float32) / 255
        np.testing.assert_array_equal(received, expected)


def test_without_a_shift_pictures_are_only_scaled():
    x = random_pictures()
    image, _ = collect(ShiftedBatches(x, np.zeros(12, int), 2, 5))
    np.testing.assert_array_equal(image, x.astype(np.float32) / 255)
    assert image.dtype == np.float32


@pytest.mark.parametrize("augment", [Shift(0.4), Affine(), Photo()])
def test_a_batch_depends_on_seed_epoch_and_index_alone(augment):
    x, y = random_pictures(20), np.arange(20)

    def batches(seed=1):
        return ShiftedBatches(
            x, y, 20, 6, augment=augment, seed=seed, shuffle=True
        )

    straight = batches()
    expected = {}
    for epoch in range(3):
        straight.set_epoch(epoch)
        for index in range(len(straight)):
            expected[epoch, index] = straight[index][0]
    wandering = batches()
    for epoch, index in [(2, 3), (0, 1), (2, 0), (1, 2), (0, 0)]:
        wandering.set_epoch(epoch)
        wandering.on_epoch_end()
        again = wandering[index][0]
        for key in ("image", "label"):
            np.testing.assert_array_equal(
                again[key], expected[epoch, index][key]
            )
    first, second = expected[0, 0]["image"], expected[1, 0]["image"]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, batches(seed=2)[0][0]["image"])


@pytest.mark.parametrize("augment", [Shift(0.4), Affine(), Photo()])
def test_a_version_depends_on_neither_batch_nor_replicas(augment):
    x, y = random_pictures(10, (9, 8, 3)), np.arange(10)
    drawn = {"augment": augment, "seed": 5, "shuffle": True}
    expected, labels = collect(ShiftedBatches(x, y, 10, 10, **drawn))
    assert sorted(labels) == list(range(10))
    divided = ShiftedBatches(x, y, 10, 7, replicas=2, **drawn)
    for index, start in ((1, 7), (0, 0)):
        inputs, targets, weights = divided[index]
        count = min(7, 10 - start)
        image, kept = inputs["image"], slice(start, start + count)
        assert len(image) == count + 1
        np.testing.assert_array_equal(image[:count], expected[kept])
        assert targets["capsnet"][:count].argmax(-1).tolist() == list(
            labels[kept]
        )
        # What fills up stays zero, and without weight.
        assert not image[count:].any()
        assert not weights["capsnet"][count:].any()
        # What the decoder is to draw is the version.
        np.testing.assert_array_equal(targets["decoder"], image)


@pytest.mark.parametrize("augment", [Affine(), Photo()])
def test_versions_of_an_epoch_are_drawn_after_its_order(augment):
    x = random_pictures(10, (9, 8, 3))
    batches = ShiftedBatches(
        x, np.arange(10), 10, 4, augment=augment, seed=5, shuffle=True
    )
    batches.set_epoch(2)
    image, labels = collect(batches)
    generator = np.random.default_rng([5, 2])
    assert labels.tolist() == generator.permutation(10).tolist()
    expected = augment(x, generator)[labels]
    np.testing.assert_allclose(image, expected, atol=1e-6)


def test_an_epoch_covers_every_picture_once_in_an_order_of_its_own():
    batches = ShiftedBatches(
        random_pictures(23), np.arange(23), 23, 5, shuffle=True, seed=4
    )
    assert len(batches) == 5
    orders = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        orders.append(collect(batches)[1].tolist())
        drawn = np.random.default_rng([4, epoch]).permutation(23)
        assert orders[-1] == drawn.tolist()
    assert orders[0] != orders[1]


def test_inputs_and_targets_follow_the_model():
    x, y = random_pictures(4), np.array([0, 1, 2, 1])
    inputs, targets = ShiftedBatches(x, y, 3, 4, augment=Shift(0.4))[0]
    assert set(inputs) == {"image", "label"}
    assert set(targets) == {"capsnet", "decoder"}
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]
    assert targets["capsnet"].tolist() == expected == inputs["label"].tolist()
    assert targets["capsnet"].dtype == np.float32
    np.testing.assert_array_equal(inputs["image"], targets["decoder"])
    # TensorFlow would overwrite memory that they shared.
    assert not np.shares_memory(inputs["image"], targets["decoder"])
    assert not np.shares_memory(inputs["label"], targets["capsnet"])
    inputs, targets, weights = ShiftedBatches(
        x, y, 3, 4, decoder=False, replicas=2
    )[0]
    assert inputs.shape[0] == 4  # The pictures alone.
    assert set(targets) == set(weights) == {"capsnet"}


def test_class_weights_reach_the_margin_loss_only():
    x, y = random_pictures(4), np.array([0, 1, 2, 1])
    class_weight = np.array([0.5, 2.0, 3.0])
    weights = ShiftedBatches(x, y, 3, 3, class_weight=class_weight)[0][2]
    assert weights["capsnet"].tolist() == [0.5, 2.0, 3.0]
    assert weights["decoder"].shape == (3, 1, 1)
    assert weights["decoder"].ravel().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("n", "batch_size", "replicas"),
    [(7, 4, 2), (9, 4, 4), (3, 5, 2), (1, 1, 3)],
)
@pytest.mark.parametrize("class_weight", [None, np.array([0.5, 4.0])])
def test_padded_batches_have_the_mean_of_the_real_pictures(
    n, batch_size, replicas, class_weight
):
    x, y = random_pictures(n), np.arange(n) % 2
    padded = ShiftedBatches(
        x, y, 2, batch_size, replicas=replicas, class_weight=class_weight
    )
    plain = ShiftedBatches(x, y, 2, batch_size)
    counts = np.ones(2) if class_weight is None else class_weight
    assert len(padded) == math.ceil(n / batch_size)
    for index in range(len(padded)):
        inputs, targets, weights = padded[index]
        expected, labels = plain[index]
        real, rows = len(expected["image"]), len(inputs["image"])
        assert rows % replicas == 0 and 0 <= rows - real < replicas
        for key in ("image", "label"):
            assert not inputs[key][real:].any()
            np.testing.assert_array_equal(inputs[key][:real], expected[key])
        loss = np.arange(1.0, rows + 1)
        each = counts[labels["capsnet"].argmax(axis=1)]
        for key, weight in (("capsnet", each), ("decoder", np.ones(real))):
            assert not weights[key][real:].any()
            np.testing.assert_allclose(
                (loss * weights[key].ravel()).mean(),
                (loss[:real] * weight).mean(),
                rtol=1e-6,
            )


@pytest.mark.parametrize("augment", [Shift(0.2), Affine(), Photo()])
@pytest.mark.parametrize("n, processes", [(9, 2), (9, 4), (5, 4)])
def test_parts_of_all_processes_are_the_batch(n, processes, augment):
    """Of 5 pictures in batches of 4 the last process has none of the last."""
    x, y = random_pictures(n, (12, 12, 3)), np.arange(n) % 2
    common = {"augment": augment, "seed": 3, "shuffle": True}
    common |= {"replicas": 4, "class_weight": np.array([0.5, 4.0])}
    whole = ShiftedBatches(x, y, 2, 4, **common)
    parts = [
        ShiftedBatches(x, y, 2, 4, process=(number, processes), **common)
        for number in range(processes)
    ]
    for index in range(len(whole)):
        received = [part[index] for part in parts]
        for place, group in enumerate(whole[index]):
            for key, expected in group.items():
                rows = [each[place][key] for each in received]
                assert len({len(row) for row in rows}) == 1
                np.testing.assert_array_equal(np.concatenate(rows), expected)


def test_one_picture_and_batches_of_one():
    x = random_pictures(2, (17, 17, 4))
    batches = ShiftedBatches(x, np.array([0, 1]), 2, 1, augment=Shift(0.2))
    assert len(batches) == 2
    assert batches[1][0]["image"].shape == (1, 17, 17, 4)
    alone = ShiftedBatches(x[:1], np.array([1]), 2, 100, shuffle=True)
    assert len(alone) == 1
    assert alone[0][1]["capsnet"].tolist() == [[0, 1]]
    with pytest.raises(IndexError):
        alone[1]


@pytest.mark.parametrize(
    "n, labels, batch_size", [(3, 2, 1), (3, 3, 0), (0, 0, 1)]
)
def test_batches_refuse_what_cannot_be_batched(n, labels, batch_size):
    with pytest.raises(ValueError, match="Received"):
        ShiftedBatches(
            random_pictures(3)[:n], np.zeros(labels, int), 2, batch_size
        )


def test_a_batch_of_100_takes_less_than_two_milliseconds():
    x = random_pictures(2000, (28, 28, 1))
    batches = ShiftedBatches(
        x, np.zeros(2000, int), 10, 100, augment=Shift(), shuffle=True
    )
    seconds = []
    for index in range(len(batches)):
        start = time.perf_counter()
        batches[index]
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.002


@pytest.mark.parametrize(
    "most, pictures, replicas, expected",
    (
        (100, 60_000, 1, 100),
        (128, 60_000, 1, 128),
        (100, 10_000, 1, 100),
        (100, 9_999, 1, 99),
        (128, 1_000, 1, 10),
        (100, 3, 1, 10),
        (8, 3, 1, 8),
        (800, 60_000, 8, 800),
        (400, 1_500, 4, 60),
    ),
)
def test_small_sets_have_small_batches(most, pictures, replicas, expected):
    assert choose_batch_size(most, pictures, replicas) == expected


def test_balanced_weights_are_inverse_to_the_counts():
    weights = balanced_weights(np.array([0, 0, 0, 1, 2, 2]), 3)
    np.testing.assert_allclose(weights, [6 / 9, 6 / 3, 6 / 6])
