"""Networks that are trained on shifted digits, and checked while they are.

The part of robustness.py that needs Keras: the networks, their training in
pieces, and the tests of each check.
"""

import json
import statistics
import time

import keras
import numpy as np
import runner
from keras import layers
from PIL import Image

import capsulenet
import utils
from capsnet import devices
from capsnet.data.batches import ShiftedBatches
from capsnet.evaluation import robustness
from capsnet.evaluation.figures import spread
from capsnet.files import LOG, RECORD, STATE, read_state, remove, write_json
from capsnet.messages import UserError
from capsnet.models import networks
from capsnet.models.fastconv import FastConv2D
from capsnet.models.geometry import parameters
from capsnet.models.inference import lengths_model, predict
from capsnet.training import averages, callbacks, checkpoints, schedules

CHECKED = 2000  # Pictures of the affNIST-like set in each check.
BLOCK = 16_000  # Of it in each part of the test of the stopped network.
MOST_EPOCHS = 30  # Of a run that does not reach the stop.
STOPPED = "stopped.json"  # How far the test of the stopped network is.
COLUMNS = ("check", "step", "loss", "shifted_accuracy", "affine_accuracy")


def CNN(input_shape, n_class, units=2080):
    """The paper's baseline, with max-pooling and as many weights as CapsNet.

    Section 5.2 says no more of it. So it is that of section 5: convolutions
    5x5 of 256, 256 and 128 channels, each with ReLU and then 2x2 max-pooling;
    two dense layers, each with dropout of a half; a softmax. The dense layers
    are so wide that there are 13,472,010 weights at 40x40.

    Returns:
        Three models as from `networks.Baseline`.
    """
    image = features = layers.Input(input_shape, name="image")
    for channels in (256, 256, 128):
        features = FastConv2D(channels, 5, padding="same", activation="relu")(
            features
        )
        features = layers.MaxPooling2D(2)(features)
    features = layers.Flatten()(features)
    for seed in (1, 2):
        features = layers.Dense(units, activation="relu")(features)
        features = layers.Dropout(0.5, seed=seed)(features)
    scores = layers.Dense(n_class)(features)
    softmax = layers.Softmax(name="capsnet", dtype="float32")(scores)
    # By this name `compile_model` knows that a softmax needs cross-entropy.
    model = keras.Model(image, {"capsnet": softmax}, name="baseline")
    return networks.attach(model)


def build(row, input_shape, n_class):
    """The three models of a row."""
    if row == "capsnet":
        return capsulenet.CapsNet(input_shape, n_class, conv_strides=1)
    return {"cnn": CNN, "small": networks.Efficient}[row](input_shape, n_class)


class Checks:
    """The two test sets of the checks, and how a network does on them.

    Args:
        data: A `sources.Dataset`.
        eval_model: The model to test.
    """

    def __init__(self, data, eval_model):
        self.digits, self.labels = data.x_test, data.y_test
        self.count = len(data.x_test) * robustness.VERSIONS
        self.shifted = robustness.shifted(data.x_test)
        self.chosen = spread(self.count, CHECKED)
        self.changed = robustness.take(data.x_test, self.chosen)
        self.lengths = lengths_model(eval_model)

    def right(self, images, labels):
        """How many pictures are taken for what they are."""
        predicted = predict(self.lengths, images).argmax(-1)
        return int(np.sum(predicted == labels))

    def accuracies(self):
        """On the shifted set, and on a part of the affNIST-like one."""
        shifted = self.right(self.shifted, self.labels)
        labels = self.labels[self.chosen // robustness.VERSIONS]
        changed = self.right(self.changed, labels)
        return shifted / len(self.labels), changed / len(labels)

    def test_all(self, path):
        """On the whole affNIST-like set, in parts; a file says how far it is.

        Args:
            path: The file: `pictures`, and `right`, how many of them are.
        """
        state = {"pictures": 0, "right": 0}
        if path.exists():
            state = json.loads(path.read_text(encoding="utf-8"))
        while state["pictures"] < self.count:
            start = state["pictures"]
            part = np.arange(start, min(start + BLOCK, self.count))
            images = robustness.take(self.digits, part)
            labels = self.labels[part // robustness.VERSIONS]
            right = state["right"] + self.right(images, labels)
            state = {"pictures": int(part[-1]) + 1, "right": right}
            write_json(path, state)


def settings_of(row, seed, args):
    """What decides about a run, but for its end."""
    names = ("checks", "stop", "batch_size", "dataset")
    chosen = {name: getattr(args, name) for name in names}
    return {"row": row, "seed": seed, **chosen}


def check_settings(found, settings, folder):
    """Raises UserError where a run is to go on with other settings."""
    for name, value in settings.items():
        if found.get(name) != value:
            raise UserError(
                f"the run in {str(folder)!r} has --{name} {found.get(name)}, "
                f"got {value}; choose another --work_dir and --out"
            )


def train_steps(train_model, batches, first, last):
    """The steps of one epoch from `first` to before `last`; the mean loss."""
    callbacks.place_generators(train_model, first)
    batches.set_epoch(first // len(batches))
    losses = []
    for step in range(first, last):
        batch = batches[step % len(batches)]
        logs = train_model.train_on_batch(*batch, return_dict=True)
        losses.append(float(logs["loss"]))
    return statistics.fmean(losses)


def begin(folder, train_model, batches, settings):
    """Compiles; goes on where there is a checkpoint; returns the state."""
    steps = len(batches)
    shape, n_class = batches.x.shape[1:], batches.n_class
    # It falls after each epoch, however many there will be.
    rate = schedules.schedule(1, steps)
    weight = networks.reconstruction_weight("classic", shape, n_class)
    capsulenet.compile_model(train_model, rate, weight)
    # To checkpoints.py an epoch is what a check is here.
    state = {"epochs_done": 0, "step": 0, "seconds": [], "flags": settings}
    goes_on = (folder / STATE).exists()
    if goes_on:
        state = read_state(folder)
        check_settings(state["flags"], settings, folder)
        checkpoints.go_on(folder, train_model, state)
    else:
        checkpoints.begin(folder)
        remove(folder, [STOPPED])
        (folder / LOG).write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
    averages.average_statistics(
        train_model, 0.0, steps, None if goes_on else batches
    )
    return state


def prepare(row, seed, batch_size, data):
    """A run's three models, and its training batches."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    images, shift = robustness.placing(data.x_train)
    n_class = len(data.class_names)
    models = build(row, images.shape[1:], n_class)
    batches = ShiftedBatches(
        images,
        data.y_train,
        n_class,
        batch_size,
        augment=shift,
        seed=seed,
        shuffle=True,
        decoder="decoder" in models[1].output,
    )
    return models, batches


def stop_of(log, stop):
    """The first row of a log that reaches the stop, or None."""
    return next((row for row in log if row["shifted_accuracy"] >= stop), None)


def train(row, seed, args, data, folder, publish):
    """Trains a run to its end, from its last check if there is one.

    Args:
        row, seed: Which run.
        args: The flags.
        data: A `sources.Dataset`.
        folder: `Path`, where the run keeps its files.
        publish: Function that is called after each check and at the end.
    """
    settings = settings_of(row, seed, args)
    models, batches = prepare(row, seed, args.batch_size, data)
    steps, checks = len(batches), Checks(data, models[1])
    state = begin(folder, models[0], batches, settings)
    while True:
        log = runner.read_log(folder / LOG)
        stopped = stop_of(log, args.stop)
        # Its weights are there as long as it is the last check.
        if stopped and stopped is log[-1]:
            checks.test_all(folder / STOPPED)
        first = state["step"]
        most = (args.epochs or MOST_EPOCHS) * steps
        if first >= most or (stopped and not args.epochs):
            break
        last = min(first + args.checks, (first // steps + 1) * steps)
        start = time.perf_counter()
        loss = train_steps(models[0], batches, first, last)
        state["seconds"] += [(time.perf_counter() - start) / (last - first)]
        state["step"] = last
        state["epochs_done"] += 1
        line = state["epochs_done"], last, loss, *checks.accuracies()
        with open(folder / LOG, "a", encoding="utf-8") as file:
            file.write(",".join(map(str, line)) + "\n")
        checkpoints.keep(folder, models[0], state)
        print(f"{row}-{seed}", *line, flush=True)
        publish()
    if stopped:
        stopped |= json.loads((folder / STOPPED).read_text(encoding="utf-8"))
    record = {
        "flags": {**settings, "epochs": first / steps},
        "parameters": parameters(models[0]),
        "environment": devices.environment(),
        "seconds_per_step": statistics.median(state["seconds"]),
        "steps_per_epoch": steps,
        "stopped": stopped,
        "set_sha256": robustness.checksum(data.x_test),
    }
    write_json(folder / RECORD, record)
    publish()


def draw_set(data, path):
    """Draws ten digits, on the left, and nine versions of each in the set."""
    rows, versions = 10, 9
    chosen = spread(len(data.x_test), rows)
    count = robustness.VERSIONS
    every = chosen[:, None] * count + np.arange(versions) * count // versions
    changed = robustness.take(data.x_test, every.ravel())
    changed = changed.reshape(len(chosen), versions, *changed.shape[1:])
    digits, _ = robustness.placing(data.x_test[chosen])
    images = np.concatenate([digits[:, None], changed], axis=1)
    images = images.reshape(-1, *images.shape[2:])
    grid = utils.combine_images(images / 255, versions + 1)
    # Twice as large, each pixel a square of four.
    grid = grid.repeat(2, axis=0).repeat(2, axis=1)
    Image.fromarray(grid.squeeze()).save(path, format="PNG")
