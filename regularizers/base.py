"""The contract of a regularizer and the registry.

A regularizer replaces the loss L by R. What an optimizer needs of it is the *correction* ``G - grad
L``: added to the gradient it is explicit use (SAM around any base optimizer), pulled back through
an unroll it is absorbed use (a learned optimizer that acts as if it saw R). Where R is a scalar
function, ``value`` gives it; ``G = grad R`` then.

A regularizer sees the loss through a `Landscape` only: the loss of one batch as a function of the
parameters. It is pure: parameters, buffers and random state are the same bits after a call.

A new one is one file: a frozen config dataclass, a subclass with ``correction``, and the decorator
``@register_regularizer``.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from lo_framework.registry import Registry

Params = dict[str, Tensor]
State = dict[str, Tensor]
Batch = tuple[Tensor, ...]
R = TypeVar("R", bound="type[Regularizer]")

# Gradient evaluations that a Hessian-vector product is counted as: it takes two to four, by model
# and size.
HVP_COST = 3.0


class Landscape(Protocol):
    """The loss of one batch as a function of the parameters. Keys of ``params`` are the caller's
    business.
    """

    def loss(self, params: Params) -> Tensor:
        """The loss, 0-d; differentiable in ``params``."""
        ...

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        """Loss and gradient: one gradient evaluation."""
        ...

    def hvp(self, params: Params, direction: Params) -> Params:
        """Hessian times ``direction``. A landscape over closures has none and says so."""
        ...

    @property
    def batch(self) -> Batch: ...

    def on(self, batch: Batch) -> Landscape:
        """This landscape with other data."""
        ...

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Numbers in [0, 1) that depend on the step's noise seed and ``stream`` alone; no generator
        moves.
        """
        ...


class Point(NamedTuple):
    """A place in it: parameters, and the plain loss and gradient there, which the optimizer needs
    anyway.
    """

    params: Params
    loss: Tensor
    grad: Params


class Correction(NamedTuple):
    """``field`` = G - grad L, shaped like the parameters; ``rise`` = R - L where R is a scalar,
    else None.
    """

    field: Params
    rise: Tensor | None
    state: State


class Cost(NamedTuple):
    """Cost of one explicit step, the plain gradient included: gradients and Hessian-vector
    products.
    """

    gradients: float
    hvps: float = 0.0

    @property
    def total(self) -> float:
        """In gradient evaluations."""
        return self.gradients + HVP_COST * self.hvps


class NoValue(ValueError):
    """The regularizer is a field that is the gradient of no scalar."""


class Regularizer:
    """Base class. ``config`` is a frozen keyword-only dataclass; ``RANGES`` gives sane (low, high)
    for tuning.

    Attributes:
        has_value: R is a scalar and `value` gives it.
        needs_hvp: uses second derivatives of the loss, which no closure can give.
        stochastic: draws numbers (from the landscape's noise seed).
        without_hvp: what to do where there are no second derivatives.
        is_ahead: G is the gradient at w plus `ahead`, which is known before the step, so that a
            loop that takes its only gradient there pays nothing.
    """

    name: ClassVar[str]
    Config: ClassVar[type]
    RANGES: ClassVar[dict[str, tuple[float, float]]] = {}
    has_value: bool = False
    needs_hvp: bool = False
    stochastic: bool = False
    is_ahead: bool = False
    without_hvp: str = "choose a regularizer that does not"

    def __init__(self, config: Any) -> None:
        self.config = config

    @property
    def parts(self) -> tuple[Regularizer, ...]:
        """The regularizers whose corrections add up to this one's."""
        return (self,)

    @property
    def cost(self) -> Cost:
        raise NotImplementedError

    @property
    def unrolled_cost(self) -> Cost:
        """Cost inside an unroll, where the plain gradient is there and all steps are alike."""
        gradients, hvps = self.cost
        return Cost(gradients + self.is_ahead, hvps)

    def init_state(self, params: Params) -> State:
        """State that it carries from step to step: tensors only. Most carry nothing."""
        return {}

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        """The correction at ``here``, with every quantity a constant (nothing to differentiate
        through).
        """
        raise NotImplementedError

    def correction_at(
        self, step: int, landscape: Landscape, here: Point, state: State
    ) -> Correction:
        """The `correction` of a loop that knows its step number, from 0: it runs what is due."""
        return self.correction(landscape, here, state)

    def ahead(self, state: State) -> Params:
        """Of a rule that `is_ahead`: how far from the weights this step's gradient is taken."""
        raise NotImplementedError

    def after(self, grad: Params, state: State) -> State:
        """Of a rule that `is_ahead`: its state after the gradient ``grad`` there."""
        raise NotImplementedError

    def meta_split(self) -> tuple[Regularizer, float] | None:
        """For rules that decompose gradients (GSAM), absorbed: ``(other, alpha)`` says to pull
        ``other`` back through the unroll and to decompose the two meta-gradients instead; see
        `lo_framework.absorb.absorption`.
        """
        return None

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        """R, 0-d, differentiable in ``params``: its gradient is G, or with ``attached`` the true
        one of R, through the perturbation as well.

        Raises:
            NoValue: there is no such scalar.
        """
        raise NoValue(f"{self.name} is a field without a scalar value; use its correction")


REGULARIZERS: Registry[Regularizer] = Registry("regularizer")


def register_regularizer(cls: R) -> R:
    """Class decorator: make a regularizer known by its ``name``, built from its ``Config``."""
    return REGULARIZERS.register(cls.name, config=cls.Config)(cls)


def frozen(params: Params) -> Params:
    """Stop-gradient."""
    return {name: x.detach() for name, x in params.items()}


def stored(key: str, vectors: Params) -> State:
    """Parameter-shaped tensors as entries of a state; `restored` gives them back."""
    return {f"{key}/{name}": x for name, x in vectors.items()}


def fresh(key: str, params: Params) -> State:
    """The first state of a regularizer that counts steps and keeps an average or the like, stored
    under ``key``.
    """
    step = next(iter(params.values())).new_zeros((), dtype=torch.int64)
    return {"step": step, **stored(key, {name: torch.zeros_like(x) for name, x in params.items()})}


def restored(key: str, state: State) -> Params:
    """Give back the tensors that `stored` put into ``state`` under ``key``."""
    return {name[len(key) + 1 :]: x for name, x in state.items() if name.startswith(f"{key}/")}
