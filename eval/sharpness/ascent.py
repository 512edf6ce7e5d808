"""The worst point near a minimum, by projected gradient ascent (PGA), and what is read off it.

    ball = Ball.of(surface)                                       # l2 over all parameters
    found = neighbourhoods(surface, relative_radii(surface, [0.001, 0.01, 0.1]), ball, STANDARD)
    found[-1].gap, found[-1].first_order              # h(r) = M(r) - L and R1(r) = r N1(r)

With ``M(r) = max L(w + d)`` and ``N1(r) = max ||grad L(w + d)||`` over ``||d|| <= r`` (Foret et al.
2021, arXiv 2010.01412; Zhang et al. 2023, arXiv 2303.03108, who call ``h`` the zeroth-order and
``R1`` the first-order flatness). At a quadratic minimum with top eigenvalue lambda, ``h = lambda
r^2 / 2`` and ``R1 = 2 h``. At small radii ``h`` is ``r ||g||`` and says how far training has come:
`Neighbourhood.curvature_part` is the rest.

The ascent goes from several starts at once, by normalised gradients with the step schedule of
Auto-PGD (Croce & Hein 2020, arXiv 2003.01690): a restart whose last steps rose in fewer than 75% of
the cases, or whose best has not moved since the last check, goes on from its best point with half
the step. It begins with steps of twice the radius, as Andriushchenko et al. 2023 (arXiv 2302.07011)
do. The customary 2.5 r / K turns by at most 2.5 radians in all, whatever K: on a quadratic whose
second eigenvalue is half the first that leaves 30% of the second direction, steps of 2 r leave
(2/3)^K.

What it finds is a lower bound of the maximum: the best over all restarts and all points on their
way. By construction ``h >= 0``, ``h``
is at least the one-step gap of SAM and does not fall with r (the best point of a smaller radius is
a candidate), and ``h <= R1`` (`_Climb._norm_between`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.eval.sharpness.ball import Ball
from lo_framework.eval.sharpness.surface import Surface

# Points [K, N] to values [K] and slopes [K, N].
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]

# of a cube: looks at so many random points and as many corners, and starts from the best ones too
LOOKS, AT_ONCE, BEST = 64, 16, 4
SEGMENT = 9  # points on the way to the worst point at which the gradient norm is looked at
BISECTIONS = 20


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How hard to look for a maximum.

    Attributes:
        steps: gradient steps towards the maximal loss, K.
        norm_steps: steps towards the maximal gradient norm; each costs a Hessian product (two to
            four gradients).
        random_starts: restarts from random points of the sphere, beside the gradient's direction,
            the point itself and the maximiser of the radius before.
        step: length of the first steps over the radius.
        seed: of the random starts.
    """

    steps: int = 50
    norm_steps: int = 25
    random_starts: int = 4
    step: float = 2.0
    seed: int = 0


QUICK = Effort(steps=20, norm_steps=10, random_starts=1)
STANDARD = Effort()
FULL = Effort(steps=100, norm_steps=50, random_starts=6)


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbourhood:
    """Maxima within one ``radius``.

    Attributes:
        max_loss: M(r).
        gap: the surrogate gap h(r) = M(r) - L.
        one_step_gap: ``L(w + r u) - L`` after SAM's one step; may be negative.
        linear_part: ``r ||g||``: the gap of a plane.
        max_gradient_norm: N1(r), in the ball's dual norm; nan if not asked for.
        first_order: R1(r) = r N1(r).
        worst: the perturbation ``[N]`` that gives max_loss.
    """

    radius: float
    max_loss: float
    gap: float
    one_step_gap: float
    linear_part: float
    max_gradient_norm: float
    first_order: float
    worst: Tensor

    @property
    def curvature_part(self) -> float:
        """Return ``h(r) - r ||g||``: what the gradient at the point does not explain. Negative
        where the loss bends down.
        """
        return self.gap - self.linear_part


def neighbourhoods(
    surface: Surface,
    radii: Sequence[float],
    ball: Ball | None = None,
    effort: Effort = STANDARD,
    *,
    norms: bool = True,
) -> list[Neighbourhood]:
    """Find the maxima for every radius (positive, in any order; see `relative_radii`), in ascending
    order.

    Args:
        ball: default plain l2.
        norms: find N1 and R1 too, which is most of the cost.

    Raises:
        FloatingPointError: a loss or a gradient on the way is not finite.
    """
    ball = ball or Ball.of(surface)
    climb = _Climb(surface, ball, effort)
    return [climb.to(radius, norms) for radius in sorted(float(r) for r in radii)]


def doubling_radius(
    surface: Surface,
    ball: Ball | None = None,
    effort: Effort = QUICK,
    *,
    bisections: int = 6,
    limit: float = 4.0,
) -> float:
    """Return the smallest radius found at which ``M(r) >= 2 L``, to within a factor of
    4^(2^-bisections); a scale-free radius.

    inf if ``limit * ||w||`` does not double it; nan for ``L <= 0``, of which the double means
    nothing.
    """
    ball = ball or Ball.of(surface)
    here, reach = float(surface.loss_here), ball.reach(surface.params)
    if not here > 0:
        return math.nan
    top = limit * reach if reach > 0 else limit
    slope = float(ball.slope(surface.gradient_here))
    # A convex loss has doubled at the latest where its tangent has.
    high = min(here / slope if slope > 0 else math.inf, top) / 64

    def doubled(radius: float) -> bool:
        # A climb of its own: what was found at a larger radius is no candidate for a smaller one.
        return _Climb(surface, ball, effort).to(radius, norms=False).max_loss >= 2 * here

    climb, low = _Climb(surface, ball, effort), 0.0
    while climb.to(high, norms=False).max_loss < 2 * here:
        if high >= top:
            return math.inf
        low, high = high, min(4 * high, top)
    if low == 0.0:  # the loss bends up so sharply that the first radius is beyond: look below it
        while doubled(high / 4):
            high /= 4
        low = high / 4
    for _ in range(bisections):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if doubled(middle) else (middle, high)
    return high


@dataclass
class _Best:
    value: float
    z: Tensor  # [N]

    def keep(self, value: float, z: Tensor) -> None:
        """Take a point that is better."""
        if value > self.value:
            self.value, self.z = value, z.clone()


class _Climb:
    """Radii from small to large, each beginning with what the one before found."""

    def __init__(self, surface: Surface, ball: Ball, effort: Effort) -> None:
        self.surface, self.ball, self.effort = surface, ball, effort
        self.here = float(surface.loss_here)
        self.slope = float(ball.slope(surface.gradient_here))
        zero = torch.zeros_like(surface.params)
        self.loss = _Best(self.here, zero)
        self.norm = _Best(self.slope, zero)
        # The first step from 0 goes along the gradient and, of length 2 r, ends at r u: 0 is no
        # start of its own.
        gradient = ball.direction(surface.gradient_here)[None]
        self.starts = torch.cat([gradient, ball.random(effort.random_starts, effort.seed)])

    def to(self, radius: float, norms: bool) -> Neighbourhood:
        ball, surface = self.ball, self.surface
        one_step = float(surface.loss(self._at(radius * self.starts[0]))) - self.here
        looked = self._look_around(radius)
        self._ascend(self.loss, radius, [], looked, surface.gradients, self.effort.steps)
        self.loss.keep(self.here + one_step, radius * self.starts[0])
        gap = max(0.0, self.loss.value - self.here)
        top = math.nan
        if norms:
            steps = self.effort.norm_steps
            self._ascend(self.norm, radius, [self.loss.z], looked, self._gradient_norms, steps)
            self._norm_between(radius, gap)
            top = self.norm.value
        return Neighbourhood(
            radius=radius,
            max_loss=self.loss.value,
            gap=gap,
            one_step_gap=one_step,
            linear_part=radius * self.slope,
            max_gradient_norm=top,
            first_order=radius * top,
            worst=ball.scale * self.loss.z,
        )

    def _look_around(self, radius: float) -> Tensor:
        """Return the points ``[B, N]`` of highest loss among random ones of a cube and its corners.

        A step along the signs of a gradient goes from corner to corner: in a large cube those that
        are near the gradient's may all be low, and the maximum may lie on a face. In an l2 ball the
        steps turn with the gradient, and restarts are left to the effort.
        """
        found = self.starts[:0]
        for i in range(LOOKS // AT_ONCE if self.ball.norm == "linf" else 0):
            inside = self.ball.inside(AT_ONCE, self.effort.seed + i)
            found = torch.cat([found, radius * inside, radius * inside.sign()])
            losses = self.surface.losses(self._at(found))
            finite = torch.where(torch.isfinite(losses), losses, -math.inf)
            found = found[finite.topk(BEST).indices]
        return found

    def _at(self, z: Tensor) -> Tensor:
        return self.surface.params + self.ball.scale * z

    def _gradient_norms(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dual norm of the gradient and its own gradient, ``H(w + d) u(w + d)``."""
        grads, products = self.surface.hvps(points, self.ball.dual)
        return self.ball.slope(grads), products

    def _ascend(
        self,
        best: _Best,
        radius: float,
        extra: list[Tensor],
        looked: Tensor,
        evaluate: Evaluate,
        steps: int,
    ) -> None:
        """Raise ``best`` to the best point of all restarts."""
        warm = self.ball.length(best.z[None])
        starts = [radius * self.starts, *(z[None] for z in extra)]
        if float(warm) > 0:
            starts.append(best.z[None] * (radius / warm)[:, None])
        points = torch.cat([*starts, looked])
        # Those found by looking are near a maximum already: a quarter of the step.
        step = torch.full((len(points),), self.effort.step).to(points)
        step[len(points) - len(looked) :] /= 4
        value, z = ascend(lambda z: evaluate(self._at(z)), self.ball, points, radius, steps, step)
        i = int(value.argmax())
        best.keep(float(value[i]), z[i])

    def _norm_between(self, radius: float, gap: float) -> None:
        """See that ``h <= r N1``: on the way to the worst point, some point is at least as steep as
        the average.

        That is the mean value theorem, and bisection finds such a point: the half that rises more
        is at least as steep on average as the whole.
        """
        far = self.loss.z

        def look(ts: Tensor) -> Tensor:
            losses, grads = self.surface.gradients(self._at(ts[:, None] * far))
            norms = self.ball.slope(grads)
            i = int(norms.argmax())
            self.norm.keep(float(norms[i]), ts[i] * far)
            return losses

        ts = torch.linspace(0, 1, SEGMENT, dtype=far.dtype, device=far.device)
        losses = look(ts)
        i = int((losses[1:] - losses[:-1]).argmax())
        (low, high), (at_low, at_high) = ts[i : i + 2], losses[i : i + 2]
        for _ in range(BISECTIONS):
            if radius * self.norm.value >= gap:
                return
            middle = (low + high) / 2
            at_middle = look(middle[None])[0]
            if at_middle - at_low > at_high - at_middle:
                high, at_high = middle, at_middle
            else:
                low, at_low = middle, at_middle


def ascend(
    evaluate: Evaluate, ball: Ball, z: Tensor, radius: float, steps: int, step: Tensor
) -> tuple[Tensor, Tensor]:
    """Auto-PGD without momentum from each row of ``z [K, N]``: the best values ``[K]`` and where,
    ``[K, N]``.

    Args:
        evaluate: z ``[K, N]`` to values ``[K]`` and slopes in the parameters ``[K, N]``.
        step: ``[K]`` lengths of the first steps over the radius.

    Raises:
        FloatingPointError: a value or a slope is not finite.
    """
    eta = radius * step
    best_value, best_z, best_slope = torch.full_like(eta, -math.inf), z, z
    last_value, best_at_check = best_value, best_value
    rises, since, halved = torch.zeros_like(eta), 0, torch.zeros_like(eta, dtype=torch.bool)
    checks = _checkpoints(steps)
    for k in range(steps + 1):
        value, slope = evaluate(z)
        if not (torch.isfinite(value).all() and torch.isfinite(slope).all()):
            raise FloatingPointError(f"the loss is not finite within the radius {radius:.4g}")
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        best_z = torch.where(better[:, None], z, best_z)
        best_slope = torch.where(better[:, None], slope, best_slope)
        rises, since, last_value = rises + (value > last_value), since + 1, value
        if k in checks:
            halve = (rises < 0.75 * since) | (~halved & (best_value <= best_at_check))
            eta = torch.where(halve, eta / 2, eta)
            z = torch.where(halve[:, None], best_z, z)
            slope = torch.where(halve[:, None], best_slope, slope)
            last_value = torch.where(halve, best_value, last_value)
            best_at_check, halved, rises, since = best_value, halve, torch.zeros_like(rises), 0
        z = ball.project(z + eta[:, None] * ball.direction(slope), radius)
    return best_value, best_z


def _checkpoints(steps: int) -> set[int]:
    """When Auto-PGD looks at its progress: after 22% of the steps, then at intervals that shrink to
    6%.
    """
    before, now = 0.0, 0.22
    found = set()
    while now < 1:
        found.add(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return found - {0, steps}
