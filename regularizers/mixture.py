"""Several regularizers at once: corrections, and rises where all parts have one, add.

    R = L + sum_i (R_i - L),  G = g + sum_i (G_i - g)

Every part looks at the plain point, not at where another part went: SAM + weight decay is the loss
at w + rho u plus the penalty at w. In a spec, parts are joined by ``+``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    NoValue,
    Params,
    Point,
    Regularizer,
    State,
    restored,
    stored,
)


def together(states: Iterable[State]) -> State:
    """The states of the parts as one, each under its number."""
    return {k: x for i, state in enumerate(states) for k, x in stored(str(i), state).items()}


class Mixture(Regularizer):
    """``config`` is the tuple of the parts' configs.

    Raises:
        ValueError: no parts, or one that decomposes meta-gradients and so cannot be added to
            others.
    """

    name = "mixture"

    def __init__(self, parts: Sequence[Regularizer]) -> None:
        if not parts:
            raise ValueError("a mixture needs at least one regularizer")
        if len(parts) > 1:
            for part in parts:
                if part.meta_split() is not None:
                    raise ValueError(
                        f"{part.name} decomposes meta-gradients and cannot be mixed; use "
                        "space=params"
                    )
        super().__init__(tuple(part.config for part in parts))
        self._parts = tuple(parts)
        self.has_value = all(part.has_value for part in parts)
        self.needs_hvp = any(part.needs_hvp for part in parts)
        self.stochastic = any(part.stochastic for part in parts)

    @property
    def parts(self) -> tuple[Regularizer, ...]:
        return self._parts

    @property
    def cost(self) -> Cost:
        """The plain gradient is shared."""
        gradients, hvps = map(sum, zip(*(part.unrolled_cost for part in self.parts)))
        return Cost(gradients - (len(self.parts) - 1), hvps)

    def init_state(self, params: Params) -> State:
        return together(part.init_state(params) for part in self.parts)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        made = [
            part.correction(landscape, here, restored(str(i), state))
            for i, part in enumerate(self.parts)
        ]
        field = reduce(vectors.add, (each.field for each in made))
        rises = [each.rise for each in made if each.rise is not None]
        rise = torch.stack(rises).sum() if len(rises) == len(made) else None
        return Correction(field, rise, together(each.state for each in made))

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        without = [part.name for part in self.parts if not part.has_value]
        if without:
            raise NoValue(
                f"{without[0]} is a field without a scalar value, and so is a mixture with it"
            )
        values = [part.value(landscape, params, attached=attached) for part in self.parts]
        return torch.stack(values).sum() - (len(values) - 1) * landscape.loss(params)
