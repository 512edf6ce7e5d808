"""The baselines that a spec can name, their options, and the settings over which each is tuned.

    optimizer = make_baseline("adamw")
    thetas = make_thetas(optimizer, grid_of("adamw"))     # one per setting

A baseline joins by `register_baseline`, in its own file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.registry import Registry
from lo_framework.spec import UserError, canonical, nearest, parse_spec

Setting = dict[str, float]
B = TypeVar("B", bound=type[LearnedOptimizer])


@dataclass(frozen=True, kw_only=True)
class TunedConfig:
    """The options of every baseline that are tuned."""

    lr: float = 1e-3
    cosine: bool = False

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"lr must be positive, got {self.lr}")


class TunedOptimizer(LearnedOptimizer):
    """An optimizer whose theta is what is tuned: ``lr`` as ``log_lr``, and ``cosine``; one that is
    ``untuned`` stays at its own.
    """

    untuned: ClassVar[bool] = False
    further: ClassVar[tuple[str, ...]] = ()  # positive options that are tuned too

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.log_lr = nn.Parameter(torch.tensor(math.log(config.lr)))
        self.cosine = nn.Parameter(torch.tensor(float(config.cosine)))
        for name in self.further:
            value = torch.tensor(math.log(getattr(config, name)))
            self.register_parameter(f"log_{name}", nn.Parameter(value))


BASELINES: Registry[LearnedOptimizer] = Registry("baseline")


def lr_grid(lrs: Iterable[float]) -> tuple[Setting, ...]:
    """Every learning rate with a constant and with a cosine schedule."""
    return tuple({"lr": lr, "cosine": cosine} for cosine in (0.0, 1.0) for lr in lrs)


def register_baseline(name: str, grid: Sequence[Setting]) -> Callable[[B], B]:
    """Decorate a class to be the baseline ``name``, by default tuned over the settings ``grid``.

    Raises:
        UserError: the name is taken.
    """

    def register(cls: B) -> B:
        return BASELINES.register(name, config=cls.Config, grid=tuple(grid))(cls)

    return register


def grid_of(name: str) -> tuple[Setting, ...]:
    """The settings over which the baseline ``name`` is tuned by default; raises UserError."""
    return BASELINES.find(name).facts["grid"]


def make_baseline(spec: str) -> LearnedOptimizer:
    """Build from ``"adamw"`` or ``"adamw:lr=0.01,cosine=1,weight_decay=0.1"``.

    Raises:
        UserError: unknown name or option; the line names the nearest known one.
    """
    return BASELINES.build(spec)


def make_thetas(optimizer: LearnedOptimizer, settings: Sequence[Setting]) -> list[Theta]:
    """One theta per setting. What a setting leaves out keeps the optimizer's own value.

    A setting gives values as people write them: ``log_lr`` takes the logarithm of ``lr``, as all
    ``log_*`` do.

    Raises:
        UserError: no settings, a name that is none of the optimizer's, a value whose logarithm does
            not exist.
    """
    if not settings:
        raise UserError("a grid needs at least one setting")
    own = optimizer.theta()
    names = {name.removeprefix("log_"): name for name in own}
    thetas = []
    for setting in settings:
        theta = dict(own)
        for key, value in setting.items():
            if key not in names:
                raise UserError(
                    f'no setting "{key}"{nearest(key, names)}; known: {", ".join(names)}'
                )
            name = names[key]
            if name != key and not value > 0:
                raise UserError(f'"{key}" must be positive, got {value}')
            theta[name] = torch.full_like(own[name], math.log(value) if name != key else value)
        thetas.append(theta)
    return thetas


def setting_of(theta: Theta) -> Setting:
    """The settings that `make_thetas` made ``theta`` of: ``lr`` for ``log_lr``."""
    return {
        name.removeprefix("log_"): math.exp(x) if name.startswith("log_") else float(x)
        for name, x in theta.items()
    }


def setting_label(setting: Setting) -> str:
    """``"lr=0.01 cosine"``: the schedule by its name, all else as key=value."""
    words = [f"{key}={value:g}" for key, value in setting.items() if key != "cosine"]
    return " ".join(words + ["cosine"] * bool(setting.get("cosine")))


def with_options(spec: str, changed: Mapping[str, str]) -> str:
    """The shortest spec of the same baseline with some options changed; equal settings give equal
    specs.

    Raises:
        UserError: an unknown baseline or option, or a value that cannot be; the line names the
            whole spec.
    """
    name, options = parse_spec(spec)
    merged = {**options, **changed}
    text = (
        f"{name}:{','.join(f'{key}={value}' for key, value in merged.items())}" if merged else name
    )
    try:
        config = make_baseline(text).config
    except UserError as error:
        raise UserError(f'"{text}": {error}') from None
    return canonical(name, config)


def canonical_spec(spec: str) -> str:
    return with_options(spec, {})


def options_of(spec: str) -> dict[str, Any]:
    """All options of a baseline's spec with their values, defaults included."""
    return asdict(make_baseline(spec).config)


def known_options(spec: str) -> list[str]:
    return [option.name for option in fields(BASELINES.find(parse_spec(spec)[0]).config)]
