"""Shared by all tests: one intra-op thread, and the folder with real data files where there is one.

Seeds are not set here: a test that draws numbers makes its own torch.Generator with its own seed,
so that it gives the same numbers alone, in any order and beside any other test.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Two OpenMP threads beside other busy processes spin at barriers and make small tests tens of times
# slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data files: ``LO_DATA_DIR``, else ``shared/data`` beside the repository,
    else skip.
    """
    named = os.environ.get("LO_DATA_DIR")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "no data files: set LO_DATA_DIR to a folder with mnist/, fashion-mnist/ and "
            "cifar-10-batches-bin/"
        )
    return folder
