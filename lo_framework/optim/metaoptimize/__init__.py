"""The parts of ``MetaOptimize``: bases, metas, blocks, bounds, memory, traces and diagnostics, one
file each.
"""
