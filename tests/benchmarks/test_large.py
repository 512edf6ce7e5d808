"""Large nets in ordinary loops: the benchmark itself, on small ones."""

from __future__ import annotations

import json
import lzma
from functools import partial
from pathlib import Path

import pytest
import torch

import lo_framework as lo
from benchmarks import large


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lo.save(lo.make_learned("scaled"), tmp_path / "start.safetensors")
    small = partial(large.images, "digits", (64, 16, 10), 20)
    monkeypatch.setattr(large, "PROBLEMS", {"small": small, "transformer": large.stories})
    text = bytes(range(97, 123)) * 2000
    path = tmp_path / large.STORIES
    path.parent.mkdir(parents=True)
    path.write_bytes(lzma.compress(text))
    file = str(tmp_path / "start.safetensors")
    return ["--quick", "--learned", file, "--data-dir", str(tmp_path), "--out", str(tmp_path)]


def test_a_killed_benchmark_goes_on(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words += ["--problems", "small", "--seeds", "2"]
    first = large.main(words)
    monkeypatch.setattr(large, "run", lambda *_: pytest.fail("finished runs are not run again"))
    assert large.main(words)["small"] == first["small"]
    told = json.loads((tmp_path / "large_quick.json").read_text())
    assert told["kept"].keys() == {"small"} and len(told["small"]["learned"]) == 2
    best = min(told["small"]["tuning"].items(), key=lambda pair: pair[1]["train"])
    assert told["small"]["rate"] == float(best[0])


def test_both_optimizers_start_alike_and_see_the_same(words: list[str], tmp_path: Path) -> None:
    problem = large.stories(str(tmp_path))
    runs = [large.run(problem, name, 1e-3, 3, 2) for name in ("adamw", words[2])]
    assert runs[0]["first"] == runs[1]["first"]


def test_the_transformer_sees_no_byte_before_its_turn() -> None:
    torch.manual_seed(0)
    model, x = large.Transformer(16, 2, 2), torch.randint(256, (2, large.WINDOW))
    other = x.clone()
    other[:, 40:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(x)[..., :40], model(other)[..., :40])
