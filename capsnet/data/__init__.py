"""From what `--dataset` names to the batches that `fit` is fed."""
