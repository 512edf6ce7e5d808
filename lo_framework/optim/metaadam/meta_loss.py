"""The meta-loss of MetaAdamW at the parameters one step ahead, and its derivative by them (arXiv 2605.04055).

The terms and their weighting are those of the outer loop, `lo_framework.objectives`. ``exact`` differentiates the
gradient term's |g2|^2 and cosine through the Hessian; ``difference`` takes that product as a difference of two
gradients, for models that cannot be differentiated twice; ``first`` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.objectives.terms import TERMS, cosine, generalization_gap, gradient_alignment, loss_decrease
from lo_framework.objectives.weighting import Weighting
from lo_framework.optim.metaadam.differences import Differences
from optimizees.spec import UserError, nearest

OBJECTIVES = (*TERMS, "combined")
ORDERS = ("exact", "difference", "first")
RADIUS = 1e-3  # of the difference of gradients, relative to the parameters' norm

LossFn = Callable[[Any], Tensor]


def terms_of(objective: str) -> tuple[str, ...]:
    """Raises UserError for an unknown objective."""
    if objective not in OBJECTIVES:
        raise UserError(
            f'unknown objective "{objective}"{nearest(objective, OBJECTIVES)}; known: {", ".join(OBJECTIVES)}'
        )
    return TERMS if objective == "combined" else (objective,)


class Here(NamedTuple):
    """What was measured before the step: losses of the first and the validation batch, and gradients of the first."""

    train: Tensor
    valid: Tensor | None
    grads: Sequence[Tensor]


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
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"loss_fn(batch) must return the loss, one number with its graph; it returned {found}")
    return loss.reshape(())


def slopes_ahead(
    loss_fn: LossFn, batches: tuple[Any, Any, Any], rewind: Callable[[], None], params: Sequence[Tensor],
    tokens: Sequence[int], here: Here, lambdas: Tensor, terms: Sequence[str], weighting: Weighting | None, order: str,
    differences: Differences,
) -> Slopes:  # fmt: skip
    """With ``params`` where the look-ahead put them.

    Args:
        batches: first and second of training, validation.
        tokens: group of each parameter.
        lambdas: ``[2, G]``, weights of flatness and direction.
        weighting: of the three terms; None: the one in use as it is.
    """
    published = differences.published_terms
    lambdas = lambdas.detach().requires_grad_()
    values = [torch.zeros_like(here.train, dtype=lambdas.dtype) for _ in TERMS]
    after = second = None
    wanted: list[Tensor] = []
    if "gradient" in terms or ("gen_gap" in terms and differences.gap_ahead):
        rewind()
        second = loss_at(loss_fn, batches[1])
    if "gradient" in terms:
        assert second is not None
        found = torch.autograd.grad(
            second, params, create_graph=order == "exact", retain_graph=True, materialize_grads=True
        )
        if order != "exact":
            wanted = [g.detach().requires_grad_() for g in found]
        values[0] = _gradient_term(here.grads, wanted or found, tokens, lambdas, published)
    if "loss_decrease" in terms or ("gen_gap" in terms and differences.gap_ahead):
        rewind()
        after = loss_at(loss_fn, batches[2])
    if "loss_decrease" in terms:
        values[1] = loss_decrease(after, here.valid, published=published)  # type: ignore[arg-type]
    if "gen_gap" in terms:
        pair = (second, after) if differences.gap_ahead else (here.train, here.valid)
        values[2] = generalization_gap(*pair)  # type: ignore[arg-type]
    stacked = torch.stack([x.to(lambdas) for x in values])
    total = stacked[TERMS.index(terms[0])] if weighting is None else weighting.total(stacked)
    slopes = [torch.zeros_like(p) for p in params]
    by_lambdas = torch.zeros_like(lambdas)
    if total.requires_grad:
        sources = [*params, lambdas, *wanted]
        pulled = torch.autograd.grad(total, sources, allow_unused=True, materialize_grads=True)
        slopes, by_lambdas = list(pulled[: len(params)]), pulled[len(params)]
        if wanted and order == "difference":
            product = _product(loss_fn, batches[1], rewind, params, found, pulled[len(params) + 1 :])
            slopes = [a + b for a, b in zip(slopes, product)]
    return Slopes(stacked.detach(), slopes, by_lambdas)


def _gradient_term(
    first: Sequence[Tensor], second: Sequence[Tensor], tokens: Sequence[int], lambdas: Tensor, published: bool
) -> Tensor:
    num = lambdas.shape[1]
    square1, square2, dots = ([lambdas.new_zeros(()) for _ in range(num)] for _ in range(3))
    for k, a, b in zip(tokens, first, second, strict=True):
        a, b = a.reshape(-1).to(lambdas.dtype), b.reshape(-1).to(lambdas.dtype)
        square1[k], square2[k], dots[k] = square1[k] + a @ a, square2[k] + b @ b, dots[k] + a @ b
    one, two, dot = (torch.stack(x) for x in (square1, square2, dots))
    # Relative to the gradient before the step: neither the number of parameters nor the loss's scale counts.
    flatness = two if published else two / one.clamp_min(1e-20)
    return gradient_alignment(flatness, cosine(dot, one, two), lambdas[0], lambdas[1], published=published)


def _product(
    loss_fn: LossFn, batch: Any, rewind: Callable[[], None], params: Sequence[Tensor], at: Sequence[Tensor],
    along: Sequence[Tensor],
) -> list[Tensor]:  # fmt: skip
    """Hessian times ``along``, from the gradients ``at`` here and those a little further."""
    size = torch.nn.utils.get_total_norm([p.detach() for p in params])
    length = torch.nn.utils.get_total_norm(list(along)).clamp_min(1e-30)
    step = RADIUS * size.clamp_min(1e-3) / length
    home = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, d in zip(params, along):
            p.add_(step.to(p) * d)
    rewind()
    further = torch.autograd.grad(loss_at(loss_fn, batch), params, materialize_grads=True)
    with torch.no_grad():
        for p, x in zip(params, home):
            p.copy_(x)
    return [(b - a) / step.to(a) for a, b in zip(at, further)]
