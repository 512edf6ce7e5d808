"""The parameters of a MetaAdamW: their names, groups, ages and moments, and plans over those that
have a gradient.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.errors import UserError, number, shown
from lo_framework.learned.grouping import by_key
from lo_framework.optim.arena import keep_plan
from lo_framework.optim.base import OptimizerBase
from lo_framework.optim.fused import one_minus_power
from lo_framework.optim.metaadamw.adam_step import Numbers, State
from lo_framework.optim.metaadamw.groups import (
    OwnGroups,
    Plan,
    UpdateSet,
    name_groups,
)
from lo_framework.optim.metaadamw.published import Variant
from lo_framework.optim.metaadamw.statistics import make_order
from lo_framework.optim.shards import here_of

# a number, or no factor: a new tensor for each
ONE = torch.tensor(1.0, dtype=torch.float32, device="cpu")
MOMENTS = ("exp_avg", "exp_avg_sq")


class ParameterTable:
    """
    Attributes:
        params: all, in the order of the parameter groups; ``here``: what lies here of each;
            ``part``: group of each; ``ages``: updates of each.
        layout: of all, frozen ones too: what a tensor is for does not depend on who has a gradient.
        groups: the token group of each.
    """

    def __init__(
        self,
        optimizer: OptimizerBase,
        grouping: str | OwnGroups,
        variant: Variant,
    ) -> None:
        self.optimizer, self.grouping = optimizer, grouping
        self.published, self.scaled = variant.published, variant.scaled_decay
        self.params: list[Tensor] = []
        self.names: dict[Tensor, str] = {}
        self.gather()

    def _names(self) -> list[str]:
        """Names of the parameters given now; empty where there is none, or only another's."""
        if known := self.optimizer._names_in_model():
            return known
        if not self.names:
            return self.optimizer._unique_names() or [""] * len(self.optimizer._params)
        # People take parameters out of a group and leave its "param_names", so a name by place may
        # be that of another. Names known from before come first, then by place where the lists
        # still match, and never one that some parameter has or had.
        taken, names = set(self.names.values()), []
        for group in self.optimizer.param_groups:
            params, listed = group["params"], group.get("param_names", [])
            by_place = listed if len(listed) == len(params) else [""] * len(params)
            for p, name in zip(params, by_place):
                names.append(self.names.get(p, "" if name in taken else name))
                taken.add(names[-1])
        return names

    def is_current(self) -> bool:
        """Whether the optimizer still has these parameters: people replace and delete them in its
        groups.
        """
        given = [p for group in self.optimizer.param_groups for p in group["params"]]
        return len(given) == len(self.params) and all(map(operator.is_, given, self.params))

    def gather(self) -> None:
        """Take in the optimizer's parameters; their ages are in their state."""
        self.optimizer._list_params()
        params, part = self.optimizer._params, self.optimizer._group_of
        if not params:
            raise UserError("MetaAdamW needs at least one parameter")
        names = self._names()
        named = any(names)
        names = [name or f"parameter{i}" for i, name in enumerate(names)]
        layout = self.optimizer._lay_out(names, named=named)
        groups = name_groups(self.grouping, layout, params, part, named, self.published)
        # Nothing has changed before all is known to be well.
        self.params, self.part, self.layout, self.groups = params, part, layout, groups
        self.here = self.optimizer._here
        self.names = dict(zip(params, names)) if named else {}
        states = [self.optimizer.state.get(p) for p in params]
        self.ages = [int(state["step"]) if state else 0 for state in states]
        self.forget_plans()

    def forget_plans(self) -> None:
        self._plans: dict[Any, Plan] = {}

    @property
    def dtype(self) -> torch.dtype:
        """The network's precision."""
        double = any(p.dtype == torch.float64 for p in self.params)
        return torch.float64 if double else torch.float32

    def start(self, places: Iterable[int]) -> tuple[dict[int, State], bool]:
        """The states of parameters by place, what lies here of them, made where there is none, and
        whether one had been taken away.
        """
        made, lost = list(places), False
        for i in made:
            p = self.params[i]
            state = self.optimizer.state[p]
            if not state:
                lost, self.ages[i] = lost or self.ages[i] > 0, 0
                dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
                state["step"] = torch.zeros((), dtype=torch.float32)
                for name in MOMENTS:
                    state[name] = torch.zeros_like(
                        p, dtype=dtype, memory_format=torch.preserve_format
                    )
        return dict(zip(made, self.states(made))), lost

    def restore(self, saved: Mapping[int, Mapping[str, Any]]) -> None:
        """Take over saved state by places, and keep nothing of before."""
        self.optimizer.state.clear()
        self.ages = [0] * len(self.params)
        for i, state in self.start(saved)[0].items():
            for name, x in state.items():
                x.copy_(torch.as_tensor(saved[i][name]))
            self.ages[i] = int(saved[i]["step"])

    def plan(self, active: tuple[int, ...]) -> Plan:
        first = self.ages[active[0]]
        key = active, tuple(self.ages[i] - first for i in active), self.params[0].device
        return keep_plan(self._plans, key, lambda: self._make_plan(active))

    def _make_plan(self, active: tuple[int, ...]) -> Plan:
        device = self.params[0].device
        grouping = by_key([self.groups[i] for i in active], device)
        sets: dict[tuple[Any, ...], list[int]] = {}
        for i, token in zip(active, grouping.index.tolist(), strict=True):
            p = self.params[i]
            sets.setdefault((self.part[i], token, self.ages[i], p.dtype, p.device), []).append(i)
        updates = tuple(UpdateSet(key[0], key[1], tuple(places)) for key, places in sets.items())
        order = make_order([self.here[i] for i in active])
        return Plan(active, self.layout.pick(active).to(device), grouping, order, updates)

    def group(self, i: int) -> dict[str, Any]:
        return self.optimizer.param_groups[self.part[i]]

    def states(self, places: Sequence[int]) -> list[State]:
        return [self._state_here(i) for i in places]

    def _state_here(self, i: int) -> State:
        state: State = self.optimizer.state[self.params[i]]
        if self.here[i] is self.params[i]:
            return state
        return {name: here_of(x) for name, x in state.items()}

    def numbers(self, group: dict[str, Any], t: int, rate: Any, shrink: Any) -> Numbers:
        """The numbers of the t-th update; ``shrink`` as if the decay were decoupled."""
        first, second = (float(one_minus_power(beta, t)) for beta in group["betas"])
        if self.scaled:
            shrink = shrink / first
        beta1, beta2 = group["betas"]
        return Numbers(rate, shrink, beta1, beta2, group["eps"], first, second)

    def count_update(self, states: Mapping[int, State]) -> None:
        for i in states:
            self.ages[i] += 1
        torch._foreach_add_([state["step"] for state in states.values()], ONE, alpha=1.0)


def check_betas(betas: Any, place: str) -> None:
    """Raise UserError, whose line begins with the ``place``, unless these are two decays."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2 or None in map(number, betas):
        raise UserError(f"{place}betas must be two numbers, not {shown(betas)}")
    if not all(0 <= float(beta) < 1 for beta in betas):
        raise UserError(f"{place}betas must be in [0, 1), not {betas[0]} and {betas[1]}")
