"""The order in which a kernel takes its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """The order in which a kernel takes its tensors.

    Attributes:
        shared: names and sizes of inputs that a task's columns share.
        channels: values per tensor.
        rows: names and rows of inputs of columns.
        outputs: rows of each output of columns; ``totals``: sizes of what is summed over each
            tensor; ``sums``: sizes of what is summed over a task.
    """

    shared: tuple[tuple[str, int], ...]
    channels: int
    rows: tuple[tuple[str, int], ...]
    outputs: tuple[int, ...]
    totals: tuple[int, ...]
    sums: tuple[int, ...]
