"""Other problems in the same rows: projected inputs, targets that are numbers, noise in the labels.

Meta-training sees many problems in one small data set this way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.datasets.splits import Splits
from lo_framework.schema import Checked, Fraction, Seed, Width
from lo_framework.spec import default_of

NUM_CLASSES = 10  # of every data set with labels of its own
UNITS, GAIN = 32, 2.0  # of a random function: its hidden units, and how far they saturate

SAMPLE = 1024
CHUNK = 256  # rows whose feature maps are in memory at a time


@dataclass(frozen=True, kw_only=True)
class ViewOptions(Checked):
    """Options of data sets that can be shown in other ways.

    Attributes:
        target: the labels; the numbers of a random function of the inputs ("regress"); the inputs
            themselves ("reconstruct").
        outputs: how many numbers that random function gives.
        noise: the share of training rows whose target is that of another row.
        seed: of the random function, of the noise, and of all else that is drawn. Options that
            change nothing are set to their defaults, so one view has one name.
    """

    target: Literal["class", "regress", "reconstruct"] = "class"
    outputs: Width = 4
    noise: Fraction = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = self.unused()
        for field in fields(self):
            if field.name in unused:
                object.__setattr__(self, field.name, default_of(field))

    def unused(self) -> set[str]:
        """The options that change nothing, given the others."""
        numbers = {"regress": set(), "reconstruct": {"outputs", "noise"}}
        return numbers.get(self.target, {"outputs"})

    @property
    def classes(self) -> int | None:
        """How many classes there are; None where targets are numbers."""
        return NUM_CLASSES if self.target == "class" else None


def view(splits: Splits, options: ViewOptions, project: int | None = None) -> Splits:
    """`splits` of labelled inputs as `options` show them.

    Args:
        project: to how many numbers inputs are projected by a random matrix that keeps their size.
    """
    generator = seeded(options.seed)
    if project is not None:
        size = splits["train"][0][0].numel()
        matrix = torch.randn(size, project, generator=generator) / math.sqrt(size)
        splits = {key: (x.flatten(1) @ matrix, y) for key, (x, y) in splits.items()}
    if options.target == "regress":
        function = random_function(splits["train"][0], options.outputs, generator)
        splits = {key: (x, function(x)) for key, (x, _) in splits.items()}
    elif options.target == "reconstruct":
        splits = {key: (x, x.flatten(1)) for key, (x, _) in splits.items()}
    if options.noise:
        x, y = splits["train"]
        replaced = torch.rand(len(y), generator=generator) < options.noise
        others = torch.randint(len(y), (len(y),), generator=generator)
        index = torch.where(replaced, others, torch.arange(len(y)))
        splits = {**splits, "train": (x, y[index])}
    return splits


def random_function(
    train: Tensor, outputs: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """A network of one hidden tanh layer of `UNITS` with random weights, whose outputs have mean 0
    and variance 1 over the first `SAMPLE` rows of `train`. On images these units are the means of
    the maps of a convolution over the four quarters.
    """
    centre, scale = train.mean(0), train.std(0).clamp_min(1e-3)
    images = train.dim() == 4
    shape = (UNITS // 4, train.shape[1], 3, 3) if images else (UNITS, train.shape[1])
    inner = torch.randn(shape, generator=generator) * (GAIN / math.sqrt(math.prod(shape[1:])))
    bias = torch.randn(shape[0], generator=generator)
    outer = torch.randn(UNITS, outputs, generator=generator)

    def numbers(x: Tensor) -> Tensor:
        x = (x - centre) / scale
        if not images:
            return torch.tanh(F.linear(x, inner, bias)) @ outer
        maps = (torch.tanh(F.conv2d(part, inner, bias, padding=1)) for part in x.split(CHUNK))
        return torch.cat([F.adaptive_avg_pool2d(m, 2).flatten(1) for m in maps]) @ outer

    y = numbers(train[:SAMPLE])
    mean, std = y.mean(0), y.std(0).clamp_min(1e-6)
    return lambda x: (numbers(x) - mean) / std


def seeded(seed: int) -> torch.Generator:
    """A new generator on the CPU."""
    return torch.Generator().manual_seed(seed)
