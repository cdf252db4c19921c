"""What happens around each epoch: the clock, the test, the log, the keeper."""

import contextlib
import math
import os
import time

import keras
import numpy as np

from capsnet.devices import alone
from capsnet.files import MODEL, OF_MODEL, remove
from capsnet.models.inference import (
    PREDICT_BATCH,
    lengths_model,
    named_classes,
    predict_batches,
)
from capsnet.models.saving import save_model
from capsnet.training.checkpoints import keep, write_log
from capsnet.training.progress import Progress


class EpochClock(keras.callbacks.Callback):
    """Tells batches and dropout the epoch; keeps its rate and its seconds.

    Raises:
        FloatingPointError: When the loss is no number any more.
    """

    def __init__(self, batches, seconds):
        super().__init__()
        self.batches = batches
        self.seconds = seconds

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.set_epoch(epoch)
        place_generators(self.model, epoch * len(self.batches))
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


def place_generators(model, step):
    """Lets dropout draw what it draws in a step, whatever was before.

    Keras keeps its generators in no file of weights.
    """
    for layer in model._flatten_layers():
        generator = getattr(layer, "seed_generator", None)
        if generator is not None:
            seed, _ = keras.ops.convert_to_numpy(generator.state)
            generator.state.assign(np.array([seed, step], "uint32"))


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
        batches = self.batches[prefix]
        earlier = len(batches) - 1
        if batch != earlier - 1:
            return
        count, rows = (earlier * n for n in batches.size(0))
        last = batches.size(earlier)
        if count * last[1] == rows * last[0]:
            return
        sizes = count, rows, *last
        # Keras divides an accuracy by the pictures' weights, a loss by rows.
        weighted = sizes * np.repeat(batches.mean_weights(count), 2)
        for name, mean in logs.items():
            is_weighted = name.endswith("accuracy")
            each = weighted if is_weighted else sizes
            self.means[prefix + name] = float(mean), *each

    def on_epoch_end(self, epoch, logs=None):
        for name, (mean, *sizes) in self.means.items():
            count, rows, last_count, last_rows = sizes
            all_rows = float(logs[name]) * (rows + last_rows)
            last = (all_rows - mean * rows) / last_rows
            total = mean * count + last * last_count
            logs[name] = total / (count + last_count)


class TestError(keras.callbacks.Callback):
    """Adds the test error in percent to the log. It chooses nothing.

    Of several labels a picture all have to be right; of pairs one is tested
    for each picture of the test part. `class_mistakes` of the state are those
    of each class, where a picture has one.
    """

    def __init__(self, eval_model, data, swap=None, state=None):
        super().__init__()
        # Made once, or TensorFlow would trace it anew in every epoch.
        self.lengths = lengths_model(eval_model)
        self.batches = data.test_batches(PREDICT_BATCH)
        self.labels = data.labels
        self.swap = swap
        self.state = {} if state is None else state

    def on_epoch_end(self, epoch, logs=None):
        with averaged(self.swap):
            lengths = predict_batches(self.lengths, self.batches)
        named = named_classes(lengths, self.labels)
        answers = self.batches.answers
        is_wrong = (named != answers).any(-1)
        wrong = int(np.sum(is_wrong))
        logs["test_error"] = 100 * wrong / len(answers)
        if self.labels == "one":
            self.state["class_mistakes"] = answers[is_wrong].sum(0).tolist()
        exact = "" if self.labels == "one" else "exact "
        print(
            f"Epoch {epoch + 1}: {exact}test error {logs['test_error']:.2f} % "
            f"({wrong} of {len(answers)})",
            flush=True,
        )


class Log(keras.callbacks.Callback):
    """`log.csv`: a row for each epoch.

    Args:
        save_dir: The run's folder.
        rows: List of the rows so far, to which the new ones are added.
        decoder, validation: Whether the model has a decoder, and the run
            held-out pictures.
    """

    def __init__(self, save_dir, rows, decoder, validation):
        super().__init__()
        self.save_dir = save_dir
        self.rows = rows
        columns = ["loss", "capsnet_loss", "capsnet_accuracy", "decoder_loss"]
        if not decoder:  # What is left of the loss is the capsules' own.
            columns = ["loss", "capsnet_accuracy"]
        held_out = [f"val_{name}" for name in columns] if validation else []
        self.columns = [*columns, *held_out, "learning_rate", "test_error"]

    def on_epoch_end(self, epoch, logs=None):
        row = {name: float(logs[name]) for name in self.columns}
        self.rows.append({"epoch": epoch, **row})
        write_log(self.save_dir, self.rows)


class Keeper(keras.callbacks.Callback):
    """Keeps the checkpoint, and the last epoch's model or the best one.

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

    def on_epoch_end(self, epoch, logs=None):
        # The model comes before the checkpoint that says it is there: what
        # is killed between them makes it once more.
        figures = self.figures(epoch + 1, logs["test_error"])
        if self.choose:
            # The highest accuracy; of several the one with the lowest loss.
            score = [logs["val_capsnet_accuracy"], -logs["val_loss"]]
            best = self.state.get("best")
            if best is None or score > best["score"]:
                self.state["best"] = {"score": score, **figures}
                self.save(figures)
        elif epoch + 1 == self.params["epochs"]:
            self.save(figures)
        self.state["epochs_done"] = epoch + 1
        keep(self.save_dir, self.model, self.state)

    def figures(self, epoch, test_error):
        """What the record says of an epoch that has just been tested."""
        mistakes = self.state.get("class_mistakes")
        more = {} if mistakes is None else {"class_mistakes": mistakes}
        return {"epoch": epoch, "test_error": float(test_error), **more}

    def kept(self):
        """The figures of the epoch that is kept."""
        if self.choose:
            best = dict(self.state["best"])
            del best["score"]
            return best
        last = self.state["log"][-1]
        return self.figures(self.state["epochs_done"], last["test_error"])

    def finish(self):
        """Makes log and model whole; returns `kept` and each epoch's seconds.

        Somebody may have changed or removed them since they were written.
        """
        write_log(self.save_dir, self.state["log"])
        if not os.path.exists(os.path.join(self.save_dir, MODEL)):
            self.save(self.kept())
        seconds = self.state["seconds_per_epoch"]
        return {**self.kept(), "seconds_per_epoch": seconds}

    def save(self, figures):
        """Saves the model; what tells of an old one goes."""
        remove(self.save_dir, OF_MODEL)
        path = os.path.join(self.save_dir, MODEL)
        with averaged(self.swap):
            save_model(self.eval_model, path, {**self.record, **figures})


def around(keeper, batches, held_out, data, debug=False, verbose=True):
    """All callbacks of a training, in the order in which they are called.

    Of several processes the first one alone tests and writes.

    Args:
        keeper: A `Keeper`.
        batches: The training's batches, and
        held_out: None, or those of held-out pictures.
        data: A `sources.Dataset`; its test part is tested.
        debug: Whether TensorBoard's logs are written.
        verbose: Whether progress is shown.
    """
    save_dir, state, swap = keeper.save_dir, keeper.state, keeper.swap
    decoder = "decoder" in keeper.eval_model.output
    watchers = [
        EpochClock(batches, state["seconds_per_epoch"]),
        ExactMeans(batches, held_out),
        *([swap] if swap else []),
    ]
    if batches.process[0] > 0:
        return watchers
    with alone():
        test = TestError(keeper.eval_model, data, swap, state)
    watchers += [
        *([Progress()] if verbose else []),
        test,
        Log(save_dir, state["log"], decoder, keeper.choose),
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
