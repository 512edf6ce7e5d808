"""scikit-learn's digits: 1,797 real 8x8 grey images inside its wheel, so that a first run downloads
nothing.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998); pixels are
counts 0..16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lo_framework.optimizees.datasets.splits import Splits, cut
from lo_framework.optimizees.datasets.views import ViewOptions, view
from lo_framework.optional import require
from lo_framework.schema import Width

TEST, VALID = 360, 240
SIDE = 8


@dataclass(frozen=True, kw_only=True)
class DigitsConfig(ViewOptions):
    """Options of ``digits``, besides those of `ViewOptions`.

    Attributes:
        size: there is one only, so that ``size=8`` fits every data set.
        project: show a fixed random projection to that many numbers in place of the image.
    """

    size: int = SIDE
    project: Width | None = None

    def unused(self) -> set[str]:
        unused = super().unused()
        drawn = self.project or self.target == "regress" or (self.noise and "noise" not in unused)
        return unused if drawn else unused | {"seed"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != SIDE:
            raise ValueError(f"size={self.size}: the embedded digits are {SIDE}x{SIDE}")


def load_digits(config: DigitsConfig, data_dir: str | None) -> Splits:
    """train 1,197, valid 240, test 360 images [n, 1, 8, 8] in [0, 1] with labels, or a view of
    them; `data_dir` is not needed.

    Raises:
        UserError: scikit-learn is not installed.
    """
    require("sklearn")
    from sklearn.datasets import load_digits as load

    bunch = load()
    images = torch.as_tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    test, valid, train = cut((images, labels), TEST, VALID)
    return view({"train": train, "valid": valid, "test": test}, config, config.project)
