"""Known functions of drawn points: ``friedman`` (numbers) and ``spirals`` (classes). They are kept
for judging: no default pool has one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.splits import Splits, cut
from lo_framework.schema import Checked, NotNegative, Range, Seed

Many = Annotated[int, Range(low=20, high=1 << 20)]
SHARE = 5  # one row in so many is for validation, and as many for testing


@dataclass(frozen=True, kw_only=True)
class FriedmanConfig(Checked):
    """Options of ``friedman``.

    Attributes:
        rows: of all three splits.
        noise: standard deviation of what is added to the function, whose own is about 5.
        seed: of points and noise.
    """

    rows: Many = 2000
    noise: NotNegative = 1.0
    seed: Seed = 0

    @property
    def classes(self) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class SpiralsConfig(Checked):
    """Options of ``spirals``.

    Attributes:
        arms: classes.
        turns: of each arm.
        rows: of all three splits.
        noise: standard deviation of what is added to a point; arms end at radius 1.
        seed: of points and noise.
    """

    arms: Annotated[int, Range(low=2, high=100)] = 3
    turns: Annotated[float, Range(low=0, high=100)] = 1.0
    rows: Many = 2000
    noise: NotNegative = 0.03
    seed: Seed = 0

    @property
    def classes(self) -> int:
        return self.arms


def make_friedman(config: FriedmanConfig, data_dir: str | None) -> Splits:
    """Ten inputs, uniform on -1.73 to 1.73, and a number that follows from the first five of them
    (Friedman 1991, "Multivariate adaptive regression splines", section 4.3), standardised.
    """
    generator = torch.Generator().manual_seed(config.seed)
    u = torch.rand(config.rows, 10, generator=generator)
    y = 10 * torch.sin(math.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2
    y = y + 10 * u[:, 3] + 5 * u[:, 4]
    y = y + config.noise * torch.randn(config.rows, generator=generator)
    return _parts((u - 0.5) * math.sqrt(12), ((y - y.mean()) / y.std())[:, None])


def make_spirals(config: SpiralsConfig, data_dir: str | None) -> Splits:
    """Two inputs, and which of several spirals through the origin a point lies on."""
    generator = torch.Generator().manual_seed(config.seed)
    arm = torch.randint(config.arms, (config.rows,), generator=generator)
    radius = torch.rand(config.rows, generator=generator).sqrt()
    angle = 2 * math.pi * (config.turns * radius + arm / config.arms)
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    points = points + config.noise * torch.randn(config.rows, 2, generator=generator)
    return _parts(2 * points, arm)


def _parts(x: Tensor, y: Tensor) -> Splits:
    count = len(x) // SHARE
    test, valid, train = cut((x, y), count, count)
    return {"train": train, "valid": valid, "test": test}
