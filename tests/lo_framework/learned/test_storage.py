"""Optimizer files: exact round trips, and every kind of damage refused in one line."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from lo_framework.files import checkpoint, sealed
from lo_framework.files.sealed import FORMAT_VERSION
from lo_framework.learned import load_optimizer, save_optimizer, storage
from lo_framework.learned.features import FEATURE_VERSION
from lo_framework.spec import UserError

CONFIG = {"hidden": (8, 4), "head": "exp", "lr": 1e-3, "bias": True, "clip": None}
SUMMARY = {
    "meta_loss": 0.25,
    "tasks": ["mlp/digits", "cnn/digits"],
    "worst": float("inf"),
    "note": 'a "quote" é',
}


def weights() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "net.0.weight": torch.randn(6, 5, generator=g),
        "net.0.bias": torch.zeros(6),
        "log_lr": torch.tensor(-3.0),
        "half": torch.randn(3, generator=g).to(torch.bfloat16),
        "wide": torch.randn(2, 2, generator=g, dtype=torch.float64),
        "count": torch.tensor([1, -2, 3]),
        "mask": torch.tensor([True, False, True]),
        "empty": torch.zeros(0, 4),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "runs" / "lo.safetensors"
    save_optimizer(file, weights(), kind="attention-mlp", config=CONFIG, summary=SUMMARY)
    return file


def refused(path: Path, *words: str, **options: str) -> None:
    with pytest.raises(UserError) as caught:
        load_optimizer(path, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    assert all(word in line for word in (path.name, *words)), line


def test_round_trip(path: Path) -> None:
    file = load_optimizer(path, kind="attention-mlp")
    assert (file.kind, file.config, file.summary) == ("attention-mlp", CONFIG, SUMMARY)
    assert (file.format_version, file.feature_version) == (FORMAT_VERSION, FEATURE_VERSION)
    assert file.tensors.keys() == weights().keys()
    for name, tensor in weights().items():
        assert file.tensors[name].dtype == tensor.dtype and torch.equal(file.tensors[name], tensor)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_same_content_gives_same_bytes(path: Path) -> None:
    again = path.with_name("again.safetensors")
    backwards = dict(reversed(list(weights().items())))
    config = dict(reversed(list(CONFIG.items())))
    save_optimizer(again, backwards, kind="attention-mlp", config=config, summary=SUMMARY)
    assert again.read_bytes() == path.read_bytes()


def test_plain_safetensors_reads_it(path: Path) -> None:
    """The file is an ordinary safetensors file for every other tool."""
    assert torch.equal(load(path.read_bytes())["net.0.weight"], weights()["net.0.weight"])


def test_views_gradients_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).requires_grad_()
    tensors = {
        "a": base,
        "b": base.T,
        "c": base[:, 1],
        "d": base,
        "e": torch.tensor([1 + 2j]).conj(),
    }
    save_optimizer(tmp_path / "x", tensors, kind="k", config={}, summary={})
    loaded = load_optimizer(tmp_path / "x").tensors
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].is_contiguous()
    loaded["a"].zero_()
    assert torch.equal(loaded["d"], base)


def test_no_tensors(tmp_path: Path) -> None:
    save_optimizer(tmp_path / "x", {}, kind="adamw", config={}, summary={})
    assert load_optimizer(tmp_path / "x").tensors == {}


def damaged(raw: bytes, rng: random.Random, number: int) -> bytes:
    """One of six kinds of damage, by turns; may give back the same bytes."""
    data = bytearray(raw)
    at = rng.randrange(len(data))
    size = rng.choice([1, 2, 8, 64, 512])
    kind = number % 6
    if kind in (0, 1):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del data[at:]
    elif kind == 3:
        data[at:at] = rng.choice([rng.randbytes(size), bytes(size), b" " * size])
    elif kind == 4:
        end = min(at + size, len(data))
        data[at:end] = bytes(end - at)
    else:
        other = rng.randrange(len(data))
        data[at], data[other] = data[other], data[at]
    return bytes(data)


def test_thousand_damaged_files(path: Path) -> None:
    raw = path.read_bytes()
    rng = random.Random(0)
    victim = path.with_name("victim.safetensors")
    tried = number = 0
    while tried < 1000:
        bad = damaged(raw, rng, number)
        number += 1
        if bad == raw:
            continue
        tried += 1
        victim.write_bytes(bad)
        refused(victim)


def test_every_bit_of_the_header_and_its_padding(path: Path) -> None:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    assert raw[end - 1 : end] in (b" ", b"}")
    for position in range(end):
        for bit in range(8):
            bad = bytearray(raw)
            bad[position] ^= 1 << bit
            with pytest.raises(UserError):
                sealed.unseal(bytes(bad), "x", "a file")


def test_damage_that_means_the_same_is_refused(path: Path) -> None:
    """The same header respelled, or more padding: readable, yet not the bytes that were written."""
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    loose = json.dumps(json.loads(raw[8:end])).encode()
    for header, word in ((loose, "no lo_framework record"), (raw[8:end] + b" " * 8, "sha256")):
        path.write_bytes(struct.pack("<Q", len(header)) + header + raw[end:])
        assert load(path.read_bytes()).keys() == weights().keys()
        refused(path, word)
    path.write_bytes(raw.replace(sealed._KEY.encode(), b"le_framework"))
    refused(path, "no lo_framework record")


def test_uppercase_digest_is_refused(path: Path) -> None:
    raw = path.read_bytes()
    at = raw.index(sealed._MARK) + len(sealed._MARK)
    path.write_bytes(raw[:at] + raw[at : at + 64].upper() + raw[at + 64 :])
    refused(path, "sha256")


def test_missing_folder_empty_and_strange_files(tmp_path: Path) -> None:
    refused(tmp_path / "none", "there is no file", "expected an optimizer file")
    refused(tmp_path, "is a folder", "expected an optimizer file")
    refused(Path("/dev/null"), "not an ordinary file")
    for data, word in [
        (b"", "empty"),
        (b"PK\x03\x04" * 9, "not a safetensors file"),
        (b"\x80\x04" * 99, "not a saf"),
    ]:
        (tmp_path / "f").write_bytes(data)
        refused(tmp_path / "f", word, "expected an optimizer file")
    (tmp_path / "f").write_bytes(save({"a": torch.ones(2)}, {"kind": "mlp"}))
    refused(tmp_path / "f", "no lo_framework record")


def test_truncated_says_so(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-5])
    refused(path, f"truncated: {len(raw) - 5} bytes of {len(raw)}")
    path.write_bytes(raw[:100])
    refused(path, "truncated")


def test_too_large_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("was read"))
    refused(path, "at most 100 bytes")


def test_header_length_is_not_believed(path: Path) -> None:
    raw = path.read_bytes()
    for length in (0, 1, len(raw) - 7, 1 << 24, 1 << 40, (1 << 64) - 1):
        path.write_bytes(struct.pack("<Q", length) + raw[8:])
        refused(path)


def test_other_versions_and_kinds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(path, 'kind "attention-mlp"', 'expected kind "lstm"', kind="lstm")
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "FORMAT_VERSION", 2)
        refused(path, "format version 1", "reads version 2")
    save_optimizer(
        path, weights(), kind="k", config={}, summary={}, feature_version=FEATURE_VERSION + 1
    )
    refused(path, f"features of version {FEATURE_VERSION + 1}")


def test_resume_state_is_no_optimizer(tmp_path: Path) -> None:
    refused(
        checkpoint.save_state(tmp_path, 3, weights(), {}), '"state"', "expected an optimizer file"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights(path: Path, value: float) -> None:
    before = path.read_bytes()
    bad = {**weights(), "half": torch.tensor([1.0, value]).to(torch.bfloat16)}
    with pytest.raises(UserError, match='"half" holds NaN or infinite'):
        save_optimizer(path, bad, kind="k", config={}, summary={})
    assert path.read_bytes() == before
    record = {
        "content": "optimizer",
        "kind": "k",
        "config": {},
        "summary": {},
        "feature_version": FEATURE_VERSION,
    }
    path.write_bytes(sealed.seal(bad, record))
    refused(path, '"half" holds NaN or infinite')


@pytest.mark.parametrize(
    "change",
    [
        {"kind": None},
        {"config": []},
        {"summary": "x"},
        {"feature_version": True},
        {"content": "other"},
    ],
)
def test_forged_records(path: Path, change: dict) -> None:
    """A right digest over a wrong record."""
    record = {
        "content": "optimizer",
        "kind": "k",
        "config": {},
        "summary": {},
        "feature_version": FEATURE_VERSION,
    }
    path.write_bytes(sealed.seal(weights(), {**record, **change}))
    refused(path, "expected an optimizer file")


@pytest.mark.parametrize(
    "tensors, record",
    [
        ({"a": torch.ones(2).to_sparse()}, {}),
        ({"a": torch.ones(2, device="meta")}, {}),
        ({"a": [1.0]}, {}),
        ({"a": torch.ones(2, dtype=torch.complex128)}, {}),
        ({"__metadata__": torch.ones(2)}, {}),
        ({}, {"a": {1: 2}}),
        ({}, {"a": torch.ones(1)}),
        ({}, {"a": [{"b": {1, 2}}]}),
    ],
)
def test_what_cannot_be_held_is_a_type_error(tensors: dict, record: dict) -> None:
    with pytest.raises(TypeError):
        sealed.seal(tensors, record)


def test_seal_does_not_care_for_lookalikes(tmp_path: Path) -> None:
    """Names and texts that look like the digest's place, or like a digest, do not move it."""
    mark = sealed._MARK.decode()
    tensors = {
        mark: torch.ones(1),
        sealed._BLANK: torch.ones(1),
        '"lo_framework":"{\\"sha256': torch.ones(1),
    }
    record = {"content": mark, "a": sealed._BLANK, mark: mark + sealed._BLANK}
    raw = sealed.seal(tensors, record)
    loaded, back = sealed.unseal(raw, "x", "a file")
    assert loaded.keys() == tensors.keys()
    assert {key: back[key] for key in record} == record
