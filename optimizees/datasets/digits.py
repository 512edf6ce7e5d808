"""scikit-learn's digits: 1,797 real 8x8 grey images inside its wheel, so that a first run downloads
nothing.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998); pixels are
counts 0..16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lo_framework.optimizees.datasets.splits import Splits, cut
from lo_framework.optional import require

TEST, VALID = 360, 240
SIDE = 8


@dataclass(frozen=True, kw_only=True)
class DigitsConfig:
    """Options of ``digits``: there is one size only, so that ``size=8`` fits every data set."""

    size: int = SIDE

    def __post_init__(self) -> None:
        if self.size != SIDE:
            raise ValueError(f"size={self.size}: the embedded digits are {SIDE}x{SIDE}")


def load_digits(config: DigitsConfig, data_dir: str | None) -> Splits:
    """train 1,197, valid 240, test 360 images [n, 1, 8, 8] in [0, 1] with labels; `data_dir` is not
    needed.

    Raises:
        UserError: scikit-learn is not installed.
    """
    require("sklearn")
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = torch.as_tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    test, valid, train = cut((images, labels), TEST, VALID)
    return {"train": train, "valid": valid, "test": test}
