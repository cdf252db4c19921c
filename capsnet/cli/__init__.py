"""From a command line to what is done, and told.

`options` are the flags, `checks` what excludes what, `settings` the seam:
below it nothing knows of `argparse`.
"""
