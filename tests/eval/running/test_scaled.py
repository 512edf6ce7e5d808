"""One tuned number on a whole learned update: its arithmetic, its tuning, its row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lo_framework.eval.api import evaluate
from lo_framework.eval.baselines import make_thetas
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.running.scaled import SUFFIX, Scaled
from lo_framework.inner.rollout import rollout
from lo_framework.learned import make_learned
from lo_framework.optimizees import make_tasks

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


@pytest.mark.parametrize("kind", ["hyper-adamw", "mlp", "hyper-adamw:sam_rho=0.05"])
def test_one_step_is_the_multiple_of_the_plain_one(kind: str) -> None:
    (task,), learned = make_tasks("quadratic"), make_learned(kind)
    scaled = Scaled(learned)
    thetas = make_thetas(scaled, [{"scale": scale} for scale in SCALES])
    seen: list[torch.Tensor] = []
    plain = rollout(
        task,
        learned,
        [learned.theta()],
        [3, 4],
        1,
        on_carry=lambda t, carry, draw: seen.append(carry.params),
    )
    got = rollout(task, scaled, thetas, [3, 4], 1)
    torch.testing.assert_close(got.params[2], plain.params[0], rtol=0, atol=0)
    for i, scale in enumerate(SCALES):
        expected = seen[0] + scale * (seen[1] - seen[0])
        torch.testing.assert_close(got.params[i], expected, rtol=1e-6, atol=1e-6)
        assert not torch.equal(got.params[i], seen[0])


def test_the_row_is_the_best_scale_of_tuning_seeds_on_the_paired_seeds() -> None:
    learned = make_learned("hyper-adamw")
    result = evaluate(
        "quadratic", {"mine": learned}, baselines=("adamw",), steps=6, seeds=3, tuning_seeds=2
    )
    plain, tuned = (result.arm("quadratic", f"mine{end}") for end in ("", SUFFIX))
    assert plain.learned and tuned.learned and plain.tuned == () and plain.runs[0].setting == {}
    assert [entry["setting"]["scale"] for entry in tuned.tuned] == list(SCALES)
    means = [np.mean(entry["scores"]["mean_loss"]) for entry in tuned.tuned]
    chosen = tuned.of("mean_loss").setting["scale"]
    assert chosen == SCALES[int(np.argmin(means))]
    scaled, (task,) = Scaled(learned), make_tasks("quadratic")
    again = rollout(task, scaled, make_thetas(scaled, [{"scale": chosen}]), result.report_seeds, 6)
    np.testing.assert_array_equal(tuned.of("mean_loss").curves, again.train[0].numpy())
    np.testing.assert_array_equal(tuned.runs[0].curves[:, 0], plain.runs[0].curves[:, 0])
    text = TransferReport(result).plain()
    assert f"mine{SUFFIX}: scale={chosen:g}" in text and "is zero-shot" in text
