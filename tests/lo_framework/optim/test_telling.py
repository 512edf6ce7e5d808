"""What optimizers log, to whom, in which units, and their repr."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lo_framework.learned import make_learned, save
from lo_framework.optim import SAM, GuardConfig, Learned, MetaAdamW, MetaOptimize
from lo_framework.spec import UserError
from tests.lo_framework.optim.test_options import network, step
from tests.lo_framework.optim.tools import ALL_KINDS, moved


class Dicts:
    """As a transformers Trainer's."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.seen |= logs

    def log_metrics(self, split: str, metrics: dict[str, float]) -> None:
        raise AssertionError


class Wandb:
    """As a run of wandb's."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, float], int | None]] = []

    def log(self, data: dict[str, float], step: int | None = None) -> None:
        self.seen.append((data, step))


class Module(Wandb):
    """As a LightningModule, whose ``log`` is of one value."""

    def log(self, name: str, value: float) -> None:  # type: ignore[override]
        raise AssertionError

    def log_dict(self, dictionary: dict[str, float]) -> None:
        self.seen.append((dictionary, None))


class Scalars:
    """As TensorBoard's."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.seen[tag] = value, step


def logged(optimizer: Any, **options: Any) -> dict[str, float]:
    writer = Dicts()
    optimizer.log(writer, 1, **options)
    assert all(type(x) is float and math.isfinite(x) for x in writer.seen.values())
    return writer.seen


def test_every_kind_of_writer_gets_the_same() -> None:
    optimizer = Learned(network(), moved("scaled"), num_steps=4)
    step(optimizer)
    dicts, wandb, module, scalars = Dicts(), Wandb(), Module(), Scalars()
    for writer in (dicts, wandb, module, scalars):
        optimizer.log(writer, 7)
    assert len(dicts.seen) > 10 and dicts.seen["learned/progress"] == 0.25
    assert wandb.seen == [(dicts.seen, 7)] and module.seen == [(dicts.seen, None)]
    assert scalars.seen == {name: (value, 7) for name, value in dicts.seen.items()}
    assert {*logged(optimizer, prefix="mine")} == {
        name.replace("learned/", "mine/") for name in dicts.seen
    }
    with pytest.raises(UserError, match="cannot log to str: it has neither add_scalar"):
        optimizer.log("tensorboard", 7)


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_logging_costs_a_run_nothing_and_changes_nothing(spec: str) -> None:
    """Also before the first step, and where some tensors took no part in the last one."""
    ends = []
    for follow in (False, True):
        model = network()
        optimizer = Learned(model, moved(spec), num_steps=30)
        for t in range(14):  # beyond the step from which conditioning is replayed
            if follow:
                logged(optimizer)
            step(optimizer, t)
        model[0].weight.grad = None
        optimizer.step()
        if follow:
            values = logged(optimizer)
            assert not [name for name in values if name.endswith("/0.weight")]
        ends += [p.detach().clone() for p in model.parameters()]
    assert all(map(torch.equal, ends[:4], ends[4:]))


def test_step_sizes_are_those_of_the_update() -> None:
    """Read off the update: without momentum it is lr times the sign of the gradient for AdamW's
    family, and the step size times the direction for ``scaled``; times the group's lr both.
    """
    model = network()
    learned = make_learned("hyper-adamw:lr=0.02,weight_decay=0,eps=1e-30")
    groups = [{"params": list(m.named_parameters(str(i)))} for i, m in enumerate(model) if i != 1]
    optimizer = Learned([{**groups[0], "lr": 0.5}, groups[1]], learned, num_steps=9)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(optimizer)
    values = logged(optimizer)
    for name, p in model.named_parameters():
        told = values[f"learned/step_size/{name}"]
        assert told == pytest.approx(0.01 if name.startswith("0.") else 0.02, rel=1e-5)
        moved_by = (p.detach() - before[name]).abs()
        torch.testing.assert_close(moved_by, torch.full_like(p, told), rtol=1e-4, atol=1e-7)
        assert values[f"learned/beta1/{name}"] == pytest.approx(0.9)
        assert values[f"learned/factor/{name}"] == 1.0

    model = network()
    optimizer = Learned(model, moved("scaled"), num_steps=9, lr=0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    step(optimizer)
    values = logged(optimizer)
    for name, p in model.named_parameters():
        told, decay = (values[f"learned/{what}/{name}"] for what in ("step_size", "decay"))
        change = -told * optimizer.state[p]["direction"] - decay * before[name]
        torch.testing.assert_close(p.detach() - before[name], change, rtol=1e-4, atol=1e-7)


def test_attention_tells_what_it_makes_of_the_rate() -> None:
    model, learned = network(), moved("attention:head=bounded")
    optimizer = Learned(model, learned, num_steps=9)
    for t in range(3):
        step(optimizer, t)
    values = logged(optimizer)
    layout, clock = optimizer._host.last[0].layout, optimizer._host.last[3]  # type: ignore[index]
    plain = learned.hyper(layout, clock.progress)[0].exp().detach()
    for k, slot in enumerate(layout.slots):
        factor = values[f"learned/factor/{slot.name}"]
        assert 0.5 < factor < 1.5 and factor != 1.0
        size = values[f"learned/step_size/{slot.name}"]
        assert size == pytest.approx(factor * float(plain[k]), rel=1e-5)


def test_share_is_that_of_the_networks_direction() -> None:
    """0 at the start, all where AdamW's momentum is left out; none without gradients."""
    model = network()
    optimizer = Learned(model, make_learned("attention-mlp"), num_steps=9)
    step(optimizer)
    assert {v for k, v in logged(optimizer).items() if "/share/" in k} == {0.0}

    optimizer = Learned(model, moved("attention-mlp", spread=0.2), num_steps=9)
    step(optimizer)
    before = {p: p.detach().clone() for p in model.parameters()}
    step(optimizer, 1)
    values = logged(optimizer)
    shares = [v for k, v in values.items() if "/share/" in k]
    assert len(shares) == 4 and all(0 < share < 1 for share in shares)
    learned, (plan, channels, shared, _) = optimizer._host.learned, optimizer._host.last  # type: ignore[misc]
    for run in plan.runs:
        for k, (p, state) in enumerate(zip(run.tensors, run.states)):
            place = run.places[k]
            column = channels[:, place : place + 1]
            made = learned.parts(column, shared, before[p].reshape(-1), p.grad.reshape(-1), state)  # type: ignore[union-attr]
            adam, own = made["adamw"].norm(), made["network"].norm()
            told = values[f"learned/share/{plan.layout.slots[place].name}"]
            assert told == pytest.approx(float(own / (own + adam)), rel=0.05)
    optimizer.zero_grad()
    assert not [k for k in logged(optimizer) if "/share/" in k]


def test_the_guard_is_told() -> None:
    model = network()
    guard = GuardConfig(every=1, warmup=1, steps=5)
    optimizer = Learned(model, moved("scaled"), guard=guard)
    for t in range(2):
        step(optimizer, t)
    assert logged(optimizer)["learned/guard/activations"] == 0.0
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    with pytest.warns(UserWarning, match="broke the guard"):
        optimizer.step(loss=math.nan)
    values = logged(optimizer)
    assert values["learned/guard/activations"] == 1.0 and values["learned/guard/steps"] >= 4.0
    assert "guard (activations: 1)" in repr(optimizer)


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_nothing_is_told_of_a_step_whose_state_is_gone(spec: str) -> None:
    model = network()
    optimizer = Learned(model[0], moved(spec), num_steps=9, guard=False)
    step(optimizer)
    told = {name for name in logged(optimizer) if name != "learned/progress"}
    optimizer.load_state_dict(optimizer.state_dict())
    assert logged(optimizer) == {"learned/progress": pytest.approx(1 / 9)}
    step(optimizer)
    assert told <= {*logged(optimizer)}

    optimizer = Learned([{"params": model[0].parameters()}], moved(spec), num_steps=9, guard=False)
    step(optimizer)
    optimizer.add_param_group({"params": model[2].parameters()})
    assert {*logged(optimizer)} == {"learned/progress"}
    step(optimizer)
    assert len(logged(optimizer)) - 1 == 2 * len(told)


def test_repr_names_file_kind_parameters_steps_and_guard(tmp_path: Path) -> None:
    model = network()
    shown = repr(Learned(model, "general", num_steps=2000)).splitlines()
    words = "Learned general (scaled), 51 parameters in 4 tensors, step 0 of 2,000"
    assert shown[0] == f"{words}, guard (activations: 0) ("
    assert shown[1:] == [
        "Parameter Group 0: 51 parameters in 4 tensors",
        "    lr: 1.0",
        "    weight_decay: 0.0",
        ")",
    ]
    path = tmp_path / "mine.safetensors"
    save(moved("attention"), path)
    optimizer = Learned(model, path, num_steps=10, guard=True)
    step(optimizer)
    words = f"Learned {path} (attention), 51 parameters in 4 tensors, step 1 of 10, guard ("
    assert repr(optimizer).startswith(words)
    given = Learned(model, moved("scaled"), guard=False)
    assert repr(given).startswith(f"Learned {given._fingerprint} (scaled), 51 par")
    assert ", step 0 (" in repr(given)
    assert repr(SAM(given)).startswith("SAM (sam) of Learned ")

    adam = repr(MetaAdamW(model, total_steps=9))
    assert adam.startswith("MetaAdamW 51 parameters in 4 tensors in 4 groups, step 0 of 9, network")
    assert "    betas: (0.9, 0.999)\n" in adam
    step_sizes = repr(MetaOptimize(model, base="lion", blocks="tensor"))
    assert step_sizes.startswith("MetaOptimize lion by lion, 4 step sizes, 51 parameters in 4 ten")


def test_a_single_number_is_one_tensor() -> None:
    optimizer = MetaOptimize([nn.Parameter(torch.zeros(()))])
    assert "1 step size, 1 parameter in 1 tensor, step 0 (" in repr(optimizer)
    assert logged(optimizer) == {"step_size/all": pytest.approx(1e-6), "step_size/skipped": 0.0}
