"""A step of which the first half is made: what a rule asked for, and where to go back to.

A rule asks its landscape for a gradient in the midst of its work. The first half runs it up to that
question; the second runs it again, with the answer. Rules are pure, so both ask the same, and the
result is that of a closure to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.optim.sam.ahead import Ahead
from lo_framework.optim.sam.closure_landscape import (
    GradientLandscape,
    assign,
    gradients,
    refuse_broken,
)
from lo_framework.optim.sam.surroundings import Kept, Surroundings
from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import Correction, Params, Point, Regularizer, State

PLAIN = ("seed", "broken", "is_same", "moved")
CLOSURE = "use step(closure), which runs as many passes as it wants"


class _Asked(Exception):
    """A rule wants the gradient at ``point``."""

    def __init__(self, point: Params) -> None:
        self.point = point


class _Answering(GradientLandscape):
    """Answers the one question of a rule, once there is an answer."""

    def __init__(self, home: Params, seed: int, grad: Params | None) -> None:
        super().__init__(home, seed)
        self.grad, self.asked = grad, False

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        if self.asked:
            raise UserError(f"this regularizer wants more than two gradients: {CLOSURE}")
        self.asked = True
        if self.grad is None:
            raise _Asked(params)
        nothing = next(iter(self.home.values())).new_zeros(())
        return nothing, self.grad  # what a closure's step does with that loss, nobody reads


@dataclass
class Half:
    """A step of which the first half is made.

    Attributes:
        here: weights, loss (0 where nobody told it) and gradients, by the places of parameters.
        seed: of the step's random numbers.
        broken: whether loss or gradient is not finite, which the base decides about.
        is_same: whether the second pass draws the noise of the first, or may draw its own.
        surroundings, kept: what the second pass may change, as it was.
        moved: whether the weights are elsewhere, and a second gradient is wanted.
    """

    here: Point
    seed: int
    broken: bool
    is_same: bool
    surroundings: Surroundings
    kept: Kept
    moved: bool = False

    def begin(self, rule: Regularizer, step: int, state: State, params: Params) -> None:
        """Move the weights to where ``rule`` wants a gradient, and clear the gradients."""
        if not self.broken:
            try:
                self._run(rule, step, state, None)
            except _Asked as question:
                assign(params, question.point)
                self.moved = True
        self.surroundings.before_pass()

    def moving(self, params: Sequence[Tensor]) -> Params:
        """Those of all ``params`` that the step is about, by their places."""
        return {name: params[int(name)] for name in self.here.params}

    def back(self, params: Sequence[Tensor]) -> None:
        """Weights and surroundings as before."""
        assign(self.moving(params), self.here.params)
        self.surroundings.put_back(self.kept)

    def end(
        self, rule: Regularizer, step: int, state: State, params: Sequence[Tensor]
    ) -> tuple[Params, State | None]:
        """Weights and surroundings as before; the gradient of the step, and the rule's new state,
        None for a broken step.

        Raises:
            NotFiniteError: the second gradient is not finite.
        """
        moving = self.moving(params)
        second = gradients(moving, self.here.params) if self.moved else None
        memory = [p.grad for p in moving.values()]
        self.back(params)
        for p, grad in zip(moving.values(), memory):
            p.grad = grad
        if self.broken:
            return self.here.grad, None
        if second is not None:
            refuse_broken(self.here.loss, second)
        correction = self._run(rule, step, state, second)
        return vectors.add(self.here.grad, correction.field), correction.state

    def _run(self, rule: Regularizer, step: int, state: State, grad: Params | None) -> Correction:
        landscape = _Answering(self.here.params, self.seed, grad)
        return rule.correction_at(step, landscape, self.here, state)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values: a training may be saved between the halves."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "params": dict(self.here.params),
            "grad": dict(self.here.grad),
            "loss": self.here.loss,
            "buffers": [copy for *_, copy in self.kept.buffers],
            "noise": self.kept.noise,
        }


def loaded(
    saved: Mapping[str, Any], params: Sequence[Tensor], around: Surroundings
) -> Half | Ahead:
    """What was saved of a half-made step, for an optimizer of ``params``, all of them."""
    if saved.keys() == {"params"}:
        return Ahead.of(saved, params)
    home, grad = (
        {name: x.to(params[int(name)].device).clone() for name, x in saved[key].items()}
        for key in ("params", "grad")
    )
    here = Point(home, saved["loss"].to(next(iter(home.values()))), grad)
    now = around.keep()
    buffers = [
        (*place[:3], None if copy is None else copy.to(place[2], copy=True))
        for place, copy in zip(now.buffers, saved["buffers"])
    ]
    noise = saved["noise"] and [state.cpu() for state in saved["noise"]]
    kept = Kept([None] * len(now.grads), buffers, noise)
    plain = {name: saved[name] for name in PLAIN}
    return Half(here, surroundings=around, kept=kept, **plain)


def check(
    saved: Mapping[str, Any] | None, params: Sequence[Tensor], model: nn.Module | None
) -> None:
    """Raise UserError unless a saved half, if there is one, is of such parameters and buffers."""
    modules = model.modules() if model else ()
    num = sum(1 for m in modules for _ in m.named_buffers(recurse=False))
    if saved and "buffers" in saved and len(saved["buffers"]) != num:
        raise UserError(
            "this state was saved between first_step and second_step of another model: it has "
            f"{len(saved['buffers'])} buffers and not {num}; give the same model="
        )
    for name, x in saved["params"].items() if saved else ():
        if int(name) >= len(params) or params[int(name)].shape != x.shape:
            raise UserError(
                "this state was saved between first_step and second_step of other parameters: "
                f"parameter {name} had shape {tuple(x.shape)}"
            )
