"""``MetaAdamW``: AdamW whose learning rate and decay are modulated by attention over groups of
parameters.

    optimizer = MetaAdamW(model, lr=1e-3)
    ...
    optimizer.step()
    if optimizer.meta_due:
        optimizer.meta_step(loss_of_batch, batch_1, batch_2, valid_batch)

Zhao & Liu, "MetaAdamW" (arXiv 2605.04055), corrected. Features, groups and the network are those of
the ``attention`` learned optimizer, terms and weighting those of the outer loop; how to use it is
told in ``docs/metaadamw.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.errors import UserError, shown, whole
from lo_framework.learned.attention import Attention, NetworkConfig
from lo_framework.objectives.terms import TERMS
from lo_framework.optim.base import ByPlace, OptimizerBase
from lo_framework.optim.eager import eager
from lo_framework.optim.interrupts import Held
from lo_framework.optim.metaadamw.adam_step import update
from lo_framework.optim.metaadamw.factors import FactorRule
from lo_framework.optim.metaadamw.groups import OwnGroups, Plan
from lo_framework.optim.metaadamw.look_ahead import meta_gradient
from lo_framework.optim.metaadamw.meta_loss import LossFn, MetaConfig
from lo_framework.optim.metaadamw.network import Network, as_learned, hyper_of, make_network
from lo_framework.optim.metaadamw.parameters import MOMENTS, ParameterTable, check_betas
from lo_framework.optim.metaadamw.preserved import as_outside
from lo_framework.optim.metaadamw.published import Variant, find_variant
from lo_framework.optim.metaadamw.saved import check_entry, refuse_missing
from lo_framework.optim.metaadamw.training import NetworkTrainer, mean_over_processes
from lo_framework.optim.options import Course
from lo_framework.optim.telling import Values, counted, made, several

NEW_NETWORK, USUAL_META = NetworkConfig(), MetaConfig()
# Settings of a network that say where it began, not what it is.
STARTS = ("seed", "head_scale", "lr", "beta1", "beta2", "eps", "weight_decay", "sam_rho")


class MetaAdamW(OptimizerBase):
    """AdamW with an attention network that gives every group of parameters a factor alpha of its
    learning rate and a factor beta of its decay, and that `meta_step` trains.

    Args:
        params: a module, of which all parameters that require a gradient are taken (fine-grained
            groups then go by the types of its modules); or named parameters (by names, shapes and
            order), parameters or parameter groups; a group may set ``lr``, ``betas``, ``eps`` and
            ``weight_decay``.
        lr, betas, eps, weight_decay: AdamW's; None: 1e-3, (0.9, 0.999), 1e-8, 1e-2, or those of the
            learned optimizer given as ``network``.
        network: settings of a new one; or an ``attention`` optimizer that was meta-trained, or its
            file, which brings its features, ranges and grouping.
        meta: how the network is trained.
        grouping: groups of one's own in place of the network's: a dict of labels to regular
            expressions, lists of names or None (all others); or a function of name and tensor.
        total_steps: of this training, for the time feature; None: a time that saturates after some
            thousands.
        attend_every: new factors in every so many steps.
        model: the module whose parameters are in ``params``, for groups: names, types and order are
            then its own, whatever the order of the groups.
        reproduce: "paper" or "reference" (the released code) in all that they do differently and
            `Variant` lists, or a variant of one's own.

    Parameters without a gradient take no part in a step. State is float32 for bfloat16 and float16
    parameters.

    Attributes:
        updates: steps made so far.

    Raises:
        UserError: arguments that cannot be; by ``step``: sparse gradients.
    """

    entry = "metaadamw"
    reads_roles = True
    swaps = True
    log_prefix = "metaadamw"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        *,
        network: Network = NEW_NETWORK,
        meta: MetaConfig = USUAL_META,
        grouping: OwnGroups | None = None,
        total_steps: int | None = None,
        attend_every: int = 1,
        model: nn.Module | None = None,
        reproduce: str | Variant = "none",
    ) -> None:
        self.variant = find_variant(reproduce)
        if not isinstance(meta, MetaConfig):
            raise UserError(f"meta must be a MetaConfig, not {shown(meta)}")
        self.meta_objective = meta.build(self.variant)
        self.meta_every = whole("meta_every", meta.meta_every)
        if total_steps is not None:
            total_steps = whole("total_steps", total_steps)
        self.network = make_network(network, self.variant, grouping is not None)
        if self.network.config.features == "tokens" and total_steps is None:
            raise UserError('features "tokens" look at how far training is: give total_steps')
        self._trainer = NetworkTrainer(self.network, self.variant, meta.meta_lr)
        self._rule = FactorRule(
            self.network, self.variant, total_steps, whole("attend_every", attend_every)
        )
        self.updates = 0
        self._own_groups = grouping is not None
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        usual = hyper_of(self.network)
        super().__init__(params, usual | {k: x for k, x in given.items() if x is not None}, model)
        reads_time = self.network.config.features == "tokens"
        if total_steps and (reads_time or self.network.config.time):
            self._groups_seen.expect(Course("total_steps", total_steps, optional=not reads_time))
        self.table = ParameterTable(
            self,
            self.network.config.grouping if grouping is None else grouping,
            self.variant,
        )
        self.network.spec.check(self.table.plan(tuple(range(len(self._params)))).grouping)
        self.table.forget_plans()  # the model may be moved before the first step

    @property
    def meta_due(self) -> bool:
        """Whether `meta_every` steps have been made since the last time it was so."""
        return self.updates > 0 and self.updates % self.meta_every == 0

    @property
    def skipped(self) -> int:
        """Meta steps left out because their gradient was not finite."""
        return self._trainer.skipped

    @eager
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the parameters' gradients; ``closure`` recomputes them first and its
        result is returned.
        """
        if self._starts_blank(closure):
            return None
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._refresh()
        active = self._active()
        if active:
            self._groups_seen.look(self.param_groups, self.updates)
            plan = self.table.plan(active)
            self.network.spec.check(plan.grouping)
            with Held(), self._updating():
                self._update(plan)
        return result

    def meta_step(
        self,
        loss_fn: LossFn,
        train_1: Any,
        train_2: Any,
        valid: Any = None,
        *,
        model: nn.Module | None = None,
    ) -> dict[str, float]:
        """Train the network by one look-ahead; gives the terms of the meta-loss and their weights.

        Parameters, their ``.grad``, buffers of modules that run and torch's generators are
        afterwards as they were.

        Args:
            loss_fn: the loss of a batch at the model's parameters as they are, with its graph.
            train_1, train_2: batches of training data; ``valid`` of held-out data, which the
                losses' terms need.
            model: for a ``loss_fn`` that writes to buffers outside a module's forward.

        Raises:
            UserError: before the first step, without a needed batch, sharded parameters, or a
                loss_fn that gives no loss.
        """
        objective = self.meta_objective
        if self._is_sharded:
            raise UserError(
                "meta_step needs whole parameters: train the network without sharding them"
            )
        if not self.updates:
            raise UserError("meta_step looks one step ahead of the last one: make a step first")
        if valid is None and objective.terms != ("gradient",):
            raise UserError(
                f'objective "{objective.name}" needs a batch of validation data: '
                "meta_step(..., valid)"
            )
        self._refresh()
        outside = as_outside(loss_fn, self._device.type)
        batches = (train_1, train_2, valid)
        with torch.enable_grad(), Held(), self._updating():
            result = meta_gradient(
                self.table, self._rule, objective, outside, batches, self.updates, model
            )
            self._trainer.pull_back(result.outputs, result.slopes)
        values = mean_over_processes(result.values)
        self._trainer.step(values)
        weights = dict(zip(TERMS, objective.weighting.weights(), strict=True))
        objective.weighting.learn(values, self._trainer.lr if self.variant.huw_lr is None else None)
        self._rule.stale = True
        told = dict(zip(TERMS, values.tolist(), strict=True))
        return {name: told[name] for name in objective.terms} | {
            f"weight/{name}": weights[name] for name in objective.terms
        }

    @torch.no_grad()
    def factors(self) -> dict[str, tuple[float, float]]:
        """(alpha, beta) of every group at the last step, by its label."""
        if self._rule.last is None:
            return {}
        _, labels, alpha, beta = self._rule.last
        return {k: (a, b) for k, a, b in zip(labels, alpha.tolist(), beta.tolist(), strict=True)}

    def learned(self) -> Attention:
        """This update rule as a learned optimizer (for `Learned`, `lo_framework.save`, `eval`),
        with the settings of the first parameter group.

        Raises:
            UserError: the groups are the user's own, which no other model has; the rule is a
                published one, which learned optimizers have not.
        """
        if self._own_groups:
            raise UserError(
                "groups of one's own mean nothing on another model: this network cannot be given "
                "away"
            )
        if self.variant.published or self.variant.scaled_decay:
            raise UserError(
                "a learned optimizer has no scaled decay and no published groups: it cannot be "
                "given away"
            )
        return as_learned(self.network, self.param_groups[0])

    def _values(self) -> Values:
        values: Values = {"skipped": self.skipped}
        for label, (alpha, beta) in self.factors().items():
            values |= {f"alpha/{label}": alpha, f"beta/{label}": beta}
        return values

    def _about(self) -> str:
        weights = sum(p.numel() for p in self.network.parameters())
        groups = len({group for group, _, _ in self.table.groups})
        return (
            f"{counted(self._params)} in {several(groups, 'group')}, "
            f"{made(self.updates, self._rule.total_steps)}, network of {weights:,} weights"
        )

    def _check_values(self, given: Mapping[str, Any], place: str = "") -> None:
        super()._check_values(given, place)
        if "betas" in given:
            check_betas(given["betas"], place)

    def _extend(self) -> None:
        self.table.gather()
        # how deep a tensor lies in the model, and who shares a group, may have changed
        self._rule.stale = True

    def _refresh(self) -> None:
        if not self.table.is_current():
            self._extend()

    def _update(self, plan: Plan) -> None:
        table, rule = self.table, self._rule
        if self.updates == 0:
            self._settle()
        states, lost = table.start(plan.active)
        if lost:
            plan = table.plan(plan.active)
        _, _, alpha, beta = rule.in_force(table, plan, self.updates)
        # On an accelerator the factors stay there: nothing waits for them.
        on_host = alpha.device.type == "cpu"
        alphas, betas = (alpha.tolist(), beta.tolist()) if on_host else (alpha, beta)
        for each in plan.sets:
            group = self.param_groups[each.group]
            lr = float(group["lr"]) if on_host else group["lr"]
            rate = lr * alphas[each.token]
            shrink = rate * betas[each.token] * group["weight_decay"]
            params = [table.here[i] for i in each.places]
            if isinstance(rate, Tensor):
                rate, shrink = rate.to(params[0].device), shrink.to(params[0].device)
            numbers = table.numbers(group, table.ages[each.places[0]] + 1, rate, shrink)
            moments = [states[i] for i in each.places]
            update(params, [p.grad for p in params], moments, numbers)  # type: ignore[misc]
        table.count_update(states)
        self.updates += 1

    def _settle(self) -> None:
        """Bring the network to where the parameters are: many loops move the model late."""
        self._rule.settle(self._device, self.table.dtype)
        self.table.forget_plans()

    def _kind(self) -> dict[str, Any]:
        """Settings that a state must share with the optimizer that loads it."""
        config, objective = asdict(self.network.config), self.meta_objective
        return {
            "network": {key: value for key, value in config.items() if key not in STARTS},
            "objective": f"{objective.name}, {objective.weighted}",
            "behaviour": asdict(self.variant),
            "groups": [label for _, _, label in self.table.groups],
        }

    def _entry(self) -> dict[str, Any]:
        self._refresh()
        return {
            "kind": self._kind(),
            "updates": self.updates,
            **self._rule.state_dict(),
            "meta": self._trainer.state_dict(),
            "weighting": self.meta_objective.weighting.dump(),
        }

    def _check_entry(self, entry: Any, groups: list[dict[str, Any]]) -> dict[str, Any]:
        entry, own = super()._check_entry(entry, groups), self._entry()
        check_entry(own, entry, self._trainer, len(self._params))
        return entry

    def _check_saved(self, saved: ByPlace) -> None:
        for i, state in saved.items():
            refuse_missing(f"parameter {i}", ("step", *MOMENTS), state)

    def _leads(self) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(MOMENTS, ())

    def _make_state(self, active: tuple[int, ...]) -> None:
        self._refresh()
        self.table.start(active)

    def _restore(self, entry: dict[str, Any], saved: ByPlace) -> None:
        self.table.restore(saved)
        self.updates, factors = entry["updates"], entry["factors"]
        self._settle()
        plan = None if factors is None else self.table.plan(tuple(factors["active"]))
        self._rule.load_state_dict(entry, plan)
        self._trainer.load_state_dict(entry["meta"])
        self.meta_objective.weighting.load(entry["weighting"])
