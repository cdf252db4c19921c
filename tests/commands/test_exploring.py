"""Tests of --explore: the page that it writes, and what is refused."""

import json
import re
import shutil

import numpy as np
import pytest
from running import command, contents, message_of

pytestmark = pytest.mark.slow  # Seconds each, minutes in all.


def content_of(folder):
    page = (folder / "explore.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'id="content">(.*?)</script>', page, re.S)[1])


def test_page_is_written_and_nothing_else(tmp_path, trained, data):
    done = command(tmp_path, "--explore", "-w", trained.model_path())
    assert done.status == 0, done.err
    assert [str(name) for name in contents(tmp_path)] == ["explore.html"]
    size = (tmp_path / "explore.html").stat().st_size / 1e6
    path = tmp_path / "explore.html"
    assert f"Written: {path}, {size:.1f} MB; open it" in done.out
    content = content_of(tmp_path)
    assert content["about"].startswith("trained_model.keras · data.npz")
    assert content["names"] == ["0", "1", "2"]
    assert len(content["truth"]) == 12  # The whole test part.


def test_data_may_be_others_than_those_of_the_training(tmp_path, trained, tiny):
    flags = "--explore", "-w", trained.model_path(), "--dataset", tiny
    done = command(tmp_path, *flags)
    assert done.status == 0, done.err
    assert "was trained on" in done.out
    with np.load(tiny) as arrays:
        labels = arrays["y_test"]
    truth = np.sort(np.concatenate(content_of(tmp_path)["truth"]))
    assert truth.tolist() == np.sort(labels).tolist()


def test_page_of_another_model_does_not_stay(tmp_path, trained, plain):
    command(tmp_path, "--explore", "-w", trained.model_path())
    assert command(tmp_path, "-t", "-w", plain.model_path()).status == 0
    assert not (tmp_path / "explore.html").exists()


def test_page_in_its_models_folder_outlives_the_first_test(tmp_path, trained):
    model = tmp_path / "trained_model.keras"
    shutil.copy(trained.model_path(), model)
    command(tmp_path, "--explore", "-w", model)
    assert command(tmp_path, "-t", "-w", model).status == 0
    assert (tmp_path / "explore.html").exists()


def test_model_without_a_decoder_is_refused(tmp_path, plain):
    done = command(tmp_path, "--explore", "-w", plain.model_path())
    message = message_of(done)
    assert "--explore needs a model with a decoder" in message
    assert "--lam_recon 0" in message
    assert contents(tmp_path) == {}
