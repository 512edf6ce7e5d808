"""--start, --only, --prolong, --teacher and --light-state: runs in more than one part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lo_framework.files.checkpoint import ResumeState, load_latest_state
from lo_framework.learned import fingerprint, load_optimizer, make_learned, save_optimizer
from lo_framework.learned.storage import load
from lo_framework.meta_train.cli import main
from lo_framework.meta_train.run import train as meta_train
from tests.meta_train.tools import TINY, command, same_run, train


@pytest.fixture
def file(tmp_path: Path) -> Path:
    learned = make_learned("scaled:controller=none,width=8")
    theta = {name: torch.full_like(x, 0.01) for name, x in learned.theta().items()}
    config = {"controller": "none", "width": 8}
    save_optimizer(tmp_path / "s.safetensors", theta, kind="scaled", config=config, summary={})
    return tmp_path / "s.safetensors"


def final_state(out: Path) -> ResumeState:
    state = load_latest_state(out / "state")
    assert state is not None
    return state


def without_learned(words: list[str]) -> list[str]:
    at = words.index("--learned")
    return [*words[:at], *words[at + 2 :]]


def test_a_run_begins_with_a_file_and_trains_a_part_of_it(file: Path, tmp_path: Path) -> None:
    words = without_learned(command(tmp_path / "run"))
    assert main([*words, "--start", str(file), "--only", "schedule,controller.*"]) == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["learned"].startswith("scaled:") and "width=8" in config["learned"]
    theta = {
        name.removeprefix("outer.theta."): x
        for name, x in final_state(tmp_path / "run").tensors.items()
        if name.startswith("outer.theta.")
    }
    start = load(file).theta()
    moved = {name for name, x in theta.items() if not torch.equal(x, start[name])}
    assert "schedule" in moved
    began_with = load_optimizer(tmp_path / "run/optimizer.safetensors").summary["began_with"]
    assert began_with == {"weights": fingerprint(load(file))}
    assert all(n == "schedule" or n.startswith("controller.") for n in moved)


@pytest.mark.parametrize("estimator", ["pes", "es"])
def test_what_is_not_trained_is_not_perturbed(estimator: str, file: Path, tmp_path: Path) -> None:
    words = without_learned(command(tmp_path / "run", estimator=estimator))
    assert main([*words, "--start", str(file), "--only", "schedule"]) == 0
    tensors = final_state(tmp_path / "run").tensors
    size = load(file).theta()["schedule"].numel()
    for name, x in tensors.items():
        if name.endswith("extra.xi"):
            assert int((x != 0).any(0).sum()) == size


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_what_does_not_fit(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path / "run", learned="scaled")
    assert "do not fit --learned scaled" in refusal(capsys, [*words, "--start", str(file)])
    words = without_learned(command(tmp_path / "run"))
    line = refusal(capsys, [*words, "--start", str(file), "--only", "shedule"])
    assert "schedule" in line and "no meta-parameter of scaled" in line
    assert "there is no file" in refusal(capsys, [*words, "--start", "nowhere.safetensors"])


@pytest.mark.parametrize("estimator", ["tbptt", "pes"])
def test_prolonged_and_taught_runs_go_on_with_the_same_bits(estimator: str, tmp_path: Path) -> None:
    settings = {
        "optimizees": "quadratic:dim=3,quadratic:dim=3..4",
        "vary": "usual",
        "probes": "none",
        "estimator": estimator,
        "episode_length": "3-6",
        "outer_steps": 8,
        "prolong": 0.5,
        "teacher": 0.8,
    }
    train(tmp_path / "whole", **settings)
    out = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut"))
    sorted((out / "state").iterdir())[-1].unlink()
    train(out, resume=True, **settings)
    same_run(tmp_path / "whole", out)
    other = tmp_path / "other"
    train(other, **{**settings, "teacher": 0.0})
    with pytest.raises(AssertionError):
        same_run(tmp_path / "whole", other)


def test_a_light_state_goes_on_with_new_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, new = tmp_path / "run", tmp_path / "new"
    words = command(out, outer_steps=4)
    assert main([*words, "--light-state"]) == 0
    light = out / "light.safetensors"
    assert light.stat().st_size < 1_000_000
    new.mkdir()
    for name in ("light.safetensors", "config.json"):
        shutil.copy(out / name, new)
    # of a finished run: it says what it was
    assert main(["--resume", "--out", str(new), "--no-evaluate"]) == 0
    before = load_optimizer(out / "optimizer.safetensors")
    assert load_optimizer(new / "optimizer.safetensors").tensors.keys() == before.tensors.keys()
    capsys.readouterr()


def test_a_light_state_in_the_middle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lo_framework.meta_train.folder import RunFolder

    save, kept = RunFolder.save, tmp_path / "kept"
    kept.mkdir()

    def keep(self: RunFolder, run, shards, *, finished: bool) -> int:
        size = save(self, run, shards, finished=finished)
        if run.step == 2:
            for name in ("light.safetensors", "config.json"):
                shutil.copy(self.out / name, kept)
        return size

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save", keep)
        assert main([*command(tmp_path / "run", outer_steps=6), "--light-state"]) == 0
    capsys.readouterr()
    assert main(["--resume", "--out", str(kept), "--no-evaluate"]) == 0
    assert "going on from a light state, with new episodes" in capsys.readouterr().err
    summary = load_optimizer(kept / "optimizer.safetensors").summary
    (resumed,) = summary["resumed"]
    assert resumed["light"] and resumed["step"] == 2 and not summary["repeatable"]
    assert [step for step, _ in final_state(kept).meta["curve"]] == [2, 4, 6]
    whole, other = final_state(tmp_path / "run"), final_state(kept)
    assert not torch.equal(
        whole.tensors["outer.theta.default"], other.tensors["outer.theta.default"]
    )
    shutil.rmtree(kept / "state")
    line = refusal(capsys, ["--resume", "--out", str(kept), "--optimizees", "quadratic:dim=4"])
    assert "--optimizees was" in line


def test_the_last_average_is_kept_whatever_its_score(tmp_path: Path) -> None:
    for keep in ("best", "last"):
        train(tmp_path / keep, keep=keep, outer_steps=4, outer_lr=0.3)
    last, best = (final_state(tmp_path / keep) for keep in ("last", "best"))
    assert last.meta["incumbent"]["step"] == 4
    assert last.meta["incumbent"]["score"] > best.meta["incumbent"]["score"]
    for name, x in load_optimizer(tmp_path / "last/optimizer.safetensors").tensors.items():
        assert torch.equal(x, last.tensors[f"outer.average.{name}"])
        assert torch.equal(x, best.tensors[f"outer.average.{name}"])


def test_a_run_keeps_the_record_of_what_it_began_with(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*command(first), "--seed", "3"]) == 0
    start = ["--start", str(first / "optimizer.safetensors")]
    words = [*without_learned(command(second)), *start]
    assert main([*words, "--outer-steps", "2", "--max-seconds", "1e-6"]) == 0
    (first / "optimizer.safetensors").unlink()  # what is resumed needs no file
    assert main([*words, "--outer-steps", "2", "--resume"]) == 0
    record = load_optimizer(second / "optimizer.safetensors").summary["began_with"]
    assert record["run"]["seed"] == 3 and "began_with" not in record
    settings = {key: x for key, x in TINY.items() if key not in ("optimizees", "learned")}
    trained = meta_train("quadratic:dim=3", learned=load("general"), quiet=True, **settings)
    assert trained.origin is not None
    assert trained.origin[1]["began_with"]["run"]["outer_steps"] == 600
