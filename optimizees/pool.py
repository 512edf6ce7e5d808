"""From spec strings to tasks: the product of optimizees and data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch

from lo_framework.optimizees import analytic as _analytic  # noqa: F401 (registers quadratic and rosenbrock)
from lo_framework.optimizees import datasets as datasets_room
from lo_framework.optimizees.datasets import Dataset
from lo_framework.optimizees.models import (
    CNN,
    MLP,
    CNNConfig,
    MLPConfig,
    MLPReluConfig,
    Transformer,
    TransformerConfig,
    TransformerTask,
)
from lo_framework.optimizees.registry import TASKS, Entry, register_task
from lo_framework.optimizees.task import ClassificationTask, Task
from lo_framework.spec import (
    UserError,
    build_config,
    canonical,
    first_line,
    nearest,
    parse_spec,
    split_specs,
)


@register_task("mlp", config=MLPConfig)
def build_mlp(config: MLPConfig, dataset: Dataset) -> Task:
    channels, height, width = dataset.shape
    model = MLP(config, channels * height * width, dataset.num_classes)
    return ClassificationTask(model, dataset, name="mlp", batch_size=config.batch)


@register_task("mlp-relu", config=MLPReluConfig)
def build_mlp_relu(config: MLPReluConfig, dataset: Dataset) -> Task:
    return build_mlp(config, dataset)


@register_task("cnn", config=CNNConfig)
def build_cnn(config: CNNConfig, dataset: Dataset) -> Task:
    model = CNN(config, dataset.shape, dataset.num_classes)
    return ClassificationTask(model, dataset, name="cnn", batch_size=config.batch)


@register_task("transformer", config=TransformerConfig)
def build_transformer(config: TransformerConfig, dataset: Dataset) -> Task:
    model = Transformer(config, dataset.shape, dataset.num_classes)
    return TransformerTask(model, dataset, name="transformer", batch_size=config.batch)


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
    device = _device(device)
    folder = None if data_dir is None else os.fspath(data_dir)
    data_specs = _specs(datasets, "data sets")
    for spec in data_specs:  # a misspelt name is an error even if no optimizee needs data
        datasets_room.check(spec)
    tasks: dict[str, Task] = {}
    for spec in _specs(optimizees, "optimizees"):
        name, options = parse_spec(spec)
        entry = _entry(name)
        config: Any = build_config(entry.config, options, name)
        stem = canonical(name, config)
        for dataset in (
            [datasets_room.load(s, folder) for s in data_specs] if entry.uses_dataset else [None]
        ):
            task = entry.build(config) if dataset is None else entry.build(config, dataset)
            task.name = stem if dataset is None else f"{stem}/{dataset.name}"
            if task.name in tasks:
                raise UserError(f'the optimizee "{task.name}" is given twice')
            tasks[task.name] = task if device.type == "cpu" else task.to(device)
    return list(tasks.values())


def _entry(name: str) -> Entry:
    if name not in TASKS:
        raise UserError(
            f'unknown optimizee "{name}"{nearest(name, TASKS)}; known: {", ".join(sorted(TASKS))}'
        )
    return TASKS[name]


def _specs(given: str | Sequence[str], what: str) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(text.strip() for text in texts):
        raise UserError(f"no {what} given")
    return [spec for text in texts for spec in split_specs(text)]


def _device(name: torch.device | str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device "{name}" cannot be used here: {first_line(error)}') from None
    return device
