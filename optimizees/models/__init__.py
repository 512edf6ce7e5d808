"""Functional models: plain functions over dicts of tensors, named and shaped like the nn.Module
they stand for.
"""
