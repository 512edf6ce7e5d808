"""Ranks of a torchrun: the bits of one process, whatever their number; one line for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lo_framework.ranks import Place, follows, place, restarted

ROOT = Path(__file__).resolve().parents[2]
META = (
    "meta_train --optimizees mlp --learned hyper-adamw --vary none --outer-steps 4"
    " --unroll-length 5 --episode-length 10 --num-tasks 3 --shards 3"
    " --validate-every 2 --checkpoint-every 2 --validation-seeds 2 --probes none --no-evaluate"
)
VARIABLES = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4"}
VARIABLES |= {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "1"}


def run(words: str, ranks: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    launcher = f"torch.distributed.run --nproc-per-node {ranks} -m".split() if ranks else []
    return subprocess.run(
        [sys.executable, "-m", *launcher, *words.split()],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_place_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() is None and not follows() and not restarted()
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    assert place() == Place(1, 4, 1, False) and follows() and restarted()


@pytest.mark.slow
def test_any_number_of_ranks_has_the_bits_of_one_process(tmp_path: Path) -> None:
    """Two ranks do not divide three shards, and of four one has none."""
    alone = run(f"{META} --workers 1 --out {tmp_path / '0'}")
    assert alone.returncode == 0, alone.stderr
    for ranks in (2, 4):
        done = run(f"{META} --out {tmp_path / str(ranks)}", ranks)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("best on validation seeds") == 1
    files = [(tmp_path / n / "optimizer.safetensors").read_bytes() for n in ("0", "2", "4")]
    assert files[0] == files[1] == files[2]


@pytest.mark.slow
def test_cells_of_an_evaluation_run_over_ranks(tmp_path: Path) -> None:
    words = "eval transfer --learned results/quick/optimizer.safetensors --optimizees mlp"
    words += " --baselines adamw --steps 6"
    words += " --seeds 2 --grid-size 2"
    results = []
    for ranks in (0, 2):
        out = tmp_path / str(ranks)
        done = run(f"{words} --out {out}", ranks)
        assert done.returncode == 0, done.stderr
        content = json.loads((out / "transfer.json").read_text())
        results.append(_without_times(content))
    assert results[0] == results[1]


@pytest.mark.slow
def test_bad_input_is_one_line_of_one_rank(tmp_path: Path) -> None:
    done = run(f"{META.replace('mlp', 'mpl')} --out {tmp_path}", 2)
    assert done.returncode != 0
    lines = [x for x in done.stderr.splitlines() if x.startswith("meta_train:")]
    assert len(lines) == 1 and 'did you mean "mlp"' in lines[0]


@pytest.mark.slow
def test_a_rank_without_its_data_ends_the_run_with_one_line(tmp_path: Path) -> None:
    """The plugin that draws the data is missing where rank 1 looks for it."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "import os\n"
        "from lo_framework.spec import UserError\n"
        "if os.environ.get('RANK') == '1':\n"
        "    raise UserError('mnist: no such file on this machine')\n"
    )
    done = run(f"{META} --plugin {plugin} --out {tmp_path / 'run'}", 2)
    assert done.returncode != 0
    lines = [x for x in done.stderr.splitlines() if "no such file on this machine" in x]
    assert len(lines) == 1 and lines[0].startswith("meta_train:")
    assert "mine.py" in done.stderr and done.stderr.count("Traceback") <= 1  # torchrun's own


def _without_times(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: _without_times(x)
            for key, x in value.items()
            if key not in ("provenance", "rate", "time", "workers") and "second" not in key
        }
    return [_without_times(x) for x in value] if isinstance(value, list) else value
