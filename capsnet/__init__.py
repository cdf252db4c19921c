"""What stands behind `capsulenet.py` and `capsulelayers.py`.

A room imports only rooms of its own floor or below it; from the top:

    cli/            parser.py (what argparse lacks), options.py (flags),
                    checks.py (what excludes what), paths.py (what a path
                    has to be), resuming.py (flags of a run that goes on),
                    hosts.py (processes that train together), watching.py
                    (their parents), settings.py (the seam: from flags to
                    values), commands.py (what each task does), runs.py (what
                    a training records), telling.py (what it says)
    evaluation/     loading.py (which models, on which data), figures.py,
                    answers.py (several labels a picture), prediction.py,
                    robustness.py (affine changes), explore.py (a page in
                    which one turns a capsule; its sources are beside it),
                    packing.py (a network for the page)
    training/       recipes.py, schedules.py (the learning rate), averages.py
                    (averaged weights), sharing.py (several devices on JAX),
                    callbacks.py, progress.py (what a terminal shows),
                    checkpoints.py (a run's folder)
    models/         networks.py (the three models around one), several.py (for
                    several labels a picture), geometry.py
                    (sizes for any picture), routings.py (other couplings),
                    normalization.py, initializers.py, arguments.py (of
                    layers), vectors.py (their lengths), fastconv.py and
                    toomcook.py (the fast convolution), saving.py (models as
                    files), weights.py (from a file into a model), archive.py
                    and records.py (what a file may claim and say),
                    inference.py (pictures to lengths)
    data/           sources.py (a name or path to a `Dataset`), datasets.py
                    (that, and its batches), parts.py (training, test,
                    validation), trees.py and layouts.py (what is where in a
                    folder), folders.py and pictures.py, arrays.py (npz, npy,
                    idx, csv), values.py and labels.py (what is in them),
                    looks.py (dark or light), digits.py (drawn on the spot),
                    pairs.py (two digits in one picture), augment.py (shifts
                    and stronger changes), batches.py (what `fit` is fed)
    fonts.py        names in any script, in pictures
    files.py        whole-or-nothing writes, the lock, the state of a run
    devices.py      what it runs on
    limits.py       what flags and records may say
    messages.py     the user's errors, and the words for the user
"""
