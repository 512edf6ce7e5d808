"""Where a face's update rule comes from: a saved file, or a learned optimizer in memory."""

from __future__ import annotations

import hashlib
import os

import torch

from lo_framework.learned import LearnedOptimizer, make_learned
from lo_framework.spec import UserError


def learned_from(optimizer: str | os.PathLike[str] | LearnedOptimizer) -> LearnedOptimizer:
    """The learned optimizer itself, or the one in the file at this path.

    Raises:
        UserError: a file that is missing, damaged, of an unknown kind, or whose weights are not
            those of its kind.
    """
    if isinstance(optimizer, LearnedOptimizer):
        return optimizer
    if not isinstance(optimizer, (str, os.PathLike)):
        raise UserError(
            f"expected a learned optimizer or the path of its file, not a {type(optimizer).__name__}"
        )
    from lo_framework.checkpoint import load_optimizer

    file = load_optimizer(optimizer)
    learned = make_learned(file.kind, **file.config)
    own = {name: tuple(p.shape) for name, p in learned.named_parameters()}
    held = {name: tuple(x.shape) for name, x in file.tensors.items()}
    if own != held:
        wrong = ", ".join(
            sorted(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
        )
        raise UserError(
            f"{os.fspath(optimizer)!r} does not hold the weights of a {file.kind}: {wrong} differ"
        )
    learned.load_theta(file.tensors)
    return learned


def fingerprint(learned: LearnedOptimizer) -> str:
    """Short digest of kind, config and weights: tells whether saved state belongs to this
    optimizer.
    """
    digest = hashlib.sha256(f"{learned.kind} {learned.config}".encode())
    for name, p in sorted(learned.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
