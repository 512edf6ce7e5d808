"""Data sets by spec: ``load("mnist:size=8", data_dir)``; each is loaded once per process."""

from __future__ import annotations

import os
from functools import partial

from lo_framework.optimizees.datasets.cifar import (
    Cifar100Config,
    CifarConfig,
    load_cifar10,
    load_cifar100,
)
from lo_framework.optimizees.datasets.digits import DigitsConfig, load_digits
from lo_framework.optimizees.datasets.functions import (
    FriedmanConfig,
    SpiralsConfig,
    make_friedman,
    make_spirals,
)
from lo_framework.optimizees.datasets.idx import FASHION_MNIST, MNIST, IdxConfig, load_idx
from lo_framework.optimizees.datasets.splits import Dataset, Splits
from lo_framework.optimizees.datasets.tables import TableConfig, load_table
from lo_framework.optimizees.datasets.teacher import TeacherConfig, make_teacher
from lo_framework.optimizees.datasets.views import NUM_CLASSES, ViewOptions
from lo_framework.registry import Registry
from lo_framework.spec import canonical

__all__ = ["DATASETS", "Dataset", "check", "folder_of", "load"]

# What meta-training may draw: the usual variation beside models of rows of numbers, and beside
# models of images. Data sets without one are kept for judging.
VIEWS = (
    "target=class|class|class|class|regress|reconstruct,outputs=2..10,noise=0|0|0.1,seed=0..999999"
)
VARIED = {
    "digits": (f"{VIEWS},project=none|none|4..128", VIEWS),
    "teacher": (f"{VIEWS},inputs=4..256,decay=0..1", f"{VIEWS},inputs=64|64|256,decay=0..1"),
}
# Each loads its splits from a config and a data folder.
DATASETS: Registry[Splits] = Registry("data set")
for _name, _config, _load in (
    ("digits", DigitsConfig, load_digits),
    ("mnist", IdxConfig, partial(load_idx, MNIST)),
    ("fashion_mnist", IdxConfig, partial(load_idx, FASHION_MNIST)),
    ("cifar10", CifarConfig, load_cifar10),
    ("cifar100", Cifar100Config, load_cifar100),
    ("teacher", TeacherConfig, make_teacher),
    ("table", TableConfig, load_table),
    ("friedman", FriedmanConfig, make_friedman),
    ("spirals", SpiralsConfig, make_spirals),
):
    _rows, _images = VARIED.get(_name, ("", ""))
    DATASETS.register(_name, config=_config, varied=_rows, varied_images=_images)(_load)

DRAWN = 16  # views that are kept: meta-training draws new ones without end
_loaded: dict[tuple[str, str | None], Dataset] = {}
_drawn: dict[tuple[str, str | None], Dataset] = {}

check = DATASETS.parse  # the entry and the config of a spec, without reading any file


def folder_of(data_dir: str | os.PathLike[str] | None) -> str | None:
    """The data folder: the one given, else that of ``LO_DATA_DIR``, else None."""
    named = os.fspath(data_dir) if data_dir is not None else os.environ.get("LO_DATA_DIR")
    return os.path.abspath(os.path.expanduser(named)) if named else None


def load(spec: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
    """The data set named by `spec`, from `data_dir`, else from the folder in ``LO_DATA_DIR``, else
    downloaded.

    Raises:
        UserError: an unknown name or option; files that are missing, truncated or of another
            format.
    """
    entry, config = check(spec)
    folder = folder_of(data_dir)
    key = (canonical(entry.name, config), folder)
    viewed = isinstance(config, ViewOptions)
    kept = _drawn if viewed and config.seed else _loaded
    if key not in kept:
        kept[key] = Dataset(
            name=key[0],
            splits=entry.build(config, folder),
            num_classes=getattr(config, "classes", NUM_CLASSES),
            reconstructs=viewed and config.target == "reconstruct",
        )
        if len(_drawn) > DRAWN:
            del _drawn[next(iter(_drawn))]
    return kept[key]
