"""Names of optimizers: shipped ones, files that come first, and what an unknown name is told."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lo_framework as lo
from lo_framework.eval.running.learned_files import load_learned
from lo_framework.files.sealed import FORMAT_VERSION
from lo_framework.learned import LEARNED, fingerprint, load_optimizer, make_learned, save
from lo_framework.learned.features import FEATURE_VERSION
from lo_framework.learned.sources import find, is_named, shipped
from lo_framework.optional import missing
from lo_framework.spec import UserError
from tests.test_imports import ROOT, python

MOST_BYTES = 1_000_000
# Every way in which an unknown name can be given.
USES = (
    lo.load,
    lambda word: lo.Learned([torch.nn.Parameter(torch.ones(2))], word, num_steps=1),
    lambda word: lo.MetaAdamW([torch.nn.Parameter(torch.ones(2))], network=word),
    load_learned,
    lambda word: load_learned({"mine": word}),
)


def test_what_is_shipped() -> None:
    assert "general" in shipped()
    for name, path in shipped().items():
        assert path.stat().st_size < MOST_BYTES and path.parent == ROOT / "lo_framework/shipped"
        file = load_optimizer(name)
        assert (file.path, file.format_version) == (name, FORMAT_VERSION)
        assert file.feature_version == FEATURE_VERSION
        assert file.summary["run"], "its record says what it was meta-trained on"
        assert name not in LEARNED, "a kind of that name would hide it, or be hidden"
        assert file.build().open_ended, "it can be used by those who know no number of steps"


def test_a_name_does_what_its_file_does() -> None:
    learned = load_optimizer(shipped()["general"]).build()
    assert fingerprint(lo.load("general")) == fingerprint(learned)
    ends = []
    for source in ("general", learned):
        model = torch.nn.Linear(3, 2)
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.5)
        optimizer = lo.Learned(model, source, num_steps=5, guard=False)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert float(ends[0][0].mean()) < 0.5


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was saved under a name is what is loaded by it; a folder is in nobody's way."""
    monkeypatch.chdir(tmp_path)
    Path("general").mkdir()
    assert is_named("general") and find("general") == str(shipped()["general"])
    Path("general").rmdir()
    own = make_learned("hyper-adamw")
    save(own, "general")
    assert not is_named("general") and find("general") == "general"
    assert fingerprint(lo.load("general")) == fingerprint(own)
    assert list(load_learned(["general"])) == ["hyper-adamw"]
    Path("general").unlink()
    with pytest.raises(UserError, match="there is no file 'general': expected an optimizer file"):
        lo.load(Path("general"))  # a Path is a file, and so is what has a separator or a suffix
    for file in ("./general", "runs/general", "general.safetensors"):
        assert find(file) == file


@pytest.mark.parametrize("use", USES)
def test_an_unknown_name_is_one_line(use) -> None:
    with pytest.raises(UserError) as refusal:
        use("genral")
    assert str(refusal.value) == (
        'there is no file "genral" and no shipped optimizer of that name (did you mean "general"?);'
        " shipped: general, quick"
    )


def test_labels_are_names(tmp_path: Path) -> None:
    """Beside files, whose labels are their kinds."""
    shutil.copy(shipped()["general"], tmp_path / "x.safetensors")
    found = load_learned(f"general,{tmp_path / 'x.safetensors'}")
    assert [(label, one.path) for label, one in found.items()] == [
        ("general", "general"),
        (lo.load("general").kind, str(tmp_path / "x.safetensors")),
    ]
    words = ["general", "hyper-adamw:lr=0.01"]
    assert list(load_learned(words)) == ["general", "untrained hyper-adamw:lr=0.01"]
    with pytest.raises(UserError, match="'general' is given twice"):
        load_learned("general,general")
    with pytest.raises(UserError, match=r'no learned optimizer \(did you mean "general"\?\); ship'):
        load_learned(["genral"])


@pytest.mark.parametrize("spec", ["general", "general:lr=0.1", "hf://owner/name"])
def test_no_kind_to_train(spec: str) -> None:
    for use in (make_learned, lambda word: lo.train("quadratic", word, quiet=True)):
        with pytest.raises(UserError, match=f'^"{spec}" is an optimizer that is .* kinds: ') as e:
            use(spec)
        assert "\n" not in str(e.value)


def run(*words: str) -> tuple[int, str]:
    """Exit code and errors of a command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("eval transfer --learned genral", 'did you mean "general"?'),
        ("eval sharpness --learned genral", 'did you mean "general"?'),
        ("eval score genral", 'did you mean "general"?'),
        ("eval score hf://owner", "is not of the form hf://owner/name or hf://owner/name@"),
        ("meta_train --learned general", '"general" is an optimizer that is shipped, not a kind'),
    ],
)
def test_commands_end_with_2(words: str, line: str, tmp_path: Path) -> None:
    code, errors = run(*f"lo_framework.{words} --out".split(), str(tmp_path / "out"))
    assert code == 2 and line in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a b/c"])
def test_repositories_have_two_parts(source: str) -> None:
    with pytest.raises(UserError, match="is not of the form hf://owner/name"):
        lo.load(source)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in USES:
        with pytest.raises(UserError, match=r"^needs huggingface_hub .*'lo-framework\[hub\]'$"):
            use("hf://owner/name")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The hub's cache with the shipped optimizer as owner/name, at two revisions."""
    if line := missing("huggingface_hub"):
        pytest.skip(line)
    home = tmp_path / "hub" / "models--owner--name"
    for letter, name in (("a", "main"), ("b", "v1")):
        folder = home / "snapshots" / (letter * 40)
        folder.mkdir(parents=True)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / name).write_text(letter * 40)
    save(
        make_learned("hyper-adamw:lr=0.5"),
        home / "snapshots" / ("b" * 40) / "optimizer.safetensors",
    )
    shutil.copy(shipped()["general"], home / "snapshots" / ("a" * 40) / "optimizer.safetensors")
    empty = tmp_path / "hub" / "models--owner--empty"
    (empty / "snapshots" / ("c" * 40)).mkdir(parents=True)
    (empty / "refs").mkdir()
    (empty / "refs" / "main").write_text("c" * 40)
    return tmp_path / "hub"


HUB_SCRIPT = """
    import sys
    import torch
    import lo_framework as lo
    from lo_framework.eval.running.learned_files import load_learned
    from lo_framework.learned import fingerprint, load_optimizer

    assert "huggingface_hub" not in sys.modules
    shared = lo.load("hf://owner/name")
    assert fingerprint(shared) == fingerprint(lo.load("general"))
    assert load_optimizer("hf://owner/name").path == "hf://owner/name"
    for revision in ("v1", "b" * 40):
        assert lo.load("hf://owner/name@" + revision).config.lr == 0.5
    lo.Learned(torch.nn.Linear(2, 2), "hf://owner/name", num_steps=3)
    found = load_learned("hf://owner/name,hf://owner/name@v1,general")
    assert list(found) == ["owner/name", "owner/name@v1", "general"]
    for gone in ("hf://owner/other", "hf://owner/name@v2", "hf://owner/empty"):
        try:
            lo.load(gone)
        except lo.UserError as error:
            print(error)
        else:
            raise AssertionError(gone)
"""


def test_the_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache without a network: the package looks for the file there and nowhere else."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    lines = python(HUB_SCRIPT).splitlines()
    sources = ["hf://owner/other", "hf://owner/name@v2", "hf://owner/empty"]
    assert lines == [
        f'cannot get "{source}" from the hub: it is not in the cache, and the hub cannot be reached'
        for source in sources
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RepositoryNotFoundError", "there is no such repository, or it is private"),
        ("GatedRepoError", "it is open only to those who asked for access"),
        ("RevisionNotFoundError", "the repository has no such revision"),
        ("RemoteEntryNotFoundError", "the repository has no optimizer.safetensors"),
        ("ValueError", "ValueError: odd"),
    ],
)
def test_what_the_hub_answers(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if line := missing("huggingface_hub"):
        pytest.skip(line)
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, name, ValueError)
    error = kind.__new__(kind, "odd")  # made by hand, it wants no answer of a server
    error.args = ("odd\nand more",)

    def refuse(*arguments: object, **options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(UserError) as refusal:
        lo.load("hf://owner/elsewhere")
    line = str(refusal.value)
    assert f'cannot get "hf://owner/elsewhere" from the hub: {reason}' in line and "\n" not in line
