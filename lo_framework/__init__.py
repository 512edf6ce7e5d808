"""The core: learned optimizers, the inner loop, estimators of meta-gradients, files and faces."""

__version__ = "0.1.0"
