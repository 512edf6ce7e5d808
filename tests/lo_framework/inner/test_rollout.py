"""Whole episodes for evaluation: paired by seed, whatever runs beside them, and honest about
divergence.
"""

from __future__ import annotations

import pytest
import torch

from lo_framework.inner import rollout as module
from lo_framework.inner.rollout import final_metrics, rollout, seeded
from lo_framework.inner.step import Family
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import PlainSGD, PlainSGDConfig, Quadratic, TinyNet, doubled


def thetas(*rates: float) -> list[dict[str, torch.Tensor]]:
    return [{"log_lr": torch.tensor(rate, dtype=torch.float64).log()} for rate in rates]


def test_shapes_and_values_on_a_quadratic() -> None:
    """Curves of gradient descent in closed form, for two settings."""
    learned = PlainSGD(PlainSGDConfig())
    found = rollout(Quadratic(), learned, thetas(0.1, 0.2), [3, 4, 5], 6, held_out=True, splits=())
    c = torch.tensor([1.0, 6.0], dtype=torch.float64)
    for i, lr in enumerate((0.1, 0.2)):
        curve = torch.stack([0.5 * (c * (1 - lr * c) ** (2 * t)).sum() for t in range(7)])
        torch.testing.assert_close(found.train[i], curve[:6].expand(3, 6))
        torch.testing.assert_close(found.held[i], curve[1:].expand(3, 6))
        torch.testing.assert_close(found.params[i], ((1 - lr * c) ** 6).expand(3, 2))
    assert found.alive.all() and found.alive.shape == (2, 3) and found.final == {}


def test_a_seed_means_the_same_whatever_runs_beside_it() -> None:
    learned, task = PlainSGD(PlainSGDConfig()), TinyNet()
    whole = rollout(task, learned, thetas(0.1, 0.5), [7, 8, 9], 4, chunk=4)
    for i, theta in enumerate(thetas(0.1, 0.5)):
        for j, seed in enumerate([7, 8, 9]):
            alone = rollout(task, learned, [theta], [seed], 4)
            torch.testing.assert_close(whole.train[i, j], alone.train[0, 0], rtol=1e-13, atol=0)
            for name, x in alone.final.items():
                torch.testing.assert_close(whole.final[name][i, j], x[0, 0], rtol=1e-13, atol=0)
    assert torch.equal(
        whole.train[0, :, 0], whole.train[1, :, 0]
    )  # the same start and first batch for both settings
    assert len(set(whole.train[0, :, 0].tolist())) == 3
    assert set(whole.final) == {"train.loss", "train.updates", "test.loss", "test.updates"}
    assert whole.held.shape == (2, 3, 0) and (whole.final["test.updates"] == 4).all()


def test_seeds_do_not_share_streams() -> None:
    first = [
        torch.rand(4, generator=seeded(seed, stream)) for seed in range(8) for stream in (1, 2, 3)
    ]
    assert len({tuple(x.tolist()) for x in first}) == 24


def test_diverged_runs_have_infinite_losses_and_finite_parameters() -> None:
    found = rollout(
        Quadratic((1.0, 6.0)),
        PlainSGD(PlainSGDConfig()),
        thetas(0.1, 1e80),
        [0],
        5,
        splits=("train",),
    )
    assert found.alive.tolist() == [[True], [False]]
    assert torch.isfinite(found.train[0]).all() and found.train[1, 0, -1] == torch.inf
    assert torch.isfinite(found.params).all()
    assert found.final["train.loss"][1, 0] == torch.inf and torch.isfinite(
        found.final["train.loss"][0, 0]
    )


def test_progress_refers_to_the_horizon() -> None:
    """hyper-adamw with a schedule: six of twelve steps are the first half of the whole run."""
    learned = doubled("hyper-adamw:lr=0.05", spread=0.1)
    theta = [learned.theta()]
    whole = rollout(TinyNet(), learned, theta, [1], 12, splits=())
    half = rollout(TinyNet(), learned, theta, [1], 6, num_steps=12, splits=())
    short = rollout(TinyNet(), learned, theta, [1], 6, splits=())
    torch.testing.assert_close(half.train[0, 0], whole.train[0, 0, :6], rtol=1e-12, atol=0)
    assert not torch.allclose(short.train[0, 0], whole.train[0, 0, :6])


def test_finished_steps_are_reported_and_no_graph_is_kept() -> None:
    learned, told = doubled("hyper-adamw"), []
    found = rollout(
        TinyNet(), learned, [learned.theta()] * 3, [0, 1], 2, chunk=4, on_step=told.append
    )
    assert told == [3, 3, 3, 3]
    assert not any(x.requires_grad for x in (found.train, found.params, *found.final.values()))


def test_a_task_that_refuses_vmap() -> None:
    learned, task = doubled("hyper-adamw:lr=0.05"), TinyNet()
    arguments = (learned, [learned.theta()], [0, 1], 3)
    expected = rollout(task, *arguments)
    task.vmappable = False  # type: ignore[attr-defined]
    found = rollout(task, *arguments)
    torch.testing.assert_close(found.train, expected.train, rtol=1e-12, atol=0)
    for name, x in expected.final.items():
        torch.testing.assert_close(found.final[name], x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alive", [True, False])
def test_final_losses_of_dead_tasks(alive: bool) -> None:
    family = Family(TinyNet(), PlainSGD(PlainSGDConfig()))
    carry = family.start(torch.Generator().manual_seed(0), 2)
    carry = carry._replace(alive=torch.tensor([True, alive]))
    found = final_metrics(family, carry, ("valid",))
    assert torch.isfinite(found["valid.loss"]).tolist() == [True, alive]


class InPlace(TinyNet):
    """Its loss changes a part of a tensor in place, which no recording can hold."""

    def loss(self, params, buffers, batch, noise):
        loss, buffers = super().loss(params, buffers, batch, noise)
        total = loss.repeat(2)
        total[0] += 1
        return total[1], buffers


def test_a_task_that_cannot_be_recorded_is_run_as_it_is(monkeypatch) -> None:
    learned = PlainSGD(PlainSGDConfig())
    plain = rollout(InPlace(), learned, thetas(0.1), [1, 2], 5, engine="eager")
    monkeypatch.setattr(module, "WORTH_RECORDING", 0)
    for engine in ("auto", "best"):
        found = rollout(InPlace(), learned, thetas(0.1), [1, 2], 5, engine=engine)
        assert torch.equal(found.train, plain.train)
    with pytest.raises(UserError, match="changes a tensor in place .*use engine eager"):
        rollout(InPlace(), learned, thetas(0.1), [1, 2], 5, engine="graph")
