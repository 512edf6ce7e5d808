"""The Task contract: a model, its data and its loss as pure functions that `torch.func` can batch
and differentiate.

A task holds tensors (its data) but no state: parameters, buffers, batches and dropout seeds all
come in as arguments and go out as results, so one task object serves any number of vmapped copies.
See docs/design.md, "Contracts".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.allocation import AtMost, TooLarge
from lo_framework.errors import UserError
from lo_framework.optimizees.datasets.splits import Dataset, require_finite
from lo_framework.schema import Range

if TYPE_CHECKING:
    from typing_extensions import Self

Params = dict[str, Tensor]
Buffers = dict[str, Tensor]
Batch = tuple[Tensor, ...]

Rows = Annotated[int, Range(low=1, high=1 << 20)]  # of one batch

SPLITS = ("train", "valid", "test")
METRIC_ROWS, METRIC_NUMBERS = (256, 1024), 1 << 18  # of one piece of a split that is measured
MAX_PARAMETERS = 1 << 28  # of one copy of a model; 1 GB
_KNEE, _CAP = 1.5, 10.0


def soft_cap(ratio: Tensor) -> Tensor:
    """Linear up to 1.5, ``1.5 + log1p(r - 1.5)`` above, at most 10; NaN and infinities give 10 with
    gradient 0.

    The logarithm keeps a slope on a diverging task, so that it still pushes back, but no task
    dwarfs the others.
    """
    finite = torch.isfinite(ratio)
    r = torch.where(
        finite, ratio, 0.0
    )  # `where` on the INPUT: a masked branch would still turn 0 * inf into NaN
    above = r > _KNEE
    bent = torch.where(above, _KNEE + torch.log1p(torch.where(above, r - _KNEE, 0.0)), r)
    return torch.where(finite, bent.clamp(max=_CAP), _CAP)


class Task:
    """One optimizee. `loss`, `metrics` and `normalize` are pure and vmappable; data live on
    `device`, float32.

    Attributes:
        name: canonical spec, for example ``"mlp:hidden=64/digits:size=8"``.
        batch_size: rows of one batch, B.
        device: where `init`, `batch` and `full` put their tensors.
        vmappable: False for a loss that `torch.func.vmap` cannot take (recurrent layers, branches
            on data): copies of it run one after the other.
        scale: a typical loss, which `normalize` maps to 1.
        note: what whoever reads its figures must know of its data; "" if nothing.
    """

    name: str
    batch_size: int
    device: torch.device
    vmappable: bool = True
    scale: float = 1.0
    note: str = ""

    def __init__(self, *, name: str, batch_size: int) -> None:
        self.name = name
        self.batch_size = batch_size
        self.device = torch.device("cpu")

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Fresh parameters and buffers drawn from a CPU `generator`; tensors on `device`."""
        raise NotImplementedError

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        """Training-mode mean loss (0-d) and the new buffers. `noise`: int64 0-d seed for
        counter-based dropout.
        """
        raise NotImplementedError

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        """Rows drawn with replacement by one ``randint`` of shape lead + (B,); tensors of shape
        lead + (B, ...).
        """
        raise NotImplementedError

    def full(self, split: str) -> Batch:
        """The whole split as one batch: the resident tensors themselves, not copies."""
        raise NotImplementedError

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        """Evaluation-mode numbers (0-d): always ``"loss"``; classifiers add ``"accuracy"`` in [0,
        1].
        """
        raise NotImplementedError

    def normalize(self, loss: Tensor) -> Tensor:
        """`loss` over `scale`, so comparable across tasks, through `soft_cap`."""
        return soft_cap(loss / self.scale)

    def to(self, device: torch.device | str) -> Self:
        """A copy of this task whose tensors live on `device`."""
        other = copy.copy(self)
        other.device = torch.device(device)
        return other

    def _here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


class DataTask(Task):
    """A task over resident rows: `data[split]` is a tuple of tensors with as many rows each."""

    data: dict[str, Batch]

    def __init__(self, *, name: str, batch_size: int, data: dict[str, Batch]) -> None:
        super().__init__(name=name, batch_size=batch_size)
        self.data = data
        for split, rows in data.items():
            require_finite(rows, f"{name}: {split}")

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        rows = self.full(split)
        shape = (*lead, self.batch_size)
        index = torch.randint(len(rows[0]), shape, generator=generator)
        flat = index.reshape(-1).to(self.device)
        # index_select on a flat index is about twice as fast as advanced indexing with a [lead, B]
        # one.
        return tuple(x.index_select(0, flat).reshape(*shape, *x.shape[1:]) for x in rows)

    def full(self, split: str) -> Batch:
        if split not in self.data:
            raise KeyError(f'{self.name}: no split "{split}"; there are {", ".join(self.data)}')
        return self.data[split]

    def to(self, device: torch.device | str) -> Self:
        other = super().to(device)
        other.data = {split: tuple(x.to(device) for x in rows) for split, rows in self.data.items()}
        return other


class Model:
    """Base of networks as two pure functions. Names and shapes of parameters are those of the
    like-built nn.Module.
    """

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Fresh parameters and buffers, float32 on the CPU, drawn in a fixed order."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Model:
        """This model for parameters on `device`; constants, where it holds any, are moved."""
        return self

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Outputs [B, C] for inputs `x` [B, ...], and the new buffers. Training mode
        with `noise`, the int64 seed of counter-based dropout; evaluation mode without.
        """
        raise NotImplementedError


def bounded(init: Callable[[torch.Generator], object], name: str) -> None:
    """Refuse a model whose `init` draws more than `MAX_PARAMETERS` numbers, without the memory."""
    try:
        with AtMost(MAX_PARAMETERS):
            init(torch.Generator())
    except TooLarge:
        raise UserError(f"{name}: the model has more than {MAX_PARAMETERS:,} parameters") from None


class ModelTask(DataTask):
    """A functional model on a data set: the base of what it may be trained for.

    A batch is (inputs [B, ...], targets). Subclasses say `sums` and `normalize`. `metrics` looks at
    `metric_rows` rows at a time: so many that their inputs are `METRIC_NUMBERS` numbers, and within
    `METRIC_ROWS`.
    """

    def __init__(self, model: Model, dataset: Dataset, *, name: str, batch_size: int) -> None:
        super().__init__(name=name, batch_size=batch_size, data=dataset.splits)
        self.model = model
        least, most = METRIC_ROWS
        row = dataset.splits["train"][0][0]
        most = most if row.is_floating_point() else least  # a token becomes many numbers
        self.metric_rows = max(least, min(most, METRIC_NUMBERS // max(1, row.numel())))
        bounded(model.init, name)

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of rows, 0-d."""
        raise NotImplementedError

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The numbers of `metrics`, summed over rows."""
        raise NotImplementedError

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        params, buffers = self.model.init(generator)
        return self._here(params), self._here(buffers)

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        outputs, buffers = self.model.apply(params, buffers, batch[0], noise)
        return self.mean_loss(outputs, batch[1]), buffers

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        # In chunks: a whole split's feature maps take gigabytes, times the vmapped tasks. Of wide
        # rows few stay in the cache and are faster; of narrow ones a call costs more than its work.
        parts = []
        pieces = (rows.split(self.metric_rows) for rows in batch)
        for x, y in zip(*pieces, strict=True):
            outputs, _ = self.model.apply(params, buffers, x)
            parts.append(self.sums(outputs, y))
        count = len(batch[1])
        return {
            name: torch.stack([part[name] for part in parts]).sum() / count for name in parts[0]
        }

    def to(self, device: torch.device | str) -> Self:
        other = super().to(device)
        other.model = self.model.to(device)
        return other


class ClassificationTask(ModelTask):
    """The mean softmax cross-entropy on a data set of C classes: targets are labels int64 [B]."""

    def __init__(self, model: Model, dataset: Dataset, *, name: str, batch_size: int) -> None:
        super().__init__(model, dataset, name=name, batch_size=batch_size)
        self.num_classes = dataset.outputs
        self.scale = math.log(self.num_classes)  # of a guess at random

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hits = (outputs.argmax(-1) == targets).to(outputs.dtype).sum()
        return {"loss": F.cross_entropy(outputs, targets, reduction="sum"), "accuracy": hits}

    def naive_loss(self, split: str) -> float:
        """The loss of the predictor that knows how often each class is in the training split, and
        nothing else.
        """
        return frequency_loss(self.full("train")[1], self.full(split)[1], self.num_classes)


def frequency_loss(trained: Tensor, asked: Tensor, classes: int) -> float:
    """The mean cross-entropy on `asked` of the predictor that knows how often each class is in
    `trained`, and nothing else; both int64 of any shape. Classes are counted once more than they
    occur.
    """
    counts = torch.bincount(trained.flatten(), minlength=classes) + 1.0
    return -float((counts / counts.sum()).log()[asked].mean())


class RegressionTask(ModelTask):
    """The mean squared error, over rows and outputs: targets are numbers [B, outputs]."""

    def __init__(self, model: Model, dataset: Dataset, *, name: str, batch_size: int) -> None:
        super().__init__(model, dataset, name=name, batch_size=batch_size)
        targets = dataset.splits["train"][1]
        constant = float((targets - targets.mean(0)).square().mean())
        # That of the best constant.
        self.scale = max(constant, torch.finfo(targets.dtype).eps)

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"loss": (outputs - targets).square().mean(-1).sum()}
