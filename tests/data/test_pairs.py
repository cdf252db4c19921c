"""Pairs of digits, against loops written from section 6 of the paper."""

import numpy as np
import pytest
from samples import random_pictures

from capsnet.data.datasets import Dataset
from capsnet.data.pairs import PairBatches, merge, partners, place

SHAPE, CANVAS = (6, 5, 1), (14, 13, 1)
# One class has most of the pictures, one a single one.
LABELS = np.array([0, 1, 1, 1, 1, 1, 1, 1, 2, 2])


def placed_by_loops(picture, down, right):
    canvas = np.zeros(CANVAS, "uint8")
    for row in range(SHAPE[0]):
        for column in range(SHAPE[1]):
            value = picture[row, column, 0]
            canvas[4 + down + row, 4 + right + column, 0] = value
    return canvas


def merged_by_loops(first, second):
    merged = np.zeros(CANVAS, "uint8")
    for place_ in np.ndindex(CANVAS):
        merged[place_] = min(255, int(first[place_]) + int(second[place_]))
    return merged


def make(seed=0, shuffle=True, batch_size=4, **more):
    arguments = random_pictures(10, SHAPE), LABELS, 3, batch_size
    return PairBatches(*arguments, seed=seed, shuffle=shuffle, **more)


def rows_of(batches):
    """All of an epoch's inputs and targets, a fill-up left out."""
    names = ("image", "label"), ("capsnet", "decoder")
    found = {name: [] for name in (*names[0], *names[1])}
    for index in range(len(batches)):
        inputs, targets, *_ = batches[index]
        real = inputs["image"].any((1, 2, 3))
        for name, rows in (inputs | targets).items():
            found[name].append(rows[real])
    return {name: np.concatenate(rows) for name, rows in found.items()}


def found_in(digit):
    """Which picture of `make` a placed digit is, and how it was shifted."""
    rows, columns = np.nonzero(digit[..., 0])  # Its pictures have no zeros.
    top, left = rows.min(), columns.min()
    cut = digit[top : top + SHAPE[0], left : left + SHAPE[1]]
    same = [np.array_equal(x, cut) for x in random_pictures(10, SHAPE)]
    return same.index(True), top - 4, left - 4


def test_pictures_are_placed_on_a_black_canvas_by_whole_pixels():
    x = random_pictures(81, SHAPE)
    shifts = np.array([(d, r) for d in range(-4, 5) for r in range(-4, 5)])
    for received, picture, shift in zip(place(x, shifts), x, shifts):
        expected = placed_by_loops(picture, *shift)
        np.testing.assert_array_equal(received, expected)


def test_merged_pictures_are_sums_of_at_most_255():
    digits = np.array([[0, 0], [100, 155], [100, 156], [255, 255]], "uint8")
    assert merge(digits).tolist() == [0, 255, 255, 255]
    assert merge(digits).dtype == np.uint8


def test_partners_are_the_pictures_of_other_classes_all_alike_likely():
    generator = np.random.default_rng(0)
    shuffled = generator.permutation(LABELS)
    times = 6000
    for first, label in enumerate(shuffled):
        drawn = partners(shuffled, np.full(times, first), generator)
        others = np.flatnonzero(shuffled != label)
        counts = np.bincount(drawn, minlength=len(shuffled))
        assert counts.sum() == counts[others].sum() == times
        expected = times / len(others)
        # Five deviations of a binomial distribution.
        bound = 5 * np.sqrt(expected) + 1e-9
        assert np.abs(counts[others] - expected).max() < bound


def test_batches_hold_pairs_their_labels_and_single_digits():
    batches = make()
    shifts, firsts = set(), []
    for epoch in range(30):
        batches.set_epoch(epoch)
        rows = rows_of(batches)
        assert rows["image"].shape == (10, *CANVAS)
        assert rows["decoder"].shape == (10, 2, *CANVAS)
        each = []
        for image, label, two_hot, digits in zip(*rows.values()):
            digits = np.rint(digits * 255).astype("uint8")
            whole = merged_by_loops(*digits).astype("float32") / 255
            np.testing.assert_array_equal(image, whole)
            numbers = []
            for digit, row in zip(digits, label):
                number, *shift = found_in(digit)
                numbers.append(number)
                shifts.add(tuple(shift))
                assert row.tolist() == np.eye(3)[LABELS[number]].tolist()
            first, second = LABELS[numbers]
            assert first != second
            expected = [float(k in (first, second)) for k in range(3)]
            assert two_hot.tolist() == expected
            each.append(numbers[0])
        # Each picture once in an epoch is the first one.
        assert sorted(each) == list(range(10))
        firsts.append(tuple(each))
    assert len(shifts) == 81 and np.abs(list(shifts)).max() == 4
    assert len(set(firsts)) == 30


def test_a_batch_depends_on_seed_epoch_and_index_alone():
    straight, expected = make(1), {}
    for epoch in range(3):
        straight.set_epoch(epoch)
        for index in range(len(straight)):
            expected[epoch, index] = straight[index]
    wandering = make(1)
    for epoch, index in [(2, 2), (0, 1), (2, 0), (1, 1), (0, 0)]:
        wandering.set_epoch(epoch)
        for again, before in zip(wandering[index], expected[epoch, index]):
            for name in again:
                np.testing.assert_array_equal(again[name], before[name])
    images = [expected[epoch, 0][0]["image"] for epoch in range(3)]
    images.append(make(2)[0][0]["image"])
    for number, image in enumerate(images):
        for other in images[:number]:
            assert not np.array_equal(image, other)


@pytest.mark.parametrize("batch_size, replicas", ((10, 1), (3, 2), (7, 4)))
def test_a_pair_depends_on_neither_batch_nor_replicas(batch_size, replicas):
    expected = rows_of(make(5))
    divided = make(5, batch_size=batch_size, replicas=replicas)
    for name, rows in rows_of(divided).items():
        np.testing.assert_array_equal(rows, expected[name])
    if replicas == 1:
        return
    inputs, targets, weights = divided[len(divided) - 1]
    real = 10 - (len(divided) - 1) * batch_size
    count = len(inputs["image"])
    assert count % replicas == 0 and 0 < count - real < replicas
    for rows in (*inputs.values(), *targets.values()):
        assert not rows[real:].any() and len(rows) == count
    assert weights["decoder"].shape == (count, 1, 1, 1)
    for weight in weights.values():
        mean = (weight.ravel() * np.arange(count)).mean()
        assert mean == pytest.approx(np.arange(real).mean())


def test_parts_of_all_processes_are_the_batch():
    whole = make(5, batch_size=9, replicas=4)
    parts = [
        make(5, batch_size=9, replicas=4, process=(number, 4))
        for number in range(4)
    ]
    assert len(whole) == 2  # The second has one pair, for four processes.
    for index in range(2):
        received = [each[index] for each in parts]
        for part, group in enumerate(whole[index]):
            for key, expected in group.items():
                rows = [each[part][key] for each in received]
                assert len({len(row) for row in rows}) == 1
                np.testing.assert_array_equal(np.concatenate(rows), expected)


def test_test_pairs_are_the_same_for_every_seed_and_begin_with_one_each():
    x = random_pictures(10, SHAPE)
    data = Dataset(x, LABELS, x, LABELS, list("abc"), "pairs:x", pairs=True)
    assert data.input_shape == CANVAS and data.target_shape == (2, *CANVAS)
    once, all_ = (data.test_batches(4, versions=n) for n in (1, 10))
    merged, digits, classes = all_.pictures(np.arange(100))
    assert [found_in(digit)[0] for digit, _ in digits] == [*range(10)] * 10
    assert len(np.unique(merged, axis=0)) == 100
    found = [once.pictures(np.arange(10)), (merged, digits, classes)]
    for few, many in zip(*found):
        np.testing.assert_array_equal(few, many[:10])
    # Not only within this version of NumPy and of this program.
    second = [found_in(digit) for _, digit in digits[:4]]
    assert second == SECOND
    answers = [[k in pair for k in range(3)] for pair in classes]
    assert all_.answers.tolist() == answers
    images = np.concatenate([all_[index][0] for index in range(len(all_))])
    np.testing.assert_array_equal(images, merged / np.float32(255))
    np.testing.assert_array_equal(data.test_picture(3), merged[3])


def test_rows_without_a_decoder_are_pictures_and_two_hot_labels():
    inputs, targets = make(decoder=False)[0]
    assert inputs.shape == (4, *CANVAS) and list(targets) == ["capsnet"]
    assert targets["capsnet"].sum(1).tolist() == [2] * 4


# Which picture comes beside the first four, and how it is shifted.
SECOND = [(8, 0, 1), (8, 1, 0), (8, -2, 3), (0, -1, 3)]
