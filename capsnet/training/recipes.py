"""Recipes: defaults for the flags of the model and the training."""

# Chosen on held-out training pictures: result/README.md, 'The recipes'.
STRONGER = {
    "augment": "affine",
    "shift_fraction": 0.07,
    "lr_schedule": "cosine",
    "warmup": 1.0,
    "ema": 0.999,
}
RECIPES = {
    # The classic Keras repository's loss, schedule, batch and epochs.
    "classic": {},
    # What the authors' own code does (README: 'What differs').
    "paper": {
        "batch_size": 128,
        "lr_decay": 0.96,
        "lr_decay_steps": 2000,
        "lam_recon": "authors",
        "init": "authors",
        "capsule_bias": 0.1,
        "primary_scale": 1 / 32,
    },
    # The best accuracy a minute that was found: the small network.
    "laptop": {"model": "efficient", "epochs": 40, "lr": 0.004, **STRONGER},
    # The same for the paper's network, whose primary capsules start longer.
    "best": {**STRONGER, "primary_scale": 4.0},
}
# What differs for pairs of digits: the decay of section 6 of the paper.
OF_PAIRS = {"paper": {"lr_decay_steps": 20_000}}
DEFAULT_BATCH_SIZE = 100
