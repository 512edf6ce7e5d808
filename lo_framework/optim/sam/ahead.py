"""A step whose only gradient is taken ahead of the weights (`S2SAM`).

Where that is, is known before the pass: the weights move there, the pass is run, and they are back
before the base steps. So the pass is a usual one, with running statistics and dropout of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.optim.interrupts import Held
from lo_framework.optim.sam.closure_landscape import (
    assign,
    broken_at_home,
    copies,
    gradients,
    is_finite,
    loss_of,
    refuse_mixed,
    step_base,
)
from lo_framework.optim.sam.rule_state import RuleState
from lo_framework.regularizers import Regularizer, vectors
from lo_framework.regularizers.base import Params

T = TypeVar("T")


@dataclass
class Ahead:
    """Weights that have moved ahead; ``home``: where they were, by the places of parameters."""

    home: Params

    def back(self, params: Sequence[Tensor]) -> None:
        assign({name: params[int(name)] for name in self.home}, self.home)

    def state_dict(self) -> dict[str, Any]:
        return {"params": dict(self.home)}

    @classmethod
    def of(cls, saved: Mapping[str, Any], params: Sequence[Tensor]) -> Ahead:
        """What `state_dict` gave, for an optimizer of ``params``, all of them."""
        saved = saved["params"]
        return cls({name: x.to(params[int(name)].device).clone() for name, x in saved.items()})


class StepsAhead:
    """The methods of `Regularized` for rules that are ahead."""

    title: str
    base: torch.optim.Optimizer
    regularizer: Regularizer
    _rule_state: RuleState

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.base.param_groups for p in group["params"]]

    def _go_ahead(self) -> Ahead:
        params = {str(i): p for i, p in enumerate(self._params) if p.requires_grad and p.numel()}
        refuse_mixed(params.values(), self.title)
        home = copies(params)
        ahead = self.regularizer.ahead(self._rule_state.of(home)) if home else {}
        assign(params, vectors.add(home, ahead))
        return Ahead(home)

    def _step_ahead(self, run: Callable[[], T], scaled: bool) -> T:
        """One run of the closure, and the base's step. ``scaled``: an overflow skips the step."""
        with Held() as held:
            ahead = self._go_ahead()
            try:
                with held.released():
                    result = run()
            finally:
                ahead.back(self._params)
            if ahead.home and any(p.grad is not None for p in self._params):
                self._end_ahead(ahead, loss_of(result, ahead.home), scaled)
        return result

    def _end_ahead(self, ahead: Ahead, loss: Tensor | None, scaled: bool = False) -> None:
        """The base's step from the gradients that are there; the weights are back.

        Raises:
            NotFiniteError: the loss or gradient is not finite. Nothing has changed.
        """
        params = {name: self._params[int(name)] for name in ahead.home}
        grads = gradients(params, ahead.home)  # 0 where there is none: it points nowhere
        known = next(iter(grads.values())).new_zeros(()) if loss is None else loss
        finite = is_finite(known, grads)
        if not finite and scaled and bool(known.isfinite()):
            return
        if not (finite or getattr(self.base, "is_guarded", False)):
            raise broken_at_home(self.title)
        step_base(self.base, known)
        if finite:
            state = self._rule_state
            state.advance(self.regularizer.after(grads, state.of(ahead.home)))

    def _clear_old(self) -> None:
        """No gradients before the pass. Raises UserError if there are some that are not 0: of a
        backward at the weights, which nobody needs.
        """
        old = [p.grad for p in self._params if p.grad is not None]
        if old and bool(torch.nn.utils.get_total_norm(old) != 0):
            raise UserError(
                f"{self.title} has one backward a step: zero_grad(), first_step(), backward, "
                "second_step(); there are gradients before first_step() already"
            )
        for p in self._params:
            p.grad = None

    def _refuse_no_loss(self, loss: Any) -> None:
        if loss is None and getattr(self.base, "takes_loss", False):
            raise UserError(f"{type(self.base).__name__} looks at the loss: call second_step(loss)")
