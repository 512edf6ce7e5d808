"""Optimizees: the small training problems on which optimizers are trained and judged."""

from lo_framework.optimizees.from_module import task_from_module
from lo_framework.optimizees.pool import make_tasks
from lo_framework.optimizees.registry import register_model, register_task
from lo_framework.optimizees.task import ClassificationTask, Task
from lo_framework.optimizees.variation import Variation, make_variations

__all__ = [
    "ClassificationTask",
    "Task",
    "Variation",
    "make_tasks",
    "make_variations",
    "register_model",
    "register_task",
    "task_from_module",
]

if "." not in __name__:  # the folder of the checkout: be lo_framework.optimizees, not a second copy
    from lo_framework.namespace import alias

    alias(__name__)
