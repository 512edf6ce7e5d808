"""Sealed files: tensors and a JSON record in one safetensors file, under one sha256, verified
before anything is used.

The record is the only metadata entry of the safetensors header: JSON text with sorted keys, the
digest first. The digest covers every byte of the file but its own 64 characters (they count as
zeros): names, dtypes, shapes, tensor bytes, record, header layout and padding. It guards against
damage, not against forgery; a forged file can hold wrong numbers but cannot run anything, because
nothing but numbers and JSON is read.

The same tensors and record always give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lo_framework.errors import UserError, shown
from lo_framework.files.atomic import reason
from lo_framework.schema import check_json

FORMAT_VERSION = 1  # of the container and of its record; any change of meaning raises it

_KEY = "lo_framework"
_BLANK = "0" * 64
# The record as it stands inside the header, up to the digest. Quotes inside JSON strings are
# escaped, so no tensor name and no record can contain these bytes.
_MARK = b'"lo_framework":"{\\"sha256\\":\\"'
_MAX_HEADER = 1 << 24  # bytes; a header of ours has some 100 bytes per tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a sealed file; each use adds its fields to these."""

    sha256: str
    format_version: int


R = TypeVar("R", bound=Record)


def seal(tensors: Tensors, record: dict[str, Any]) -> bytes:
    """The bytes of a sealed file.

    Args:
        tensors: any shape, dtype and device; they are stored as contiguous CPU copies, so views may
            overlap.
        record: JSON values only; tuples become lists. NaN and infinities keep Python's spelling.

    Raises:
        TypeError: a value that JSON cannot hold, or a tensor that safetensors cannot.
    """
    from safetensors.torch import save

    fields = {"sha256": _BLANK, **_plain({"format_version": FORMAT_VERSION, **record}, "record")}
    text = json.dumps(fields, separators=(",", ":"))
    try:
        raw = save(
            {name: _packed(name, tensor) for name, tensor in sorted(tensors.items())},
            metadata={_KEY: text},
        )
    except (KeyError, ValueError) as error:
        dtypes = sorted({str(tensor.dtype) for tensor in tensors.values()})
        raise TypeError(
            f"safetensors cannot hold these tensors (dtypes {', '.join(dtypes)}): {error}"
        ) from error
    at = raw.index(_MARK) + len(_MARK)
    return raw[:at] + _digest(raw, at).encode() + raw[at + len(_BLANK) :]


def unseal(raw: bytes, name: str, expected: str) -> tuple[Tensors, dict[str, Any]]:
    """Tensors (on the CPU, in memory of their own) and record of the sealed file `raw`.

    Args:
        name: what the error line calls the file.
        expected: what would have been right, for the error line (``"an optimizer file"``).

    Raises:
        UserError: not a sealed file, truncated, damaged, or of another format version.
    """
    header = _header(raw, name, expected)
    mark = header.find(_MARK)
    if mark < 0:
        raise UserError(
            f"{name} has no lo_framework record: expected {expected}, or a copy that is not damaged"
        )
    at = 8 + mark + len(_MARK)
    if _digest(raw, at).encode() != raw[at : at + len(_BLANK)]:
        raise UserError(f"{name} is {_damage(raw, header)}; copy or download it again")
    # From here on the file is what its writer wrote; a line below fails only for a file that was
    # forged.
    try:
        record = _once(_once(header)["__metadata__"][_KEY])
        version = record["format_version"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{name} has an unreadable record: expected {expected}") from error
    if version is True or version != FORMAT_VERSION:
        raise UserError(
            f"{name} has format version {shown(version)}, and this lo_framework reads version "
            f"{FORMAT_VERSION}; use the release that wrote it, or save it again"
        )
    return _tensors(raw, name, expected), record


def read_sealed(
    path: str | os.PathLike[str], expected: str, limit: int, record_type: type[R]
) -> tuple[Tensors, R]:
    """`unseal` the file at `path`, which may have at most `limit` bytes.

    Raises:
        UserError: missing, not a file, unreadable, too large, a record unlike `record_type`, and
            all that `unseal` refuses.
    """
    name = repr(os.fspath(path))
    try:
        status = os.stat(path)  # first: opening a pipe would wait for its writer
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
            raise UserError(f"{name} is {what}: expected {expected}")
        if status.st_size > limit:
            raise UserError(
                f"{name} has {status.st_size} bytes: expected {expected}, of at most {limit} bytes"
            )
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no file {name}: expected {expected}") from None
    except OSError as error:
        raise UserError(f"cannot read {name}: {reason(error)}; expected {expected}") from error
    tensors, record = unseal(raw, name, expected)
    return tensors, check_json(record, record_type, f"{name}: expected {expected}")


def _once(text: str | bytes) -> Any:
    """Parsed JSON; ValueError where an object has a key twice (of which parsers keep the last)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(entries := dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice")
        return entries

    return json.loads(text, object_pairs_hook=unique)


def _header(raw: bytes, name: str, expected: str) -> bytes:
    """The JSON header; its length is checked against the file and a limit before it is believed."""
    length = int.from_bytes(raw[:8], "little")
    if not raw:
        raise UserError(f"{name} is empty: expected {expected}")
    if len(raw) < 10 or raw[8:9] != b"{" or length > _MAX_HEADER:
        raise UserError(
            f"{name} is not a safetensors file of ours, or its beginning is damaged: expected "
            f"{expected}"
        )
    if length > len(raw) - 8:
        raise UserError(
            f"{name} is truncated or damaged in its header: expected {expected}; copy or "
            "download it again"
        )
    return raw[8 : 8 + length]


def _digest(raw: bytes, at: int) -> str:
    view = memoryview(raw)
    digest = hashlib.sha256(view[:at])
    digest.update(_BLANK.encode())
    digest.update(view[at + len(_BLANK) :])
    return digest.hexdigest()


def _damage(raw: bytes, header: bytes) -> str:
    """The likely kind of damage, in words; the header may itself be wrong."""
    try:
        ends = [
            entry["data_offsets"][1]
            for key, entry in json.loads(header).items()
            if key != "__metadata__"
        ]
        promised = 8 + len(header) + max(ends, default=0)
        if len(raw) < promised:
            return f"truncated: {len(raw)} bytes of {promised}"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    return "damaged: its sha256 does not match its content"


def _tensors(raw: bytes, name: str, expected: str) -> Tensors:
    from safetensors.torch import load

    try:
        loaded = load(raw)
    except Exception as bad:  # it fails in many ways
        raise UserError(f"{name} has unreadable tensors: expected {expected}") from bad
    # Copies have the allocator's alignment, which kernels see: a resumed run must not differ in
    # bits for it.
    return {key: tensor.clone() for key, tensor in loaded.items()}


def _packed(name: str, tensor: Tensor) -> Tensor:
    """A contiguous CPU copy that shares memory with no other tensor of the file."""
    if name == "__metadata__":
        raise TypeError('a tensor cannot be named "__metadata__": safetensors keeps that name')
    if (
        not isinstance(tensor, Tensor)
        or tensor.layout != torch.strided
        or tensor.is_quantized
        or tensor.is_meta
    ):
        raise TypeError(
            f'"{name}" is not a dense tensor that holds its numbers: {type(tensor).__name__}'
        )
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu")
    return plain.clone(memory_format=torch.contiguous_format)


def _plain(value: Any, where: str) -> Any:
    """`value` with sorted keys and tuples as lists; TypeError where JSON would change or refuse
    something else.
    """
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}: JSON would turn it into a string")
        return {key: _plain(value[key], f"{where}.{key}") for key in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}: expected None, bool, int, float, str, list or dict"
    )
