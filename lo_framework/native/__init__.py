"""Kernels for the processor, compiled when they are first needed."""
