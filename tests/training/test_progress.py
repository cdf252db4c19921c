"""Tests of progress.py: what a training shows, by a clock of the test."""

import contextlib
import io

import pytest

from capsnet import messages
from capsnet.models import inference
from capsnet.training import progress

LOGS = {"loss": 0.03294, "decoder_loss": 0.0425, "capsnet_accuracy": 0.98116}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(progress.time, "perf_counter", made)
    monkeypatch.setattr(messages.time, "monotonic", made)
    return made


@contextlib.contextmanager
def terminal(columns, monkeypatch):
    """A terminal in place of the output."""
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.redirect_stdout(Terminal()) as made:
        yield made


def epoch(callback, clock, number, steps, seconds, logs):
    """An epoch: its first step takes 10 seconds more, its test 60."""
    callback.on_epoch_begin(number)
    clock.now += 10
    for step in range(steps):
        clock.now += seconds
        callback.on_train_batch_end(step, logs)
    clock.now += 60
    callback.on_epoch_end(number, logs)


def started(epochs, steps):
    callback = progress.Progress()
    callback.set_params({"epochs": epochs, "steps": steps})
    return callback


def lines_of(text):
    """All that was visible on some line, whatever replaced it."""
    return [part for line in text.split("\n") for part in line.split("\r")]


def test_terminal_shows_step_losses_accuracy_and_time(clock, monkeypatch):
    callback = started(50, 600)
    with terminal(80, monkeypatch) as screen:
        epoch(callback, clock, 0, 600, 0.5, LOGS)
        # An epoch has taken 10 + 300 + 60 seconds now.
        epoch(callback, clock, 1, 300, 0.5, LOGS)
    shown = lines_of(screen.getvalue())
    figures = "300/600: loss 0.0329, mse 0.0425, acc 98.12 %, 2:30 of"
    lines = list(map(str.rstrip, shown))
    # 300 steps of half a second are left, and 49 or 48 epochs.
    assert f"Epoch 1/50 {figures} 4:07:30 left" in lines
    assert f"Epoch 2/50 {figures} 4:58:30 left" in lines
    assert max(map(len, shown)) < 80


def test_time_of_the_run_is_told_once_with_a_shorter_way(clock, capsys):
    callback = started(50, 600)
    for number in range(2):
        epoch(callback, clock, number, 600, 0.5, LOGS)
    told = "About 4:10:00 to go: 50 x 5:00, and the tests"
    assert capsys.readouterr().out.splitlines() == [
        told,
        "Shorter: --recipe laptop --epochs 5 trains a small network of "
        "capsules",
        "Epoch 1/50: 6:10, loss 0.0329, mse 0.0425, accuracy 98.12 %",
        "Epoch 2/50: 6:10, loss 0.0329, mse 0.0425, accuracy 98.12 %",
    ]


def test_short_run_is_told_of_after_its_first_epoch(clock, capsys):
    logs = {"loss": 0.5, "capsnet_accuracy": 0.25, "val_capsnet_accuracy": 0.5}
    epoch(started(2, 3), clock, 0, 3, 2, logs)
    assert capsys.readouterr().out.splitlines() == [
        "About 0:12 to go: 2 x 0:06, and the tests",
        "Epoch 1/2: 1:16, loss 0.5000, accuracy 25.00 %, held out 50.00 %",
    ]


def test_wide_lines_are_cut_to_a_narrow_terminal(clock, monkeypatch):
    line = messages.StatusLine()
    with terminal(40, monkeypatch) as screen:
        for text in ("a" * 100, "b"):
            line.show(text)
            clock.now += 1
        line.clear()
    shown = ["", "a" * 39, "b" + " " * 38, " ", ""]
    assert lines_of(screen.getvalue()) == shown


def test_prediction_shows_how_far_it_is(clock, monkeypatch):
    watch = inference.Watch(8)
    with terminal(80, monkeypatch) as screen:
        for step in range(2):
            clock.now += 1
            watch.on_predict_batch_end(step)
    shown = ["12 % of the pictures read", "25 % of the pictures read"]
    assert lines_of(screen.getvalue())[1:] == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (7, "0:07"), (754.6, "12:35"), (3900, "1:05:00")],
)
def test_duration(seconds, text):
    assert messages.duration(seconds) == text
