"""Options of problems that come in sizes: one word for all of them, and each by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from lo_framework.schema import Checked, Range

Size = Literal["paper", "small", "tiny"]
Table = Mapping[str, Mapping[str, Any]]  # what the options are, by size
Protocol = Literal["honest", "paper"]
Dropped = Annotated[float, Range(low=0, high=1, open_high=True)]


@dataclass(frozen=True, kw_only=True)
class Sized(Checked):
    """Base of configs whose options are None until given: their values are those of `size`.

    Attributes:
        size: as the paper has it; small, which trains in seconds on one core; tiny, for
            meta-training.
        protocol: splits that share nothing, or what the paper did.
    """

    SIZES: ClassVar[Table]

    size: Size = "small"
    protocol: Protocol = "honest"

    def value(self, option: str) -> Any:
        """What the option is: as given, else as the size has it."""
        given = getattr(self, option)
        return self.SIZES[self.size][option] if given is None else given
