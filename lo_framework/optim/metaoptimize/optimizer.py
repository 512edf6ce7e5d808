"""``MetaOptimize``: an optimizer that learns its own step sizes while it trains.

    optimizer = MetaOptimize(model.parameters(), alpha0=1e-4, base="adamw", meta="lion")

Sharifnassab, Salehkaleybar & Sutton 2025, "MetaOptimize". A thin class: rules, traces, memory and
diagnostics are in files of their own; how to use it is told in ``docs/metaoptimize.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from lo_framework.errors import UserError, check_number, nearest
from lo_framework.optim.base import ByPlace, OptimizerBase
from lo_framework.optim.blocks import Blocks, assign
from lo_framework.optim.eager import eager
from lo_framework.optim.interrupts import Held
from lo_framework.optim.metaoptimize.derivatives import closure_gradients
from lo_framework.optim.metaoptimize.diagnostics import Watch
from lo_framework.optim.metaoptimize.hessian_free import StepSizes, hessian_free_step, reset_traces
from lo_framework.optim.metaoptimize.rules import State, fresh, meta_step
from lo_framework.optim.metaoptimize.settings import MetaOptimizeConfig, Settings
from lo_framework.optim.metaoptimize.store import Store
from lo_framework.optim.metaoptimize.trace import ExactTrace
from lo_framework.optim.shards import (
    counts_here,
    is_sharded,
    shard_of,
    shown,
    sum_over_processes,
)
from lo_framework.optim.telling import Values, counted, made, several

WITHIN = ("node", "weight")  # blocks within a tensor


class MetaOptimize(OptimizerBase):
    """A base optimizer whose log step sizes ``beta``, one per block, follow the gradient of the
    discounted future loss.

    Args:
        params: parameters, named parameters or parameter groups. A group may set ``weight_decay``,
            ``betas``, ``eps`` and ``lr``, a multiplier of its step sizes (1.0) on which schedulers
            act.
        alpha0: the step size at the start.
        meta_lr: the step size of the log step sizes.
        config: all other settings, of which ``options`` replaces some.

    Parameters without a gradient take no part in a step. State and arithmetic are float32 for
    float32, bfloat16 and float16 parameters, float64 for float64.

    Raises:
        UserError: arguments that cannot be; by ``step``: sparse gradients, an exact trace without
            its closure.
    """

    entry = "metaoptimize"
    multiplies = "the step size"
    group_keys = ("betas",)
    log_prefix = "step_size"

    def __init__(
        self,
        params: Any,
        alpha0: float = 1e-6,
        meta_lr: float = 1e-3,
        config: MetaOptimizeConfig | None = None,
        **options: Any,
    ) -> None:
        known = [field.name for field in fields(MetaOptimizeConfig)]
        for name in options.keys() - set(known):
            hint = " (alpha0 is the step size)" if name == "lr" else nearest(name, known)
            raise UserError(f"MetaOptimize has no option {name}{hint}; known: {', '.join(known)}")
        if not isinstance(config, MetaOptimizeConfig | None):
            raise UserError(f"config must be a MetaOptimizeConfig, not {type(config).__name__}")
        self.config = c = replace(config or MetaOptimizeConfig(), **options)
        self._base, self._meta = c.base_rule, c.meta_rule
        limits = c.limits(alpha0)
        meta_betas = self._meta.checked_betas(c.meta_betas, "meta_betas")
        meta_lr = check_number("meta_lr", meta_lr)
        self.settings = Settings(meta_lr, c.gamma, c.meta_every, meta_betas, limits)
        self._log_alpha0, self._updates = math.log(alpha0), 0
        defaults = {"lr": 1.0, "weight_decay": c.weight_decay, self._base.betas_key: c.betas}
        super().__init__(params, {**defaults, "eps": self._base.eps if c.eps is None else c.eps})
        self._blocks = self._assign()
        self._begin(fresh(self._meta, self._first_beta(self._blocks.size)))
        self._store = Store(self._rows(), self._show)
        self._set_params()

    def _begin(self, meta_state: State) -> None:
        """Start trace and diagnostics at these log step sizes."""
        self._meta_state = meta_state
        self._exact = self._exact_trace()
        self._watch = Watch(meta_state["beta"], lambda block: self._blocks.name(block))

    @eager
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the parameters' gradients.

        ``closure`` recomputes them first and its result is returned. For an exact trace it returns
        the loss and does not call backward, or calls ``backward(create_graph=True)``.
        """
        if self._starts_blank(closure):
            return None
        result, graph = None, list[Tensor | None]()
        if self.config.trace != "hessian-free" and (closure or self._exact):
            owner = f'MetaOptimize with trace "{self.config.trace}"'
            twice = self._exact is not None
            result, graph = closure_gradients(closure, self._params, owner, twice=twice)
        elif closure is not None:
            with torch.enable_grad():
                result = closure()
        active = self._active()
        if active:
            self._groups_seen.look(self.param_groups, self._updates)
            with Held(), self._updating():
                self._update(active, graph)
        return result

    @torch.no_grad()
    def step_sizes(self) -> dict[str, Tensor]:
        """exp(beta) by name of the block; for "node" and "weight" by tensor, with one value per row
        or element.
        """
        alphas, blocks = self._meta_state["beta"].exp(), self._blocks
        if not blocks.by_tensor:
            return dict(zip(blocks.names, alphas.unbind()))
        parts = [alphas[first : first + count] for first, count in blocks.spreads]
        if self.config.blocks == "weight":
            parts = [part.view(p.shape) for p, part in zip(self._params, parts)]
        return dict(zip(blocks.names, parts))

    def diagnostics(self) -> dict[str, Any]:
        """Counts: ``meta_steps``; ``skipped`` meta-gradients that were not finite; ``oscillating``,
        ``collapsing`` and ``exploding``, blocks times windows of 50 meta steps; ``blocks``: names
        of some of them.
        """
        return self._watch.report()

    def _values(self) -> Values:
        values: Values = {}
        for name, x in self.step_sizes().items():
            if not self._blocks.by_tensor:
                values[name] = x
            elif x.numel():
                ends = {"min": x.min(), "median": x.median(), "max": x.max()}
                values.update({f"{name}/{end}": value for end, value in ends.items()})
        return {**values, "skipped": int(self._watch.skipped)}

    def _about(self) -> str:
        c = self.config
        trace = "" if c.trace == "hessian-free" else f', trace "{c.trace}"'
        return (
            f"{c.base} by {c.meta}, {several(self._blocks.size, 'step size')}{trace}, "
            f"{counted(self._params)}, {made(self._updates, None)}"
        )

    def _check_values(self, given: Mapping[str, Any], place: str = "") -> None:
        super()._check_values(given, place)
        for name in {"betas", self._base.betas_key} & given.keys():
            self._base.checked_betas(given[name], "betas", place)

    def _check_group(self, group: dict[str, Any]) -> None:
        looks_inside = self.config.blocks in WITHIN or self.config.trace != "hessian-free"
        if looks_inside and any(is_sharded(p) for g in self.param_groups for p in g["params"]):
            raise UserError(
                "of sharded parameters MetaOptimize knows whole tensors and no second derivatives: "
                'use trace "hessian-free" and blocks "scalar", "group", "tensor" or by name'
            )
        # The user's "betas" are called otherwise where none of them is a momentum.
        given, key = group.pop("betas", None), self._base.betas_key
        group[key] = self._base.checked_betas(group.get(key) if given is None else given, "betas")

    def _count_steps(self) -> None:
        """Write the age of each parameter into its state."""
        for i, p in enumerate(self._params):
            if p in self.state:
                self.state[p]["step"] = self._store.ages[i]

    def _entry(self) -> dict[str, Any]:
        self._count_steps()
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
        for group in groups:
            self._check_group(group)
        return entry

    def _check_saved(self, saved: ByPlace) -> None:
        for i, state in saved.items():
            if missing := ({"step"} | self._store.rows.keys()) - state.keys():
                raise UserError(f"this state is damaged: parameter {i} has no {min(missing)}")

    def _leads(self) -> Mapping[str, tuple[int, ...]]:
        rows = self._store.rows.items()
        return {name: () if num is None else (num,) for name, num in rows}

    def _make_state(self, active: tuple[int, ...]) -> None:
        self._store.plan(active, self._meta_state["beta"].device)
        self._count_steps()

    def _forget_state(self) -> None:
        self.state.clear()
        self._store.restore({})

    def _restore(self, entry: dict[str, Any], saved: ByPlace) -> None:
        """The settings become those that were saved."""
        self.state.clear()
        self.settings, self._updates = Settings.loaded(entry["settings"]), entry["updates"]
        like = self._meta_state["beta"].to(self._device)
        self._begin({name: x.to(like).clone() for name, x in entry["meta"].items()})
        if self._exact is not None:
            self._exact.tangents = {k: x.to(like).clone() for k, x in entry["tangents"].items()}
        self._watch.load_state_dict(entry["watch"])
        self._store.restore(saved)

    def _update(self, active: Sequence[int], graph: Sequence[Tensor | None]) -> None:
        if self._updates == 0 and self._meta_state["beta"].device != self._device:
            # The meta state follows the parameters until the first step.
            self._begin({name: x.to(self._device) for name, x in self._meta_state.items()})
        s, old, exact = self.settings, self._meta_state, self._exact
        beta = old["beta"]
        due = self._meta.name != "fixed" and (self._updates + 1) % s.meta_every == 0
        plan = self._store.plan(active, beta.device)
        works = self._store.works(plan, self.param_groups, self._base, s.gamma)
        z = torch.zeros_like(beta)
        if exact is not None:
            z, dz = exact.step(plan, works, graph, beta, s.gamma)
        else:
            as_numbers = beta.device.type == "cpu" and not self._blocks.by_tensor
            sizes = StepSizes(beta, as_numbers=as_numbers)
            hessian_free_step(
                works, plan.owners, self._base.name, sizes, self._store.scratch, z if due else None
            )
        broken = None
        if due:
            z = self._over_shards(z)
            self._meta_state, bad = meta_step(
                self._meta, old, z, s.meta_lr, s.meta_betas, s.limits, plan.active
            )
            broken = self._watch.note(beta, self._meta_state["beta"], bad, s.limits)
        if exact is not None:
            exact.carry(old, self._meta_state["count"] > old["count"], z, dz, s)
        if broken is not None:
            exact.reset(plan, beta) if exact is not None else reset_traces(plan, broken)
        for i in active:
            self._store.ages[i] += 1
        self._updates += 1

    def _rows(self) -> dict[str, int | None]:
        """Names of the per-parameter state."""
        rows: dict[str, int | None] = dict.fromkeys(self._base.state)
        if self._exact is not None:
            rows.update(dict.fromkeys(self._exact.state_names(), self._exact.columns))
        elif self._meta.name != "fixed":
            rows["h"] = None
        return rows

    def _set_params(self) -> None:
        self._store.set_params(self._here, self._group_of, self._blocks, self._counts())

    def _counts(self) -> list[bool] | None:
        """Of which tensors sums over blocks take in what lies here; None where nothing is
        sharded.
        """
        return counts_here(self._params, "MetaOptimize") if self._is_sharded else None

    def _over_shards(self, z: Tensor) -> Tensor:
        """Sums over blocks from those over what lies here."""
        if not self._is_sharded:
            return z
        return sum_over_processes(z, self._params)

    def _show(self, i: int, views: State) -> None:
        p = self._params[i]
        shard = shard_of(p)
        if shard is not None:
            views = {name: shown(x, tuple(p.shape), shard) for name, x in views.items()}
        self.state[p] = dict(views)

    def _exact_trace(self) -> ExactTrace | None:
        """None where no product is needed: lion's sign does not feel the Hessian, so there "l" is
        exact without.
        """
        c = self.config
        free = c.trace == "hessian-free" or (c.trace, c.base) == ("l", "lion")
        if free or c.meta == "fixed":
            return None
        return ExactTrace(c.trace, c.products, self._base, self._meta, self._meta_state["beta"])

    def _assign(self) -> Blocks:
        return assign(self.config.blocks, self._params, self._group_of, self._unique_names())

    def _first_beta(self, num: int) -> Tensor:
        """Double precision, since small meta steps would round away; single where there is one for
        each weight.
        """
        single = self.config.blocks == "weight" and self._params[0].dtype != torch.float64
        dtype = torch.float32 if single or self._device.type == "mps" else torch.float64
        return torch.full((num,), self._log_alpha0, device=self._device, dtype=dtype)

    def _extend(self) -> None:
        """New blocks start at ``alpha0``."""
        blocks = self._assign()
        extra = blocks.size - self._blocks.size
        if self._exact is not None:
            self._exact.columns_for(blocks.size)
        self._blocks = blocks
        self._set_params()
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
        c = self.config
        trace = c.trace if self._exact is None else f"{c.trace}, {c.products}"
        blocks = [list(spread) for spread in self._blocks.spreads]
        return {"base": c.base, "meta": c.meta, "trace": trace, "blocks": blocks}
