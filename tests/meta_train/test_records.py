"""What a run shows: metrics.jsonl, TensorBoard's curves, the lines on the terminal, the closing
words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lo_framework.meta_train.cli import main
from lo_framework.meta_train.pictures import score_picture
from lo_framework.meta_train.progress import INCUMBENT, Curves, Progress
from lo_framework.spec import UserError
from tests.meta_train.tools import command, metrics, train

KEYS = {
    "step",
    "stage",
    "kind",
    "meta_loss",
    "diverged",
    "nonfinite",
    "grad_norm",
    "clip_ratio",
    "skipped",
    "score",
    "seconds",
    "rate",
    "families",
}
FAMILIES = ["quadratic:dim=3", "mlp:hidden=2,batch=4/digits"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped and resumed once, so that curves come from two files."""
    out = tmp_path_factory.mktemp("records") / "run"
    optimizees = "quadratic:dim=3,mlp:hidden=2,batch=4"
    settings: dict[str, Any] = {"optimizees": optimizees, "learned": "attention:width=4,heads=1"}
    train(out, max_seconds=1e-9, **settings)
    train(out, resume=True, **settings)
    return out


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads in a folder: (step, value) of every curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_one_line_an_outer_step_with_these_keys(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert set(row) == KEYS and list(row["families"]) == FAMILIES
        assert all(
            {"meta_loss", "diverged", "nonfinite"} <= set(family)
            for family in row["families"].values()
        )
        mean = sum(family["meta_loss"] for family in row["families"].values()) / 2
        assert row["meta_loss"] == pytest.approx(mean) and row["seconds"] > 0 and row["rate"] > 0


def test_the_curves(run: Path) -> None:
    curves = scalars(run / "tensorboard")
    steps, rows = [1, 2, 3, 4], metrics(run)
    for family in FAMILIES:
        for tag in ("meta_loss", "diverged", "nonfinite"):
            assert [step for step, _ in curves[f"{tag}/{family}"]] == steps
        values = [value for _, value in curves[f"meta_loss/{family}"]]
        assert values == pytest.approx(
            [row["families"][family]["meta_loss"] for row in rows], rel=1e-5
        )
        for progress in ("0", "0.5", "1"):
            assert all(
                -6 < value < 1 for _, value in curves[f"log10_step_size/{family}/{progress}"]
            )
    for tag in ("grad_norm", "clip_ratio", "skipped"):
        assert [value for _, value in curves[f"outer/{tag}"]] == pytest.approx(
            [row[tag] for row in rows], rel=1e-5
        )
    assert [step for step, _ in curves["validation/incumbent"]] == [2, 4]
    assert curves["validation/incumbent"][-1][1] == pytest.approx(rows[-1]["score"])
    assert len(curves["rate/inner_steps_per_second"]) == 4


def test_settings_and_pictures_beside_the_curves(run: Path) -> None:
    """TensorBoard's own reader finds the settings, with the curve that they are compared by, and a
    picture for each time that the run ended.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events: Any = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    told = plugin_data_pb2.HParamsPluginData.FromString(found.content).session_start_info.hparams
    config = json.loads((run / "config.json").read_text())
    assert told["learned"].string_value == config["learned"]
    assert told["outer_steps"].number_value == config["outer_steps"]
    found = events.SummaryMetadata("_hparams_/experiment").plugin_data
    experiment = plugin_data_pb2.HParamsPluginData.FromString(found.content).experiment
    assert [x.name.tag for x in experiment.metric_infos] == [INCUMBENT]
    assert INCUMBENT in events.Tags()["scalars"]
    pictures = events.Images("score")
    assert [x.step for x in pictures][-1] == 4
    assert all(x.encoded_image_string.startswith(b"\x89PNG") for x in pictures)


def test_a_picture_of_what_was_not_finite(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    row = {"step": 1, "score": None, "probes": {"a": None, "_b $x$": 0.5}}
    log.write_text(json.dumps(row) + "\n")
    assert score_picture(log) is None
    log.write_text("\n".join(json.dumps(x) for x in (row, {"step": 2, "score": 0.9})) + "\n")
    picture = score_picture(log)
    assert picture is not None and picture == score_picture(log)


def test_kinds_without_step_sizes_draw_none(tmp_path: Path) -> None:
    train(tmp_path / "run", learned="lstm:hidden=2", outer_steps=1)
    assert not any(
        tag.startswith("log10_step_size") for tag in scalars(tmp_path / "run" / "tensorboard")
    )


def test_what_a_resumed_run_draws_replaces_what_it_undid(tmp_path: Path) -> None:
    """Points after the checkpoint that a killed run had drawn do not stand there twice."""
    for begin, value in ((1, 1.0), (3, 2.0)):
        curves = Curves(tmp_path, begin)
        for step in range(begin, 5):
            curves.add(step, {"tag": value})
        curves.close()
    assert scalars(tmp_path)["tag"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_points_are_on_disk_at_once(tmp_path: Path) -> None:
    curves = Curves(tmp_path, 1)
    curves.add(1, {"tag": 0.5})
    assert scalars(tmp_path)["tag"] == [(1, 0.5)], "a kill loses nothing"
    curves.close()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write metrics or curves"):
        Progress(tmp_path, 1, 0, quiet=True)


def test_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress goes to stderr; stdout has the result and says where everything is."""
    assert main(command(tmp_path / "run")) == 0
    captured = capsys.readouterr()
    for word in ("step 4/4", "meta-loss", "inner steps/s", "s left", "score"):
        assert word in captured.err
    for word in (
        "optimizer.safetensors",
        "metrics.jsonl",
        "tensorboard --logdir",
        "best on validation seeds",
    ):
        assert word in captured.out
    assert main(command(tmp_path / "run", "--resume")) == 0, "and once more for a finished run"
    assert "optimizer.safetensors" in capsys.readouterr().out
