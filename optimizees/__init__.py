"""Optimizees: the small training problems on which optimizers are trained and judged."""

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
    "make_tasks",
    "nearest",
    "parse_spec",
    "register_task",
    "split_specs",
]
