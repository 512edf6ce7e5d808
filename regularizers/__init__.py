"""Regularizers: sharpness-aware corrections of the gradient, one file each."""
