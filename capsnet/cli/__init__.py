"""The command line: flags, what excludes what, and their values."""
