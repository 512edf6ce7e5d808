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

from benchmarks import nine_cells, nine_cells_page, nine_cells_verdict as verdict
from benchmarks.lever import way_of
from lo_framework.learned import make_learned, save_optimizer
from lo_framework.meta_train.presets import make_config

ARGS = Namespace(meta_seeds=3, learned="attention-mlp", second="lstm")


def test_every_group_is_of_twins_and_every_run_can_be() -> None:
    found = [*nine_cells.groups(ARGS)]
    assert [group.name for group in found if group.baselines] == ["baselines"]
    assert sum(len(group.arms) for group in found if not group.baselines) == 3 * (5 + 2)
    assert len(nine_cells.NINE) == 9
    way = way_of("late+rho-0.5")
    for arm in nine_cells.FIRST:
        words = nine_cells.way_to(arm, way).options()
        options = {w[2:].replace("-", "_"): x for w, x in zip(words[::2], words[1::2], strict=True)}
        config = make_config("specialist", **options)
        assert (config.absorption is None) == (arm in ("none", "control"))
        if config.absorption is not None:
            assert (
                config.regularizer == f"{arm}:rho=0.5" and config.absorption.config.when == "late"
            )


def group(name: str, **arms: dict[str, list[float]]) -> dict[str, Any]:
    """What a file of a cell holds: each arm's numbers, at both places alike."""
    made = {
        arm: {"equal": numbers, "matched": numbers, "probe": [], "setting": {}}
        for arm, numbers in arms.items()
    }
    return {"cell": "mlp/mnist", "group": name, "arms": made}


def twins(name: str, factor: float, accuracy: float = 0.9) -> dict[str, Any]:
    """Three seeds in which each regularizer makes everything ``factor`` times as large."""
    base = np.array([1.0, 2.0, 3.0])
    plain = {key: [*base] for key in verdict.RATIOS} | {"test_accuracy": [0.9] * 3}
    less = {key: [*(factor * base)] for key in verdict.RATIOS} | {"test_accuracy": [accuracy] * 3}
    absorbed = dict.fromkeys(("sam", "gsam", "gam"), less)
    return group(name, none=plain, control=plain, **absorbed)


def baselines(accuracy: float) -> dict[str, Any]:
    arm = {"test_accuracy": [accuracy] * 3}
    return group("baselines", **{f"{name}:rho=0.2": arm for name in verdict.ABSORBED})


def cell_of(*groups: dict[str, Any]) -> dict[str, Any]:
    return {g["group"]: g for g in groups}


def judged(*groups: dict[str, Any]) -> dict[str, Any]:
    return verdict.of_cell(cell_of(*groups), "a-b", "lstm")["verdicts"]["sam"]


def test_a_difference_holds_where_all_meta_seeds_agree_and_the_interval_does() -> None:
    lower = [twins(f"a-b-{s}", factor) for s, factor in enumerate((0.7, 0.75, 0.78))]
    assert judged(*lower) == {"flatter": True, "lower test loss": True}
    assert not judged(*lower[:2])["flatter"]  # two meta-seeds are too few
    mixed = [*lower[:2], twins("a-b-2", 1.05)]
    assert judged(*mixed) == {"flatter": False, "lower test loss": False}
    little = [twins(f"a-b-{s}", factor) for s, factor in enumerate((0.9, 0.91, 0.95))]
    assert judged(*little) == {"flatter": False, "lower test loss": True}  # not by a fifth
    (first, _, last) = verdict.of_cell(cell_of(*lower), "a-b", "lstm")["ratios"]["sam"]["none"][
        "trace"
    ]["meta_seeds"]
    assert (first, last) == pytest.approx((math.log(0.7), math.log(0.78)))


def test_the_control_counts_as_much_as_the_twin() -> None:
    lower = [twins(f"a-b-{s}", 0.7) for s in range(3)]
    for each in lower:
        each["arms"]["control"] = each["arms"]["sam"]
    assert judged(*lower) == {"flatter": False, "lower test loss": False}


@pytest.mark.parametrize(("theirs", "kept"), [(0.9, True), (0.904, True), (0.906, False)])
def test_accuracy_may_be_half_a_point_lower(theirs: float, kept: bool) -> None:
    groups = [twins(f"a-b-{s}", 0.7) for s in range(3)]
    assert judged(*groups, baselines(theirs))["no less accurate"] is kept


def test_pairs_without_a_number_are_left_out_and_counted() -> None:
    groups = [twins(f"a-b-{s}", 0.5) for s in range(3)]
    groups[0]["arms"]["sam"] = json.loads(json.dumps(groups[0]["arms"]["sam"]))
    groups[0]["arms"]["sam"]["matched"]["trace"] = [None, -1.0, 1.5]
    told = verdict.of_cell(cell_of(*groups), "a-b", "lstm")["ratios"]["sam"]["none"]["trace"]
    assert (told["left out"], told["of"]) == (2, 9) and told["value"] == pytest.approx(-math.log(2))
    assert verdict.shown(told).endswith(", 2 of 9 left out)")
    assert verdict.shown(verdict.told(np.full((3, 2), math.nan))) == "never"


def test_problems_are_taken_together_by_what_is_new() -> None:
    (nine, *parts) = nine_cells.PARTS.values()
    assert sorted(itertools.chain(*parts)) == sorted([*nine, *nine_cells.BEYOND])
    halves = [[twins(f"a-b-{s}", factor, 0.8) for s in range(3)] for factor in (0.5, 2.0)]
    together = verdict.all_compared([*halves, halves[0][:1]])  # one that is not finished
    trace = together["gam"]["none"]["trace"]
    assert (trace["value"], trace["of"]) == (pytest.approx(0.0), 18)
    assert -math.log(2) < trace["low"] < -0.3 and 0.3 < trace["high"] < math.log(2)
    assert together["gam"]["control"][verdict.GAIN]["value"] == pytest.approx(-10.0)
    assert verdict.all_compared([]) == verdict.all_compared([[]]) == {}


def test_the_probe_is_compared_at_equal_loss_and_path() -> None:
    one = group("a-b-0", none={}, sam={})
    loss = [*np.geomspace(2.0, 0.1, 20)]
    for arm, cosine in (("none", 0.1), ("sam", 0.4)):
        run = {"loss": loss, "path": [*range(20)], "cosine_orthogonal": [cosine] * 19 + [None]}
        one["arms"][arm]["probe"] = [run, {"loss": [], "path": [], "cosine_orthogonal": []}]
    for along in verdict.SIDES:
        found = verdict.probe_of(one, "sam", "none", along)
        assert found[0] == pytest.approx(0.3) and math.isnan(found[1])


WORDS = ["--quick", "--workers", "1", "--learned", "hyper-adamw", "--second", "attention"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run whose optimizers are there already."""
    cells = {"a": ("mlp:hidden=4,batch=8", "digits"), "b": ("mlp:hidden=4", "nowhere")}
    monkeypatch.setattr(nine_cells, "CELLS", cells)
    monkeypatch.setattr(nine_cells, "NINE", cells)
    folder = tmp_path / "nine_cells" / "optimizers"
    folder.mkdir(parents=True)
    for kind, arms in (("hyper-adamw", nine_cells.FIRST), ("attention", nine_cells.SECOND)):
        for arm in arms:
            rule = make_learned(kind)
            path, config = folder / f"{kind}-{arm}-0.safetensors", asdict(rule.config)
            save_optimizer(path, rule.theta(), kind=kind, config=config, summary={})
    places = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--meta-seeds", "1"]
    return [*WORDS, *places, "--cells", "a,b"]


def test_a_failed_cell_is_told_and_the_others_are_kept(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = next(nine_cells.groups(ARGS))
    group = replace(first, name="hyper-adamw-0", kind="hyper-adamw")
    monkeypatch.setattr(nine_cells, "groups", lambda args: [group])
    content = nine_cells.main(tiny)
    assert [*content["cells"]] == ["a"]
    assert all(name.startswith("b, ") and "nowhere" in x for name, x in content["failed"].items())
    capfd.readouterr()
    folder = tmp_path / "nine_cells"
    assert json.loads((folder / "verdict.json").read_text())["targets"] == content["targets"]
    page = (folder / "nine_cells.html").read_text()
    assert "nowhere" in page and "<svg" in page
    table = (folder / "table.csv").read_text().splitlines()
    assert table[0].startswith("cell,place,group") and len(table) > 100
    # Given again: what is finished is not run again, and another setting is refused by name.
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    again = nine_cells.main([*tiny, "--cells", "a"])
    assert "-m eval" not in capfd.readouterr().err and not again["failed"]
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert again["cells"] == content["cells"]
    for words, said in (
        (["--way", "strength-20"], "strength 5.0, not 20.0"),
        (["--steps", "7"], "steps 5, not 7"),
    ):
        with pytest.raises(SystemExit) as stopped:
            nine_cells.main([*tiny, *words])
        assert stopped.value.code == 2 and said in capfd.readouterr().err


def test_unknown_names_are_refused(tiny: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["--cells", "mlp"], ["--way", "latest"]):
        with pytest.raises(SystemExit) as stopped:
            nine_cells.main([*tiny, *words])
        assert stopped.value.code == 2 and "unknown" in capfd.readouterr().err


@pytest.mark.slow
def test_optimizers_that_are_not_there_are_made_and_baselines_tuned(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nine_cells, "POOL", ("--optimizees", "mlp:hidden=4,batch=8"))
    (tmp_path / "nine_cells" / "optimizers" / "hyper-adamw-gam-0.safetensors").unlink()
    content = nine_cells.main([*tiny, "--cells", "a"])
    assert not content["failed"]
    assert {"gam", "attention sam"} <= {*content["cells"]["a"]["ratios"]}
    assert len(content["cells"]["a"]["accuracy"]["gam"]["meta_seeds"]) == 1


def test_words_of_the_page_are_those_of_its_tables() -> None:
    assert set(verdict.RATIOS) >= set(nine_cells_page.FOREST)
