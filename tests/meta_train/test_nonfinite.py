"""NaN and infinities: a task's own are isolated and counted; an outer gradient's are skipped and
counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.learned import load_optimizer, make_learned
from lo_framework.meta_train.outer import OuterOptimizer
from lo_framework.meta_train.workers import ShardHost
from lo_framework.plugin import load_plugins
from tests.meta_train.tools import equal, final_state, metrics, train

PLUGIN = str(Path(__file__).parent / "plugin_tasks.py")


def sick_run(out: Path, spec: str, **settings: Any) -> list[dict[str, Any]]:
    load_plugins([PLUGIN])
    train(out, optimizees=spec, plugins=(PLUGIN,), **settings)
    return metrics(out)


def outer_theta(out: Path) -> list[bytes]:
    return [x for name, x in final_state(out)[1].items() if name.startswith("outer.theta.")]


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("estimator", "learned"),
    [
        ("tbptt", "hyper-adamw"),
        ("tbptt:segments=0,second_order=false", "mlp:hidden=2"),
        ("pes", "hyper-adamw"),
        ("es", "lstm:hidden=2"),
    ],
)
def test_tasks_that_fall_ill_are_isolated_and_counted(
    where: str, estimator: str, learned: str, tmp_path: Path
) -> None:
    rows = sick_run(
        tmp_path / "run",
        f"sick:share=0.5,where={where}",
        estimator=estimator,
        learned=learned,
        num_tasks=8,
    )
    counts = [row["nonfinite"] for row in rows]
    assert any(0 < count < 1 for count in counts), "some are ill, and they do not infect the others"
    assert all(row["meta_loss"] is not None and row["skipped"] == 0 for row in rows)
    for x in outer_theta(tmp_path / "run"):
        assert torch.frombuffer(bytearray(x), dtype=torch.float32).isfinite().all()
    assert all(
        x.isfinite().all()
        for x in load_optimizer(tmp_path / "run" / "optimizer.safetensors").tensors.values()
    )


def test_where_all_are_ill(tmp_path: Path) -> None:
    """Nothing poisons theta, the score is the worst there is, and the run ends in peace."""
    rows = sick_run(tmp_path / "run", "sick:share=1", unroll_length=6, estimator="tbptt")
    assert [row["nonfinite"] for row in rows] == [1.0] * 4
    assert all(row["grad_norm"] is not None for row in rows)
    assert all(row["score"] == pytest.approx(10.0) for row in rows)
    saved = load_optimizer(tmp_path / "run" / "optimizer.safetensors")
    assert saved.summary["found_at_step"] == 0


def test_an_outer_step_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimate, calls = ShardHost.estimate, []

    def poisoned(self: ShardHost, theta: dict[str, torch.Tensor], *told: Any) -> Any:
        calls.append({name: x.clone() for name, x in theta.items()})
        answer = estimate(self, theta, *told)
        if len(calls) in (1, 3):  # the first one too, when Adam has no state yet
            for grad, _, _ in answer.values():
                grad["default"][0] = torch.nan if len(calls) == 1 else torch.inf
        return answer

    monkeypatch.setattr(ShardHost, "estimate", poisoned)
    train(tmp_path / "run", checkpoint_every=1)
    rows = metrics(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    assert rows[0]["grad_norm"] is None and rows[0]["clip_ratio"] == 0.0
    assert equal(calls[0], calls[1]) and equal(calls[2], calls[3]) and not equal(calls[1], calls[2])


def test_outer_clips_by_the_norm_of_all() -> None:
    learned = make_learned("hyper-adamw")
    outer = OuterOptimizer(learned, 0.01, 1.0, 10)
    told = outer.step({name: torch.full_like(x, 2.0) for name, x in learned.theta().items()})
    size = sum(x.numel() for x in learned.theta().values())
    assert told["grad_norm"] == pytest.approx(2.0 * size**0.5)
    assert told["clip_ratio"] == pytest.approx(1.0 / told["grad_norm"]) and told["skipped"] == 0.0
    assert (
        outer.step({name: torch.zeros_like(x) for name, x in learned.theta().items()})["clip_ratio"]
        == 1.0
    )
    huge = outer.step({name: torch.full_like(x, 3e38) for name, x in learned.theta().items()})
    assert huge["skipped"] == 0.0 and all(x.isfinite().all() for x in outer.theta.values())


def test_a_skipped_step_at_the_start_resumes() -> None:
    """A checkpoint from before Adam's first update holds no moments."""
    learned = make_learned("hyper-adamw")
    outer = OuterOptimizer(learned, 0.01, 1.0, 4)
    outer.step({name: torch.full_like(x, torch.nan) for name, x in learned.theta().items()})
    again = OuterOptimizer(learned, 0.01, 1.0, 4)
    again.load(outer.dump(), 1)
    grad = {name: torch.ones_like(x) for name, x in learned.theta().items()}
    assert outer.step(grad) == again.step(grad) and equal(outer.theta, again.theta)
