"""The meta-loss of MetaAdamW at the parameters one step ahead, and its derivative by them (arXiv
2605.04055).

The terms and their weighting are those of the outer loop, `lo_framework.objectives`. The gradient
term's |g2|^2 and cosine are differentiated through the Hessian: ``exact``; as a ``difference`` of
two gradients, which is cheaper and serves models that cannot be differentiated twice; or not at
all, ``first``. The last two save a forward pass as well: the held-out loss before the step, which
only scales its term, comes from the loss after it and its slope there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.objectives.terms import (
    TERMS,
    TINY_LOSS,
    TINY_SQUARE,
    cosine,
    generalization_gap,
    gradient_alignment,
    loss_decrease,
)
from lo_framework.objectives.weighting import Weighting
from lo_framework.optim.metaadam.differences import Differences
from lo_framework.spec import UserError, first_line, nearest

OBJECTIVES = (*TERMS, "combined")
ORDERS = ("exact", "difference", "first")
# of the difference of gradients, relative to the parameters' norm and in roots of their precision
RADIUS = 3.0
FURTHEST = 1e-2
LARGEST_LOG = 10.0  # of a loss after and before a step that raised it

LossFn = Callable[[Any], Tensor]


def terms_of(objective: str) -> tuple[str, ...]:
    """Raises UserError for an unknown objective."""
    if objective not in OBJECTIVES:
        raise UserError(
            f'unknown objective "{objective}"{nearest(str(objective), OBJECTIVES)}; known: {", ".join(OBJECTIVES)}'
        )
    return TERMS if objective == "combined" else (objective,)


class Here(NamedTuple):
    """Before the step: losses of the first and the validation batch (None: not measured), gradients
    of the first.
    """

    train: Tensor
    valid: Tensor | None
    grads: Sequence[Tensor]
    params: Sequence[Tensor]  # flat


class Slopes(NamedTuple):
    """Values of the terms (0 for one that is not in use), and derivatives of the weighted total."""

    values: Tensor  # [3]
    params: list[Tensor]
    lambdas: Tensor  # [2, G]


def loss_at(loss_fn: LossFn, batch: Any, graph: bool = True) -> Tensor:
    """0-d; raises UserError for what is no loss."""
    with torch.set_grad_enabled(graph):
        loss = loss_fn(batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        found = (
            f"a tensor of shape {tuple(loss.shape)}"
            if isinstance(loss, Tensor)
            else type(loss).__name__
        )
        raise UserError(
            f"loss_fn(batch) must return the loss, one number with its graph; it returned {found}"
        )
    if graph and not loss.requires_grad:
        raise UserError(
            "loss_fn(batch) must return the loss with its graph; it returned one without a graph"
        )
    return loss.reshape(())


def slopes_ahead(
    loss_fn: LossFn,
    batches: tuple[Any, Any, Any],
    rewind: Callable[[], None],
    params: Sequence[Tensor],
    tokens: Sequence[int],
    here: Here,
    lambdas: Tensor,
    terms: Sequence[str],
    weighting: Weighting | None,
    order: str,
    differences: Differences,
) -> Slopes:
    """With ``params`` where the look-ahead put them.

    Args:
        batches: first and second of training, validation.
        tokens: group of each parameter.
        lambdas: ``[2, G]``, weights of flatness and direction.
        weighting: of the three terms; None: the one in use as it is.
    """
    exact = order == "exact" and "gradient" in terms
    ahead = "gen_gap" in terms and differences.gap_ahead
    second = after = _Point(here.train, [])
    if "gradient" in terms or ahead:
        rewind()
        second = _point(loss_fn, batches[1], params, graph=exact)
    if "loss_decrease" in terms or ahead:
        rewind()
        after = _point(loss_fn, batches[2], params)
    # What the terms are made of becomes leaves: their own derivatives by theta' are known, or one
    # product away.
    lambdas, train, valid = _leaf(lambdas), _leaf(second.loss), _leaf(after.loss)
    gradients = [_leaf(g) for g in second.grads]
    with torch.enable_grad():
        values = [torch.zeros_like(train) for _ in TERMS]
        published = differences.published_terms
        if "gradient" in terms:
            values[0] = _gradient_term(here.grads, gradients, tokens, lambdas, published)
        if "loss_decrease" in terms:
            before = _size_before(after, params, here.params) if here.valid is None else here.valid
            values[1] = loss_decrease(valid, before, published=published)
        if "gen_gap" in terms:
            pair = (train, valid) if ahead else (here.train, here.valid)
            values[2] = generalization_gap(*pair)  # type: ignore[arg-type]
        stacked = torch.stack([x.to(lambdas) for x in values])
        total = stacked[TERMS.index(terms[0])] if weighting is None else weighting.total(stacked)
    slopes = [torch.zeros_like(p) for p in params]
    if not total.requires_grad:
        return Slopes(stacked.detach(), slopes, torch.zeros_like(lambdas))
    leaves = [lambdas, train, valid, *gradients]
    pulled = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    by_lambdas, by_train, by_valid, *along = pulled
    for point, by in ((second, by_train), (after, by_valid)):
        if (weight := float(by)) != 0:
            slopes = [a + weight * g.detach() for a, g in zip(slopes, point.grads)]
    if "gradient" in terms and order != "first":
        product: Sequence[Tensor]
        if exact:
            product = _exact_product(params, second.grads, along)
        else:
            product = _product(loss_fn, batches[1], rewind, params, second.grads, along)
        slopes = [a + b for a, b in zip(slopes, product)]
    return Slopes(stacked.detach(), slopes, by_lambdas)


class _Point(NamedTuple):
    """The loss of a batch and its gradient."""

    loss: Tensor
    grads: Sequence[Tensor]


def _point(loss_fn: LossFn, batch: Any, params: Sequence[Tensor], graph: bool = False) -> _Point:
    loss = loss_at(loss_fn, batch)
    grads = torch.autograd.grad(
        loss, params, create_graph=graph, allow_unused=True, materialize_grads=True
    )
    return _Point(loss.detach(), grads)


def _size_before(after: _Point, params: Sequence[Tensor], home: Sequence[Tensor]) -> Tensor:
    """Of the loss at ``home``: to first order of its logarithm, or of itself where the step took it
    over zero, or near.
    """
    loss = after.loss.to(home[0].dtype)
    size = loss.abs().clamp_min(TINY_LOSS)
    risen = torch.zeros_like(loss)
    for g, p, x in zip(after.grads, params, home, strict=True):
        risen += torch.dot(g.reshape(-1).to(x), p.detach().reshape(-1).to(x) - x).to(loss.device)
    grown = loss.sign() * risen / size
    by_log = size * torch.exp(-grown.clamp(-1.0, LARGEST_LOG))
    over_zero = (grown < -1) | ((loss <= 0) & (grown > 1))
    return torch.where(over_zero, (loss - risen).abs().maximum(by_log), by_log)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _gradient_term(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    tokens: Sequence[int],
    lambdas: Tensor,
    published: bool,
) -> Tensor:
    num = lambdas.shape[1]
    square1, square2, dots = ([lambdas.new_zeros(()) for _ in range(num)] for _ in range(3))
    for k, a, b in zip(tokens, first, second, strict=True):
        a, b = a.reshape(-1).to(lambdas.dtype), b.reshape(-1).to(lambdas.dtype)
        for sums, x in ((square1, a @ a), (square2, b @ b), (dots, a @ b)):
            sums[k] = sums[k] + x.to(lambdas.device)  # a model may lie on several devices
    one, two, dot = (torch.stack(x) for x in (square1, square2, dots))
    # Relative to the gradient before the step: neither the number of parameters nor the loss's
    # scale counts. Where that is zero, as of a head that the first batch has no labels for, there
    # is nothing to be relative to.
    flatness = (
        two if published else torch.where(one > TINY_SQUARE, two / one.clamp_min(TINY_SQUARE), 0.0)
    )
    return gradient_alignment(
        flatness, cosine(dot, one, two), lambdas[0], lambdas[1], published=published
    )


def _exact_product(
    params: Sequence[Tensor], at: Sequence[Tensor], along: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Hessian times ``along``, from the graph of the gradients ``at``; where one has none, its
    derivative is zero.
    """
    pairs = [(g, d) for g, d in zip(at, along) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(p) for p in params]
    grads, slopes = zip(*pairs)
    try:
        return torch.autograd.grad(grads, params, slopes, allow_unused=True, materialize_grads=True)
    except RuntimeError as error:
        if "derivative" not in str(error):
            raise
        reason = first_line(error)
        raise UserError(
            f'order="exact" differentiates twice: use order="difference" or "first" ({reason})'
        ) from None


def _product(
    loss_fn: LossFn,
    batch: Any,
    rewind: Callable[[], None],
    params: Sequence[Tensor],
    at: Sequence[Tensor],
    along: Sequence[Tensor],
) -> list[Tensor]:
    """Hessian times ``along``, from the gradients ``at`` here and those a little further."""
    size = torch.nn.utils.get_total_norm([p.detach() for p in params])
    length = torch.nn.utils.get_total_norm(list(along)).clamp_min(1e-30)
    precision = max(torch.finfo(p.dtype).eps for p in params)
    step = min(RADIUS * precision**0.5, FURTHEST) * size.clamp_min(1e-3) / length
    home = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, d in zip(params, along):
            p.add_(step.to(p) * d)
    rewind()
    further = _point(loss_fn, batch, params).grads
    with torch.no_grad():
        for p, x in zip(params, home):
            p.copy_(x)
    return [(b - a) / step.to(a) for a, b in zip(at, further)]
