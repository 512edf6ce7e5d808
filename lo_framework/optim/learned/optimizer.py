"""``Learned``: a meta-trained optimizer as a ``torch.optim.Optimizer``, for any training loop.

    optimizer = Learned(model, "general", num_steps=1000)  # shipped; or the path of a file

A thin class: the update rule is in ``lo_framework.learned``, its host in ``host``, its state in
``store``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.errors import UserError, shown, whole
from lo_framework.learned import LearnedOptimizer, fingerprint, learned_from
from lo_framework.learned.base import Clock
from lo_framework.optim.base import ByPlace, OptimizerBase
from lo_framework.optim.eager import eager
from lo_framework.optim.interrupts import Held
from lo_framework.optim.learned.fallback import Fallback
from lo_framework.optim.learned.guard import GuardConfig
from lo_framework.optim.learned.host import CPU_CHUNK, Host
from lo_framework.optim.learned.last import quantities_of
from lo_framework.optim.learned.memory import Lying, lying
from lo_framework.optim.learned.store import Store
from lo_framework.optim.options import Course
from lo_framework.optim.shards import over_shards
from lo_framework.optim.telling import Values, counted, made


class Learned(OptimizerBase):
    """Update parameters by a learned optimizer.

    Args:
        params: a module, of which all parameters that require a gradient are taken; their roles are
            then read off the types of modules. Or parameters, named parameters or parameter groups:
            roles are read off shapes, names, and the order that names tell (`roles.model_order`);
            without names the list must be in the model's order, and no embedding is known.
        optimizer: ``"general"``, which is shipped, ``"hf://owner/name"`` of the Hugging Face hub,
            the path of a saved one, or a ``LearnedOptimizer``, of which a frozen copy is made.
        num_steps: how many steps this training will have. Learned schedules run over this length;
            steps beyond it are made as at its end, which is said once (a run that stops before
            cannot be told from one that will go on). None, where a rule can do without: there is no
            schedule then, and a scheduler is the way to let the step fall.
        lr: multiplier of the update, per parameter group, no learning rate; schedulers act on it. 1
            is the optimizer as meta-trained. If it falls while a learned schedule runs, that is
            said once.
        weight_decay: decoupled, in AdamW's sense, per parameter group: a parameter loses this times
            the size of its tensor's update (root mean square), as AdamW's, whose directions have a
            size of about one, loses it times the learning rate. It adds to what the optimizer has
            learned to decay, and takes a copy of the decayed parameters during a step.
        model: the module whose parameters are in ``params``, for groups (decay and no decay, a rate
            per layer): roles and order are then its own, whatever the order of the groups.
        guard: go back and hand over to AdamW for a while when training breaks (`guard`), as the
            gradients tell; the loss, where ``step`` is told it, is looked at too. It has a copy of
            the parameters. A `GuardConfig`: its settings; False: no guard.
        chunk: parameters per call of the rule; None chooses by device.

    Parameters without a gradient take no part in a step: they are no token of the attention and
    their state stands still. State and arithmetic are float32 for float32, bfloat16 and float16
    parameters (float64 if any parameter is); the result is rounded to the parameter's dtype, there
    is no float32 master copy. Parameters may be DTensors (``fully_shard``, tensor parallelism);
    what processes then exchange is told in ``docs/distributed.md``. Save and copy through
    ``state_dict``.

    Raises:
        UserError: no or a bad ``num_steps``, an unknown name, an unreadable file, complex
            parameters, an option of a group beside ``lr`` and ``weight_decay``; by ``step``: sparse
            gradients, an optimizer of corrected gradients (`explicit`) outside `Regularized`.
    """

    entry = "learned"
    takes_loss = True
    reads_roles = True
    multiplies = "the learned update"
    log_prefix = "learned"

    def __init__(
        self,
        params: Any,
        optimizer: str | os.PathLike[str] | LearnedOptimizer,
        num_steps: int | None = None,
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        model: nn.Module | None = None,
        guard: bool | GuardConfig = True,
        chunk: int | None = None,
    ) -> None:
        learned = learned_from(optimizer)
        if num_steps is None and not learned.open_ended:
            raise UserError(
                "Learned needs num_steps, the number of steps of this training: learned schedules "
                f"of {learned.kind} run over it"
            )
        self.num_steps = None if num_steps is None else whole("num_steps", num_steps)
        chunk = None if chunk is None else whole("chunk", chunk)
        if not isinstance(guard, bool | GuardConfig):
            raise UserError(f"guard must be True, False or a GuardConfig, not {shown(guard)}")
        self._fingerprint = fingerprint(learned)
        self._source = self._fingerprint
        if not isinstance(optimizer, LearnedOptimizer):
            self._source = str(os.fspath(optimizer))
        # What its gradients were corrected by when it was meta-trained (SAM with a learned radius),
        # or None.
        self.explicit = learned.explicit(learned.theta())
        self._updates = 0
        self._observed: list[Tensor] = []
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, model)
        if self.num_steps and learned.has_schedule:
            course = Course("num_steps", self.num_steps, learned.open_ended, learned.kind)
            self._groups_seen.expect(course)
        double = any(p.dtype == torch.float64 for p in self._params)
        dtype = torch.float64 if double else torch.float32
        self._host = Host(learned, self._device, dtype, chunk)
        self._read_layout()
        self._new_store()
        config = guard if isinstance(guard, GuardConfig) else GuardConfig()
        self._fallback = Fallback(config, self, self.num_steps) if guard else None

    @property
    def guard_activations(self) -> int:
        """How many times AdamW had to take over."""
        return self._fallback.guard.activations if self._fallback else 0

    @property
    def is_guarded(self) -> bool:
        return self._fallback is not None

    def observe(self, loss: Tensor | float) -> None:
        """Tell the loss of the coming step, where neither a closure nor ``step(loss=)`` can.
        Several are averaged.
        """
        self._observed.append(self._as_loss(loss))

    @eager
    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | float | None = None
    ) -> Any:
        """One update from the parameters' gradients.

        ``closure`` recomputes loss and gradients first; its result is returned. ``loss`` is for
        rules and guards that look at it.
        """
        if self._starts_blank(closure):
            return None
        if closure is not None and loss is not None:
            raise UserError("give step a closure or a loss, not both")
        if self.explicit is not None and loss is None:
            raise UserError(
                "this optimizer was meta-trained on the gradients of explicit "
                f"{self.explicit.name}: step Regularized(optimizer, optimizer.explicit) of "
                "lo_framework.optim instead of it"
            )
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = loss = closure()
        observed, self._observed = self._observed, []
        value = torch.stack(observed).mean() if observed else None
        if loss is not None:
            value = self._as_loss(loss)
        active = self._active()
        if active:
            self._groups_seen.look(self.param_groups, self._updates)
            with Held(), self._updating():
                self._guarded(active, value) if self._fallback else self._update(
                    active, value, self._lying(active)
                )
        return result

    def _values(self) -> Values:
        values: Values = {}
        if self.num_steps:
            values["progress"] = min(self._updates / self.num_steps, 1.0)
        if self._fallback:
            values["guard/activations"] = self.guard_activations
            values["guard/steps"] = self._fallback.guard.remaining
        if self._host.last is not None:
            rates = [self.param_groups[k]["lr"] for k in self._group_of]
            values |= quantities_of(self._host, self._store, rates)
        return values

    def _about(self) -> str:
        guard = f", guard (activations: {self.guard_activations})" if self._fallback else ""
        return (
            f"{self._source} ({self._host.learned.kind}), {counted(self._params)}, "
            f"{made(self._updates, self.num_steps)}{guard}"
        )

    def _extend(self) -> None:
        self._read_layout()
        self._set_params()
        self._publish()

    def _entry(self) -> dict[str, Any]:
        return {
            "kind": self._host.learned.kind,
            "fingerprint": self._fingerprint,
            "updates": self._updates,
            "shared": self._store.shared(),
            "packs": [list(pack.members) for pack in self._store.packs],
            "takeover": self._fallback.state_dict() if self._fallback else None,
        }

    def _check_entry(self, entry: Any, groups: list[dict[str, Any]]) -> dict[str, Any]:
        entry = super()._check_entry(entry, groups)
        kind = entry["kind"]
        if (kind, entry["fingerprint"]) != (self._host.learned.kind, self._fingerprint):
            raise UserError(
                f"this state is of another learned optimizer ({kind}): build Learned with the "
                "optimizer file it was saved with"
            )
        for group in groups:
            group.setdefault("weight_decay", 0.0)  # older states have none
        return entry

    def _leads(self) -> Mapping[str, tuple[int, ...]]:
        return self._store.leads

    def _packed(self, entry: dict[str, Any]) -> dict[str, Any]:
        takeover = self._fallback and self._fallback.without_copies(entry["takeover"])
        return {**entry, "takeover": takeover}

    def _make_state(self, active: tuple[int, ...]) -> None:
        self._admit(active)

    def _forget_state(self) -> None:
        self._new_store()

    def _restore(self, entry: dict[str, Any], saved: ByPlace) -> None:
        """``num_steps`` and the guard's settings stay this object's."""
        self._new_store()
        self._store.restore(saved, entry["shared"], entry["packs"])
        self._publish()
        self._updates = entry["updates"]
        if self._fallback and entry["takeover"] is not None:
            self._fallback.load_state_dict(entry["takeover"])

    def _lying(self, active: tuple[int, ...]) -> Lying | None:
        """Where the tensors with a gradient lie at this step."""
        here = self._here
        return lying(here if len(active) == len(here) else [here[i] for i in active])

    def _update(self, active: tuple[int, ...], loss: Tensor | None, where: Lying | None) -> None:
        self._admit(active)
        decayed = [i for i in active if self.param_groups[self._group_of[i]]["weight_decay"]]
        old = {i: self._here[i].clone() for i in decayed}
        steps = self.num_steps
        clock = [min(self._updates / steps, 1.0), float(steps)] if steps else [0.0, 0.0]
        self._host.update(
            self._store,
            self._store.plan(active),
            [group["lr"] for group in self.param_groups],
            loss,
            Clock(*torch.tensor(clock, device=self._host.device, dtype=self._host.dtype).unbind()),
            where,
        )
        moved = {i: (self._here[i] - x).pow_(2).mean() for i, x in old.items()}
        if self._is_sharded:
            moved = over_shards(self._layout, moved)
        for i in decayed:
            decay = self.param_groups[self._group_of[i]]["weight_decay"]
            self._here[i].sub_(old[i].mul_(moved[i].sqrt() * decay))
        self._updates += 1

    def _admit(self, active: Sequence[int]) -> None:
        """State for those that have none."""
        if not (self._store.home or self._store.reduced):
            self._new_store()  # where the model is now
        newcomers = [i for i in active if i not in self._store.home]
        if newcomers:
            self._store.admit(newcomers)
            self._publish()

    def _guarded(self, active: tuple[int, ...], loss: Tensor | None) -> None:
        """Make one step under the guard, by the learned optimizer or by AdamW."""
        fallback = self._fallback
        assert fallback is not None
        where = self._lying(active)
        verdict = fallback.before(active, loss, where)
        if verdict == "back":
            self._begin_again(active)
        if verdict != "go":
            return
        if is_adamw := fallback.in_charge:
            fallback.step()
            self._updates += 1
        else:
            self._update(active, loss, where)
        fallback.after(active)
        if is_adamw and not fallback.in_charge:
            self._begin_again(active)  # where AdamW has led

    def _begin_again(self, active: tuple[int, ...]) -> None:
        """Fresh state at once: while AdamW is in charge there is some to save too, without which
        `torch.distributed.checkpoint` could not load.
        """
        self._new_store()
        self._admit(active)

    def _as_loss(self, loss: Tensor | float) -> Tensor:
        value = torch.as_tensor(loss).detach()
        if value.numel() != 1:
            raise UserError(
                f"the loss must be one number, got a tensor of shape {tuple(value.shape)}"
            )
        return value.reshape(()).to(self._host.device, self._host.dtype)

    def _read_layout(self) -> None:
        """Lay out the whole list, frozen parameters and all: a tensor's role does not depend on who
        has a gradient.
        """
        names = self._unique_names()
        numbers = [str(i) for i in range(len(self._params))]
        self._layout = self._lay_out(names or numbers, named=names is not None)

    def _set_params(self) -> None:
        self._host.last = None  # of other parameters, or of a state that is gone
        self._store.set_params(self._here, self._group_of, self._layout)

    def _new_store(self) -> None:
        """Start afresh, where the parameters are."""
        host, device = self._host, self._device
        if host.device != device:
            host = self._host = Host(host.learned, device, host.dtype, host.chunk)
        self._store = Store(host.learned, device, host.dtype, host.chunk or CPU_CHUNK)
        self._set_params()
        self.state.clear()

    def _publish(self) -> None:
        """Show each parameter's state in ``self.state``, as views."""
        for i in self._store.home:
            self.state[self._params[i]] = self._store.views(i)
