"""``teacher``: normal inputs and the answers of a random network, made when they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from lo_framework.optimizees.datasets.splits import Splits
from lo_framework.optimizees.datasets.views import ViewOptions, random_function, seeded, view
from lo_framework.schema import Range, Width

SHARE = 8  # one row in so many is for validation, and as many for testing


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ViewOptions):
    """Options of ``teacher``, besides those of `ViewOptions`.

    Attributes:
        inputs: numbers in a row; those of a square number are an image.
        decay: of the inputs' spectrum: their standard deviation is i^-decay along the i-th of some
            random directions, and 1 on average. At 0 all inputs are independent.
        rows: of all three splits.
        outputs: classes, or the numbers of a regression.
    """

    inputs: Width = 64
    decay: Annotated[float, Range(low=0, high=10)] = 0.0
    rows: Annotated[int, Range(low=SHARE, high=1 << 20)] = 4096
    outputs: Width = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target == "class" and self.outputs < 2:
            raise ValueError("outputs=1: labels are of at least 2 classes")

    def unused(self) -> set[str]:
        return super().unused() - ({"outputs"} if self.target == "class" else set())

    @property
    def classes(self) -> int | None:
        return self.outputs if self.target == "class" else None


def make_teacher(config: TeacherConfig, data_dir: str | None) -> Splits:
    """Rows of normal numbers, three quarters of them for training, with the class whose output of a
    random network is greatest, or with another target; nothing is read.
    """
    generator = seeded(config.seed)
    side = math.isqrt(config.inputs)
    shape = (1, side, side) if side * side == config.inputs else (config.inputs,)
    x = torch.randn(config.rows, config.inputs, generator=generator)
    if config.decay:
        mix = torch.randn(config.inputs, config.inputs, generator=generator)
        sizes = torch.arange(1, config.inputs + 1) ** -config.decay
        x = x * (sizes / sizes.square().sum().sqrt()) @ mix
    x = x.reshape(-1, *shape)
    y = random_function(x, config.outputs, generator)(x).argmax(1)
    held = config.rows // SHARE
    parts = [config.rows - 2 * held, held, held]
    keys = ("train", "valid", "test")
    return view(dict(zip(keys, zip(x.split(parts), y.split(parts)))), config)
