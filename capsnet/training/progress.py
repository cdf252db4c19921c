"""What a training shows of itself: a line that moves, and a line an epoch."""

import time

import keras

from capsnet.messages import StatusLine, duration

# Steps after which the whole run's time is told.
ESTIMATE_STEPS = 50
# Where it is more, a shorter way stands beside it.
LONG_SECONDS = 3600
SHORTER = (
    "Shorter: --recipe laptop --epochs 5 trains a small network of capsules"
)


class Progress(keras.callbacks.Callback):
    """Keras's progress bar in 80 columns, its accuracy in percent.

    In a terminal a line tells of the epoch's steps while they are made.
    Everywhere a line tells of each epoch when it is done, and one of the
    first epoch how long the run will take.
    """

    def __init__(self):
        super().__init__()
        self.line = StatusLine()
        self.begun = None
        self.epoch_seconds = None  # Of a whole epoch, with its test.

    def on_epoch_begin(self, epoch, logs=None):
        now = time.perf_counter()
        if self.begun is not None:
            self.epoch_seconds = now - self.begun
        self.begun, self.first = now, None
        self.name = f"Epoch {epoch + 1}/{self.params['epochs']}"
        self.epochs_left = self.params["epochs"] - epoch - 1
        self.tells = self.epoch_seconds is None

    def on_train_batch_end(self, batch, logs=None):
        done, steps, now = batch + 1, self.params["steps"], time.perf_counter()
        if self.first is None:  # Its time is that of tracing and compiling.
            self.first = done, now
            return
        step_seconds = (now - self.first[1]) / (done - self.first[0])
        if self.tells and done >= min(ESTIMATE_STEPS, steps):
            self.tells = False
            self.tell(step_seconds * steps)
        left = step_seconds * (steps - done)
        epoch_seconds = self.epoch_seconds or step_seconds * steps
        whole = duration(left + self.epochs_left * epoch_seconds)
        of_run = f" of {whole}" if self.epochs_left else ""
        self.line.show(
            f"{self.name} {done}/{steps}: {figures(logs, 'acc')}, "
            f"{duration(left)}{of_run} left"
        )

    def on_epoch_end(self, epoch, logs=None):
        self.line.clear()
        seconds = duration(time.perf_counter() - self.begun)
        print(f"{self.name}: {seconds}, {figures(logs, 'accuracy')}")

    def tell(self, seconds):
        """Prints how long the run will take, by its seconds an epoch."""
        epochs = self.epochs_left + 1
        self.line.clear()
        print(
            f"About {duration(epochs * seconds)} to go: {epochs} x "
            f"{duration(seconds)}, and the tests"
        )
        if epochs * seconds > LONG_SECONDS:
            print(SHORTER)


def figures(logs, accuracy):
    """The losses and accuracies of Keras's logs, as words in a line."""
    words = [f"loss {logs['loss']:.4f}"]
    if "decoder_loss" in logs:
        words.append(f"mse {logs['decoder_loss']:.4f}")
    words.append(f"{accuracy} {100 * logs['capsnet_accuracy']:.2f} %")
    if "val_capsnet_accuracy" in logs:
        held_out = 100 * logs["val_capsnet_accuracy"]
        words.append(f"held out {held_out:.2f} %")
    return ", ".join(words)
