"""Saving and resuming the face: the same bits as an uninterrupted run, and one clear line for what
does not fit.
"""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from lo_framework.learned import LearnedOptimizer, make_learned, save_optimizer
from lo_framework.optim import Learned
from lo_framework.optim.naming import names_of
from lo_framework.spec import UserError
from tests.lo_framework.optim.tools import ALL_KINDS, SHAPES, flat, moved, parameters, run
from tests.lo_framework.small_tasks import PlainSGD, PlainSGDConfig


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    """Saved and loaded by torch's defaults: nothing but tensors and plain values may be in it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def save(path: Path, learned: LearnedOptimizer, **changes: Any) -> Path:
    fields: dict[str, Any] = {
        "kind": learned.kind,
        "config": asdict(learned.config),
        "summary": {},
        **changes,
    }
    save_optimizer(path, learned.theta(), **fields)
    return path


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_resumed_run_has_the_same_bits(spec: str) -> None:
    learned = moved(spec)

    def start() -> tuple[list[nn.Parameter], Learned]:
        params = parameters()
        groups = [{"params": params[:4], "lr": 0.5}, {"params": params[4:]}]
        return params, Learned(groups, learned, num_steps=9)

    whole, face = start()
    run(face, whole, [0], skip=[1])
    run(face, whole, range(1, 4))
    saved, values = through_file(face.state_dict()), [p.detach().clone() for p in whole]
    run(face, whole, range(4, 8))

    params, resumed = start()
    resumed.load_state_dict(saved)
    for p, value in zip(params, values):
        p.detach().copy_(value)
    run(resumed, params, range(4, 8))
    assert torch.equal(flat(params), flat(whole))
    assert resumed.param_groups[0]["lr"] == 0.5


def test_loading_copies_and_can_be_repeated() -> None:
    params = parameters()
    face = Learned(params, moved("attention-mlp"), num_steps=9)
    run(face, params, range(3))
    state = through_file(face.state_dict())
    again = through_file(state)
    for _ in range(2):  # also into an optimizer that has run on
        face.load_state_dict(state)
        run(face, params, range(2))
    for i, entry in state["state"].items():
        assert all(torch.equal(x, again["state"][i][n]) for n, x in entry.items())
    assert state["learned"]["updates"] == 3 and face._updates == 5


def test_state_of_half_precision_parameters_stays_float32() -> None:
    params, other = parameters(dtype=torch.bfloat16), parameters(dtype=torch.bfloat16)
    face, resumed = (Learned(p, moved("attention-mlp"), num_steps=9) for p in (params, other))
    run(face, params, range(3))
    resumed.load_state_dict(through_file(face.state_dict()))
    for p, q in zip(params, other):
        for name, x in face.state[p].items():
            assert resumed.state[q][name].dtype == torch.float32 and torch.equal(
                resumed.state[q][name], x
            )


def test_state_dict_before_the_first_step() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=9)
    fresh = Learned(params, moved("attention"), num_steps=9)
    fresh.load_state_dict(through_file(face.state_dict()))
    run(fresh, params, range(2))
    assert face.state_dict()["state"] == {} and torch.isfinite(flat(params)).all()


def test_rule_without_per_parameter_state() -> None:
    """All there is to save is the step."""
    learned = PlainSGD(PlainSGDConfig())
    params = parameters()
    face = Learned(params, learned, num_steps=9)
    run(face, params, range(2))
    face.load_state_dict(through_file(face.state_dict()))
    run(face, params, range(1))
    assert float(face.state_dict()["learned"]["shared"]["step"]) == 3


def test_state_has_the_shapes_of_parameters() -> None:
    params = parameters()
    face = Learned(params, moved("attention-mlp"), num_steps=9)
    run(face, params, [0])
    for p in params:
        state = face.state[p]
        assert state["m"].shape == state["v"].shape == p.shape and state["momenta"].shape == (
            2,
            *p.shape,
        )
        assert state["log_power"].shape == (2,)


def test_scheduler_resumes_with_the_optimizer() -> None:
    params = parameters()
    face = Learned(params, moved("scaled"))
    scheduler = CosineAnnealingLR(face, T_max=9)
    for t in range(3):
        run(face, params, [t])
        scheduler.step()
    other = Learned(parameters(), moved("scaled"))
    resumed = CosineAnnealingLR(other, T_max=9)
    resumed.load_state_dict(scheduler.state_dict())
    other.load_state_dict(through_file(face.state_dict()))
    assert other.param_groups[0]["lr"] == face.param_groups[0]["lr"] < 1.0
    assert resumed.get_last_lr() == scheduler.get_last_lr()


def test_users_hooks_see_the_whole_state() -> None:
    """A hook that maps states by parameter names, as torch's documentation has it: here the order
    is reversed.
    """
    named = {n: nn.Parameter(torch.ones(shape)) for n, shape in SHAPES.items()}
    face = Learned(named.items(), moved("attention-mlp"), num_steps=9)
    run(face, list(named.values()), range(2))
    reverse = dict(reversed(named.items()))
    other = Learned(reverse.items(), moved("attention-mlp"), num_steps=9)

    def by_name(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        places = {n: i for i, n in enumerate(state["param_groups"][0]["param_names"])}
        own = optimizer.param_groups[0]["param_names"]
        groups = [{**state["param_groups"][0], "param_names": own}]
        return {
            **state,
            "state": {i: state["state"][places[n]] for i, n in enumerate(own)},
            "param_groups": groups,
        }

    done = []
    other.register_load_state_dict_pre_hook(by_name)
    other.register_load_state_dict_post_hook(lambda o: done.append(len(o.state)))
    other.load_state_dict(through_file(face.state_dict()))
    assert done == [len(named)]
    for p in named.values():
        assert all(torch.equal(other.state[p][n], x) for n, x in face.state[p].items())


def test_states_that_do_not_fit_are_refused() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=9)
    run(face, params, range(2))
    state = face.state_dict()
    with pytest.raises(UserError, match="another learned optimizer"):
        Learned(params, moved("attention", seed=6), num_steps=9).load_state_dict(state)
    with pytest.raises(UserError, match="another learned optimizer"):
        Learned(params, make_learned("attention:lr=0.1"), num_steps=9).load_state_dict(state)
    with pytest.raises(UserError, match="another optimizer class"):
        face.load_state_dict(torch.optim.AdamW(params).state_dict())
    shapes = [*SHAPES.values()][:-1] + [(9,)]
    with pytest.raises(UserError, match="other parameters"):
        Learned(parameters(shapes=shapes), moved("attention"), num_steps=9).load_state_dict(state)
    scalar, vector = parameters(shapes=[()]), parameters(shapes=[(3,)])
    other = Learned(vector, moved("attention"), num_steps=9)
    run(other, vector, [0])
    with pytest.raises(UserError, match=r"parameter 0 has shape \(\), its m has \(3,\)"):
        Learned(scalar, moved("attention"), num_steps=9).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="size of optimizer's group"):
        Learned(params[:3], moved("attention"), num_steps=9).load_state_dict(state)


@pytest.mark.parametrize("spec", ALL_KINDS)
def test_optimizer_from_a_file(spec: str, tmp_path: Path) -> None:
    learned = moved(spec)
    path = save(tmp_path / "optimizer.safetensors", learned)
    results = []
    for source in (learned, path, str(path)):
        params = parameters()
        run(Learned(params, source, num_steps=5), params, range(3))
        results.append(flat(params))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    learned = moved("attention")
    with pytest.raises(UserError, match=r"nothing\.safetensors"):
        Learned(parameters(), tmp_path / "nothing.safetensors", num_steps=5)
    with pytest.raises(UserError, match="unknown learned optimizer"):
        Learned(parameters(), save(tmp_path / "a", learned, kind="atention"), num_steps=5)
    with pytest.raises(UserError, match="embed"):
        Learned(parameters(), save(tmp_path / "b", learned, config={"width": 32}), num_steps=5)
    with pytest.raises(UserError, match="attention"):
        Learned(parameters(), save(tmp_path / "c", learned, config={"wdith": 32}), num_steps=5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_same_names_in_another_order_are_refused(prefix: str) -> None:
    """Tensors of one shape would get each other's moments; a prefix alone changes nothing."""

    def face(order: str, prefix: str = "") -> tuple[list[nn.Parameter], Learned]:
        params = [nn.Parameter(torch.ones(4, 4)) for _ in order]
        groups = [{"params": [(f"{prefix}{name}.weight", p)]} for name, p in zip(order, params)]
        return params, Learned(groups, moved("attention"), num_steps=9)

    params, one = face("ab")
    run(one, params, range(2))
    state = one.state_dict()
    swapped = face("ba", prefix)[1]
    words = "the same parameters in another order: build Learned as it was saved"
    with pytest.raises(UserError, match=words):
        swapped.load_state_dict(state)
    assert not swapped.state and names_of(swapped.param_groups)[0] == f"{prefix}b.weight"
    others, same = face("ab", prefix)
    same.load_state_dict(state)
    assert torch.equal(same.state[others[0]]["m"], one.state[params[0]]["m"])
