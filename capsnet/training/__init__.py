"""What surrounds `fit`: recipes, callbacks, checkpoints."""
