"""This package's optimizers in other people's training loops."""
