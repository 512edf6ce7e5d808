"""Regularizers in the meta-objective or in the gradients: the landscape of a task, specs, absorption."""
