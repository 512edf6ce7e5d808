"""``MetaAdamW``: AdamW whose learning rate and decay are modulated by attention over groups of
parameters.

    optimizer = MetaAdamW(model.named_parameters(), lr=1e-3)
    ...
    optimizer.step()
    if optimizer.meta_due:
        optimizer.meta_step(lambda batch: loss_fn(model(batch[0]), batch[1]), batch_1, batch_2, valid_batch)

Zhao & Liu, "MetaAdamW" (arXiv 2605.04055), corrected. A thin class: features, groups and the
network are those of the ``attention`` learned optimizer, terms and weighting those of the outer
loop, the rest is in ``metaadam``; how to use it is told in ``docs/metaadamw.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.learned.attention import Attention
from lo_framework.objectives.terms import TERMS
from lo_framework.objectives.weighting import HUW, make_weighting
from lo_framework.optim.metaadam import saving
from lo_framework.optim.metaadam.adam_step import update
from lo_framework.optim.metaadam.attending import Attending
from lo_framework.optim.metaadam.differences import find_differences
from lo_framework.optim.metaadam.members import Members, check_group
from lo_framework.optim.metaadam.meta_gradient import Goal, meta_gradient, seen_by
from lo_framework.optim.metaadam.meta_loss import ORDERS, LossFn, terms_of
from lo_framework.optim.metaadam.network import (
    Source,
    as_learned,
    check_agrees,
    hyper_of,
    make_network,
    whole,
)
from lo_framework.optim.metaadam.outer import MetaOptimizer, mean_over_processes
from lo_framework.optim.metaadam.plan import Grouped, Held, Plan
from lo_framework.optim.metaadam.untouched import as_outside
from lo_framework.spec import UserError, nearest


class MetaAdamW(torch.optim.Optimizer):
    """AdamW with an attention network that gives every group of parameters a factor alpha of its
    learning rate and a factor beta of its decay, and that `meta_step` trains.

    Args:
        params: named parameters (fine-grained groups look at names), parameters or parameter
            groups; a group may set ``lr``, ``betas``, ``eps`` and ``weight_decay``.
        lr, betas, eps, weight_decay: AdamW's; None: 1e-3, (0.9, 0.999), 1e-8, 1e-2, or those of the
            optimizer that ``attention`` takes over.
        alpha_range, beta_range: factors are in 1 +- range / 2; 0 is AdamW.
        features: "basic", "norm_basic", "basic_plus", "norm_basic_plus", "enhanced", or "tokens".
        grouping: "fine_grained" (type, depth, vector or not), "original" (parameter groups),
            "tensor"; a dict of labels to regular expressions, lists of names or None (all others);
            or a function of name and tensor.
        attention: sizes of the network, as ``{"layers": 8, "width": 8, "heads": 4}``; or an
            ``attention`` optimizer that was meta-trained (or its file), whose features, ranges and
            grouping then hold.
        meta_every: `meta_due` says so after every so many steps.
        objective: "combined", "gradient", "loss_decrease" or "gen_gap".
        weighting: of the combined terms: "huw", "sum", or "fixed:weights=1x0.3x0.3".
        priorities: of huw, for the gradient, the loss and the gap.
        decay: "decoupled", or "scaled": by 1 / (1 - beta1^t), as released.
        v_norms, time, gating: the second moment and the time as features; learned factors on
            features.
        total_steps: of this training, for the time feature; None: a time that saturates after some
            thousands.
        attend_every: new factors in every so many steps.
        order: of the meta-gradient's Hessian-vector product: as a "difference" of two gradients,
            "exact" (for models that can be differentiated twice), or "first": without it. None:
            "difference", or "exact" as published. Only "exact" measures the held-out loss before
            the step, by which the one after it is divided; the others take it from the slope after
            it.
        meta_lr: of the network's own optimizer.
        reproduce: "paper" or "reference" (the released code) in all that they do differently.

    Parameters without a gradient take no part in a step. State is float32 for bfloat16 and float16
    parameters.

    Raises:
        UserError: arguments that cannot be; by ``step``: sparse gradients.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        *,
        alpha_range: float = 1.0,
        beta_range: float = 1.0,
        features: str = "basic",
        grouping: Grouped = "fine_grained",
        attention: Source = None,
        meta_every: int = 100,
        objective: str = "combined",
        weighting: str = "huw",
        priorities: Sequence[float] | None = None,
        decay: str | None = None,
        v_norms: bool = True,
        time: bool = True,
        gating: bool = False,
        total_steps: int | None = None,
        attend_every: int = 1,
        order: str | None = None,
        meta_lr: float | None = None,
        reproduce: str | None = None,
    ) -> None:
        self.differences = find_differences(reproduce)
        order = ("exact" if reproduce else "difference") if order is None else order
        self._terms, self.objective, self.order = terms_of(objective), objective, order
        for name, value, known in (
            ("order", order, ORDERS),
            ("decay", decay, (None, "decoupled", "scaled")),
        ):
            if value not in known:
                names = [x for x in known if x]
                raise UserError(
                    f'unknown {name} "{value}"{nearest(str(value), names)}; known: {", ".join(names)}'
                )
        self.meta_every, self.attend_every = (
            whole("meta_every", meta_every),
            whole("attend_every", attend_every),
        )
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps)
        scaled = self.differences.scaled_decay if decay is None else decay == "scaled"
        kind = grouping if isinstance(grouping, str) else "tensor"
        self.network = make_network(
            attention,
            self.differences,
            features=features,
            grouping=kind,
            v_norms=v_norms,
            time=time,
            gating=gating,
            alpha_range=alpha_range,
            beta_range=beta_range,
        )
        taken = attention is not None and not isinstance(attention, Mapping)
        if taken:
            check_agrees(
                self.network,
                MetaAdamW.__init__.__kwdefaults__ or {},
                features=features,
                v_norms=v_norms,
                time=time,
                gating=gating,
                alpha_range=alpha_range,
                beta_range=beta_range,
                **({"grouping": grouping} if isinstance(grouping, str) else {}),
            )
        self._grouping: Grouped = (
            self.network.config.grouping if taken and isinstance(grouping, str) else grouping
        )
        if self.network.config.features == "tokens" and total_steps is None:
            raise UserError('features "tokens" look at how far training is: give total_steps')
        weighted = make_weighting(weighting, priorities)
        if priorities is not None and objective != "combined":
            raise UserError('priorities weigh the terms of objective="combined"')
        if isinstance(weighted, HUW) and self.differences.published_terms:
            weighted.bound = self.differences.huw_bound
        self.weighting = weighted if objective == "combined" else None
        self._meta = MetaOptimizer(self.network, self.differences, meta_lr)
        self._attending = Attending(self.network, self.differences, self.total_steps)
        self.updates = 0
        self._ready, self._stale = False, False
        self._factors: Held | None = None
        own = hyper_of(self.network)
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, own | {name: value for name, value in given.items() if value is not None}
        )
        published = self.differences.network == "published"
        self.members = Members(self, self._grouping, published, scaled)
        self.network.spec.check(self.members.plan(tuple(range(len(self.members.params)))).grouping)
        self.members.forget()  # the model may be moved before the first step
        self._ready = True

    @property
    def meta_due(self) -> bool:
        """Whether `meta_every` steps have been made since the last time it was so."""
        return self.updates > 0 and self.updates % self.meta_every == 0

    @property
    def skipped(self) -> int:
        """Meta steps left out because their gradient was not finite."""
        return self._meta.skipped

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            if self._ready:
                self.members.gather()
                self._stale = (
                    True  # what is deep in the model, and who shares a group, may be others now
                )
        except UserError:
            self.param_groups.pop()
            if self._ready:
                self.members.gather()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update from the parameters' gradients; ``closure`` recomputes them first and its
        result is returned.
        """
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self._look()
        active = self.members.with_gradient()
        if active:
            plan = self.members.plan(active)
            self.network.spec.check(plan.grouping)
            with torch.autocast(
                self.members.device.type, enabled=False
            ):  # half-precision products are for models
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
            UserError: before the first step, without a needed batch, or a loss_fn that gives no
                loss.
        """
        if not self.updates:
            raise UserError("meta_step looks one step ahead of the last one: make a step first")
        if valid is None and self._terms != ("gradient",):
            raise UserError(
                f'objective "{self.objective}" needs a batch of validation data: meta_step(..., valid)'
            )
        self._look()
        goal, batches = Goal(self._terms, self.weighting, self.order), (train_1, train_2, valid)
        kind = self.members.device.type
        outside = as_outside(loss_fn, kind)
        with torch.enable_grad(), torch.autocast(kind, enabled=False):
            found = meta_gradient(
                self.members, self._attending, goal, outside, batches, self.updates, model
            )
            self._meta.take(found.outputs, found.slopes)
        values = mean_over_processes(found.values)
        self._meta.step(values)
        weights = tuple(float(name in self._terms) for name in TERMS)
        if self.weighting is not None:
            weights = self.weighting.weights()
            huw_lr = self._meta.lr if self.differences.huw_lr is None else None
            self.weighting.learn(values, huw_lr)
        self._stale = True
        rows = [
            row
            for row in zip(TERMS, values.tolist(), weights, strict=True)
            if row[0] in self._terms
        ]
        return {name: value for name, value, _ in rows} | {
            f"weight/{name}": weight for name, _, weight in rows
        }

    @torch.no_grad()
    def factors(self) -> dict[str, tuple[float, float]]:
        """(alpha, beta) of every group at the last step, by its label."""
        if self._factors is None:
            return {}
        _, labels, alpha, beta = self._factors
        return {k: (a, b) for k, a, b in zip(labels, alpha.tolist(), beta.tolist(), strict=True)}

    def log(self, writer: Any, step: int, prefix: str = "meta_adamw") -> None:
        """Write the factors to a TensorBoard ``SummaryWriter``."""
        for label, (alpha, beta) in self.factors().items():
            writer.add_scalar(f"{prefix}/alpha/{label}", alpha, step)
            writer.add_scalar(f"{prefix}/beta/{label}", beta, step)

    def learned(self) -> Attention:
        """The same update rule as a learned optimizer (for `Learned`,
        ``checkpoint.save_optimizer``, `eval`), with the settings of the first parameter group.

        Raises:
            UserError: the groups are the user's own, which no other model has; the rule is a
                published one, which learned optimizers have not.
        """
        if not isinstance(self._grouping, str):
            raise UserError(
                "groups of one's own mean nothing on another model: this network cannot be given away"
            )
        if self.differences.network == "published" or self.members.scaled:
            raise UserError(
                "a learned optimizer has no scaled decay and no published groups: it cannot be given away"
            )
        return as_learned(self.network, self.param_groups[0])

    def state_dict(self) -> dict[str, Any]:
        """As any optimizer's, and ``"metaadamw"``: the network and what trains it. References, not
        copies.
        """
        self._look()
        result = super().state_dict()
        result["metaadamw"] = saving.dump(self)
        return result

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            UserError: the state is of another optimizer class, network or grouping, or of other
                parameters.
        """
        self._look()
        saving.load(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            "a MetaAdamW optimizer is copied and saved through state_dict() and load_state_dict()"
        )

    def _update(self, plan: Plan) -> None:
        members = self.members
        if self.updates == 0:
            self._settle()
        lost = [members.start(i) for i in plan.active]
        if any(lost):
            plan = members.plan(plan.active)
        held = self._factors
        if (
            self._stale
            or held is None
            or held.active != plan.active
            or self.updates % self.attend_every == 0
        ):
            seen = seen_by(members, plan, [members.params[i].grad for i in plan.active])
            found = self._attending(plan, seen, self.updates)
            held = Held(plan.active, plan.grouping.labels, found.alpha, found.beta)
            self._factors, self._stale = held, False
        _, _, alpha, beta = held
        # On an accelerator the factors stay there: nothing waits for them.
        alphas, betas = (
            (alpha.tolist(), beta.tolist()) if alpha.device.type == "cpu" else (alpha, beta)
        )
        for each in plan.sets:
            group = self.param_groups[each.group]
            lr = float(group["lr"]) if alpha.device.type == "cpu" else group["lr"]
            rate = lr * alphas[each.token]
            shrink = rate * betas[each.token] * group["weight_decay"]
            params = [members.params[i] for i in each.members]
            if isinstance(rate, Tensor):
                rate, shrink = rate.to(params[0].device), shrink.to(params[0].device)
            numbers = members.numbers(group, members.ages[each.members[0]] + 1, rate, shrink)
            update(params, [p.grad for p in params], members.states(each.members), numbers)  # type: ignore[misc]
        members.older(plan.active)
        self.updates += 1

    def _look(self) -> None:
        if not self.members.current():
            self.members.gather()
            self._stale = True

    def _settle(self) -> None:
        """Bring the network to where the parameters are: many training loops move the model late."""
        self._attending.settle(self.members.device, self.members.dtype)
        self.members.forget()
