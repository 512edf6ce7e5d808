"""Words and their numbers: built from the lines of a training split by the `tokenizers` library,
and kept under a digest of these lines and of the rules.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import cache_folder
from lo_framework.optional import require
from lo_framework.schema import Checked, Range, Width
from lo_framework.spec import UserError, first_line

PAD, UNKNOWN = "<pad>", "<unk>"
PAD_ID, UNKNOWN_ID = 0, 1
BEGIN, END = "<s>", "</s>"  # of a sentence
BEGIN_ID, END_ID = 2, 3
Size = Annotated[int, Range(low=3, high=1 << 16)]
VERSION = 1  # of the way from rules to words
KEEP = 16  # hexadecimal digits of a digest
# torchtext's "basic_english", in its order
BASIC_ENGLISH = (
    *(("'", " ' "), ('"', ""), (".", " . "), ("<br />", " "), (",", " , "), ("(", " ( ")),
    *((")", " ) "), ("!", " ! "), ("?", " ? "), (";", " "), (":", " ")),
)


@dataclass(frozen=True, kw_only=True)
class Rules(Checked):
    """How a vocabulary is made.

    Attributes:
        size: of the vocabulary at most, `PAD` and `UNKNOWN` included: the most frequent words.
        least: how often a word must occur.
        words: what a word is: what stands between blanks; the same in lower case with punctuation
            by itself ("basic_english", as torchtext has it); or runs of letters and of other signs,
            in lower case ("punctuated").
        marked: `BEGIN` and `END` are words too.
    """

    size: Size
    least: Width = 1
    words: Literal["blanks", "basic_english", "punctuated"] = "blanks"
    marked: bool = False


class Vocabulary:
    """Numbers for the words of lines; `PAD` is 0, and `UNKNOWN` (any other word) is 1."""

    def __init__(self, tokenizer: Any, digest: str) -> None:
        self.tokenizer, self.digest = tokenizer, digest

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The numbers of each line's words."""
        with _alone():
            return [each.ids for each in self.tokenizer.encode_batch(list(lines))]

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The words of numbers."""
        return [self.tokenizer.id_to_token(i) for i in ids]

    def stream(self, lines: Sequence[str]) -> Tensor:
        """The numbers of all lines, one after the other, int64."""
        return torch.tensor([i for ids in self.encode(lines) for i in ids], dtype=torch.int64)


def vocabulary(lines: Sequence[str], rules: Rules) -> Vocabulary:
    """The vocabulary of `lines` by `rules`, from the cache where it is there, else built and put
    there; without a folder that can be written it is built each time.

    Raises:
        UserError: tokenizers is not installed; the file in the cache is of another digest.
    """
    require("tokenizers")
    head = json.dumps({**asdict(rules), "version": VERSION}, sort_keys=True)
    text = "\n".join([head, *lines])
    digest = hashlib.sha256(text.encode()).hexdigest()[:KEEP]
    folder = cache_folder()
    path = folder / "vocabularies" / f"{digest}.json" if folder else None
    if path and path.is_file():
        return _stored(path, digest)
    built = _built(lines, rules)
    if path:
        with contextlib.suppress(OSError):
            _write(path, json.dumps({"digest": digest, **_sealed(built.to_str())}))
    return Vocabulary(built, digest)


def _stored(path: Path, digest: str) -> Vocabulary:
    """What `vocabulary` has put into the file; raises UserError for what is not whole, or not of
    this digest.
    """
    require("tokenizers")
    from tokenizers import Tokenizer

    again = "delete it, and it is built again"
    try:
        held = json.loads(path.read_text("utf-8"))
        found, text = held["digest"], held["tokenizer"]
        whole = _sealed(text)["sha256"] == held["sha256"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected the vocabulary of digest {digest}, and it cannot be read "
            f"({first_line(error)}); {again}"
        ) from None
    if found != digest or not whole:
        problem = "its content was changed" if found == digest else f"it is of digest {found}"
        raise UserError(f"{path}: expected the vocabulary of digest {digest}, {problem}; {again}")
    return Vocabulary(Tokenizer.from_str(text), digest)


def _sealed(text: str) -> dict[str, str]:
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "tokenizer": text}


def _built(lines: Sequence[str], rules: Rules) -> Any:
    require("tokenizers")
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    if rules.words != "blanks":
        replaced = BASIC_ENGLISH if rules.words == "basic_english" else ()
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Lowercase(), *(normalizers.Replace(a, b) for a, b in replaced)]
        )
    punctuated = rules.words == "punctuated"
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Whitespace() if punctuated else pre_tokenizers.WhitespaceSplit()
    )
    trainer = trainers.WordLevelTrainer(
        vocab_size=rules.size,
        min_frequency=rules.least,
        show_progress=False,
        special_tokens=[
            AddedToken(word, normalized=False)
            for word in (PAD, UNKNOWN, *((BEGIN, END) if rules.marked else ()))
        ],
    )
    with _alone():
        # A word that is UNKNOWN already (as in WikiText) must not be learned as one.
        known = (line.replace(UNKNOWN, " ") for line in lines)
        tokenizer.train_from_iterator(known, trainer=trainer)
    return tokenizer


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Without the library's threads: a process that had them is warned at each later fork."""
    key = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(key)
    os.environ[key] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _write(path: Path, text: str) -> None:
    """A reader finds the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".", suffix=".tmp", encoding="utf-8", delete=False
    ) as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
