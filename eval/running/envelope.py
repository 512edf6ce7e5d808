"""The JSON file of an evaluation: which kind and version it is, its record, and what follows from
that.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from lo_framework.files.atomic import reason
from lo_framework.spec import UserError

R = TypeVar("R")
_NUMBERS = re.compile(r"\[\n[^\[\]{}\"]*\]")


class Envelope(NamedTuple):
    """``command`` writes files called ``name``: ``transfer`` writes ``transfer.json``."""

    command: str
    name: str
    version: int

    @property
    def format(self) -> str:
        return f"lo-framework {self.command}"

    def write(self, record: dict[str, Any], derived: dict[str, Any] | None) -> str:
        """Strict JSON. ``derived``: what follows from the record, for other programs to read."""
        data = (
            {"format": self.format, "version": self.version} | record | {"derived": derived or {}}
        )
        text = json.dumps(data, indent=1, allow_nan=False)
        # A list of numbers on one line. Strings hold no line breaks, so none of them is changed.
        return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text) + "\n"

    def read(self, text: str, source: str, make: Callable[[dict[str, Any]], R]) -> R:
        """``make`` of the record. ``source`` names it in errors.

        Raises:
            UserError: not JSON, not of this kind, of another version, or not what ``make`` needs.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{source} is not valid JSON ({error}); expected what `eval {self.command}` writes"
            ) from None
        if not isinstance(data, dict) or data.get("format") != self.format:
            raise UserError(f"{source} is not a result of `eval {self.command}`")
        if data.get("version") != self.version:
            raise UserError(
                f"{source} has version {data.get('version')}, "
                f"and this release reads version {self.version}"
            )
        try:
            return make(
                {
                    key: value
                    for key, value in data.items()
                    if key not in ("format", "version", "derived")
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{source} is damaged: {type(error).__name__} {error}") from None

    def load(self, folder: str | os.PathLike[str], from_json: Callable[[str, str], R]) -> R:
        """The result saved in a folder.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = Path(folder) / self.name
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            expected = f"expected the --out folder of `eval {self.command}`"
            raise UserError(f"there is no {self.name} in {str(folder)!r}; {expected}") from None
        except (OSError, UnicodeDecodeError) as error:
            words = reason(error) if isinstance(error, OSError) else "not text"
            raise UserError(f"cannot read {str(path)!r}: {words}") from None
        return from_json(text, str(path))
