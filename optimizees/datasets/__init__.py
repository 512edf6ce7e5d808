"""Data sets by spec: ``load("mnist:size=8", data_dir)``; each is loaded once per process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lo_framework.optimizees.datasets.cifar import CifarConfig, load_cifar10
from lo_framework.optimizees.datasets.digits import DigitsConfig, load_digits
from lo_framework.optimizees.datasets.idx import FASHION_MNIST, MNIST, IdxConfig, load_idx
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.spec import UserError, build_config, canonical, nearest, parse_spec

__all__ = ["DATASETS", "Dataset", "check", "load"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How to read one data set: its options, its loader (config, data_dir) -> splits, its number of
    classes.
    """

    config: type
    load: Callable[[Any, str | None], dict[str, Any]]
    num_classes: int = 10


DATASETS: dict[str, Entry] = {
    "digits": Entry(config=DigitsConfig, load=load_digits),
    "mnist": Entry(config=IdxConfig, load=partial(load_idx, MNIST)),
    "fashion_mnist": Entry(config=IdxConfig, load=partial(load_idx, FASHION_MNIST)),
    "cifar10": Entry(config=CifarConfig, load=load_cifar10),
}
_loaded: dict[tuple[str, str | None], Dataset] = {}


def check(spec: str) -> tuple[str, Any]:
    """The name and config of a data set spec, without reading any file.

    Raises:
        UserError: an unknown name or option, or a value that does not fit.
    """
    name, options = parse_spec(spec)
    if name not in DATASETS:
        raise UserError(
            f'unknown data set "{name}"{nearest(name, DATASETS)}; known: {", ".join(DATASETS)}'
        )
    return name, build_config(DATASETS[name].config, options, name)


def load(spec: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set named by `spec`, from `data_dir`, else from the folder in ``LO_DATA_DIR``, else
    downloaded.

    Raises:
        UserError: an unknown name or option; files that are missing, truncated or of another
            format.
    """
    name, config = check(spec)
    entry = DATASETS[name]
    named = os.fspath(data_dir) if data_dir is not None else os.environ.get("LO_DATA_DIR")
    folder = os.path.abspath(os.path.expanduser(named)) if named else None
    key = (canonical(name, config), folder)
    if key not in _loaded:
        _loaded[key] = Dataset(
            name=key[0], splits=entry.load(config, folder), num_classes=entry.num_classes
        )
    return _loaded[key]
