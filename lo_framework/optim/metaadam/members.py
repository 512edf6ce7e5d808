"""The parameters of one optimizer: their groups, ages and moments, and plans over those that have a
gradient.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.layout import Layout
from lo_framework.optim.arena import sub_layout
from lo_framework.optim.base import names_of
from lo_framework.optim.fused import one_minus_power
from lo_framework.optim.metaadam.adam_step import Numbers
from lo_framework.optim.metaadam.plan import Grouped, Plan, make_plan, model_order, name_groups
from lo_framework.spec import UserError

ONE = torch.tensor(
    1.0, dtype=torch.float32, device="cpu"
)  # a number, or no factor: a new tensor for each
KEPT_PLANS = 8  # few sets of gradients occur in a training


class Members:
    """
    Attributes:
        params: all, in the order of the parameter groups; ``part``: group of each; ``ages``: updates of each.
        layout: of all, frozen ones too: what a tensor is for does not depend on who has a gradient.
        groups: the token group of each.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, grouping: Grouped, published: bool, scaled: bool
    ) -> None:
        self.optimizer, self.grouping = optimizer, grouping
        self.published, self.scaled = published, scaled
        self.params: list[Tensor] = []
        self.names: dict[Tensor, str] = {}
        self.gather()

    def _given(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _names(self) -> list[str]:
        """A parameter keeps its name, whatever becomes of its group; empty where it has none, or
        that of another.
        """
        given = names_of(self.optimizer.param_groups)
        if not self.names:
            return given if len(set(given)) == len(self._given()) else [""] * len(self._given())
        taken, found = set(self.names.values()), []
        for group in self.optimizer.param_groups:
            params, own = group["params"], group.get("param_names", [])
            by_place = own if len(own) == len(params) else [""] * len(params)
            for p, name in zip(params, by_place):
                found.append(self.names.get(p, "" if name in taken else name))
                taken.add(found[-1])
        return found

    def current(self) -> bool:
        """Whether the optimizer still has these parameters: people replace and delete them in its
        groups.
        """
        given = self._given()
        return len(given) == len(self.params) and all(map(operator.is_, given, self.params))

    def gather(self) -> None:
        """Take in the optimizer's parameters; their ages are in their state."""
        params, part = (
            self._given(),
            [g for g, x in enumerate(self.optimizer.param_groups) for _ in x["params"]],
        )
        if not params:
            raise UserError("MetaAdamW needs at least one parameter")
        names = self._names()
        named = any(names)
        names = [name or f"parameter{i}" for i, name in enumerate(names)]
        places = {name: i for i, name in enumerate(names)}
        order = model_order(names) if named else names
        whole = Layout.of({name: params[places[name]].shape for name in order})
        layout = sub_layout(
            whole, [k for _, k in sorted((places[name], k) for k, name in enumerate(order))]
        )
        groups = name_groups(self.grouping, layout, params, part, named, self.published)
        # Nothing has changed before all is known to be well.
        self.params, self.part, self.layout, self.groups = params, part, layout, groups
        self.names = dict(zip(params, names)) if named else {}
        states = [self.optimizer.state.get(p) for p in params]
        self.ages = [int(state["step"]) if state else 0 for state in states]
        self.forget()

    def forget(self) -> None:
        self._plans: dict[Any, Plan] = {}

    @property
    def device(self) -> torch.device:
        return self.params[0].device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return (
            torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        )

    def with_gradient(self) -> tuple[int, ...]:
        """Places of the parameters that take part in this step.

        Raises:
            UserError: a gradient is sparse.
        """
        active = tuple(i for i, p in enumerate(self.params) if p.grad is not None and p.numel())
        for i in active:
            if self.params[i].grad.layout != torch.strided:  # type: ignore[union-attr]
                raise UserError(
                    "MetaAdamW cannot use sparse gradients; build the embedding with sparse=False"
                )
        return active

    def start(self, i: int) -> bool:
        """Make the state of a parameter that has none; gives whether it had one that was taken
        away.
        """
        p = self.params[i]
        state = self.optimizer.state[p]
        if not state:
            lost, self.ages[i] = self.ages[i] > 0, 0
            dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format)
            return lost
        return False

    def plan(self, active: tuple[int, ...]) -> Plan:
        first = self.ages[active[0]]
        key = active, tuple(self.ages[i] - first for i in active), self.device
        if key not in self._plans:
            if len(self._plans) >= KEPT_PLANS:
                self.forget()
            self._plans[key] = make_plan(
                active, self.params, self.layout, self.groups, self.part, self.ages
            )
        return self._plans[key]

    def group(self, i: int) -> dict[str, Any]:
        return self.optimizer.param_groups[self.part[i]]

    def states(self, places: Sequence[int]) -> list[dict[str, Tensor]]:
        return [self.optimizer.state[self.params[i]] for i in places]

    def numbers(self, group: dict[str, Any], t: int, rate: Any, shrink: Any) -> Numbers:
        """Of the t-th update; ``shrink`` as if the decay were decoupled."""
        beta1, beta2 = group["betas"]
        first, second = (float(one_minus_power(beta, t)) for beta in group["betas"])
        return Numbers(
            rate,
            shrink / first if self.scaled else shrink,
            beta1,
            beta2,
            group["eps"],
            first,
            second,
        )

    def older(self, active: Sequence[int]) -> None:
        for i in active:
            self.ages[i] += 1
        torch._foreach_add_([state["step"] for state in self.states(active)], ONE, alpha=1.0)


def check_group(group: dict[str, Any]) -> None:
    """Raises UserError for settings or parameters that cannot be."""
    check_settings(group)
    if any(p.is_complex() for p in group["params"]):
        raise UserError(
            "MetaAdamW cannot update complex parameters; use torch.view_as_real of them"
        )


def check_settings(group: dict[str, Any]) -> None:
    if not isinstance(group["betas"], (tuple, list)) or len(group["betas"]) != 2:
        raise UserError(f"betas must be two numbers, not {group['betas']!r}")
    beta1, beta2 = group["betas"]
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
        raise UserError(f"betas must be in [0, 1), not {beta1} and {beta2}")
    for name in ("lr", "eps", "weight_decay"):
        if not 0 <= float(group[name]) < math.inf:
            raise UserError(f"{name} must be at least 0 and finite, not {group[name]}")
