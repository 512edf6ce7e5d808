"""The JSON file of an evaluation: which kind and version it is, its record, and what follows from
that.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from lo_framework.errors import describe, shown
from lo_framework.eval.statistics import Array
from lo_framework.files.atomic import reason
from lo_framework.schema import Via, check_json
from lo_framework.spec import UserError


class Record(Protocol):
    """A dataclass whose field types say what its JSON must be."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self) -> None:
        """Raise ValueError: parts do not fit each other."""


R = TypeVar("R", bound=Record)
_NUMBERS = re.compile(r"\[\n[^\[\]{}\"]*\]")


@dataclass(frozen=True)
class Envelope(Generic[R]):
    """The file of a ``record`` that ``command`` writes: ``transfer`` writes ``transfer.json``."""

    command: str
    record: type[R]
    version: int = 1

    @property
    def name(self) -> str:
        return f"{self.command}.json"

    @property
    def format(self) -> str:
        return f"lo-framework {self.command}"

    def write(self, record: R, derived: dict[str, Any] | None = None) -> str:
        """Return strict JSON: what is not finite is null.

        Args:
            derived: what follows from the record, for other programs to read.
        """
        data = {"format": self.format, "version": self.version, **asdict(record)}
        text = json.dumps(plain({**data, "derived": derived or {}}), indent=1, allow_nan=False)
        # A list of numbers on one line. Strings hold no line breaks, so none of them is changed.
        return _NUMBERS.sub(lambda match: " ".join(match[0].split()), text) + "\n"

    def read(self, text: str, source: str = "the file") -> R:
        """Return the record in ``text``. ``source`` names it in errors.

        Raises:
            UserError: not JSON, not of this kind, of another version, or not such a record.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            wanted = f"expected what `eval {self.command}` writes"
            raise UserError(f"{source} is not valid JSON ({describe(error)}); {wanted}") from None
        if not isinstance(data, dict) or data.get("format") != self.format:
            raise UserError(f"{source} is not a result of `eval {self.command}`")
        if data.get("version") != self.version:
            other = f"{source} has version {shown(data.get('version'))}"
            raise UserError(f"{other}, and this release reads version {self.version}")
        rest = {key: x for key, x in data.items() if key not in ("format", "version", "derived")}
        found: R = check_json(rest, self.record, f"{source} is damaged")
        try:
            found.check()
        except UserError:  # as of a baseline that only a plugin knows
            raise
        except ValueError as error:
            raise UserError(f"{source} is damaged: {error}") from None
        return found

    def load(self, folder: str | os.PathLike[str]) -> R:
        """Return the result saved in a folder.

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
        return self.read(text, repr(str(path)))


def require(wanted: Iterable[tuple[str, ...]], there: Iterable[tuple[str, ...]]) -> None:
    """Raise ValueError: something wanted is not there."""
    known = set(there)
    for names in wanted:
        if names not in known:
            raise ValueError(f"there are no numbers of {shown(', '.join(names))}")


@dataclass(frozen=True, kw_only=True)
class OnTask:
    """One optimizer on one task. ``failure`` is empty, or says in one line why there are no
    results.

    Attributes:
        tuned: the settings tried for a baseline, each with its scores on the tuning seeds.
        notes: what a person should know (extensions of the grid).
        gradients_per_step: gradient evaluations per update.
    """

    task: str
    optimizer: str
    learned: bool
    tuned: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    gradients_per_step: float = 1.0
    failure: str = ""


A = TypeVar("A", bound=OnTask)


@dataclass(frozen=True, kw_only=True)
class Arms(Generic[A]):
    """Learned optimizers beside baselines. ``arms`` by (task, optimizer), tasks outermost.

    Attributes:
        tasks: names in their order.
        learned: labels of what is compared with the ``baselines``, some of which may be among them.
        files: label -> the file a learned optimizer came from, or its name.
        provenance: versions, command, commit, time.
    """

    tasks: tuple[str, ...]
    learned: tuple[str, ...]
    baselines: tuple[str, ...]
    arms: tuple[A, ...]
    tuning_seeds: tuple[int, ...]
    files: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def arm(self, task: str, optimizer: str) -> A:
        return next(arm for arm in self.arms if (arm.task, arm.optimizer) == (task, optimizer))

    def check(self) -> None:
        """Raise ValueError: an arm is missing."""
        wanted = [(task, optimizer) for task in self.tasks for optimizer in self.optimizers]
        require(wanted, ((arm.task, arm.optimizer) for arm in self.arms))

    @property
    def optimizers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.learned + self.baselines))


def require_shape(name: str, values: Array, *shape: int) -> None:
    """Raise ValueError: another shape."""
    if values.shape != shape:
        raise ValueError(f"{name}: expected {list(shape)} values, not {list(values.shape)}")


def _array(values: Any, missing: float) -> Array:
    """Return numbers; ``missing`` for what is null. Raises ValueError: they are none."""
    try:
        x = np.array(values, dtype=np.float64)  # None becomes nan
    except TypeError as error:
        raise ValueError(f"expected lists of numbers ({error})") from None
    return np.where(np.isnan(x), missing, x)


def _flags(values: Any) -> NDArray[np.bool_]:
    x = np.array(values)
    if x.size and x.dtype != np.bool_:
        raise ValueError("expected lists of true and false")
    return x.astype(np.bool_)


def plain(value: Any, beyond: Callable[[float], Any] = lambda x: None) -> Any:
    """Return JSON values: arrays as lists, float32 with its nine digits, ``beyond`` of what is not
    finite.
    """
    if isinstance(value, np.ndarray):
        rows = value if value.ndim > 1 else value.tolist()
        if value.ndim == 1 and value.dtype == np.float32:
            rows = [float(f"{x:.9g}") for x in rows]
        return [plain(x, beyond) for x in rows]
    if isinstance(value, float):
        return value if math.isfinite(value) else beyond(value)
    if isinstance(value, dict):
        return {str(key): plain(x, beyond) for key, x in value.items()}
    return [plain(x, beyond) for x in value] if isinstance(value, (list, tuple)) else value


# Losses of diverged runs are infinite; accuracies and counts that are not there are nan.
Metrics = Annotated[
    dict[str, Array],
    Via(
        dict[str, Any],
        lambda found: {
            name: _array(x, math.inf if name.endswith("loss") else math.nan)
            for name, x in found.items()
        },
    ),
]
Curves = Annotated[Array, Via(Any, lambda values: _array(values, math.inf).astype(np.float32))]
Flags = Annotated[Any, Via(Any, _flags)]  # an array of bool
Measured = Annotated[float, Via(float | None, lambda x: math.nan if x is None else x)]


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers of one optimizer on one task, or ``failure``: why there are none.

    Attributes:
        metrics: by name; losses of diverged runs are infinite, their accuracies nan. Counts too.
        diverged: bool, of the same shape.
    """

    task: str
    metrics: Metrics = field(default_factory=dict)
    diverged: Flags = field(default_factory=lambda: np.zeros(0, dtype=bool))
    failure: str = ""

    def check(self, optimizer: str, *shape: int) -> None:
        """Raise ValueError: numbers of another shape, or no final loss."""
        if self.failure:
            return
        require([("final_loss",)], ((key,) for key in self.metrics))
        for key, values in {**self.metrics, "diverged": self.diverged}.items():
            require_shape(f"{shown(self.task)}, {shown(optimizer)}: {shown(key)}", values, *shape)
