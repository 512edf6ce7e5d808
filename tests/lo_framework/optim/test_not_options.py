"""What can be no option of ours is refused in one line, whatever it is."""

from __future__ import annotations

import inspect
import math
from functools import partial
from typing import Any

import pytest
from torch import nn

from lo_framework.errors import UserError
from lo_framework.optim import Learned, MetaAdamW, MetaConfig, MetaOptimize, NetworkConfig
from lo_framework.optim.metaoptimize.settings import MetaOptimizeConfig

ODD: tuple[Any, ...] = ("a", math.nan, -1, object(), [1], 1j)
# What stands for something in some of them: a model, a function, a seed.
ANY = {"model", "params", "self", "grouping", "seed", "options"}


def options(of: Any) -> list[str]:
    return [name for name in inspect.signature(of).parameters if name not in ANY]


def configured(argument: str, config: Any, name: str, value: Any) -> tuple[dict[str, Any], Any]:
    return {argument: config(**{name: value})}, MetaAdamW


def makers() -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for name in options(Learned):
        rest = {} if name == "optimizer" else {"optimizer": "quick"}
        cases.append((f"Learned {name}", lambda x, n=name, r=rest: ({n: x, **r}, Learned)))
    for name in options(MetaAdamW):
        cases.append((f"MetaAdamW {name}", lambda x, n=name: ({n: x}, MetaAdamW)))
    for name in dict.fromkeys([*options(MetaOptimize), *options(MetaOptimizeConfig)]):
        cases.append((f"MetaOptimize {name}", lambda x, n=name: ({n: x}, MetaOptimize)))
    for argument, config in (("meta", MetaConfig), ("network", NetworkConfig)):
        for name in options(config):
            cases.append((f"{config.__name__} {name}", partial(configured, argument, config, name)))
    return cases


@pytest.mark.parametrize(("name", "make"), makers(), ids=[name for name, _ in makers()])
def test_it_is_refused(name: str, make: Any) -> None:
    for value in ODD:
        with pytest.raises(UserError) as error:
            given, optimizer = make(value)
            optimizer(nn.Linear(2, 2), **given)
        assert "\n" not in str(error.value)
