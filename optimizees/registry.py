"""The names that spec strings use for optimizees; a file of one's own adds to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.task import ClassificationTask, RegressionTask, Task
from lo_framework.registry import NoOptions, Registry
from lo_framework.spec import UserError

F = TypeVar("F", bound=Callable[..., Task])
M = TypeVar("M", bound=type)

TASKS: Registry[Task] = Registry("optimizee")


def register_task(
    name: str,
    *,
    config: type = NoOptions,
    uses_dataset: bool = True,
    reads_files: bool = False,
    varied: str = "",
    images: bool = False,
) -> Callable[[F], F]:
    """Make an optimizee available under `name` to `make_tasks` and to the command lines.

    The decorated function builds the task: ``build(config, dataset) -> Task``, or ``build(config)
    -> Task`` with ``uses_dataset=False``; with ``reads_files=True``, whose data are of no other
    model, ``build(config, folder) -> Task``, of the data folder or None. `config` is a frozen
    keyword-only dataclass; its fields are the spec's options.

    Raises:
        UserError: the name is taken, or holds a character that spec strings use.
    """
    return TASKS.register(
        name,
        config=config,
        uses_dataset=uses_dataset and not reads_files,
        reads_files=reads_files,
        varied=varied,
        images=images,
    )


def register_model(
    name: str, *, config: type, varied: str = "", images: bool = False
) -> Callable[[M], M]:
    """Make a functional model an optimizee on every data set; see `register_task`.

    The decorated class is called with a config, which has the batch size ``batch``, the shape of an
    input, and the number of outputs; see `Model`.
    """

    def decorate(model: M) -> M:
        def build(settings: Any, dataset: Dataset) -> Task:
            if images and len(dataset.shape) != 3:
                width = dataset.shape[0]
                raise UserError(f"{name} needs images: {dataset.name} has rows of {width} numbers")
            network = model(settings, dataset.shape, dataset.outputs)
            kind = RegressionTask if dataset.num_classes is None else ClassificationTask
            return kind(network, dataset, name=name, batch_size=settings.batch)

        # Who takes a name is told from who took it by where the model comes from.
        build.__module__, build.__qualname__ = model.__module__, model.__qualname__
        register_task(name, config=config, varied=varied, images=images)(build)
        return model

    return decorate
