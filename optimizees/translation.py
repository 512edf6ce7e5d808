"""``multi30k``: a transformer that translates German descriptions of pictures, as MetaAdamW was
published on it (`docs/papers.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.datasets import multi30k
from lo_framework.optimizees.datasets.source import in_part
from lo_framework.optimizees.datasets.vocabulary import (
    BEGIN_ID,
    END_ID,
    PAD_ID,
    UNKNOWN_ID,
    Rules,
    Size as Words,
    Vocabulary,
)
from lo_framework.optimizees.models.translator import Translator, TranslatorSizes
from lo_framework.optimizees.registry import register_task
from lo_framework.optimizees.sized import Dropped, Sized, Table
from lo_framework.optimizees.task import (
    Batch,
    Buffers,
    DataTask,
    Params,
    Rows,
    bounded,
    frequency_loss,
)
from lo_framework.optional import require
from lo_framework.schema import Layers, Range, Width, check_heads
from lo_framework.spec import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

LOGITS = 1 << 22  # of one piece of a split that is measured


class TranslationTask(DataTask):
    """The mean cross-entropy of the next English word, over all words of a batch, given the German
    sentence. A batch is (German int64 [B, S], English int64 [B, T + 1]).

    Args:
        english: the vocabulary of the targets.
        texts: the English sentences of each split, as they were written.
    """

    def __init__(
        self,
        model: Translator,
        splits: dict[str, Batch],
        english: Vocabulary,
        texts: dict[str, list[str]],
        *,
        batch_size: int,
    ) -> None:
        super().__init__(name="multi30k", batch_size=batch_size, data=splits)
        bounded(model.init, self.name)
        self.model, self.english, self.texts = model, english, texts
        self.scale = self.naive_loss("train")

    def naive_loss(self, split: str) -> float:
        """The loss of the predictor that knows how often each word is in the English training
        sentences, and nothing else.
        """
        trained, asked = (self.full(part)[1][:, 1:] for part in ("train", split))
        words = len(self.english)
        return frequency_loss(trained[trained != PAD_ID], asked[asked != PAD_ID], words)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return self._here(self.model.init(generator)[0]), {}

    def loss(
        self, params: Params, buffers: Buffers, batch: Batch, noise: Tensor
    ) -> tuple[Tensor, Buffers]:
        total, count = self._total(params, batch, noise)
        return total / count, buffers

    def metrics(self, params: Params, buffers: Buffers, batch: Batch) -> dict[str, Tensor]:
        rows = max(1, LOGITS // (batch[1].shape[1] * len(self.english)))
        pieces = zip(*(x.split(rows) for x in batch), strict=True)
        sums = [torch.stack(self._total(params, piece)) for piece in pieces]
        total, count = torch.stack(sums).sum(0).unbind()
        return {"loss": total / count, "perplexity": (total / count).exp()}

    def _total(
        self, params: Params, batch: Batch, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses of words, and how many there are."""
        source, target = batch
        outputs = self.model.outputs(params, source, target[:, :-1], noise)
        words = target[:, 1:].flatten()
        losses = F.cross_entropy(outputs, words, reduction="none")
        there = (words != PAD_ID).to(losses.dtype)
        return (losses * there).sum(), there.sum()

    def translate(self, params: Params, source: Tensor) -> list[str]:
        """The most probable word after word, up to `END`, for each row of `source` int64 [n, S]."""
        sentences: list[str] = []
        with torch.no_grad():
            for rows in source.split(64):
                memory = self.model.encode(params, rows)
                words = torch.full((len(rows), 1), BEGIN_ID, device=rows.device)
                while words.shape[1] < self.model.sizes.places:
                    logits = self.model.decode(params, words, *memory)
                    last = logits.reshape(*words.shape, -1)[:, -1].argmax(-1, keepdim=True)
                    words = torch.cat([words, last], 1)
                    if bool((words == END_ID).any(1).all()):
                        break
                for row in words[:, 1:].tolist():
                    kept = row[: row.index(END_ID)] if END_ID in row else row
                    sentences.append(" ".join(self.english.decode(kept)))
        return sentences

    def bleu(self, params: Params, split: str, pairs: int | None = None) -> float:
        """Corpus BLEU of `translate` in lower case, on the first `pairs` of a split, 0 to 100."""
        require("sacrebleu")
        import sacrebleu

        translations = self.translate(params, self.full(split)[0][:pairs])
        wanted = [self.texts[split][:pairs]]
        # `force`: words stand apart on purpose, and sacreBLEU would warn of it.
        return float(sacrebleu.corpus_bleu(translations, wanted, lowercase=True, force=True).score)

    def to(self, device: torch.device | str) -> Self:
        other = super().to(device)
        other.model = self.model.to(device)
        return other


@dataclass(frozen=True, kw_only=True)
class Multi30kConfig(Sized):
    """Options of ``multi30k``, besides those of `Sized`; None: as the size has it.

    Attributes:
        width: numbers in a token; a multiple of `heads`.
        layers: of the encoder, and of the decoder.
        heads: attention heads.
        length: the first words of a sentence that are read or told.
        vocab: the most frequent words of each language that are told apart.
        pairs: the first pairs of the training split that are used.
        batch: pairs of one batch.
        dropout: probability, after embeddings and at the places where nn.Transformer has it.
    """

    SIZES: ClassVar[Table] = {
        "paper": dict(
            width=256,
            layers=4,
            heads=8,
            length=64,
            vocab=10_000,
            batch=64,
            pairs=29_000,
            dropout=0.2,
        ),
        "small": dict(
            width=64, layers=1, heads=4, length=16, vocab=1000, batch=32, pairs=5000, dropout=0.0
        ),
        "tiny": dict(
            width=16, layers=1, heads=2, length=8, vocab=128, batch=8, pairs=1000, dropout=0.0
        ),
    }

    width: Width | None = None
    layers: Layers | None = None
    heads: Width | None = None
    length: Annotated[int, Range(low=1, high=1 << 10)] | None = None
    vocab: Words | None = None
    pairs: Annotated[int, Range(low=1, high=1 << 20)] | None = None
    batch: Rows | None = None
    dropout: Dropped | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.value("width"), self.value("heads"))


@register_task("multi30k", config=Multi30kConfig, reads_files=True)
def multi30k_task(config: Multi30kConfig, folder: str | None) -> TranslationTask:
    """The task on the files in `folder`; under ``protocol=paper`` English is looked up in the
    German vocabulary, both languages share an embedding, and padding is looked at.
    """
    paper = config.protocol == "paper"
    length = config.value("length")
    rules = Rules(size=config.value("vocab"), least=2, words="punctuated", marked=True)
    data = multi30k.load(folder, rules, length, config.value("pairs"), paper)
    german, english = data.words[multi30k.FROM], data.words[multi30k.TO]
    sizes = TranslatorSizes(
        source=len(german),
        target=len(english),
        places=length + 2,
        ffn=4 * config.value("width"),
        pad=None if paper else PAD_ID,
        shared=paper,
        **{key: config.value(key) for key in ("width", "layers", "heads", "dropout")},
    )
    texts = {part: each[multi30k.TO] for part, each in multi30k.read(folder).items()}
    task = TranslationTask(
        Translator(sizes), data.splits, english, texts, batch_size=config.value("batch")
    )
    counts = {part: len(each) for part, each in texts.items()}
    if config.pairs is not None and config.pairs > counts["train"]:
        raise UserError(
            f"multi30k: pairs={config.pairs}, and the training files have {counts['train']:,}; "
            "ask for at most as many"
        )
    notes = in_part("Multi30k", counts, multi30k.WHOLE, "pairs")
    if paper:
        target = data.splits["train"][1]
        unknown = (target == UNKNOWN_ID).sum()
        share = float(unknown / (unknown + (target > END_ID).sum()))
        notes.append(f"English in the German vocabulary: {share:.0%} of its words are unknown")
    task.note = "; ".join(notes)
    return task
