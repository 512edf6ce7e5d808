"""Optimizer files with a right digest and a wrong record: one line, before anything is built."""

from __future__ import annotations

import json
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.eval.running.learned_files import load_learned
from lo_framework.files.sealed import _MARK, _digest
from lo_framework.learned import LEARNED, load, load_optimizer, make_learned, save
from lo_framework.meta_train.folder import LIGHT
from lo_framework.optim import Learned
from lo_framework.spec import UserError
from tests.test_imports import ROOT

SPECIALIST = ROOT / "results" / "specialist" / "optimizer.safetensors"


def sealed_again(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    raw = struct.pack("<Q", len(header)) + header + body
    at = raw.find(_MARK) + len(_MARK)
    return raw[:at] + _digest(raw, at).encode() + raw[at + 64 :]


def forged(
    record: Callable[[dict[str, Any]], None] = lambda r: None,
    tensors: Callable[[dict[str, Any]], None] = lambda t: None,
) -> bytes:
    """The specialist with another record or other tensors, and a right digest."""
    raw = SPECIALIST.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + size])
    fields = json.loads(head.pop("__metadata__")["lo_framework"])
    fields["sha256"] = "0" * 64
    record(fields)
    tensors(head)
    text = json.dumps({"sha256": fields.pop("sha256"), **fields}, separators=(",", ":"))
    header = {"__metadata__": {"lo_framework": text}, **head}
    return sealed_again(json.dumps(header, separators=(",", ":")).encode(), raw[8 + size :])


def config(kind: str = "attention-mlp", **values: Any) -> Callable[[dict[str, Any]], None]:
    def change(record: dict[str, Any]) -> None:
        old = record["config"] if kind == "attention-mlp" else {}
        record.update(kind=kind, config={**old, **values})

    return change


def refused(raw: bytes, folder: Path, words: str) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    uses = (
        load,
        lambda path: load_learned(str(path)),
        lambda path: Learned([torch.nn.Parameter(torch.ones(2))], path, num_steps=1),
    )
    for use in uses:
        with pytest.raises(UserError) as error:
            use(path)
        line = str(error.value)
        assert words in line and line.isprintable() and len(line) < 600, line
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert time.process_time() - begin < 5 and used < 100_000  # kB; the took 1,800,000


def nest(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


SIZES = [
    (config("mlp", hidden=15000), "do not fit the kind mlp"),
    (config("lstm", hidden=8000, layers=1), "do not fit the kind lstm"),
    (config(layers=10**9), "at layers: expected at least 1 and at most 256, not 1000000000"),
    (config(layers=20000), "at layers: expected at least 1"),
    (config(layers=200), "do not fit the kind attention-mlp"),
    (config(hidden=10**9), "at hidden: expected at least 1 and at most 65536, not 1000000000"),
    (config("lstm", layers=10**9), "at layers: expected at least 1"),
]
CONFIGS = [
    (config(spec=1), 'unknown field "spec"'),
    (config(hidden=16.5), "at hidden: expected a whole number, not 16.5"),
    (config(hidden=True), "at hidden: expected a whole number, not True"),
    (config(hidden="16"), 'at hidden: expected a whole number, not "16"'),
    (config(layers=float("inf")), "at layers: expected a whole number, not inf"),
    (config(seed="x"), 'at seed: expected a whole number, not "x"'),
    (config(seed=10**30), "at seed: expected at least"),
    (config(gain=None), "at gain: expected a number, not None"),
    (config(gain=float("nan")), "at gain: expected above 0 and at most 1000000, not nan"),
    (config(gain=float("inf")), "at gain: expected above 0 and at most 1000000, not inf"),
    (config(gain=0), "at gain: expected above 0 and at most 1000000, not 0"),
    (config(lr=float("inf")), "at lr: expected above 0"),
    (config(weight_decay=float("inf")), "at weight_decay: expected at least 0"),
    (config(eps=float("inf")), "at eps: expected above 0"),
    (config(beta1=1.0), "at beta1: expected above 0 and below 1, not 1.0"),
    (config(v_norms="x"), 'at v_norms: expected true or false, not "x"'),
    (config(time={"a": 1}), "at time: expected true or false, not {'a': 1}"),
    (config(head="expp"), 'at head: expected one of exp, bounded (did you mean "exp"?)'),
    (config(grouping=7), "at grouping: expected text, not 7"),
    (config(hidden=nest(900)), "expected at most 32 lists and objects inside each other"),
    (config(hidden=nest(9)), "at hidden: expected a whole number, not (("),
    (config(**{"\x1b[31mred": 1}), r'unknown field "\x1b[31mred"'),
    (config("x" * 10**6), 'unknown learned optimizer "xxx'),
    (config("mlp:hidden=15000"), 'unknown learned optimizer "mlp:hidden=15000"'),
    (config("mlp", features=20), "at features: expected one of 19, 39, not 20"),
    (config("mlp", exp_mult=float("inf")), "at exp_mult: expected above 0"),
]
RECORDS = [
    (lambda r: r.update(format_version=True), "has format version True"),
    (lambda r: r.update(format_version=2), "has format version 2"),
    (lambda r: r.update(format_version="x" * 10**6), 'has format version "xxx'),
    (lambda r: r.update(feature_version=True), "at feature_version: expected a whole number"),
    (lambda r: r.update(feature_version=10**4000), "reads features of version 100000"),
    (lambda r: r.update(feature_version=0), "reads features of version 0"),
    (lambda r: r.update(kind=1), "at kind: expected text, not 1"),
    (lambda r: r.update(extra=1), 'unknown field "extra"'),
    (lambda r: r.pop("summary"), 'the field "summary" is missing'),
    (lambda r: r.update(summary=nest(900)), "at summary: expected an object, not [["),
    (lambda r: r.update(summary={"a": nest(900)}), 'at summary["a"]: expected at most 32'),
]


@pytest.mark.parametrize(("change", "words"), [*SIZES, *CONFIGS, *RECORDS])
def test_a_wrong_record(change: Any, words: str, tmp_path: Path) -> None:
    refused(forged(change), tmp_path, words)


def test_the_forger_itself(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(forged())
    for name, value in load(path).theta().items():
        assert torch.equal(value, load(SPECIALIST).theta()[name])


def test_wrong_tensors(tmp_path: Path) -> None:
    refused(forged(tensors=lambda t: t["default"].update(dtype="I32")), tmp_path, '"default"')

    def square(t: dict[str, Any]) -> None:
        t["first"]["shape"] = t["first"]["shape"][::-1]

    refused(forged(tensors=square), tmp_path, '"first"')

    def renamed(t: dict[str, Any]) -> None:
        t["x\x1b" * 1000] = t.pop("first")

    refused(forged(tensors=renamed), tmp_path, '"first"')


def test_a_tensor_named_twice(tmp_path: Path) -> None:
    raw = forged()
    size = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + size].rstrip()
    again = json.dumps(json.loads(header)["default"]).encode()
    refused(
        sealed_again(header[:-1] + b',"default":' + again + b"}", raw[8 + size :]),
        tmp_path,
        "unreadable record",
    )


@pytest.mark.parametrize(
    "spec",
    [
        "hyper-adamw:lr=inf",
        "hyper-adamw:gain=0",
        "hyper-adamw:gain=inf",
        "hyper-adamw:weight_decay=-1",
        "hyper-adamw:beta2=1",
        "mlp:hidden=1000000000",
        "mlp:hidden=65536",
        "mlp:exp_mult=inf",
        "mlp:step_mult=0",
        "attention:layers=1000000000",
        "attention:width=65536,heads=1",
        "attention:head_scale=-1",
        "attention-mlp:hidden=60000",
        "celo2:hidden=60000",
        "celo2:mult_1d=0",
        "lstm:scale=inf",
        "lstm:hidden=60000",
        "lstm:seed=100000000000000000000",
    ],
)
def test_a_spec_beyond_all_use(spec: str) -> None:
    begin = time.process_time()
    with pytest.raises(UserError) as error:
        make_learned(spec)
    assert str(error.value).startswith(spec.partition(":")[0]) and "\n" not in str(error.value)
    assert time.process_time() - begin < 5


def test_configs_check_themselves_in_python() -> None:
    for kind, values in (("mlp", {"hidden": 1.5}), ("attention", {"layers": 0})):
        with pytest.raises(ValueError, match="must be"):
            LEARNED[kind].config(**values)


PUBLISHED = [
    path
    for folder in ("results", "lo_framework/shipped")
    for path in sorted((ROOT / folder).rglob("*.safetensors"))
    if path.name != LIGHT
]


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_files_load_and_come_back(path: Path, tmp_path: Path) -> None:
    learned, file = load(path), load_optimizer(path)
    for name, value in learned.theta().items():
        assert torch.equal(value, file.tensors[name])
    save(learned, tmp_path / "again", summary={"note": "x"})
    again = load(tmp_path / "again")
    assert again.config == learned.config and again.kind == learned.kind
    assert all(torch.equal(x, learned.theta()[name]) for name, x in again.theta().items())
