"""The names that spec strings use for optimizees; a file of one's own adds to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lo_framework.optimizees.task import Task
from lo_framework.registry import NoOptions, Registry

F = TypeVar("F", bound=Callable[..., Task])

TASKS: Registry[Task] = Registry("optimizee")


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
    return TASKS.register(name, config=config, uses_dataset=uses_dataset)
