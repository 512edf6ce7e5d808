"""A step that is run from recordings of it, and one that may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from lo_framework.episode import Carry, Draw, Losses, Step
from lo_framework.flat_task import is_transformed
from lo_framework.inner.engine import Choice
from lo_framework.inner.graph import Flat, Recorder
from lo_framework.learned.base import Theta


@dataclass(eq=False)
class Chosen:
    """A step as ``choice`` says at present."""

    eager: Step
    recorded: Step
    choice: Choice

    def __call__(self, theta: Theta, carry: Carry, draw: Draw) -> tuple[Carry, Losses]:
        step = self.recorded if self.choice.how == "graph" else self.eager
        return step(theta, carry, draw)


class Recorded:
    """A step by recordings of it, one for each structure of its arguments; see ``graph``.

    Attributes:
        asked: see `Recorder`.
    """

    def __init__(self, step: Step, engine: str, asked: bool = True) -> None:
        self.step, self.engine, self.asked = step, engine, asked
        self.recorders: dict[Any, Recorder] = {}
        self.results: dict[Any, TreeSpec] = {}  # known once the step has run

    def __call__(self, theta: Theta, carry: Carry, draw: Draw) -> tuple[Carry, Losses]:
        if is_transformed():
            return self.step(theta, carry, draw)
        flat, spec = tree_flatten((theta, carry, draw))
        # All that can differ between the structures that one step is given. A TreeSpec would do,
        # but takes longer to compare than to make.
        names = map(tuple, (theta, carry.buffers, carry.state, carry.memory))
        key = (*names, len(flat))
        if key not in self.recorders:
            step, results = self.step, self.results  # not self, which would outlive its last use

            def function(flat: Flat) -> list[Tensor]:
                leaves, results[key] = tree_flatten(step(*tree_unflatten(flat, spec)))
                return leaves

            self.recorders[key] = Recorder(function, self.engine, self.asked)
        recorded = self.recorders[key](flat)
        return tree_unflatten(recorded, self.results[key])
