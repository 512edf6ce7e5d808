"""No option is ignored in silence: it is honoured, refused in one line, or said once."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LambdaLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

from lo_framework.learned import make_learned
from lo_framework.optim import SAM, Learned, MetaAdamW, MetaOptimize
from lo_framework.spec import UserError
from tests.lo_framework.optim.option_tools import MAKERS, network, step, train, weights
from tests.lo_framework.optim.tools import moved

OWN = {
    "learned": {"lr": 0.5, "weight_decay": 0.1},
    "metaadamw": {"lr": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.9), "eps": 1e-6},
    "metaoptimize": {"lr": 0.5, "weight_decay": 0.2, "betas": (0.8, 0.9), "eps": 1e-6},
}
OTHERS = {"momentum": 0.9, "rho": 0.1, "amsgrad": True, "maximize": True, "weigth_decay": 0.1}
PASSING = {
    "initial_lr": 1.0,
    "max_lr": 1.0,
    "lr_scale": 0.5,
    "foreach": True,
    "fused": True,
    "maximize": False,
    "momentum": None,
    "name": "decoder",
}


@pytest.mark.parametrize(
    ("kind", "key"), [*product(MAKERS, OTHERS), ("learned", "betas"), ("learned", "eps")]
)
def test_options_that_would_change_nothing_are_refused(kind: str, key: str) -> None:
    model, value = network(), {**OTHERS, "betas": (0.9, 0.99), "eps": 1e-8}[key]
    words = rf"^\w+ has no option \"{key}\" in a parameter group.*; known: lr,.* weight_decay"
    with pytest.raises(UserError, match=words) as error:
        MAKERS[kind]([{"params": model.parameters(), key: value}])
    assert "\n" not in str(error.value)
    assert ("did you mean" in str(error.value)) >= (key == "weigth_decay")

    optimizer = MAKERS[kind]([{"params": model[0].parameters()}])
    step(optimizer)
    before = str(optimizer.state_dict())
    group = {"params": list(model[2].parameters()), key: value}
    given = dict(group)
    with pytest.raises(UserError, match=words):
        optimizer.add_param_group(group)
    assert str(optimizer.state_dict()) == before and group == given


@pytest.mark.parametrize("kind", MAKERS)
def test_options_that_it_has_are_honoured(kind: str) -> None:
    for key, value in OWN[kind].items():
        ends = []
        for options in ({}, {key: value}):
            model = network()
            start = {"alpha0": 0.01} if kind == "metaoptimize" else {}
            optimizer = MAKERS[kind]([{"params": model.parameters(), **options}], **start)
            for t in range(3):
                step(optimizer, t)
            ends.append(weights(model))
        assert not torch.equal(*ends), key


@pytest.mark.parametrize("kind", MAKERS)
def test_what_schedulers_and_wrappers_keep_in_groups_passes(kind: str) -> None:
    model = network()
    named = list(model[0].named_parameters())
    optimizer = MAKERS[kind]([{"params": named, **PASSING}])
    optimizer.add_param_group({"params": list(model[2].named_parameters()), **PASSING})
    for t in range(2):
        step(optimizer, t)
    twin = MAKERS[kind]([{"params": named}])
    twin.add_param_group({"params": list(model[2].named_parameters())})
    twin.load_state_dict(optimizer.state_dict())
    step(twin)


CYCLES = {
    "one cycle": lambda o, on: OneCycleLR(o, 0.1, total_steps=20, **on),
    "cyclic": lambda o, on: CyclicLR(o, 0.01, 0.1, 3, **on),
}
BASES = ["sgd", "sgdm", "rmsprop", "adamw", "lion"]


@pytest.mark.parametrize("cycle", CYCLES)
@pytest.mark.parametrize("around", [lambda o: o, SAM], ids=["bare", "sam"])
@pytest.mark.parametrize(
    ("kind", "base"), [("learned", ""), ("metaadamw", ""), *(("metaoptimize", b) for b in BASES)]
)
def test_a_cycle_of_momentum_is_honoured_or_said_once(
    kind: str, base: str, around: Any, cycle: str
) -> None:
    def run(on: dict[str, bool]) -> tuple[torch.Tensor, list[str]]:
        model = network()
        options = {"base": base, "alpha0": 1e-3} if base else {}
        optimizer = MAKERS[kind](model.parameters(), **options)
        wrapped = around(optimizer)
        scheduler = CYCLES[cycle](wrapped, on)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            train(wrapped, scheduler, 6)
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        assert "momentum" not in optimizer.param_groups[1]
        return weights(model), [str(w.message) for w in seen]

    cycled, said = run({})  # with its defaults
    plain, quiet = run({"cycle_momentum": False})
    has_momentum = kind == "metaadamw" or base in ("sgdm", "adamw", "lion")
    assert torch.equal(cycled, plain) != has_momentum
    assert quiet == [] and len(said) == (0 if has_momentum else 1)
    assert all("cycle_momentum=False" in message for message in said)


@pytest.mark.parametrize("kind", ["learned", "metaoptimize"])
def test_a_multiplier_that_looks_like_a_rate_is_said_once(kind: str) -> None:
    model, words = network(), "no learning rate but a multiplier"
    groups = [{"params": m.parameters(), "lr": 1e-3} for m in (model[0], model[2])]
    with pytest.warns(UserWarning, match=words) as seen:
        optimizer = MAKERS[kind](groups)
    assert len(seen) == 1 and seen[0].filename == __file__
    with pytest.warns(UserWarning, match=words):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 5e-5})
    if kind == "learned":
        with pytest.warns(UserWarning, match="lr=0.001"):
            MAKERS[kind](model, lr=torch.tensor(1e-3))
    MetaAdamW(model, lr=1e-3)  # there it is one
    for lr in (0.0, 0.01, 3.0):
        MAKERS[kind]([{"params": model.parameters(), "lr": lr}])


WARM_UPS: list[Any] = [
    lambda o: LambdaLR(o, lambda t: (t + 1) / 2000),
    lambda o: OneCycleLR(o, 1.0, total_steps=2000, cycle_momentum=False),
    lambda o: SequentialLR(o, [LambdaLR(o, lambda t: 1e-3 * t), StepLR(o, 100)], [5]),
    lambda o: SWALR(o, swa_lr=1.5, anneal_epochs=3),
]


def test_a_warm_up_is_no_surprise() -> None:
    """Neither are a schedule without ``num_steps``, a falling one of a rule without a schedule, and
    a step that is left out.
    """
    for make in WARM_UPS:
        optimizer = Learned(network(), moved("scaled"), num_steps=50)
        train(optimizer, make(optimizer), 4)
    for spec, steps in (("scaled", None), ("celo2", 50), ("mlp", 50), ("lstm", None)):
        optimizer = Learned(network(), moved(spec), num_steps=steps)
        train(optimizer, CosineAnnealingLR(optimizer, 5), 5)
    optimizer = Learned(network(), moved("scaled"), num_steps=50)
    for lr in (1.0, 0.0, 1.0):
        optimizer.param_groups[0]["lr"] = lr
        step(optimizer)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: StepLR(o, 3, 0.1),
        lambda o: OneCycleLR(o, 1.0, total_steps=10, cycle_momentum=False),
    ],
)
@pytest.mark.parametrize("spec", ["scaled", "hyper-adamw", "celo2:schedule=cosine"])
def test_a_step_that_falls_twice_is_said_once(spec: str, make: Any) -> None:
    optimizer = Learned(network(), moved(spec), num_steps=50)
    scheduler = make(optimizer)
    kind = spec.partition(":")[0]
    with pytest.warns(UserWarning, match=f"{kind} has learned: the update falls twice") as seen:
        train(optimizer, scheduler, 10)
    assert len(seen) == 1
    can_do_without = make_learned(spec).open_ended
    assert ("or num_steps out" in str(seen[0].message)) == can_do_without


def test_a_run_beyond_its_length_is_said_at_that_step() -> None:
    for make, name in (
        (lambda: Learned(network(), moved("scaled"), num_steps=3), "num_steps=3"),
        (lambda: MetaAdamW(network(), total_steps=3), "total_steps=3"),
    ):
        optimizer = make()
        for t in range(3):
            step(optimizer, t)
        with pytest.warns(UserWarning, match=f"beyond {name}"):
            step(optimizer, 3)
        step(optimizer, 4)
    for quiet in (
        Learned(network(), moved("mlp"), num_steps=3),
        Learned(network(), moved("celo2"), num_steps=3),
        Learned(network(), moved("scaled")),
    ):
        for t in range(5):
            step(quiet, t)


def test_a_radius_belongs_to_the_whole() -> None:
    model = network()
    base = torch.optim.AdamW([{"params": model[0].parameters(), "rho": 0.1}])
    words = 'SAM has one "rho" for all parameters'
    with pytest.raises(UserError, match=words):
        SAM(base)
    optimizer = SAM(torch.optim.AdamW(model[0].parameters()))
    with pytest.raises(UserError, match=words):
        optimizer.add_param_group({"params": model[2].parameters(), "rho": 0.1})
    assert len(optimizer.param_groups) == 1


def test_metaoptimize_names_the_option_that_was_meant() -> None:
    for option, words in (("lr", "alpha0 is the step size"), ("gama", 'did you mean "gamma"')):
        with pytest.raises(UserError, match=f"MetaOptimize has no option {option}.*{words}"):
            MetaOptimize(network(), **{option: 0.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MAKERS)
def test_bad_input_is_one_line(kind: str) -> None:
    model = network()
    first, frozen = model[0].weight, network().requires_grad_(False)
    cases: list[tuple[str, Any]] = [
        (r"has \"0.weight\" twice", [("0.weight", first), ("0.weight", first)]),
        (r"shape \(6, 4\) twice", iter([first, first])),
        (r"shape \(6, 4\) twice", [{"params": model.parameters()}, {"params": [first]}]),
        ("requires a gradient", frozen),
        ("requires a gradient", nn.Tanh()),
    ]
    for words, given in cases:
        with pytest.raises(UserError, match=words) as error:
            MAKERS[kind](given)
        assert "\n" not in str(error.value)
    optimizer = MAKERS[kind](model[0].parameters())
    step(optimizer)
    before = str(optimizer.state_dict())
    for group in ({"params": first}, {"params": [model[2].weight] * 2}):
        with pytest.raises(UserError, match="twice: each parameter belongs in one group"):
            optimizer.add_param_group(group)
        assert str(optimizer.state_dict()) == before
    optimizer.add_param_group({"params": (p for p in model[2].parameters())})
    step(optimizer)


def test_one_module_not_two() -> None:
    model = network()
    for make in (Learned, MetaAdamW):
        options: dict[str, Any] = {"optimizer": moved("scaled")} if make is Learned else {}
        with pytest.raises(UserError, match="one module"):
            make(nn.Sequential(model), model=model, **options)
        with pytest.raises(UserError, match=r"model must be a torch.nn.Module, not str"):
            make(model.parameters(), model="general", **options)
        make(model, model=model, **options)


def test_states_of_another_class_or_optimizer_are_refused() -> None:
    model = network()
    optimizers = [make(model) for make in MAKERS.values()]
    optimizers += [Learned(model, moved("scaled", seed=6)), torch.optim.AdamW(model.parameters())]
    for optimizer in optimizers:
        step(optimizer)
    for optimizer in optimizers[:3]:
        before = str(optimizer.state_dict())
        for other in optimizers:
            if other is not optimizer:
                with pytest.raises(UserError, match="this state is of another") as error:
                    optimizer.load_state_dict(other.state_dict())
                assert "\n" not in str(error.value)
        assert str(optimizer.state_dict()) == before


@pytest.mark.parametrize("kind", MAKERS)
def test_steps_that_find_no_gradient_are_said_once(kind: str) -> None:
    """The model was made anew, and trained by the optimizer of the one before."""
    model = network()
    optimizer = MAKERS[kind](model)
    network()(torch.ones(2, 4)).sum().backward()
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()
    optimizer.step()
    step(optimizer)


@pytest.mark.parametrize("kind", MAKERS)
def test_parameters_may_be_replaced_before_the_first_step(kind: str) -> None:
    """As accelerate does for FSDP2, in the module and in the groups, after it has loaded the state
    that there is: what lies here is then of another shape.
    """
    model, other = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)), network()
    optimizer, expected = MAKERS[kind](model), MAKERS[kind](other)
    optimizer.load_state_dict(optimizer.state_dict())
    model[0], model[2] = network()[0], network()[2]
    optimizer.param_groups[0]["params"] = [*model.parameters()]
    for t in range(4):
        step(optimizer, t)
        step(expected, t)
    assert torch.equal(weights(model), weights(other))
    assert not torch.equal(weights(model), weights(network()))
    if kind == "metaadamw":
        return  # which takes replaced parameters at any time
    optimizer.param_groups[0]["params"] = [*network().parameters()]
    with pytest.raises(UserError, match="other parameters in the midst of a run"):
        step(optimizer)
