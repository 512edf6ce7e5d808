"""``Regularized``: explicit use of a regularizer, around any ``torch.optim`` optimizer.

    optimizer = Regularized(torch.optim.AdamW(model.parameters()), regularizer, model=model)
    loss = optimizer.step(closure)

A step runs the closure at the weights w, lets the regularizer run it at other points, and gives the
base optimizer the gradient plus the correction, at w; a rule that is ahead has one pass (`ahead`).
Loops without a closure make a step in two halves (``halves``). The classes by name (`SAM`, ...) are
in ``named``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import nn

from lo_framework.errors import UserError
from lo_framework.optim.base import OptimizerBase, StateOnly, hooked
from lo_framework.optim.checkpoint import has_shards, is_blank_step, pack_entry, take_entry
from lo_framework.optim.eager import eager
from lo_framework.optim.interrupts import Held
from lo_framework.optim.sam.closure_landscape import (
    ClosureLandscape,
    NotFiniteError,
    Passes,
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
from lo_framework.optim.sam.half import check, loaded
from lo_framework.optim.sam.halves import InHalves
from lo_framework.optim.sam.rule_state import RuleState
from lo_framework.optim.sam.surroundings import Surroundings
from lo_framework.regularizers import Point, Regularizer, vectors
from lo_framework.spec import canonical

T = TypeVar("T")
ENTRY = "regularizer"  # of the state
SCALED = "call step(closure, scaler=scaler) instead"
_STATE_HOOKS = [
    f"_optimizer_{method}_{when}_hooks"
    for method in ("state_dict", "load_state_dict")
    for when in ("pre", "post")
]


class Regularized(InHalves, StateOnly, torch.optim.Optimizer):
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
            ``step``: no closure and no `first_step`, sparse gradients, complex parameters, or
            parameters on several devices.
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
        if not isinstance(base, torch.optim.Optimizer):
            raise UserError(
                f"{self.title} goes around an optimizer, as in "
                f"{self.title}(torch.optim.AdamW(model.parameters())); got {type(base).__name__}"
            )
        if isinstance(base, (torch.optim.LBFGS, Regularized)):
            raise UserError(
                f"{self.title} cannot go around {type(base).__name__}, which runs the closure "
                "itself"
            )
        if model is not None and not isinstance(model, nn.Module):
            raise UserError(
                f"{self.title}: model must be a torch.nn.Module, got {type(model).__name__}"
            )
        self.base, self.regularizer = base, regularizer
        self.model, self.same_noise = model, same_noise
        parts = regularizer.parts
        self._rule_state = RuleState(regularizer, "+".join(part.name for part in parts))
        self._specs = [canonical(part.name, part.config) for part in parts]
        for part, spec in zip(parts, self._specs):
            if part.needs_hvp:
                raise UserError(
                    f"{self.title}: {spec} needs Hessian-vector products, which a closure cannot "
                    f"give; {part.without_hvp}"
                )
        self._own = {f.name for part in parts for f in fields(part.config)} - {*base.defaults}
        for group in base.param_groups:
            self._refuse_own(group)
        # No call of super().__init__, which would make groups and state of its own.
        self.defaults = dict(base.defaults)
        for name in _STATE_HOOKS:
            setattr(self, name, getattr(base, name))
        self.__setstate__({})
        self._passes = Passes(self)
        self._is_blank = False  # see `_starts_blank`

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
        return f"{self.title} ({'+'.join(self._specs)}) of {self.base!r}"

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._refuse_own(param_group)
        self.base.add_param_group(param_group)

    def _refuse_own(self, group: dict[str, Any]) -> None:
        """Raise UserError if a group has an option of the regularizer, which no base reads."""
        for key in sorted(self._own & group.keys()):
            raise UserError(
                f'{self.title} has one "{key}" for all parameters: give it to {self.title}, and in '
                "no parameter group"
            )

    @eager
    @torch.no_grad()
    def step(
        self, closure: Callable[[], T] | None = None, *, scaler: torch.amp.GradScaler | None = None
    ) -> T:
        """One step; returns what the closure returned at the current weights (of a rule that is
        ahead, at those ahead).

        Args:
            closure: zeroes the gradients, computes the loss, runs backward, returns the loss. It is
                run as often as the regularizer wants a gradient.
            scaler: by which the closure scales the loss before backward (it returns the unscaled
                loss). If any pass overflows, the step is skipped; call ``scaler.update()`` after
                the step, and not ``scaler.step``.
        """
        if self._starts_blank(closure):
            return None  # type: ignore[return-value]
        if hasattr(self, "grad_scale"):
            for name in ("grad_scale", "found_inf"):
                delattr(self, name)
            raise UserError(f"{self.title} unscales every pass itself: {SCALED} of scaler.step")
        if closure is not None:
            self._refuse_half("step(closure)")
            self._begun = None
        elif (scaler is not None and scaler.is_enabled()) or not self._is_due():
            is_ahead = self.regularizer.is_ahead
            raise UserError(
                f"{self.title} needs a closure: step(closure), where closure() zeroes the "
                "gradients, computes the loss, runs backward and returns the loss; with a "
                f"gradient scaler {SCALED} of scaler.step; without a closure, first_step() and "
                "second_step(), "
                + ("a backward between them" if is_ahead else "each after a backward")
                + " of an unscaled loss"
            )
        arguments: Any = ((self, closure), {"scaler": scaler})
        for before in self._optimizer_step_pre_hooks.values():
            arguments = before(self, *arguments) or arguments
        (_, closure), kwargs = arguments
        result: Any = None
        if closure is None:
            self._end_half()
        else:
            result = self._step(closure, **kwargs)
        for after in self._optimizer_step_post_hooks.values():
            after(self, *arguments)
        return result

    # torch would run the hooks of all optimizers here, which the base's own step runs too: whoever
    # counts steps with them would count each twice.
    step.hooked = True  # type: ignore[attr-defined]
    # A scaler then says that it is scaler.step that has called.
    _step_supports_amp_scaling = True

    def _step(self, closure: Callable[[], T], *, scaler: torch.amp.GradScaler | None = None) -> T:
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        state = self._rule_state
        run = self._passes.of(closure, scaler, self.title)
        if self.regularizer.is_ahead:
            return self._step_ahead(run, scaled=scaler is not None)
        surroundings = Surroundings(self._params, self.model, self.same_noise)
        result = run()
        active = active_of(self._params, self.title)
        if not active:
            return result
        home = copies(active)
        here = Point(home, loss_of(result, home), gradients(active, home))
        # A guarded base decides about a broken loss; an overflow of scaled gradients is none.
        overflows = scaler is not None and bool(here.loss.isfinite())
        guarded = getattr(self.base, "is_guarded", False) and not overflows
        correction = None
        try:
            if is_finite(here.loss, here.grad):
                landscape = ClosureLandscape(
                    run, active, home, surroundings, mixed(state.seed, state.steps)
                )
                correction = self.regularizer.correction_at(
                    state.steps, landscape, here, state.of(home)
                )
            elif not guarded:
                raise broken_at_home(self.title)
        except NotFiniteError:
            if scaler is None:
                raise
            return result  # and the scaler, which has seen it, lowers the scale
        with Held():
            if correction is not None:
                set_gradients(active, vectors.add(here.grad, correction.field))
            step_base(self.base, here.loss)
            if correction is not None:  # not before: the base may refuse to step
                state.advance(correction.state)
        return result

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, which can load it, and ``"regularizer"``, which the first
        parameter group also has, as bytes (`checkpoint`). References, not copies. Between
        `first_step` and `second_step` it has the weights to go back to.
        """

        self.param_groups[0][ENTRY] = None

        def add(_: torch.optim.Optimizer, result: dict[str, Any]) -> None:
            result[ENTRY] = entry = self._rule_state.state_dict()
            if self._half is not None:
                entry["half"] = self._half.state_dict()
            if has_shards(entry):  # which no process can write down alone
                entry = {**entry, "state": {}, "left_out": True}
                entry.pop("half", None)
            result["param_groups"][0][ENTRY] = pack_entry(entry)

        with hooked(self.base.register_state_dict_post_hook(add, prepend=True)):
            return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken. From a state of the base optimizer alone, the
        regularizer starts.

        Raises:
            UserError: the state is of another regularizer, or around another class of optimizer.
        """
        saved: Any = None

        def capture(_: torch.optim.Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            nonlocal saved
            groups = [dict(group) for group in adapted["param_groups"]]
            foreign = {kind.entry for kind in OptimizerBase.__subclasses__()}
            if (foreign - {getattr(self.base, "entry", None)}) & adapted.keys():
                raise UserError(
                    "this state is of another optimizer class, not of "
                    f"{self.title} around {type(self.base).__name__}"
                )
            saved = take_entry(ENTRY, adapted, groups, self.title)
            if saved is not None:
                self._rule_state.check(saved)
                check(saved.get("half"), self._params, self.model)
            rest = {key: value for key, value in adapted.items() if key != ENTRY}
            return {**rest, "param_groups": groups}

        def rebuild(_: torch.optim.Optimizer) -> None:
            self._rule_state.load_state_dict(saved)
            half = saved.get("half") if saved else None
            if half is None:
                self._give_up_half()
            else:
                around = Surroundings(self._params, self.model, self.same_noise)
                self._half, self._versions = loaded(half, self._params, around), ()
            self._is_blank = False

        with hooked(
            self.base.register_load_state_dict_pre_hook(capture),
            self.base.register_load_state_dict_post_hook(rebuild, prepend=True),
        ):
            self.base.load_state_dict(state_dict)

    @torch.no_grad()
    def _starts_blank(self, closure: Any) -> bool:
        """Whether torch makes this step before it saves or loads a state (`checkpoint`): it lets
        the base make its state, with which no step begins.
        """
        was_blank, self._is_blank = self._is_blank, False
        if closure is None and not self.state and is_blank_step(self.param_groups):
            self._is_blank = True
            self.param_groups[0][ENTRY] = None
            self.base.step()
        elif was_blank and not isinstance(self.base, OptimizerBase):  # which knows by itself
            self.state.clear()
        return self._is_blank
