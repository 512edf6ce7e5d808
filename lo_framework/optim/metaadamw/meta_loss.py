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
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lo_framework.errors import UserError, check_numbers, choose, first_line
from lo_framework.objectives.terms import (
    TERMS,
    TINY_LOSS,
    TINY_SQUARE,
    cosine,
    generalization_gap,
    gradient_alignment,
    loss_decrease,
)
from lo_framework.objectives.weighting import HUW, FixedWeights, Weighting, make_weighting
from lo_framework.optim.metaadamw.published import Variant

OBJECTIVES = (*TERMS, "combined")
ORDERS = ("exact", "difference", "first")
# of the difference of gradients, relative to the parameters' norm and in roots of their precision
RADIUS = 3.0
FURTHEST = 1e-2
LARGEST_LOG = 10.0  # of a loss after and before a step that raised it

LossFn = Callable[[Any], Tensor]


class MetaObjective(NamedTuple):
    """The goal of the network: the ``terms`` in use, and how all are weighted; ``order``: see
    `MetaConfig`.
    """

    name: str
    terms: tuple[str, ...]
    weighting: Weighting
    order: str

    @property
    def weighted(self) -> str:
        """The kind of weighting, in saved states: a term alone has none."""
        return type(self.weighting if len(self.terms) > 1 else None).__name__

    def needs_valid_before(self, variant: Variant) -> bool:
        """Whether the held-out loss before the step is measured."""
        measured = self.order == "exact" or variant.published_terms
        gap = "gen_gap" in self.terms and not variant.gap_ahead
        return gap or ("loss_decrease" in self.terms and measured)

    def looks_at(self, variant: Variant) -> tuple[bool, bool]:
        """Whether the losses of the second batch and of the held-out one are evaluated after the
        step.
        """
        gap = "gen_gap" in self.terms and variant.gap_ahead
        return "gradient" in self.terms or gap, "loss_decrease" in self.terms or gap


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """How the network is trained online.

    Attributes:
        meta_every: `MetaAdamW.meta_due` says so after every so many steps.
        meta_lr: of the network's own optimizer; 0: 3e-3, or 1e-4 as published.
        objective: "combined", "gradient", "loss_decrease" or "gen_gap".
        weighting: of the combined terms: "huw", "sum" or "fixed".
        weights: of "fixed", for the gradient, the loss and the gap.
        priorities: of "huw", likewise.
        order: of the meta-gradient's Hessian-vector product: as a "difference" of two gradients,
            "exact" (for models that can be differentiated twice), or "first": without it. "usual":
            "difference", or "exact" as published. Only "exact" measures the held-out loss before
            the step, by which the one after it is divided; the others take it from the slope after
            it.
    """

    meta_every: int = 100
    meta_lr: float = 0.0
    objective: str = "combined"
    weighting: str = "huw"
    weights: tuple[float, ...] = ()
    priorities: tuple[float, ...] = ()
    order: str = "usual"

    def build(self, variant: Variant) -> MetaObjective:
        """The objective, with a weighting of its own; raises UserError for what cannot be."""
        choose("objective", self.objective, OBJECTIVES)
        order = choose("order", self.order, ("usual", *ORDERS))
        if order == "usual":
            order = "exact" if variant.published else "difference"
        weighting = self.weighting
        if weights := check_numbers("weights", self.weights, "(1.0, 0.3, 0.3)"):
            weighting += f":weights={'x'.join(map(repr, weights))}"
        priorities = check_numbers("priorities", self.priorities, "(2.0, 5.0, 1.0)")
        weighted = make_weighting(weighting, priorities or None)
        if self.objective != "combined":
            if priorities:
                raise UserError('priorities weigh the terms of objective="combined"')
            alone = FixedWeights([name == self.objective for name in TERMS])
            return MetaObjective(self.objective, (self.objective,), alone, order)
        if isinstance(weighted, HUW) and variant.published_terms:
            weighted.bound = variant.huw_bound
        return MetaObjective("combined", TERMS, weighted, order)


class LossesBefore(NamedTuple):
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


class Point(NamedTuple):
    """The loss of a batch and its gradient."""

    loss: Tensor
    grads: Sequence[Tensor]


class BatchLosses:
    """The losses of a meta step's batches (two of training, one of validation) at the parameters as
    they are; ``rewind``, called before each, makes them draw the same random numbers.
    """

    def __init__(
        self, loss_fn: LossFn, batches: tuple[Any, Any, Any], rewind: Callable[[], None]
    ) -> None:
        self.loss_fn, self.batches, self.rewind = loss_fn, batches, rewind

    def value(self, which: int, graph: bool = True) -> Tensor:
        """The loss of a batch, 0-d; raises UserError for what is no loss."""
        self.rewind()
        with torch.set_grad_enabled(graph):
            loss = self.loss_fn(self.batches[which])
        must = "loss_fn(batch) must return the loss"
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = type(loss).__name__
            if isinstance(loss, Tensor):
                what = f"a tensor of shape {tuple(loss.shape)}"
            raise UserError(f"{must}, one number with its graph; it returned {what}")
        if graph and not loss.requires_grad:
            raise UserError(f"{must} with its graph; it returned one without a graph")
        return loss.reshape(())

    def point(self, which: int, params: Sequence[Tensor], graph: bool = False) -> Point:
        """The loss of a batch and its gradient by ``params``."""
        loss = self.value(which)
        grads = torch.autograd.grad(
            loss, params, create_graph=graph, allow_unused=True, materialize_grads=True
        )
        return Point(loss.detach(), grads)


def slopes_ahead(
    losses: BatchLosses,
    params: Sequence[Tensor],
    tokens: Sequence[int],
    before: LossesBefore,
    lambdas: Tensor,
    objective: MetaObjective,
    variant: Variant,
) -> Slopes:
    """The meta-loss's derivatives by ``params``, which are where the look-ahead put them.

    Args:
        tokens: group of each parameter.
        lambdas: ``[2, G]``, weights of flatness and direction.
    """
    terms, order = objective.terms, objective.order
    exact = order == "exact" and "gradient" in terms
    # Each loss is evaluated once, and the second batch's before the held-out one's: the order in
    # which a loss_fn sees its batches is the same for all objectives.
    second = after = Point(before.train, [])
    second_needed, after_needed = objective.looks_at(variant)
    if second_needed:
        second = losses.point(1, params, graph=exact)
    if after_needed:
        after = losses.point(2, params)
    # The terms are made of few things: lambdas, two losses and a gradient. These become leaves, so
    # that one small backward pass gives the meta-loss's derivatives by them, whatever the terms and
    # their weighting. Their own derivatives by theta' come after it: a loss's is its gradient,
    # which is here already, and a gradient's is one Hessian-vector product along the derivative
    # that this pass has given, which is why it must come first.
    lambdas, train, valid = _leaf(lambdas), _leaf(second.loss), _leaf(after.loss)
    gradients = [_leaf(g) for g in second.grads]
    with torch.enable_grad():
        values = [torch.zeros_like(train) for _ in TERMS]
        published = variant.published_terms
        if "gradient" in terms:
            values[0] = _gradient_term(before.grads, gradients, tokens, lambdas, published)
        if "loss_decrease" in terms:
            size = before.valid
            size = _size_before(after, params, before.params) if size is None else size
            values[1] = loss_decrease(valid, size, published=published)
        if "gen_gap" in terms:
            pair = (train, valid) if variant.gap_ahead else (before.train, before.valid)
            values[2] = generalization_gap(*pair)  # type: ignore[arg-type]
        stacked = torch.stack([x.to(lambdas) for x in values])
        total = objective.weighting.total(stacked)
    slopes = [torch.zeros_like(p) for p in params]
    if not total.requires_grad:
        return Slopes(stacked.detach(), slopes, torch.zeros_like(lambdas))
    leaves = [lambdas, train, valid, *gradients]
    pulled = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    # Zeros of what the loss does not depend on ask for a gradient, in older releases of torch.
    by_lambdas, by_train, by_valid, *along = (x.detach() for x in pulled)
    for point, by in ((second, by_train), (after, by_valid)):
        if (weight := float(by)) != 0:
            slopes = [a + weight * g.detach() for a, g in zip(slopes, point.grads)]
    if "gradient" in terms and order != "first":
        product: Sequence[Tensor]
        if exact:
            product = _exact_product(params, second.grads, along)
        else:
            product = _difference_product(losses, params, second.grads, along)
        slopes = [a + b for a, b in zip(slopes, product)]
    return Slopes(stacked.detach(), slopes, by_lambdas)


def _size_before(after: Point, params: Sequence[Tensor], home: Sequence[Tensor]) -> Tensor:
    """The size of the loss at ``home``: to first order of its logarithm, or of the loss itself
    where the step took it over zero, or near.
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
    flatness = two
    if not published:
        flatness = torch.where(one > TINY_SQUARE, two / one.clamp_min(TINY_SQUARE), 0.0)
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


def _difference_product(
    losses: BatchLosses, params: Sequence[Tensor], at: Sequence[Tensor], along: Sequence[Tensor]
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
    further = losses.point(1, params).grads
    with torch.no_grad():
        for p, x in zip(params, home):
            p.copy_(x)
    return [(b - a) / step.to(a) for a, b in zip(at, further)]
