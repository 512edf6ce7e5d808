"""``table``: small real tables inside scikit-learn's wheel. They are kept for judging: no default
pool has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lo_framework.optimizees.datasets.splits import Splits, cut
from lo_framework.optional import require
from lo_framework.schema import Checked

CLASSES = {"wine": 3, "breast_cancer": 2, "iris": 3, "diabetes": None, "linnerud": None}
SHARE = 5  # one row in so many is for validation, and as many for testing


@dataclass(frozen=True, kw_only=True)
class TableConfig(Checked):
    """Options of ``table``.

    Attributes:
        name: wine, breast_cancer and iris have classes, diabetes one number and linnerud three.
    """

    name: Literal["wine", "breast_cancer", "iris", "diabetes", "linnerud"] = "wine"

    @property
    def classes(self) -> int | None:
        return CLASSES[self.name]


def load_table(config: TableConfig, data_dir: str | None) -> Splits:
    """Rows of numbers with labels or numbers; every column has mean 0 and variance 1 over the
    training rows. `data_dir` is not needed.

    Raises:
        UserError: scikit-learn is not installed.
    """
    require("sklearn")
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{config.name}")()
    x = np.asarray(bunch.data, dtype=np.float64)
    y = np.asarray(bunch.target, dtype=np.float64).reshape(len(x), -1)
    count = len(x) // SHARE
    _, _, (train,) = cut((torch.arange(len(x)),), count, count)
    inputs = _standard(x, train)
    targets = torch.as_tensor(y[:, 0], dtype=torch.int64) if config.classes else _standard(y, train)
    test, valid, rest = cut((inputs, targets), count, count)
    return {"train": rest, "valid": valid, "test": test}


def _standard(x: np.ndarray, train: torch.Tensor) -> torch.Tensor:
    """Columns with mean 0 and variance 1 over the training rows."""
    rows = x[train.numpy()]
    return torch.as_tensor((x - rows.mean(0)) / rows.std(0), dtype=torch.float32)
