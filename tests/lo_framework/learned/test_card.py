"""``lo.save``: the record that goes along, and the model card beside the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lo_framework as lo
from lo_framework.learned import fingerprint, load_optimizer, make_learned
from lo_framework.learned.card import HEAD
from lo_framework.spec import UserError
from tests.test_imports import ROOT

QUICK = ROOT / "results" / "quick" / "optimizer.safetensors"
SCORE = ROOT / "results" / "score" / "score.json"
RECORD = {
    "run": {
        "learned": "hyper-adamw",
        "optimizees": "mlp,cnn",
        "datasets": "digits",
        "episode_length": "30-300",
        "seed": 1234567,
        "plugin_text": "a | b ` c\nd",
        "absorb": "",
    },
    "steps": 120,
    "inner_steps": 24000,
    "score": 0.40844,
    "repeatable": True,
    "lo_framework": "0.1.0",
    "commit": "abc123",
    "torch": "2.13.0",
}


def section(text: str, title: str) -> str:
    found = re.search(rf"^##? {title}\n\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"{title} is missing in:\n{text}"
    return found[1]


def score_of(*labels: str, files: dict[str, str] | None = None) -> dict[str, Any]:
    """The content of a score.json with these learned optimizers."""
    problem = {"name": "wide", "axis": "width", "optimizee": "mlp", "dataset": "digits", "steps": 9}
    overall = {"speed_up": [1.5, 1.25, None], "final": [None, 0.5, None], "test": [0.123456, 0, 1]}
    each = {"problem": "wide", "speed_up": 2.0, "final": 0.25, "test": None, "spike": 1.0}
    return {
        "format": "lo-framework score",
        "version": 1,
        "tasks": ["wide"],
        "learned": list(labels),
        "files": files or {},
        "report_seeds": [20000, 20001, 20002],
        "problems": [problem],
        "provenance": {"commit": "abc123", "versions": {"torch": "2.13.0"}},
        "derived": {
            "overall": dict.fromkeys((*labels, "adamw"), overall),
            "problems": [{**each, "optimizer": label} for label in (*labels, "adamw")],
        },
    }


def test_the_card(tmp_path: Path) -> None:
    learned = make_learned("hyper-adamw")
    for folder in (tmp_path / "a", tmp_path / "b"):
        lo.save(
            learned, folder / "lo.safetensors", summary=RECORD, card=True, score=score_of("mine")
        )
        assert {path.name for path in folder.iterdir()} == {"lo.safetensors", "README.md"}
    text = (tmp_path / "a" / "README.md").read_text("utf-8")
    assert text == (tmp_path / "b" / "README.md").read_text("utf-8"), "it is always the same"
    assert str(tmp_path) not in text

    _, head, _ = text.split("---\n", 2)
    lines = head.splitlines()
    assert lines[:3] == ["library_name: lo-framework", "license: mit", "tags:"]
    assert "- learned-optimizer" in lines[3:] and all(re.match(r"- [a-z-]+$", x) for x in lines[3:])

    what = section(text, "A learned optimizer of kind hyper-adamw")
    assert fingerprint(learned) in what and "Format version 1" in what
    (code,) = re.findall(r"```python\n(.*?)```", section(text, "How to use it"), re.S)
    assert len(code.splitlines()) == 3 and '"lo.safetensors"' in code

    score = section(text, "How well it does")
    assert "1 problem that" in score and "3 seeds" in score and "commit abc123" in score
    assert "| speed-up | 1.5 [1.25, infinite] |" in score
    assert "| final loss | infinite [0.5, infinite] |" in score
    assert "| test loss | 0.123 [0, 1] |" in score
    assert "| wide | width | 9 | 2 | 0.25 | infinite | 1 |" in score

    trained = section(text, "How it was trained")
    for row in (
        "| seed | 1234567 |",
        "| outer steps | 120 |",
        "| inner steps | 24,000 |",
        "| score on validation (tuned AdamW: 1) | 0.408 |",
        "| repeatable | yes |",
        "| commit | abc123 |",
    ):
        assert row in trained.splitlines()
    assert "--optimizees mlp,cnn\n" in trained and "--absorb" not in trained
    assert """--plugin-text 'a / b '"'"' c\\nd'\n""" in trained, "it ends neither line nor block"
    assert trained.count("```") == 2

    limits = section(text, "What it is not for")
    assert "mlp,cnn on digits" in limits and "30-300 steps" in limits
    licence = section(text, "Licence")
    assert licence.startswith("MIT") and (ROOT / "LICENSE").read_text("utf-8").startswith("MIT")


def test_the_code_of_a_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lo.save(make_learned("scaled"), tmp_path / "x.safetensors", card=True)
    text = (tmp_path / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    exec(code, {"model": model})
    assert "has no record" in text and "Nobody has scored it" in text and "None" not in text


def test_an_explicit_one_says_how_it_is_stepped(tmp_path: Path) -> None:
    lo.save(make_learned("hyper-adamw:sam_rho=0.05"), tmp_path / "x.safetensors", card=True)
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "`optimizer = lo.Regularized(optimizer, optimizer.explicit)`" in text
    assert "optimizer.step(closure)" in text and "after loss.backward()" not in text


def test_the_record_goes_along(tmp_path: Path) -> None:
    """From file to file, as long as the weights are those that it tells of."""
    learned = lo.load(QUICK)
    lo.save(learned, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == QUICK.read_bytes()
    lo.save(learned, tmp_path / "b.safetensors", summary={"note": "x"})
    assert load_optimizer(tmp_path / "b.safetensors").summary == {"note": "x"}
    with torch.no_grad():
        next(iter(learned.parameters())).add_(1e-3)
    lo.save(learned, tmp_path / "c.safetensors")
    assert load_optimizer(tmp_path / "c.safetensors").summary == {}


def test_a_score_of_several_knows_it_by_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # the files of that score are named from there
    lo.save(lo.load("results/quick/optimizer.safetensors"), tmp_path / "x", card=True, score=SCORE)
    row = next(
        line
        for line in SCORE.with_name("score.md").read_text("utf-8").splitlines()
        if line.startswith("| scaled quick ")
    )
    value = row.split("|")[2].split("[")[0].strip()
    text = section((tmp_path / "README.md").read_text("utf-8"), "How well it does")
    assert f"| speed-up | {value} [" in text and "22 problems" in text
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='which of "scaled quick", "scaled small", .* score its fi'):
        lo.save(lo.load(QUICK), tmp_path / "x", card=True, score=SCORE)


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ({}, "is not what `eval score` writes"),
        ({"format": "lo-framework transfer"}, "is not what `eval score` writes"),
        ({"format": "lo-framework score"}, "is missing"),
        ({**score_of("a"), "derived": {"overall": {"a": {"final": ["x"]}}, "problems": []}}, "not"),
        (score_of("a", "b"), 'does not tell which of "a", "b"'),
        (score_of(), "does not tell which of none"),
        (score_of("a", files={"a": str(QUICK)}), 'does not tell which of "a"'),
        ("nowhere.json", "cannot read 'nowhere.json'"),
        (QUICK, "expected JSON"),
    ],
)
def test_scores_that_say_nothing(score: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        lo.save(make_learned("hyper-adamw"), tmp_path / "x", card=True, score=score)
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir()), "neither the file nor the card"
    with pytest.raises(UserError, match="give card=True too"):
        lo.save(make_learned("hyper-adamw"), tmp_path / "x", score=score)


def test_a_persons_own_readme_stays(tmp_path: Path) -> None:
    """A card takes the place of a card, and of nothing else."""
    own = tmp_path / "README.md"
    own.write_text("# Mine\n")
    with pytest.raises(UserError, match=r"README.md' is there and is no model card"):
        lo.save(make_learned("hyper-adamw"), tmp_path / "x", card=True)
    assert own.read_text() == "# Mine\n" and not (tmp_path / "x").exists()
    own.write_text(HEAD + "...")
    lo.save(make_learned("hyper-adamw"), tmp_path / "x", card=True)
    assert "A learned optimizer of kind hyper-adamw" in own.read_text()


def test_a_run_tells_what_a_card_asks_for(tmp_path: Path) -> None:
    """And `lo.train` gives back an optimizer with its record."""
    small = dict(outer_steps=2, unroll_length=2, episode_length="4", num_tasks=2, shards=2)
    settings = dict(small, validation_seeds=1, quiet=True)
    learned = lo.train(["quadratic:dim=2", "quadratic:dim=3"], "hyper-adamw", **settings)
    lo.save(learned, tmp_path / "x.safetensors", card=True)
    summary = load_optimizer(tmp_path / "x.safetensors").summary
    assert summary["steps"] == 2 and summary["inner_steps"] == 2 * 2 * 2 * 2
    assert {"commit", "lo_framework", "torch", "processor"} <= summary.keys()
    trained = section((tmp_path / "README.md").read_text("utf-8"), "How it was trained")
    assert "| inner steps | 16 |" in trained and "--unroll-length 2\n" in trained
    assert json.loads(json.dumps(summary)) == summary
