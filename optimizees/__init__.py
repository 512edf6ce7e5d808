"""Optimizees: the small training problems on which optimizers are trained and judged."""

from optimizees.from_module import task_from_module
from optimizees.plugin import load_plugin, load_plugins
from optimizees.pool import make_tasks
from optimizees.registry import register_task
from optimizees.spec import UserError, build_config, canonical, nearest, parse_spec, split_specs
from optimizees.task import Batch, Buffers, ClassificationTask, Params, Task

__all__ = [
    "Batch",
    "Buffers",
    "ClassificationTask",
    "Params",
    "Task",
    "UserError",
    "build_config",
    "canonical",
    "load_plugin",
    "load_plugins",
    "make_tasks",
    "nearest",
    "parse_spec",
    "register_task",
    "split_specs",
    "task_from_module",
]
