"""The neighbourhoods that sharpness is measured in: ``||d / c||_p <= r`` with p = 2 or infinity, c
= 1 or |w|.

Everything is computed in ``z = d / c``, where the neighbourhood is a plain ball: projections need
no root finding, and a coordinate with c = 0 simply never moves. With c = |w| (adaptive; Kwon et al.
2021, arXiv 2102.11600) sharpness does not change when layers of a ReLU network are rescaled against
each other, which changes nothing that the network does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lo_framework.eval.sharpness.surface import Surface

Norm = Literal["l2", "linf"]
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Ball:
    """A neighbourhood: ``norm`` over all parameters at once, ``scale`` c, ``[N]``.

    Rows of ``[K, N]`` are points or gradients.
    """

    norm: Norm
    scale: Tensor

    @staticmethod
    def of(surface: Surface, norm: Norm = "l2", *, adaptive: bool = False) -> Ball:
        """Return the ball around the surface's point."""
        params = surface.params
        return Ball(norm, params.abs() if adaptive else torch.ones_like(params))

    def direction(self, grads: Tensor) -> Tensor:
        """Return the z of length 1 along which the loss rises fastest, or zero for no gradient."""
        slope = self.scale * grads
        return unit(slope) if self.norm == "l2" else slope.sign()

    def dual(self, grads: Tensor) -> Tensor:
        """Return that direction as parameters' step; `slope` is ``<grads, dual(grads)>``."""
        return self.scale * self.direction(grads)

    def slope(self, grads: Tensor) -> Tensor:
        """Return the fastest rise per unit of radius, ``[K]``: the dual norm of ``c grads``."""
        slope = self.scale * grads
        return slope.norm(dim=-1) if self.norm == "l2" else slope.abs().sum(-1)

    def length(self, z: Tensor) -> Tensor:
        """Return lengths ``[K]``."""
        return z.norm(dim=-1) if self.norm == "l2" else z.abs().amax(-1)

    def project(self, z: Tensor, radius: float) -> Tensor:
        """Return the nearest z of length at most ``radius``."""
        if self.norm == "linf":
            return z.clamp(-radius, radius)
        return z * (radius / self.length(z).clamp(min=radius))[..., None]

    def random(self, count: int, seed: int) -> Tensor:
        """Return ``[count, N]`` random z of length 1: uniform on the sphere, or corners of the
        cube.
        """
        shape = (count, self.scale.numel())
        noise = torch.randn(
            shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        return (unit(noise) if self.norm == "l2" else noise.sign()).to(self.scale)

    def inside(self, count: int, seed: int) -> Tensor:
        """Return ``[count, N]`` random z, uniform in the cube of edges from -1 to 1."""
        generator = torch.Generator().manual_seed(seed)
        shape = (count, self.scale.numel())
        return (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1).to(self.scale)

    def reach(self, params: Tensor) -> float:
        """Return the radius at which the ball touches the origin: ``||w||``; of adaptive balls that
        of ``w / |w|``.
        """
        z = torch.where(self.scale > 0, params / self.scale.clamp(min=_TINY), 0.0)
        return float(self.length(z))


def unit(x: Tensor) -> Tensor:
    """Return rows of length 1; zero rows stay zero."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=_TINY)


def relative_radii(
    surface: Surface, fractions: Sequence[float], ball: Ball | None = None
) -> list[float]:
    """Return ``fraction * ||w||``, in the ball's own measure (default: plain l2)."""
    reach = (ball or Ball.of(surface)).reach(surface.params)
    return [fraction * reach for fraction in fractions]
