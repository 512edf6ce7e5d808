"""The command line of the framework itself: ``python -m lo_framework push`` or ``lo push``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lo_framework.commandline import Parser, run
from lo_framework.errors import UserError, nearest, shown

EXAMPLES = """\
examples:
  lo push runs/mine/optimizer.safetensors hf://me/mine --card-score runs/score/score.json --dry-run
      print what would be uploaded: two files, and the text of the card

  lo push runs/mine/optimizer.safetensors hf://me/mine --private
      upload it into a repository that only its owner sees; needs `hf auth login`

The repository gets optimizer.safetensors, bit for bit, and README.md, its model card. What is in
the hub's history stays there. `lo.load("hf://me/mine")` reads it again.
"""
ABOUT = """\
Share an optimizer: upload its file and a model card to the Hugging Face hub.

The card beside the file (`lo.save(..., card=True)`) is used where it is of these weights and no
score is given; else one is made from the file's own record."""


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What is uploaded, and where to."""

    file: str = field(metadata={"positional": True, "metavar": "FILE"})
    """optimizer file, or a name of one"""
    target: str = field(metadata={"positional": True, "metavar": "hf://owner/name"})
    """repository of the hub, which is made where there is none"""
    card_score: str | None = field(default=None, metadata={"metavar": "FILE"})
    """score.json of `eval score`, for the card"""
    private: bool = False
    """a repository that is made is private; one that is there stays as it is"""
    dry_run: bool = False
    """print what would be uploaded, and ask nothing of the hub"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Exit code 0; 2 for bad input, with one line on stderr; 130 if interrupted."""
    return run("lo", _run, argv)


def _run(words: list[str]) -> int:
    parser = Parser("lo push", PushRequest, description=ABOUT, examples=EXAMPLES)
    if words[:1] != ["push"]:
        if words and not words[0].startswith("-"):
            near = nearest(words[0], ["push"])
            raise UserError(f"unknown command {shown(words[0])}{near}; there is: push")
        if words:
            parser.read(words)  # which answers --help and --version
        raise UserError("expected a command: lo push FILE hf://owner/name (see --help)")
    return _push(PushRequest(**parser.read(words[1:])))


def _push(request: PushRequest) -> int:
    from lo_framework.learned.card import CARD
    from lo_framework.learned.pushing import push, shipment
    from lo_framework.learned.sources import HUB

    sent = shipment(request.file, request.target, request.card_score)
    sizes = (f"  {name:22} {len(data):>9,} bytes" for name, data in sent.files.items())
    print("\n".join([f"{HUB}{sent.repository}: {sent.about}", *sizes]))
    if request.dry_run:
        kind = "private" if request.private else "public, unless its owner's default is another"
        print(f"\n{CARD}:\n\n{sent.files[CARD].decode()}")
        print(f"nothing is uploaded (--dry-run); a repository that is made would be {kind}")
        return 0
    print(push(sent, private=request.private))
    return 0
