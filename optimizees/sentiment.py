"""``imdb``: a bidirectional LSTM that tells positive reviews of films from negative ones, as
MetaAdamW was published on it (`docs/papers.md`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from lo_framework.optimizees.datasets import imdb
from lo_framework.optimizees.datasets.source import in_part
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.datasets.vocabulary import PAD_ID, Rules, Size as Words
from lo_framework.optimizees.models.lstm import BiLSTM, LSTMSizes
from lo_framework.optimizees.registry import register_task
from lo_framework.optimizees.sized import Dropped, Sized, Table
from lo_framework.optimizees.task import ClassificationTask, Rows
from lo_framework.schema import Layers, Range, Width


@dataclass(frozen=True, kw_only=True)
class ImdbConfig(Sized):
    """Options of ``imdb``, besides those of `Sized`; None: as the size has it.

    Attributes:
        embed: numbers in the embedding of a word.
        hidden: numbers in the state of each way.
        layers: LSTMs above one another, each of both ways.
        length: the first words of a review that are read.
        vocab: the most frequent words that are told apart.
        least: how often such a word occurs in the training reviews.
        batch: reviews of one batch.
        dropout: probability, between layers and before the head.
    """

    SIZES: ClassVar[Table] = {
        "paper": dict(
            embed=32, hidden=64, layers=2, length=256, vocab=25_000, least=5, batch=64, dropout=0.2
        ),
        "small": dict(
            embed=32, hidden=32, layers=1, length=64, vocab=2000, least=2, batch=32, dropout=0.2
        ),
        "tiny": dict(
            embed=8, hidden=8, layers=1, length=16, vocab=256, least=1, batch=16, dropout=0.0
        ),
    }

    embed: Width | None = None
    hidden: Width | None = None
    layers: Layers | None = None
    length: Annotated[int, Range(low=1, high=1 << 14)] | None = None
    vocab: Words | None = None
    least: Width | None = None
    batch: Rows | None = None
    dropout: Dropped | None = None


@register_task("imdb", config=ImdbConfig, reads_files=True)
def imdb_task(config: ImdbConfig, folder: str | None) -> ClassificationTask:
    """The task on the files in `folder`, whose batches are (words int64 [B, T], labels int64 [B]);
    under ``protocol=paper`` the test reviews validate, and the network reads the padding too.
    """
    paper = config.protocol == "paper"
    rules = Rules(size=config.value("vocab"), least=config.value("least"), words="basic_english")
    reviews = imdb.load(folder, rules, config.value("length"), paper)
    sizes = LSTMSizes(
        vocab=len(reviews.vocabulary),
        classes=len(imdb.SIDES),
        pad=None if paper else PAD_ID,
        **{key: config.value(key) for key in ("embed", "hidden", "layers", "dropout")},
    )
    data = Dataset(name="imdb", splits=reviews.splits, num_classes=len(imdb.SIDES))
    task = ClassificationTask(BiLSTM(sizes), data, name="imdb", batch_size=config.value("batch"))
    notes = in_part("IMDB", {"train": reviews.count}, {"train": imdb.WHOLE}, "reviews")
    notes += ["validated on its test reviews"] if paper else []
    task.note = "; ".join(notes)
    return task
