"""What MetaAdamW refuses: in one line that names the nearest known, before anything changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.learned import make_learned
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import rejected

NAN = math.nan
BAD: list[tuple[dict[str, Any], str]] = [
    ({"features": "basik"}, r'unknown features "basik" \(did you mean "basic"\?\)'),
    ({"features": "enhansed"}, r'unknown features "enhansed" \(did you mean "enhanced"\?\)'),
    ({"features": "tokens"}, "look at how far training is: give total_steps"),
    (
        {"grouping": "fine-grained"},
        r'^unknown grouping "fine-grained" \(did you mean "fine_grained"\?\)',
    ),
    (
        {"grouping": None},
        "grouping must be text, not None",
    ),
    (
        {"grouping": 3},
        "grouping must be a dict or a function, not 3: tensor, original, fine_grained are settings",
    ),
    ({"features": None}, "features must be text, not None"),
    ({"objective": None}, "unknown objective None"),
    ({"weighting": None}, 'unknown weighting "None"'),
    ({"objective": "combine"}, r'unknown objective "combine" \(did you mean "combined"\?\)'),
    ({"objective": "gen-gap"}, r'unknown objective "gen-gap" \(did you mean "gen_gap"\?\)'),
    ({"order": "frist"}, r'unknown order "frist" \(did you mean "first"\?\)'),
    ({"reproduce": "papers"}, r'unknown reproduce "papers" \(did you mean "paper"\?\)'),
    ({"weighting": "hwu"}, r'unknown weighting "hwu" \(did you mean "huw"\?\)'),
    ({"weighting": "hwu", "objective": "gradient"}, "unknown weighting"),
    ({"weighting": "huw:bond=2"}, "bound"),
    ({"weighting": "fixed:weights=1x2"}, "weights must be 3 numbers"),
    ({"weighting": "sum", "priorities": (1, 1, 1)}, "priorities are for the weighting huw"),
    ({"priorities": (1, 1)}, "there must be 3 priorities"),
    ({"priorities": (1, 0, 1)}, "priorities must be positive and finite, not 0"),
    ({"priorities": (1, NAN, 1)}, "priorities must be positive and finite"),
    (
        {"priorities": (1, 1, 1), "objective": "gradient"},
        'priorities weigh the terms of objective="combined"',
    ),
    (
        {"features": "norm_basic", "grouping": "original"},
        'there is one: use "basic", or a grouping with more',
    ),
    ({"features": "norm_basic_plus", "grouping": lambda n, p: 0}, 'there is one: use "basic_plus"'),
    ({"features": "norm_basic", "grouping": {"all": None}}, "there is one"),
    (
        {"network": {"width": 10, "heads": 4}},
        r"network: width \(10\) must be a multiple of heads \(4\)",
    ),
    ({"network": {"width": 10, "heads": 4}, "reproduce": "paper"}, "must be a multiple of heads"),
    ({"network": {"heads": 0}, "reproduce": "paper"}, "heads must be at least 1"),
    ({"network": {"heads": 0}}, "heads must be at least 1"),
    (
        {"network": {"width": 4, "heads": 4}, "reproduce": "paper"},
        "a width of at least 6 features",
    ),
    ({"network": {"layers": 0}}, "layers must be at least 1"),
    ({"network": {"layers": 1.5}}, "network: layers must be a whole number, not 1.5"),
    (
        {"network": nn.Linear(2, 2)},
        "a learned optimizer, its name or the path of its file, not a Linear",
    ),
    ({"head": "exp"}, "MetaAdamW has a bounded head and plain gradients"),
    ({"head": "bonded"}, "network: head must be"),
    ({"weights": (1, 2), "weighting": "fixed"}, "weights must be 3 numbers"),
    ({"network": "nowhere.safetensors"}, "nowhere.safetensors"),
    ({"alpha_range": 2.0}, "alpha_range must be at least 0 and below 2, not 2.0"),
    ({"beta_range": -0.1}, "beta_range must be at least 0 and below 2, not -0.1"),
    ({"alpha_range": NAN}, "alpha_range must be at least 0 and below 2, not nan"),
    ({"lr": -1.0}, "lr must be at least 0 and finite, not -1.0"),
    ({"lr": NAN}, "lr must be at least 0 and finite, not nan"),
    ({"lr": torch.tensor(-1.0)}, "lr must be at least 0"),
    ({"betas": (1.0, 0.9)}, r"betas must be in \[0, 1\), not 1.0 and 0.9"),
    ({"betas": (0.9, -0.1)}, r"betas must be in \[0, 1\)"),
    ({"betas": (NAN, 0.9)}, r"betas must be in \[0, 1\)"),
    ({"betas": (0.9,)}, "betas must be two numbers"),
    ({"betas": 0.9}, "betas must be two numbers, not 0.9"),
    ({"eps": -1e-8}, "eps must be at least 0"),
    ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
    ({"weight_decay": NAN}, "weight_decay must be at least 0"),
    ({"meta_every": 0}, "meta_every must be a whole number of at least 1, not 0"),
    ({"meta_every": 2.5}, "meta_every must be a whole number"),
    ({"meta_every": NAN}, "meta_every must be a whole number"),
    ({"meta_every": "10"}, "meta_every must be a whole number of at least 1, not '10'"),
    ({"meta_every": None}, "meta_every must be a whole number"),
    ({"attend_every": None}, "attend_every must be a whole number"),
    ({"attend_every": 0}, "attend_every must be a whole number of at least 1"),
    ({"total_steps": 0}, "total_steps must be a whole number of at least 1"),
    ({"meta_lr": -1.0}, "meta_lr must be at least 0 and finite"),
    ({"meta_lr": NAN}, "meta_lr must be at least 0 and finite"),
    ({"grouping": {}}, "grouping: .*empty"),
    ({"grouping": {"a": "0", "b": "tail"}}, '"b": "tail" matches no parameter'),
    ({"grouping": {"a": "0", "b": "weight", "c": None}}, 'overlap: both hold parameter "0.weight"'),
    (
        {"grouping": {"a": ["0.wieght"], "b": None}},
        r'no parameter "0.wieght" \(did you mean "0.weight"\?\)',
    ),
    ({"grouping": {"a": "0"}}, 'parameter "2.weight" is in no'),
    ({"grouping": {"a": ".", "b": None}}, '"b" is empty'),
    ({"grouping": {"a": "("}}, "is not a regular expression"),
    ({"grouping": lambda name, p: [name]}, "the function must return something hashable"),
]


@pytest.mark.parametrize(
    ("options", "words"), BAD, ids=lambda x: ",".join(x) if isinstance(x, dict) else ""
)
def test_bad_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build(tools.network().named_parameters(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("five", [5, 5.0, np.int64(5), np.float32(5), torch.tensor(5)], ids=repr)
def test_whole_numbers_of_all_kinds(five: Any) -> None:
    named = tools.network().named_parameters()
    sizes = {"layers": five, "width": 8, "heads": 4}
    optimizer = build(named, meta_every=five, total_steps=five, attend_every=five, network=sizes)
    made = (
        optimizer.meta_every,
        optimizer._rule.total_steps,
        optimizer._rule.attend_every,
        optimizer.network.config.layers,
    )
    assert made == (5,) * 4 and {type(x) for x in made} == {int}


def test_bad_parameters() -> None:
    with pytest.raises(UserError, match="need named parameters: pass model.named_parameters"):
        build(tools.network().parameters(), grouping={"a": "."})
    with pytest.raises(ValueError, match="empty parameter list"):
        build([])
    with pytest.raises(UserError, match="at least one parameter"):
        build([{"params": []}])
    for group in ({"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": NAN}):
        with pytest.raises(UserError, match="must be"):
            build([{"params": tools.network().parameters(), **group}])


def test_a_meta_step_before_the_first_step() -> None:
    """D21."""
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    rejected(optimizer, model, lambda: tools.meta(optimizer, model), "make a step first")


@pytest.mark.parametrize("objective", ["combined", "loss_decrease", "gen_gap"])
def test_a_meta_step_without_a_validation_batch(objective: str) -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), objective=objective)
    tools.run(optimizer, model, range(2))
    loss, pairs = tools.loss_of(model), (tools.batch(0), tools.batch(1))
    rejected(
        optimizer,
        model,
        lambda: optimizer.meta_step(loss, *pairs),
        f'"{objective}" needs a batch of validation',
    )


def test_the_gradient_term_needs_no_validation_batch() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), objective="gradient")
    tools.run(optimizer, model, range(2))
    assert set(optimizer.meta_step(tools.loss_of(model), tools.batch(0), tools.batch(1))) == {
        "gradient",
        "weight/gradient",
    }


def test_a_loss_that_is_none() -> None:
    model = tools.noisy_network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(2))
    pairs = [tools.batch(t) for t in range(3)]

    def backward(pair: tools.Batch) -> Tensor:
        loss = tools.loss_of(model)(pair)
        loss.backward()
        return loss

    cases: list[tuple[Callable[[Any], Any], str]] = [
        (lambda pair: model(pair[0]), r"returned a tensor of shape \(12, 3\)"),
        (lambda pair: None, "it returned NoneType"),
        (lambda pair: 1.0, "it returned float"),
        (lambda pair: float(tools.loss_of(model)(pair).detach()), "it returned float"),
        (lambda pair: tools.loss_of(model)(pair).detach(), "without a graph"),
        (lambda pair: torch.ones(()), "without a graph"),
        (lambda pair: model(pair[0]).argmax(), "without a graph"),
        (backward, "must not call backward"),
    ]
    for loss, words in cases:
        rejected(optimizer, model, partial(optimizer.meta_step, loss, *pairs), words)
    assert optimizer.skipped == 0 and model[1].num_batches_tracked == 2


def test_standardising_where_one_group_has_gradients() -> None:
    """Before the state of the first step is made."""
    model = tools.network()
    optimizer = tools.make(
        model.named_parameters(), features="norm_basic", grouping={"first": "0", "rest": None}
    )
    for p in model[2:].parameters():
        p.requires_grad_(False)
    tools.loss_of(model)(tools.batch(0)).backward()
    rejected(optimizer, model, optimizer.step, 'there is one: use "basic"')
    assert not optimizer.state and optimizer.updates == 0


def test_files_of_other_kinds() -> None:
    named = list(tools.network().named_parameters())
    with pytest.raises(
        UserError, match='needs an optimizer of kind "attention", not "lstm"; use Learned'
    ):
        build(named, network=make_learned("lstm"))
    with pytest.raises(UserError, match='not "attention-mlp"'):
        build(named, network=make_learned("attention-mlp"))
    with pytest.raises(UserError, match="bounded head and plain gradients"):
        build(named, network=make_learned("attention"), total_steps=9)
    with pytest.raises(UserError, match="bounded head and plain gradients"):
        build(named, network=make_learned("attention:head=bounded,sam_rho=0.1"), total_steps=9)
    with pytest.raises(UserError, match="give total_steps"):
        build(named, network=make_learned("attention:head=bounded"))
    with pytest.raises(UserError, match="give no reproduce"):
        build(
            named,
            network=make_learned("attention:head=bounded,features=basic"),
            reproduce="paper",
        )


def test_what_cannot_be_given_away() -> None:
    model = tools.network()
    for grouping in ({"first": "0", "rest": None}, lambda name, p: p.dim()):
        optimizer = tools.make(model.named_parameters(), grouping=grouping)
        rejected(
            optimizer, model, optimizer.learned, "groups of one's own mean nothing on another model"
        )
    optimizer = tools.make(model.named_parameters())
    for name, value in (("lr", 0.0), ("betas", (0.0, 0.9)), ("eps", 0.0)):
        group = optimizer.param_groups[0]
        kept, group[name] = group[name], value
        rejected(
            optimizer, model, optimizer.learned, "a learned optimizer cannot have these settings"
        )
        group[name] = kept
    for options in ({"decay": "scaled"}, {"reproduce": "reference", "network": {"width": 12}}):
        other = tools.make(model.named_parameters(), **options)
        rejected(other, model, other.learned, "no scaled decay and no published groups")
