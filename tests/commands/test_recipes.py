"""Recipes: what they set is printed, recorded and followed."""

import numpy as np
import pytest
from running import train, weights_of


@pytest.mark.slow
def test_recipe_paper_is_printed_recorded_and_followed(tmp_path, data):
    flags = "--recipe", "paper", "--epochs", 3, "--lr_decay_steps", 4
    done = train(tmp_path, data, *flags)
    assert done.status == 0, done.err
    # Given flags are not the recipe's.
    assert [
        line.removeprefix("Recipe paper sets ")
        for line in done.out.splitlines()
        if line.startswith("Recipe")
    ] == [
        "--lr_decay 0.96",
        "--lam_recon authors",
        "--init authors",
        "--capsule_bias 0.1",
        "--primary_scale 0.03125",
    ]
    record = done.record()
    assert record["lam_recon"] == pytest.approx(0.0005 * 17 * 17 * 6)
    assert record["flags"]["lr_decay"] == 0.96
    assert record["flags"]["batch_size"] == 20
    # Two steps an epoch, four steps for 0.96.
    expected = [0.001 * 0.96 ** (epoch / 2) for epoch in range(3)]
    rates = done.log()["learning_rate"]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    # The sixth step comes after five.
    assert f"in the last step {0.001 * 0.96 ** (5 / 4):.3g}\n" in done.out
    bias = weights_of(done.model())["digitcaps/bias"]
    np.testing.assert_allclose(bias, 0.1, atol=0.02)
    assert done.model().get_layer("primarycap").scale == 1 / 32
