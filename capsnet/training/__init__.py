"""What happens around a training: its defaults, its callbacks, its folder."""
