"""Small models, and the members of their files, that several tests need."""

import zipfile

import keras
import pytest

from capsnet.messages import UserError
from capsulenet import CapsNet

SHAPE, N_CLASS = (17, 17, 1), 3


def message_of(function, *args):
    """The message of a UserError, which has to be one line."""
    with pytest.raises(UserError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def dense_model():
    model = keras.Sequential(
        [keras.layers.Input((3,)), keras.layers.Dense(4, name="dense")]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def capsnet(seed, **kwargs):
    keras.utils.set_random_seed(seed)
    return CapsNet(SHAPE, N_CLASS, routings=1, **kwargs)[1]


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def before_the_move(members):
    """The same members with a layer in the module where it once was."""
    new = b"capsnet.models.fastconv"
    assert members["config.json"].count(new)
    config = members["config.json"].replace(new, b"fastconv")
    return {**members, "config.json": config}


def write_members(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
