"""What stands behind `capsulenet.py` and `capsulelayers.py`.

A room imports only rooms of its own floor or below it; from the top:

    cli/            parser.py (what argparse lacks), options.py (flags),
                    checks.py (what excludes what), paths.py (what a path
                    has to be), resuming.py (flags of a run that goes on),
                    hosts.py (processes that train together), watching.py
                    (their parents), settings.py (the seam: from flags to
                    values), commands.py (what each task does), telling.py
                    (what a training says)
    evaluation/     loading.py (which models, on which data), figures.py,
                    answers.py (several labels a picture), prediction.py,
                    robustness.py (affine changes)
    training/       recipes.py, schedules.py (the learning rate), averages.py
                    (averaged weights), sharing.py (several devices on JAX),
                    callbacks.py, checkpoints.py (a run's folder)
    models/         networks.py (the three models around one), several.py (for
                    several labels a picture), geometry.py
                    (sizes for any picture), routings.py (other couplings),
                    normalization.py, initializers.py, arguments.py (of
                    layers), fastconv.py and toomcook.py (the fast
                    convolution), saving.py (models as files), archive.py
                    (what a file may claim), inference.py (pictures to lengths)
    data/           sources.py (a name or path to a `Dataset`), datasets.py
                    (that, and its batches), arrays.py (npz and idx),
                    folders.py and pictures.py, digits.py (drawn on the spot),
                    pairs.py (two digits in one picture), augment.py (shifts
                    and stronger changes), batches.py (what `fit` is fed)
    files.py        whole-or-nothing writes, the lock, the state of a run
    devices.py      what it runs on
    messages.py     the user's errors, and the words for the user
"""
