"""The nine cells: what is run, what the numbers say, and cells that fail, go on or are refused."""

from __future__ import annotations

import itertools
import json
import math
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import nine_cells, nine_cells_page, nine_cells_verdict as verdict
from benchmarks.lever import WAYS, way_of
from lo_framework.eval.sharpness.metrics import MATCHED
from lo_framework.learned import make_learned, save_optimizer
from lo_framework.meta_train.cli import read
from lo_framework.meta_train.presets import make_config
from lo_framework.optim import Learned

ARGS = Namespace(meta_seeds=3, learned="attention-mlp", second="lstm")


def test_every_group_is_matched_with_its_twins() -> None:
    groups = [*nine_cells.groups(ARGS)]
    assert [group.name for group in groups if group.baselines] == ["baselines"]
    for group in groups[:3] + groups[4:16]:
        assert [*group.members][:2] == ["none", "control"] and group.probe in group.members
        assert group.name == f"attention-mlp-{group.probe}-{group.members[group.probe][1]}"
    made = {(group.kind, *member) for group in groups for member in group.members.values()}
    # of the first kind none, five arms and the controls of even SAM, of SAM and GSAM, and of GAM
    assert len(made) == 3 * (9 + 2) and {seed for *_, seed in made} == {1, 2, 3}
    assert len(nine_cells.NINE) == 9


@pytest.mark.parametrize("name", [name for name in WAYS if name not in ("none", "control")])
def test_every_way_makes_runs_that_can_be(name: str) -> None:
    way = way_of(name)
    for arm in ("none", "control-gam", *verdict.ABSORBED):
        words = [*way.beginning("scaled"), *nine_cells.way_to(arm, way).options()]
        program, given, _ = read(words)
        config = make_config(program.preset, **given)
        assert (config.absorption is None) == (arm in ("none", "control-gam"))
        if config.absorption is not None:
            assert config.regularizer == f"{arm}:rho={way.rho:g}"
            assert config.absorption.config.when == way.when


def test_each_control_has_the_meta_compute_of_its_regularizer() -> None:
    way = way_of(nine_cells.WAY)

    def steps(arm: str, **more: str) -> int:
        words = [*way.beginning("scaled"), *nine_cells.way_to(arm, way).options()]
        return make_config("general", **read(words)[1] | more).outer_steps

    for arm in verdict.ABSORBED:
        own = steps(arm, regularizer="none", control=f"{arm}:rho={way.rho:g}")
        assert steps("none") == steps(arm) < steps(nine_cells.control_of(arm)) == own


def test_larger_steps_are_the_twins_times_a_factor(tmp_path: Path) -> None:
    source = tmp_path / "none.safetensors"
    rule = make_learned("scaled")
    save_optimizer(source, rule.theta(), kind="scaled", config=asdict(rule.config), summary={})
    larger = nine_cells.with_larger_steps(source, tmp_path / "larger.safetensors")
    moves = []
    for path in (source, larger):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        before = model.weight.detach().clone()
        model(torch.ones(3, 8)).square().sum().backward()
        Learned(model, str(path), num_steps=10).step()
        moves.append(model.weight.detach() - before)
    torch.testing.assert_close(moves[1], nine_cells.FACTOR * moves[0], rtol=1e-4, atol=1e-6)


def test_larger_steps_are_matched_in_a_group_of_their_own() -> None:
    """Where they are the slowest they would move the loss at which all others are compared."""
    scaled = [*nine_cells.groups(Namespace(meta_seeds=3, learned="scaled", second="lstm"))]
    larger = [group for group in scaled if verdict.LARGER in group.members]
    assert [group.name for group in larger] == [f"scaled-larger-steps-{s}" for s in (1, 2, 3)]
    assert all([*group.members] == ["none", "even_sam", verdict.LARGER] for group in larger)
    assert len(scaled) == len([*nine_cells.groups(ARGS)]) + 3
    made = [twins(s, 0.5, arm="even_sam") for s in range(3)]
    beside = [json.loads(json.dumps(group)) for group in made]
    for s, group in enumerate(beside):
        group["group"] = f"a-b-{verdict.LARGER}-{s}"
        group["arms"][verdict.LARGER] = group["arms"].pop("control")
    ratios = verdict.of_cell(cell_of(*made, *beside), "a-b", "lstm")["ratios"]
    assert [*ratios["even_sam"]] == ["none", "control", verdict.LARGER]
    least = ratios["even_sam"][verdict.LARGER][MATCHED]["trace"]["value"]
    assert least == pytest.approx(-math.log(2))
    assert ratios[verdict.LARGER]["none"][MATCHED]["trace"]["value"] == pytest.approx(0.0)
    alone = verdict.of_cell(cell_of(*beside), "a-b", "lstm")
    assert [*alone["ratios"]] == ["even_sam", verdict.LARGER] and not alone["verdicts"]


def test_meta_seeds_begin_with_other_weights() -> None:
    one, two = (make_learned(nine_cells.seeded("attention-mlp", seed)).theta() for seed in (1, 2))
    assert any(not one[name].equal(two[name]) for name in one)
    assert nine_cells.seeded("lstm:hidden=8", 3) == "lstm:hidden=8,seed=3"
    assert nine_cells.seeded("hyper-adamw", 3) == "hyper-adamw"


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
    (nine, *parts) = nine_cells.PARTS.values()
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


CONTROLS = {nine_cells.control_of(arm) for arm in verdict.ABSORBED}
WORDS = ["--quick", "--workers", "1", "--learned", "hyper-adamw", "--second", "attention"]
WORDS += ["--way", "rho-0.5+whole"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run whose optimizers are there already."""
    cells = {"a": ("mlp:hidden=4,batch=8", "digits"), "b": ("mlp:hidden=4", "nowhere")}
    for name in ("CELLS", "NINE"):
        monkeypatch.setattr(nine_cells, name, cells)
    monkeypatch.setattr(nine_cells, "PARTS", {"all": [*cells]})
    folder = tmp_path / "nine_cells" / "optimizers"
    folder.mkdir(parents=True)
    for kind, arms in (
        ("hyper-adamw", ("none", *CONTROLS, *verdict.ABSORBED)),
        ("attention", ("none", "sam")),
    ):
        for arm in arms:
            rule = make_learned(kind)
            path, config = folder / f"{kind}-{arm}-1.safetensors", asdict(rule.config)
            save_optimizer(path, rule.theta(), kind=kind, config=config, summary={})
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--meta-seeds", "1"]
    return [*WORDS, *places, "--cells", "a,b"]


def test_a_failed_cell_is_told_and_the_others_are_kept(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    group = next(iter(nine_cells.groups(ARGS)))
    group = replace(group, name="hyper-adamw-even_sam-1", kind="hyper-adamw")
    monkeypatch.setattr(nine_cells, "groups", lambda args: [group])
    content = nine_cells.main(tiny)
    assert [*content["cells"]] == ["a"]
    assert all(name.startswith("b, ") and "nowhere" in x for name, x in content["failed"].items())
    capfd.readouterr()
    folder = tmp_path / "nine_cells"
    assert json.loads((folder / "verdict.json").read_text())["targets"] == content["targets"]
    page = (folder / "nine_cells.html").read_text()
    assert "nowhere" in page and "FAILED" in page and "<svg" in page
    table = (folder / "table.csv").read_text().splitlines()
    assert table[0].startswith("cell,place,group") and len(table) > 60
    # Given again: what is finished is not run again, and another setting is refused by name.
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    again = nine_cells.main([*tiny, "--cells", "a"])
    assert "-m eval" not in capfd.readouterr().err and not again["failed"]
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert again["cells"] == content["cells"]
    told = nine_cells.main([*tiny, "--cells", "none"])
    assert told["cells"] == content["cells"] and "-m eval" not in capfd.readouterr().err
    for words, said in (
        (["--way", "rho-0.5+strength-1+whole"], "strength 5.0, not 1.0"),
        (["--steps", "7"], "steps 5, not 7"),
    ):
        with pytest.raises(SystemExit) as stopped:
            nine_cells.main([*tiny, *words])
        assert stopped.value.code == 2 and said in capfd.readouterr().err


def test_unknown_names_are_refused(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--cells", "mlp"], "unknown cell 'mlp'"),
        (["--way", "latest"], "unknown name 'latest'"),
        (["--way", "late+control"], "late+control absorbs nothing"),
        (["--way", "late+even"], "late+even names a regularizer"),
        (["--second-way", "control"], "--second-way control absorbs nothing"),
        (["--way", "tuned"], "goes on from general, which is scaled and not hyper-adamw"),
        (["--second", "hyper-adamw"], "--learned and --second are both hyper-adamw"),
    ):
        with pytest.raises(SystemExit) as stopped:
            nine_cells.main([*tiny, *words])
        assert stopped.value.code == 2 and said in capfd.readouterr().err


def test_a_training_that_failed_is_not_tried_for_every_cell(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(nine_cells.lever, "POOL", ("--optimizees", "nothing"))
    for path in (tmp_path / "nine_cells" / "optimizers").iterdir():
        path.unlink()
    content = nine_cells.main(tiny)
    tried = [x for x in capfd.readouterr().err.splitlines() if x.startswith("python -m meta_train")]
    assert len(tried) == 2  # the first of each kind
    assert len(content["failed"]) == 2 * 8 and not content["cells"]


@pytest.mark.slow
def test_optimizers_that_are_not_there_are_made_and_baselines_tuned(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nine_cells.lever, "POOL", ("--optimizees", "mlp:hidden=4,batch=8"))
    (tmp_path / "nine_cells" / "optimizers" / "hyper-adamw-gam-1.safetensors").unlink()
    content = nine_cells.main([*tiny, "--cells", "a"])
    assert not content["failed"]
    cell = content["cells"]["a"]
    assert {"gam", "attention sam"} <= {*cell["ratios"]} and "sam - sam:rho=0.05" in cell[
        "accuracy"
    ]
    assert {"AdamW + sam:rho=0.05", "control", "gsam"} <= {*cell["probe"]}
    said = nine_cells_page.summary(content)[0]
    assert said.startswith("even_sam: on 0 of 1 cells") and "1 of 3 meta-seeds" in said
