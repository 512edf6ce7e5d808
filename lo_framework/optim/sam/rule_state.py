"""The state of a regularizer inside an optimizer, while parameters come and go."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from lo_framework.errors import UserError
from lo_framework.regularizers.base import Params, Regularizer, State


class RuleState:
    """The state of ``rule``, known by ``name`` in saved files.

    Attributes:
        steps: how many steps it has made.
        seed: of its random numbers; drawn from nothing, so that no generator moves.
    """

    def __init__(self, rule: Regularizer, name: str) -> None:
        self.rule, self.name = rule, name
        self._held: State = {}
        self._of: tuple[Any, ...] = ()  # the parameters that the entries in use belong to
        self._used: tuple[str, ...] = ()
        self.load_state_dict(None)

    def of(self, params: Params) -> State:
        """The entries for these parameters. Entries of absent parameters wait until they are back;
        newcomers start.

        Raises:
            UserError: an entry was saved for parameters of other shapes.
        """
        key = tuple((name, x.device, x.dtype) for name, x in params.items())
        if key != self._of:
            fresh = self.rule.init_state(params)
            for name, value in fresh.items():
                held = self._held.get(name, value)
                if held.shape != value.shape:
                    raise UserError(
                        f"this state is of other parameters: {self.name}'s {name} has shape "
                        f"{tuple(held.shape)}, not {tuple(value.shape)}"
                    )
                self._held[name] = held.to(value)
            self._of, self._used = key, tuple(fresh)
        return {name: self._held[name] for name in self._used}

    def advance(self, new: State) -> None:
        self._held.update(new)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        of_rule = {"name": self.name, "seed": self.seed, "steps": self.steps}
        return {**of_rule, "state": dict(self._held)}

    def check(self, saved: dict[str, Any]) -> None:
        if saved["name"] != self.name:
            raise UserError(
                f'this state is of the regularizer "{saved["name"]}", not of "{self.name}"'
            )

    def load_state_dict(self, saved: dict[str, Any] | None) -> None:
        """None: start."""
        if saved and saved.get("left_out"):
            warnings.warn(
                f"what {self.name} remembers of sharded parameters does not go through "
                "torch.distributed.checkpoint: it starts anew",
                stacklevel=2,
            )
        saved = saved or {"seed": torch.initial_seed(), "steps": 0, "state": {}}
        self.seed, self.steps = saved["seed"], saved["steps"]
        self._held, self._of = dict(saved["state"]), ()
