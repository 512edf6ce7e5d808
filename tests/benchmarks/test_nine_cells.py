"""The nine cells: what is run, and cells that fail, go on or are refused."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import nine_cells, nine_cells_page, nine_cells_verdict as verdict, other_steps
from benchmarks.lever import WAYS, way_of
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
    assert [len(nine) for nine in nine_cells.SETS.values()] == [9, 9]
    assert sorted(x for nine in nine_cells.SETS.values() for x in nine) == sorted(
        nine_cells.CELLS.keys() - nine_cells.BEYOND.keys()
    )


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


@pytest.mark.parametrize("factor", other_steps.FACTORS.values())
def test_other_steps_are_the_twins_times_a_factor(tmp_path: Path, factor: float) -> None:
    source = tmp_path / "none.safetensors"
    rule = make_learned("scaled")
    save_optimizer(source, rule.theta(), kind="scaled", config=asdict(rule.config), summary={})
    other = other_steps.with_steps(source, tmp_path / "other.safetensors", factor)
    moves = []
    for path in (source, other):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 4)
        before = model.weight.detach().clone()
        model(torch.ones(3, 8)).square().sum().backward()
        Learned(model, str(path), num_steps=10).step()
        moves.append(model.weight.detach() - before)
    torch.testing.assert_close(moves[1], factor * moves[0], rtol=1e-4, atol=1e-6)


def test_other_steps_are_matched_in_a_group_of_their_own() -> None:
    """Where they are the slowest they would move the loss at which all others are compared."""
    scaled = [*nine_cells.groups(Namespace(meta_seeds=3, learned="scaled", second="lstm"))]
    for name, absorbed in other_steps.BESIDE.items():
        groups = [group for group in scaled if name in group.members]
        assert [group.name for group in groups] == [f"scaled-{name}-{s}" for s in (1, 2, 3)]
        assert all([*group.members] == ["none", absorbed, name] for group in groups)
    assert len(scaled) == len([*nine_cells.groups(ARGS)]) + 6


def test_meta_seeds_begin_with_other_weights() -> None:
    one, two = (make_learned(nine_cells.seeded("attention-mlp", seed)).theta() for seed in (1, 2))
    assert any(not one[name].equal(two[name]) for name in one)
    assert nine_cells.seeded("lstm:hidden=8", 3) == "lstm:hidden=8,seed=3"
    assert nine_cells.seeded("hyper-adamw", 3) == "hyper-adamw"


CONTROLS = {nine_cells.control_of(arm) for arm in verdict.ABSORBED}
WORDS = ["--quick", "--workers", "1", "--learned", "hyper-adamw", "--second", "attention"]
WORDS += ["--way", "rho-0.5+whole"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run whose optimizers are there already."""
    cells = {"a": ("mlp:hidden=4,batch=8", "digits"), "b": ("mlp:hidden=4", "nowhere")}
    monkeypatch.setattr(nine_cells, "CELLS", cells)
    for name in ("SETS", "PARTS"):
        monkeypatch.setattr(nine_cells, name, {"all": [*cells]})
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
    assert said.startswith("all, even_sam: on 0 of 1 cells") and "1 of 3 meta-seeds" in said
