"""Optimizer files: one learned optimizer, to share and to use; the only place that reads and writes
them.

They are sealed files (`lo_framework.files.sealed`): safetensors with a JSON record under a sha256
that is verified before anything is used; nothing is unpickled. Writes are atomic.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lo_framework.errors import UserError, shown
from lo_framework.files.atomic import atomic_write_bytes
from lo_framework.files.sealed import FORMAT_VERSION, Record, read_sealed, seal
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.building import rebuild
from lo_framework.learned.features import FEATURE_VERSION
from lo_framework.learned.sources import find

_MAX_BYTES = 1 << 30  # optimizers are kilobytes; this is the limit for a file of unknown origin
_EXPECTED = "an optimizer file, as meta-training saves it"


@dataclass(frozen=True, kw_only=True)
class _OptimizerRecord(Record):
    content: Literal["optimizer"]
    kind: str
    config: dict[str, Any]
    summary: dict[str, Any]
    feature_version: int


@dataclass(frozen=True, kw_only=True)
class OptimizerFile:
    """The content of an optimizer file.

    Attributes:
        path: as it was given.
        kind: the registered name of the learned optimizer (``"attention-mlp"``).
        config: the fields of its config; sequences are tuples, as in the frozen dataclasses.
        tensors: its weights by parameter name, on the CPU.
        summary: how it was trained and how well it did; for people and reports, nothing depends on
            it.
        format_version, feature_version: as in the file.
    """

    path: str
    kind: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    summary: dict[str, Any]
    feature_version: int
    format_version: int = FORMAT_VERSION

    def build(self) -> LearnedOptimizer:
        """The learned optimizer itself, which keeps the summary.

        Raises:
            UserError: an unknown kind (a plugin is missing), or what `rebuild` refuses.
        """
        try:
            learned = rebuild(self.kind, self.config, self.tensors, self.feature_version)
        except UserError as error:
            raise UserError(f"{self.path!r}: {error}") from None
        learned.origin = (fingerprint(learned), self.summary)
        return learned


def load(source: str | os.PathLike[str]) -> LearnedOptimizer:
    """The learned optimizer that is shipped as ``general``, shared as ``hf://owner/name``, or in
    the file at this path (`sources`).

    Raises:
        UserError: an unknown name, or a file that `load_optimizer` or `OptimizerFile.build`
            refuses.
    """
    return load_optimizer(source).build()


def learned_from(optimizer: str | os.PathLike[str] | LearnedOptimizer) -> LearnedOptimizer:
    """The learned optimizer itself, or what `load` finds; raises UserError."""
    if isinstance(optimizer, LearnedOptimizer):
        return optimizer
    if not isinstance(optimizer, (str, os.PathLike)):
        raise UserError(
            "expected a learned optimizer, its name or the path of its file, not a "
            f"{type(optimizer).__name__}"
        )
    return load(optimizer)


def save_optimizer(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    *,
    kind: str,
    config: dict[str, Any],
    summary: dict[str, Any],
    feature_version: int = FEATURE_VERSION,
) -> None:
    """Save a learned optimizer, atomically; the same arguments always give the same bytes.

    Args:
        tensors: the weights by parameter name; finite, any shape and dtype.
        kind, config: what rebuilds it: ``make_learned(kind, **config)``. JSON values and tuples.
        summary: JSON values, free in form.

    Raises:
        UserError: a weight is NaN or infinite, or the system refuses the write; a file that was
            there stays as it was.
        TypeError: a value that JSON or safetensors cannot hold.
    """
    if bad := _non_finite(tensors):
        raise UserError(
            f"not saved to {os.fspath(path)!r}: {bad} holds NaN or infinite weights; expected "
            "finite weights, save an earlier, finite state of this optimizer"
        )
    record = {
        "content": "optimizer",
        "feature_version": feature_version,
        "kind": kind,
        "config": config,
        "summary": summary,
    }
    atomic_write_bytes(path, seal(tensors, record))


def load_optimizer(source: str | os.PathLike[str], *, kind: str | None = None) -> OptimizerFile:
    """Read an optimizer file; every bit of it is verified first.

    Args:
        source: its path, or what `sources` knows by name.
        kind: the only kind that is acceptable, where there is one.

    Raises:
        UserError: an unknown name; the file is missing, not a file, no optimizer file, truncated,
            damaged, of another format or feature version, of another kind than `kind`, or holds
            weights that are not finite.
    """
    path, name = find(source), repr(os.fspath(source))
    tensors, record = read_sealed(path, _EXPECTED, _MAX_BYTES, _OptimizerRecord)
    version = record.feature_version
    if not 1 <= version <= FEATURE_VERSION:  # no error would follow, only wrong updates
        raise UserError(
            f"{name} reads features of version {shown(version)}, and this lo_framework computes "
            f"versions 1 to {FEATURE_VERSION}: its weights would mean something else; use the "
            "release that trained it"
        )
    if kind is not None and record.kind != kind:
        raise UserError(
            f'{name} holds an optimizer of kind {shown(record.kind)}: expected kind "{kind}"'
        )
    if bad := _non_finite(tensors):
        raise UserError(f"{name}: {bad} holds NaN or infinite weights; expected finite weights")
    return OptimizerFile(
        path=os.fspath(source),
        kind=record.kind,
        config={key: _frozen(value) for key, value in record.config.items()},
        tensors=tensors,
        summary=record.summary,
        feature_version=version,
    )


def fingerprint(learned: LearnedOptimizer) -> str:
    """Short digest of kind, config and weights: tells whether saved state belongs to this
    optimizer.
    """
    digest = hashlib.sha256(f"{learned.kind} {learned.config}".encode())
    for name, p in sorted(learned.named_parameters()):
        digest.update(name.encode())
        digest.update(p.detach().to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def lineage(summary: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """An optimizer's ``summary``, then that of the one which its training began with, and on."""
    record: Any = summary
    while isinstance(record, Mapping):
        yield record
        record = record.get("began_with")


def _non_finite(tensors: dict[str, Tensor]) -> str:
    """The name, in quotes, of the first tensor with a NaN or an infinity, or an empty string."""
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_floating_point():
            wide = tensor if tensor.is_complex() else tensor.double()  # float8 has no isfinite
            if not bool(torch.isfinite(wide).all()):
                return shown(name)
    return ""


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
