"""`eval compare`: tuned arms, arms at the reference's settings, and MetaAdamW as one of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lo_framework.eval.cli import main
from lo_framework.eval.report.ratios import mark, ratios
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.studies.compare import CompareEvaluation, factors
from lo_framework.eval.studies.comparison import compare
from lo_framework.eval.studies.request import CompareRequest
from lo_framework.spec import UserError

TINY = "mlp:hidden=4,batch=8"
STILL = "metaadamw:alpha_range=0,beta_range=0"  # AdamW by another name
RUN = [
    "--optimizees",
    TINY,
    "--steps",
    "8",
    "--seeds",
    "2",
    "--tuning-seeds",
    "1",
    "--grid-size",
    "2",
]
QUIET = ["--progress", "none"]


def compared(*arms, at=(), scaled="", against=()):
    texts = {"arms": arms, "at_reference": at, "against": against}
    return compared_as(**{key: ",".join(x) for key, x in texts.items()}, scaled=scaled)


def compared_as(**changes):
    options = dict(optimizees=TINY, steps=8, seeds=2, tuning_seeds=1, grid_size=2, scaled="0.5")
    return CompareEvaluation(CompareRequest(**{**options, **changes})).run()


def test_arms_at_the_references_settings_differ_from_it_by_their_rule_alone():
    result = compared(at=[STILL], scaled="0.5")
    task = result.tasks[0]
    reference, still, half = (
        result.arm(task, x) for x in ("adamw", f"{STILL} @adamw", "adamw lr x0.5")
    )
    assert result.learned == (f"{STILL} @adamw", "adamw lr x0.5") and result.baselines == ("adamw",)
    for metric in ("mean_loss", "final_loss", "test_loss"):
        np.testing.assert_allclose(still.values(metric), reference.values(metric), rtol=1e-4)
    assert [runs.setting["lr"] for runs in half.runs] == [
        pytest.approx(runs.setting["lr"] / 2) for runs in reference.runs
    ]
    assert half.chosen == reference.chosen and not np.allclose(
        half.values("mean_loss"), reference.values("mean_loss")
    )


def test_every_arm_has_as_many_settings_to_choose_from():
    arms = "metaadamw,metaadamw:online=false,metaoptimize"
    grids = CompareEvaluation(CompareRequest(arms=arms)).grids
    assert len({len(grid.settings) for grid in grids.values()}) == 1 < len(grids)


def test_a_tuned_arm_and_its_frozen_twin(tmp_path, capsys):
    out = tmp_path / "out"
    arms = "metaadamw:meta_every=2,metaadamw:online=false"
    words = [
        "compare",
        "--arms",
        arms,
        "--against",
        "metaadamw:online=false",
        *RUN,
        *QUIET,
        "--out",
        str(out),
    ]
    assert main(words) == 0
    first = capsys.readouterr()
    result = TransferReport.load(out).result
    task = result.tasks[0]
    frozen, online = (
        result.arm(task, x) for x in ("metaadamw:online=false", "metaadamw:meta_every=2")
    )
    np.testing.assert_allclose(
        frozen.values("mean_loss"), result.arm(task, "adamw").values("mean_loss"), rtol=1e-4
    )  # a network that starts at zero and is never trained
    assert np.abs(online.values("mean_loss") - frozen.values("mean_loss")).min() > 1e-6
    assert "metaadamw:meta_every=2" in first.out and not first.err
    assert online.gradients_per_step > frozen.gradients_per_step == 1.0
    assert main(words) == 0
    again = capsys.readouterr()
    assert "finished cells of an earlier run" in again.err
    data = json.loads((out / "transfer.json").read_text())
    assert data["provenance"]["command"][:2] == ["lo-eval", "compare"]


def test_a_learned_arm_is_there_as_it_is_and_with_its_step_tuned():
    result = compared("learned:general", "sgdm", scaled="")
    (task,) = result.tasks
    assert result.optimizers == ("sgdm", "general", "general (step tuned)", "adamw")
    assert result.files == {"general": "general"}
    alone, tuned = (result.arm(task, label) for label in result.optimizers[1:3])
    assert alone.learned and tuned.learned and not alone.tuned
    assert [one["setting"]["scale"] for one in tuned.tuned] == [0.25, 0.5, 1.0, 2.0, 4.0]
    assert not any(arm.cost for arm in result.arms)


def test_one_setting_for_all_metrics_is_the_one_with_the_best_validation_loss():
    options = {"arms": "sgdm", "scaled": "", "steps": 20}
    one, own = compared_as(choose_by="validation", **options), compared_as(**options)
    (task,) = one.tasks
    for label in one.optimizers:
        arm, other = one.arm(task, label), own.arm(task, label)
        assert len(arm.runs) == 1 and set(arm.chosen.values()) == {0}
        assert arm.chosen.keys() == other.chosen.keys()
        np.testing.assert_array_equal(arm.values("test_loss"), other.values("test_loss"))
        scores = [np.mean(each["scores"]["valid_loss"]) for each in arm.tuned]
        assert arm.runs[0].setting == arm.tuned[int(np.argmin(scores))]["setting"]
    words = {term.word: term.meaning for term in TransferReport(one).words()}
    assert "one setting" in words["best setting"] and "validation loss" in words["best setting"]
    assert TransferReport(own).words() != TransferReport(one).words()


def test_costs_are_measured_of_every_arm_and_once(tmp_path, capsys):
    arms = ["--arms", "sgdm,learned:general", "--scaled", "0.5", "--step-scales", "none"]
    words = ["compare", *arms, "--costs", *RUN, *QUIET, "--out", str(tmp_path / "out")]
    assert main(words) == 0
    text = capsys.readouterr().out
    result = TransferReport.load(tmp_path / "out").result
    assert result.optimizers == ("sgdm", "general", "adamw lr x0.5", "adamw")
    assert all(arm.cost.seconds > 0 and arm.cost.bytes >= 0 for arm in result.arms)
    table = text.partition(f"{result.tasks[0]}: what a step costs")[2]
    header, _, *lines = table.strip().split("\n")[:6]
    assert "seconds to adamw" in header and "MiB alone" in header
    assert [line.split("  ")[0] for line in lines] == list(result.optimizers)
    assert lines[-1].split()[3] == "1"  # the reference in parts of itself
    assert main(words) == 0
    again = TransferReport.load(tmp_path / "out").result
    assert [arm.cost for arm in again.arms] == [arm.cost for arm in result.arms]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--arms", "metadamw"], 'did you mean "metaadamw"'),
        (["--arms", "metaadamw:features=basics"], "basic"),
        (["--arms", "metaadamw:file=missing.safetensors"], "missing.safetensors"),
        (["--arms", "metaadamw:objective=gradient,priorities=1x2x3"], "combined"),
        (["--scaled", "0.5,-1"], "positive factors"),
        (["--scaled", "half"], "positive factors"),
        (["--at-reference", "sgdm", "--against", "sgdm"], "there is no such arm"),
        (["--arms", "learned:generl"], "general"),
        (["--arms", "learned:"], "learned"),
        (["--arms", "learned:general,learned:general"], "given twice"),
        ([], "nothing to compare"),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(words, wanted, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["compare", *words, *RUN, *QUIET, "--out", str(out)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and wanted in line and not out.exists()


def test_factors():
    assert factors("") == [] and factors("0.5,2") == [0.5, 2.0]
    with pytest.raises(UserError):
        factors("0")


def test_several_reports_make_one_page_with_their_pictures(tmp_path, capsys):
    run = [*RUN, *QUIET]
    assert main(["compare", "--scaled", "0.5", *run, "--out", str(tmp_path / "a")]) == 0
    panel = ["--baseline", "sgdm", "--panel", "lr=0.01/0.1,momentum=0/0.9", "--references", "none"]
    words = [
        "--optimizees",
        TINY,
        "--steps",
        "8",
        "--seeds",
        "2",
        *QUIET,
        "--out",
        str(tmp_path / "b"),
    ]
    assert main(["ablation", *panel, *words]) == 0
    page = tmp_path / "pages" / "all.md"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--join", str(page)]) == 0
    text = page.read_text()
    links = [link.partition(")")[0] for link in text.split("](")[1:]]
    assert "adamw lr x0.5" in text and "momentum" in text
    assert {link.split("/")[1] for link in links} == {"a", "b"} or len(links) >= 2
    assert all((page.parent / link).exists() for link in links)
    capsys.readouterr()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["report", str(empty), "--join", str(page)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and page.read_text() == text


def test_ratios_over_the_tasks_of_several_results():
    results = [
        compared_as(optimizees=task, seeds=3, scaled="0.5,3") for task in (TINY, "quadratic")
    ]
    table = ratios(results)[0]
    tasks = [result.tasks[0] for result in results]
    assert table.title == "mean loss in parts of adamw's"
    assert table.headers == ["optimizer", *tasks, "better", "worse"]
    rows = {row[0]: row[1:] for row in table.rows if row}
    for label in ("adamw lr x0.5", "adamw lr x3"):
        found = [
            next(c for c in compare(r) if (c.learned, c.metric) == (label, "mean_loss"))
            for r in results
        ]
        sure = [c.verdict in ("better", "worse") for c in found]
        assert [cell.endswith("*") for cell in rows[label][:2]] == sure
        shown = [float(cell.rstrip("*")) for cell in rows[label][:2]]
        assert shown == pytest.approx([c.ratio for c in found], rel=1e-2)
        counts = [[c.verdict for c in found].count(word) for word in ("better", "worse")]
        assert rows[label][2:] == [str(count) for count in counts]
    assert ratios([]) == []


def test_ratios_of_results_that_are_not_alike():
    one, other = compared_as(), compared_as(reference="sgdm")
    titles = [table.title for table in ratios([one, other])]
    assert "mean loss in parts of adamw's" in titles and "mean loss in parts of sgdm's" in titles
    alone = compared_as(steps=9, seeds=1)
    task = one.tasks[0]
    both = ratios([one, alone], ["a", "b"])[0]
    assert both.headers[1:3] == [f"{task} (a)", f"{task} (b)"]
    assert "8 steps and 2 seeds" in both.notes[1] and "9 steps and 1 seed" in both.notes[1]
    assert ratios([alone])[0].rows[0][-2:] == ["-", "-"]  # one seed: no verdict
    arms = [
        replace(arm, failure="it burst", chosen={}) if arm.optimizer in one.learned else arm
        for arm in one.arms
    ]
    broken = replace(one, arms=arms)
    assert ratios([broken, alone], ["a", "b"])[0].rows[0][1] == "failed"


def test_ratios_open_a_page_of_several_results(tmp_path, capsys):
    for name, task in (("a", TINY), ("b", "quadratic")):
        words = ["--optimizees", task, *RUN[2:], *QUIET, "--scaled", "0.5"]
        assert main(["compare", *words, "--out", str(tmp_path / name)]) == 0
    page = tmp_path / "all.md"
    assert main(["report", str(tmp_path / "a"), str(tmp_path / "b"), "--join", str(page)]) == 0
    first = page.read_text().split("\n---\n")[0]
    assert (
        first.startswith("# Together")
        and "quadratic" in first
        and "mlp" in first
        and "test loss in parts" in first
    )
    assert "in parts of" not in page.read_text().removeprefix(
        first
    )  # few arms: no table of their own


def test_many_arms_get_a_row_each_in_place_of_curves(tmp_path):
    result = compared(scaled="0.5,0.6,0.7,0.8,0.9,1.1,1.2,1.3")
    assert [path.name for path in TransferReport(result).save(tmp_path)] == [
        "transfer.json",
        "transfer.md",
        "transfer.html",
        "arms.png",
    ]
    found = next(c for c in compare(result) if c.metric == "mean_loss")
    a, b = (result.arm(found.task, x).values("mean_loss") for x in (found.learned, "adamw"))
    shown = mark(found)
    assert shown is not None and shown.value == pytest.approx(a.mean() / b.mean())
    assert "**mean loss in parts of adamw's**" in (tmp_path / "transfer.md").read_text()
    assert (
        shown.low == pytest.approx(1 + found.difference.low / b.mean(), rel=1e-6)
        and shown.low < shown.high
    )
