"""``MetaOptimize``: an optimizer that learns its own step sizes while it trains.

    optimizer = MetaOptimize(model.parameters(), base="adamw", meta="lion", alpha0=1e-4)

Sharifnassab, Salehkaleybar & Sutton 2025, "MetaOptimize". A thin class: rules, traces, memory and
diagnostics are in ``metaopt``; how to use it is told in ``docs/metaoptimize.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lo_framework.optim.base import ByPlace, OptimizerBase
from lo_framework.optim.metaopt import shown
from lo_framework.optim.metaopt.arena import Plan
from lo_framework.optim.metaopt.bases import State, checked_betas, find_base
from lo_framework.optim.metaopt.blocks import Blocks, Spec, assign
from lo_framework.optim.metaopt.bounds import MAX_CHANGE, limits_of
from lo_framework.optim.metaopt.diagnostics import Watch
from lo_framework.optim.metaopt.exact import ExactTrace, check_trace
from lo_framework.optim.metaopt.hessian_free import StepSizes, hessian_free_step, reset_traces
from lo_framework.optim.metaopt.kernels import Scratch
from lo_framework.optim.metaopt.metas import find_meta, fresh, meta_step
from lo_framework.optim.metaopt.products import NEEDS, differentiable_gradients
from lo_framework.optim.metaopt.settings import Settings, check_group
from lo_framework.optim.metaopt.store import Store
from lo_framework.spec import UserError


class MetaOptimize(OptimizerBase):
    """A base optimizer whose log step sizes ``beta``, one a block, follow the gradient of the
    discounted future loss.

    Args:
        params: parameters, named parameters or parameter groups. A group may set ``weight_decay``,
            ``betas``, ``eps`` and ``lr``, a multiplier of its step sizes (1.0) on which schedulers
            act.
        base: how weights move: "sgd", "sgdm", "rmsprop", "adamw" or "lion".
        meta: how log step sizes move: "fixed", "sgd", "rmsprop", "adam" or "lion".
        alpha0: the step size at the start.
        meta_lr: the step size of the log step sizes.
        gamma: discount of the future: 1 looks at the whole past, 0 at the last step only.
        weight_decay: decoupled, times the step size.
        meta_every: a meta step in every so many steps; the trace is carried on in all.
        blocks: what shares a step size: "scalar" (all), "group", "tensor", "node" (row of a
            tensor), "weight", or a dict of names to a regular expression (searched in parameter
            names), a list of parameter names, or None (all others).
        trace: how the past is followed: "hessian-free"; "l" and "2x2" with exact Hessian-vector
            products, for which ``step`` needs a closure; "full" for sgd by sgd.
        betas: of the base: rho for sgdm, lambda for rmsprop, (rho, lambda) for adamw, (c, rho) for
            lion.
        meta_betas: the same of the meta.
        beta_bounds: (low, high) of the log step size; "auto": wide ones of the base; None: no
            bounds.
        products: of exact traces with several blocks: "joint" (one product: blocks are followed
            together) or "per-block" (one each, at most 64).
        max_change: the cap on what one meta step changes a log step size by; None for no cap.
        eps: of rmsprop (inside the root) and adamw (outside).

    Parameters without a gradient take no part in a step. State and arithmetic are float32 for
    float32, bfloat16 and float16 parameters, float64 for float64.

    Raises:
        UserError: arguments that cannot be; by ``step``: sparse gradients, an exact trace without
            its closure.
    """

    entry = "metaoptimize"

    def __init__(
        self,
        params: Any,
        base: str = "adamw",
        meta: str = "lion",
        alpha0: float = 1e-6,
        meta_lr: float = 1e-3,
        gamma: float = 1.0,
        weight_decay: float = 0.1,
        meta_every: int = 1,
        blocks: Spec = "scalar",
        trace: str = "hessian-free",
        betas: Sequence[float] | None = None,
        meta_betas: Sequence[float] | None = None,
        beta_bounds: str | Sequence[float] | None = "auto",
        *,
        products: str = "joint",
        max_change: float | None = MAX_CHANGE,
        eps: float | None = None,
    ) -> None:
        self._base, self._meta = find_base(base), find_meta(meta)
        check_trace(trace, products, base, meta, blocks)
        limits = limits_of(self._base, alpha0, beta_bounds, max_change)
        usual = checked_betas(meta_betas, self._meta.betas, f'meta "{meta}"', "meta_betas")
        self.settings = Settings(meta_lr, gamma, meta_every, usual, limits)
        self._alpha0, self._spec, self._trace, self._products = alpha0, blocks, trace, products
        self._updates, self._scratch = 0, Scratch()
        own = self._base.eps if eps is None else eps
        super().__init__(
            params, {"lr": 1.0, "weight_decay": weight_decay, "betas": betas, "eps": own}
        )
        self._blocks = self._assign()
        self._meta_state = fresh(self._meta, self._first_beta(self._blocks.size))
        self._exact = self._exact_trace()
        self._watch = Watch(self._meta_state["beta"], self._name)
        self._store = Store(self._rows(), self._show)
        self._store.set_params(self._params, self._group_of, self._blocks)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the parameters' gradients.

        ``closure`` recomputes them first and its result is returned. For an exact trace it returns
        the loss and does not call backward, or calls ``backward(create_graph=True)``.
        """
        result, graph = None, list[Tensor | None]()
        if self._exact is not None:
            if closure is None:
                raise UserError(f'MetaOptimize with trace "{self._trace}" {NEEDS}')
            result, graph = differentiable_gradients(
                closure, self._params, f'MetaOptimize with trace "{self._trace}"'
            )
        elif closure is not None:
            with torch.enable_grad():
                result = closure()
        active = self._active()
        if active:
            with self._full_precision():
                self._update(active, graph)
        return result

    @torch.no_grad()
    def step_sizes(self) -> dict[str, Tensor]:
        """exp(beta) by name of the block; for "node" and "weight" by tensor, with one value a row
        or an element.
        """
        alphas = self._meta_state["beta"].exp()
        return shown.by_name(self._blocks, alphas, self._params, self._spec == "weight")

    def log(self, writer: Any, step: int, prefix: str = "step_size") -> None:
        """Write the step sizes to a TensorBoard ``SummaryWriter``; least, median and greatest where
        many.
        """
        for name, value in shown.scalars(self.step_sizes(), self._blocks.by_tensor).items():
            writer.add_scalar(f"{prefix}/{name}", value, step)
        writer.add_scalar(f"{prefix}/skipped", int(self._watch.skipped), step)

    def diagnostics(self) -> dict[str, Any]:
        """Counts: ``meta_steps``; ``skipped`` meta-gradients that were not finite; ``oscillating``,
        ``collapsing`` and ``exploding``, blocks times windows of 50 meta steps; ``blocks``: names
        of some of them.
        """
        return self._watch.report()

    def _check_group(self, group: dict[str, Any]) -> None:
        check_group(group, self._base)

    def _entry(self) -> dict[str, Any]:
        for i, p in enumerate(self._params):
            if p in self.state:
                self.state[p]["step"] = self._store.ages[i]
        return {
            "kind": self._kind(),
            "settings": self.settings.state_dict(),
            "updates": self._updates,
            "meta": dict(self._meta_state),
            "tangents": dict(self._exact.tangents) if self._exact else None,
            "watch": self._watch.state_dict(),
        }

    def _check_entry(self, entry: Any, groups: list[dict[str, Any]]) -> dict[str, Any]:
        entry = super()._check_entry(entry, groups)
        for word, value in self._kind().items():
            saved = entry["kind"][word]
            if saved != value:
                what = f'another {word} ("{saved}", not "{value}")'
                if word == "blocks":
                    what = "other blocks or parameters"
                raise UserError(f"this state is of {what}: build MetaOptimize as it was saved")
        return entry

    def _check_saved(self, saved: ByPlace) -> None:
        self._check_shapes(saved, lambda state: state.keys() - {"step"})

    def _update(self, active: Sequence[int], graph: Sequence[Tensor | None]) -> None:
        plan = self._plan(active)
        due = self._meta.name != "fixed" and (self._updates + 1) % self.settings.meta_every == 0
        if self._exact is not None:
            self._exact_update(self._exact, plan, graph, due)
        else:
            self._hessian_free_update(plan, due)
        for i in active:
            self._store.ages[i] += 1
        self._updates += 1

    def _hessian_free_update(self, plan: Plan, due: bool) -> None:
        beta = self._meta_state["beta"]
        z = torch.zeros_like(beta) if due else None
        sizes = StepSizes(beta, as_numbers=beta.device.type == "cpu" and not self._blocks.by_tensor)
        gamma = self.settings.gamma
        hessian_free_step(
            plan,
            self._params,
            self.param_groups,
            self._store.ages,
            self._base,
            sizes,
            gamma,
            self._scratch,
            z,
        )
        if z is not None:
            broken = self._meta_update(plan, z)
            if broken is not None:
                reset_traces(plan, broken)

    def _exact_update(
        self, exact: ExactTrace, plan: Plan, graph: Sequence[Tensor | None], due: bool
    ) -> None:
        before, settings, gamma = self._meta_state, self.settings, self.settings.gamma
        z, dz = exact.step(
            plan, self._params, graph, self.param_groups, self._store.ages, before["beta"], gamma
        )
        broken = self._meta_update(plan, z) if due else None
        taken = self._meta_state["count"] > before["count"]
        exact.carry(before, z, dz, taken, settings.meta_lr, settings.meta_betas, gamma)
        if broken is not None:
            exact.reset(plan, before["beta"])

    def _meta_update(self, plan: Plan, z: Tensor) -> Tensor | None:
        """Move the log step sizes; gives the blocks whose trace is broken."""
        s, old = self.settings, self._meta_state
        self._meta_state, bad = meta_step(
            self._meta, old, z, s.meta_lr, s.meta_betas, s.limits, plan.active
        )
        return self._watch.note(old["beta"], self._meta_state["beta"], bad, s.limits)

    def _plan(self, active: Sequence[int]) -> Plan:
        """What to work on; the meta state follows the parameters until the first step."""
        device = self._device
        if self._updates == 0 and self._meta_state["beta"].device != device:
            self._meta_state = {name: x.to(device) for name, x in self._meta_state.items()}
            self._exact = self._exact_trace()
            self._watch = Watch(self._meta_state["beta"], self._name)
        return self._store.plan(active, self._meta_state["beta"].device)

    def _rows(self) -> dict[str, int | None]:
        """Names of the per-parameter state."""
        rows: dict[str, int | None] = dict.fromkeys(self._base.state)
        if self._exact is not None:
            rows.update(dict.fromkeys(self._exact.state_names(), self._exact.columns))
        elif self._meta.name != "fixed":
            rows["h"] = None
        return rows

    def _show(self, i: int, views: State) -> None:
        self.state[self._params[i]] = dict(views)

    def _exact_trace(self) -> ExactTrace | None:
        """None where no product is needed: lion's sign does not feel the Hessian, so there "l" is
        exact without.
        """
        free = self._trace == "hessian-free" or (self._trace, self._base.name) == ("l", "lion")
        if free or self._meta.name == "fixed":
            return None
        return ExactTrace(
            self._trace, self._products, self._base, self._meta, self._meta_state["beta"]
        )

    def _assign(self) -> Blocks:
        return assign(self._spec, self._params, self._group_of, self._unique_names())

    def _name(self, block: int) -> str:
        return self._blocks.name(block)

    def _first_beta(self, num: int) -> Tensor:
        """Double precision, since small meta steps would round away; single where there is one for
        each weight.
        """
        device = self._device
        single = (
            self._spec == "weight" and self._params[0].dtype != torch.float64
        ) or device.type == "mps"
        dtype = torch.float32 if single else torch.float64
        return torch.full((num,), math.log(self._alpha0), device=device, dtype=dtype)

    def _extend(self) -> None:
        """New blocks start at ``alpha0``."""
        blocks = self._assign()
        extra = blocks.size - self._blocks.size
        if self._exact is not None:
            self._exact.columns_for(blocks.size)
        self._blocks = blocks
        self._store.set_params(self._params, self._group_of, blocks)
        if extra:
            added = fresh(self._meta, self._first_beta(extra).to(self._meta_state["beta"].device))
            self._meta_state = {
                name: torch.cat([x, added[name]]) for name, x in self._meta_state.items()
            }
            self._watch.resize(self._meta_state["beta"])
            if self._exact is not None:
                self._exact.grow(self._meta_state["beta"])
                self._store.grow_rows(self._rows())

    def _kind(self) -> dict[str, Any]:
        trace = self._trace if self._exact is None else f"{self._trace}, {self._products}"
        blocks = [list(spread) for spread in self._blocks.spreads]
        return {"base": self._base.name, "meta": self._meta.name, "trace": trace, "blocks": blocks}

    def _restore(self, entry: dict[str, Any], saved: ByPlace) -> None:
        device = self._device
        self.state.clear()
        self.settings, self._updates = Settings.loaded(entry["settings"]), entry["updates"]
        dtype = self._meta_state["beta"].dtype
        self._meta_state = {name: x.to(device, dtype).clone() for name, x in entry["meta"].items()}
        self._exact = self._exact_trace()
        if self._exact is not None:
            self._exact.tangents = {
                name: x.to(device, dtype).clone() for name, x in entry["tangents"].items()
            }
        self._watch = Watch(self._meta_state["beta"], self._name)
        self._watch.load_state_dict(entry["watch"])
        self._store.restore(saved)
