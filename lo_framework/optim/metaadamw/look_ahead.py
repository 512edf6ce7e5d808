"""One look-ahead: the parameters one step ahead as a function of alpha and beta, and the
meta-gradient that comes back through it (arXiv 2605.04055, algorithm 2):

    theta'_i = theta_i - lr_i alpha_k ( u_i + beta_k c_i theta_i )                  (i in group k)
    d/d alpha_k = - sum_i lr_i <d_i, u_i + beta_k c_i theta_i>
    d/d beta_k  = - sum_i lr_i alpha_k c_i <d_i, theta_i>      with d_i = d meta-loss / d theta'_i

so the graph of the meta-loss ends at theta', and two inner products per tensor take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.optim.metaadamw.adam_step import direction
from lo_framework.optim.metaadamw.factors import FactorRule
from lo_framework.optim.metaadamw.groups import Plan
from lo_framework.optim.metaadamw.meta_loss import (
    BatchLosses,
    LossesBefore,
    LossFn,
    MetaObjective,
    slopes_ahead,
)
from lo_framework.optim.metaadamw.parameters import ParameterTable
from lo_framework.optim.metaadamw.preserved import preserved


class MetaGradient(NamedTuple):
    """``values [3]`` of the terms; ``slopes``: derivatives of the meta-loss by ``outputs``, what
    the network gave.
    """

    values: Tensor
    outputs: list[Tensor]
    slopes: list[Tensor]


class TensorStep(NamedTuple):
    """A tensor's next step but for its factors: its group, ``theta`` and ``direction`` (u) flat,
    ``lr`` and ``decay`` (c).
    """

    token: int
    theta: Tensor
    direction: Tensor
    lr: float
    decay: float


def meta_gradient(
    table: ParameterTable,
    rule: FactorRule,
    objective: MetaObjective,
    loss_fn: LossFn,
    batches: tuple[Any, Any, Any],
    updates: int,
    model: nn.Module | None = None,
) -> MetaGradient:
    """The meta-gradient of the network; leaves no trace in the model.

    Args:
        batches: two of training, one of validation (None where no term needs it).
        updates: those made so far.
        model: whose buffers are protected, see `preserved`.
    """
    variant = rule.variant
    places = [
        i for i, p in enumerate(table.params) if p.requires_grad and p in table.optimizer.state
    ]
    last = [p.grad for p in table.params]  # `preserved` hides them
    with preserved(table.params, model) as rewind:
        losses = BatchLosses(loss_fn, batches, rewind)
        train = losses.value(0)
        if any(p.grad is not None for p in table.params):
            raise UserError("loss_fn(batch) must return the loss and must not call backward")
        params = [table.params[i] for i in places]
        maybe = torch.autograd.grad(train, params, allow_unused=True) if places else ()
        active = tuple(i for i, g in zip(places, maybe) if g is not None)
        if not active:
            raise UserError(
                "meta_step: the loss of the first batch depends on none of the parameters that "
                "have moved"
            )
        plan = table.plan(active)
        grads = [g for g in maybe if g is not None]
        params = [table.params[i] for i in plan.active]
        valid = losses.value(2, graph=False) if objective.needs_valid_before(variant) else None
        # As released, the features are those of the last gradient, at the last step's time, after
        # the moments saw it.
        fresh = variant.features_of_fold
        seen = grads if fresh else [last[i] for i in plan.active]
        with torch.enable_grad():
            factors = rule(table, plan, seen, updates if fresh else updates - 1)
        steps = steps_of(table, plan, grads, variant.fold)
        alphas, betas = factors.alpha.tolist(), factors.beta.tolist()
        with torch.no_grad():
            for p, step in zip(params, steps):
                p.copy_(ahead(step, alphas[step.token], betas[step.token]).view_as(p))
        before = LossesBefore(train.detach(), valid, grads, [step.theta for step in steps])
        tokens = [step.token for step in steps]
        slopes = slopes_ahead(losses, params, tokens, before, factors.lambdas, objective, variant)
    by_alpha, by_beta = pulled_back(
        steps, slopes.params, factors.alpha.detach(), factors.beta.detach()
    )
    pulled = [(factors.alpha, by_alpha)]
    if variant.beta_learns:
        pulled.append((factors.beta, by_beta))
    if variant.learned_lambdas:
        pulled.append((factors.lambdas, slopes.lambdas))
    return MetaGradient(slopes.values, [x for x, _ in pulled], [d for _, d in pulled])


@torch.no_grad()
def steps_of(
    table: ParameterTable, plan: Plan, grads: Sequence[Tensor], fold: bool
) -> list[TensorStep]:
    """The next step of each tensor of ``plan`` (``fold``), or the last one once more."""
    steps = []
    for i, token, g in zip(plan.active, plan.grouping.index.tolist(), grads, strict=True):
        p, group = table.params[i], table.group(i)
        n = table.numbers(group, table.ages[i] + fold, 0.0, group["weight_decay"])
        moments = {name: x.clone() for name, x in table.optimizer.state[p].items()}
        u = direction(moments, g if fold else None, n).reshape(-1)
        theta = p.detach().reshape(-1).to(u.dtype, copy=True)
        steps.append(TensorStep(token, theta, u, float(group["lr"]), float(n.shrink)))
    return steps


def ahead(step: TensorStep, alpha: float, beta: float) -> Tensor:
    """theta'."""
    update = step.direction + (beta * step.decay) * step.theta
    return step.theta - (step.lr * alpha) * update


def pulled_back(
    steps: Sequence[TensorStep], slopes: Sequence[Tensor], alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives by alpha and beta, ``[G]``, from ``slopes``, those by theta'."""
    by_alpha, by_beta = torch.zeros_like(alpha), torch.zeros_like(beta)
    for step, slope in zip(steps, slopes, strict=True):
        d, k = slope.reshape(-1).to(step.theta.dtype), step.token
        along = torch.dot(d, step.direction).to(alpha)
        decayed = step.decay * torch.dot(d, step.theta).to(alpha)
        by_alpha[k] -= step.lr * (along + beta[k] * decayed)
        by_beta[k] -= step.lr * alpha[k] * decayed
    return by_alpha, by_beta
