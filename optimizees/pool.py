"""From spec strings to tasks: the product of optimizees and data sets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from lo_framework.optimizees import (
    analytic as _analytic,  # noqa: F401 (registers its tasks)
    datasets as datasets_room,
    forecasting as _forecasting,  # noqa: F401
    language as _language,  # noqa: F401
    residual as _residual,  # noqa: F401
    sentiment as _sentiment,  # noqa: F401
    translation as _translation,  # noqa: F401
)
from lo_framework.optimizees.datasets import Dataset
from lo_framework.optimizees.models import cnn, gru, mlp, transformer  # noqa: F401 (register theirs)
from lo_framework.optimizees.registry import TASKS
from lo_framework.optimizees.task import Task
from lo_framework.registry import Entry
from lo_framework.spec import (
    UserError,
    canonical,
    describe,
    first_line,
    parse_spec,
    split_specs,
)


def make_tasks(
    optimizees: str | Sequence[str],
    datasets: str | Sequence[str] = "digits",
    data_dir: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> list[Task]:
    """One task for every pair of an optimizee and a data set, optimizees outermost.

    Args:
        optimizees: specs, as ``"mlp:hidden=64x64,cnn"`` or a list; those that need no data come
            once.
        datasets: specs, as ``"digits,mnist:size=8"`` or a list.
        data_dir: folder with data files; without it ``LO_DATA_DIR``.

    Raises:
        UserError: an unknown name or option (naming the nearest), a spec given twice, unreadable
            data, a device that is not there.
    """
    device = usable_device(device)
    folder = datasets_room.folder_of(data_dir)
    for spec in specs_of(datasets, "data sets"):
        datasets_room.check(spec)  # an error even if no optimizee needs data
    tasks: dict[str, Task] = {}
    for optimizee, named in families(optimizees, datasets):
        entry, config = TASKS.parse(optimizee)
        dataset = None if named is None else datasets_room.load(named, folder)
        task = build_task(entry, config, dataset, device, folder)
        if task.name in tasks:
            raise UserError(f'the optimizee "{task.name}" is given twice')
        tasks[task.name] = task
    return list(tasks.values())


def families(
    optimizees: str | Sequence[str], datasets: str | Sequence[str]
) -> Iterator[tuple[str, str | None]]:
    """The pairs of specs, an optimizee and its data set (None where it needs none), that
    `make_tasks` is about.
    """
    data_specs = specs_of(datasets, "data sets")
    for spec in specs_of(optimizees, "optimizees"):
        uses_dataset = TASKS.find(parse_spec(spec)[0]).facts["uses_dataset"]
        for dataset in data_specs if uses_dataset else (None,):
            yield spec, dataset


def build_task(
    entry: Entry[Task],
    config: Any,
    dataset: Dataset | None,
    device: torch.device,
    folder: str | None = None,
) -> Task:
    """The task of a registered optimizee with `config` on a data set, or on files that it reads
    itself in the data `folder`, under its canonical name.
    """
    data = (folder,) if entry.facts["reads_files"] else () if dataset is None else (dataset,)
    task = _built(entry, config, data)
    stem = canonical(entry.name, config)
    task.name = stem if dataset is None else f"{stem}/{dataset.name}"
    return task if device.type == "cpu" else task.to(device)


def _built(entry: Entry[Task], config: Any, data: tuple[Any, ...]) -> Task:
    """The task that a registered function makes, which may be a person's."""
    try:
        task = entry.build(config, *data)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"the optimizee {entry.name}: {describe(error)}") from error
    if not hasattr(task, "loss"):
        raise UserError(
            f"the optimizee {entry.name}: its function returned no task but {type(task).__name__}"
        )
    return task


def specs_of(given: str | Sequence[str], what: str) -> list[str]:
    """Split what names some of `what` into specs; raises UserError where there is none."""
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(text.strip() for text in texts):
        raise UserError(f"no {what} given")
    return [spec for text in texts for spec in split_specs(text)]


def usable_device(name: torch.device | str) -> torch.device:
    """The device called `name`; raises UserError unless tensors can be made there."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device "{name}" cannot be used here: {first_line(error)}') from None
    if device.type == "meta":
        raise UserError('device "meta" cannot be used here: its tensors hold no numbers')
    return device
