"""All tensors of a step in one call of a kernel, where they lie: parameters and gradients of the
model, state of the packs. Nothing is put side by side or copied back.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.kernels import Kernels, Recipe
from lo_framework.optim.learned.memory import Lying
from lo_framework.optim.learned.store import Plan


class Table:
    """The addresses of a plan's tensors, in the order of its runs."""

    def __init__(self, kernels: Kernels, rule: LearnedOptimizer, plan: Plan) -> None:
        self.kernels, self.rule = kernels, rule
        self.tensors = [p for run in plan.runs for p in run.tensors]
        self.groups = [run.pack.group for run in plan.runs for _ in run.tensors]
        self.places = torch.tensor([k for run in plan.runs for k in run.places])
        back = torch.empty_like(self.places)
        back[self.places] = torch.arange(len(back))
        self.back = None if torch.equal(back, torch.arange(len(back))) else back
        sizes = [p.numel() for p in self.tensors]
        self.bounds = torch.tensor([0, *accumulate(sizes)])
        self.sizes = torch.tensor(sizes, dtype=torch.float32)
        states = [state for run in plan.runs for state in run.states]
        self.leads: dict[str, tuple[int, ...]] = {"params": (), "grads": ()}
        self.leads |= {name: tuple(states[0][name].shape[:-1]) for name in sorted(states[0])}
        self.addresses = {
            name: torch.tensor([_rows(state[name]) for state in states])
            for name in sorted(states[0])
        }
        self.recipes: dict[tuple[str, int, int], tuple[Recipe, Tensor, Tensor] | None] = {}

    def lie(self, where: Lying) -> None:
        """Parameters and gradients of this step lie there, in the order of the plan's layout."""
        self.now = {
            name: x if self.back is None else x.index_select(0, self.places)
            for name in ("params", "grads")
            for x in [torch.frombuffer(getattr(where, name), dtype=torch.int64)]
        }

    def means(self) -> Tensor | None:
        """What the rule measures, ``[F, S]`` in the order of the plan's layout; None where there is
        no kernel for it.
        """
        sums = self._call("_measured", torch.empty(0, len(self.tensors)), [], means=True)
        if sums is None:
            return None
        means = sums / self.sizes
        return means if self.back is None else means.index_select(-1, self.back)

    def update(
        self,
        channels: Tensor,
        shared: Tensor,
        multipliers: Sequence[float | Tensor],
    ) -> bool:
        """Update everything by ``channels [C, S]``, with ``multipliers`` of the groups; False, and
        nothing is done, where there is no kernel for it.
        """
        by_tensor = [float(multipliers[group]) for group in self.groups]
        if self.back is not None:
            channels = channels.index_select(-1, self.places)
        method = "_updated"
        if any(x != 1.0 for x in by_tensor):
            method, row = "_multiplied", torch.tensor([by_tensor], dtype=torch.float32)
            channels = torch.cat([channels, row])
        return self._call(method, channels, [shared], means=False) is not None

    def _call(
        self, method: str, channels: Tensor, shared: Sequence[Tensor], means: bool
    ) -> Tensor | None:
        key = (method, len(channels), len(shared))
        if key not in self.recipes:
            self.recipes[key] = self._recipe(method, channels, shared, means)
        found = self.recipes[key]
        if found is None:
            return None
        recipe, rows, out = found
        for table, names in ((rows, recipe.columns), (out, recipe.outputs)):
            first = 0
            for name in names:
                if name in self.now:
                    table[:, first] = self.now[name]
                    first += 1
                else:
                    first += self.addresses[name].shape[1]
        every = [*self.weights, *shared]
        given = [every[i].detach().reshape(1, -1) for i in recipe.shared]
        return recipe.program.forward.over(given, channels.contiguous(), self.bounds, rows, out)

    def _recipe(
        self, method: str, channels: Tensor, shared: Sequence[Tensor], means: bool
    ) -> tuple[Recipe, Tensor, Tensor] | None:
        self.weights = [p for _, p in self.rule.named_parameters()]
        shapes = tuple(tuple(x.shape) for x in shared)
        leads = tuple(self.leads.items())
        recipe = self.kernels.recipe(method, means, len(channels), leads, shapes, False)
        if recipe is None:
            return None
        one = torch.zeros(len(self.tensors), 1, dtype=torch.long)

        def table(names: Sequence[str]) -> Tensor:
            return torch.cat([one[:, :0], *(self.addresses.get(name, one) for name in names)], 1)

        return recipe, table(recipe.columns), table(recipe.outputs)


def _rows(x: Tensor) -> list[int]:
    """The addresses of the rows of ``[..., n]``."""
    lead = x.shape[:-1].numel()
    if not lead or not x.shape[-1]:
        return [0] * lead
    return [row.data_ptr() for row in x.reshape(lead, -1)] if lead > 1 else [x.data_ptr()]
