"""The yardstick computes what the engine computes, and the script runs on a tiny case."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import families, harness, meta_throughput
from benchmarks.harness import Contender
from benchmarks.remote import TREE, Remote
from benchmarks.results import ROOT


@pytest.mark.parametrize("kind", ["pes", "tbptt"])
def test_plain_code_gives_the_engines_gradient(kind: str) -> None:
    assert (
        meta_throughput.difference(kind, num=2, hidden=4, device="cpu")
        < meta_throughput.TOLERANCE[kind]
    )


def test_ratios_are_taken_within_rounds() -> None:
    ours, peer = (
        Contender("ours", print, 30, [1.0, 4.0, 2.0]),
        Contender("peer", print, 10, [1.0, 3.0, 1.0]),
    )
    assert ours.best == 30 and ours.median == 15
    assert ours.ratio(peer) == pytest.approx((3.0, 2.25))


def test_families_beside_this_very_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Remote("peer", TREE, ROOT)
    try:
        arguments = argparse.Namespace(engines="eager,nonsense", device="cpu")
        contenders = families.group(arguments, "mlp", "mlp", "pes", [peer])
        names = [c.name for c in contenders]
        assert names == ["ours, eager", "floor", *(f"peer, {e}" for e in families.PEER_ENGINES)]
        harness.interleave(contenders[:3], 1)
        told = families.told("case", contenders[:3])
    finally:
        peer.close()
    assert told["ratios"]["x best engine of the peer"] > 0
    assert "nonsense is left out" in capsys.readouterr().out


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--tasks",
        "1",
        "--hidden",
        "2",
        "--rounds",
        "1",
        "--engines",
        "eager",
        "--no-curves",
        "--no-families",
    ]
    meta_throughput.main([*arguments, "--out", str(tmp_path)])
    content = json.loads((tmp_path / "meta_throughput.json").read_text())
    assert content["versions"]["torch"] and "meta_throughput" in content["command"]
    for kind in ("pes", "tbptt"):
        assert content["headline"][kind]["ours, eager"]["ratio_median"] > 0
    assert "plain code" in capsys.readouterr().out
