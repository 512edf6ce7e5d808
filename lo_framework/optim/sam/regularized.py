"""``Regularized``: explicit use of a regularizer, around any ``torch.optim`` optimizer.

    optimizer = Regularized(torch.optim.AdamW(model.parameters()), regularizer, model=model)
    loss = optimizer.step(closure)

A step runs the closure at the weights w, lets the regularizer run it at other points, and gives the
base optimizer the gradient plus the correction, at w. The classes by name (`SAM`, ...) are in
``explicit``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lo_framework.optim.closure_landscape import (
    ClosureLandscape,
    NotFiniteError,
    Surroundings,
    copies,
    gradients,
    is_finite,
    loss_of,
    mixed,
)
from lo_framework.optim.learned import Learned
from lo_framework.optim.passes import Passes
from lo_framework.optim.rule_state import RuleState
from lo_framework.regularizers import (
    GAM,
    Correction,
    Landscape,
    LookSAM,
    Mixture,
    Point,
    Regularizer,
    vectors,
)
from lo_framework.regularizers.base import State
from lo_framework.spec import UserError, canonical

T = TypeVar("T")
_STATE_HOOKS = [
    f"_optimizer_{method}_{when}_hooks"
    for method in ("state_dict", "load_state_dict")
    for when in ("pre", "post")
]


class Regularized(torch.optim.Optimizer):
    """Steps of ``base`` from a regularizer's gradient.

    Args:
        base: any optimizer but those that run the closure themselves (LBFGS). Parameter groups and
            state are shared with it, so that schedulers work on either.
        regularizer: whose correction is added to the gradient.
        model: its running statistics then come from the first pass only, as do the gradients of
            those of its parameters that ``base`` does not have. Without it, batch normalisation
            sees every pass.
        same_noise: later passes see the dropout masks of the first, and the generators end up as
            after one pass.

    The state is the base optimizer's plus ``"regularizer"``. Parameters without a gradient take no
    part.

    Raises:
        UserError: by the constructor, a base or a regularizer that cannot be used like this; by
            ``step``: no closure, sparse gradients, complex parameters, or parameters on several
            devices.
        FloatingPointError: by ``step``: a loss or gradient is not finite. Weights and state are as
            before the step.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        regularizer: Regularizer,
        *,
        model: nn.Module | None = None,
        same_noise: bool = True,
    ) -> None:
        self.title = type(self).__name__
        self._check_base(base)
        if model is not None and not isinstance(model, nn.Module):
            raise UserError(
                f"{self.title}: model must be a torch.nn.Module, got {type(model).__name__}"
            )
        self.base, self.regularizer, self.model, self.same_noise = (
            base,
            regularizer,
            model,
            same_noise,
        )
        self._parts = regularizer.parts if isinstance(regularizer, Mixture) else (regularizer,)
        self._rule_state = RuleState(regularizer, "+".join(part.name for part in self._parts))
        self._check_hvps()
        # No call of super().__init__, which would make groups and state of its own.
        self.defaults = dict(base.defaults)
        for name in _STATE_HOOKS:
            setattr(self, name, getattr(base, name))
        self.__setstate__({})
        self._passes = Passes(self)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> Any:
        return self.base.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base.state = state

    def __repr__(self) -> str:
        return f"{self.title} ({'+'.join(canonical(p.name, p.config) for p in self._parts)}) of {self.base!r}"

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"{self.title} is copied and saved through state_dict() and load_state_dict()"
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)

    @torch.no_grad()
    def step(
        self, closure: Callable[[], T] | None = None, *, scaler: torch.amp.GradScaler | None = None
    ) -> T:
        """One step; returns what the closure returned at the current weights.

        Args:
            closure: zeroes the gradients, computes the loss, runs backward, returns the loss. It is
                run several times.
            scaler: by which the closure scales the loss before backward (it returns the unscaled
                loss). If any pass overflows, the step is skipped; call ``scaler.update()`` after
                the step, and not ``scaler.step``.
        """
        if closure is None:
            raise UserError(
                f"{self.title} needs a closure: step(closure), where closure() zeroes the gradients, computes the "
                "loss, runs backward and returns the loss"
            )
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        state = self._rule_state
        params = [p for group in self.param_groups for p in group["params"]]
        surroundings = Surroundings(params, self.model, self.same_noise)
        run = self._passes.of(closure, scaler)
        result = run()
        active = self._active(params)
        if not active:
            return result
        home = copies(
            active,
            torch.float64 if torch.float64 in {p.dtype for p in active.values()} else torch.float32,
        )
        here = Point(home, loss_of(result, home), gradients(active, home))
        try:
            if is_finite(here.loss, here.grad):
                landscape = ClosureLandscape(
                    run, active, home, surroundings, mixed(state.seed, state.steps)
                )
                correction = self._correction(landscape, here, state.of(home))
                for name, grad in vectors.add(here.grad, correction.field).items():
                    active[name].grad.copy_(grad)  # type: ignore[union-attr]
                state.advance(correction.state)
            elif not self._is_guarded():
                raise NotFiniteError(
                    f"{self.title}: the loss or its gradient is not finite; the weights are as before"
                )
        except NotFiniteError:
            if scaler is None:
                raise
            return result  # and the scaler, which has seen it, lowers the scale
        if isinstance(self.base, Learned):
            self.base.step(loss=here.loss)
        else:
            self.base.step()
        return result

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, which can load it, and ``"regularizer"``. References, not copies."""
        return {**self.base.state_dict(), "regularizer": self._rule_state.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken. From a state of the base optimizer alone, the
        regularizer starts.

        Raises:
            UserError: the state is of another regularizer.
        """
        saved = state_dict.get("regularizer")
        if saved is not None:
            self._rule_state.check(saved)
        self.base.load_state_dict(
            {key: value for key, value in state_dict.items() if key != "regularizer"}
        )
        self._rule_state.load_state_dict(saved)

    def _check_base(self, base: torch.optim.Optimizer) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise UserError(
                f"{self.title} goes around an optimizer, as in {self.title}(torch.optim.AdamW(model.parameters())); "
                f"got {type(base).__name__}"
            )
        if isinstance(base, (torch.optim.LBFGS, Regularized)):
            raise UserError(
                f"{self.title} cannot go around {type(base).__name__}, which runs the closure itself"
            )

    def _check_hvps(self) -> None:
        for part in self._parts:
            if part.needs_hvp:
                way_out = (
                    "use exact=False"
                    if isinstance(part, GAM)
                    else "choose a regularizer that does not"
                )
                raise UserError(
                    f"{self.title}: {canonical(part.name, part.config)} needs Hessian-vector products, which a closure "
                    f"cannot give; {way_out}"
                )

    def _is_guarded(self) -> bool:
        """Whether the base optimizer itself knows what to do when training breaks."""
        return isinstance(self.base, Learned) and self.base._takeover is not None

    def _correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        rule = self.regularizer
        if isinstance(rule, LookSAM):  # here the step is known, and only what is due need be run
            due = rule.due(self._rule_state.steps)
            return rule.refresh(landscape, here, state) if due else rule.reuse(here, state)
        return rule.correction(landscape, here, state)

    def _active(self, params: list[Tensor]) -> dict[str, Tensor]:
        """The parameters with a gradient, by their places: names that stay when others come or go."""
        active = {str(i): p for i, p in enumerate(params) if p.grad is not None and p.numel()}
        if any(p.is_complex() for p in active.values()):
            raise UserError(
                f"{self.title} cannot use complex parameters; use torch.view_as_real of them"
            )
        devices = sorted({str(p.device) for p in active.values()})
        if len(devices) > 1:
            raise UserError(
                f"{self.title} needs all parameters on one device; these are on {', '.join(devices)}"
            )
        return active
