"""Absorbed use of a regularizer: a learned optimizer meta-trained until it acts as if it saw the
regularized loss.

The inner loop stays as it is, with plain gradients; a *penalty* ``normalize(R) - normalize(L)``
joins the score of each inner step. Under TBPTT its derivative is not that of the number: the
regularizer's field is pulled back through the unroll instead, by the term ``value + (s - [s])``
with ``s = <[d normalize(R)], params>``. So what is logged is the regularized loss, and what is
followed is ``sum_t J_t^T G_t`` with ``J_t = d params_t / d theta``, also where G is the gradient of
no scalar. Under ES and PES the penalty is the value, or, for a field, the antithetic difference
``1/2 <G(p+) + G(p-), p+ - p->``.

GSAM (Zhuang et al. 2022) decomposes gradients. Pulled back through an unroll its orthogonal part is
almost parallel to the rest, so a regularizer with a ``meta_split`` decomposes the two
meta-gradients instead; see `decompose`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from lo_framework.episode import Place
from lo_framework.flat_task import FlatTask, is_transformed, over_tasks
from lo_framework.learned.base import State, Theta
from lo_framework.optimizees.dropout import mix
from lo_framework.optimizees.task import Batch, Params, Task
from lo_framework.regularizers import REGULARIZERS, Mixture, Point, Regularizer, vectors
from lo_framework.schema import Checked, Positive, Range
from lo_framework.spec import UserError, build_config, parse_spec, split_joined

Known = tuple[Tensor, Tensor] | tuple[()]  # loss and gradient at a point, if they are known
LossFn = Callable[[Params, Batch, Tensor], Tensor]
_WORD = 0xFFFFFFFF
_SALT = 0x5A17  # or stream 0 would repeat the words of the first dropout layer
ARENA = "params"  # a regularizer sees the flat arena of a task as one tensor


@dataclass(frozen=True, kw_only=True)
class AbsorbConfig(Checked):
    """``batch``: where the penalty is taken: ``own``, the batch and the point whose gradient the
    learned optimizer has anyway, or ``independent``, a fresh batch after the update (the held-out
    one of the objective ``valid``).

    ``attached``: differentiate through the perturbation as well (TBPTT). ``when``: at ``every``
    step, the ``last`` ones of an episode (how many: ``last``), its ``end``, or more and more
    (``late``: from 0 to 1). ``strength`` multiplies R - L. ``through``: what ES and PES compare,
    the ``value`` or the ``field`` (``auto``: the value, if there is one).
    """

    batch: Literal["own", "independent"] = "own"
    attached: bool = False
    when: Literal["every", "last", "end", "late"] = "every"
    last: Annotated[int, Range(low=1)] = 20
    strength: Positive = 1.0
    through: Literal["auto", "value", "field"] = "auto"


class Absorption:
    """A regularizer in the meta-objective. ``alpha``: the share of GSAM's decomposition, 0 for all
    others.
    """

    def __init__(self, regularizer: Regularizer, config: AbsorbConfig) -> None:
        split = regularizer.meta_split()
        self.source, self.config = regularizer, config
        self.regularizer, self.alpha = split or (regularizer, 0.0)
        for option, wanted in (
            ("attached=true", config.attached),
            ("through=value", config.through == "value"),
        ):
            if wanted and not self.regularizer.has_value:
                raise UserError(
                    f"{option} needs a regularizer with a scalar value; "
                    f"{regularizer.name} is only a field"
                )
        self.by_field = config.through == "field" or (
            config.through == "auto" and not self.regularizer.has_value
        )

    @property
    def independent(self) -> bool:
        return self.config.batch == "independent"

    @property
    def radius(self) -> float:
        """The regularizer's ``rho``.

        Raises:
            UserError: it has none, or is a mixture.
        """
        if not hasattr(self.source.config, "rho"):
            raise UserError(
                f"{self.source.name} has no radius (rho) to learn; "
                "one of sam, asam, gsam, gam, ... has"
            )
        return float(self.source.config.rho)

    def with_radius(self, rho: float) -> Absorption:
        """This absorption with another ``rho``."""
        return Absorption(type(self.source)(replace(self.source.config, rho=rho)), self.config)

    def weights(self, t: Tensor, horizon: Tensor) -> Tensor:
        """Weight ``[K]`` of the step after ``t [K]`` finished ones, by the episode's clock."""
        if self.config.when == "every":
            return torch.ones_like(t, dtype=torch.float32)
        if self.config.when == "late":
            return ((t + 1) / horizon).clamp_max(1.0).float()
        return (t >= horizon - (1 if self.config.when == "end" else self.config.last)).float()

    def init_state(self, params: Tensor) -> State:
        """The regularizer's state at ``params [N]``."""
        return self.regularizer.init_state({ARENA: params})

    def penalty(
        self, flat: FlatTask, place: Place, known: Known, memory: State, pairs: bool
    ) -> tuple[Tensor, State]:
        """The penalty ``[K]`` at ``place`` and the regularizer's new state.

        ``known``: loss ``[K]`` and gradient ``[K, N]`` there, or nothing. ``pairs``: the second
        half of the K tasks are the antithetic twins of the first.
        """
        params = place.params
        tracked = is_transformed() or (params.requires_grad and torch.is_grad_enabled())
        if self.config.attached and tracked:
            return self._attached(flat, place), memory
        with torch.no_grad():
            direction, value, memory = self._direction(flat, place, known, memory)
        if pairs and self.by_field:
            (up, down), (positive, negative) = direction.chunk(2), params.chunk(2)
            rise = 0.5 * ((up + down) * (positive - negative)).sum(-1)
            rise = torch.where(torch.isfinite(rise), rise, 0.0)  # a twin that diverged
            return torch.cat([rise / 2, -rise / 2]), memory
        moved = (direction * params).sum(-1)
        return value + (moved - moved.detach()), memory

    def rise(self, flat: FlatTask, place: Place) -> Tensor:
        """``strength`` times R - L ``[K]`` at ``place``, for judging; of what keeps a state, as in
        its first step.
        """
        memory = self.init_state(place.params[0])
        memories = {name: x.expand(len(place.params), *x.shape) for name, x in memory.items()}
        at = corrected(flat, lambda theta: self.regularizer, place, (), memories, {})
        (rise,) = at.rise
        return self.config.strength * rise

    def _direction(
        self, flat: FlatTask, place: Place, known: Known, memory: State
    ) -> tuple[Tensor, Tensor, State]:
        """Field ``[K, N]`` and value ``[K]`` (0 where R is no scalar) of ``normalize(R) -
        normalize(L)``, and the regularizer's new state; constants.
        """
        place = place._replace(
            params=place.params.detach(),
            buffers={name: x.detach() for name, x in place.buffers.items()},
        )
        at = corrected(flat, lambda theta: self.regularizer, place, known, memory, {})
        strength = self.config.strength
        risen = at.loss + strength * at.rise[0] if at.rise else at.loss
        low, slope_low = _normalized(flat.task, at.loss)
        high, slope_high = _normalized(flat.task, risen)
        direction = slope_high[:, None] * (at.grad + strength * at.field)
        direction = direction - slope_low[:, None] * at.grad
        whole = torch.isfinite(direction.sum(-1))  # masked before the product: 0 * inf is not 0
        return (
            torch.where(whole[:, None], direction, 0.0),
            torch.where(whole, high - low, 0.0),
            at.state,
        )

    def _attached(self, flat: FlatTask, place: Place) -> Tensor:
        def both(place: Place) -> tuple[Tensor, Tensor]:
            landscape, here = _landscape(flat, place), {ARENA: place.params}
            return landscape.loss(here), self.regularizer.value(landscape, here, attached=True)

        loss, risen = over_tasks(flat.task, both)(place)
        normalize = flat.task.normalize
        return normalize(loss + self.config.strength * (risen - loss)) - normalize(loss)


class Corrected(NamedTuple):
    """A regularizer's correction in K tasks."""

    loss: Tensor  # [K]
    grad: Tensor  # [K, N]
    field: Tensor  # [K, N]
    rise: tuple[Tensor, ...]  # ([K],), or nothing where R is no scalar
    state: State


def corrected(
    flat: FlatTask,
    regularizer: Callable[[Theta], Regularizer | None],
    place: Place,
    known: Known,
    memory: State,
    theta: Theta,
) -> Corrected:
    """The correction at ``place``, where loss and gradient may be ``known``.

    ``regularizer`` makes it from one task's theta, of which its settings may be a part.
    """

    def one(place: Place, known: Known, memory: State, theta: Theta) -> Corrected:
        landscape, here = _landscape(flat, place), {ARENA: place.params}
        loss, grad = (known[0], {ARENA: known[1]}) if known else landscape.gradient(here)
        rule = regularizer(theta)
        assert rule is not None
        step = rule.correction(landscape, Point(here, loss, grad), memory)
        rise = () if step.rise is None else (step.rise,)
        return Corrected(loss, grad[ARENA], step.field[ARENA], rise, step.state)

    return over_tasks(flat.task, one)(place, known, memory, theta)


def _landscape(flat: FlatTask, place: Place) -> FunctionalLandscape:
    """One task's, with the buffers as they are: only the plain pass moves them."""

    def loss(params: dict[str, Tensor], batch: Batch, noise: Tensor) -> Tensor:
        return flat.loss(params[ARENA], place.buffers, batch, noise)[0]

    return FunctionalLandscape(loss, place.batch, place.noise)


def _normalized(task: Task, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised losses ``[K]`` and the slopes of ``normalize`` there."""
    slope, value = vmap(torch.func.grad_and_value(task.normalize))(loss)
    return value, slope


def decompose(plain: Theta, regularized: Theta, alpha: float) -> Theta:
    """GSAM's direction ``B - alpha A_perp`` of two meta-gradients: A of the plain objective, B of
    the regularized one.

    A_perp is A without its projection on B: to first order the perturbed loss does not change along
    it, and the gap between the two falls.
    """
    zero = torch.zeros(())
    aligned = sum(((plain[n].double() * regularized[n].double()).sum() for n in plain), zero)
    square = sum(((x.double() ** 2).sum() for x in regularized.values()), zero)
    # No B, no projection.
    share = torch.where(square > 0, aligned / torch.where(square > 0, square, 1.0), 0.0)
    return {n: b - alpha * (plain[n] - share.to(b.dtype) * b) for n, b in regularized.items()}


def make_absorption(regularizer: str, options: str = "") -> Absorption:
    """From ``"sam:rho=0.05+gam"`` and ``"batch=independent,when=late"``.

    Raises:
        UserError: an unknown regularizer or option, an impossible value; the line names the nearest
            known one.
    """
    given = parse_spec(f"absorb:{options}")[1] if options else {}
    config = build_config(AbsorbConfig, given, owner="--absorb")
    return Absorption(make_regularizer(regularizer), config)


class FunctionalLandscape:
    """The loss of one batch as a function of the parameters: what regularizers look at
    (`regularizers.base.Landscape`).

        landscape = FunctionalLandscape(loss_fn, batch, noise)  # loss_fn(params, batch, noise): 0-d
        loss, grad = landscape.gradient(params)
        correction = SAM(SAMConfig(rho=0.05)).correction(landscape, Point(params, loss, grad), {})

    Pure and vmappable: dropout keeps the mask of ``noise`` at every point, and a loss function that
    closes over buffers throws their updates away.
    """

    def __init__(self, loss_fn: LossFn, batch: Batch, noise: Tensor) -> None:
        self.loss_fn, self.batch, self.noise = loss_fn, batch, noise

    def loss(self, params: Params) -> Tensor:
        return self.loss_fn(params, self.batch, self.noise)

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        grad, loss = torch.func.grad_and_value(self.loss)(params)
        return loss, grad

    def hvp(self, params: Params, direction: Params) -> Params:
        """Reverse over reverse: forward mode has no rule for some operations under vmap."""
        slope = torch.func.grad(self.loss)
        return torch.func.grad(lambda at: vectors.dot(slope(at), direction))(params)

    def on(self, batch: Batch) -> FunctionalLandscape:
        return FunctionalLandscape(self.loss_fn, batch, self.noise)

    def uniform(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """A hash of (element, stream, noise): no random operation, so it can be vmapped and
        replayed.
        """
        count = torch.Size(shape).numel()
        seed = mix(mix(self.noise & _WORD) ^ (self.noise >> 32 & _WORD))
        key = mix(seed ^ mix(self.noise.new_tensor(stream ^ _SALT)))
        words = mix(mix(torch.arange(count, device=self.noise.device)) ^ key)
        return (words.to(torch.float64) / 2**32).reshape(shape)


def make_regularizer(spec: str) -> Regularizer:
    """The regularizer that ``spec`` names; several joined by ``+`` are a `Mixture`.

    Raises:
        UserError: an unknown name or option, a value out of range, or parts that cannot be mixed.
            ``none`` is an error too: to have no regularizer is for the caller to deal with.
    """
    parts = []
    for piece in split_joined(spec):
        if parse_spec(piece)[0] == "none":
            raise UserError(
                '"none" is no regularizer: leave it out of a mixture, or give no regularizer at all'
            )
        parts.append(REGULARIZERS.build(piece))
    if len(parts) == 1:
        return parts[0]
    try:
        return Mixture(parts)
    except ValueError as error:
        raise UserError(f'"{spec}": {error}') from None
