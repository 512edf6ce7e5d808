"""One look-ahead: the meta-gradient of the network, from batches (arXiv 2605.04055, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lo_framework.objectives.weighting import Weighting
from lo_framework.optim.metaadam.attending import Attending, Seen
from lo_framework.optim.metaadam.look_ahead import Move, ahead, direction_of, pulled_back
from lo_framework.optim.metaadam.members import Members
from lo_framework.optim.metaadam.meta_loss import Here, LossFn, loss_at, slopes_ahead
from lo_framework.optim.metaadam.plan import Plan
from lo_framework.optim.metaadam.untouched import untouched
from lo_framework.spec import UserError


class MetaGradient(NamedTuple):
    """``values [3]`` of the terms; ``slopes`` of the meta-loss by what the network gave, its
    ``outputs``.
    """

    values: Tensor
    outputs: list[Tensor]
    slopes: list[Tensor]


class Goal(NamedTuple):
    """What the network is trained for; see `meta_loss`."""

    terms: tuple[str, ...]
    weighting: Weighting | None
    order: str


def seen_by(members: Members, plan: Plan, grads: Sequence[Tensor | None]) -> Seen:
    places = plan.active
    betas = [members.group(i)["betas"] for i in places]
    ages = [members.ages[i] for i in places]
    return Seen([members.params[i] for i in places], grads, members.states(places), ages, betas)


def meta_gradient(
    members: Members,
    attending: Attending,
    goal: Goal,
    loss_fn: LossFn,
    batches: tuple[Any, Any, Any],
    updates: int,
    model: nn.Module | None = None,
) -> MetaGradient:
    """Leaves no trace in the model.

    Args:
        batches: two of training, one of validation (None where no term needs it).
        updates: those made so far.
        model: whose buffers are protected, see `untouched`.
    """
    rules = attending.differences
    places = [
        i for i, p in enumerate(members.params) if p.requires_grad and p in members.optimizer.state
    ]
    last = [p.grad for p in members.params]  # `untouched` hides them
    with untouched(members.params, model) as rewind:
        rewind()
        train = loss_at(loss_fn, batches[0])
        if any(p.grad is not None for p in members.params):
            raise UserError("loss_fn(batch) must return the loss and must not call backward")
        params = [members.params[i] for i in places]
        found = torch.autograd.grad(train, params, allow_unused=True) if places else ()
        active = tuple(i for i, g in zip(places, found) if g is not None)
        if not active:
            raise UserError(
                "meta_step: the loss of the first batch depends on none of the parameters that have moved"
            )
        plan = members.plan(active)
        grads = [g for g in found if g is not None]
        params = [members.params[i] for i in plan.active]
        valid = None
        measured = goal.order == "exact" or rules.published_terms
        if ("loss_decrease" in goal.terms and measured) or (
            "gen_gap" in goal.terms and not rules.gap_ahead
        ):
            rewind()
            valid = loss_at(loss_fn, batches[2], graph=False)
        # As released, the features are those of the last gradient, at the last step's time, after
        # the moments saw it.
        seen = list(grads) if rules.features_of_fold else [last[i] for i in plan.active]
        with torch.enable_grad():
            factors = attending(
                plan, seen_by(members, plan, seen), updates - (not rules.features_of_fold)
            )
        moves = moves_of(members, plan, grads, rules.fold)
        alphas, betas = factors.alpha.tolist(), factors.beta.tolist()
        with torch.no_grad():
            for p, move in zip(params, moves):
                p.copy_(ahead(move, alphas[move.token], betas[move.token]).view_as(p))
        ahead_of = slopes_ahead(
            loss_fn,
            batches,
            rewind,
            params,
            [move.token for move in moves],
            Here(train.detach(), valid, grads, [move.theta for move in moves]),
            factors.lambdas,
            goal.terms,
            goal.weighting,
            goal.order,
            rules,
        )
    by_alpha, by_beta = pulled_back(
        moves, ahead_of.params, factors.alpha.detach(), factors.beta.detach()
    )
    pulled = [(factors.alpha, by_alpha)]
    if rules.beta_learns:
        pulled.append((factors.beta, by_beta))
    if rules.learned_lambdas:
        pulled.append((factors.lambdas, ahead_of.lambdas))
    return MetaGradient(ahead_of.values, [x for x, _ in pulled], [d for _, d in pulled])


@torch.no_grad()
def moves_of(members: Members, plan: Plan, grads: Sequence[Tensor], fold: bool) -> list[Move]:
    """The next step's (``fold``), or the last one's once more, of each tensor of ``plan``."""
    moves = []
    for i, token, g in zip(plan.active, plan.grouping.index.tolist(), grads, strict=True):
        p, group, state = (
            members.params[i],
            members.group(i),
            members.optimizer.state[members.params[i]],
        )
        n = members.numbers(group, members.ages[i] + fold, 0.0, group["weight_decay"])
        direction = direction_of(g if fold else None, state, n).reshape(-1)
        theta = p.detach().reshape(-1).to(direction.dtype, copy=True)
        moves.append(Move(token, theta, direction, float(group["lr"]), float(n.shrink)))
    return moves
