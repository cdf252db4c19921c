"""Runs that many tests look at. They are made once; no test changes them."""

import keras
import numpy as np
import pytest
from conftest import write_bars
from running import N_CLASS, NAMES, SHAPE, train

from capsnet.models.saving import save_model
from capsnet.training.callbacks import EpochClock
from capsulenet import CapsNet


@pytest.fixture(autouse=True)
def dtype_policy():
    """No command's precision outlives its test."""
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """40 and 12 pictures, of which 4 of the test have a wrong label.

    So the test error is never zero.
    """
    path = write_bars(tmp_path_factory.mktemp("data") / "data.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["y_test"][:4] = (arrays["y_test"][:4] + 1) % N_CLASS
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def arrays(data):
    """The arrays of `data`."""
    with np.load(data) as archive:
        return dict(archive)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """Four epochs without an interruption."""
    folder = tmp_path_factory.mktemp("trained")
    return train(folder, data, "--epochs", 4)


@pytest.fixture(scope="session")
def plain(tmp_path_factory, data):
    """No decoder, and held-out data that choose; the last epoch is spoilt."""
    begin = EpochClock.on_epoch_begin

    def spoil(self, epoch, logs=None):
        begin(self, epoch, logs)
        if epoch == 2:
            kernel = self.model.get_layer("digitcaps").kernel
            kernel.assign(0 * kernel)

    folder = tmp_path_factory.mktemp("plain")
    flags = "--epochs", 3, "--lam_recon", 0, "--val_fraction", 0.3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EpochClock, "on_epoch_begin", spoil)
        return train(folder, data, *flags)


@pytest.fixture(scope="session")
def named(tmp_path_factory, trained):
    """The file of `trained`'s model, and the model; it knows `NAMES`."""
    path = str(tmp_path_factory.mktemp("named") / "trained_model.keras")
    save_model(trained.model(), path, {"class_names": NAMES})
    return path, trained.model()


@pytest.fixture(scope="session")
def colour(tmp_path_factory):
    """The same of an untrained one for colours, without a decoder."""
    keras.utils.set_random_seed(0)
    # Scaled, an untrained model has capsules of some length.
    shape = (*SHAPE[:2], 3)
    model = CapsNet(shape, N_CLASS, decoder=False, primary_scale=16.0)[1]
    path = str(tmp_path_factory.mktemp("colour") / "trained_model.keras")
    save_model(model, path, {"class_names": NAMES})
    return path, model
