"""A step in two halves, for loops that run no closure: backward at the weights, `first_step`,
backward where the regularizer wants a gradient, `second_step`. What lies between is in ``half``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lo_framework.errors import UserError
from lo_framework.optim.eager import eager
from lo_framework.optim.interrupts import Held
from lo_framework.optim.sam.ahead import Ahead, StepsAhead
from lo_framework.optim.sam.closure_landscape import (
    active_of,
    broken_at_home,
    copies,
    gradients,
    is_finite,
    loss_of,
    mixed,
    set_gradients,
    step_base,
)
from lo_framework.optim.sam.half import CLOSURE, Half
from lo_framework.optim.sam.surroundings import Surroundings
from lo_framework.regularizers.base import Point


def _are_zero(grads: Iterable[Tensor]) -> bool:
    return bool(get_total_norm([*grads]) == 0)


class InHalves(StepsAhead):
    """The methods of `Regularized` that make a step in halves."""

    model: nn.Module | None
    same_noise: bool
    _begun: Surroundings | None = None  # the noise of a step that is to come
    _half: Half | Ahead | None = None
    _versions: tuple[int, ...] = ()  # of the parameters, once the first half has moved them
    _has_warned = False
    _loss: Tensor | float | None = None  # the loss, by second_step

    def begin_step(self) -> None:
        """Call it before the first pass of a step in halves where the model draws random numbers
        (dropout): the second pass then draws the same, as ``same_noise`` says.
        """
        self._refuse_half("begin_step()")
        self._begun = Surroundings(self._params, self.model, self.same_noise)

    @eager
    @torch.no_grad()
    def first_step(self, loss: Tensor | float | None = None) -> bool:
        """After backward has put the gradients at the weights into ``.grad``: move the weights to
        where the regularizer wants a second gradient, and clear the gradients. Then run backward on
        the same data again, and `second_step`.

            loss_fn(model(x), y).backward()
            optimizer.first_step()
            loss_fn(model(x), y).backward()
            optimizer.second_step()

        With a rule that is ahead (`S2SAM`) there is no backward before it: one comes after it, and
        where the base looks at the loss, it is told to `second_step`.

        Args:
            loss: what backward was run on, where the base looks at it (`Learned`).

        Returns:
            Whether a second pass is needed: in most steps of `LookSAM` none is, and what one gives
            is not looked at.

        Raises:
            UserError: a step is half made, there are no gradients, or the regularizer wants more
                than two. Nothing has changed.
            FloatingPointError: loss or gradient is not finite. Nothing has changed.
        """
        self._refuse_half("first_step()")
        if self.regularizer.is_ahead:
            self._clear_old()
            with Held():
                self._half = self._go_ahead()
                self._versions = self._versions_now()
            return True
        cost = self.regularizer.cost
        if cost.gradients > 2 or cost.hvps:
            raise UserError(
                f"{self.title} wants more gradients a step than the two of first_step and "
                f"second_step: {CLOSURE}"
            )
        if loss is None and getattr(self.base, "takes_loss", False):
            raise UserError(f"{type(self.base).__name__} looks at the loss: call first_step(loss)")
        active = active_of(self._params, self.title)
        if not active:
            raise UserError("first_step() needs gradients: run backward before it")
        home = copies(active)
        here = Point(home, loss_of(0.0 if loss is None else loss, home), gradients(active, home))
        broken = not is_finite(here.loss, here.grad)
        if broken and not getattr(self.base, "is_guarded", False):
            raise broken_at_home(self.title)
        around = self._begun or Surroundings(self._params, self.model, self.same_noise)
        state = self._rule_state
        is_same = self._begun is not None or not self.same_noise
        seed = mixed(state.seed, state.steps)
        half = Half(here, seed, broken, is_same, around, around.keep())
        with Held():
            half.begin(self.regularizer, state.steps, state.of(home), active)
            self._half, self._begun = half, None
            self._versions = self._versions_now()
        return half.moved

    def second_step(self, loss: Tensor | float | None = None) -> None:
        """After the second backward: the weights go back, and the base steps from the regularizer's
        gradient. ``step()`` without a closure is the same, for loops that call that.

        Args:
            loss: of a rule that is ahead, what backward was run on, where the base looks at it.

        Raises:
            UserError: no `first_step` came before, or no backward since it. Nothing has changed.
            FloatingPointError: the second gradient is not finite. Weights and state are as before
                the step.
        """
        if self._half is None:
            raise UserError("second_step() comes after first_step() and a second backward")
        self._loss = loss
        try:
            self.step()
        finally:
            self._loss = None

    @eager
    @torch.no_grad()
    def cancel_step(self) -> None:
        """The way back from `first_step`, where no second half is wanted: the second loss is not
        finite, or the pass was interrupted. Weights and state are as before the step, ``.grad`` of
        its parameters is cleared, and the next step may begin. Buffers are as `first_step` found
        them where ``model=`` is given, but those that the one pass of `S2SAM` has moved.

        Raises:
            UserError: no `first_step` came before.
        """
        half = self._half
        if half is None:
            raise UserError("cancel_step() comes after first_step(); no step is half made")
        with Held():
            self._half = None
            half.back(self._params)
            for p in self._params:
                p.grad = None

    def step(self) -> Any:
        raise NotImplementedError

    def _versions_now(self) -> tuple[int, ...]:
        return tuple(p._version for p in self._params)

    def _give_up_half(self) -> None:
        """A state is loaded that does not go on with the half-made step, if there is one. Weights
        are not the state's: they may have been loaded before, or be loaded after it.
        """
        half, self._half = self._half, None
        if isinstance(half, Half) and not half.moved:
            return
        if half is not None and self._versions == self._versions_now():
            warnings.warn(
                f"{self.title}: a state was loaded in the midst of a step, and the weights are "
                "still where first_step() has moved them: load the model's weights too, or call "
                "cancel_step() before load_state_dict()",
                stacklevel=2,
            )

    def _refuse_half(self, what: str) -> None:
        if self._half is not None:
            raise UserError(
                f"{what} in the midst of a step: after first_step() come a backward and "
                "second_step(), or cancel_step()"
            )

    def _is_due(self) -> bool:
        """Whether the second half is to be made. Raises UserError if its gradients are missing."""
        half, params = self._half, self._params
        if half is None:
            return False
        if isinstance(half, Ahead):
            self._refuse_no_loss(self._loss)
            if all(p.grad is None for p in params):
                raise UserError("second_step() needs gradients: run backward after first_step()")
            return True
        grads = [params[int(name)].grad for name in half.here.params]
        there = [grad for grad in grads if grad is not None]
        if half.moved and (
            not there or (_are_zero(there) and not _are_zero(half.here.grad.values()))
        ):
            raise UserError(
                "second_step() needs the gradients of a second pass: run backward between "
                "first_step() and second_step(), and zero no gradients after it"
            )
        return True

    def _end_half(self) -> None:
        """The second half, and the base's step."""
        half, state, params = self._half, self._rule_state, self._params
        assert half is not None
        if isinstance(half, Ahead):
            loss = None if self._loss is None else loss_of(self._loss, half.home)
            with Held():
                self._half = None
                half.back(params)
                self._end_ahead(half, loss)
            return
        if half.moved and not (half.is_same or self._has_warned):
            self._has_warned = half.surroundings.has_drawn(half.kept)
            if self._has_warned:
                warnings.warn(
                    f"{self.title}: the second pass drew other random numbers (dropout) than the "
                    "first: call begin_step() before the first pass, or give same_noise=False "
                    "(said once)",
                    stacklevel=5,
                )
        with Held():
            self._half = None
            grads, new = half.end(self.regularizer, state.steps, state.of(half.here.params), params)
            set_gradients(half.moving(params), grads)
            step_base(self.base, half.here.loss)
            if new is not None:
                state.advance(new)
