"""The names that spec strings may use for optimizees, and the decorator by which user code adds its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lo_framework.optimizees.task import Task
from lo_framework.spec import UserError

F = TypeVar("F", bound=Callable[..., Task])


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The config of an optimizee that takes no options."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How to build one optimizee; see `register_task`."""

    build: Callable[..., Task]
    config: type
    uses_dataset: bool


TASKS: dict[str, Entry] = {}


def register_task(
    name: str, *, config: type = NoOptions, uses_dataset: bool = True
) -> Callable[[F], F]:
    """Make an optimizee available under `name` to `make_tasks` and to the command lines.

    The decorated function builds the task: ``build(config, dataset) -> Task``, or ``build(config)
    -> Task`` with ``uses_dataset=False``. `config` is a frozen keyword-only dataclass; its fields
    are the spec's options.

    Raises:
        UserError: the name is taken, or holds a character that spec strings use.
    """
    if not name or any(c in name for c in ":,=+/ "):
        raise UserError(
            f'register_task: "{name}" is not a name: it must hold none of : , = + / and no blank'
        )

    def register(build: F) -> F:
        held: Any = TASKS.get(name)
        # The same function registered again (a plugin file loaded twice) is no conflict.
        if held is not None and (held.build.__module__, held.build.__qualname__) != (
            build.__module__,
            build.__qualname__,
        ):
            raise UserError(f'register_task: the name "{name}" is taken by {held.build.__module__}')
        TASKS[name] = Entry(build=build, config=config, uses_dataset=uses_dataset)
        return build

    return register
