"""The per-parameter state of one optimizer: packs, how old each parameter is, and plans over those
with a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.optim.metaopt import arena
from lo_framework.optim.metaopt.bases import State
from lo_framework.optim.metaopt.blocks import Blocks

KEPT_PLANS = 8  # few sets of gradients occur in a training


class Store:
    """State of ``params``; ``rows`` names it: None for ``[n]``, C for ``[C, n]``.

    ``show(i, views)`` is called when parameter ``i`` gets memory.

    Attributes:
        ages: the steps that each parameter has made.
    """

    def __init__(self, rows: Mapping[str, int | None], show: Callable[[int, State], None]) -> None:
        self.rows, self.show = dict(rows), show
        self.ages: list[int] = []
        self.packs: list[arena.Pack] = []
        self._plans: dict[tuple[tuple[int, int], ...], arena.Plan] = {}

    def set_params(self, params: Sequence[Tensor], group_of: Sequence[int], blocks: Blocks) -> None:
        """All parameters: those of before, and new ones after them."""
        first = len(self.ages)
        self.params, self.group_of, self.blocks = params, group_of, blocks
        self.ages += [0] * (len(params) - first)
        self._plans.clear()
        if self.packs:
            self.packs += arena.form_packs(range(first, len(params)), params, group_of)

    def plan(self, active: Sequence[int], device: torch.device) -> arena.Plan:
        """The plan for these parameters, with memory for their state; ``device`` is that of the
        blocks.
        """
        age = self.ages[active[0]]
        key = tuple((i, self.ages[i] - age) for i in active)
        if key not in self._plans:
            self._allocate(active)
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            self._plans[key] = arena.make_plan(
                self.packs, active, self.ages, self.params, self.blocks, device
            )
        return self._plans[key]

    def grow_rows(self, rows: Mapping[str, int | None]) -> None:
        """More rows, of zeros, where ``rows`` asks for them."""
        self.rows = dict(rows)
        for pack in self.packs:
            if pack.state:
                for name, num in rows.items():
                    x = pack.state[name]
                    if num is not None:
                        pack.state[name] = torch.cat([x, x.new_zeros(num - x.shape[0], x.shape[1])])
                self._show(pack)
        self._plans.clear()

    def restore(self, saved: Mapping[int, Mapping[str, Any]]) -> None:
        """State as it was saved, and nothing of before."""
        self.packs = []
        self._plans.clear()
        self.ages = [int(saved[i]["step"]) if i in saved else 0 for i in range(len(self.params))]
        self._allocate(list(saved))
        for pack in self.packs:
            for place, i in enumerate(pack.members):
                if i in saved:
                    for name, x in pack.views(place, self.params[i].shape).items():
                        x.copy_(saved[i][name])

    def _allocate(self, wanted: Sequence[int]) -> None:
        """Fresh state for the packs that hold parameters ``wanted`` and have none yet."""
        if (
            not self.packs
        ):  # where the model is now: training loops move it after they build the optimizer
            self.packs = arena.form_packs(range(len(self.params)), self.params, self.group_of)
        for pack in self.packs:
            if not pack.state and set(pack.members) & set(wanted):
                dtype = arena.compute_dtype(pack.dtype)
                for name, num in self.rows.items():
                    shape = pack.offsets[-1:] if num is None else (num, pack.offsets[-1])
                    pack.state[name] = torch.zeros(shape, device=pack.device, dtype=dtype)
                self._show(pack)

    def _show(self, pack: arena.Pack) -> None:
        for place, i in enumerate(pack.members):
            self.show(i, pack.views(place, self.params[i].shape))
