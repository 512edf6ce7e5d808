"""How many rows of a split a model task looks at at a time."""

from __future__ import annotations

import pytest
import torch

from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.models.mlp import MLP, MLPConfig
from lo_framework.optimizees.task import SPLITS, ClassificationTask


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        ((1, 8, 8), torch.float32, 1024),
        ((1, 28, 28), torch.float32, 334),
        ((3, 64, 64), torch.float32, 256),
        ((64,), torch.int64, 256),  # tokens
    ],
)
def test_many_narrow_rows_and_few_wide_ones_or_tokens(shape, dtype, rows):
    x, y = torch.zeros(4, *shape, dtype=dtype), torch.tensor([0, 1, 0, 1])
    data = Dataset(name="drawn", splits=dict.fromkeys(SPLITS, (x, y)), num_classes=2)
    task = ClassificationTask(MLP(MLPConfig(), shape, 2), data, name="drawn", batch_size=2)
    assert task.metric_rows == rows
