"""The parts of `lo_framework.optim.MetaAdamW`."""
