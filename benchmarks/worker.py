"""One network in a process of its own, measured at its parent's word.

`speed.py` and the others start it (`processes.Worker`); it is no command of
its own. The only argument is a JSON object, changes to `DEFAULTS`: `network`
("classic", "direct", "ours", or "small", which has a routing of its own),
`size` (of a square picture), and flags of `capsulenet.py`. It builds the
network, makes a training step, and then answers one line of JSON to each line
that it reads:

| line read                          | what it does and answers              |
| ---------------------------------- | ------------------------------------- |
| `{"do": "train", "steps": 5}`      | seconds of a training step            |
| `{"do": "fit", "steps": 50}`       | the same, by `fit`                    |
| `{"do": "predict", "pictures": 9,` | pictures a second in `predict`        |
| `"batch_size": 3}`                 |                                       |
| `{"do": "memory"}`                 | peak memory of this process in bytes  |
| `{"do": "feed", "pictures": 9}`    | seconds to draw a batch of training   |
| `{"do": "work"}`                   | multiplications of a training step of |
|                                    | "direct" or "ours"                    |
| `{"do": "facts"}`                  | weights of the network, environment   |

"train" calls `train_on_batch`: one call of the compiled function that `fit`
uses, on pictures that are in memory already, without `fit`'s thread for the
next batch, which would run into the turn of another worker.
It returns the loss as a number, so the step is over when the clock is read.

All networks compute deterministically and keep the memory that a step has
freed, as `capsulenet.py` makes ours: the classic one, too. On TensorFlow Keras
compiles nothing with XLA where operations are deterministic, so only
`jit_compile` "on" leaves them as they come, for all.
"""

import functools
import json
import math
import os
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    # What libraries print goes to standard error, and the answers alone to
    # standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from classic import ClassicCapsNet  # noqa: E402

import capsulenet  # noqa: E402
from capsnet import devices  # noqa: E402
from capsnet.cli.settings import AUGMENTATIONS  # noqa: E402
from capsnet.data import batches as feeding  # noqa: E402
from capsnet.models import inference, toomcook  # noqa: E402
from capsnet.models.geometry import parameters  # noqa: E402
from capsnet.models.networks import Efficient  # noqa: E402

try:
    import resource
except ImportError:  # Windows does not tell the peak.
    resource = None

DEFAULTS = {
    "network": "ours",
    "batch_size": 100,
    "size": 28,
    "n_class": 10,
    "routing": "dynamic",
    "routings": 3,
    "augment": "shift",
    "dtype_policy": "float32",
    "jit_compile": "auto",
    "steps_per_execution": 1,
}
# The paper's, at every size of picture.
GEOMETRY = {"conv_kernel": 9, "conv_strides": 1}
GEOMETRY |= {"primary_kernel": 9, "primary_strides": 2}
# The flag's words and what Keras calls them.
JIT_COMPILE = {"on": True, "off": False}


def peak_memory():
    """The most memory that this process ever had, in bytes, or None."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def random_pictures(n, size, n_class, seed=0):
    """uint8 pictures like MNIST's in shape and type, and their labels."""
    generator = np.random.default_rng(seed)
    pictures = generator.integers(0, 256, (n, size, size, 1), dtype=np.uint8)
    return pictures, generator.integers(0, n_class, n)


def batches_of(spec, n, **kwargs):
    """`n` random pictures as batches for the training model."""
    pictures, labels = random_pictures(n, spec["size"], spec["n_class"])
    return feeding.ShiftedBatches(
        pictures, labels, spec["n_class"], spec["batch_size"], **kwargs
    )


def build(spec):
    """The compiled training model and the evaluation model of a network."""
    jit_compile = JIT_COMPILE.get(spec["jit_compile"], spec["jit_compile"])
    if jit_compile is not True:  # XLA orders operations by itself.
        devices.make_deterministic()
    shape = (spec["size"], spec["size"], 1)
    arguments = shape, spec["n_class"], spec["routings"]
    if spec["network"] == "classic":
        train_model, eval_model, _ = ClassicCapsNet(*arguments)
    elif spec["network"] == "small":
        train_model, eval_model, _ = Efficient(shape, spec["n_class"])
    else:
        conv = "direct" if spec["network"] == "direct" else "auto"
        train_model, eval_model, _ = capsulenet.CapsNet(
            *arguments, routing=spec["routing"], conv=conv, **GEOMETRY
        )
    capsulenet.compile_model(
        train_model,
        0.001,
        0.0005 * math.prod(shape),
        steps_per_execution=spec["steps_per_execution"],
    )
    if jit_compile != "auto":
        train_model.jit_compile = eval_model.jit_compile = jit_compile
    return train_model, eval_model


def convolution_work(layer, input_shape, batch_size, first=False):
    """Multiplications of a convolution's part of a training step.

    Every product is done three times, for the output and the gradients of its
    two factors; but a transform, one of whose factors is constant, twice, and
    so is a first layer. The kernel is transformed once a step.

    Args:
        layer: A `FastConv2D`.
        input_shape: Shape of its input, the batch first.
        batch_size: Integer.
        first: Whether nothing below needs its gradient.

    Returns:
        Pair of integers: by the direct way, and by the way it takes.
    """
    _, height, width, channels = input_shape
    outputs = math.prod(layer.compute_output_shape(input_shape)[1:])
    taps = math.prod(layer.kernel_size)
    direct = outputs * taps * channels  # For one picture.
    times = 2 if first else 3
    if not layer.uses_fast_path(input_shape):
        return (times * batch_size * direct,) * 2
    geometry = (height, width), layer.kernel_size, layer.strides, layer.padding
    (y, x), _ = toomcook.plan(*geometry)
    products, transforms, kernel = toomcook.multiplications(
        y, x, channels, layer.filters
    )
    done = batch_size * (times * products + 2 * transforms) + 2 * kernel
    return times * batch_size * direct, done


def work(train_model, batch_size):
    """Multiplications of a training step, counted from the shapes.

    Only the products of matrices count, not what is done element by element.

    Returns:
        Dictionary: `written`, with direct convolutions and with votes that
        are computed once and used in every round, as the paper writes it;
        and `done`, with the convolutions as they are computed, and with
        votes that every use computes anew, as `CapsuleLayer` does it.
    """
    primary = train_model.get_layer("primarycap")
    capsules = train_model.get_layer("digitcaps")
    conv1 = train_model.get_layer("conv1")
    parts = [
        convolution_work(conv1, conv1.input.shape, batch_size, first=True),
        convolution_work(primary.conv, primary.input.shape, batch_size),
    ]
    outputs = capsules.num_capsule * capsules.dim_capsule
    uses = 2 * capsules.routings - 1
    entries = 3 * batch_size * outputs * capsules.input_num_capsule
    length = capsules.input_dim_capsule
    parts.append((entries * (length + uses), entries * length * uses))
    for layer in train_model.get_layer("decoder").layers:
        if isinstance(layer, keras.layers.Dense):
            dense = 3 * batch_size * math.prod(layer.kernel.shape)
            parts.append((dense, dense))
    written, done = (sum(column) for column in zip(*parts))
    return {"written": written, "done": done}


class Bench:
    """A network and what can be asked of it; see the module's docstring."""

    def __init__(self, spec):
        self.spec = spec = {**DEFAULTS, **spec}
        devices.keep_freed_memory()
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(spec["dtype_policy"])
        self.train_model, self.eval_model = build(spec)
        self.batch = batches_of(spec, spec["batch_size"])[0]
        self.train(1)

    def train(self, steps):
        start = time.perf_counter()
        for _ in range(steps):
            self.train_model.train_on_batch(*self.batch)
        return (time.perf_counter() - start) / steps

    def augmented(self, pictures):
        """Random pictures as training gets them."""
        augment = AUGMENTATIONS[self.spec["augment"]]()
        return batches_of(self.spec, pictures, augment=augment, shuffle=True)

    def fit(self, steps):
        batches = self.augmented(steps * self.spec["batch_size"])
        start = time.perf_counter()
        self.train_model.fit(
            feeding.pipeline(batches), verbose=0, shuffle=False
        )
        return (time.perf_counter() - start) / steps

    @functools.cached_property
    def predictor(self):
        return inference.Predictor(self.eval_model)

    def predict(self, pictures, batch_size):
        x, _ = random_pictures(pictures, self.spec["size"], n_class=1)
        start = time.perf_counter()
        inference.predict(self.predictor, x, batch_size)
        return pictures / (time.perf_counter() - start)

    def memory(self):
        return peak_memory()

    def feed(self, pictures):
        """A whole epoch, since what is random in it is drawn at once."""
        batches = self.augmented(pictures)
        start = time.perf_counter()
        for index in range(len(batches)):
            batches[index]
        return (time.perf_counter() - start) / len(batches)

    def work(self):
        return work(self.train_model, self.spec["batch_size"])

    def facts(self):
        return {
            "weights": parameters(self.train_model),
            "environment": devices.environment(),
        }


def main():
    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    bench = Bench(json.loads(sys.argv[1]))
    answer("ready")
    for line in sys.stdin:
        question = json.loads(line)
        answer(getattr(bench, question.pop("do"))(**question))


if __name__ == "__main__":
    main()
