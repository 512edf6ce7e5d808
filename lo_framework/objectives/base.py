"""The contract of an objective: a weighted sum of terms, each a number per inner step.

A new term is one file: a frozen config dataclass and a subclass of `Term` under
``@OBJECTIVES.register("name", config=...)``. Its name is an objective (``--objective name``), and
one of several joined by ``+``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add, or_
from typing import Any, ClassVar

from torch import Tensor

from lo_framework.episode import NOTHING, Losses, Need
from lo_framework.optimizees.task import Task
from lo_framework.registry import Registry
from lo_framework.regularizers.base import HVP_COST


class Term:
    """One score of an inner step; lower is better.

    Attributes:
        needs: what the inner step has to compute for it.
        only_held_out: no training data enter, so that a radius may be learned on it.
        is_level: a normalised loss, about 1 at chance level: it tells who diverged.
    """

    needs: Need = NOTHING
    only_held_out: bool = False
    is_level: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        self.config = config

    def value(self, task: Task, losses: Losses, pairs: bool) -> Tensor:
        """The term ``[K]`` of one step, finite also where a task diverged.

        ``pairs``: the second half of the K tasks are the antithetic twins of the first. What is a
        constant under back-propagation is then the mean of the two (`constant`), so that every
        estimator follows the same direction.
        """
        raise NotImplementedError


OBJECTIVES: Registry[Term | Mapping[str, Term]] = Registry("objective")


class Objective:
    """The weighted sum of ``terms``, by name; every weight is 1 until `weights` is set."""

    def __init__(self, terms: Mapping[str, Term], weights: Sequence[float] = ()) -> None:
        self.terms = dict(terms)
        self.weights = tuple(weights) or (1.0,) * len(terms)
        needs = reduce(or_, (term.needs for term in terms.values()))
        implied = {Need.BEFORE: Need.HELD, Need.SLOPE: Need.SECOND}
        self.needs = reduce(or_, (more for need, more in implied.items() if need in needs), needs)
        self.only_held_out = all(term.only_held_out for term in terms.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The terms that a weighting weighs; empty where there is one score only."""
        return tuple(self.terms) if len(self.terms) > 1 else ()

    def cost(self, *, unrolled: bool) -> float:
        """Gradient evaluations of one inner step beside its own gradient; ``unrolled``: a graph is
        kept (TBPTT).
        """
        costs = {
            Need.HELD: 1.0,
            Need.BEFORE: 1 / 3,  # a forward pass
            Need.SECOND: 1.0,
            Need.SLOPE: HVP_COST * unrolled,
        }
        return sum(cost for need, cost in costs.items() if need in self.needs)

    def values(self, task: Task, losses: Losses, pairs: bool = False) -> dict[str, Tensor]:
        """The terms ``[K]`` of one step by name; at their worst where a task diverged."""
        return {name: term.value(task, losses, pairs) for name, term in self.terms.items()}

    def score(self, task: Task, losses: Losses) -> Tensor:
        """Score ``[K]`` of one step: the weighted sum of the terms."""
        return self.measure(task, losses)[0]

    def measure(
        self, task: Task, losses: Losses, pairs: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The score ``[K]`` and what else is to be reported of the step, by name ``[K]``, without a
        graph: the terms, and ``level``, the normalised training loss, unless the score is one.
        """
        values = self.values(task, losses, pairs)
        weighted = zip(self.weights, values.values(), strict=True)
        # A product with 1 would be one more node in the graph of every step.
        score = reduce(add, (x if weight == 1.0 else weight * x for weight, x in weighted))
        if len(self.terms) == 1 and all(term.is_level for term in self.terms.values()):
            return score, {}
        known = {**values, "level": task.normalize(losses.train)}
        return score, {name: value.detach() for name, value in known.items()}


def constant(x: Tensor, pairs: bool) -> Tensor:
    """A constant in place of ``x [K]``: detached, or the mean of antithetic twins."""
    x = x.detach()
    if not pairs:
        return x
    positive, negative = x.chunk(2)
    return ((positive + negative) / 2).repeat(2)
