"""Tiny sharpness evaluations and what to compare of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lo_framework.eval.sharpness.ascent import Effort
from lo_framework.eval.sharpness.settings import EFFORTS
from lo_framework.learned import make_learned, save_optimizer

SMALL = [
    *(
        "--optimizees",
        "mlp:hidden=4,batch=8",
        "--steps",
        "5",
        "--seeds",
        "2",
        "--tuning-seeds",
        "1",
    ),
    *("--grid-size", "1", "--radii", "0.01,0.1", "--progress", "none"),
]


@contextlib.contextmanager
def tiny_level() -> Iterator[None]:
    """Effort quick, quicker; in this process."""
    quick = EFFORTS["quick"]
    ascent = Effort(steps=4, norm_steps=2, random_starts=0)
    EFFORTS["quick"] = replace(quick, rows=64, ascent=ascent, average=4, trace=2, line=5, plane=3)
    try:
        yield
    finally:
        EFFORTS["quick"] = quick


def optimizer_file(folder: Path) -> Path:
    learned = make_learned("hyper-adamw")
    path = folder / "optimizer.safetensors"
    save_optimizer(
        path, learned.theta(), kind="hyper-adamw", config=asdict(learned.config), summary={}
    )
    return path


def numbers(text: str) -> dict[str, Any]:
    """A sharpness.json without what may differ: measured times and where it comes from."""
    data = json.loads(text)
    data.pop("provenance")
    for arm in data["arms"]:
        for run in arm["runs"]:
            run["train"].pop("seconds", None)
            for point in (run["equal"], run["matched"]):
                if point:
                    point["cost"].pop("seconds")
    return data
