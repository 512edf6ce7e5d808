"""In every loop an optimizer makes the steps of a plain loop, and a run that is interrupted ends as
one that is not.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.optim import Learned
from tests.integration.loops import (
    LOOPS,
    NEEDS,
    STEPS,
    loader,
    new_model,
    plain,
    trainer_of_transformers,
    weights,
)
from tests.integration.optimizers import NO_CLOSURE, OPTIMIZERS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def needs(loop: str) -> None:
    if loop in NEEDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(NEEDS[loop])


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_is_as_the_plain_one(loop: str, name: str, tmp_path: Path) -> None:
    needs(loop)
    make = OPTIMIZERS[name]
    if name == "SAM" and loop in NO_CLOSURE:
        with pytest.raises(UserError, match="closure"):
            LOOPS[loop](make, tmp_path, False)
        return
    expected = plain(make, tmp_path, False)
    assert equal(LOOPS[loop](make, tmp_path, False), expected)
    assert equal(LOOPS[loop](make, tmp_path, True), expected)


def test_an_optimizer_that_the_trainer_makes_is_of_the_model(tmp_path: Path) -> None:
    """Given the model among its options, the Trainer hands that over in place of its groups, whose
    parameters have no names.
    """
    needs("transformers Trainer")

    def of_class(model: Any) -> Any:
        return Learned, {"optimizer": "general", "num_steps": STEPS, "model": model}

    found = trainer_of_transformers(of_class, tmp_path, False)
    assert equal(found, plain(OPTIMIZERS["Learned"], tmp_path, False))


def test_adapters_of_peft_are_trained_as_named_parameters(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft = pytest.importorskip("peft")

    def adapted(name: str) -> list[Tensor]:
        model = peft.get_peft_model(
            new_model(), peft.LoraConfig(target_modules=["up", "down"], r=2)
        )
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        given = {"model": model, "named": trained, "list": [p for _, p in trained]}[name]
        more = {"model": model} if name == "list" else {}
        optimizer = Learned(given, "general", num_steps=STEPS, **more)
        for batch in loader():
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()
        return weights(model)

    whole = adapted("model")
    assert equal(whole, adapted("list"))
    assert all(x.isfinite().all() for x in adapted("named"))
    frozen = new_model().words.weight
    assert any(torch.equal(x, frozen) for x in whole)
    config = peft.LoraConfig(target_modules=["up", "down"], r=2)
    adapters = [n for n, _ in peft.get_peft_model(new_model(), config).named_parameters()]
    moved = dict(zip(adapters, whole, strict=True))
    assert all(x.any() for n, x in moved.items() if "lora_B" in n)  # they begin at zero
