"""A model and its file, for the tests of what reads and writes them."""

import numpy as np
import pytest
from model_files import capsnet

from capsnet.models.saving import save_model


@pytest.fixture(scope="module")
def trained():
    """A network that stands for a trained one, its biases included."""
    model = capsnet(seed=1)
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if weight.name == "bias":
            weight.assign(generator.normal(0, 0.1, weight.shape))
    return model


@pytest.fixture
def path(tmp_path, trained):
    save_model(trained, tmp_path / "model.keras", {"flags": {"seed": 3}})
    return str(tmp_path / "model.keras")
