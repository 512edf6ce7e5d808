"""`eval`'s ``metaadamw``: the torch optimizer as it is, with its meta steps."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch

from lo_framework.eval.baselines import grid_of, make_baseline, make_thetas
from lo_framework.eval.baselines.torch_runs import Run, torch_rollout
from lo_framework.inner.rollout import rollout
from lo_framework.learned import make_learned, save_optimizer
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError

(TASK,) = make_tasks("mlp:hidden=4,batch=8")


def rolled(spec, steps=12, **setting):
    baseline = make_baseline(spec)
    return torch_rollout(
        TASK, baseline, make_thetas(baseline, [{"lr": 0.02, **setting}]), (1, 2), steps
    )


def test_it_is_tuned_over_adamws_grid():
    assert grid_of("metaadamw") == grid_of("adamw")


@pytest.mark.parametrize("cosine", [0.0, 1.0])
def test_untrained_it_is_adamw(cosine):
    adamw = make_baseline("adamw")
    expected = rollout(
        TASK, adamw, make_thetas(adamw, [{"lr": 0.02, "cosine": cosine}]), (1, 2), 12
    )
    found = rolled("metaadamw:online=false", cosine=cosine)
    torch.testing.assert_close(found.train, expected.train, rtol=1e-5, atol=1e-6)


def test_meta_steps_are_made_every_so_many_updates_and_change_the_run():
    online, frozen = rolled("metaadamw:meta_every=4"), rolled("metaadamw:online=false")
    assert torch.equal(
        online.train[..., :5], frozen.train[..., :5]
    )  # the first follows the fourth update
    assert not torch.equal(online.train[..., 6:], frozen.train[..., 6:])
    assert (
        set(online.extra) == {"alpha", "beta", "alpha_spread", "skipped"}
        and not online.extra["skipped"].any()
    )
    assert bool((online.extra["alpha"] != 1).all()) and bool((frozen.extra["alpha"] == 1).all())


def test_a_run_is_repeatable_and_alone_as_in_company():
    first, again = rolled("metaadamw:meta_every=3"), rolled("metaadamw:meta_every=3")
    assert torch.equal(first.train, again.train)


def test_meta_trained_attention_from_a_file_does_what_the_learned_optimizer_does(tmp_path):
    learned = make_learned(
        "attention:head=bounded,learn=factors,features=basic,grouping=fine_grained,head_scale=0.3"
    )
    learned.load_theta({"default": torch.tensor([0.3, 0.0, 0.0, 0.0, 0.0])})
    path = tmp_path / "attention.safetensors"
    save_optimizer(
        path, learned.theta(), kind="attention", config=asdict(learned.config), summary={}
    )
    expected = rollout(TASK, learned, [learned.theta()], (1, 2), 12)
    lr = learned.config.lr * float(torch.exp(torch.tensor(learned.config.gain * 0.3)))
    found = rolled(f"metaadamw:file={path},online=false", lr=lr)
    np.testing.assert_allclose(found.train.numpy(), expected.train.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("alpha_range=0", "alpha_range=0.0, but the network in the file has 1.0: leave it out"),
        ("gating=true", "gating=True, but"),
        ("features=enhanced", "features='enhanced', but"),
        ("grouping=original", "grouping='original', but"),
        ("layers=3", "layers=3, but the network in the file has 1"),
        ("features=basic,grouping=tensor,width=16,v_norms=true", ""),
    ],
)
def test_options_that_contradict_the_network_in_the_file(option, words, tmp_path):
    learned = make_learned(
        "attention:head=bounded,features=basic,v_norms=true,grouping=tensor,learn=factors"
    )
    path = tmp_path / "attention.safetensors"
    save_optimizer(
        path, learned.theta(), kind="attention", config=asdict(learned.config), summary={}
    )
    if not words:
        make_baseline(f"metaadamw:file={path},{option}")
        return
    with pytest.raises(UserError, match=words):
        make_baseline(f"metaadamw:file={path},{option}")


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("metaadamw:features=enhanse", "enhanced"),
        ("metaadamw:grouping=tensors", "tensor"),
        ("metaadamw:reproduce=papr", "paper"),
        ("metaadamw:width=10,heads=4", "multiple of heads"),
        ("metaadamw:weights=1x2", "weights"),
        ("metaadamw:meta_lr=-1", "meta_lr"),
        ("metaadamw:meta_every=0", "meta_every"),
        ("metaadamw:features=norm_basic,grouping=original", "one"),
    ],
)
def test_settings_that_cannot_be_are_refused_where_the_baseline_is_made(spec, wanted):
    with pytest.raises(UserError, match=wanted):
        make_baseline(spec)


@pytest.mark.parametrize("objective", ["combined", "gradient", "loss_decrease", "gen_gap"])
@pytest.mark.parametrize("rule", ["order=first", "order=difference", "reproduce=paper,order=first"])
def test_its_gradients_are_the_losses_it_evaluates(rule, objective):
    """A loss with its graph is one, a forward pass a third."""
    baseline = make_baseline(f"metaadamw:meta_every=10,objective={objective},{rule}")
    model, costs = torch.nn.Linear(3, 1), []
    run = Run(TASK, 12, 0)
    run.params = dict(model.named_parameters())
    optimizer = baseline.build(run, {"lr": 0.02})
    batches = torch.randn(3, 5, 3)
    model(batches[0]).square().mean().backward()
    optimizer.step()

    def loss_fn(batch):
        costs.append(1.0 if torch.is_grad_enabled() else 1 / 3)
        return model(batch).square().mean()

    optimizer.meta_step(loss_fn, *batches)
    assert baseline.gradients == pytest.approx(1 + sum(costs) / 10)
