"""What the numbers of the nine cells say."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest

from benchmarks import nine_cells, nine_cells_verdict as verdict
from lo_framework.eval.sharpness.metrics import MATCHED


def group(name: str, **arms: dict[str, list[float]]) -> dict[str, Any]:
    """What a file of a cell holds: each arm's numbers, at both places alike."""
    made = {
        arm: {"equal": numbers, "matched": numbers, "probe": [], "setting": {}}
        for arm, numbers in arms.items()
    }
    return {"cell": "mlp/mnist", "group": name, "seeds": 3, "arms": made, "failures": []}


def twins(seed: int, factor: float, accuracy: float = 0.9, arm: str = "sam") -> dict[str, Any]:
    """Three inner seeds in which the regularizer makes everything ``factor`` times as large."""
    base = np.array([1.0, 2.0, 3.0])
    plain = {key: [*base] for key in verdict.RATIOS} | {"test_accuracy": [0.9] * 3}
    less = {key: [*(factor * base)] for key in verdict.RATIOS} | {"test_accuracy": [accuracy] * 3}
    arms = {"none": plain, "control": plain, arm: less}
    return json.loads(json.dumps(group(f"a-b-{arm}-{seed}", **arms)))


def baselines(*accuracies: float) -> dict[str, Any]:
    arms = {f"sam:rho={k}": {"test_accuracy": [x] * 3} for k, x in enumerate(accuracies)}
    return group("baselines", adamw={"test_accuracy": [0.9] * 3}, **arms)


def cell_of(*groups: dict[str, Any]) -> dict[str, Any]:
    return {g["group"]: g for g in groups}


def judged(*groups: dict[str, Any]) -> dict[str, Any]:
    return verdict.of_cell(cell_of(*groups), "a-b", "lstm")["verdicts"]["sam"]


def test_a_difference_holds_where_all_meta_seeds_agree_and_the_interval_does() -> None:
    lower = [twins(s, factor) for s, factor in enumerate((0.7, 0.75, 0.78))]
    assert judged(*lower) == {"flatter": True, "lower test loss": True}
    assert judged(*lower[:2]) == {"flatter": False, "lower test loss": False}  # too few
    mixed = [*lower[:2], twins(2, 1.05)]
    assert judged(*mixed) == {"flatter": False, "lower test loss": False}
    little = [twins(s, factor) for s, factor in enumerate((0.9, 0.91, 0.95))]
    assert judged(*little) == {"flatter": False, "lower test loss": True}  # not by a fifth
    ratios = verdict.of_cell(cell_of(*lower), "a-b", "lstm")["ratios"]["sam"]["none"][MATCHED]
    expected = [math.log(x) for x in (0.7, 0.75, 0.78)]
    assert ratios["trace"]["meta_seeds"] == pytest.approx(expected)


def test_the_control_counts_as_much_as_the_twin() -> None:
    lower = [twins(s, 0.7) for s in range(3)]
    for each in lower:
        each["arms"]["control"] = each["arms"]["sam"]
    assert judged(*lower) == {"flatter": False, "lower test loss": False}


@pytest.mark.parametrize(
    ("theirs", "kept"), [((0.9,), True), ((0.904,), True), ((0.906,), False), ((0.8, 0.91), False)]
)
def test_accuracy_may_be_half_a_point_lower(theirs: tuple[float, ...], kept: bool) -> None:
    groups = [twins(s, 0.7) for s in range(3)]
    assert judged(*groups, baselines(*theirs))["no less accurate"] is kept
    assert judged(*groups[:2], baselines(0.5))["no less accurate"] is False  # too few


def test_beside_explicit_regularizers() -> None:
    first, base = verdict.ABSORBED[0], np.array([1.0, 2.0, 3.0])
    arms = {"none": 1.0, first: 0.5, "adamw": 1.0, "sam:rho=0.2": 0.25}
    made = {n: {key: [*(f * base)] for key in verdict.RATIOS} for n, f in arms.items()}
    explicit = group("baselines", **made)
    absorbed = [twins(s, 0.7, arm=first) for s in range(3)]
    ratios = verdict.of_cell(cell_of(*absorbed, explicit), "a-b", "lstm")["ratios"]
    told, twin = ratios[first], ratios["none"]["adamw"]
    assert twin[MATCHED][verdict.CURVATURE]["value"] == 0.0
    assert [*told] == ["none", "control", "adamw", "sam:rho=0.2"]
    for name, factor in (("adamw", 0.5), ("sam:rho=0.2", 2.0)):
        assert told[name][MATCHED][verdict.CURVATURE]["value"] == pytest.approx(np.log(factor))
    assert verdict.of_cell(cell_of(explicit), "a-b", "lstm")["ratios"] == {}


def test_what_diverged_has_no_accuracy_and_is_no_pair() -> None:
    groups = [twins(s, 0.7) for s in range(3)]
    arm = groups[0]["arms"]["sam"]
    arm |= {"diverged": [True] * 3, "equal": {}, "matched": {}}  # on no seed a number
    told = verdict.of_cell(cell_of(*groups), "a-b", "lstm")["ratios"]["sam"]["none"]
    assert told[verdict.GAIN]["meta_seeds"] == pytest.approx([-90.0, 0.0, 0.0])
    assert told[MATCHED]["trace"]["meta_seeds"][0] is None
    assert judged(*groups, baselines(0.9)) == {
        "flatter": False,
        "lower test loss": False,
        "no less accurate": False,
    }


def test_pairs_without_a_number_are_left_out_counted_and_not_many() -> None:
    groups = [twins(s, 0.5) for s in range(3)]
    groups[0]["arms"]["sam"]["matched"]["trace"] = [None, -1.0, 1.5]
    told = verdict.of_cell(cell_of(*groups), "a-b", "lstm")["ratios"]["sam"]["none"][MATCHED]
    trace = told["trace"]
    assert (trace["left out"], trace["of"]) == (2, 9)
    assert trace["value"] == pytest.approx(-math.log(2))
    assert not verdict.holds(trace) and verdict.holds(told["top_eigenvalue"])
    assert verdict.shown(trace).endswith(", 2 of 9 left out)")
    assert verdict.shown(verdict.told(np.full((3, 2), math.nan))) == "never"


def test_meta_seeds_are_told_apart_where_some_are_missing() -> None:
    cells = [cell_of(twins(1, 0.5), twins(3, 0.25)), cell_of(twins(2, 2.0), twins(3, 0.25))]
    trace = verdict.all_compared(cells, "a-b")["sam"]["none"][MATCHED]["trace"]
    expected = [math.log(x) for x in (0.5, 2.0, 0.25)]
    assert trace["meta_seeds"] == pytest.approx(expected) and trace["left out"] == 6


def test_problems_are_taken_together_by_what_is_new() -> None:
    nine, _few, *parts = nine_cells.PARTS.values()
    assert sorted(itertools.chain(*parts)) == sorted([*nine, *nine_cells.BEYOND])
    halves = [cell_of(*(twins(s, factor, 0.8, "gam") for s in range(3))) for factor in (0.5, 2.0)]
    together = verdict.all_compared([*halves, {}], "a-b")  # and one that is not finished
    trace = together["gam"]["none"][MATCHED]["trace"]
    assert (trace["value"], trace["of"], trace["cells"]) == (pytest.approx(0.0), 18, 2)
    # One resample in four is of one of the two problems alone.
    assert trace["low"] == pytest.approx(-math.log(2)) == -trace["high"]
    assert together["gam"]["control"][verdict.GAIN]["value"] == pytest.approx(-10.0)
    assert verdict.all_compared([], "a-b") == verdict.all_compared([{}], "a-b") == {}


def test_the_probe_is_compared_at_equal_loss_and_path() -> None:
    one = group("a-b-sam-0", none={}, sam={})
    loss = [*np.geomspace(2.0, 0.1, 20)]
    for arm, cosine in (("none", 0.1), ("sam", 0.4)):
        run = {"loss": loss, "path": [*range(20)], "cosine_orthogonal": [cosine] * 19 + [None]}
        one["arms"][arm]["probe"] = [run, {"loss": [], "path": [], "cosine_orthogonal": []}]
    for along in verdict.SIDES:
        found = verdict.probe_of(one, "sam", "none", along)
        assert found[0] == pytest.approx(0.3) and np.isnan(found[1:]).all()


def test_hierarchical_bootstrap_draws_the_outer_level_first():
    # All spread is between meta-seeds: an interval over the runs alone would be narrow.
    x = np.repeat(np.array([-1.0, 0.0, 1.0])[:, None, None], 4, axis=1) * np.ones(50)
    estimate = verdict.hierarchical_bootstrap(x)
    assert (estimate.value, estimate.n) == (0.0, 600)
    assert estimate.low == -1.0 and estimate.high == 1.0  # one draw in 27 is of the worst alone
    flat = verdict.hierarchical_bootstrap(x.reshape(1, 1, -1))
    assert flat.high - flat.low < 0.3


def test_hierarchical_bootstrap_of_one_level_is_the_percentile_bootstraps():
    x = np.random.default_rng(0).normal(size=200)
    estimate = verdict.hierarchical_bootstrap(x[None, None])
    half = 1.96 * x.std() / math.sqrt(200)
    assert estimate.value == pytest.approx(x.mean())
    assert estimate.low == pytest.approx(x.mean() - half, abs=0.15 * half)
    assert estimate.high == pytest.approx(x.mean() + half, abs=0.15 * half)
    one_sided = verdict.hierarchical_bootstrap(x[None, None], level=0.9)
    assert estimate.low < one_sided.low < one_sided.high < estimate.high


def test_hierarchical_bootstrap_leaves_out_what_is_missing():
    x = np.array([[[1.0, math.nan, 3.0]], [[math.nan, math.nan, 2.0]]])
    estimate = verdict.hierarchical_bootstrap(x)
    assert (estimate.value, estimate.n) == (2.0, 3) and 1.0 <= estimate.low <= estimate.high <= 3.0
    for nothing in ([[[math.nan]]], [1.0, 2.0]):
        with pytest.raises(ValueError, match="meta-seeds, tasks, seeds"):
            verdict.hierarchical_bootstrap(np.array(nothing))


def test_larger_steps_are_compared_in_the_group_that_has_them() -> None:
    made = [twins(s, 0.5, arm="even_sam") for s in range(3)]
    beside = [json.loads(json.dumps(group)) for group in made]
    for s, group in enumerate(beside):
        group["group"] = f"a-b-larger-steps-{s}"
        group["arms"]["larger-steps"] = group["arms"].pop("control")
    ratios = verdict.of_cell(cell_of(*made, *beside), "a-b", "lstm")["ratios"]
    assert [*ratios["even_sam"]] == ["none", "control", "larger-steps"]
    least = ratios["even_sam"]["larger-steps"][MATCHED]["trace"]["value"]
    assert least == pytest.approx(-math.log(2))
    assert ratios["larger-steps"]["none"][MATCHED]["trace"]["value"] == pytest.approx(0.0)
    alone = verdict.of_cell(cell_of(*beside), "a-b", "lstm")
    assert [*alone["ratios"]] == ["even_sam", "larger-steps"] and not alone["verdicts"]
