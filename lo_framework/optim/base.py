"""The base of this package's optimizers: parameters and their names, gradients, added groups,
saving and loading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lo_framework.layout import Layout
from lo_framework.optim.checkpoint import (
    is_blank_step,
    pack_entry,
    refuse_zero_redundancy,
    take_entry,
)
from lo_framework.optim.naming import (
    layout_by_names,
    layout_in,
    named_group,
    names_in,
    names_of,
    refuse_other_order,
    warn_of_embedding,
)
from lo_framework.optim.options import WithOptions
from lo_framework.optim.refusals import refuse_complex, refuse_lazy, refuse_sparse, were_replaced
from lo_framework.optim.shards import (
    lend_gradients,
    localized,
    parts_of,
    refuse_partial,
    return_gradients,
    sharded,
)
from lo_framework.optim.telling import Telling
from lo_framework.spec import UserError

ByPlace = dict[int, dict[str, Any]]  # the state of parameters, by their places in the whole list


@contextmanager
def hooked(*handles: RemovableHandle) -> Iterator[None]:
    """Keep hooks for the time of a block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class StateOnly:
    """Copied and saved through ``state_dict`` alone: what lives in an optimizer is tied to its
    parameters.
    """

    def __getstate__(self) -> NoReturn:
        kind = type(self).__name__
        raise TypeError(f"{kind} is copied and saved through state_dict() and load_state_dict()")


class OptimizerBase(Telling, WithOptions, StateOnly, torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` whose state may be of another dtype than its parameters, and that
    saves an ``entry`` of its own beside torch's.

    Subclasses say what is special about them in `_check_group`, `_extend`, `_entry`,
    `_check_entry`, `_check_saved`, `_leads`, `_restore`, `_make_state`, `_forget_state`, and what
    they tell in `_values` and `_about`.

    Attributes:
        entry: key of what belongs to no single parameter in ``state_dict()``.
        takes_loss: whether ``step`` wants the loss, as ``step(loss=loss)``.
        reads_roles: whether an update depends on what tensors are for.
    """

    entry: ClassVar[str]
    takes_loss: ClassVar[bool] = False
    reads_roles: ClassVar[bool] = False

    def __init__(
        self, params: Any, defaults: dict[str, Any], model: nn.Module | None = None
    ) -> None:
        kind = type(self).__name__
        refuse_zero_redundancy(kind)
        self._is_complete = False  # while groups are added one by one
        self._is_blank = False  # whether state was made by torch's step before it saves or loads
        if not (model is None or isinstance(model, nn.Module)):
            raise UserError(f"{kind}: model must be a torch.nn.Module, not {type(model).__name__}")
        if isinstance(params, nn.Module):
            if not (model is None or model is params):
                raise UserError(f"give {kind} one module: model is for parameters and groups")
            model = params
            params = [p for p in model.parameters() if p.requires_grad]
            if not params:
                raise UserError(f"{kind} needs a parameter that requires a gradient")
        self._model = model
        self._know_options(defaults)
        self._check_values(defaults)
        super().__init__(params, defaults)
        if not self._params:
            raise UserError(f"{kind} needs at least one parameter")
        self._is_complete = True
        self._meet_schedulers()
        self._say_small(self.param_groups, stacklevel=4)
        if self.reads_roles and not self._unique_names():
            warn_of_embedding(self._params, kind, stacklevel=4)

    @property
    def is_guarded(self) -> bool:
        """Whether the optimizer itself knows what to do when training breaks."""
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as any optimizer does; nothing changes if it is refused."""
        given = self._checked_options(param_group)
        super().add_param_group(named_group(given, self._model, type(self).__name__))
        try:
            added = self.param_groups[-1]
            added.pop("momentum", None)  # see `_meet_schedulers`
            refuse_lazy(added["params"], type(self).__name__)
            refuse_complex(added["params"], type(self).__name__)
            refuse_partial(added["params"], type(self).__name__)
            self._check_group(added)
            self._list_params()
            if self._is_complete:
                self._extend()
                self._say_small([added], stacklevel=3)
        except UserError:
            self.param_groups.pop()
            self._list_params()
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state as of any optimizer, and ``entry``: what belongs to no single parameter.
        References, not copies. The first parameter group has it too, as bytes (`checkpoint`).
        """
        self.param_groups[0][self.entry] = None

        def add(_: torch.optim.Optimizer, result: dict[str, Any]) -> None:
            result[self.entry] = entry = self._entry()
            result["param_groups"][0][self.entry] = pack_entry(self._packed(entry))

        # First of all hooks, so that those of the user see the whole.
        with hooked(self.register_state_dict_post_hook(add, prepend=True)):
            return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken. All is checked before anything changes.

        Raises:
            UserError: the state is of another kind of optimizer, or of other parameters.
        """
        own: dict[str, Any] = {}
        saved: ByPlace = {}

        # After the hooks of the user, which may adapt a state. torch would cast the parameters'
        # state to their dtype, so it is taken out here and put back at the end.
        def capture(_: torch.optim.Optimizer, adapted: dict[str, Any]) -> dict[str, Any]:
            groups = [dict(group) for group in adapted["param_groups"]]
            entry = take_entry(self.entry, adapted, groups, type(self).__name__)
            own.update(self._check_entry(entry, groups))
            for i, group in enumerate(groups):
                self._check_values(group, f"parameter group {i} of this state: ")
            refuse_other_order(self, groups)
            places = [k for group in groups for k in group["params"]]
            states = {i: adapted["state"].get(k) for i, k in enumerate(places)}
            saved.update({i: state for i, state in states.items() if state})
            self._check_saved(saved)
            self._check_shapes(saved)
            return {**adapted, "param_groups": groups, "state": {}}

        def rebuild(_: torch.optim.Optimizer) -> None:
            self._restore(own, saved)
            self._is_blank = False

        with hooked(
            self.register_load_state_dict_pre_hook(capture),
            self.register_load_state_dict_post_hook(rebuild, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Check the settings of a new group; may complete them. Raises UserError."""

    def _extend(self) -> None:
        """Take in the parameters of a group that was added after construction."""

    def _entry(self) -> dict[str, Any]:
        """The optimizer's own entry of ``state_dict()``."""
        raise NotImplementedError

    def _check_entry(self, entry: Any, groups: list[dict[str, Any]]) -> dict[str, Any]:
        """The entry of a saved state, once it is known to fit; ``groups`` (copies) may be adapted.
        Raises UserError.
        """
        if not isinstance(entry, dict) or "kind" not in entry:
            raise UserError(
                f"this state is of another optimizer class, not of {type(self).__name__}"
            )
        return entry

    def _check_saved(self, saved: ByPlace) -> None:
        """Check the saved state of parameters. Raises UserError."""

    def _restore(self, entry: dict[str, Any], saved: ByPlace) -> None:
        """Take over what was saved, and keep nothing of before."""
        raise NotImplementedError

    def _leads(self) -> Mapping[str, tuple[int, ...]]:
        """The state that is shaped as its parameter, ``[*lead, *shape]``, with its lead."""
        raise NotImplementedError

    def _check_shapes(self, saved: ByPlace) -> None:
        """Leave in ``saved`` what lies here; raise UserError unless shapes are as `_leads` says."""
        leads = self._leads()
        for i, state in saved.items():
            if i >= len(self._params):
                continue  # torch's own check of the groups says so
            shape = self._params[i].shape
            for name, lead in leads.items():
                if name in state and state[name].shape != (*lead, *shape):
                    raise UserError(
                        f"this state is of other parameters: parameter {i} has shape "
                        f"{tuple(shape)}, its {name} has {tuple(state[name].shape)}"
                    )
            saved[i] = localized(state, leads, self._params[i])

    def _packed(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What of the entry also goes into a parameter group."""
        return entry

    def _make_state(self, active: tuple[int, ...]) -> None:
        """Make the state that these parameters start with."""
        raise NotImplementedError

    def _forget_state(self) -> None:
        """Be as before `_make_state`."""
        self.state.clear()

    @torch.no_grad()
    def _starts_blank(self, closure: Any) -> bool:
        """Whether this step is the one by which torch makes state before it saves or loads, which
        changes nothing; a step that follows it begins without that state.
        """
        was_blank, self._is_blank = self._is_blank, False
        if closure is None and not self.state and is_blank_step(self.param_groups):
            if active := self._active():
                self.param_groups[0][self.entry] = None
                self._make_state(active)
            self._is_blank = True
        elif was_blank:
            self._forget_state()
        return self._is_blank

    def _list_params(self) -> None:
        """List all parameters, and the group of each."""
        self._params = [p for group in self.param_groups for p in group["params"]]
        self._group_of = [g for g, group in enumerate(self.param_groups) for _ in group["params"]]
        self._here = parts_of(self._params)  # the same list where no parameter is sharded
        self._lists = [group["params"] for group in self.param_groups]

    def _unique_names(self) -> list[str] | None:
        """The names of all parameters; None unless each has one of its own."""
        names = self._names_in_model() or names_of(self.param_groups)
        return names if len(set(names)) == len(self._params) else None

    def _names_in_model(self) -> list[str] | None:
        """The names that the module has now for all parameters; None where it lacks one."""
        known = names_in(self._model)
        names = [known[p] for p in self._params if p in known]
        return names if len(names) == len(self._params) else None

    def _lay_out(self, names: list[str], *, named: bool) -> Layout:
        """The layout of the parameters, in the list's order. ``named``: whether ``names`` are
        theirs.
        """
        shapes = {name: p.shape for name, p in zip(names, self._params, strict=True)}
        if not named:
            layout = Layout.of(shapes)
        elif self._model is not None and names == self._names_in_model():
            layout = layout_in(self._model, names)
        else:
            todo = iter(names)
            groups = [[next(todo) for _ in group["params"]] for group in self.param_groups]
            layout = layout_by_names(groups, shapes)
        return sharded(layout, self._params)

    @property
    def _device(self) -> torch.device:
        """Where the model is now: many training loops move it after they build the optimizer."""
        return self._params[0].device

    def _active(self) -> tuple[int, ...]:
        """Places of the parameters that take part in this step: those with a gradient.

        Raises:
            UserError: a gradient is sparse, or a group got other parameters in the midst of a run.
        """
        pairs = zip(self._here, self._params)
        moved = self._is_sharded and any(x.device != p.device for x, p in pairs)
        if were_replaced(self, self._lists) or moved:
            self._list_params()
            self._extend()
        active, strided = [], torch.strided
        for i, p in enumerate(self._params):
            grad = p.grad
            if grad is not None and p.numel():
                if grad.layout is not strided:
                    refuse_sparse(grad, type(self).__name__)
                active.append(i)
        if not active:
            self._groups_seen.say_idle()
        return tuple(active)

    @property
    def _is_sharded(self) -> bool:
        return self._here is not self._params

    def _updating(self) -> AbstractContextManager[Any]:
        """A block that updates parameters, with what lies here of them and of their gradients in
        ``_here``. Autocast is off: half-precision products are for models.
        """
        kind = self._device.type
        is_on = torch.is_autocast_enabled(kind)
        precision = torch.autocast(kind, enabled=False) if is_on else nullcontext()
        return self._lending(precision) if self._is_sharded else precision

    @contextmanager
    def _lending(self, precision: AbstractContextManager[Any]) -> Iterator[None]:
        lend_gradients(self._here, self._params)
        try:
            with precision:
                yield
        finally:
            return_gradients(self._here, self._params)
