"""What a script writes: ``import lo_framework as lo``, and nothing else of ours."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import lo_framework as lo
from lo_framework.learned.hyper_adamw import HyperAdamW

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "outer_steps": 2,
    "unroll_length": 2,
    "episode_length": "4",
    "num_tasks": 1,
    "shards": 1,
    "validation_seeds": 1,
    "quiet": True,
}

# Train from objects of one's own, use the result.
TRAIN = """
import torch
import lo_framework as lo

inputs = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
labels = (inputs[:, 0] * inputs[:, 1] > 0).long()
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
loss_fn = torch.nn.functional.cross_entropy

mine = lo.task_from_module(model, loss_fn, (inputs, labels), name="mine")
learned = lo.train([mine, "quadratic"], "hyper-adamw", outer_steps=OUTER_STEPS, num_tasks=2)
lo.save(learned, "mine.safetensors")

optimizer = lo.Learned(model.parameters(), "mine.safetensors", num_steps=100)
for step in range(100):
    optimizer.zero_grad()
    loss = loss_fn(model(inputs), labels)
    loss.backward()
    optimizer.step()

print(lo.evaluate([mine], {"mine": learned}, baselines=["adamw"], steps=20, seeds=2).table())
print(f"{loss:.3f}")
"""

# An outer loop of one's own.
LOOP = """
import torch
import lo_framework as lo

(task,) = lo.make_tasks("quadratic")
learned = lo.make_learned("hyper-adamw")
truncation = lo.Truncation(unroll_length=5, episode=(20, 20))
objective = lo.make_objective("valid")
estimator = lo.make_estimator("tbptt", lo.Family(task, learned), objective, truncation, 8)

outer = torch.optim.Adam(learned.parameters(), lr=0.01)
state = estimator.init_state(learned.theta(), torch.Generator().manual_seed(0))
for step in range(OUTER_STEPS):
    estimate, state = estimator.estimate(learned.theta(), state)
    for name, parameter in learned.named_parameters():
        parameter.grad = estimate.grad[name]
    outer.step()
    print(f"{estimate.metrics['meta_loss']:.3f}")
"""

# The same with an unroll that torch.func differentiates.
PURE = """
import torch
import lo_framework as lo

(task,) = lo.make_tasks("quadratic")
learned = lo.make_learned("hyper-adamw")
outer = torch.optim.Adam(learned.parameters(), lr=0.03)
score = torch.func.grad_and_value(lo.unroll)
for seed in range(OUTER_STEPS):
    slope, loss = score(learned.theta(), task, learned, steps=5, seed=seed, num_tasks=4)
    for name, parameter in learned.named_parameters():
        parameter.grad = slope[name]
    outer.step()
    print(f"{loss:.3f}")
"""


def run(script: str, cwd: Path) -> str:
    """What the script prints, in a process of its own."""
    script = script.replace("OUTER_STEPS", "4")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", [TRAIN, LOOP, PURE])
def test_scripts(script: str, tmp_path: Path) -> None:
    *_, last = run(script, tmp_path).split()
    assert 0 < float(last) < 2
    left = [path.name for path in tmp_path.iterdir()]
    assert left == (["mine.safetensors"] if script is TRAIN else []), "nothing else is left behind"


def test_every_name_is_there_and_comes_when_it_is_used() -> None:
    assert 20 <= len(lo.__all__) <= 32
    for name in lo.__all__:
        assert getattr(lo, name) is not None and name in dir(lo)
    script = """
        import sys
        import lo_framework as lo
        assert "torch" not in sys.modules and not hasattr(lo, "trian")
        from lo_framework import UserError
        assert "torch" not in sys.modules
        from lo_framework import *
        assert Learned is lo.Learned
    """
    run(textwrap.dedent(script), ROOT)


def test_type_checkers_see_the_same_names() -> None:
    text = (ROOT / "lo_framework" / "__init__.py").read_text("utf-8")
    block = text.partition("if TYPE_CHECKING:")[2].partition("_HOMES")[0]
    imports = ast.parse(textwrap.dedent(block)).body
    seen = {alias.asname: node.module for node in imports for alias in node.names}  # type: ignore[attr-defined]
    table = lo._HOME_OF  # type: ignore[attr-defined]
    assert seen == {name: f"lo_framework.{home}" for name, home in table.items()}


def test_train_is_a_function_beside_the_subpackage() -> None:
    """Also after the subpackage has been imported, and with specs alone as the command line."""
    first = lo.train("quadratic:dim=3", "hyper-adamw", **SMALL)
    import lo_framework.meta_train

    second = lo.train("quadratic:dim=3", "hyper-adamw", **SMALL)
    assert lo_framework.meta_train.__name__ == "lo_framework.meta_train" and callable(lo.train)
    for name, x in first.theta().items():
        assert torch.equal(x, second.theta()[name])


class Own(HyperAdamW):
    kind = "own-by-test"


def test_objects_of_ones_own(tmp_path: Path) -> None:
    """A task beside a spec, a class, and an optimizer that is trained on from where it is."""
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    task = lo.task_from_module(
        torch.nn.Linear(4, 1),
        torch.nn.functional.mse_loss,
        (inputs, inputs[:, :1]),
        batch_size=8,
        name="mine",
    )
    learned = lo.train([task, "quadratic:dim=3"], Own, workers=2, **SMALL)
    assert type(learned) is Own
    lo.save(learned, tmp_path / "own.safetensors")
    assert type(lo.load(tmp_path / "own.safetensors")) is Own
    start = learned.theta()
    further = lo.train(task, learned, out=tmp_path / "run", **{**SMALL, "outer_lr": 1e-9})
    for name, x in further.theta().items():
        assert torch.allclose(x, start[name], atol=1e-6), "it goes on from its weights"
    with pytest.raises(lo.UserError, match="already holds a run"):
        lo.train(task, learned, out=tmp_path / "run", **SMALL)
    again = lo.train(
        task, learned, out=tmp_path / "run", resume=True, **{**SMALL, "outer_lr": 1e-9}
    )
    for name, x in again.theta().items():
        assert torch.equal(x, further.theta()[name])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("mpl",), '"mlp"'),
        (("mlp", "attention-mpl"), "attention-mlp"),
        (("mlp", 3), "LearnedOptimizer"),
        (([],), "optimizees"),
    ],
)
def test_bad_input_is_a_user_error(arguments: tuple, expected: str) -> None:
    with pytest.raises(lo.UserError, match=expected):
        lo.train(*arguments, **SMALL)
    with pytest.raises(lo.UserError, match="outer_steps"):
        lo.train("mlp", outer_stpes=2)
