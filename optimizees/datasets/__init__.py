"""Data sets by spec: ``load("mnist:size=8", data_dir)``; each is loaded once per process."""

from __future__ import annotations

import os
from functools import partial

from lo_framework.optimizees.datasets.cifar import CifarConfig, load_cifar10
from lo_framework.optimizees.datasets.digits import DigitsConfig, load_digits
from lo_framework.optimizees.datasets.idx import FASHION_MNIST, MNIST, IdxConfig, load_idx
from lo_framework.optimizees.datasets.splits import Dataset, Splits
from lo_framework.registry import Registry
from lo_framework.spec import canonical

__all__ = ["DATASETS", "Dataset", "check", "load"]

# Each loads its splits from a config and a data folder.
DATASETS: Registry[Splits] = Registry("data set")
for _name, _config, _load in (
    ("digits", DigitsConfig, load_digits),
    ("mnist", IdxConfig, partial(load_idx, MNIST)),
    ("fashion_mnist", IdxConfig, partial(load_idx, FASHION_MNIST)),
    ("cifar10", CifarConfig, load_cifar10),
):
    DATASETS.register(_name, config=_config, num_classes=10)(_load)
_loaded: dict[tuple[str, str | None], Dataset] = {}

check = DATASETS.parse  # the entry and the config of a spec, without reading any file


def load(spec: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set named by `spec`, from `data_dir`, else from the folder in ``LO_DATA_DIR``, else
    downloaded.

    Raises:
        UserError: an unknown name or option; files that are missing, truncated or of another
            format.
    """
    entry, config = check(spec)
    named = os.fspath(data_dir) if data_dir is not None else os.environ.get("LO_DATA_DIR")
    folder = os.path.abspath(os.path.expanduser(named)) if named else None
    key = (canonical(entry.name, config), folder)
    if key not in _loaded:
        _loaded[key] = Dataset(
            name=key[0], splits=entry.build(config, folder), num_classes=entry.facts["num_classes"]
        )
    return _loaded[key]
