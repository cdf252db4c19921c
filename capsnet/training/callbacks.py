"""What happens around each epoch: the clock, the test, the log, the keeper."""

import contextlib
import math
import os
import time

import keras
import numpy as np

import utils
from capsnet.devices import alone
from capsnet.files import LOG, MODEL, OF_MODEL, remove, writing
from capsnet.messages import UserError
from capsnet.models.inference import (
    PREDICT_BATCH,
    lengths_model,
    named_classes,
    predict_batches,
)
from capsnet.models.saving import save_model
from capsnet.training.checkpoints import keep


class EpochClock(keras.callbacks.Callback):
    """Tells the batches which epoch it is; keeps its rate and its seconds.

    Raises:
        FloatingPointError: When the loss is no number any more.
    """

    def __init__(self, batches, seconds):
        super().__init__()
        self.batches = batches
        self.seconds = seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)
        self.learning_rate = float(self.model.optimizer.learning_rate)
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.end = time.perf_counter()
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss became {logs['loss']} in step {batch + 1}; try a "
                "smaller --lr, or --dtype_policy float32"
            )

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(round(self.end - self.start, 2))
        logs["learning_rate"] = self.learning_rate


class ExactMeans(keras.callbacks.Callback):
    """Makes an epoch's figures means over its pictures, not its rows.

    Keras weighs a batch by its rows, and blank ones fill up the last batch
    where the devices do not divide it; its other figures are exact. What a
    step is of several batches, `steps_per_execution`, is left as it is.

    Args:
        batches: The training's batches.
        held_out: None, or those of the validation.
    """

    def __init__(self, batches, held_out=None):
        super().__init__()
        self.batches = {"": batches, "val_": held_out}
        self.means = {}

    def on_train_batch_end(self, batch, logs=None):
        self.keep("", batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        self.keep("val_", batch, logs)

    def keep(self, prefix, batch, logs):
        """Keeps the means over all batches but the last."""
        earlier = len(self.batches[prefix]) - 1
        if batch != earlier - 1:
            return
        count, rows = (earlier * n for n in self.batches[prefix].size(0))
        last = self.batches[prefix].size(earlier)
        if count * last[1] != rows * last[0]:
            for name, mean in logs.items():
                self.means[prefix + name] = float(mean), count, rows, *last

    def on_epoch_end(self, epoch, logs=None):
        for name, (
            mean,
            count,
            rows,
            last_count,
            last_rows,
        ) in self.means.items():
            all_rows = float(logs[name]) * (rows + last_rows)
            last = (all_rows - mean * rows) / last_rows
            total = mean * count + last * last_count
            logs[name] = total / (count + last_count)


class TestError(keras.callbacks.Callback):
    """Adds the test error in percent to the log. It chooses nothing.

    Of several labels a picture all have to be right; of pairs one is tested
    for each picture of the test part.
    """

    def __init__(self, eval_model, data, swap=None):
        super().__init__()
        # Made once, or TensorFlow would trace it anew in every epoch.
        self.lengths = lengths_model(eval_model)
        self.batches = data.test_batches(PREDICT_BATCH)
        self.labels = data.labels
        self.swap = swap
        self.line = None

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.swap):
            lengths = predict_batches(self.lengths, self.batches)
        named, answers = (
            named_classes(lengths, self.labels),
            self.batches.answers,
        )
        wrong = int(np.sum((named != answers).any(-1)))
        logs["test_error"] = 100 * wrong / len(answers)
        exact = "" if self.labels == "one" else "exact "
        self.line = (
            f"Epoch {epoch + 1}: {exact}test error {logs['test_error']:.2f} % "
            f"({wrong} of {len(answers)})"
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.print_line()

    def on_train_end(self, logs=None):
        self.print_line()

    def print_line(self):
        """Only now is Keras done with the epoch's progress bar."""
        if self.line:
            print(self.line, flush=True)
        self.line = None


class Log(keras.callbacks.CSVLogger):
    """`log.csv`: a `CSVLogger` with given columns.

    Left alone, it adds a `val_` column to every column, and fills it with NA.
    """

    def __init__(self, save_dir, decoder, validation, append):
        super().__init__(os.path.join(save_dir, LOG), append=append)
        columns = ["loss", "capsnet_loss", "capsnet_accuracy", "decoder_loss"]
        if not decoder:  # What is left of the loss is the capsules' own.
            columns = ["loss", "capsnet_accuracy"]
        held_out = [f"val_{name}" for name in columns] if validation else []
        self.columns = [*columns, *held_out, "learning_rate", "test_error"]

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.keys = self.columns

    def on_epoch_end(self, epoch, logs=None):
        try:
            with writing(self.filename):
                super().on_epoch_end(epoch, logs)
        except UserError:
            # Or the file would try once more to write when it is forgotten.
            with contextlib.suppress(OSError):
                self.csv_file.close()
            raise


class Keeper(keras.callbacks.Callback):
    """Keeps the checkpoint, and the best model where held-out data choose.

    Args:
        save_dir: The run's folder.
        eval_model: The model to save.
        record: Dictionary, saved within the model.
        state: Dictionary, the checkpoint's; it grows by what comes.
        choose: Whether held-out pictures choose the epoch.
        swap: `SwapEMAWeights` where averaged weights are saved, or `None`.
    """

    def __init__(self, save_dir, eval_model, record, state, choose, swap=None):
        super().__init__()
        self.save_dir = save_dir
        self.eval_model = eval_model
        self.record = record
        self.state = state
        self.choose = choose
        self.swap = swap
        self.has_trained = False

    def on_epoch_end(self, epoch, logs=None):
        self.has_trained = True
        if self.choose:
            # The highest accuracy; of several the one with the lowest loss.
            score = [logs["val_capsnet_accuracy"], -logs["val_loss"]]
            best = self.state.get("best")
            if best is None or score > best["score"]:
                test_error = logs["test_error"]
                figures = {"epoch": epoch + 1, "test_error": test_error}
                self.state["best"] = {"score": score, **figures}
                self.save(figures)
        self.state["epochs_done"] = epoch + 1
        keep(self.save_dir, self.model, self.state)

    def kept(self):
        """The epoch that is kept, and its test error."""
        if self.choose:
            best = self.state["best"]
            return {name: best[name] for name in ("epoch", "test_error")}
        log = utils.read_log(os.path.join(self.save_dir, LOG))
        return {
            "epoch": self.state["epochs_done"],
            "test_error": float(log["test_error"][-1]),
        }

    def finish(self):
        """Saves the last epoch's model where it is kept; returns `kept`."""
        path = os.path.join(self.save_dir, MODEL)
        # A finished run that is resumed has its model already.
        if not self.choose and (self.has_trained or not os.path.exists(path)):
            self.save(self.kept())
        return self.kept()

    def save(self, figures):
        """Saves the model; what tells of an old one goes."""
        remove(self.save_dir, OF_MODEL)
        path = os.path.join(self.save_dir, MODEL)
        with averaged(self.swap):
            save_model(self.eval_model, path, {**self.record, **figures})


def around(keeper, batches, data, debug=False, held_out=None):
    """All callbacks of a training, in the order in which they are called.

    Of several processes the first one alone tests and writes.

    Args:
        keeper: A `Keeper`.
        batches: The training's batches.
        data: A `sources.Dataset`; its test part is tested.
        debug: Whether TensorBoard's logs are written.
        held_out: None, or the batches of held-out pictures.
    """
    save_dir, state, swap = keeper.save_dir, keeper.state, keeper.swap
    decoder = "decoder" in keeper.eval_model.output
    goes_on = state["epochs_done"] > 0
    watchers = [
        EpochClock(batches, state["seconds_per_epoch"]),
        ExactMeans(batches, held_out),
        *([swap] if swap else []),
    ]
    if batches.process[0] > 0:
        return watchers
    with alone():
        test = TestError(keeper.eval_model, data, swap)
    watchers += [
        test,
        Log(save_dir, decoder, keeper.choose, append=goes_on),
        keeper,
    ]
    if debug:
        folder = os.path.join(save_dir, "tensorboard")
        watchers.append(keras.callbacks.TensorBoard(folder, histogram_freq=1))
    return watchers


@contextlib.contextmanager
def averaged(swap):
    """Within it the model is ready to be tested and saved, by this process.

    It has its averaged weights, if it keeps any, or is an up-to-date copy.
    """
    if swap is None:
        yield
        return
    swap.on_test_begin()
    try:
        with alone():
            yield
    finally:
        swap.on_test_end()
