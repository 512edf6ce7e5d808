"""``wikitext``: a small GPT that tells the next word of WikiText-2, as MetaAdamW was published on
it (`docs/papers.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.datasets import wikitext
from lo_framework.optimizees.datasets.source import in_part
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.datasets.vocabulary import Size as Words
from lo_framework.optimizees.models.gpt import GPT, GPTSizes
from lo_framework.optimizees.registry import register_task
from lo_framework.optimizees.sized import Dropped, Sized, Table
from lo_framework.optimizees.task import (
    Batch,
    Buffers,
    Model,
    ModelTask,
    Params,
    Rows,
    frequency_loss,
)
from lo_framework.schema import Layers, Range, Width, check_heads
from lo_framework.spec import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

LOGITS = 1 << 22  # of one piece of a split that is measured
HALF = "trained on one half of WikiText-2's validation split, validated on the other"


class LanguageTask(ModelTask):
    """The mean cross-entropy of the next token, over all tokens of windows of a text.

    A batch is (tokens [B, T], the token after each of them [B, T]), int64. Where there are
    `streams`, `batch` takes windows from any place of the text; `full` has those that follow one
    another.

    Args:
        windows: of every split, int64 [n, T + 1].
        streams: the whole text of splits, int64 [tokens].
    """

    def __init__(
        self,
        model: Model,
        windows: dict[str, Tensor],
        streams: dict[str, Tensor],
        *,
        name: str,
        batch_size: int,
        vocab: int,
    ) -> None:
        pairs: dict[str, tuple[Tensor, ...]] = {
            part: (x[:, :-1].contiguous(), x[:, 1:].contiguous()) for part, x in windows.items()
        }
        data = Dataset(name=name, splits=pairs, num_classes=vocab)
        super().__init__(model, data, name=name, batch_size=batch_size)
        self.streams, self.vocab = streams, vocab
        self.context = pairs["train"][0].shape[1]
        self.metric_rows = max(1, LOGITS // (self.context * vocab))
        self.scale = self.naive_loss("train")

    def naive_loss(self, split: str) -> float:
        """The loss of the predictor that knows how often each word is in the training text, and
        nothing else.
        """
        return frequency_loss(self.full("train")[1], self.full(split)[1], self.vocab)

    def batch(self, split: str, generator: torch.Generator, lead: tuple[int, ...] = ()) -> Batch:
        if split not in self.streams:
            return super().batch(split, generator, lead)
        stream = self.streams[split]
        shape = (*lead, self.batch_size)
        starts = torch.randint(len(stream) - self.context, shape, generator=generator)
        index = starts.to(self.device)[..., None] + torch.arange(
            self.context + 1, device=self.device
        )
        windows = stream.index_select(0, index.flatten()).reshape(*shape, -1)
        return windows[..., :-1], windows[..., 1:]

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets.flatten())

    def sums(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        total = F.cross_entropy(outputs, targets.flatten(), reduction="sum")
        return {"loss": total / targets.shape[1]}

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        measured = super().metrics(params, buffers, batch)
        return {**measured, "perplexity": measured["loss"].exp()}

    def to(self, device: torch.device | str) -> Self:
        other = super().to(device)
        other.streams = {part: x.to(device) for part, x in self.streams.items()}
        return other


@dataclass(frozen=True, kw_only=True)
class WikitextConfig(Sized):
    """Options of ``wikitext``, besides those of `Sized`; None: as the size has it.

    Attributes:
        width: numbers in a token; a multiple of `heads`.
        layers: blocks of attention and a two-layer network, which is four times as wide.
        heads: attention heads.
        context: words of a window, each of which has a loss.
        vocab: the most frequent words that are told apart.
        batch: windows of one batch.
        dropout: probability, after the embedding and at the places where
            nn.TransformerEncoderLayer has it.
    """

    SIZES: ClassVar[Table] = {
        "paper": dict(
            width=128, layers=2, heads=4, context=128, vocab=10_000, batch=64, dropout=0.2
        ),
        "small": dict(width=64, layers=1, heads=4, context=32, vocab=500, batch=16, dropout=0.0),
        "tiny": dict(width=16, layers=1, heads=2, context=16, vocab=128, batch=8, dropout=0.0),
    }

    width: Width | None = None
    layers: Layers | None = None
    heads: Width | None = None
    context: Annotated[int, Range(low=1, high=1 << 12)] | None = None
    vocab: Words | None = None
    batch: Rows | None = None
    dropout: Dropped | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.value("width"), self.value("heads"))


@register_task("wikitext", config=WikitextConfig, reads_files=True)
def wikitext_task(config: WikitextConfig, folder: str | None) -> LanguageTask:
    """The task on the files in `folder`; under ``protocol=paper`` windows do not cross lines, and
    lines that are shorter than a window, and the ends of others, are left out.
    """
    paper = config.protocol == "paper"
    context, vocab = config.value("context"), config.value("vocab")
    text = wikitext.load(folder, vocab, not paper)
    sizes = GPTSizes(
        vocab=len(text.vocabulary),
        ffn=4 * config.value("width"),
        **{key: config.value(key) for key in ("context", "width", "layers", "heads", "dropout")},
    )
    windows, streams = {}, {}
    for part, lines in text.ids.items():
        pieces = lines if paper else [[i for line in lines for i in line]]
        windows[part] = cut_windows(pieces, context + 1, f"wikitext: {part}")
        if not paper:
            streams[part] = torch.tensor(pieces[0], dtype=torch.int64)
    task = LanguageTask(
        GPT(sizes),
        windows,
        streams,
        name="wikitext",
        batch_size=config.value("batch"),
        vocab=len(text.vocabulary),
    )
    halved = [HALF] if text.trained != "train" else []
    task.note = "; ".join([*in_part("WikiText-2", text.counts, wikitext.WHOLE, "lines"), *halved])
    return task


def cut_windows(pieces: list[list[int]], length: int, owner: str) -> Tensor:
    """Windows of `length` tokens that follow one another in each of `pieces`, int64 [n, length].

    Raises:
        UserError: no piece is as long as a window.
    """
    longest = max(map(len, pieces), default=0)
    if longest < length:
        raise UserError(
            f"{owner}: context={length - 1} is longer than the text: expected {length:,} words in "
            f"a row, found {longest:,}"
        )
    cut = [torch.tensor(p[: len(p) // length * length]).reshape(-1, length) for p in pieces]
    return torch.cat(cut).to(torch.int64)
