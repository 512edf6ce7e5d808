"""Ways to absorb a regularizer: their names and options, ratios to the twin, and two real runs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from benchmarks import lever
from lo_framework.eval.sharpness.metrics import EQUAL, MATCHED
from lo_framework.eval.sharpness.result import Arm, Result, SeedRun
from lo_framework.meta_train.cli import read
from lo_framework.meta_train.presets import make_config
from lo_framework.spec import UserError


def test_every_way_is_one_factor_off_the_base_and_a_run_that_can_be() -> None:
    base = asdict(lever.Way())
    for name, changed in lever.WAYS.items():
        way = lever.way_of(name)
        different = {key for key, x in asdict(way).items() if x != base[key]}
        assert different == set(changed) and (
            len(changed) == 1 or name in ("base", "asam", "even-asam")
        )
        program, given, _ = read([*way.beginning("scaled"), *way.options()])
        config = make_config(program.preset, **given)
        assert config.episode == (way.episode, way.episode)
        assert (config.absorption is None) == (way.regularizer == "none" or way.control)
        if config.absorption is not None:
            assert config.absorption.config.strength == way.strength


def test_names_are_crossed_and_compared_with_the_twin_of_their_length() -> None:
    way = lever.way_of("late+rho-0.5+episode-1000")
    assert (way.when, way.rho, way.episode) == ("late", 0.5, 1000)
    assert lever.way_of(way.twin).options() == ["--episode-length", "1000"]
    assert lever.way_of("base").twin == "none"
    assert lever.way_of("whole+episode-1000").twin == "none+episode-1000+whole"
    words = lever.way_of("none+episode-1000+whole").options()
    assert words[words.index("--unroll-length") + 1] == "1000" and words[-2:] == ["--keep", "last"]
    assert lever.way_of("last").twin == "none+last"
    with pytest.raises(UserError, match="unknown name 'latest'"):
        lever.way_of("base+latest")


def test_a_tuned_rule_goes_on_from_the_shipped_one_and_so_does_its_twin() -> None:
    way = lever.way_of("even+rho-0.5+tuned")
    assert way.twin == "none+tuned"
    words = [*way.beginning("scaled"), *way.options()]
    program, given, _ = read(words)
    config = make_config(program.preset, **given)
    assert (config.start, config.vary, config.probes) == ("general", "none", "none")
    assert config.learned.startswith("scaled") and config.estimator.startswith("pes")
    assert config.absorption is not None and config.regularizer == "even_sam:rho=0.5"
    with pytest.raises(UserError, match="which is scaled and not lstm"):
        way.beginning("lstm")


def point(curvature: float) -> dict[str, object]:
    ball = {"labels": ["0.1"], "radii": [0.1], "gap": [1.0], "curvature": [curvature]}
    values = {"top_eigenvalue": 2.0, "test_loss": 1.0, "train_loss": 1.0}
    return {"values": values, "balls": {"l2": ball}}


def result_of(*pairs: tuple[float, float]) -> Result:
    """Of one problem: the twin's curvature part and the run's, seed by seed."""
    arms = [
        Arm(
            task="mlp",
            optimizer=label,
            learned=True,
            runs=tuple(
                SeedRun(seed=s, matched=point(pair[i]), equal=point(pair[i]))
                for s, pair in enumerate(pairs)
            ),
        )
        for i, label in enumerate(("twin", "run"))
    ]
    return Result(
        tasks=("mlp",),
        learned=("twin", "run"),
        baselines=(),
        arms=tuple(arms),
        tuning_seeds=(),
        seeds=tuple(range(len(pairs))),
        settings={"radii": [0.1]},
    )


def test_ratios_are_of_pairs_and_what_has_no_logarithm_is_counted() -> None:
    result = result_of((1.0, 0.5), (2.0, 1.0), (1.0, -1.0), (1.0, math.nan))
    logs = lever.log_ratios(result, "mlp", lever.CURVATURE, MATCHED)
    np.testing.assert_allclose(logs, [math.log(0.5), math.log(0.5), math.nan, math.nan])
    summary = lever.summary(result)
    found = summary[EQUAL][lever.CURVATURE]
    assert summary["problems"] == {"mlp": {place: summary[place] for place in (EQUAL, MATCHED)}}
    assert (found["pairs"], found["of"]) == (2, 4)
    assert found["value"] == pytest.approx(math.log(0.5))
    assert lever.cell(found).endswith("(2 of 4 left out)")
    nothing = lever.summary(result_of((1.0, -1.0)))[MATCHED][lever.CURVATURE]
    assert lever.cell(nothing) == "never"


@pytest.mark.slow
def test_a_finished_name_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lever, "POOL", ("--optimizees", "mlp:hidden=4,batch=8"))
    monkeypatch.setattr(lever, "PROBLEMS", ("--optimizees", "mlp:hidden=5"))
    words = ["--quick", "--names", "strength-20", "--learned", "hyper-adamw", "--workers", "1"]
    words += ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    first = lever.main(words)
    assert "meta_train" in capfd.readouterr().err
    data = json.loads((tmp_path / "out" / "lever-hyper-adamw-0.json").read_text())
    assert data["ways"] == first["ways"] and data["ways"]["strength-20"]["settings"]["rho"] == 0.2
    again = lever.main(words)
    assert "-m meta_train" not in capfd.readouterr().err and again["ways"] == first["ways"]
    # A way that fails costs no other, and those of earlier calls stay.
    monkeypatch.setattr(lever, "POOL", ("--optimizees", "nothing"))
    (tmp_path / "out" / "lever" / "settings.json").unlink()
    third = lever.main([*words, "--names", "strength-1,strength-20"])
    assert "nothing" in third["failed"]["strength-1"] and third["ways"] == first["ways"]
    with pytest.raises(SystemExit):
        lever.main([*words, "--steps", "9"])
    assert "steps 5, not 9" in capfd.readouterr().err
