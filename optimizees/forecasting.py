"""``ett``: forecasts of the hourly series ETTh1 by a transformer, as MetaAdamW was published on
(arXiv 2605.04055), and with honest splits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.ett import COLUMNS, load_etth1
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.models.forecaster import Forecaster, LastValue, Shape
from lo_framework.optimizees.registry import register_task
from lo_framework.optimizees.sized import Dropped, Sized, Table
from lo_framework.optimizees.task import Batch, Model, ModelTask, Rows
from lo_framework.schema import Layers, Range, Width, check_heads
from lo_framework.spec import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

MONTH = 30 * 24  # hours, as the benchmark counts
MONTHS = (12, 4, 4)  # of train, valid and test; what comes after them is not used
SHARE = 0.8  # of the paper's windows, for training
SPLITS = ("train", "valid", "test")
NOTE = "scaled by the whole series, validated on the windows that it is tested on"

Narrow = Annotated[int, Range(low=1, high=1 << 12)]
Hours = Annotated[int, Range(low=1, high=1 << 13)]
Heads = Annotated[int, Range(low=1, high=1 << 10)]

PAPER: dict[str, Any] = dict(
    window=96,
    horizon=96,
    features="all",
    width=128,
    heads=4,
    layers=2,
    ffn=512,
    dropout=0.2,
    batch=64,
)


@dataclass(frozen=True, kw_only=True)
class EttConfig(Sized):
    """Options of ``ett``, besides those of `Sized`.

    With ``protocol=honest``, months follow one another in time: 12 for training, 4 for validation,
    4 for testing; all are scaled by the training months, and no window lies in two of them. With
    ``protocol=paper``, for comparison only, all is scaled by the whole series, and the last fifth
    of all windows serve for validation and for testing; the horizon is then one hour and the
    feature OT, unless they are given.

    Attributes:
        window: hours that the model sees.
        horizon: hours after them that it says.
        features: all seven columns, or the oil temperature alone.
        width: numbers in a token, of which there is one an hour; a multiple of `heads`.
        heads: attention heads.
        layers: blocks of attention and a two-layer network.
        ffn: hidden width of that network.
        dropout: probability, at the places where nn.TransformerEncoderLayer has it.
        batch: windows of one batch.
    """

    SIZES: ClassVar[Table] = {
        "paper": PAPER,
        "small": PAPER | dict(width=32, ffn=64, dropout=0.1, batch=32),
        "tiny": PAPER
        | dict(window=24, horizon=24, width=8, heads=2, layers=1, ffn=16, dropout=0.0, batch=16),
    }
    PUBLISHED: ClassVar[Mapping[str, Any]] = {"horizon": 1, "features": "OT"}

    window: Hours | None = None
    horizon: Hours | None = None
    features: Literal["all", "OT"] | None = None
    width: Narrow | None = None
    heads: Heads | None = None
    layers: Layers | None = None
    ffn: Width | None = None
    dropout: Dropped | None = None
    batch: Rows | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.value("width"), self.value("heads"))

    def value(self, option: str) -> Any:
        if self.protocol == "paper" and getattr(self, option) is None and option in self.PUBLISHED:
            return self.PUBLISHED[option]
        return super().value(option)


class ForecastTask(ModelTask):
    """The mean squared error of forecasts of standardised series, over hours and columns.

    A batch is (hours seen [B, window, F], hours to say [B, horizon, F]). Splits are windows of
    resident series, views that take no memory of their own.
    """

    def __init__(
        self,
        model: Model,
        series: dict[str, Tensor],
        window: int,
        horizon: int,
        *,
        name: str,
        batch_size: int,
    ) -> None:
        """
        Args:
            series: split -> standardised numbers [hours, F], in order of time.

        Raises:
            UserError: a split with fewer hours than one window and its horizon.
        """
        self.series, self.window, self.horizon = series, window, horizon
        for split, hours in series.items():
            if len(hours) < window + horizon:
                raise UserError(
                    f"{name}: the {split} split has {len(hours):,} hours, and window={window} with "
                    f"horizon={horizon} needs at least {window + horizon:,}"
                )
        data = Dataset(name=name, splits=self._windows(), num_classes=None)
        super().__init__(model, data, name=name, batch_size=batch_size)
        self.scale = self.naive_loss("train")

    def _windows(self) -> dict[str, Batch]:
        both = self.window + self.horizon
        windows = {split: x.unfold(0, both, 1).transpose(1, 2) for split, x in self.series.items()}
        return {split: (x[:, : self.window], x[:, self.window :]) for split, x in windows.items()}

    def naive_loss(self, split: str) -> float:
        """The loss of `last_value`: the yardstick, and on the training split the `scale`."""
        return float(self.last_value(split)["loss"])

    def last_value(self, split: str) -> dict[str, Tensor]:
        """The metrics of a forecast that says the last hour seen for every hour to come."""
        other = copy.copy(self)
        other.model = LastValue(self.horizon)
        return other.metrics({}, {}, self.full(split))

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        apart = (outputs - targets).flatten(1)
        return {"loss": apart.square().mean(1).sum(), "mae": apart.abs().mean(1).sum()}

    def to(self, device: torch.device | str) -> Self:
        other = copy.copy(self)
        other.device = torch.device(device)
        other.model = self.model.to(device)
        other.series = {split: x.to(device) for split, x in self.series.items()}
        other.data = other._windows()  # moved as they are, they would become copies
        return other


@register_task("ett", config=EttConfig, reads_files=True)
def build_ett(config: EttConfig, folder: str | None) -> ForecastTask:
    """The task on the file of ETTh1 in the data `folder`."""
    values = load_etth1(folder)
    if config.value("features") == "OT":
        values = values[:, COLUMNS.index("OT") :]
    names = ("window", "horizon", "width", "heads", "layers", "ffn", "dropout")
    shape = Shape(features=values.shape[1], **{name: config.value(name) for name in names})
    both = shape.window + shape.horizon
    series = honest(values) if config.protocol == "honest" else published(values, both)
    task = ForecastTask(
        Forecaster(shape),
        series,
        shape.window,
        shape.horizon,
        name="ett",
        batch_size=config.value("batch"),
    )
    task.note = NOTE if config.protocol == "paper" else ""
    return task


def honest(values: Tensor) -> dict[str, Tensor]:
    """Months of `values` [hours, F] one after the other, scaled by the mean and the standard
    deviation of the training months, float32.
    """
    sizes = [MONTH * count for count in MONTHS]
    parts = values[: sum(sizes)].split(sizes)
    return {split: _scaled(part, parts[0]) for split, part in zip(SPLITS, parts, strict=True)}


def published(values: Tensor, both: int) -> dict[str, Tensor]:
    """The first 80% of all windows of `both` hours for training, the others twice; scaled by the
    whole series, the future included.
    """
    if len(values) < both + 1:
        raise UserError(f"ett: {len(values):,} hours hold no two windows of {both:,} hours")
    scaled = _scaled(values, values)
    count = len(values) - both + 1
    first = math.floor(SHARE * count)
    last = scaled[first:]
    return {"train": scaled[: first + both - 1], "valid": last, "test": last}


def _scaled(values: Tensor, by: Tensor) -> Tensor:
    mean, std = by.mean(0), by.std(0, correction=0)
    return ((values - mean) / std).float()
